"""Run tests against mutants in two ways; a mutant killed the quick way is not tried again.

* ``try_quickly``: one process collects the tests once and forks for each mutant; the child replaces the code of existing
  functions. It takes milliseconds, but does not reach code that runs during import.
* ``try_thoroughly``: one process has imported the libraries but no module of ``sidecar``, and forks for each mutant; the
  child imports ``sidecar`` with the mutated module and runs the tests.

A child may use a multiple of the processor time that the tests need without a mutant. A child that uses more counts as
killed, because its tests would not end. The limit is processor time, not elapsed time, so a busy machine does not matter.
Source files are not written: an interrupted run leaves no mutant behind.
"""

import ast
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import resource
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import pytest
from mutants import ROOT, Mutant, parse

LIMIT_FACTOR, MIN_LIMIT_S = 10, 5
MEMORY_BYTES = 4 * 2**30
PASSED, FAILED, BROKEN = 0, (1, 2, 3), 125  # pytest ends with 2 or 3 if an import or a plugin failed
OPTIONS = ("-x", "-q", "--no-header", "--tb=native", "--assert=plain", "-p", "no:cacheprovider")
FUNCTION = 2  # CO_NEWLOCALS: code of a function, not of a module or class


class TrialResult(NamedTuple):
    """How the tests ended: whether they failed, whether by the time limit, and their processor time."""

    killed: bool
    by_time: bool
    cpu_s: float


# --- a child process ---


def in_child(call: Callable[[], int], limit_s: float, *, quiet: bool = True) -> TrialResult:
    """Fork and run ``call``, which returns pytest's exit code, within the limit. Raises RuntimeError for another code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        exit_code = BROKEN
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 3))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            if quiet:
                devnull = os.open(os.devnull, os.O_RDWR)
                os.dup2(devnull, 1)
                os.dup2(devnull, 2)
            exit_code = call()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(exit_code)
    _, status, usage = os.wait4(child, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return TrialResult(True, True, cpu_s)
    code = os.waitstatus_to_exitcode(status)
    if code != PASSED and code not in FAILED:
        raise RuntimeError(f"pytest ended with {code} in a child process")
    return TrialResult(code != PASSED, False, cpu_s)


# --- with a fresh import ---


class _MutatedModule(MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Import hook that loads one module with mutated code."""

    def __init__(self, path: str, code: CodeType) -> None:
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        importlib.machinery.SourceFileLoader.__init__(self, name, str(ROOT / path))
        self._code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return self._code


def try_thoroughly(
    tests: Sequence[str], path: str, tree: ast.Module, limit_s: float, *, quiet: bool = True
) -> TrialResult:
    """Run the tests in a child process that imports ``tree`` as the module at ``path``."""

    def run() -> int:
        sys.meta_path.insert(0, _MutatedModule(path, _compiled(path, tree)))
        return int(pytest.main([*OPTIONS, *tests], plugins=[_NoShrinking()]))

    return in_child(run, limit_s, quiet=quiet)


class _NoShrinking:
    """Turn off shrinking in property tests: any failing example is enough."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutation", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")


# --- with one import ---


def try_quickly(tests: Sequence[str], mutants: Sequence[Mutant], limit_s: float) -> Iterator[TrialResult]:
    """Yield the result of each mutant; one that survives here may still be killed by ``try_thoroughly``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            devnull = os.open(os.devnull, os.O_RDWR)
            os.dup2(devnull, 1)
            pytest.main([*OPTIONS, *tests], plugins=[_NoShrinking(), _MutantLoop(mutants, limit_s, writing)])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ends:
            for mutant in mutants:
                data = ends.read(_RESULT.size)
                if len(data) < _RESULT.size:
                    raise RuntimeError(f"the trial process ended before {mutant}")
                yield TrialResult(*_RESULT.unpack(data))
    finally:
        os.waitpid(child, 0)


_RESULT = struct.Struct("??d")
_ITEM = struct.Struct("i")


class _MutantLoop:
    """Replaces pytest's loop over tests by a loop over mutants; tests with the most kills run first."""

    def __init__(self, mutants: Sequence[Mutant], limit_s: float, out: int) -> None:
        self._mutants, self._limit_s, self._out = mutants, limit_s, out
        self._kills = Counter[int]()
        self._before = {path: _functions(_compiled(path, parse(path))) for path in {mutant.path for mutant in mutants}}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        functions_by_code: dict[CodeType, list[FunctionType]] = {}
        for candidate in gc.get_objects():
            if isinstance(candidate, FunctionType):
                functions_by_code.setdefault(candidate.__code__, []).append(candidate)
        gc.freeze()
        for mutant in self._mutants:
            reading, writing = os.pipe()
            end = in_child(
                lambda mutant=mutant, to=writing: self._try(session, mutant, functions_by_code, to), self._limit_s
            )
            os.close(writing)
            if killer := os.read(reading, _ITEM.size):
                self._kills[_ITEM.unpack(killer)[0]] += 1
            os.close(reading)
            os.write(self._out, _RESULT.pack(*end))
        return True

    def _try(
        self, session: pytest.Session, mutant: Mutant, functions_by_code: dict[CodeType, list[FunctionType]], to: int
    ) -> int:
        if not self._replace_code(mutant, functions_by_code):
            return PASSED
        order = sorted(range(len(session.items)), key=lambda at: -self._kills[at])
        for at, following in zip(order, [*order[1:], None], strict=True):
            item, after = session.items[at], None if following is None else session.items[following]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if session.testsfailed:
                os.write(to, _ITEM.pack(at))
                return FAILED[0]
        return PASSED

    def _replace_code(self, mutant: Mutant, functions_by_code: dict[CodeType, list[FunctionType]]) -> bool:
        """Replace the code of the existing functions; return whether any was replaced. A code may have several functions."""
        planted = False
        for name_and_line, code in _functions(_compiled(mutant.path, mutant.tree())).items():
            before = self._before[mutant.path].get(name_and_line)
            if before is not None and before != code:
                for function in functions_by_code.get(before, ()):
                    if before.co_freevars != code.co_freevars:
                        return False
                    function.__code__ = code
                    planted = True
        return planted


def _compiled(path: str, tree: ast.Module) -> CodeType:
    return compile(tree, str(ROOT / path), "exec", dont_inherit=True)


def _functions(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Return the outermost functions of a module's or class's code, by name and line."""
    functions = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & FUNCTION:
                functions[inner.co_qualname, inner.co_firstlineno] = inner
            else:
                functions.update(_functions(inner))
    return functions

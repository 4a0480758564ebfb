"""Trying mutants against tests, in two ways; what is killed the quick way need not be tried the other.

* ``swift``: one process collects the tests once and forks for each mutant; the child puts the changed code into the
  functions that are there already. It takes milliseconds, but does not reach what runs while a module is imported.
* ``thorough``: one process has the libraries imported but none of our rooms and forks for each mutant; the child
  imports the rooms with the changed module in its place and runs the tests.

A child may use a multiple of the processor time that the tests need for the right source; one that uses more is killed
as its tests would never end. It is not the clock that decides, so a busy machine kills nothing. Nothing is written to
the source: an interrupted run leaves no mutant behind.
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

TIMES_AS_LONG, AT_LEAST_S = 10, 5
MEMORY_BYTES = 4 * 2**30
PASSED, FAILED, BROKEN = 0, (1, 2, 3), 125  # 2 and 3 of pytest: an import failed, the mutant broke what a plugin asked
OPTIONS = ("-x", "-q", "--no-header", "--tb=native", "--assert=plain", "-p", "no:cacheprovider")
FUNCTION = 2  # the flag of code that makes a scope of its own when it is called (CO_NEWLOCALS)


class End(NamedTuple):
    """How the tests ended: by a failure, by using too much time, and the processor time they took."""

    killed: bool
    by_time: bool
    cpu_s: float


# --- a child process ---


def in_child(what: Callable[[], int], limit_s: float, *, quiet: bool = True) -> End:
    """Fork, call ``what`` within the limit; its result is pytest's exit code. Raises RuntimeError where it is broken."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        ended = BROKEN
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 3))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            if quiet:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
            ended = what()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(ended)
    _, status, used = os.wait4(child, 0)
    cpu_s = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return End(True, True, cpu_s)
    code = os.waitstatus_to_exitcode(status)
    if code != PASSED and code not in FAILED:
        raise RuntimeError(f"pytest ended with {code} in a child process")
    return End(code != PASSED, False, cpu_s)


# --- with everything imported anew ---


class _Instead(MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, and gives it other code than its file has."""

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


def thorough(tests: Sequence[str], path: str, tree: ast.Module, limit_s: float, *, quiet: bool = True) -> End:
    """Run the tests in a child process, in which the module at ``path`` is ``tree`` from the beginning."""

    def run() -> int:
        sys.meta_path.insert(0, _Instead(path, _compiled(path, tree)))
        return int(pytest.main([*OPTIONS, *tests], plugins=[_Quick()]))

    return in_child(run, limit_s, quiet=quiet)


class _Quick:
    """Property tests do not look for the smallest example; any is enough here."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutation", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")


# --- with everything imported once ---


def swift(tests: Sequence[str], mutants: Sequence[Mutant], limit_s: float) -> Iterator[End]:
    """How each mutant ends; one that is not killed may still be by ``thorough``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            pytest.main([*OPTIONS, *tests], plugins=[_Quick(), _Loop(mutants, limit_s, writing)])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ends:
            for mutant in mutants:
                told = ends.read(_END.size)
                if len(told) < _END.size:
                    raise RuntimeError(f"the process that tries mutants ended before {mutant}")
                yield End(*_END.unpack(told))
    finally:
        os.waitpid(child, 0)


_END = struct.Struct("??d")
_ITEM = struct.Struct("i")


class _Loop:
    """Instead of pytest's loop over the tests: one over the mutants. The tests that have killed most come first."""

    def __init__(self, mutants: Sequence[Mutant], limit_s: float, out: int) -> None:
        self._mutants, self._limit_s, self._out = mutants, limit_s, out
        self._kills = Counter[int]()
        self._before = {path: _functions(_compiled(path, parse(path))) for path in {one.path for one in mutants}}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        there: dict[CodeType, list[FunctionType]] = {}
        for one in gc.get_objects():
            if isinstance(one, FunctionType):
                there.setdefault(one.__code__, []).append(one)
        gc.freeze()
        for mutant in self._mutants:
            reading, writing = os.pipe()
            end = in_child(lambda mutant=mutant, to=writing: self._try(session, mutant, there, to), self._limit_s)
            os.close(writing)
            if killer := os.read(reading, _ITEM.size):
                self._kills[_ITEM.unpack(killer)[0]] += 1
            os.close(reading)
            os.write(self._out, _END.pack(*end))
        return True

    def _try(self, session: pytest.Session, mutant: Mutant, there: dict[CodeType, list[FunctionType]], to: int) -> int:
        if not self._plant(mutant, there):
            return PASSED
        order = sorted(range(len(session.items)), key=lambda at: -self._kills[at])
        for at, following in zip(order, [*order[1:], None], strict=True):
            item, after = session.items[at], None if following is None else session.items[following]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if session.testsfailed:
                os.write(to, _ITEM.pack(at))
                return FAILED[0]
        return PASSED

    def _plant(self, mutant: Mutant, there: dict[CodeType, list[FunctionType]]) -> bool:
        """Whether the changed code could be put into functions that are there; each may have several, or none."""
        planted = False
        for place, code in _functions(_compiled(mutant.path, mutant.tree())).items():
            before = self._before[mutant.path].get(place)
            if before is not None and before != code:
                for function in there.get(before, ()):
                    if before.co_freevars != code.co_freevars:
                        return False
                    function.__code__ = code
                    planted = True
        return planted


def _compiled(path: str, tree: ast.Module) -> CodeType:
    return compile(tree, str(ROOT / path), "exec", dont_inherit=True)


def _functions(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """The outermost functions of a module's or class's code, by name and line."""
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & FUNCTION:
                found[inner.co_qualname, inner.co_firstlineno] = inner
            else:
                found.update(_functions(inner))
    return found

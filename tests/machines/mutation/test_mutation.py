"""The mutation machine works; of a sample that changes with the sources, the tests kill at least nine in ten mutants."""

import ast
import os
import subprocess
import sys
import zlib
from pathlib import Path

import mutate
import pytest
from mutants import mutants_of
from trial import in_child

SOURCE = '''
"""A docstring."""
LIMIT: int = 3

def spare(used: int, *, more: int = 0) -> int:
    """Another."""
    if used < LIMIT and not more:
        return min(LIMIT - used, 2)
    raise ValueError(used)

class Box:
    def __repr__(self):
        return 1 + 1

    def put(self, one):
        assert one > 0
        self.one = one
        for each in (1, one):
            if each:
                continue
            self.log(each, loud=True)
'''
MUTANTS = """
LIMIT: 3 → 4
LIMIT: 3 → 2
spare: 0 → 1
spare: 0 → -1
spare: used < LIMIT and (not more) → not (used < LIMIT and (not more))
spare: return min(LIMIT - used, 2) → return
spare: raise ValueError(used) → pass
spare: used < LIMIT and (not more) → used < LIMIT or not more
spare: used < LIMIT → used <= LIMIT
spare: LIMIT - used → LIMIT + used
spare: 2 → 3
spare: 2 → 1
Box.put: self.one = one → pass
Box.put: self.log(each, loud=True) → pass
Box.put: 1 → 2
Box.put: 1 → 0
Box.put: each → not each
Box.put: continue → break
Box.put: self.log(each, loud=True) → self.log(each)
Box.put: True → False
"""


def write(folder: Path, text: str) -> str:
    path = folder / "source.py"
    path.write_text(text)
    return str(path)


def test_every_small_change_is_a_mutant(tmp_path):
    mutants = mutants_of(write(tmp_path, SOURCE))
    assert sorted(mutant.name for mutant in mutants) == sorted(MUTANTS.strip().split("\n"))
    assert all(mutant.line > 2 for mutant in mutants)


def test_a_mutant_differs_only_by_its_change(tmp_path):
    path = write(tmp_path, SOURCE)
    (mutant,) = [mutant for mutant in mutants_of(path) if mutant.name == "spare: used < LIMIT → used <= LIMIT"]
    assert ast.unparse(mutant.tree()) == ast.unparse(ast.parse(SOURCE)).replace("used < LIMIT", "used <= LIMIT")


def test_the_same_change_twice_in_a_function_has_two_names(tmp_path):
    names = [mutant.name for mutant in mutants_of(write(tmp_path, "def f(a):\n    return a + 1 if a else a + 1\n"))]
    assert len(set(names)) == len(names)
    assert "f: a + 1 → a - 1 (#2)" in names


def test_an_endless_test_is_killed_by_processor_time():
    def forever() -> int:
        while True:
            pass

    end = in_child(forever, 0.0)
    assert (end.killed, end.by_time) == (True, True)


def test_passing_and_failing_children_are_distinguished():
    assert not in_child(lambda: 0, 60).killed
    assert in_child(lambda: 1, 60).killed


def test_every_equivalent_exists_and_has_a_reason():
    assert mutate.stale_equivalents() == []
    assert all(len(why) > 20 for names in mutate.equivalents().values() for why in names.values())


@pytest.mark.timeout(300)  # a minute when quiet; a survivor costs as much as ten others
def test_nine_in_ten_of_a_sample_are_killed():
    """The sample changes with the sources, so that the same commit has the same verdict on any day.

    Runs in a process that has not imported ``sidecar``, without coverage.
    """
    sources = [source for component in mutate.COMPONENTS.values() for source in component.sources]
    seed = zlib.crc32(b"".join((mutate.ROOT / source).read_bytes() for source in sources))
    command = [sys.executable, mutate.__file__, "--sample", "20", "--seed", str(seed)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

"""The machine that mutates can see; of a sample, another one each day, the tests kill what they should."""

import ast
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import mutate
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


def test_every_small_change_is_a_mutant_and_nothing_else(tmp_path):
    found = mutants_of(write(tmp_path, SOURCE))
    assert sorted(one.name for one in found) == sorted(MUTANTS.strip().split("\n"))
    assert all(one.line > 2 for one in found)


def test_a_mutant_differs_from_the_source_in_what_its_name_says(tmp_path):
    path = write(tmp_path, SOURCE)
    (mutant,) = [one for one in mutants_of(path) if one.name == "spare: used < LIMIT → used <= LIMIT"]
    assert ast.unparse(mutant.tree()) == ast.unparse(ast.parse(SOURCE)).replace("used < LIMIT", "used <= LIMIT")


def test_the_same_change_twice_in_a_function_has_two_names(tmp_path):
    names = [one.name for one in mutants_of(write(tmp_path, "def f(a):\n    return a + 1 if a else a + 1\n"))]
    assert len(set(names)) == len(names)
    assert "f: a + 1 → a - 1 (#2)" in names


def test_what_never_ends_is_killed_by_the_processor_time_it_uses():
    def forever() -> int:
        while True:
            pass

    end = in_child(forever, 0.0)
    assert (end.killed, end.by_time) == (True, True)


def test_a_child_that_passes_or_fails_is_told_apart():
    assert not in_child(lambda: 0, 60).killed
    assert in_child(lambda: 1, 60).killed


def test_every_mutant_that_is_called_equivalent_is_one_and_has_a_reason():
    assert mutate.misfits() == []
    assert all(len(why) > 20 for names in mutate.equivalents().values() for why in names.values())


def test_of_a_sample_nine_in_ten_are_killed():
    """In a process of its own, which has none of our rooms imported, and that coverage does not follow."""
    command = [sys.executable, mutate.__file__, "--sample", "20", "--seed", str(date.today().toordinal())]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

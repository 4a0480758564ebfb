"""A recovery that is interrupted at any call, by a power cut or a full disk, loses nothing that it could have recovered."""

import shutil

import pytest
from pl_record import why_not_recordable
from pl_recovery import (
    NAME,
    TAKE_SPACE,
    calls_of,
    check_recovered,
    cut_recovery,
    fill_disk_at,
    make_damaged,
    space_taken,
)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with a damaged outbox, its recovery's calls, and what it should give."""
    if why := why_not_recordable():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("powerloss") / "o"
    folder.mkdir()
    expected = make_damaged(folder)
    recorded = folder.with_name("recorded")
    shutil.copytree(folder, recorded)
    return folder, calls_of(recorded), expected


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_cut_at_any_call_of_a_recovery_loses_nothing(damaged, tmp_path, every):
    folder, ops, expected = damaged
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcomes = set()
    assert len(ops) > 50
    for at, outcome in cut_recovery(ops, files, tmp_path, every=every):
        outcomes.add(outcome)
        try:
            check_recovered(tmp_path, files[NAME], expected)
        except Exception as error:
            raise AssertionError(f"a cut before call {at} of {len(ops)} ({ops[at]!r:.200}): {outcome}") from error
    assert len(outcomes) == 5


@pytest.mark.parametrize("call", TAKE_SPACE)
def test_a_disk_that_fills_up_during_a_recovery_loses_nothing(damaged, tmp_path, call):
    folder, _, expected = damaged
    original = (folder / NAME).read_bytes()
    for number in some_of(space_taken(folder, call)):
        trial = tmp_path / f"{call}-{number}"
        shutil.copytree(folder, trial)
        error = fill_disk_at(trial, call, number)
        assert error is not None
        assert "recovered yet" in error or "cannot be opened for writing" in error
        assert not list(trial.glob("*.recovering*"))  # half a copy would keep the disk full
        check_recovered(trial, original, expected)
        shutil.rmtree(trial)


def some_of(calls: int) -> list[int]:
    """The first and the last calls, and some between."""
    return sorted(
        {*range(1, min(4, calls) + 1), *range(1, calls + 1, max(1, calls // 8)), *range(max(1, calls - 3), calls + 1)}
    )

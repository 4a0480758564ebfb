"""A power cut between fsyncs loses nothing that was answered: the short machine. The long one: ``powercut.py``."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pl_events import event_of
from pl_real import cannot
from pl_record import cannot_record, record
from powercut import choose, report, run

from sidecar.outbox import Store, open_outbox

COMMAND = Path(__file__).with_name("powercut.py")
FRAME, FRAME_HEADER = 24 + 4096, 24


def recorded(**how):
    if why := cannot_record():
        pytest.skip(why)
    return record(1, **how)


@pytest.fixture(scope="module")
def recording():
    return recorded()


def test_whatever_a_power_cut_leaves_what_was_answered_is_there(recording):
    cuts = choose(recording, 200)
    assert {cut.moment for cut in cuts} == {"commit", "checkpoint", "names", "rest"}
    result = run(recording, cuts)
    assert not result.broken, report(recording, result)
    assert result.kinds.total() == 200


@pytest.mark.slow
def test_whatever_a_thousand_power_cuts_leave_what_was_answered_is_there(recording):
    result = run(recording, choose(recording, 1_000))
    assert not result.broken, report(recording, result)


@pytest.mark.slow
def test_a_seed_always_makes_the_same_calls(recording):
    again = recorded()
    assert [op._replace(data=b"") for op in again.ops] == [op._replace(data=b"") for op in recording.ops]


def test_process_durability_loses_answered_events_at_a_power_cut():
    recording = recorded(durability="process", lives=2)
    broken = [what for _, what in run(recording, choose(recording, 50)).broken]
    assert any("lost" in what and "answered" in what for what in broken)
    assert not any("SQLite finds it damaged" in what for what in broken)


def test_a_disk_that_ignores_the_fsync_of_the_log_is_found_out(recording):
    broken = [what for _, what in run(recording, choose(recording, 50), deaf=("outbox.db-wal",)).broken]
    assert any("lost" in what for what in broken)


def test_a_disk_that_ignores_the_fsync_of_the_file_is_found_out(recording):
    # The log is used from its beginning again after a checkpoint, which is safe only behind that fsync.
    assert run(recording, choose(recording, 50), deaf=("outbox.db",)).broken


def copied(path, folder, torn_log=None):
    """The outbox as a cut leaves it, with this log if it is another; its path."""
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    log = path.with_name(path.name + "-wal")
    (folder / log.name).write_bytes(log.read_bytes() if torn_log is None else torn_log)
    return folder / path.name


def commit(store, *numbers):
    """Store events; where the log ends then."""
    with store.transaction():
        store.accept([[event_of(number) for number in numbers]], 1_700_000_000_000)
    log = store.path.with_name(store.path.name + "-wal").read_bytes()
    return len(log), log


def assert_no_damage(path, *, accepted):
    opened = open_outbox(path, durability="disk")
    with closing(opened.connection):
        assert opened.notice == ""
        assert opened.counters["accepted"] == accepted


@pytest.mark.parametrize("arrived", [FRAME_HEADER, 512, 4000])
def test_a_commit_that_was_cut_off_in_its_last_frame_is_no_damage(tmp_path, arrived):
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        commit(store, 1)
        commit(store, 2)
        end, log = commit(store, 3)
        # The log has been as long before: what has not arrived is what stood there, here zeros.
        torn = log[: end - FRAME + arrived] + bytes(FRAME - arrived)
        left = copied(store.path, tmp_path / "left", torn)
    assert_no_damage(left, accepted=2)


def test_a_torn_commit_is_no_damage_where_an_earlier_torn_one_has_left_its_end_behind_it(tmp_path):
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        before, _ = commit(store, 1)
        _, log = commit(store, *range(2, 200))
        first = copied(store.path, tmp_path / "first", log[:before] + bytes(FRAME) + log[before + FRAME :])
    again = open_outbox(first, durability="disk")
    with closing(again.connection):
        assert again.notice == ""
        commit(again, 300)
        intact = again.path.with_name("outbox.db-wal").read_bytes()
        _, log = commit(again, 301)
        changed = [at for at in range(32, len(log), FRAME) if log[at : at + FRAME] != intact[at : at + FRAME]]
        missing = changed[0] + FRAME_HEADER  # the page of its first frame has not arrived
        torn = log[:missing] + intact[missing : changed[0] + FRAME] + log[changed[0] + FRAME :]
        second = copied(again.path, tmp_path / "second", torn)
    assert_no_damage(second, accepted=2)


def test_a_first_start_that_was_cut_off_in_its_first_write_is_begun_again(tmp_path):
    path = tmp_path / "outbox.db"
    # A journal as SQLite has synced it before: no page to restore, the file had none, sectors and pages of this size.
    numbers = (0, 1, 0, 512, 4096)
    journal = bytes.fromhex("d9d505f920a163d7") + b"".join(number.to_bytes(4, "big") for number in numbers)
    path.with_name("outbox.db-journal").write_bytes(journal.ljust(512, b"\0"))
    path.write_bytes(bytes(4096))  # as long as it is to be, and nothing of it has arrived
    assert_no_damage(path, accepted=0)


def test_an_answered_transaction_that_is_damaged_in_the_log_is_damage(tmp_path):
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        commit(store, 1)
        end, _ = commit(store, 2)
        _, log = commit(store, 3)
        damaged = bytearray(log)
        damaged[end - 1_000] ^= 1  # in the last frame of the second of three
        left = copied(store.path, tmp_path / "left", damaged)
    opened = open_outbox(left, durability="disk")
    with closing(opened.connection):
        assert "damaged" in opened.notice


def cut_for_real(*options):
    if why := cannot():
        pytest.skip(why)
    command = [sys.executable, str(COMMAND), *options]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environ)


def test_what_was_answered_is_there_after_the_power_of_a_real_file_system_was_cut():
    ended = cut_for_real("--real", "2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 lost" in ended.stdout.splitlines()[-1]


def test_process_durability_loses_answered_events_when_the_power_of_a_real_file_system_is_cut():
    ended = cut_for_real("--real", "1", "--durability", "process")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "answered events never arrived" in ended.stdout

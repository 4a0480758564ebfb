"""A power cut at any moment loses no answered event. The long run is ``powercut.py``."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from pl_events import event_of
from pl_real import why_not_possible
from pl_record import record, why_not_recordable
from powercut import choose, report, run

from sidecar.outbox import Store, open_outbox

COMMAND = Path(__file__).with_name("powercut.py")
FRAME, FRAME_HEADER = 24 + 4096, 24


def record_or_skip(**settings):
    if why := why_not_recordable():
        pytest.skip(why)
    return record(1, **settings)


@pytest.fixture(scope="module")
def recording():
    return record_or_skip()


def test_a_power_cut_loses_no_answered_event(recording):
    cuts = choose(recording, 200)
    assert {cut.moment for cut in cuts} == {"commit", "checkpoint", "names", "rest"}
    result = run(recording, cuts)
    assert not result.broken, report(recording, result)
    assert result.kinds.total() == 200


@pytest.mark.slow
def test_a_thousand_power_cuts_lose_no_answered_event(recording):
    result = run(recording, choose(recording, 1_000))
    assert not result.broken, report(recording, result)


@pytest.mark.slow
def test_a_seed_always_gives_the_same_recording(recording):
    again = record_or_skip()
    assert [op._replace(data=b"") for op in again.ops] == [op._replace(data=b"") for op in recording.ops]


def test_process_durability_loses_events_at_a_power_cut():
    recording = record_or_skip(durability="process", processes=2)
    broken = [what for _, what in run(recording, choose(recording, 50)).broken]
    assert any("lost" in what and "answered" in what for what in broken)
    assert not any("SQLite finds it damaged" in what for what in broken)


def test_a_disk_that_ignores_log_syncs_is_detected(recording):
    broken = [what for _, what in run(recording, choose(recording, 50), ignored_syncs=("outbox.db-wal",)).broken]
    assert any("lost" in what for what in broken)


def test_a_disk_that_ignores_database_syncs_is_detected(recording):
    # After a checkpoint the log is overwritten from its start, which is safe only after that fsync.
    assert run(recording, choose(recording, 50), ignored_syncs=("outbox.db",)).broken


def copy_outbox(path, folder, torn_log=None):
    """Copy an outbox, with ``torn_log`` in place of its log; return the path of the copy."""
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    log = path.with_name(path.name + "-wal")
    (folder / log.name).write_bytes(log.read_bytes() if torn_log is None else torn_log)
    return folder / path.name


def commit(store, *numbers):
    """Store events; return the length and the content of the log."""
    with store.transaction():
        store.accept([[event_of(number) for number in numbers]], 1_700_000_000_000)
    log = store.path.with_name(store.path.name + "-wal").read_bytes()
    return len(log), log


def assert_no_damage(path, *, accepted):
    opened = open_outbox(path, durability="disk")
    with closing(opened.connection):
        assert opened.notice == ""
        assert opened.counters["accepted"] == accepted


@pytest.mark.parametrize("written", [FRAME_HEADER, 512, 4000])
def test_a_commit_torn_in_its_last_frame_is_not_damage(tmp_path, written):
    """A torn last transaction was reported as damage, so the file was set aside and settled events became pending."""
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        commit(store, 1)
        commit(store, 2)
        end, log = commit(store, 3)
        # The log was as long before: the part not written holds the old content, here zeros.
        torn = log[: end - FRAME + written] + bytes(FRAME - written)
        remains = copy_outbox(store.path, tmp_path / "left", torn)
    assert_no_damage(remains, accepted=2)


def test_a_second_torn_commit_at_one_position_is_not_damage(tmp_path):
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        before, _ = commit(store, 1)
        _, log = commit(store, *range(2, 200))
        first = copy_outbox(store.path, tmp_path / "first", log[:before] + bytes(FRAME) + log[before + FRAME :])
    again = open_outbox(first, durability="disk")
    with closing(again.connection):
        assert again.notice == ""
        commit(again, 300)
        intact = again.path.with_name("outbox.db-wal").read_bytes()
        _, log = commit(again, 301)
        changed = [at for at in range(32, len(log), FRAME) if log[at : at + FRAME] != intact[at : at + FRAME]]
        missing = changed[0] + FRAME_HEADER  # the page of its first frame is not written
        torn = log[:missing] + intact[missing : changed[0] + FRAME] + log[changed[0] + FRAME :]
        second = copy_outbox(again.path, tmp_path / "second", torn)
    assert_no_damage(second, accepted=2)


def test_a_first_start_torn_in_its_first_write_starts_again(tmp_path):
    """The remains of a first start were reported as damage."""
    path = tmp_path / "outbox.db"
    # A journal as SQLite syncs it first: no page to restore, an empty file, these sector and page sizes.
    numbers = (0, 1, 0, 512, 4096)
    journal = bytes.fromhex("d9d505f920a163d7") + b"".join(number.to_bytes(4, "big") for number in numbers)
    path.with_name("outbox.db-journal").write_bytes(journal.ljust(512, b"\0"))
    path.write_bytes(bytes(4096))  # extended to its length, with no content written
    assert_no_damage(path, accepted=0)


def test_an_unsound_answered_transaction_is_damage(tmp_path):
    store = Store(tmp_path / "outbox.db")
    with closing(store.connection):
        commit(store, 1)
        end, _ = commit(store, 2)
        _, log = commit(store, 3)
        damaged = bytearray(log)
        damaged[end - 1_000] ^= 1  # in the last frame of the second of three
        remains = copy_outbox(store.path, tmp_path / "left", damaged)
    opened = open_outbox(remains, durability="disk")
    with closing(opened.connection):
        assert "damaged" in opened.notice


def run_real_cuts(*options):
    if why := why_not_possible():
        pytest.skip(why)
    command = [sys.executable, str(COMMAND), *options]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environ)


def test_a_real_power_cut_loses_no_answered_event():
    ended = run_real_cuts("--real", "2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 lost" in ended.stdout.splitlines()[-1]


def test_process_durability_loses_events_at_a_real_power_cut():
    ended = run_real_cuts("--real", "1", "--durability", "process")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "answered events never arrived" in ended.stdout

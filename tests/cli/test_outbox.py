"""`px-sidecar outbox`: pending events move between hosts without loss or duplicates."""

import errno
import json
import os
import sqlite3
from hashlib import sha256
from io import FileIO

import pytest
from outbox_files import accept, event, pending_ids, sqlite_error
from running_daemon import DaemonDir, always

from sidecar.client import Client
from sidecar.control import export
from sidecar.control.client import DaemonClient
from sidecar.outbox import Store


@pytest.fixture
def other(tmp_path) -> DaemonDir:
    folder = tmp_path / "other"
    folder.mkdir()
    return DaemonDir(folder)


def fill(daemon_dir: DaemonDir, count: int) -> list[str]:
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        return [daemon.track(f"u{number % 3}", "Feature Used", properties={"n": number}) for number in range(count)]


def test_events_move_with_their_ids_and_order(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    ids = fill(daemon_dir, 7)
    file = tmp_path / "moved.ndjson"
    exported = verb("outbox", "export", str(file), "--json", *daemon_dir.flags)
    assert (exported.code, exported.json) == (0, {"moved": 7, "file": str(file)})
    status = verb("status", "--json", *daemon_dir.flags).json
    assert (status["pending"], status["dropped_by_reason"]) == (0, {"moved": 7})
    with daemon_dir.running() as daemon:
        change = daemon.client.get("/v1/audit")["changes"][0]
        assert (change["action"], change["detail"]) == ("outbox export", f"7 events to {file}")
        assert f"uid {os.getuid()}, " in change["who"]
    with other.running() as daemon:
        imported = verb("outbox", "import", str(file), "--json", *other.flags)
        assert imported.json == {"accepted": 7, "repeated": 0}
        daemon.settle()
        sent = [json.loads(request.body) for request in daemon.network.sent]
        delivered = daemon.client.get("/v1/events")["events"]
    assert {event["messageId"] for event in delivered} == set(ids)
    for user in ("u0", "u1", "u2"):
        numbers = [body["attributes"]["n"] for body in sent if body["identifyId"] == user]
        assert numbers == sorted(numbers)


def test_importing_twice_stores_once(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    fill(daemon_dir, 3)
    file = str(tmp_path / "moved.ndjson")
    verb("outbox", "export", file, *daemon_dir.flags)
    with other.running():
        pass  # creates an outbox; no daemon runs afterwards
    assert verb("outbox", "import", file, "--json", *other.flags).json == {"accepted": 3, "repeated": 0}
    again = verb("outbox", "import", file, *other.flags)
    assert again.out == "0 events were imported; 3 were already stored.\n"


def test_events_of_waiting_users_are_exported(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    with daemon_dir.running(always(503)) as daemon:
        for number in range(30):  # more than the queue of one user holds: the rest is parked in the file
            daemon.track("unlucky", "Feature Used", properties={"n": number})
        daemon.track("v", "Feature Used")
    file = tmp_path / "moved.ndjson"
    assert verb("outbox", "export", str(file), "--json", *daemon_dir.flags).json["moved"] == 31
    events = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert [event["properties"]["n"] for event in events if event["userId"] == "unlucky"] == list(range(30))


def test_an_undated_event_keeps_its_time_of_receipt(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    event = {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": "m1"}
    line = {"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1_717_689_600_000, "event": event}
    file.write_text(json.dumps(line) + "\n")
    with other.running() as daemon:
        verb("outbox", "import", str(file), *other.flags)
        daemon.settle()
        (sent,) = daemon.network.sent
    assert json.loads(sent.body)["date"] == 1_717_689_600_000


def test_a_date_that_is_added_does_not_make_an_event_too_large(other: DaemonDir, verb, tmp_path):
    """An undated event near the limit of what is stored was refused, and all events of its file behind it stayed there."""
    file = tmp_path / "moved.ndjson"
    event = {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": "m1", "properties": {"p": ""}}
    event["properties"]["p"] = "x" * (2 * 32_768 - len(json.dumps(event, separators=(",", ":"))))
    line = {"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1_717_689_600_000, "event": event}
    for _ in range(2):  # a second time with the date
        file.write_text(json.dumps(line) + "\n")
        with other.running():
            assert verb("outbox", "import", str(file), "--json", *other.flags).json == {"accepted": 1, "repeated": 0}
        line["event"] |= {"timestamp": 1_717_689_600_000, "messageId": "m2"}


def test_export_applies_the_privacy_rules(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, '[mapping.attributes]\ndrop = ["email"]\n')
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used", properties={"email": "ann@example.com"})
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *daemon_dir.flags)
    assert "ann@example.com" not in file.read_text()


def test_a_hashed_value_is_hashed_once_across_hosts(tmp_path, verb):
    """The export says what is hashed already; an app that says so of its own events is not believed."""
    rules = '[mapping.attributes]\nhash = ["phone"]\nhash_salt = "pepper"\n'
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = DaemonDir(tmp_path / "one", rules), DaemonDir(tmp_path / "two", rules)
    digest = sha256(b"pepper123").hexdigest()
    with one.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used", properties={"phone": "123"})
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *one.flags)
    assert json.loads(file.read_text())["hashed"] == [digest]
    with two.running() as daemon:
        verb("outbox", "import", str(file), *two.flags)
        daemon.track("u2", "Feature Used", properties={"phone": digest}, hashed=[digest])
        daemon.settle()
        sent = {body["identifyId"]: body for body in (json.loads(request.body) for request in daemon.network.sent)}
        shown = {row["user"]: row["event"] for row in daemon.client.get("/v1/events")["events"]}
    assert shown["u1"]["properties"]["phone"] == digest
    assert sent["u1"]["attributes"]["phone"] == digest
    assert sent["u2"]["attributes"]["phone"] != digest


def test_a_moved_event_keeps_its_class(tmp_path, verb):
    """The importing host has no rule for the name, or one that says otherwise."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = DaemonDir(
        tmp_path / "one", '[mapping.event.Paid]\npriority = "high"\n[mapping.event.Seen]\npriority = "low"\n'
    )
    two = DaemonDir(tmp_path / "two", '[mapping.event.Seen]\npriority = "high"\n')
    with one.running() as daemon:
        daemon.client.post("/v1/pause")
        for name in ("Seen", "Clicked", "Paid"):
            daemon.track("u1", name)
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *one.flags)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["event"]["event"], line["class"]) for line in lines] == [
        ("Seen", "low"),
        ("Clicked", "normal"),
        ("Paid", "high"),
    ]
    del lines[1]["class"]  # a line of an older release: its name decides
    lines[1]["event"]["event"] = "Seen"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with two.running() as daemon:
        daemon.client.post("/v1/pause")
        verb("outbox", "import", str(file), *two.flags)
        imported = daemon.client.get("/v1/events")["events"]
    assert sorted((event["name"], event["class"]) for event in imported) == [
        ("Paid", "high"),
        ("Seen", "high"),
        ("Seen", "low"),
    ]


def test_import_fills_an_empty_memory_with_the_newest_account(tmp_path, verb):
    """What this host accepted itself is not overwritten; each moved event keeps the account of its acceptance."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = DaemonDir(tmp_path / "one"), DaemonDir(tmp_path / "two")
    with one.running() as daemon, Client(one.unix) as client:
        daemon.client.post("/v1/pause")
        for user in ("u1", "u2"):
            for account in ("acme", "globex"):
                client.group(user, account)
                client.track(user, "Clicked", {"then": account})
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *one.flags)
    with two.running() as daemon, Client(two.unix) as client:
        client.group("u2", "own")
        verb("outbox", "import", str(file), *two.flags)
        for user in ("u1", "u2"):
            client.track(user, "Clicked", {"then": "afterwards"})
        daemon.settle()
        sent = [json.loads(request.body) for request in daemon.network.sent]
    assert {(body["identifyId"], body["attributes"]["then"]): body["accountId"] for body in sent} == {
        ("u1", "acme"): "acme",
        ("u1", "globex"): "globex",
        ("u1", "afterwards"): "globex",
        ("u2", "acme"): "acme",
        ("u2", "globex"): "globex",
        ("u2", "afterwards"): "own",
    }


def test_places_under_per_day_outlive_a_restart(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, '[mapping.event."Chatty"]\nper_day = 2\n')
    for total in (2, 2):
        with daemon_dir.running() as daemon:
            for _ in range(2):
                daemon.track("u1", "Chatty")
            assert daemon.settle()["delivered"] == total
    assert verb("status", "--json", *daemon_dir.flags).json["dropped_by_reason"] == {"capped": 2}


def test_export_is_refused_while_the_daemon_runs(daemon_dir: DaemonDir, verb, tmp_path):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        ran = verb("outbox", "export", str(tmp_path / "moved.ndjson"), *daemon_dir.flags)
        assert daemon.status()["pending"] == 1
    assert ran.code == 1
    assert "systemctl stop px-sidecar" in ran.err
    assert not (tmp_path / "moved.ndjson").exists()


def test_export_does_not_overwrite_a_file(daemon_dir: DaemonDir, verb, tmp_path):
    fill(daemon_dir, 1)
    file = tmp_path / "moved.ndjson"
    file.write_text("precious")
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert ran.code == 1
    assert file.read_text() == "precious"
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 1


def test_export_to_a_full_disk_moves_nothing(daemon_dir: DaemonDir, verb):
    fill(daemon_dir, 2)
    ran = verb("outbox", "export", "/dev/full", *daemon_dir.flags)
    assert ran.code == 1
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 2


def test_events_stay_pending_if_the_file_cannot_be_synced(daemon_dir: DaemonDir, verb, tmp_path, monkeypatch):
    fill(daemon_dir, 2)
    file = tmp_path / "moved.ndjson"
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(file):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    monkeypatch.undo()
    assert ran.code == 1
    assert "No space left" in ran.err
    assert verb("status", "--json", "--config", str(daemon_dir.file)).json["pending"] == 2


def test_import_refuses_events_of_another_product(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    event = {"type": "track", "event": "x", "userId": "u"}
    file.write_text("\n" + json.dumps({"propertyKey": "AP-OTHER-2", "receivedMs": 1, "event": event}) + "\n")
    with daemon_dir.running() as daemon:
        ran = verb("outbox", "import", str(file), *daemon_dir.flags)
        assert daemon.status()["accepted"] == 0
    assert ran.code == 1
    assert "from line 2 on" in ran.err
    assert "AP-OTHER-2" in ran.err


def test_import_names_a_line_that_is_not_json(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    file.write_text('{"propertyKey"')
    with daemon_dir.running():
        ran = verb("outbox", "import", str(file), *daemon_dir.flags)
        file.write_text("[" * 10_000)
        nested = verb("outbox", "import", str(file), *daemon_dir.flags)  # it ended in a traceback
    assert (ran.code, nested.code) == (1, 1)
    assert "Line 1 is not JSON" in ran.err
    assert "Line 1 is not JSON" in nested.err


def test_import_skips_a_byte_order_mark(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    """An editor on Windows, or PowerShell, puts one before the first line; the import refused the file as not JSON."""
    fill(daemon_dir, 2)
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *daemon_dir.flags)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    with other.running():
        assert verb("outbox", "import", str(file), "--json", *other.flags).json == {"accepted": 2, "repeated": 0}


def test_filter_decides_before_the_export(tmp_path, verb):
    """A filter by a value that redaction removes found nothing on the other host, which sent the event."""
    rules = '[mapping.attributes]\ndrop = ["email"]\n'
    with DaemonDir(tmp_path, rules).running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used", context={"traits": {"email": "bot@example.com"}})
        daemon.track("u2", "Feature Used")
    rules += '[[mapping.drop]]\nevent = "*"\nwhere = { "context.traits.email" = "*@example.com" }\n'
    daemon_dir = DaemonDir(tmp_path, rules)
    file = tmp_path / "moved.ndjson"
    assert verb("outbox", "export", str(file), "--json", *daemon_dir.flags).json["moved"] == 1
    assert [json.loads(line)["event"]["userId"] for line in file.read_text().splitlines()] == ["u2"]
    status = verb("status", "--json", *daemon_dir.flags).json
    assert (status["pending"], status["dropped_by_reason"]) == (0, {"moved": 1, "filtered": 1})


class SmallDisk(FileIO):
    """A file on a disk that has room for 1,000 bytes."""

    def write(self, data) -> int:
        if room := 1_000 - self.tell():
            return super().write(bytes(data)[:room])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_export_onto_a_full_disk_holds_what_it_moved_and_no_more(daemon_dir: DaemonDir, verb, tmp_path, monkeypatch):
    """It ended in the middle of a line, with events that were pending here as well, and no import took it.

    What had been moved could not be brought back, and the message named neither the file nor the number.
    """
    fill(daemon_dir, 7)
    monkeypatch.setattr("sidecar.cli.outbox.FileIO", SmallDisk)
    monkeypatch.setattr("sidecar.control.export.PAGE_ROWS", 2)
    file = tmp_path / "moved.ndjson"
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert ran.code == 1
    assert f"{file} cannot be written any more (No space left on device): 2 events were moved to it" in ran.err
    assert [json.loads(line)["event"]["properties"]["n"] for line in file.read_text().splitlines()] == [0, 1]
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 5
    assert verb("outbox", "import", "--back", str(file), "--json", *daemon_dir.flags).json["accepted"] == 2
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 7


def test_an_export_that_could_write_nothing_leaves_nothing(daemon_dir: DaemonDir, verb, tmp_path, monkeypatch):
    fill(daemon_dir, 7)
    monkeypatch.setattr("sidecar.cli.outbox.FileIO", SmallDisk)
    file = tmp_path / "moved.ndjson"
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert ran.code == 1
    assert "nothing was moved" in ran.err
    assert not file.exists()
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 7


def test_a_line_that_a_crash_has_cut_is_left_out(daemon_dir: DaemonDir, verb, tmp_path):
    """The file of an export that was killed was refused as a whole, with all that it had moved."""
    fill(daemon_dir, 3)
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *daemon_dir.flags)
    with file.open("a") as cut:
        cut.write('{"propertyKey":"AP-XX')
    ran = verb("outbox", "import", "--back", str(file), "--json", "--yes", *daemon_dir.flags)
    assert (ran.code, ran.json["accepted"]) == (0, 3)
    assert ran.err.count("Line 4, the last, is cut off and left out") == 1


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(sqlite3.SQLITE_FULL, "is full, so the outbox cannot be changed"), (sqlite3.SQLITE_IOERR, "check its disk")],
)
def test_an_export_from_a_disk_that_fails_is_one_sentence(
    daemon_dir: DaemonDir, verb, tmp_path, monkeypatch, code, sentence
):
    """With the outbox's own disk full it ended with a traceback."""

    def fail(*_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = code
        raise error

    fill(daemon_dir, 2)
    monkeypatch.setattr("sidecar.control.export.mark_exported", fail)
    file = tmp_path / "moved.ndjson"
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert (ran.code, sentence in ran.err) == (1, True)
    assert not file.exists()
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 2


def test_an_export_without_pending_events_moves_nothing(daemon_dir: DaemonDir, verb, tmp_path):
    """It said that 0 events were moved, and what to run on the other host."""
    fill(daemon_dir, 0)
    file = tmp_path / "moved.ndjson"
    assert verb("outbox", "export", str(file), *daemon_dir.flags).out == f"No event was pending, so {file} is empty.\n"


def test_an_export_that_moves_nothing_leaves_no_note(tmp_path, verb):
    """It said that no event was pending where it had dropped two, and status spoke of a loss of no events."""
    filtered = DaemonDir(tmp_path, "")
    with filtered.running(always(503)) as daemon:
        for number in range(2):
            daemon.track(f"u{number}", "Heartbeat")
    filtered.file.write_text(filtered.file.read_text() + '[[mapping.drop]]\nevent = "Heartbeat"\n')
    ran = verb("outbox", "export", str(tmp_path / "moved.ndjson"), *filtered.flags)
    status = verb("status", "--json", *filtered.flags).json
    assert "No event was left to move" in ran.out
    assert "2 events that the rules in force exclude were dropped here" in ran.err
    assert [problem for problem in status["problems"] if problem["severity"] == "loss"] == []


def test_a_retried_bad_event_is_not_exported(daemon_dir: DaemonDir, other: DaemonDir, verb, tmp_path):
    """Its line was refused by every import, and with it all lines of its batch and all behind it."""
    deep = {"userId": "u1", "type": "track", "event": "Feature Used", "properties": {}}
    for _ in range(64):
        deep["properties"] = {"p": deep["properties"]}
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        DaemonClient(daemon_dir.unix).post("/v1/batch", {"batch": [1, {"type": "track", "userId": "u1"}, deep]})
        daemon.track("u1", "Feature Used")
    verb("dead", "retry", "--all", "--yes", *daemon_dir.flags)
    file = tmp_path / "moved.ndjson"
    exported = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert "1 event moved" in exported.out
    assert "3 events cannot be moved" in exported.err
    with other.running():
        assert verb("outbox", "import", str(file), "--json", *other.flags).json == {"accepted": 1, "repeated": 0}
    status = verb("status", "--json", *daemon_dir.flags).json
    assert (status["pending"], status["dropped_by_reason"]) == (3, {"moved": 1})


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), sqlite_error(sqlite3.SQLITE_IOERR)], ids=["Ctrl-C", "I/O error"]
)
def test_an_export_that_ends_at_its_commit_loses_nothing(daemon_dir: DaemonDir, verb, tmp_path, monkeypatch, error):
    """The commit was on disk, and the lines of its page were cut off: 500 events were in neither place."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for _ in range(5):
            daemon.track("u", "Feature Used")
    mark = export.mark_exported

    def interrupted(*arguments):
        mark(*arguments)
        raise error

    monkeypatch.setattr(export, "mark_exported", interrupted)
    file = tmp_path / "moved.ndjson"
    assert verb("outbox", "export", str(file), *daemon_dir.flags).code == 1
    store = Store(daemon_dir.outbox)
    pending = store.pending()
    store.close()
    assert pending + len(file.read_text().splitlines()) == 5


def test_events_of_a_source_are_recognized_when_they_come_back(tmp_path, verb):
    """The file did not say the source, which is part of what makes an event a repeat: all were stored again."""
    host = DaemonDir(tmp_path, '[[source]]\nwrite_key = "k1"\n')
    with host.running() as daemon:
        daemon.client.post("/v1/pause")
    store = Store(host.outbox)
    (source,) = store.source_products()
    accept(store, [event(number, source=source) for number in (1, 2, 3)])
    store.close()
    file = str(tmp_path / "moved.ndjson")
    verb("outbox", "export", file, *host.flags)
    ran = verb("outbox", "import", file, "--json", *host.flags)
    assert (ran.code, ran.json) == (1, {"accepted": 0, "repeated": 3, "moved": 3})
    assert verb("outbox", "import", "--back", "--yes", file, *host.flags).code == 0
    store = Store(host.outbox)
    assert pending_ids(store) == [1, 2, 3]
    store.close()

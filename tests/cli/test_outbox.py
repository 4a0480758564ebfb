"""`px-sidecar outbox`: pending events move between hosts, and none is lost or doubled."""

import json
import os

import pytest
from living import Place, always


@pytest.fixture
def other(tmp_path) -> Place:
    folder = tmp_path / "other"
    folder.mkdir()
    return Place(folder)


def fill(place: Place, count: int) -> list[str]:
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        return [daemon.track(f"u{number % 3}", "Feature Used", properties={"n": number}) for number in range(count)]


def test_events_move_with_their_ids_and_order(place: Place, other: Place, verb, tmp_path):
    ids = fill(place, 7)
    file = tmp_path / "moved.ndjson"
    exported = verb("outbox", "export", str(file), "--json", *place.flags)
    assert (exported.code, exported.json) == (0, {"moved": 7, "file": str(file)})
    status = verb("status", "--json", *place.flags).json
    assert (status["pending"], status["dropped_by_reason"]) == (0, {"moved": 7})
    with other.living() as daemon:
        imported = verb("outbox", "import", str(file), "--json", *other.flags)
        assert imported.json == {"accepted": 7, "repeated": 0}
        daemon.settle()
        sent = [json.loads(request.body) for request in daemon.network.sent]
        delivered = daemon.asked.get("/v1/events")["events"]
    assert {event["messageId"] for event in delivered} == set(ids)
    for user in ("u0", "u1", "u2"):
        numbers = [body["attributes"]["n"] for body in sent if body["identifyId"] == user]
        assert numbers == sorted(numbers)


def test_importing_twice_stores_once(place: Place, other: Place, verb, tmp_path):
    fill(place, 3)
    file = str(tmp_path / "moved.ndjson")
    verb("outbox", "export", file, *place.flags)
    with other.living():
        pass  # an outbox there, and no daemon
    assert verb("outbox", "import", file, "--json", *other.flags).json == {"accepted": 3, "repeated": 0}
    again = verb("outbox", "import", file, *other.flags)
    assert again.out == "0 events were taken in; 3 were known already.\n"


def test_users_who_wait_move_too(place: Place, other: Place, verb, tmp_path):
    with place.living(always(503)) as daemon:
        for number in range(30):  # more than are kept loaded of a user who waits: the rest is set aside in the file
            daemon.track("unlucky", "Feature Used", properties={"n": number})
        daemon.track("v", "Feature Used")
    file = tmp_path / "moved.ndjson"
    assert verb("outbox", "export", str(file), "--json", *place.flags).json["moved"] == 31
    events = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert [event["properties"]["n"] for event in events if event["userId"] == "unlucky"] == list(range(30))


def test_an_event_without_a_date_keeps_the_time_it_was_received(place: Place, other: Place, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    event = {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": "m1"}
    line = {"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1_717_689_600_000, "event": event}
    file.write_text(json.dumps(line) + "\n")
    with other.living() as daemon:
        verb("outbox", "import", str(file), *other.flags)
        daemon.settle()
        (sent,) = daemon.network.sent
    assert json.loads(sent.body)["date"] == 1_717_689_600_000


def test_what_is_private_does_not_travel(tmp_path, verb):
    place = Place(tmp_path, '[mapping.attributes]\ndrop = ["email"]\n')
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        daemon.track("u1", "Feature Used", properties={"email": "ann@example.com"})
    file = tmp_path / "moved.ndjson"
    verb("outbox", "export", str(file), *place.flags)
    assert "ann@example.com" not in file.read_text()


def test_export_is_refused_while_the_daemon_runs(place: Place, verb, tmp_path):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        ran = verb("outbox", "export", str(tmp_path / "moved.ndjson"), *place.flags)
        assert daemon.status()["pending"] == 1
    assert ran.code == 1
    assert "systemctl stop px-sidecar" in ran.err
    assert not (tmp_path / "moved.ndjson").exists()


def test_export_overwrites_nothing(place: Place, verb, tmp_path):
    fill(place, 1)
    file = tmp_path / "moved.ndjson"
    file.write_text("precious")
    ran = verb("outbox", "export", str(file), *place.flags)
    assert ran.code == 1
    assert file.read_text() == "precious"
    assert verb("status", "--json", *place.flags).json["pending"] == 1


def test_a_full_disk_moves_nothing_that_is_not_written(place: Place, verb):
    fill(place, 2)
    ran = verb("outbox", "export", "/dev/full", *place.flags)
    assert ran.code == 1
    assert verb("status", "--json", *place.flags).json["pending"] == 2


def test_what_cannot_be_made_durable_stays_pending(place: Place, verb, tmp_path, monkeypatch):
    fill(place, 2)
    file = tmp_path / "moved.ndjson"
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(file):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    ran = verb("outbox", "export", str(file), *place.flags)
    monkeypatch.undo()
    assert ran.code == 1
    assert "No space left" in ran.err
    assert verb("status", "--json", "--config", str(place.file)).json["pending"] == 2


def test_another_product_than_this_hosts_is_refused(place: Place, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    event = {"type": "track", "event": "x", "userId": "u"}
    file.write_text("\n" + json.dumps({"propertyKey": "AP-OTHER-2", "receivedMs": 1, "event": event}) + "\n")
    with place.living() as daemon:
        ran = verb("outbox", "import", str(file), *place.flags)
        assert daemon.status()["accepted"] == 0
    assert ran.code == 1
    assert "from line 2 on" in ran.err
    assert "AP-OTHER-2" in ran.err


def test_a_line_that_is_no_json_is_named(place: Place, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    file.write_text('{"propertyKey"')
    with place.living():
        ran = verb("outbox", "import", str(file), *place.flags)
    assert ran.code == 1
    assert "Line 1 is no JSON" in ran.err

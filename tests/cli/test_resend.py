"""`px-sidecar resend`: delivered events are accepted again once, in class low, as they were."""

import json

import pytest
from running_daemon import DaemonDir

from sidecar.control.client import DaemonClient


def bodies(daemon) -> list[dict]:
    return [json.loads(request.body) for request in daemon.network.sent]


def test_a_dry_run_says_count_and_days_and_changes_nothing(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        for number in range(3):
            daemon.track(f"u{number}", "Feature Used")
        daemon.settle()
        ran = verb("resend", "--all", "--dry-run", *daemon_dir.flags)
        assert daemon.status()["accepted"] == 3
    assert (ran.code, ran.out) == (0, "Nothing is resent (--dry-run).\n")
    assert ran.err.startswith("3 events were delivered, and not resent before. They need about ")


def test_the_time_needed_is_that_of_a_day_that_is_spread(tmp_path, verb):
    spread = DaemonDir(tmp_path, '[deliver]\npace = "spread"\nper_day = 864_000\n')
    with spread.running() as daemon:
        for number in range(3):
            daemon.track(f"u{number}", "Feature Used")
        daemon.settle()
        ran = verb("resend", "--all", "--dry-run", *spread.flags)
    assert "They need about 300ms, if nothing else is sent." in ran.err


def test_each_event_is_resent_once(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        message_id = daemon.track("u1", "Feature Used", properties={"plan": "gold"}, timestamp="2026-11-01T10:00:00Z")
        daemon.track("u1", "Other")
        daemon.settle()
        first = verb("resend", "--name", "Feature Used", "--json", *daemon_dir.flags)
        daemon.settle()
        second = verb("resend", "--name", "Feature Used", "--json", *daemon_dir.flags)
        status = daemon.settle()
        original, _, copy = bodies(daemon)
        listed = daemon.client.get("/v1/events", {"state": "delivered", "name": "Feature Used"})["events"]
    assert (first.json["selected"], first.json["accepted"]) == (1, 1)
    assert (second.json["selected"], second.json["accepted"]) == (0, 0)
    assert (status["accepted"], status["delivered"]) == (3, 3)
    assert copy | {"eventId": None} == original | {"eventId": None}
    assert {event["messageId"] for event in listed} == {message_id, f"resend:{message_id}"}
    assert [event["reason"] for event in listed if event["messageId"] == message_id] == ["resent"]


def test_a_copy_is_of_class_low_and_keeps_its_date(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/import", {"events": [undated_of_june()]})
        daemon.settle()
        daemon.client.post("/v1/pause")
        verb("resend", "--all", *daemon_dir.flags)
        (pending,) = daemon.client.get("/v1/events", {"state": "pending"})["events"]
        daemon.client.post("/v1/resume")
        daemon.settle()
    assert pending["class"] == "low"
    assert {body["date"] for body in bodies(daemon)} == {1_717_689_600_000}


def undated_of_june() -> dict:
    event = {"type": "track", "event": "Feature Used", "userId": "u1", "messageId": "m1"}
    return {"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1_717_689_600_000, "event": event}


def test_an_event_keeps_the_account_of_its_day(daemon_dir: DaemonDir, verb):
    """Neither the account of today nor the memory is touched by what is resent."""
    with daemon_dir.running() as daemon:
        identify(daemon, "acme")
        daemon.track("u1", "Feature Used")
        daemon.settle()
        identify(daemon, "globex")
        verb("resend", "--all", *daemon_dir.flags)
        daemon.settle()
        daemon.track("u1", "Feature Used")
        daemon.settle()
    assert [body["accountId"] for body in bodies(daemon)] == ["acme", "acme", "globex"]


def identify(daemon, account: str) -> None:
    event = {"type": "identify", "userId": "u1", "traits": {"account_id": account}}
    daemon.client.post("/v1/send", {"event": event})
    daemon.settle()


def test_calls_that_write_people_are_left_out(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, '[people]\nusers = "upsert"\n')
    with daemon_dir.running() as daemon:
        identify(daemon, "acme")
        ran = verb("resend", "--all", "--json", *daemon_dir.flags)
    assert ran.json["selected"] == 0


def test_resending_from_the_file_needs_no_daemon(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    assert verb("resend", "--all", "--json", *daemon_dir.flags).json["accepted"] == 1
    with daemon_dir.running() as daemon:
        assert daemon.settle()["delivered"] == 2


def test_a_cancelled_resend_continues_with_what_is_left(daemon_dir: DaemonDir, verb, monkeypatch):
    monkeypatch.setattr("sidecar.outbox.backlog.PAGE_ROWS", 2)
    post, calls = DaemonClient.post, []

    def cancelled(self, path, body=None):
        calls.append(path)
        if calls.count("/v1/resend") == 2:
            raise KeyboardInterrupt
        return post(self, path, body)

    with daemon_dir.running() as daemon:
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        daemon.settle()
        monkeypatch.setattr(DaemonClient, "post", cancelled)
        first = verb("resend", "--all", "--json", *daemon_dir.flags)
        monkeypatch.setattr(DaemonClient, "post", post)
        second = verb("resend", "--all", "--json", *daemon_dir.flags)
        assert daemon.settle()["delivered"] == 10
    assert (first.code, first.json["accepted"], first.json["cancelled"]) == (1, 2, True)
    assert "it repeats nothing" in first.err
    assert (second.code, second.json["accepted"]) == (0, 3)


def test_an_outbox_that_is_half_full_accepts_no_resent_events(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, 'max_bytes = "1MiB"\n')
    with daemon_dir.running() as daemon:
        for number in range(300):
            daemon.track("u1", "Feature Used", properties={"pad": "x" * 2_000, "n": number})
            if daemon.app.store.used_bytes() > 2**19:
                break
        daemon.client.post("/v1/pause")
        answer = daemon.client.post("/v1/resend", {"all": True})
    assert answer == {"accepted": 0, "repeated": 0, "next": 0, "full": True}
    ran = verb("resend", "--all", *daemon_dir.flags)
    assert (ran.code, "Half of the outbox is in use; start the daemon" in ran.err) == (1, True)


@pytest.mark.parametrize("arguments", [[], ["--all", "--name", "x"]])
def test_nothing_is_selected_by_omission(daemon_dir: DaemonDir, verb, arguments):
    assert verb("resend", *arguments, *daemon_dir.flags).code == 2

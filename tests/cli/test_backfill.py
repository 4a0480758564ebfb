"""`px-sidecar backfill`: events of the past from a file, counted first, in class low, and never twice."""

import json
import os

import pytest
from running_daemon import DaemonDir

from sidecar.control.client import DaemonClient


def history(*events: dict | str) -> str:
    return "".join((event if isinstance(event, str) else json.dumps(event)) + "\n" for event in events)


def past(number: int, **more) -> dict:
    at = f"2025-03-01T10:00:{number:02}Z"
    return {"event": "Feature Used", "userId": f"u{number % 2}", "timestamp": at, "properties": {"n": number}} | more


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "history.ndjson"
    path.write_text(history(*(past(number) for number in range(5))))
    return path


def test_a_dry_run_says_count_and_days_and_changes_nothing(daemon_dir: DaemonDir, verb, file):
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), "--dry-run", *daemon_dir.flags)
        assert daemon.status()["accepted"] == 0
    assert (ran.code, ran.out) == (0, "Nothing is accepted (--dry-run).\n")
    assert ran.err.startswith("5 events in 5 lines. They need about ")


def test_events_are_delivered_with_their_dates_in_class_low(daemon_dir: DaemonDir, verb, file):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        ran = verb("backfill", str(file), *daemon_dir.flags)
        pending = daemon.client.get("/v1/events")["events"]
        daemon.client.post("/v1/resume")
        daemon.settle()
        sent = [json.loads(request.body) for request in daemon.network.sent]
    assert (ran.code, ran.out) == (0, "5 events accepted in class low.\n")
    assert {event["class"] for event in pending} == {"low"}
    assert sorted(body["attributes"]["n"] for body in sent) == [0, 1, 2, 3, 4]
    assert {body["date"] // 86_400_000 for body in sent} == {20_148}


def test_a_second_run_repeats_nothing(daemon_dir: DaemonDir, verb, file):
    with daemon_dir.running() as daemon:
        verb("backfill", str(file), *daemon_dir.flags)
        again = verb("backfill", str(file), *daemon_dir.flags)
        with file.open("a") as more:
            more.write(json.dumps(past(9)) + "\n")
        longer = verb("backfill", str(file), "--json", *daemon_dir.flags)
        assert daemon.settle()["accepted"] == 6
    assert "This file was completed at" in again.err
    assert again.out == "Nothing is accepted.\n"
    assert (longer.json["accepted"], longer.json["repeated"]) == (1, 5)


def test_a_cancelled_backfill_continues_after_the_last_batch(daemon_dir: DaemonDir, verb, file, monkeypatch):
    monkeypatch.setattr("sidecar.cli.bulk.BATCH_EVENTS", 2)
    post, calls = DaemonClient.post, []

    def cancelled(self, path, body=None):
        calls.append(path)
        if calls.count("/v1/backfill") == 2:
            raise KeyboardInterrupt
        return post(self, path, body)

    with daemon_dir.running() as daemon:
        monkeypatch.setattr(DaemonClient, "post", cancelled)
        first = verb("backfill", str(file), "--json", *daemon_dir.flags)
        monkeypatch.setattr(DaemonClient, "post", post)
        (job,) = daemon.client.get("/v1/jobs")["jobs"]
        second = verb("backfill", str(file), *daemon_dir.flags)
        (over,) = daemon.client.get("/v1/jobs")["jobs"]
        assert daemon.settle()["accepted"] == 5
    assert (first.code, first.json["accepted"], first.json["cancelled"]) == (1, 2, True)
    assert (job["state"], job["position"], job["done"], job["total"]) == ("running", "2", 2, 5)
    assert "An earlier run ended after line 2; this one continues there." in second.err
    assert second.out == "3 events accepted in class low.\n"
    assert (over["state"], over["position"], over["done"]) == ("done", "5", 5)


@pytest.mark.parametrize("absurd", [0, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", 171768960])
def test_line_with_an_absurd_date_is_left_out(daemon_dir: DaemonDir, verb, tmp_path, absurd):
    """Such a line was accepted, and reached PX with the date of the backfill."""
    file = tmp_path / "zero.ndjson"
    file.write_text(history(past(0), past(1, timestamp=absurd)))
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), *daemon_dir.flags)
        assert daemon.settle()["accepted"] == 1
    assert "would be dated today" in ran.err


def test_lines_that_cannot_be_used_are_named_and_left_out(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "mixed.ndjson"
    file.write_text(
        history(
            past(0),
            "",
            "{broken",
            past(1, timestamp=None),
            {"type": "identify", "userId": "u1", "timestamp": "2025-03-01T10:00:00Z"},
            "[]",
            past(2, event=7),
        )
    )
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), *daemon_dir.flags)
        as_json = verb("backfill", str(file), "--json", "--dry-run", *daemon_dir.flags)
        assert daemon.settle()["accepted"] == 1
    assert ran.code == 1
    assert ran.out == "1 event accepted in class low.\n"
    lines = ran.err.splitlines()
    assert lines[1] == "5 lines left out, which cannot be used:"
    assert [line.split(":")[0] for line in lines[2:]] == [f"  line {number}" for number in (3, 4, 5, 6, 7)]
    assert "would be dated today" in lines[3]
    assert "only track, page and screen" in lines[4]
    assert [refused["line"] for refused in as_json.json["refused"]] == [3, 4, 5, 6, 7]


def test_columns_of_csv_are_fields_paths_or_properties(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "history.csv"
    file.write_bytes(
        b"\xef\xbb\xbfevent,user_id,timestamp,context.groupId,plan,seats,zip,beta\r\n"
        b'"Feature, Used",42,2025-03-01T10:00:00Z,acme,"a ""b""\nc",12,007,true\r\n'
        b"Feature Used,43,2025-03-01T10:00:00Z,,gold,,,\r\n"
        b"Feature Used,44\r\n"
    )
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), *daemon_dir.flags)
        daemon.settle()
        first, second = sorted(
            (json.loads(request.body) for request in daemon.network.sent), key=lambda b: b["identifyId"]
        )
    assert (ran.code, ran.out) == (1, "2 events accepted in class low.\n")
    assert "line 5: it has 2 cells, and the header 8" in ran.err
    assert (first["eventName"], first["identifyId"], first["accountId"]) == ("Feature, Used", "42", "acme")
    assert first["attributes"] == {"plan": 'a "b"\nc', "seats": 12, "zip": "007", "beta": True}
    assert second["attributes"] == {"plan": "gold"}


def test_csv_without_an_event_column_is_refused(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "history.csv"
    file.write_text("name,user\nx,y\n")
    with daemon_dir.running():
        ran = verb("backfill", str(file), *daemon_dir.flags)
    assert (ran.code, "no column `event`" in ran.err) == (1, True)


@pytest.mark.parametrize("header", ["event,timestamp,date", "event,event_name,timestamp", "event,plan,plan"])
def test_two_columns_of_one_meaning_are_refused(daemon_dir: DaemonDir, verb, tmp_path, header):
    """The right one silently replaced the left one, so that history was dated or named by the wrong column."""
    file = tmp_path / "history.csv"
    file.write_text(f"{header}\nx,2026-11-01T00:00:00Z,2026-11-02T00:00:00Z\n")
    with daemon_dir.running():
        ran = verb("backfill", str(file), *daemon_dir.flags)
    assert ran.code == 1
    assert "remove or rename one of them" in ran.err


def test_the_memory_of_accounts_stays_as_it_is(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "history.ndjson"
    file.write_text(history(past(1, context={"groupId": "initech"})))
    with daemon_dir.running() as daemon:
        event = {"type": "identify", "userId": "u1", "traits": {"account_id": "globex"}}
        daemon.client.post("/v1/send", {"event": event})
        verb("backfill", str(file), *daemon_dir.flags)
        daemon.settle()
        daemon.track("u1", "Feature Used")
        daemon.settle()
        accounts = [json.loads(request.body)["accountId"] for request in daemon.network.sent]
    assert accounts == ["initech", "globex"]


def test_a_file_of_outbox_export_is_not_history(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "moved.ndjson"
    file.write_text(history({"propertyKey": "AP-XXXXXXXXXX-2", "receivedMs": 1, "event": past(1)}))
    with daemon_dir.running():
        ran = verb("backfill", str(file), *daemon_dir.flags)
    assert (ran.code, "outbox import" in ran.err) == (1, True)


def test_the_progress_of_reading_is_that_of_the_file(daemon_dir: DaemonDir, verb, file, monkeypatch):
    """The bytes of the events with their new ids were counted: 133 of 78."""
    steps: list[int] = []
    monkeypatch.setattr(
        "rich.progress.Progress.update", lambda _bar, _task, **changes: steps.append(changes.get("completed", 0))
    )
    with daemon_dir.running():
        verb("backfill", str(file), "--dry-run", *daemon_dir.flags)
    assert max(steps) == file.stat().st_size
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("event", "taken"),
    [
        ('"event":"A\\ud83d"', 1),
        ('"event":"A\\udc80"', 1),
        ('"event":"A","type":["track"]', 0),
        ('"event":"A","type":{}', 0),
    ],
)
def test_an_odd_line_does_not_stop_the_others(daemon_dir: DaemonDir, verb, tmp_path, event, taken):
    """Half a character, or a type that is no text, ended the whole backfill with a traceback."""
    file = tmp_path / "odd.ndjson"
    rest = '"userId":"u","timestamp":"2026-11-01T00:00:00Z"'
    file.write_text(f'{{{event},{rest}}}\n{{"event":"B",{rest}}}\n')
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), "--yes", *daemon_dir.flags)
        assert daemon.settle()["delivered"] == 1 + taken
    assert ran.code == 1 - taken


def test_a_message_id_that_is_no_id_is_refused(daemon_dir: DaemonDir, verb, tmp_path):
    """All lines with it but the first were repeats of that one, and lost."""
    file = tmp_path / "null.ndjson"
    file.write_text(history(past(0, messageId="null"), past(1, messageId="null"), past(2)))
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), *daemon_dir.flags)
        assert daemon.settle()["accepted"] == 1
    assert ran.code == 1
    assert ran.err.count("messageId 'null' is not an id by identity.reject") == 2


def test_a_pipe_is_refused(daemon_dir: DaemonDir, verb, tmp_path):
    """The file is read more than once: the second reading of a pipe finds nothing, and its events would be left out."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)  # opening a pipe that is closed at the other end would wait
    try:
        os.write(holder, history(past(1)).encode())
        with daemon_dir.running() as daemon:
            ran = verb("backfill", str(pipe), *daemon_dir.flags)
            jobs = daemon.client.get("/v1/jobs")["jobs"]
    finally:
        os.close(holder)
    assert ran.code == 1
    assert "cannot be read twice; write its events to a file first." in ran.err
    assert jobs == []


def test_a_message_id_that_is_a_number_is_one(daemon_dir: DaemonDir, verb, tmp_path):
    """As for events of apps: an id of a database is a number in JSON."""
    file = tmp_path / "numbers.ndjson"
    file.write_text(
        history(past(0, messageId=42), past(1, messageId=43), past(2, messageId=42), past(3, messageId=True))
    )
    with daemon_dir.running() as daemon:
        ran = verb("backfill", str(file), "--json", *daemon_dir.flags)
        daemon.settle()
        ids = [event["messageId"] for event in daemon.client.get("/v1/events")["events"]]
    assert (ran.json["accepted"], ran.json["repeated"]) == (2, 1)
    assert sorted(ids) == ["42", "43"]
    assert [refused["line"] for refused in ran.json["refused"]] == [4]

"""`px-sidecar tail`: records as text and as JSON, filters, slow readers."""

import json
import threading

from running_daemon import DaemonDir, always, wait_until

from sidecar.observe.feed import accepted_record
from sidecar.outbox import NewEvent


def tail_in_background(daemon, verb, *arguments: str):
    """Start `tail` in a thread; return a function that waits for its end and returns its output."""
    ran = []
    thread = threading.Thread(target=lambda: ran.append(verb("tail", *arguments, *daemon.daemon_dir.flags)))
    thread.start()
    wait_until(lambda: daemon.app.telemetry.feed.listeners > 0, "the subscription")

    def end():
        thread.join(10)
        assert not thread.is_alive()
        return ran[0]

    return end


def test_tail_prints_the_outcome_with_the_payload_sent(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        end = tail_in_background(daemon, verb, "--what", "delivered", "--count", "1", "--json")
        message_id = daemon.track("u1", "Feature Used", properties={"seats": 5})
        ran = end()
        sent = json.loads(daemon.network.sent[0].body)
    (record,) = ran.lines
    assert record["messageId"] == message_id
    assert set(record) == {
        *("at", "what", "id", "messageId", "name", "user", "status", "attempts", "request", "payload"),
    }
    assert record["payload"] == sent
    assert record["request"] == "POST /v1/events/custom"


def test_tail_filters_by_user_and_prints_text(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        end = tail_in_background(daemon, verb, "--user", "u2", "--what", "delivered", "--count", "1")
        daemon.track("u1", "Feature Used")
        daemon.track("u2", "Subscription Started")
        ran = end()
    first, payload = ran.out.splitlines()
    assert "delivered Subscription Started of u2  201" in first
    assert '"identifyId":"u2"' in payload
    assert "\x1b" not in ran.out


def test_tail_prints_the_detail_of_a_retry(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(503)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "retry", "--count", "1", "--json")
        daemon.track("u1", "Feature Used")
        (record,) = end().lines
    assert record["attempts"] == 1
    assert "503" in record["detail"]


def test_tail_exits_69_when_the_daemon_stops(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        end = tail_in_background(daemon, verb)
    assert end().code == 69
    assert verb("tail", *daemon_dir.flags).code == 69


def test_an_accepted_event_is_redacted(daemon_dir: DaemonDir):
    event = NewEvent(0, False, "u1", "m1", b'{"type":"track","event":"Feature Used","properties":{"email":"a@b.c"}}')
    record = accepted_record(event, lambda event, _hashed: event | {"properties": "redacted"}, 0)
    assert record == {
        "at": "1970-01-01T00:00:00.000Z",
        "what": "accepted",
        "messageId": "m1",
        "name": "Feature Used",
        "user": "u1",
        "event": {"type": "track", "event": "Feature Used", "properties": "redacted"},
    }


def test_tail_prints_the_reason_of_a_dead_event(daemon_dir: DaemonDir, verb):
    body = b'{"externalapierror":{"status":"BAD_REQUEST","message":"eventName is unknown"}}'
    with daemon_dir.running(always(400, body)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "dead", "--count", "1", "--no-payload")
        daemon.track("u1", "Feature Used")
        (line,) = end().out.splitlines()
    assert "dead      Feature Used of u1  400  refused" in line
    assert "eventName is unknown" in line


def test_tail_prints_the_attempt_of_a_retry(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(503)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "retry", "--count", "1", "--no-payload")
        daemon.track("u1", "Feature Used")
        (line,) = end().out.splitlines()
    assert "retry     Feature Used of u1" in line
    assert "  attempt 1: " in line
    assert "503" in line


def test_tail_prints_the_reason_of_a_dropped_event(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        end = tail_in_background(daemon, verb, "--what", "dropped", "--count", "1")
        daemon.track(None, "Feature Used", anonymous_id="visitor-1")
        first = end().out.splitlines()[0]
    assert "dropped   Feature Used" in first
    assert "no_user" in first
    assert " of " not in first


def test_tail_reports_skipped_records_without_counting_them(daemon_dir: DaemonDir, verb):
    burst = [{"at": "1970-01-01T00:00:00.000Z", "what": "accepted", "name": f"Event {n}"} for n in range(300)]
    with daemon_dir.running() as daemon:
        end = tail_in_background(daemon, verb, "--count", "257")
        feed = daemon.app.telemetry.feed
        daemon.do(lambda: [feed.publish(record) for record in burst])  # in one step: no reader runs in between
        wait_until(lambda: feed.queued == 0, "reading the queued records")
        daemon.do(lambda: feed.publish(burst[0]))
        lines = end().out.splitlines()
    assert len(lines) == 258
    assert "accepted  Event 255" in lines[255]
    assert lines[256] == "… 44 records skipped: this terminal is too slow"
    assert "Event 0" in lines[257]

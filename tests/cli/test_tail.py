"""`px-sidecar tail`, through the command line."""

import json
import threading

from living import Place, always, wait_until

from sidecar.control.records import accepted_record
from sidecar.outbox import NewEvent


def tail_in_background(daemon, verb, *arguments: str):
    """Begin to tail; returns the function that waits for its end and gives what it printed."""
    ran = []
    thread = threading.Thread(target=lambda: ran.append(verb("tail", *arguments, *daemon.place.flags)))
    thread.start()
    wait_until(lambda: daemon.daemon.feed.listeners > 0, "the subscription")

    def end():
        thread.join(10)
        assert not thread.is_alive()
        return ran[0]

    return end


def test_tail_shows_the_outcome_with_the_payload_px_got(place: Place, verb):
    with place.living() as daemon:
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


def test_tail_chooses_by_user_and_prints_lines_for_people(place: Place, verb):
    with place.living() as daemon:
        end = tail_in_background(daemon, verb, "--user", "u2", "--what", "delivered", "--count", "1")
        daemon.track("u1", "Feature Used")
        daemon.track("u2", "Subscription Started")
        ran = end()
    first, payload = ran.out.splitlines()
    assert "delivered Subscription Started of u2  201" in first
    assert '"identifyId":"u2"' in payload
    assert "\x1b" not in ran.out


def test_tail_tells_why_an_event_is_tried_again(place: Place, verb):
    with place.living(always(503)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "retry", "--count", "1", "--json")
        daemon.track("u1", "Feature Used")
        (record,) = end().lines
    assert record["attempts"] == 1
    assert "503" in record["detail"]


def test_tail_ends_with_69_when_the_daemon_stops(place: Place, verb):
    with place.living() as daemon:
        end = tail_in_background(daemon, verb)
    assert end().code == 69
    assert verb("tail", *place.flags).code == 69


def test_an_accepted_event_is_shown_by_todays_privacy_rules(place: Place):
    event = NewEvent(0, False, "u1", "m1", b'{"type":"track","event":"Feature Used","properties":{"email":"a@b.c"}}')
    record = accepted_record(event, lambda one: one | {"properties": "redacted"}, 0)
    assert record == {
        "at": "1970-01-01T00:00:00.000Z",
        "what": "accepted",
        "messageId": "m1",
        "name": "Feature Used",
        "user": "u1",
        "event": {"type": "track", "event": "Feature Used", "properties": "redacted"},
    }


def test_tail_tells_why_an_event_died_and_shows_no_payload_if_none_is_wanted(place: Place, verb):
    body = b'{"externalapierror":{"status":"BAD_REQUEST","message":"eventName is unknown"}}'
    with place.living(always(400, body)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "dead", "--count", "1", "--no-payload")
        daemon.track("u1", "Feature Used")
        (line,) = end().out.splitlines()
    assert "dead      Feature Used of u1  400  refused" in line
    assert "eventName is unknown" in line


def test_tail_names_the_attempt_and_the_reason_of_one_that_is_tried_again(place: Place, verb):
    with place.living(always(503)) as daemon:
        end = tail_in_background(daemon, verb, "--what", "retry", "--count", "1", "--no-payload")
        daemon.track("u1", "Feature Used")
        (line,) = end().out.splitlines()
    assert "retry     Feature Used of u1" in line
    assert "  attempt 1: " in line
    assert "503" in line


def test_tail_shows_a_dropped_event_by_its_reason(place: Place, verb):
    with place.living() as daemon:
        end = tail_in_background(daemon, verb, "--what", "dropped", "--count", "1")
        daemon.track(None, "Feature Used", anonymous_id="somebody")
        first = end().out.splitlines()[0]
    assert "dropped   Feature Used" in first
    assert "no_user" in first
    assert " of " not in first


def test_tail_tells_how_many_records_a_slow_terminal_missed_and_does_not_count_that_as_one(place: Place, verb):
    burst = [{"at": "1970-01-01T00:00:00.000Z", "what": "accepted", "name": f"Event {n}"} for n in range(300)]
    with place.living() as daemon:
        end = tail_in_background(daemon, verb, "--count", "257")
        feed = daemon.daemon.feed
        daemon.do(lambda: [feed.publish(record) for record in burst])  # at once: nobody reads in between
        wait_until(lambda: not next(iter(feed._readers))._waiting, "reading what there was room for")
        daemon.do(lambda: feed.publish(burst[0]))
        lines = end().out.splitlines()
    assert len(lines) == 258
    assert "accepted  Event 255" in lines[255]
    assert lines[256] == "… missed 44 records: this terminal is too slow"
    assert "Event 0" in lines[257]

"""The lines of `px-sidecar dev`."""

import click
import pytest

from sidecar.cli.dev import _address
from sidecar.cli.dev_feed import PATIENCE_S, DevFeed

AT = "2026-11-24T08:00:00.000Z"
ACCEPTED = {"at": AT, "what": "accepted", "messageId": "m-1", "name": "Feature Used", "user": "u-1", "event": {}}
DELIVERED = ACCEPTED | {"what": "delivered", "id": 1, "status": 201, "attempts": 1, "payload": {"eventName": "X"}}


class Screen:
    def __init__(self, *, payloads=False):
        self.now_s = 100.0
        self.lines = []
        self.feed = DevFeed(self.lines.append, lambda: self.now_s, payloads=payloads)


def test_a_delivered_event_has_one_line_with_its_payload():
    screen = Screen()
    screen.feed.show(ACCEPTED)
    screen.feed.show(DELIVERED)
    (line,) = screen.lines
    assert "delivered" in line
    assert "Feature Used of u-1" in line
    assert "PX answered 201" in line
    assert line.endswith('{"eventName":"X"}')


def test_on_a_terminal_the_payload_has_a_line_of_its_own():
    screen = Screen(payloads=True)
    screen.feed.show(DELIVERED)
    assert screen.lines[0].splitlines()[1].strip() == '{"eventName":"X"}'


def test_a_drop_is_explained_in_plain_words():
    screen = Screen()
    screen.feed.show({"at": AT, "what": "dropped", "messageId": "m-1", "name": "X", "reason": "no_user", "attempts": 0})
    assert "give the call a userId" in screen.lines[0]


def test_a_refusal_of_px_names_the_field():
    detail = "PX answered 400: userType: must be one of USER, LEAD"
    screen = Screen()
    screen.feed.show(DELIVERED | {"what": "dead", "reason": "refused", "detail": detail, "status": 400})
    assert f"PX would refuse it: {detail}" in screen.lines[0]


def test_a_value_that_was_cut_for_px_is_named():
    screen = Screen()
    screen.feed.show(DELIVERED, [{"field": "attributes.a51", "what": "left out: over 50 attributes"}])
    assert "attributes.a51 left out: over 50 attributes" in screen.lines[1]


def test_a_refused_request_has_a_line():
    screen = Screen()
    screen.feed.show({"at": AT, "what": "refused", "reason": "bad_json", "detail": "The body is not JSON."})
    assert click.unstyle(screen.lines[0]).endswith("refused   a request  The body is not JSON.")


def test_an_event_without_an_outcome_is_shown_waiting_once():
    screen = Screen()
    screen.feed.show(ACCEPTED)
    assert not screen.feed.is_waiting()
    screen.now_s += PATIENCE_S
    assert screen.feed.is_waiting()
    screen.feed.show_waiting("PX cannot be reached.", AT)
    screen.feed.show_waiting("PX cannot be reached.", AT)
    (line,) = screen.lines
    assert "waiting" in line
    assert "PX cannot be reached." in line


def test_an_event_settled_before_it_is_reported_accepted_never_waits():
    """An identify was `dropped` and then `waiting`: the rule had settled it before its request was answered."""
    screen = Screen()
    screen.feed.show(ACCEPTED | {"what": "dropped", "id": 1, "reason": "remembered", "attempts": 0})
    screen.feed.show(ACCEPTED)
    screen.now_s += PATIENCE_S
    assert not screen.feed.is_waiting()
    screen.feed.show(ACCEPTED | {"name": "Other"})
    screen.now_s += PATIENCE_S
    assert screen.feed.is_waiting(), "an event of that id and another name is one of its own"


def test_a_retry_is_shown_once_per_event():
    screen = Screen()
    screen.feed.show(ACCEPTED)
    for attempts in (1, 2, 3):
        screen.feed.show(ACCEPTED | {"what": "retry", "id": 1, "attempts": attempts, "detail": "PX answered 503"})
    assert len(screen.lines) == 1
    assert "on disk, and sent again: PX answered 503" in screen.lines[0]


def test_control_characters_of_an_event_do_not_reach_the_terminal():
    screen = Screen()
    screen.feed.show(DELIVERED | {"name": "a\x1b[31mb", "user": "u\n2"})
    assert "\x1b[31m" not in screen.lines[0]
    assert "\n" not in screen.lines[0]


def test_skipped_records_are_counted():
    screen = Screen()
    screen.feed.show({"missed": 7})
    assert "7 records" in screen.lines[0]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0", "0.0.0.0:8321"),
        (":9000", "127.0.0.1:9000"),
        ("localhost:9000", "localhost:9000"),
        ("::1", "[::1]:8321"),
        ("[::1]:9000", "[::1]:9000"),
    ],
)
def test_an_address_may_leave_out_host_or_port(text, address):
    assert _address(text) == address


def test_a_repeated_call_waits_for_nothing_once_the_event_is_settled():
    """SDKs send a call again whose answer was lost; it is answered with success, and stored once."""
    screen = Screen()
    screen.feed.show(ACCEPTED)
    screen.feed.show(DELIVERED)
    screen.feed.show(ACCEPTED)
    screen.feed.show(ACCEPTED)
    screen.now_s += 2 * PATIENCE_S
    assert not screen.feed.is_waiting()
    assert len(screen.lines) == 1

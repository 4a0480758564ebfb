"""`px-sidecar events`, with and without a daemon."""

import pytest
from living import Place, always, wait_until

from sidecar.control.records import found_event
from sidecar.outbox.lookup import Found

LISTED = {
    *("id", "state", "class", "name", "user", "messageId", "received_ms", "settled_ms"),
    *("reason", "status", "attempts", "event"),
}
PRIVATE = '[mapping.attributes]\ndrop = ["email"]\n'


@pytest.fixture
def private(tmp_path) -> Place:
    return Place(tmp_path, PRIVATE)


@pytest.mark.parametrize("alive", [True, False], ids=["with a daemon", "from the file"])
def test_events_are_listed_by_state_without_what_is_private(private: Place, verb, alive: bool):
    with private.living() as daemon:
        message_id = daemon.track("u1", "Feature Used", properties={"email": "ann@example.com", "plan": "gold"})
        daemon.track(None, "Feature Used", anonymous_id="somebody")
        daemon.settle()
        if alive:
            ran = verb("events", "list", "--state", "delivered", "--json", *private.flags)
    if not alive:
        ran = verb("events", "list", "--state", "delivered", "--json", *private.flags)
    assert ran.code == 0
    (event,) = ran.json["events"]
    assert set(event) == LISTED
    assert (event["name"], event["user"], event["messageId"]) == ("Feature Used", "u1", message_id)
    assert (event["status"], event["state"]) == (201, "delivered")
    assert event["event"]["properties"] == {"plan": "gold"}
    assert "ann@example.com" not in ran.out


def test_the_table_fits_and_names_reasons(place: Place, verb):
    with place.living() as daemon:
        daemon.track(None, "A name " + "x" * 200)
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("events", "list", *place.flags)
    assert "dropped: no_user" in ran.out
    assert "delivered" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_more_than_a_page_is_listed(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        for number in range(30):
            daemon.track("u1", "Feature Used" if number else "First")
        some = verb("events", "list", "--limit", "7", "--json", *place.flags).json["events"]
        named = verb("events", "list", "--name", "First", "--json", *place.flags).json["events"]
    assert [event["id"] for event in some] == [30, 29, 28, 27, 26, 25, 24]
    assert [event["id"] for event in named] == [1]


def test_one_event_is_shown_with_all_that_is_known(private: Place, verb):
    with private.living() as daemon:
        daemon.track("u1", "Feature Used", properties={"email": "ann@example.com"})
        daemon.settle()
        as_json = verb("events", "show", "1", "--json", *private.flags)
        shown = verb("events", "show", "1", *private.flags)
    assert as_json.json["id"] == 1
    assert "PX answered  201" in shown.out
    assert '"event": "Feature Used"' in shown.out
    assert "ann@example.com" not in as_json.out + shown.out
    assert "today's mapping: POST /v1/events/custom" in shown.out
    mapped = as_json.json["mapped"]
    assert mapped["requests"][0]["body"]["eventName"] == "Feature Used"
    assert mapped["changes"] == []


def test_what_the_mapping_had_to_cut_is_told(place: Place, verb):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used", properties={f"a{number:02}": number for number in range(51)})
        daemon.settle()
        shown = verb("events", "show", "1", *place.flags)
    assert "changed: attributes.a50: " in shown.out


def test_an_event_that_is_not_there_says_so(place: Place, verb):
    with place.living():
        ran = verb("events", "show", "99", *place.flags)
    assert ran.code == 1
    assert "no event 99" in ran.err


def test_a_list_of_nothing_says_so_beside_the_output(place: Place, verb):
    with place.living():
        ran = verb("events", "list", "--user", "nobody", *place.flags)
    assert (ran.code, ran.out) == (0, "")
    assert "no such events" in ran.err


def test_an_event_of_a_message_id_is_found_alone(place: Place, verb):
    with place.living() as daemon:
        message_id = daemon.track("u1", "Feature Used")
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("events", "list", "--message-id", message_id, "--json", *place.flags)
    assert [event["messageId"] for event in ran.json["events"]] == [message_id]


def test_a_pending_event_of_high_priority_is_shown_with_the_attempts_that_failed(tmp_path, verb):
    place = Place(tmp_path, '[mapping.event."Subscription Started"]\npriority = "high"\n')
    with place.living(always(503)) as daemon:
        daemon.track("u1", "Subscription Started")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        listed = verb("events", "list", *place.flags)
        shown = verb("events", "show", "1", *place.flags)
    assert "pending, high" in listed.out
    assert "first failed" in shown.out
    assert "last failed" in shown.out
    assert "why" in shown.out
    assert "503" in shown.out


def test_what_today_drops_is_told_of_an_event_that_was_accepted_before(place: Place, verb):
    with place.living() as daemon:
        daemon.track(None, "Feature Used", anonymous_id="somebody")
        daemon.settle()
        shown = verb("events", "show", "1", *place.flags)
    assert "today's mapping: dropped (no_user)" in shown.out
    assert "POST" not in shown.out


def test_a_control_socket_that_was_named_is_not_replaced_by_the_file(place: Place, verb):
    with place.living() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    ran = verb("events", "list", "--control", str(place.folder / "absent.sock"), *place.flags)
    assert (ran.code, ran.out) == (69, "")
    assert "absent.sock" in ran.err


def test_a_row_that_the_disk_has_garbled_is_listed_without_its_event():
    garbled = Found(7, "pending", False, 0, "u1", 0, None, None, None, 0, b"\xff\xff")
    told = found_event(garbled, lambda event: event)
    assert (told["id"], told["user"], told["event"], told["messageId"]) == (7, "u1", {}, None)

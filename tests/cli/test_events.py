"""`px-sidecar events`, with and without a daemon."""

import pytest
from living import Place

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

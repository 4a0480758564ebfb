"""`px-sidecar dead`, with and without a daemon."""

import json
import socket

import pytest
from living import Place

from sidecar.cli.dead import REASONS
from sidecar.events import encode
from sidecar.observe import DEAD_REASONS
from sidecar.px import Answer, Request

LETTER = {
    *("id", "reason", "status", "detail", "attempts", "first_ms", "last_ms", "name", "user", "received_ms", "payload"),
    "event",
}


class Px:
    """PX that refuses events with `bad` in their name until it is told not to."""

    refuses = True

    async def __call__(self, request: Request) -> Answer:
        if self.refuses and "bad" in json.loads(request.body)["eventName"]:
            return Answer(400, b'{"externalapierror":{"message":"no such event"}}', content_type="application/json")
        return Answer(201)


@pytest.fixture
def refusing(place: Place):
    """A daemon with two dead letters of PX, one that is no event, and a delivered event."""
    px = Px()
    with place.living(px) as daemon:
        for user, name in (("u1", "bad one"), ("u2", "bad two"), ("u3", "good")):
            daemon.track(user, name)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(place.unix)
            line.sendall(encode([{"type": "nonsense", "messageId": "m-bad"}]) + b"\n")
            line.recv(1000)
        assert daemon.settle()["dead"] == 3
        daemon.px = px
        yield daemon


def test_the_verb_knows_the_reasons_of_the_house():
    assert REASONS == DEAD_REASONS


def test_dead_letters_are_listed_with_why(refusing, verb):
    ran = verb("dead", "list", "--json", *refusing.place.flags)
    assert ran.json["dead"] == 3
    assert [letter["reason"] for letter in ran.json["letters"]] == ["refused", "refused", "bad_event"]
    assert set(ran.json["letters"][0]) == LETTER
    shown = verb("dead", "list", *refusing.place.flags)
    assert "no such event" in " ".join(shown.out.split())
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "there are 3 dead letters" in shown.err


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        (["--reason", "bad_event"], [4]),
        (["--name", "bad two"], [2]),
        (["1", "4"], [1, 4]),
        (["--since", "1h"], [1, 2, 4]),
        (["--until", "1h"], []),
        (["--limit", "1"], [1]),
    ],
)
def test_letters_are_chosen_by_id_name_reason_and_time(refusing, verb, chosen: list[str], ids: list[int]):
    ran = verb("dead", "list", *chosen, "--json", *refusing.place.flags)
    assert [letter["id"] for letter in ran.json["letters"]] == ids


def test_one_letter_is_shown(refusing, verb):
    assert set(verb("dead", "show", "1", "--json", *refusing.place.flags).json) == LETTER
    shown = verb("dead", "show", "1", *refusing.place.flags)
    assert "no such event" in shown.out
    assert "the payload as sent:" in shown.out
    assert "dead retry 1" in shown.err
    assert verb("dead", "show", "3", *refusing.place.flags).code == 1


def test_retry_sends_again_with_the_same_message_id(refusing, verb):
    refusing.px.refuses = False
    before = refusing.asked.get("/v1/dead/1")["event"]["messageId"]
    ran = verb("dead", "retry", "1", "--json", *refusing.place.flags)
    assert (ran.code, ran.json) == (0, {"retried": 1})
    assert refusing.settle()["delivered"] == 2
    after = refusing.asked.get("/v1/events/1")
    assert (after["state"], after["messageId"]) == ("delivered", before)


def test_retry_of_what_dies_again_ends(refusing, verb):
    ran = verb("dead", "retry", "--reason", "refused", *refusing.place.flags)
    assert ran.out == "2 dead letters are pending again.\n"
    assert refusing.settle()["dead"] == 3


def test_acting_on_everything_must_be_said(refusing, verb):
    for what in ("retry", "discard"):
        ran = verb("dead", what, *refusing.place.flags)
        assert ran.code == 2
        assert "--all" in ran.err
        assert verb("dead", what, "--all", "--name", "x", *refusing.place.flags).code == 2
    assert refusing.status()["dead"] == 3


def test_discarded_letters_count_as_dropped(refusing, verb):
    ran = verb("dead", "discard", "--all", "--json", *refusing.place.flags)
    assert ran.json == {"discarded": 3}
    status = refusing.status()
    assert (status["dead"], status["dropped_by_reason"]) == (0, {"discarded": 3})
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_an_id_that_is_no_letter_is_said(refusing, verb):
    ran = verb("dead", "discard", "1", "3", *refusing.place.flags)
    assert ran.code == 1
    assert "1 of 2 were moved" in ran.err


def test_export_is_a_line_for_each(refusing, verb):
    ran = verb("dead", "export", "--reason", "refused", *refusing.place.flags)
    assert [set(line) for line in ran.lines] == [LETTER, LETTER]
    assert "2 dead letters were exported" in ran.err


def test_all_of_it_works_from_the_file(place: Place, verb):
    px = Px()
    with place.living(px) as daemon:
        daemon.track("u1", "bad one")
        daemon.track("u2", "bad two")
        daemon.settle()
    assert len(verb("dead", "list", "--json", *place.flags).json["letters"]) == 2
    assert verb("dead", "discard", "1", *place.flags).code == 0
    assert verb("dead", "retry", "--all", *place.flags).code == 0
    px.refuses = False
    with place.living(px) as daemon:
        status = daemon.settle()
    assert (status["dead"], status["delivered"], status["dropped"]) == (0, 1, 1)

"""`px-sidecar dead`, with and without a daemon."""

import json
import socket

import pytest
from running_daemon import DaemonDir

from sidecar.cli.dead import REASONS
from sidecar.events import encode
from sidecar.observe import DEAD_REASONS
from sidecar.px import PxAnswer, PxRequest

LETTER = {
    *("id", "reason", "status", "detail", "attempts", "first_ms", "last_ms", "name", "user", "received_ms", "payload"),
    "event",
}


class Px:
    """PX that refuses events with `bad` in their name while ``refuses`` is set."""

    refuses = True

    async def __call__(self, request: PxRequest) -> PxAnswer:
        if self.refuses and "bad" in json.loads(request.body)["eventName"]:
            return PxAnswer(400, b'{"externalapierror":{"message":"no such event"}}', content_type="application/json")
        return PxAnswer(201)


@pytest.fixture
def refusing(daemon_dir: DaemonDir):
    """A daemon with two letters refused by PX, one invalid event, and one delivered event."""
    px = Px()
    with daemon_dir.running(px) as daemon:
        for user, name in (("u1", "bad one"), ("u2", "bad two"), ("u3", "good")):
            daemon.track(user, name)
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(daemon_dir.unix)
            line.sendall(encode([{"type": "nonsense", "messageId": "m-bad", "userId": "u-bad"}]) + b"\n")
            line.recv(1000)
        assert daemon.settle()["dead"] == 3
        daemon.px = px
        yield daemon


def test_the_reasons_are_those_of_the_metrics():
    assert REASONS == DEAD_REASONS


def test_list_shows_reason_and_detail(refusing, verb):
    ran = verb("dead", "list", "--json", *refusing.daemon_dir.flags)
    assert ran.json["dead"] == 3
    assert [letter["reason"] for letter in ran.json["letters"]] == ["refused", "refused", "bad_event"]
    assert set(ran.json["letters"][0]) == LETTER
    shown = verb("dead", "list", *refusing.daemon_dir.flags)
    assert "no such event" in " ".join(shown.out.split())
    assert shown.out.splitlines()[0].split() == ["id", "reason", "PX", "last", "name", "user"]
    assert "bad one" in shown.out
    assert "u1" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "3 of 3 dead letters are shown" in shown.err


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (["--reason", "bad_event"], [4]),
        (["--name", "bad two"], [2]),
        (["--event", "bad two"], [2]),
        (["--user", "u1"], [1]),
        (["--user", "u-bad"], [4]),
        (["--user", "u1", "--name", "bad two"], []),
        (["1", "4"], [1, 4]),
        (["--since", "1h"], [1, 2, 4]),
        (["--until", "1h"], []),
        (["--limit", "1"], [1]),
    ],
)
def test_letters_are_selected_by_id_name_reason_and_time(refusing, verb, selection: list[str], ids: list[int]):
    ran = verb("dead", "list", *selection, "--json", *refusing.daemon_dir.flags)
    assert [letter["id"] for letter in ran.json["letters"]] == ids


def test_show_prints_one_letter_with_its_payload(refusing, verb):
    assert set(verb("dead", "show", "1", "--json", *refusing.daemon_dir.flags).json) == LETTER
    shown = verb("dead", "show", "1", *refusing.daemon_dir.flags)
    assert "no such event" in shown.out
    assert "payload as sent:" in shown.out
    assert "dead retry 1" in shown.err
    assert "`px-sidecar dead retry 1` maps and sends it again" in shown.err
    assert verb("dead", "show", "3", *refusing.daemon_dir.flags).code == 1
    bad = verb("dead", "show", "4", *refusing.daemon_dir.flags).err
    assert "a retry cannot help" in bad
    assert "dead discard 4" in bad


def test_retry_keeps_the_message_id(refusing, verb):
    refusing.px.refuses = False
    before = refusing.client.get("/v1/dead/1")["event"]["messageId"]
    ran = verb("dead", "retry", "1", "--json", *refusing.daemon_dir.flags)
    assert (ran.code, ran.json) == (0, {"retried": 1})
    assert refusing.settle()["delivered"] == 2
    after = refusing.client.get("/v1/events/1")
    assert (after["state"], after["messageId"]) == ("delivered", before)


def test_retry_ends_if_letters_die_again(refusing, verb):
    ran = verb("dead", "retry", "--reason", "refused", *refusing.daemon_dir.flags)
    assert ran.out == "2 dead letters are pending again.\n"
    assert refusing.settle()["dead"] == 3


def test_retry_and_discard_of_everything_need_all(refusing, verb):
    for what in ("retry", "discard"):
        ran = verb("dead", what, *refusing.daemon_dir.flags)
        assert ran.code == 2
        assert "--all" in ran.err
        assert verb("dead", what, "--all", "--name", "x", *refusing.daemon_dir.flags).code == 2
    assert refusing.status()["dead"] == 3


def test_discarded_letters_count_as_dropped(refusing, verb):
    ran = verb("dead", "discard", "--all", "--json", *refusing.daemon_dir.flags)
    assert ran.json == {"discarded": 3}
    status = refusing.status()
    assert (status["dead"], status["dropped_by_reason"]) == (0, {"discarded": 3})
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_an_id_that_is_not_a_dead_letter_is_reported(refusing, verb):
    ran = verb("dead", "discard", "1", "3", *refusing.daemon_dir.flags)
    assert ran.code == 1
    assert "1 of 2 were discarded" in ran.err


def test_export_prints_one_line_per_letter(refusing, verb):
    ran = verb("dead", "export", "--reason", "refused", *refusing.daemon_dir.flags)
    assert [set(line) for line in ran.lines] == [LETTER, LETTER]
    assert "2 dead letters are exported" in ran.err


def test_as_many_ids_as_a_command_line_takes_are_listed(refusing, verb):
    """All of them stood in one URL, which the daemon refuses above 32 KiB: "the headers of the request are too large"."""
    ran = verb("dead", "export", "4", *map(str, range(9_000, 0, -1)), *refusing.daemon_dir.flags)
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == [1, 2, 4]


def test_every_action_works_without_a_daemon(daemon_dir: DaemonDir, verb):
    px = Px()
    with daemon_dir.running(px) as daemon:
        daemon.track("u1", "bad one")
        daemon.track("u2", "bad two")
        daemon.settle()
    assert len(verb("dead", "list", "--json", *daemon_dir.flags).json["letters"]) == 2
    assert verb("dead", "discard", "1", *daemon_dir.flags).code == 0
    assert verb("dead", "retry", "--all", *daemon_dir.flags).code == 0
    px.refuses = False
    with daemon_dir.running(px) as daemon:
        status = daemon.settle()
    assert (status["dead"], status["delivered"], status["dropped"]) == (0, 1, 1)


def test_the_count_comes_first_and_a_dry_run_stops_there(refusing, verb):
    ran = verb("dead", "discard", "--user", "u1", "--dry-run", *refusing.daemon_dir.flags)
    assert (ran.code, ran.err, ran.out) == (0, "1 dead letter is selected.\n", "Nothing is discarded.\n")
    assert refusing.status()["dead"] == 3


def test_a_dry_run_has_its_count_in_the_json(refusing, verb):
    """Scripts got `{"retried": 0}`, and the number only in a sentence on standard error."""
    for what, done in (("retry", "retried"), ("discard", "discarded")):
        ran = verb("dead", what, "--all", "--dry-run", "--json", *refusing.daemon_dir.flags)
        assert (ran.code, ran.json) == (0, {done: 0, "selected": 3, "dry_run": True})
    assert refusing.status()["dead"] == 3


def test_a_dry_run_counts_also_where_a_retry_cannot_help(refusing, verb):
    """It failed before the count, although nothing was to be retried."""
    ran = verb("dead", "retry", "--reason", "bad_event", "--dry-run", *refusing.daemon_dir.flags)
    assert (ran.code, ran.out) == (0, "Nothing is retried.\n")
    assert ran.err.startswith("1 dead letter is selected.\n1 of them is bad_event")
    refused = verb("dead", "retry", "--reason", "bad_event", *refusing.daemon_dir.flags)
    assert (refused.code, refused.err.splitlines()[0]) == (1, "1 dead letter is selected.")


def test_a_terminal_is_asked_before_letters_are_moved(refusing, verb, monkeypatch):
    monkeypatch.setattr("sidecar.cli.bulk.on_terminal", lambda: True)
    ran = verb("dead", "discard", "--all", *refusing.daemon_dir.flags, stdin="n\n")
    assert ran.out == "Nothing is discarded.\n"
    assert refusing.status()["dead"] == 3
    assert verb("dead", "discard", "--all", *refusing.daemon_dir.flags, stdin="y\n").code == 0
    assert refusing.status()["dead"] == 0


def test_a_retry_of_bad_events_says_that_it_cannot_help(refusing, verb):
    ran = verb("dead", "retry", "4", *refusing.daemon_dir.flags)
    assert ran.code == 1
    assert "a retry cannot help" in ran.err
    assert "without --yes" in ran.err
    assert refusing.status()["dead"] == 3
    mixed = verb("dead", "retry", "--all", *refusing.daemon_dir.flags)
    assert (mixed.code, mixed.out) == (0, "3 dead letters are pending again.\n")
    assert "1 of them is bad_event" in mixed.err


def test_a_retried_bad_event_is_a_bad_event_again(daemon_dir: DaemonDir, verb):
    """It became a mapping_error, "which is a bug: please report it"; what was no object was dropped: no_user."""
    with daemon_dir.running() as daemon:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(daemon_dir.unix)
            line.sendall(b'[{"type":"nonsense","userId":"u"},7,{"type":"track","event":" ","userId":"u"}]\n')
            line.recv(1000)
        before = verb("dead", "list", "--json", *daemon_dir.flags).json["letters"]
        assert len(before) == 3
        assert verb("dead", "retry", "--all", "--yes", *daemon_dir.flags).code == 0
        assert (daemon.settle()["dead"], daemon.status()["dropped"]) == (3, 0)
        after = verb("dead", "list", "--json", *daemon_dir.flags).json["letters"]
    assert [letter["reason"] for letter in after] == ["bad_event"] * 3
    assert {letter["detail"] for letter in after} > {letter["detail"] for letter in before[::2]}

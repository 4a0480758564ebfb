"""`px-sidecar events discard`: a count first, pending events only, with and without a daemon."""

import json
from random import Random

import pytest
import trio
from running_daemon import DaemonDir, wait_until

from sidecar.control.client import DaemonClient
from sidecar.px import PxAnswer

SOURCES = '[[source]]\nwrite_key = "wk_web"\n[[source]]\nwrite_key = "wk_app"\nproperty_key = "AP-YYYYYYYYYY-2"\n'


@pytest.fixture(params=[True, False], ids=["with a daemon", "from the file"])
def paused(daemon_dir: DaemonDir, request):
    """Run a block with six pending events of two names and users, while the daemon runs or after it has stopped."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for number in range(6):
            daemon.track(f"u{number % 2}", "Ping" if number % 3 else "Paid")
        if request.param:
            yield daemon_dir
    if not request.param:
        yield daemon_dir


def test_a_dry_run_counts_and_changes_nothing(paused: DaemonDir, verb):
    ran = verb("events", "discard", "--name", "Ping", "--dry-run", *paused.flags)
    assert (ran.code, ran.err) == (0, "4 events are pending and selected.\n")
    assert ran.out == "Nothing is discarded (--dry-run).\n"
    assert verb("status", "--json", *paused.flags).json["pending"] == 6


def test_selected_events_become_dropped_with_a_reason(paused: DaemonDir, verb):
    ran = verb("events", "discard", "--name", "Ping", "--user", "u0", "--json", *paused.flags)
    assert ran.json == {"selected": 2, "discarded": 2, "in_flight": 0, "dry_run": False}
    status = verb("status", "--json", *paused.flags).json
    assert (status["pending"], status["dropped_by_reason"]) == (4, {"discarded": 2})
    everything = verb("events", "discard", "--all", "--yes", *paused.flags)
    assert everything.out == "4 events discarded.\n"
    assert verb("status", "--json", *paused.flags).json["pending"] == 0


def test_a_misspelled_name_gets_a_suggestion(paused: DaemonDir, verb):
    ran = verb("events", "discard", "--name", "ping", *paused.flags)
    assert ran.err == "0 events are pending and selected. Did you mean 'Ping'?\n"
    assert "Did you mean 'Ping'?" in verb("events", "list", "--name", "Pimg", *paused.flags).err
    assert "Did you mean" not in verb("events", "discard", "--name", "Something else", *paused.flags).err


def test_a_backfill_can_be_taken_back_by_its_class(daemon_dir: DaemonDir, verb, tmp_path):
    file = tmp_path / "h.ndjson"
    file.write_text('{"event":"Ping","userId":"u1","timestamp":"2025-01-01T00:00:00Z"}\n')
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Ping")
        verb("backfill", str(file), *daemon_dir.flags)
        listed = verb("events", "list", "--class", "low", "--json", *daemon_dir.flags).json["events"]
        ran = verb("events", "discard", "--class", "low", "--name", "Ping", *daemon_dir.flags)
        (left,) = daemon.client.get("/v1/events", {"state": "pending"})["events"]
    assert [event["class"] for event in listed] == ["low"]
    assert ran.out == "1 event discarded.\n"
    assert left["class"] == "normal"


def test_discarding_is_recorded_without_the_user(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        verb("events", "discard", "--user", "ann@example.com", *daemon_dir.flags)
        (change,) = daemon.client.get("/v1/audit")["changes"]
    assert change["action"] == "events discard"
    assert "ann@example.com" not in change["detail"]


def test_nothing_is_selected_by_omission(daemon_dir: DaemonDir, verb):
    assert verb("events", "discard", *daemon_dir.flags).code == 2
    assert verb("events", "discard", "--all", "--name", "x", *daemon_dir.flags).code == 2


def test_a_terminal_is_asked_and_no_means_no(daemon_dir: DaemonDir, verb, monkeypatch):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Ping")
        monkeypatch.setattr("sidecar.cli.bulk.on_terminal", lambda: True)
        refused = verb("events", "discard", "--all", *daemon_dir.flags, stdin="n\n")
        assert daemon.status()["pending"] == 1
        agreed = verb("events", "discard", "--all", *daemon_dir.flags, stdin="y\n")
        assert daemon.status()["pending"] == 0
    assert refused.out == "Nothing is discarded.\n"
    assert agreed.out == "1 event discarded.\n"


def test_a_source_is_named_by_position_or_product(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, SOURCES)
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for source in (0, 1, 1):
            event = {"type": "track", "event": "Ping", "userId": "u1"}
            daemon.client.post("/v1/send", {"event": event, "source": source})
        daemon.track("u1", "Ping")

        def selected(source: str) -> int:
            return verb("events", "discard", "--source", source, "--dry-run", "--json", *daemon_dir.flags).json[
                "selected"
            ]

        assert [selected(source) for source in ("0", "1", "AP-YYYYYYYYYY-2", "AP-XXXXXXXXXX-2")] == [1, 2, 2, 2]
        listed = verb("events", "list", "--source", "1", "--json", *daemon_dir.flags).json["events"]
        unknown = verb("events", "discard", "--source", "7", *daemon_dir.flags)
    assert len(listed) == 2
    assert (unknown.code, "position of a [[source]]" in unknown.err) == (1, True)
    offline = verb("events", "discard", "--source", "1", "--json", *daemon_dir.flags)
    assert offline.json["discarded"] == 2


def test_an_event_in_flight_is_left_and_settled_by_its_answer(daemon_dir: DaemonDir, verb):
    answer = trio.Event()

    async def slow(_request):
        await answer.wait()
        return PxAnswer(201, b"{}", content_type="application/json")

    with daemon_dir.running(slow) as daemon:
        for _ in range(5):  # one user: one is in flight, the others wait for it
            daemon.track("u1", "Ping")
        wait_until(lambda: daemon.status()["in_flight"] == 1, "a request in flight")
        ran = verb("events", "discard", "--all", *daemon_dir.flags)
        daemon.do(answer.set)
        status = daemon.settle()
    assert ran.out == "4 events discarded. 1 in flight are left; their answers decide.\n"
    assert (status["delivered"], status["dropped_by_reason"]) == (1, {"discarded": 4})


def test_what_a_page_leaves_is_delivered(daemon_dir: DaemonDir, monkeypatch):
    """All that match are unloaded before a page is discarded; later ones must be read again."""
    monkeypatch.setattr("sidecar.outbox.backlog.PAGE_ROWS", 2)
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for number in range(6):
            daemon.track(f"u{number}", "Ping")
        wait_until(lambda: len(daemon.app.outbox.checked_out) == 6, "six loaded events")
        assert daemon.client.post("/v1/events/discard", {"all": True})["moved"] == 2
        daemon.client.post("/v1/resume")
        assert daemon.settle()["delivered"] == 4


def test_under_load_no_event_is_both_sent_and_discarded(tmp_path):
    daemon_dir = DaemonDir(tmp_path, '[deliver]\nper_second = 80\n[mapping.fields]\neventId = "messageId"\n')
    random = Random(7)

    async def slow(_request):
        await trio.sleep(random.uniform(0, 0.01))
        return PxAnswer(201, b"{}", content_type="application/json")

    calls = [{"userId": f"u{number % 4}", "event": "Ping" if number % 2 else "Paid"} for number in range(15)]
    batch = {"batch": [{"type": "track"} | call for call in calls]}
    with daemon_dir.running(slow) as daemon:
        app = DaemonClient(daemon_dir.unix)
        for _ in range(12):
            app.post("/v1/batch", batch)  # at once: on a slow machine single ones are sent as fast as they come
            daemon.client.post("/v1/events/discard", {"name": "Ping"})
        status = daemon.settle()
        events = daemon.client.get("/v1/events", {"limit": 1000})["events"]
        sent = {json.loads(request.body)["eventId"] for request in daemon.network.sent}
    discarded = {event["messageId"] for event in events if event["reason"] == "discarded"}
    assert status["accepted"] == status["delivered"] + status["dropped"] == 180
    assert 0 < len(discarded) == status["dropped_by_reason"]["discarded"]
    assert {event["name"] for event in events if event["reason"] == "discarded"} == {"Ping"}
    assert sent & discarded == set()


def test_a_listing_of_many_rows_is_not_laid_out_by_rich(daemon_dir: DaemonDir, verb, monkeypatch):
    """100,000 rows took 72 s, 0.7 ms a row; a page is printed as it comes."""
    monkeypatch.setattr("sidecar.cli.screen.table", None)
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "名" * 60)
        daemon.track("u" * 120, "Ping")
        ran = verb("events", "list", *daemon_dir.flags)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["id", "state", "when", "name", "user"]
    assert max(map(len, lines)) <= 80
    assert ran.out.count("u") > 120
    assert ran.out.count("名") == 60


@pytest.mark.parametrize(
    "command", ["events list", "events discard", "resend", "dead list", "dead discard", "dead export"]
)
@pytest.mark.parametrize("times", [("--since", "2h", "--until", "3h"), ("--until", "3h", "--since", "2h")])
def test_an_end_before_the_beginning_is_wrong_usage(daemon_dir: DaemonDir, verb, command, times):
    """Nothing was selected, and nothing said why."""
    ran = verb(*command.split(), *times, *daemon_dir.flags)
    assert (ran.code, "--until is not after --since" in ran.err) == (2, True)

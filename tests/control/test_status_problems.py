"""What the status says is wrong: ranked, each with what to do, and nothing that is not so."""

import msgspec
import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.clock import SystemClock
from sidecar.control.problems import problems_of
from sidecar.control.status import DaemonState, NameShare, OutboxFacts, QuotaFacts, RefusedCalls, public_sentence
from sidecar.outbox import NewEvent, Store
from sidecar.outbox.limit_watch import DAY_MS, busiest_name

NOW_MS = 1_700_000_000_000


def state(**facts) -> DaemonState:
    """A state without problems, except for ``facts``."""
    usual = dict.fromkeys(DaemonState.__struct_fields__)
    usual |= {"not_stored": [], "not_delivered": [], "damage": [], "limits": [], "notes": [], "dead": 0}
    usual |= {"quota": QuotaFacts(used=0, limit=1_000, left=1_000, reserve=100, free_in_s=0.0)}
    usual |= {"outbox": OutboxFacts(path="/o.db", bytes=1, max_bytes=100, wal_bytes=0)}
    return DaemonState(**usual | facts)


def messages(**facts) -> list[str]:
    return [problem.message for problem in problems_of(state(**facts))]


def test_a_healthy_state_has_no_problems():
    assert messages() == []


def test_what_is_not_stored_comes_first_and_notes_last():
    found = problems_of(
        state(
            notes=["note"],
            limits=["limit"],
            dead=1,
            dead_by_reason={"refused": 1},
            damage=["damage"],
            not_delivered=["delivery"],
            not_stored=["storing"],
        )
    )
    assert [problem.severity for problem in found] == ["accepting", "delivery", "loss", "loss", "limit", "note"]
    assert [problem.message for problem in found][:3] == ["storing", "delivery", "damage"]


def test_a_retry_is_not_offered_for_bad_events_alone():
    assert "dead retry" in messages(dead=2, dead_by_reason={"bad_event": 1, "refused": 1})[0]
    assert "dead retry" not in messages(dead=2, dead_by_reason={"bad_event": 2})[0]


@pytest.mark.parametrize(("last_s", "shown"), [(0.0, True), (3_599.0, True), (3_601.0, False)])
def test_refused_calls_are_shown_for_an_hour(last_s, shown):
    refused = RefusedCalls({"bad_json": 1}, last_s, "The body is not JSON.")
    assert bool(messages(refused=refused)) is shown


def test_an_app_need_not_change_for_a_full_outbox():
    """`status` told apps to change where the outbox was full: their calls were right."""
    (full,) = messages(refused=RefusedCalls({"outbox_full": 26}, 1.0, "The outbox is full."))
    assert full.startswith(
        "26 calls were answered 503 since the start (outbox_full 26), and the app has to send them again;"
    )
    assert full.endswith(" The last, 1.0s ago: The outbox is full."), "its age: what it says may be over"
    shown = messages(not_stored=["Full."], refused=RefusedCalls({"outbox_full": 26}, 1.0, "Full."))
    assert "Full." not in shown[1], "it is the line above"
    (both,) = messages(refused=RefusedCalls({"busy": 1, "bad_json": 2}, 1.0, ""))
    assert (
        "2 calls were refused since the start (bad_json 2), and the app has to change; 1 call was answered 503" in both
    )


@pytest.mark.parametrize(("used", "free_in_s", "near"), [(809, 0.0, False), (810, 0.0, True), (900, 60.0, False)])
def test_a_day_that_is_nearly_spent_is_near_a_limit(used, free_in_s, near):
    quota = msgspec.structs.replace(state().quota, used=used, free_in_s=free_in_s)
    assert bool(messages(quota=quota)) is near


@pytest.mark.parametrize(("used", "full", "near"), [(89, None, False), (90, None, True), (99, "outbox_full", False)])
def test_an_outbox_that_is_nearly_full_is_near_a_limit(used, full, near):
    outbox = msgspec.structs.replace(state().outbox, bytes=used)
    assert bool(messages(outbox=outbox, full=full)) is near


@pytest.mark.parametrize(("events", "named"), [(500, False), (501, True)])
def test_a_name_that_takes_over_half_of_the_day_is_named(events, named):
    found = messages(busiest_name=NameShare('Mouse "Moved"', events))
    assert bool(found) is named
    if named:
        assert '[mapping.event."Mouse \\"Moved\\""]' in found[0]


def test_apps_do_not_see_whose_limit_is_near_nor_what_was_refused():
    """The warnings of `/status` named the user."""
    user = "User ann@example.com had 900 events in 24 hours; PX accepts 1,000 a day and drops the rest silently."
    assert "ann" not in public_sentence(user)
    assert "900 events" in public_sentence(user)
    (refused,) = messages(refused=RefusedCalls({"bad_json": 1}, 1.0, "No event 'ann'."))
    assert "ann" not in public_sentence(refused)


# From a running daemon --------------------------------------------------------------------------------------------------


def test_dead_letters_and_refused_calls_are_problems(daemon_dir: DaemonDir):
    with daemon_dir.running(always(400)) as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
        daemon.app.telemetry.request_refused("bad_json", "The body is not JSON.")
        status = daemon.status()
    assert [problem["severity"] for problem in status["problems"]] == ["loss", "loss"]
    assert status["problems"][0]["message"].startswith("1 event is dead (refused 1) and will not be sent;")
    assert status["refused"]["by_code"] == {"bad_json": 1}


def test_the_last_delivery_survives_a_restart(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        first = daemon.settle()["last_delivered"]
    with daemon_dir.running() as daemon:
        assert daemon.status()["last_delivered"][:19] == first[:19]


def test_a_pause_says_since_when_across_restarts(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        since = daemon.client.post("/v1/pause")["since"]
    with daemon_dir.running() as daemon:
        assert daemon.status()["since"][:19] == since[:19]


def test_a_pause_by_px_is_saved_when_it_begins(daemon_dir: DaemonDir):
    """After a crash the next process knows since when it lasts; it was saved at an orderly stop alone."""
    with daemon_dir.running(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        since = daemon.status()["since"]

        def saved() -> str:
            return daemon.app.store.get_meta("destination") or ""

        wait_until(lambda: "wrong_key" in saved(), "the saved pause")
        assert '"since_ms"' in saved()
    with daemon_dir.running(always(401)) as daemon:
        assert daemon.status()["since"][:19] == since[:19]


# The busiest name -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    store.close()


def came(store: Store, name: str, count: int, at_ms: int) -> None:
    body = b'{"type":"track"}'
    with store.transaction():
        first = store.counters["next_id"]
        store.accept(
            [[NewEvent(0, 0, "u", f"m{first + n}", body, kind="track", name=name) for n in range(count)]], at_ms
        )


def busiest(store: Store, at_ms: int) -> tuple[str, int] | None:
    with store.transaction():
        return busiest_name(store, at_ms)


def test_the_busiest_name_is_that_of_the_last_day(store):
    assert busiest(store, NOW_MS) is None
    came(store, "Old", 9, NOW_MS)
    came(store, "New", 5, NOW_MS)
    assert busiest(store, NOW_MS) == ("Old", 9)
    assert busiest(store, NOW_MS + DAY_MS // 2) == ("Old", 9)
    came(store, "New", 3, NOW_MS + DAY_MS)
    assert busiest(store, NOW_MS + DAY_MS + 1) == ("New", 3), "the day before does not count"


def test_the_counts_of_an_older_outbox_are_not_of_today(store):
    came(store, "Old", 9, NOW_MS - 3 * DAY_MS)
    came(store, "New", 2, NOW_MS)
    assert busiest(store, NOW_MS) == ("New", 2)


def test_a_long_stop_does_not_add_up_to_one_day(store):
    came(store, "Old", 9, NOW_MS)
    busiest(store, NOW_MS)
    came(store, "Old", 5, NOW_MS + 9 * DAY_MS)
    assert busiest(store, NOW_MS + 9 * DAY_MS) is None
    came(store, "Old", 4, NOW_MS + 9 * DAY_MS + 1)
    assert busiest(store, NOW_MS + 9 * DAY_MS + 2) == ("Old", 4)


class UnsetClock(SystemClock):
    """The clock of a host that shows 1970 until NTP answers."""

    def wall_ms(self) -> int:
        return super().wall_ms() % 86_400_000


def test_a_clock_that_is_not_set_holds_up_delivery_and_not_accepting(tmp_path):
    with DaemonDir(tmp_path).running(clock=UnsetClock()) as daemon:
        daemon.track("u1", "Feature Used")
        status = daemon.status()
    assert (status["pending"], status["delivering"]) == (1, False)
    (problem,) = status["problems"]
    assert problem["severity"] == "delivery"
    assert "Events are accepted, delivery waits" in problem["message"]
    assert status["reasons"] == [problem["message"]]

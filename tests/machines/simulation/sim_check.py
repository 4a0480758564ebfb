"""The check after a run: outbox file, answers to clients and events at PX must agree exactly."""

import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sim_world import World

__all__ = ["check"]

DELIVERED, DROPPED, DEAD = 4, 5, 6
DAY_S, START_S = 86_400.0, 1_700_000_000.0


class Row(NamedTuple):
    id: int
    number: int | None  # None: the body was deleted, because its user was forgotten
    state: int
    reason: str | None
    attempts: int | None
    received_ms: int
    settled_ms: int | None  # None: deleted while pending
    was_dead: bool
    replayed: bool


def check(world: World) -> None:
    """Check a finished run. Raises AssertionError with the first disagreement."""
    connection = sqlite3.connect(world.last_path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = _rows(connection)
        counters = Counter(dict(connection.execute("SELECT name, value FROM counters")))
        _check_counters(connection, world, rows, counters)
        _check_memory(connection, world, rows)
    finally:
        connection.close()
    _check_accepted(world, rows, counters)
    _check_outcomes(world, rows)
    _check_order(world, rows)
    _check_repeats(world, rows, counters)
    _check_ambiguous(world, counters)
    _check_ages(world, rows)
    _check_pace(world)
    _check_day(world, rows)
    _check_accounts(world, rows)
    assert not world.violations, f"{len(world.violations)} violations during the run: {world.violations[:5]}"
    world.coverage.update({name: value for name, value in counters.items() if name.startswith(("dead:", "dropped:"))})
    world.coverage["duplicates"] += sum(times - 1 for times in world.px.stored.values())
    world.coverage["ambiguous"] += counters["ambiguous"]
    world.coverage["quota spent"] += len(world.px.sent) > world.scenario.least_per_day


def _rows(connection: sqlite3.Connection) -> list[Row]:
    """Return all rows ever stored, by id: present ones and deleted ones (recorded by triggers, ``sim_disk.py``)."""
    columns = "id, state, reason, attempts, received_ms, settled_ms"
    present = [
        (*row, json.loads(body).get("messageId"))
        for *row, body in connection.execute(f"SELECT {columns}, body FROM events")
    ]
    deleted = connection.execute(f"SELECT {columns}, message_id FROM gone").fetchall()
    was_dead, replayed = (
        {event_id for (event_id,) in connection.execute(f"SELECT id FROM {ledger}")}
        for ledger in ("was_dead", "replayed")
    )
    rows = []
    for event_id, state, reason, attempts, received_ms, settled_ms, message_id in sorted(
        [*present, *map(_as_dropped, deleted)]
    ):
        number = None if message_id is None else int(message_id[1:])
        history = event_id in was_dead, event_id in replayed
        rows.append(Row(event_id, number, state, reason, attempts, received_ms, settled_ms, *history))
    assert len({row.id for row in rows}) == len(rows), "an id was given twice"
    return rows


def _as_dropped(deleted: tuple) -> tuple:
    """Return a row deleted while pending as dropped: it was deleted to free space."""
    event_id, state, _, *rest = deleted
    return (event_id, DROPPED, "outbox_full", *rest) if state < DELIVERED else deleted


def _check_counters(connection: sqlite3.Connection, world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 2: exactly four states, and counters that equal the rows."""
    counted = Counter({name: value for name, value in counters.items() if value})
    row_counts: Counter[str] = Counter()
    for row in rows:
        assert row.state in (DELIVERED, DROPPED, DEAD), f"event {row.id} is pending at the end"
        row_counts[
            {DELIVERED: "delivered", DROPPED: f"dropped:{row.reason}", DEAD: f"dead:{row.reason}"}[row.state]
        ] += 1
    for name in {name for name in counted if name.split(":")[0] in ("delivered", "dropped", "dead")} | set(row_counts):
        assert counted[name] == row_counts[name], (
            f"the counter {name} says {counted[name]}, the rows {row_counts[name]}"
        )
    total = sum(value for name, value in counted.items() if name.split(":")[0] in ("delivered", "dropped", "dead"))
    assert counted["accepted"] == total, f"accepted {counted['accepted']}, and {total} have a final state"
    assert total == len(rows), f"{total} counted, {len(rows)} rows"
    users = connection.execute("SELECT count(*) FROM users").fetchone()[0]
    assert counted["users"] == users, f"{counted['users']} users counted, {users} are remembered"
    assert not counted["pending_normal"]
    assert not counted["pending_high"]
    dead = dict(connection.execute("SELECT reason, count(*) FROM dead GROUP BY reason"))
    assert {f"dead:{reason}": count for reason, count in dead.items()} == {
        name: count for name, count in row_counts.items() if name.startswith("dead:")
    }
    assert connection.execute("SELECT count(*) FROM retries").fetchone() == (0,), "failures of settled events remain"


def _check_accepted(world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 1: every answered event is stored once, and no other event exists."""
    numbers = defaultdict(list)
    for row in rows:
        if row.number is not None:
            numbers[row.number].append(row)
    for stored in numbers.values():
        for earlier, later in pairwise(stored):
            _check_stored_again(world, earlier, later)
    assert numbers.keys() <= world.sent.keys()
    forgotten = {number for number, event in world.sent.items() if event.user in world.forgotten}
    lost = [number for number in world.answered if number not in numbers and number not in forgotten]
    assert not lost, f"answered and lost: numbers {lost}"
    ids_by_number = {number: stored[0].id for number, stored in numbers.items() if len(stored) == 1}
    for order in world.answer_orders:
        ids = [ids_by_number[number] for number in order if number in ids_by_number and number not in world.repeated]
        assert ids == sorted(ids), f"a client's events were stored in another order: {order}"


def _check_stored_again(world: World, earlier: Row, later: Row) -> None:
    """A duplicate is recognized for ``keep_ids``, and for as long as its event is pending or dead."""
    after_s = world.accepted_s[later.id] - world.accepted_s[earlier.id]
    what = f"event {later.id} repeats {earlier.id}, which was received {after_s} s before"
    # Ids are stored with whole seconds.
    assert world.stepped or after_s > world.config.outbox.keep_ids - 1, what
    world.coverage["stored again"] += 1
    was_settled = world.settled_s[earlier.id] <= world.accepted_s[later.id]
    assert earlier.state != DEAD, what
    assert world.stepped or was_settled, f"{what} and settled later"


def _check_outcomes(world: World, rows: list[Row]) -> None:
    """Each final state is explained by the answers of PX or by the event itself."""
    px = world.px
    for row in rows:
        if row.number is None:
            assert (row.state, row.reason) in ((DROPPED, "forgotten"),), row
            continue
        event, answers = world.sent[row.number], px.answered[row.id]
        what = f"event {row.id} ({event}) is {row.state} {row.reason}; PX answered {dict(answers)}"
        refused_for = {"refused": "refused", "firewall": "firewall"}
        if row.state == DELIVERED:
            people = event.kind in ("identify", "group")
            assert people or px.stored[row.number], f"never reached PX: {what}"
            assert px.last_call[row.id] in ("201", "204"), what
        elif row.state == DROPPED:
            expected = {"no_user": "no_user", "alias": "not_supported", "opted_out": "opted_out"}.get(event.kind)
            expected = "remembered" if event.kind in ("identify", "group") else expected
            if row.reason == "moved":
                assert row.id in world.moved, what
                continue
            full = "outbox_full" if world.config.outbox.when_full == "drop_oldest" else "discarded"
            assert row.reason in (expected, "discarded", full), what
            assert row.reason != "discarded" or row.was_dead, what
            # If upserts were turned off in between, an earlier request of the call may have no answer.
            turned_off = row.reason == "remembered" and world.scenario.changes_people
            assert row.reason in ("discarded", full) or turned_off or not answers, what
        elif row.reason in refused_for:
            minimum = 3 if row.reason == "firewall" else 1
            assert answers[refused_for[row.reason]] >= minimum, what
        elif row.reason in ("bad_event", "mapping_error"):
            assert event.kind == "bad", what
            assert row.reason == "bad_event" or row.replayed, what
        elif row.reason == "too_old":
            assert any(world.max_ages), what
        else:
            raise AssertionError(what)
        if event.kind == "bad":
            assert row.state != DELIVERED, what


def _check_order(world: World, rows: list[Row]) -> None:
    """Promise 4: first arrivals per user and class in the order of acceptance, retries included."""
    if world.config.deliver.order == "none":
        return
    px, by_user = world.px, defaultdict(list)
    for row in rows:
        event = world.sent.get(row.number) if row.number is not None else None
        if event is not None and event.kind in ("identify", "group") and world.scenario.changes_people:
            continue  # it may have been settled with nothing to send before a crash undid that
        if event is not None and event.user and not row.replayed and row.id in px.first_seen:
            by_user[event.user, event.high].append((row, event))
    for key, events in by_user.items():
        latest, latest_id = -1, None
        for row, event in events:
            first = px.first_seen[row.id]
            assert first >= latest, f"event {row.id} of {key} came to PX before {latest_id} was there"
            if row.state == DELIVERED:
                # A refused event had its answer, even if a crash lost the settlement and PX accepted the event later.
                had_answer = event.kind in ("identify", "group") or px.answered[row.id].keys() & {"refused", "firewall"}
                stored = px.first_seen[row.id] if had_answer else px.first_stored[row.id]
                latest, latest_id = max(latest, stored), row.id


def _check_repeats(world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 5: a duplicate was in flight at a crash, or its answer was lost and counted."""
    in_flight: Counter[int] = Counter(event_id for end in world.ends for event_id in end.in_flight)
    allowed: Counter[int] = Counter()
    for row in rows:
        if row.number is not None:
            # Such an event was never settled by an answer: what PX has of it is explained by lost answers only.
            once = row.reason not in ("outbox_full", "moved")
            allowed[row.number] += once + world.px.ambiguous[row.id] + in_flight[row.id]
    for number, times in world.px.stored.items():
        if world.sent[number].user in world.forgotten:
            continue  # its row has no number any more
        explained = allowed[number]
        assert times <= explained, f"the event with number {number} was stored {times} times, {explained} explained"
    for end in world.ends:
        assert len(end.in_flight) <= end.max_in_flight
    stored_times = Counter(row.number for row in rows)
    duplicates = sum(max(0, times - max(1, stored_times[number])) for number, times in world.px.stored.items())
    unrecorded = sum(sum(end.unrecorded.values()) for end in world.ends)
    total = counters["ambiguous"] + sum(in_flight.values()) + unrecorded
    assert duplicates <= total, f"{duplicates} duplicates, {counters['ambiguous']} ambiguous and {total} explained"


def _check_ambiguous(world: World, counters: Counter[str]) -> None:
    """Promise 5: ambiguous outcomes are counted exactly; a count that is too high would excuse any duplicate."""
    if world.disk.coverage["ioerr_after"] or world.disk.coverage["busy"]:
        return  # a commit that reported an error but happened may be counted twice
    counted, lost = counters["ambiguous"], sum(world.px.ambiguous.values())
    assert counted <= lost, f"{counted} ambiguous counted, {lost} answers were lost"
    if not world.ends[:-1]:
        assert counted == lost, f"{counted} ambiguous counted, {lost} answers were lost, and nothing crashed"


def _check_ages(world: World, rows: list[Row]) -> None:
    """No event is dead as too old before it is that old."""
    if world.stepped:
        return  # a clock that stays wrong is believed after an hour
    least_s = min((max_age for max_age in world.max_ages if max_age), default=math.inf)
    for row in rows:
        if row.reason == "too_old" and row.id in world.too_old_s and not row.replayed:
            age_s = world.too_old_s[row.id]
            assert age_s >= least_s, f"event {row.id} was too old after {age_s} s"


def _check_pace(world: World) -> None:
    """Promise 3: never more than the ceiling in any half-open second, by the times of sending."""
    sent, first = world.px.sent, 0
    for last, (at_s, _) in enumerate(sent):
        while sent[first].at_s <= at_s - 1.0:
            first += 1
        allowed = max(1, math.floor(_most_in_force(world.ceilings, sent[first].at_s, at_s)))
        assert last - first + 1 <= allowed, (
            f"{last - first + 1} requests in the second before {at_s}, {allowed} allowed"
        )


def _most_in_force(limits: Sequence[tuple[float, float]], from_s: float, until_s: float) -> float:
    """Return the largest limit in force at any time in [from_s, until_s]; each holds until the next one."""
    ends_s = [*(since_s for since_s, _ in limits[1:]), math.inf]
    return max(
        limit for (since_s, limit), end_s in zip(limits, ends_s, strict=True) if since_s <= until_s and end_s >= from_s
    )


def _check_day(world: World, rows: list[Row]) -> None:
    """Promise 3: never more than the quota in force, in any 24 hours or in the calendar day.

    A normal event is never sent from the part reserved for high events.
    """
    calendar = world.config.deliver.day == "utc"
    if world.stepped and (calendar or world.boots > 1):
        return  # no clock measures the day then
    normal = {row.id for row in rows if row.number is not None and not world.sent[row.number].high}
    sent, first = world.px.sent, 0
    for last, (at_s, event_id) in enumerate(sent):
        begins_s = (
            at_s - (START_S + at_s - world.started_s) % DAY_S if calendar else math.nextafter(at_s - DAY_S, math.inf)
        )
        while sent[first].at_s < begins_s:
            first += 1
        allowed = _most_in_force(world.normal_days if event_id in normal else world.days, at_s, at_s)
        assert last - first + 1 <= allowed, f"{last - first + 1} requests in the day before {at_s}, {allowed} allowed"


def _check_memory(connection: sqlite3.Connection, world: World, rows: list[Row]) -> None:
    """The remembered account of a user is that of the last accepted group call, whatever became of the call."""
    if world.config.identity.max_users < 1_000_000:
        return
    for (product, user), calls in _group_calls(world, rows).items():
        found = connection.execute(
            "SELECT account FROM users WHERE property_key = ? AND user = ?", (product, user)
        ).fetchone()
        account, expected = found and found[0], f"g{calls[-1].number}"
        assert account == expected, (
            f"account {account} of {user} in {product} is remembered, {expected} was accepted last"
        )


def _check_accounts(world: World, rows: list[Row]) -> None:
    """Each event at PX carries the account of its user's last group call accepted before it, whenever it is sent."""
    if world.config.identity.max_users < 1_000_000:
        return  # the memory of the user may have been evicted before the event was accepted
    group_calls = _group_calls(world, rows)
    events = {row.id: world.sent[row.number] for row in rows if row.number is not None}
    for arrival in world.px.arrivals:
        event = events.get(arrival.event_id)
        if not arrival.is_event or event is None or event.user in world.forgotten:
            continue
        earlier = [row for row in group_calls.get((event.product, event.user or ""), ()) if row.id < arrival.event_id]
        expected = f"g{earlier[-1].number}" if earlier else None
        world.coverage["account known"] += expected is not None
        what = f"event {arrival.event_id} came with account {arrival.account}, {expected} held when it was accepted"
        assert arrival.account == expected, what


def _group_calls(world: World, rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the accepted group calls by product and user, in the order of acceptance."""
    calls: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        event = world.sent[row.number] if row.number is not None else None
        if event is not None and event.kind == "group" and event.user and event.user not in world.forgotten:
            calls[event.product, event.user].append(row)
    return calls

"""The account after a run: what the file says, what the clients were told and what PX got must agree to the last event."""

import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sim_world import World

from sidecar.mapping import Known

__all__ = ["check"]

DELIVERED, DROPPED, DEAD = 4, 5, 6
DAY_S, START_S = 86_400.0, 1_700_000_000.0


class Row(NamedTuple):
    id: int
    number: int | None  # None: the body is gone, its user was forgotten
    state: int
    reason: str | None
    attempts: int | None
    received_ms: int
    settled_ms: int | None  # None: deleted as it was
    was_dead: bool
    replayed: bool


def check(world: World) -> None:
    """Raises AssertionError with what does not agree."""
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
    assert not world.wrong, f"{len(world.wrong)} times in the moment itself: {world.wrong[:5]}"
    world.met.update({name: value for name, value in counters.items() if name.startswith(("dead:", "dropped:"))})
    world.met["duplicates"] += sum(times - 1 for times in world.px.stored.values())
    world.met["ambiguous"] += counters["ambiguous"]
    world.met["quota spent"] += len(world.px.sent) > world.scenario.least_per_day


def _rows(connection: sqlite3.Connection) -> list[Row]:
    """All that was ever stored, in the order of ids: what is there, and what was deleted (``sim_disk.py``)."""
    columns = "id, state, reason, attempts, received_ms, settled_ms"
    there = [
        (*row, json.loads(body).get("messageId"))
        for *row, body in connection.execute(f"SELECT {columns}, body FROM events")
    ]
    gone = connection.execute(f"SELECT {columns}, message_id FROM gone").fetchall()
    was_dead, replayed = (
        {one for (one,) in connection.execute(f"SELECT id FROM {ledger}")} for ledger in ("was_dead", "replayed")
    )
    rows = []
    for one, state, reason, attempts, received_ms, settled_ms, message_id in sorted([*there, *map(_as_dropped, gone)]):
        number = None if message_id is None else int(message_id[1:])
        found = one in was_dead, one in replayed
        rows.append(Row(one, number, state, reason, attempts, received_ms, settled_ms, *found))
    assert len({row.id for row in rows}) == len(rows), "an id was given twice"
    return rows


def _as_dropped(gone: tuple) -> tuple:
    """What was deleted while it was pending made room."""
    one, state, _, *rest = gone
    return (one, DROPPED, "outbox_full", *rest) if state < DELIVERED else gone


def _check_counters(connection: sqlite3.Connection, world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 2: exactly four states, and counters that say the same as the rows."""
    said = Counter({name: value for name, value in counters.items() if value})
    of_rows: Counter[str] = Counter()
    for row in rows:
        assert row.state in (DELIVERED, DROPPED, DEAD), f"event {row.id} is pending at the end"
        of_rows[{DELIVERED: "delivered", DROPPED: f"dropped:{row.reason}", DEAD: f"dead:{row.reason}"}[row.state]] += 1
    for name in {name for name in said if name.split(":")[0] in ("delivered", "dropped", "dead")} | set(of_rows):
        assert said[name] == of_rows[name], f"the counter {name} says {said[name]}, the rows {of_rows[name]}"
    total = sum(value for name, value in said.items() if name.split(":")[0] in ("delivered", "dropped", "dead"))
    assert said["accepted"] == total, f"accepted {said['accepted']}, and {total} have a final state"
    assert total == len(rows), f"{total} counted, {len(rows)} rows"
    users = connection.execute("SELECT count(*) FROM users").fetchone()[0]
    assert said["users"] == users, f"{said['users']} users counted, {users} are remembered"
    assert not said["pending_normal"]
    assert not said["pending_high"]
    dead = dict(connection.execute("SELECT reason, count(*) FROM dead GROUP BY reason"))
    assert {f"dead:{reason}": count for reason, count in dead.items()} == {
        name: count for name, count in of_rows.items() if name.startswith("dead:")
    }
    assert connection.execute("SELECT count(*) FROM retries").fetchone() == (0,), "failures of settled events remain"


def _check_accepted(world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 1: whatever was answered is there, once; nothing else was made up."""
    numbers = defaultdict(list)
    for row in rows:
        if row.number is not None:
            numbers[row.number].append(row)
    for stored in numbers.values():
        for earlier, later in pairwise(stored):
            _check_stored_again(world, earlier, later)
    assert numbers.keys() <= world.sent.keys()
    gone = {number for number, event in world.sent.items() if event.user in world.forgotten}
    lost = [number for number in world.answered if number not in numbers and number not in gone]
    assert not lost, f"answered and lost: numbers {lost}"
    place = {number: stored[0].id for number, stored in numbers.items() if len(stored) == 1}
    for order in world.in_order:
        ids = [place[number] for number in order if number in place and number not in world.repeated]
        assert ids == sorted(ids), f"a client's events were stored in another order: {order}"


def _check_stored_again(world: World, earlier: Row, later: Row) -> None:
    """A repeat is recognised for as long as is promised, and longer while its event is pending or dead."""
    what = (
        f"event {later.id} repeats {earlier.id}, which was received {later.received_ms - earlier.received_ms} ms before"
    )
    assert world.stepped or later.received_ms - earlier.received_ms > world.config.outbox.keep_ids * 1000, what
    world.met["stored again"] += 1
    was_settled = earlier.settled_ms is None or earlier.settled_ms <= later.received_ms
    assert earlier.state != DEAD, what
    assert world.stepped or was_settled, f"{what} and settled later"


def _check_outcomes(world: World, rows: list[Row]) -> None:
    """Each final state has a reason that the model of PX, or the event itself, gives."""
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
            # Where people were turned off meanwhile, what was sent of a call before may have got no answer.
            turned_off = row.reason == "remembered" and world.scenario.changes_people
            assert row.reason in ("discarded", full) or turned_off or not answers, what
        elif row.reason in refused_for:
            least = 3 if row.reason == "firewall" else 1
            assert answers[refused_for[row.reason]] >= least, what
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
    px, turns = world.px, defaultdict(list)
    for row in rows:
        event = world.sent.get(row.number) if row.number is not None else None
        if event is not None and event.kind in ("identify", "group") and world.scenario.changes_people:
            continue  # it may have had its turn, with nothing to send, before a crash took that back
        if event is not None and event.user and not row.replayed and row.id in px.first_seen:
            turns[event.user, event.high].append((row, event))
    for turn, found in turns.items():
        done, who = -1, None
        for row, event in found:
            first = px.first_seen[row.id]
            assert first >= done, f"event {row.id} of {turn} came to PX before {who} was there"
            if row.state == DELIVERED:
                # One that PX refused had its answer; that it was lost in a crash and PX then took it is another matter.
                had_answer = event.kind in ("identify", "group") or px.answered[row.id].keys() & {"refused", "firewall"}
                stored = px.first_seen[row.id] if had_answer else px.first_stored[row.id]
                done, who = max(done, stored), row.id


def _check_repeats(world: World, rows: list[Row], counters: Counter[str]) -> None:
    """Promise 5: a duplicate was in flight at a crash, or its answer was lost and counted."""
    in_flight: Counter[int] = Counter(one for end in world.ends for one in end.in_flight)
    allowed: Counter[int] = Counter()
    for row in rows:
        if row.number is not None:
            # Never one in flight: what PX has of it must have been lost on the way.
            once = row.reason not in ("outbox_full", "moved")
            allowed[row.number] += once + world.px.ambiguous[row.id] + in_flight[row.id]
    for number, times in world.px.stored.items():
        if world.sent[number].user in world.forgotten:
            continue  # which event it was cannot be told any more
        explained = allowed[number]
        assert times <= explained, f"the event with number {number} was stored {times} times, {explained} explained"
    for end in world.ends:
        assert len(end.in_flight) <= end.max_in_flight
    events = Counter(row.number for row in rows)
    duplicates = sum(max(0, times - max(1, events[number])) for number, times in world.px.stored.items())
    not_noted = sum(sum(end.not_noted.values()) for end in world.ends)
    most = counters["ambiguous"] + sum(in_flight.values()) + not_noted
    assert duplicates <= most, f"{duplicates} duplicates, {counters['ambiguous']} ambiguous and {most} explained"


def _check_ambiguous(world: World, counters: Counter[str]) -> None:
    """Promise 5 counts what may be a duplicate; a count that is too high would allow any number of them."""
    if world.disk.met["ioerr_after"] or world.disk.met["busy"]:
        return  # a commit that failed and happened may be counted again
    counted, lost = counters["ambiguous"], sum(world.px.ambiguous.values())
    assert counted <= lost, f"{counted} ambiguous counted, {lost} answers were lost"
    if not world.ends[:-1]:
        assert counted == lost, f"{counted} ambiguous counted, {lost} answers were lost, and nothing crashed"


def _check_ages(world: World, rows: list[Row]) -> None:
    """Nothing is given up as too old before it is."""
    if world.stepped or world.boots > 1:
        return  # its age is not the time that passed here
    least_ms = min((max_age for max_age in world.max_ages if max_age), default=math.inf) * 1000
    for row in rows:
        if row.reason == "too_old" and row.settled_ms is not None and not row.replayed:
            age_ms = row.settled_ms - row.received_ms
            assert age_ms >= least_ms, f"event {row.id} was too old after {age_ms} ms"


def _check_pace(world: World) -> None:
    """Promise 3: never more than the ceiling in any half-open second, by the times of sending."""
    sent, first = world.px.sent, 0
    for last, (at_s, _) in enumerate(sent):
        while sent[first].at_s <= at_s - 1.0:
            first += 1
        most = max(1, math.floor(_most_in_force(world.ceilings, sent[first].at_s, at_s)))
        assert last - first + 1 <= most, f"{last - first + 1} requests in the second before {at_s}, {most} allowed"


def _most_in_force(limits: Sequence[tuple[float, float]], from_s: float, until_s: float) -> float:
    """The largest of the limits that held at some moment between these; each holds until the next one."""
    ends_s = [*(since_s for since_s, _ in limits[1:]), math.inf]
    return max(
        limit for (since_s, limit), end_s in zip(limits, ends_s, strict=True) if since_s <= until_s and end_s >= from_s
    )


def _check_day(world: World, rows: list[Row]) -> None:
    """Promise 3: never more than the quota that is in force, in any 24 hours or in the calendar day.

    A normal event never goes when only what is reserved for high ones is left.
    """
    calendar = world.config.deliver.day == "utc"
    if world.stepped and (calendar or world.boots > 1):
        return  # no clock can tell then
    normal = {row.id for row in rows if row.number is not None and not world.sent[row.number].high}
    sent, first = world.px.sent, 0
    for last, (at_s, event_id) in enumerate(sent):
        begins_s = (
            at_s - (START_S + at_s - world.started_s) % DAY_S if calendar else math.nextafter(at_s - DAY_S, math.inf)
        )
        while sent[first].at_s < begins_s:
            first += 1
        most = _most_in_force(world.normal_days if event_id in normal else world.days, at_s, at_s)
        assert last - first + 1 <= most, f"{last - first + 1} requests in the day before {at_s}, {most} allowed"


def _check_memory(connection: sqlite3.Connection, world: World, rows: list[Row]) -> None:
    """What is remembered of a user is what the last group call said; without order it is what was settled last."""
    if world.config.deliver.order == "none" or world.config.identity.max_users < 1_000_000:
        return
    last: dict[tuple[str, str], Row] = {}
    doubtful: set[tuple[str, str]] = set()
    for row in rows:
        event = world.sent.get(row.number) if row.number is not None else None
        if event is None or not event.user or event.kind != "group":
            continue
        last[event.product, event.user] = row
        # A call that was refused was never remembered, or later than in its turn; a discarded row was refused before.
        if row.replayed or row.state == DEAD or row.reason in ("discarded", "outbox_full", "moved"):
            doubtful.add((event.product, event.user))
    for (product, user), row in last.items():
        if user in world.forgotten or (product, user) in doubtful:
            continue
        found = connection.execute(
            "SELECT known FROM users WHERE property_key = ? AND user = ?", (product, user)
        ).fetchone()
        known = Known.decode(found[0]) if found else None
        what = f"of {user} in {product} {known} is remembered, g{row.number} was said last"
        assert known is not None, what
        assert known.account_id == f"g{row.number}", what


def _check_accounts(world: World, rows: list[Row]) -> None:
    """What PX gets of a user comes with his account: the one of his last group call that was settled, or a later one.

    A group call that is not settled yet may be overtaken, as it is of another class than most events.
    """
    if world.config.deliver.order == "none" or world.config.identity.max_users < 1_000_000 or world.stepped:
        return  # nobody can tell then which was the last
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    of_row: dict[int, tuple[str, str]] = {}
    for row in rows:
        event = world.sent.get(row.number) if row.number is not None else None
        if event is None or not event.user or event.user in world.forgotten:
            continue
        of_row[row.id] = event.product, event.user
        if event.kind == "group":
            groups[event.product, event.user].append(row)
    for arrival in world.px.arrivals:
        if not arrival.is_event or arrival.event_id not in of_row:
            continue
        of_user = groups[of_row[arrival.event_id]]
        if any(row.replayed for row in of_user):
            continue
        at_ms = (START_S + arrival.at_s - world.started_s) * 1000
        known = [row.id for row in of_user if _is_remembered(row) and row.settled_ms < at_ms - 1]
        if not known:
            continue
        world.met["account known"] += 1
        may_be = [f"g{row.number}" for row in of_user if row.id >= max(known)]
        what = f"event {arrival.event_id} came with account {arrival.account}, one of {may_be} expected"
        assert arrival.account in may_be, what


def _is_remembered(row: Row) -> bool:
    """Whether a group call came to its end so that it counts."""
    return row.settled_ms is not None and (row.state == DELIVERED or row.reason == "remembered")

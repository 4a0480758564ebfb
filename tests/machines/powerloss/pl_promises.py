"""The promises made before a cut, and the check that an outbox opened after it keeps them.

Rules
-----
* An answered event is stored once, with exactly its bytes, in one of the four states.
* Its state is the last confirmed one, or one requested since: an unconfirmed commit may or may not be on disk.
  Housekeeping prunes history and discards old dead letters without confirmation. The counters prove that such rows are
  pruned and not lost: accepted = pending + delivered + dropped + dead, each equal to its rows or, if rows may be pruned,
  not smaller.
* Opening reports no damage, SQLite's integrity check passes, and the outbox continues: a pending or dead event sent again
  is recognized, a new event is stored.
"""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path

from pl_events import event_of, is_bad, number_of
from pl_trace import Op

from sidecar.outbox import EventState, Store, open_outbox

__all__ = ["Broken", "Promises", "check"]

ABSENT, GONE = "absent", "gone"
RECOGNIZED = 40  # events sent again in each check


class Broken(AssertionError):
    """A promise is broken."""


class Promises:
    """The possible states of every event: the last confirmed one and those requested since, in order."""

    def __init__(self) -> None:
        self.possible: dict[int, tuple[str, ...]] = {}
        self.requested_note = self.noted = 0

    def record(self, op: Op) -> None:
        """Record a line that the program printed."""
        if op.kind != "print":
            return
        what, *rest = op.text.split()
        match what:
            case "note":
                self.requested_note = int(rest[0])
            case "noted":
                self.noted = int(rest[0])
            case "submit":
                for number in map(int, rest):
                    self.possible.setdefault(number, (ABSENT, "dead" if is_bad(number) else "pending"))
            case "answer":
                for number in map(int, rest):
                    self.possible[number] = tuple(state for state in self.possible[number] if state != ABSENT)
            case "request":
                for number in map(int, rest[1:]):
                    self.possible[number] += (rest[0],)
            case "confirm":
                for number in map(int, rest[1:]):
                    states = self.possible[number]  # a later request may be printed before an earlier confirmation
                    self.possible[number] = states[len(states) - 1 - states[::-1].index(rest[0]) :]
            case _:
                raise ValueError(f"the recorded program said {op.text!r}")

    def answered(self) -> int:
        """Return the number of events that must be stored."""
        return sum(ABSENT not in states for states in self.possible.values())

    def unanswered(self) -> list[int]:
        """The events that a client would send again."""
        return [number for number, states in self.possible.items() if ABSENT in states]

    def allowed(self, number: int) -> frozenset[str]:
        """The states in which an event may be found, housekeeping included."""
        states = frozenset(self.possible.get(number, (ABSENT,)))
        if "dead" in states:
            states |= {"dropped"}
        return states | {GONE} if states & {"delivered", "dropped"} else states


def check(folder: Path, promises: Promises) -> None:
    """Open the outbox in the folder as a start of the daemon does, and raise Broken for what is not as promised."""
    path = folder / "outbox.db"
    store = open_outbox(path, durability="disk")
    damage = f"it is reported as damaged: {store.notice}" if store.notice else ""
    with closing(store.connection):
        try:
            _check_opened(store, promises)
        except Broken as error:
            raise Broken(f"{damage} {error}".strip()) from error
    if damage:
        raise Broken(f"{damage} (All that was promised is there.)")


def _check_opened(store: Store, promises: Promises) -> None:
    _check_sound(store)
    states = _read_states(store)
    _check_events(states, promises)
    _check_counters(store, states)
    note = int(store.get_meta("powerloss") or 0)
    if not promises.noted <= note <= promises.requested_note:
        raise Broken(f"the note is {note}; {promises.noted} was confirmed, {promises.requested_note} requested")
    _check_continues(store, states, promises)
    _check_sound(store)


def _check_sound(store: Store) -> None:
    result = store.connection.execute("PRAGMA integrity_check").fetchall()
    if result != [("ok",)]:
        raise Broken(f"SQLite finds it damaged: {result[:3]}")


def _read_states(store: Store) -> dict[int, str]:
    """Return the state of every event that has a row."""
    states: dict[int, str] = {}
    for state, body in store.connection.execute("SELECT state, body FROM events"):
        number = number_of(body)
        if number in states:
            raise Broken(f"event {number} is stored twice")
        if bytes(body) != event_of(number).body:
            raise Broken(f"event {number} has another body than it was sent with")
        states[number] = "pending" if state < EventState.DELIVERED else EventState(state).name.lower()
    return states


def _check_events(states: dict[int, str], promises: Promises) -> None:
    for number in states.keys() - promises.possible.keys():
        raise Broken(f"event {number} is stored, but was never sent")
    broken = []
    for number, possible in promises.possible.items():
        state = states.get(number, GONE if ABSENT not in possible else ABSENT)
        allowed = promises.allowed(number)
        if state not in allowed and not (state == ABSENT and GONE in allowed):
            broken.append(f"event {number} is {'lost' if state == GONE else state} and should be {_words(allowed)}")
    if broken:
        raise Broken(f"{len(broken)} of {promises.answered()} answered events: " + "; ".join(broken[:3]))


def _words(states: frozenset[str]) -> str:
    return " or ".join(sorted(states - {GONE, ABSENT})) or "absent"


def _check_counters(store: Store, states: dict[int, str]) -> None:
    counted: Counter[str] = Counter()
    for name, value in store.counters.items():
        counted[name.split(":")[0].split("_")[0]] += value
    rows = Counter(states.values())
    kept = counted["delivered"] + counted["dropped"]
    pruned = kept - rows["delivered"] - rows["dropped"]
    figures = f"counters {json.dumps(dict(store.counters), sort_keys=True)}, rows {dict(rows)}"
    if counted["accepted"] != counted["pending"] + kept + counted["dead"]:
        raise Broken(f"accepted is not pending + delivered + dropped + dead: {figures}")
    if counted["pending"] != rows["pending"] or counted["dead"] != rows["dead"]:
        raise Broken(f"the counters are not the rows: {figures}")
    if pruned < 0 or counted["delivered"] < rows["delivered"] or counted["dropped"] < rows["dropped"]:
        raise Broken(f"there are more rows than were ever counted: {figures}")
    letters = store.connection.execute("SELECT count(*) FROM dead JOIN events USING (id) WHERE state = 6").fetchone()[0]
    if letters != rows["dead"]:
        raise Broken(f"{letters} dead letters for {rows['dead']} dead events")


def _check_continues(store: Store, states: dict[int, str], promises: Promises) -> None:
    """Check that known events are recognized and a new one is stored."""
    known = [number for number, state in sorted(states.items()) if state in ("pending", "dead")][-RECOGNIZED:]
    new = max(promises.possible, default=0) + 1_000_000
    with store.transaction():
        repeated, new_result = store.accept(
            [[event_of(number) for number in known], [event_of(new)]], 1_800_000_000_000
        )
    if repeated.stored:
        raise Broken(f"{repeated.stored} of {len(known)} pending or dead events were not recognized when sent again")
    if new_result.stored != 1:
        raise Broken("a new event was treated as a duplicate")

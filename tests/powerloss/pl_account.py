"""What was promised before a cut, and whether an outbox that is opened after it keeps that.

Rules
-----
* An event that was answered is there, once, with exactly its bytes, in one of the four states.
* Its state is the last one that was told, or one that was asked for since: a commit nobody was told of may be on disk
  or not. History may be pruned, and old dead letters discarded, by housekeeping, which tells nobody; that those are
  really gone by that way, and not lost, the counters say: accepted = pending + delivered + dropped + dead, each equal
  to the rows there are or, where rows may be pruned, not less.
* Opening reports no damage, SQLite's own check finds none, and the outbox goes on: an event sent again is recognised as
  long as it is pending or dead, a new one is taken.
"""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path

from pl_events import event_of, is_bad, number_of
from pl_trace import Op

from sidecar.outbox import State, Store, open_outbox

__all__ = ["Account", "Broken", "check"]

ABSENT, GONE = "absent", "gone"
RECOGNISED = 40  # so many of the events that must be recognised are sent again


class Broken(AssertionError):
    """A promise was not kept."""


class Account:
    """Every event's possible states, by what was said until now: the last one told, and those asked for since, in order."""

    def __init__(self) -> None:
        self.possible: dict[int, tuple[str, ...]] = {}
        self.asked_note = self.noted = 0

    def hear(self, op: Op) -> None:
        """Something was said."""
        if op.kind != "say":
            return
        what, *rest = op.text.split()
        match what:
            case "note":
                self.asked_note = int(rest[0])
            case "noted":
                self.noted = int(rest[0])
            case "submit":
                for number in map(int, rest):
                    self.possible.setdefault(number, (ABSENT, "dead" if is_bad(number) else "pending"))
            case "answer":
                for number in map(int, rest):
                    self.possible[number] = tuple(one for one in self.possible[number] if one != ABSENT)
            case "ask":
                for number in map(int, rest[1:]):
                    self.possible[number] += (rest[0],)
            case "told":
                for number in map(int, rest[1:]):
                    states = self.possible[number]  # who asks next may be faster than who tells
                    self.possible[number] = states[len(states) - 1 - states[::-1].index(rest[0]) :]
            case _:
                raise ValueError(f"the recorded program said {op.text!r}")

    def answered(self) -> int:
        """How many events must be there."""
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


def check(folder: Path, account: Account) -> None:
    """Open the outbox in the folder as a start of the daemon does, and raise Broken for what is not as promised."""
    path = folder / "outbox.db"
    store = open_outbox(path, durability="disk")
    reported = f"it is reported as damaged: {store.notice}" if store.notice else ""
    with closing(store.connection):
        try:
            _check_opened(store, account)
        except Broken as error:
            raise Broken(f"{reported} {error}".strip()) from error
    if reported:
        raise Broken(f"{reported} (All that was promised is there.)")


def _check_opened(store: Store, account: Account) -> None:
    _check_sound(store)
    found = _found(store)
    _check_events(found, account)
    _check_counters(store, found)
    note = int(store.get_meta("powerloss") or 0)
    if not account.noted <= note <= account.asked_note:
        raise Broken(f"the note says {note}; {account.noted} was stored, {account.asked_note} asked for")
    _go_on(store, found, account)
    _check_sound(store)


def _check_sound(store: Store) -> None:
    verdict = store.connection.execute("PRAGMA integrity_check").fetchall()
    if verdict != [("ok",)]:
        raise Broken(f"SQLite finds it damaged: {verdict[:3]}")


def _found(store: Store) -> dict[int, str]:
    """The state of every event that there is a row of."""
    found: dict[int, str] = {}
    for state, body in store.connection.execute("SELECT state, body FROM events"):
        number = number_of(body)
        if number in found:
            raise Broken(f"event {number} is there twice")
        if bytes(body) != event_of(number).body:
            raise Broken(f"event {number} has another body than it had")
        found[number] = "pending" if state < State.DELIVERED else State(state).name.lower()
    return found


def _check_events(found: dict[int, str], account: Account) -> None:
    for number in found.keys() - account.possible.keys():
        raise Broken(f"event {number} is there, and was never sent")
    wrong = []
    for number, possible in account.possible.items():
        state = found.get(number, GONE if ABSENT not in possible else ABSENT)
        allowed = account.allowed(number)
        if state not in allowed and not (state == ABSENT and GONE in allowed):
            wrong.append(f"event {number} is {'lost' if state == GONE else state} and should be {_words(allowed)}")
    if wrong:
        raise Broken(f"{len(wrong)} of {account.answered()} answered events: " + "; ".join(wrong[:3]))


def _words(states: frozenset[str]) -> str:
    return " or ".join(sorted(states - {GONE, ABSENT})) or "absent"


def _check_counters(store: Store, found: dict[int, str]) -> None:
    counted: Counter[str] = Counter()
    for name, value in store.counters.items():
        counted[name.split(":")[0].split("_")[0]] += value
    rows = Counter(found.values())
    kept = counted["delivered"] + counted["dropped"]
    gone = kept - rows["delivered"] - rows["dropped"]
    figures = f"counters {json.dumps(dict(store.counters), sort_keys=True)}, rows {dict(rows)}"
    if counted["accepted"] != counted["pending"] + kept + counted["dead"]:
        raise Broken(f"accepted is not pending + delivered + dropped + dead: {figures}")
    if counted["pending"] != rows["pending"] or counted["dead"] != rows["dead"]:
        raise Broken(f"the counters are not the rows: {figures}")
    if gone < 0 or counted["delivered"] < rows["delivered"] or counted["dropped"] < rows["dropped"]:
        raise Broken(f"there are more rows than were ever counted: {figures}")
    letters = store.connection.execute("SELECT count(*) FROM dead JOIN events USING (id) WHERE state = 6").fetchone()[0]
    if letters != rows["dead"]:
        raise Broken(f"{letters} dead letters for {rows['dead']} dead events")


def _go_on(store: Store, found: dict[int, str], account: Account) -> None:
    """Known events are recognised, a new one is stored."""
    known = [number for number, state in sorted(found.items()) if state in ("pending", "dead")][-RECOGNISED:]
    new = max(account.possible, default=0) + 1_000_000
    with store.transaction():
        again, fresh = store.accept([[event_of(number) for number in known], [event_of(new)]], 1_800_000_000_000)
    if again.stored:
        raise Broken(f"{again.stored} of {len(known)} pending or dead events were not recognised when sent again")
    if fresh.stored != 1:
        raise Broken("a new event was taken for a repeated one")

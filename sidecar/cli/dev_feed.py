"""The live feed of ``dev``: one line per event, and in plain words what PX would refuse or never get.

An event that is settled at once has one line, its outcome. An event that is not gets a line after ``PATIENCE_S`` that
says what it waits for, and its outcome later.
"""

from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from sidecar.cli.screen import local_time, printable

__all__ = ["PATIENCE_S", "DevFeed"]

PATIENCE_S: Final = 1.0
OPEN_MAX: Final = 10_000  # accepted events that are watched; those beyond it have a line when they are settled

COLORS = {"delivered": "green", "dead": "red", "refused": "red", "waiting": "yellow", "dropped": "cyan"}

# Codes and reasons in the words of a developer; what PX itself answered is in the record's detail.
ADVICE = {
    "no_user": "PX keeps events of known users only; give the call a userId",
    "unmapped": "mapping.unmapped = drop leaves out names without a rule",
    "remembered": "nothing to send by itself: it is kept for this user's later events",
    "not_supported": "PX has no counterpart of an alias call",
    "opted_out": "the call's integrations switch Gainsight PX off",
    "refused": "PX would refuse it",
    "firewall": "a web firewall before PX would refuse it",
    "mapped_to_nothing": "mapping.events maps this name to nothing",
    "filtered": "an entry of [[mapping.drop]] leaves it out",
    "sampled": "the event's `sample` leaves out this user",
    "capped": "the event's per_day is reached",
    "no_consent": "the user refuses a category of mapping.consent",
    "suppressed": "the user was forgotten for good",
}


Key = tuple[str, str]  # message id and name: one of them alone may be that of several events


class DevFeed:
    """Turns records of the feed into lines. ``now_s`` is a monotonic clock; ``why_waiting`` names what delivery waits for."""

    def __init__(self, write: Callable[[str], None], now_s: Callable[[], float], *, payloads: bool) -> None:
        self._write = write
        self._now_s = now_s
        self._payloads = payloads
        self._open: dict[Key, tuple[float, str]] = {}
        self._settled_keys: dict[Key, None] = {}

    def show(self, record: dict[str, Any], changes: list[dict[str, str]] | None = None) -> None:
        """Write the lines of a record; ``changes`` are the values that the mapping cut or left out."""
        what = str(record.get("what", ""))
        if "missed" in record:
            self._write(f"… {record['missed']} records skipped: this terminal is too slow")
        elif what == "accepted":
            # A rule may settle an event before its request is answered, and only the answer is reported as accepted. So is
            # that of a call which is repeated: nothing of it waits once the first one is settled.
            if _key(record) not in self._settled_keys and len(self._open) < OPEN_MAX:
                self._open[_key(record)] = (self._now_s(), _subject(record))
        elif what == "retry":
            # The first failure is shown at once; further ones of the same event add nothing that the developer can use.
            if self._open.pop(_key(record), None):
                self._line("waiting", record, f"on disk, and sent again: {record.get('detail', '')}")
        elif what:
            self._open.pop(_key(record), None)
            self._note_settled(_key(record))
            self._settled(what, record, changes or [])

    def is_waiting(self) -> bool:
        """Return whether ``show_waiting`` has something to write."""
        return bool(self._open) and next(iter(self._open.values()))[0] <= self._now_s() - PATIENCE_S

    def show_waiting(self, why: str, at: str) -> None:
        """Write a line for each event that was accepted ``PATIENCE_S`` ago and has no outcome."""
        before_s = self._now_s() - PATIENCE_S
        # In order of acceptance, so the first young one ends the search.
        while self._open and (oldest := next(iter(self._open.items())))[1][0] <= before_s:
            del self._open[oldest[0]]
            self._write(
                f"{local_time(at)} {_styled('waiting')} {oldest[1][1]}  on disk, and sent later: {printable(why)}"
            )

    def _note_settled(self, key: Key) -> None:
        """Keep what identifies an event whose acceptance may be reported later, or again; the oldest go."""
        self._settled_keys[key] = None
        if len(self._settled_keys) > OPEN_MAX:
            del self._settled_keys[next(iter(self._settled_keys))]

    def _settled(self, what: str, record: dict[str, Any], changes: list[dict[str, str]]) -> None:
        reason, detail = record.get("reason", ""), record.get("detail", "")
        advice = ADVICE.get(reason, "" if detail else reason)
        said = [text for text in (advice, detail) if text]
        said += [f"PX answered {record['status']}"] if what == "delivered" and "status" in record else []
        said += [f"at attempt {record['attempts']}"] if record.get("attempts", 1) > 1 else []
        self._line(what, record, ": ".join(said) if what != "delivered" else ", ".join(said))
        for change in changes:
            self._write(
                f"    as PX would not take it otherwise: {printable(change['field'])} {printable(change['what'])}"
            )

    def _line(self, what: str, record: dict[str, Any], said: str) -> None:
        body = record.get("payload", record.get("event"))
        text = f"{local_time(record['at'])} {_styled(what)} {_subject(record)}  {printable(said)}".rstrip()
        payload = "" if body is None else printable(msgspec.json.encode(body).decode())
        if payload and self._payloads:
            self._write(f"{text}\n    {payload}")
        else:
            self._write(f"{text}  {payload}".rstrip())


def _styled(what: str) -> str:
    return click.style(f"{what:<9}", fg=COLORS.get(what))


def _key(record: dict[str, Any]) -> Key:
    return record.get("messageId", ""), record.get("name", "")


def _subject(record: dict[str, Any]) -> str:
    name = printable(record.get("name", "")) or ("a request" if record.get("what") == "refused" else "(no name)")
    return name + (f" of {printable(record['user'])}" if "user" in record else "")

"""Paths into an event, and the ordered list of paths that gives one PX field its value.

Rules
-----
* A path is keys joined by dots: ``context.traits.account_id``. If an object has the rest of the path as a single key
  (``{"properties": {"plan.name": 1}}`` for ``properties.plan.name``), that key is read.
* A path that begins with ``=`` is a constant: ``=production``.
* Paths are compiled once; a compiled path is a function from the event to a value, None if there is no value.
"""

from collections.abc import Callable
from operator import methodcaller
from typing import Any

import msgspec

from sidecar.mapping.dates import CLOCK_SET_MS, is_implausible_ms, to_epoch_ms
from sidecar.mapping.model import Change
from sidecar.mapping.values import as_text

__all__ = ["DEFAULT_PATHS", "Field", "Read", "compile_path", "report_no_text"]

Read = Callable[[dict[str, Any]], Any]

# sidecar/mapping/README.md#fields. A page call additionally reads its `url` from `properties.url`; see `rules`.
DEFAULT_PATHS: dict[str, tuple[str, ...]] = {
    "identifyId": ("userId",),
    "accountId": ("context.groupId", "context.traits.account_id", "traits.account_id"),
    "date": ("timestamp", "originalTimestamp"),
    "sessionId": ("context.session.id", "context.sessionId"),
    "url": ("context.page.url",),
    "referrer": ("context.page.referrer",),
}


def _is_own_key(path: str) -> bool:
    """Return True for a key of the call itself, which can be set without a change of the app's data."""
    return "." not in path and not path.startswith("=")


def report_no_text(field: str, path: str, value: Any, changes: list[Change]) -> None:
    """Report a value that is left out because it is neither a text nor a number; a blank text does not count as a value."""
    if not isinstance(value, str):
        kind = {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), "not a number of 1,024 bits")
        changes.append(Change(field, f"{path} left out: {kind}, neither text nor number"))


def compile_path(path: str) -> Read:
    """Return the function that reads ``path`` from an event."""
    if path.startswith("="):
        constant = path[1:]
        return lambda event: constant  # noqa: ARG005 - the value is the same for every event
    head, dot, rest = path.partition(".")
    if not dot:
        return methodcaller("get", path)
    read_rest = compile_path(rest)

    def read(event: dict[str, Any]) -> Any:
        # The dotted key first: an app that flattens its own objects means that key, not a nested one. Null is not a value.
        if (dotted := event.get(path)) is not None:
            return dotted
        child = event.get(head)
        return read_rest(child) if type(child) is dict else None

    return read


class Field(msgspec.Struct, frozen=True):
    """The paths of one PX field in order, and one reader for each.

    ``hashed_blanks`` are the digests of a blank text, which is not a value.
    """

    name: str
    paths: tuple[str, ...]
    reads: tuple[Read, ...]
    reject: frozenset[str] = frozenset()
    hashed_blanks: frozenset[str] = frozenset()

    def text(self, event: dict[str, Any], changes: list[Change] | None = None) -> str | None:
        """Return the first value that is a text or a number, as text; None if no path has one.

        A text in ``reject`` counts as no value, and is reported in ``changes``.
        """
        for read in self.reads:
            value = read(event)
            if value is None or (type(value) is str and value in self.hashed_blanks):
                continue
            if (text := as_text(value)) is not None:
                if text not in self.reject:
                    return text
                if changes is not None:
                    changes.append(Change(self.name, f"{self._path_of(read)} is not an id by identity.reject"))
            elif changes is not None:
                report_no_text(self.name, self._path_of(read), value, changes)
        return None

    def _path_of(self, read: Read) -> str:
        return self.paths[self.reads.index(read)]

    def one_of(self, event: dict[str, Any], allowed: frozenset[str], changes: list[Change]) -> str | None:
        """Return the first value that is one of ``allowed``, compared without case; None if no path has one.

        Another value before it is reported in ``changes``.
        """
        for read in self.reads:
            value = read(event)
            if type(value) is str and value.upper() in allowed:
                return value.upper()
            if value is not None and value != "":
                why = f"{self._path_of(read)} left out: not one of {', '.join(sorted(allowed))}"
                changes.append(Change(self.name, why))
        return None

    def ms(self, event: dict[str, Any], received_ms: int, changes: list[Change]) -> int:
        """Return the first readable date in epoch milliseconds, else ``received_ms``; report what was not usable."""
        for path, read in zip(self.paths, self.reads, strict=True):
            value = read(event)
            if value is None or value == "":
                continue
            date_ms = to_epoch_ms(value)
            if date_ms is None:
                changes.append(Change(self.name, f"{path} cannot be read as a time; the next path is used"))
            elif is_implausible_ms(date_ms, received_ms):
                # Stop here: later paths hold the time of the same clock, and that clock is wrong.
                changes.append(
                    Change(self.name, f"{path} is before 2000 or in the future; the time of receipt is used")
                )
                break
            else:
                return date_ms
        if received_ms < CLOCK_SET_MS:
            changes.append(Change(self.name, "the clock of this host was not set; 2020-01-01 is used"))
            return CLOCK_SET_MS
        return received_ms

    def has_own_date(self, event: dict[str, Any], received_ms: int) -> bool:
        """Return True if the event's own date is used, False if the time of receipt is."""
        given_ms = next((date_ms for read in self.reads if (date_ms := to_epoch_ms(read(event))) is not None), None)
        return given_ms is not None and not is_implausible_ms(given_ms, received_ms)

    def pinned(self, event: dict[str, Any], received_ms: int) -> dict[str, Any]:
        """Return the event so that ``ms`` gives the date of today for any later time of receipt.

        Where the time of receipt decides, it is written into the first key of the call that ``ms`` comes to, preferably
        one without a value. A date that only paths into the app's own data could give is left as it is.
        """
        if self.has_own_date(event, received_ms):
            return event
        free = unreadable = None  # the first key of the call without a value, and the first whose value is not a time
        for path, read in zip(self.paths, self.reads, strict=True):
            value = read(event)
            date_ms = to_epoch_ms(value)
            if date_ms is not None:
                # Paths behind an absurd date are not read: only a key up to this one can hold another.
                free = free or unreadable or (path if _is_own_key(path) else None)
                break
            if _is_own_key(path):
                if value is None or value == "":
                    free = free or path
                else:
                    unreadable = unreadable or path
        key = free or unreadable
        return event if key is None else event | {key: self.ms(event, received_ms, [])}

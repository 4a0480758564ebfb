"""Paths into an event, and the lists of them that give one PX field its value.

Rules
-----
* A path is keys joined by dots: ``context.traits.account_id``. Where an object has the rest of the path as one key
  (``{"properties": {"plan.name": 1}}`` for ``properties.plan.name``), that key is meant.
* A path that begins with ``=`` is itself the value: ``=production``.
* Paths are compiled once; a compiled path is a function from the event to a value, None where there is none.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.mapping.model import Change
from sidecar.mapping.values import as_text, is_absurd_ms, to_epoch_ms

__all__ = ["DEFAULT_PATHS", "Field", "Read", "compile_path"]

Read = Callable[[dict[str, Any]], Any]

# DESIGN 3; `url` of a page call also has `properties.url`, which the mapper knows.
DEFAULT_PATHS: dict[str, tuple[str, ...]] = {
    "identifyId": ("userId",),
    "accountId": ("context.groupId", "context.traits.account_id", "traits.account_id"),
    "date": ("timestamp", "originalTimestamp"),
    "sessionId": ("context.session.id", "context.sessionId"),
    "url": ("context.page.url",),
    "referrer": ("context.page.referrer",),
}


def compile_path(path: str) -> Read:
    """The function that reads ``path`` from an event."""
    if path.startswith("="):
        constant = path[1:]
        return lambda event: constant  # noqa: ARG005 - the value is the same for every event
    head, dot, rest = path.partition(".")
    if not dot:
        return lambda event: event.get(path)
    read_rest = compile_path(rest)

    def read(event: dict[str, Any]) -> Any:
        if path in event:
            return event[path]
        child = event.get(head)
        return read_rest(child) if type(child) is dict else None

    return read


class Field(msgspec.Struct, frozen=True):
    """The paths of one PX field, in order, with their readers."""

    name: str
    paths: tuple[str, ...]
    reads: tuple[Read, ...]

    def text(self, event: dict[str, Any]) -> str | None:
        """The first path's value that is a text or a number, as text; None if no path has one."""
        for read in self.reads:
            value = read(event)
            if value is not None and (text := as_text(value)) is not None:
                return text
        return None

    def one_of(self, event: dict[str, Any], allowed: frozenset[str]) -> str | None:
        """The first path's value that is one of ``allowed``, written in any case; None if no path has one."""
        for read in self.reads:
            value = read(event)
            if type(value) is str and value.upper() in allowed:
                return value.upper()
        return None

    def object(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The first path's value that is an object with something in it; None if no path has one."""
        for read in self.reads:
            value = read(event)
            if type(value) is dict and value:
                return value
        return None

    def ms(self, event: dict[str, Any], received_ms: int, changes: list[Change]) -> int:
        """The first readable date in epoch milliseconds, else ``received_ms``.

        A date that cannot be meant ends the search: the ones behind it in the list are the same clock's.
        """
        for path, read in zip(self.paths, self.reads, strict=True):
            value = read(event)
            if value is None or value == "":
                continue
            date_ms = to_epoch_ms(value)
            if date_ms is None:
                changes.append(Change(self.name, f"{path} cannot be read as a time: the next in line instead"))
            elif is_absurd_ms(date_ms, received_ms):
                changes.append(
                    Change(self.name, f"{path} is before 2000 or in the future: when it was received instead")
                )
                return received_ms
            else:
                return date_ms
        return received_ms

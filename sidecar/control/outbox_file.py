"""Take in an outbox file that no daemon uses: a rescued one, or one that is damaged or of an older version.

What can be read of it is copied into a temporary outbox beside it, as the recovery does; the file itself is not changed.
Its pending events are then exported from the copy as lines, and imported as from another host, but with their source: so
an event that is stored here already is recognized.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config import Config
from sidecar.control.export import exported_events, pending_pages
from sidecar.errors import Failed
from sidecar.mapping import Priority, compile_settings
from sidecar.outbox import Store, real_path
from sidecar.outbox.dead import DeadLetterFilter, retry
from sidecar.outbox.forget import suppression
from sidecar.outbox.recovery import MAGIC, disk_errors, recovery_is_unfinished
from sidecar.outbox.rescue import DAMAGED, IMPORTING
from sidecar.outbox.salvage import recognizes, salvage

__all__ = ["exported_lines", "is_outbox_file", "opened_copy"]


def is_outbox_file(file: Path) -> bool:
    """Return True if a file is an outbox or what damage has left of one, and not an export. Raises OSError."""
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    return start == MAGIC or (not start.lstrip().startswith(b"{") and recognizes(file))


@contextmanager
def opened_copy(config: Config, file: Path) -> Iterator[Store]:
    """Open a temporary copy of what can be read of ``file``; it is removed after the block.

    Raises Failed if the file is the outbox itself, if its events are here already, or if the copy cannot be written.
    """
    own = real_path(config)
    file = file.resolve()
    if own.exists() and file.samefile(own):
        raise Failed(f"{file} is the outbox of this configuration itself; name a rescued file.")
    if file.parent == own.parent and file.name.startswith(own.name + DAMAGED) and not recovery_is_unfinished(own):
        raise Failed(
            f"{file} was recovered when it was set aside, so its events are in the outbox {own} already; remove it when you "
            "no longer need it."
        )
    copy = file.with_name(file.name + IMPORTING)
    _remove(copy)  # what a crash has left of an earlier one is of no use
    try:
        try:
            with disk_errors(copy):
                salvage(file, copy, why="", progress=lambda: None)
                store = Store(copy, durability="process")
        except OSError as error:
            raise Failed(
                f"A temporary copy of {file} cannot be written ({error.strerror}); it needs about as much free space as the file."
            ) from error
        try:
            with disk_errors(copy):
                yield store
        finally:
            store.close()
    finally:
        _remove(copy)  # half a copy, too: it would keep the disk full


def _remove(copy: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            os.unlink(f"{copy}{suffix}")


def exported_lines(config: Config, store: Store, now_ms: int, *, dead: bool) -> Iterator[bytes]:
    """Yield the pending events of an opened copy as exported lines; with ``dead`` its dead letters as well."""
    settings = compile_settings(config, {}, store.source_products(), suppression(store))
    if dead:
        for reason in _dead_reasons(store):
            _make_pending(store, reason, now_ms, settings.mapper.priority_of)
    for rows in pending_pages(store):
        for _, line in exported_events(store, rows, settings):
            yield msgspec.json.encode(line)


def _dead_reasons(store: Store) -> list[str]:
    """Return the reasons of the dead letters that can be tried again: a bad event would be refused again here."""
    names = [name for name, count in store.counters.items() if name.startswith("dead:") and count]
    return [reason for name in names if (reason := name.removeprefix("dead:")) != "bad_event"]


def _make_pending(store: Store, reason: str, now_ms: int, priority_of: Callable[[dict[str, Any]], Priority]) -> None:
    after_id: int | None = 0
    while after_id is not None:
        with store.transaction():
            page = retry(
                store,
                DeadLetterFilter(reason=reason),
                now_ms,
                priority_of=priority_of,
                after_id=after_id,
            )
        after_id = page.next_after

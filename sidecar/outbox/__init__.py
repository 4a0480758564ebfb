"""The outbox: the only package that knows SQL. Events are stored here before they are answered, and settled here."""

from typing import TYPE_CHECKING

from sidecar import lazy_exports

if TYPE_CHECKING:
    from sidecar.outbox.accept_queue import WriteRequest
    from sidecar.outbox.capacity import Capacity, DiskFull, OutboxFull, StorageUnavailable
    from sidecar.outbox.classify import Via, new_event
    from sidecar.outbox.clock_trust import AgeScale, ClockTrust, load_clock_record
    from sidecar.outbox.committer import StoreFailed
    from sidecar.outbox.housekeeping import run_housekeeping
    from sidecar.outbox.lock import Lock, hold_lock, real_path, take_lock
    from sidecar.outbox.records import (
        Accepted,
        CapUse,
        EventState,
        Failure,
        NewEvent,
        Page,
        Remembered,
        Row,
        Settlement,
        hashed_values,
    )
    from sidecar.outbox.recovery import damage_marker, open_outbox
    from sidecar.outbox.retention import Retention
    from sidecar.outbox.store import PAGE_ROWS, Store
    from sidecar.outbox.writer import CommitListener, InlineRunner, Outbox, Runner, ThreadRunner

__all__ = [
    "PAGE_ROWS",
    "Accepted",
    "AgeScale",
    "CapUse",
    "Capacity",
    "ClockTrust",
    "CommitListener",
    "DiskFull",
    "EventState",
    "Failure",
    "InlineRunner",
    "Lock",
    "NewEvent",
    "Outbox",
    "OutboxFull",
    "Page",
    "Remembered",
    "Retention",
    "Row",
    "Runner",
    "Settlement",
    "StorageUnavailable",
    "Store",
    "StoreFailed",
    "ThreadRunner",
    "Via",
    "WriteRequest",
    "damage_marker",
    "hashed_values",
    "hold_lock",
    "load_clock_record",
    "new_event",
    "open_outbox",
    "real_path",
    "run_housekeeping",
    "take_lock",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "accept_queue": ("WriteRequest",),
        "capacity": ("Capacity", "DiskFull", "OutboxFull", "StorageUnavailable"),
        "classify": ("Via", "new_event"),
        "clock_trust": ("AgeScale", "ClockTrust", "load_clock_record"),
        "committer": ("StoreFailed",),
        "lock": ("Lock", "hold_lock", "real_path", "take_lock"),
        "housekeeping": ("run_housekeeping",),
        "records": (
            "Accepted",
            "CapUse",
            "EventState",
            "Failure",
            "NewEvent",
            "Page",
            "Remembered",
            "Row",
            "Settlement",
            "hashed_values",
        ),
        "recovery": ("damage_marker", "open_outbox"),
        "retention": ("Retention",),
        "store": ("PAGE_ROWS", "Store"),
        "writer": ("CommitListener", "InlineRunner", "Outbox", "Runner", "ThreadRunner"),
    },
)

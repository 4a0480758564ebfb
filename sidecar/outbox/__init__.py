"""The outbox: the only place that knows SQL. Events are put here before they are answered, and leave it settled."""

from sidecar.outbox.committer import Note, StoreFailed
from sidecar.outbox.database import Lock, take_lock
from sidecar.outbox.history import Keeper
from sidecar.outbox.records import Accepted, Failure, NewEvent, Page, Remembered, Row, Settlement, State
from sidecar.outbox.recovery import marking, open_outbox
from sidecar.outbox.room import DiskFull, OutboxFull, Refused, Room
from sidecar.outbox.runner import InlineRunner, Runner, ThreadRunner
from sidecar.outbox.store import PAGE_ROWS, Store
from sidecar.outbox.writer import Outbox

__all__ = [
    "PAGE_ROWS",
    "Accepted",
    "DiskFull",
    "Failure",
    "InlineRunner",
    "Keeper",
    "Lock",
    "NewEvent",
    "Note",
    "Outbox",
    "OutboxFull",
    "Page",
    "Refused",
    "Remembered",
    "Room",
    "Row",
    "Runner",
    "Settlement",
    "State",
    "Store",
    "StoreFailed",
    "ThreadRunner",
    "marking",
    "open_outbox",
    "take_lock",
]

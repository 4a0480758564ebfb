"""From an event to what PX gets: pure, without I/O, clock or globals. ``compile_mapping`` is the way in."""

from sidecar.mapping.explain import Reason, explain
from sidecar.mapping.mapper import Mapper, compile_mapping
from sidecar.mapping.model import Change, CustomEvent, Intent, Known, Mapped, UpsertAccount, UpsertUser

__all__ = [
    "Change",
    "CustomEvent",
    "Intent",
    "Known",
    "Mapped",
    "Mapper",
    "Reason",
    "UpsertAccount",
    "UpsertUser",
    "compile_mapping",
    "explain",
]

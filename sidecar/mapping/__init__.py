"""Map an event to what PX gets: pure, without I/O, clock or globals. Entry point: ``compile_mapping``."""

from sidecar.mapping.explain import Reason, explain, own_account
from sidecar.mapping.mapper import Mapper, compile_mapping
from sidecar.mapping.model import (
    NO_ACCOUNT,
    PRIORITIES,
    Account,
    Cap,
    Change,
    CustomEvent,
    Intent,
    Known,
    Mapped,
    Priority,
    UpsertAccount,
    UpsertUser,
)
from sidecar.mapping.settings import LiveSettings, Settings, compile_settings

__all__ = [
    "NO_ACCOUNT",
    "PRIORITIES",
    "Account",
    "Cap",
    "Change",
    "CustomEvent",
    "Intent",
    "Known",
    "LiveSettings",
    "Mapped",
    "Mapper",
    "Priority",
    "Reason",
    "Settings",
    "UpsertAccount",
    "UpsertUser",
    "compile_mapping",
    "compile_settings",
    "explain",
    "own_account",
]

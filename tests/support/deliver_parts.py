"""Parts of delivery for unit tests: a configuration that can be replaced, a clock moved by hand, the quota's table."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from sidecar.config import Config, DeliverConfig, load_text
from sidecar.deliver.destination import Destination
from sidecar.deliver.quota import Lease, Quota, QuotaRow
from sidecar.mapping import LiveSettings, Priority, compile_settings
from sidecar.outbox import ClockTrust

PRODUCT = "AP-XXXXXXXXXX-2"
NOON_MS = 1_700_000_000_000 // 86_400_000 * 86_400_000 + 43_200_000


class DeliverCell:
    """``[deliver]`` as it is in force; calling it returns the current values."""

    def __init__(self, **values: Any) -> None:
        self.now = DeliverConfig(**values)

    def __call__(self) -> DeliverConfig:
        return self.now

    def replace(self, **values: Any) -> None:
        self.now = msgspec.structs.replace(self.now, **values)


_CELLS: WeakKeyDictionary[Quota, DeliverCell] = WeakKeyDictionary()


def make_quota(per_day: int, *, clock: Any, rows: Any = (), trust: ClockTrust | None = None, **values: Any) -> Quota:
    cell = DeliverCell(**({"per_day": per_day, "reserve_for_high": 0.0} | values))
    quota = Quota(cell, clock=clock, rows=rows, trust=trust)
    _CELLS[quota] = cell
    return quota


def resize(quota: Quota, per_day: int, **values: Any) -> None:
    """Change the configuration of a quota of ``make_quota`` as a reload does."""
    _CELLS[quota].replace(**({"per_day": per_day, "pace": "burst", "reserve_for_high": 0.0} | values))


def make_destination(
    now_s: float, random: Callable[[], float], *, saved: dict[str, Any] | None = None, per_second: float = 190
) -> Destination:
    return Destination(now_s=now_s, config=DeliverCell(per_second=per_second), random=random, saved=saved)


def live_settings(config: str | Config = "") -> LiveSettings:
    """Settings of a configuration without sources; events belong to ``PRODUCT`` unless the configuration names another."""
    return LiveSettings(settings_of(config))


def settings_of(config: str | Config = "") -> Any:
    loaded = load_text(config) if isinstance(config, str) else config
    if not loaded.px.property_key:
        loaded = msgspec.structs.replace(loaded, px=msgspec.structs.replace(loaded.px, property_key=PRODUCT))
    return compile_settings(loaded, {}, {})


# The quota's surroundings -------------------------------------------------------------------------------------------


class QuotaClock:
    """Boot and wall clock, moved by hand."""

    released_ms = 1_600_000_000_000

    def __init__(self, boot_s: float = 100_000.0) -> None:
        self.at_s, self.boot, self.step_ms = boot_s, "boot-1", 0
        self._wall_ms = NOON_MS - int(boot_s * 1000)

    def boot_s(self) -> float:
        return self.at_s

    def wall_ms(self) -> int:
        return self._wall_ms + int(self.at_s * 1000) + self.step_ms

    def boot_id(self) -> str:
        return self.boot

    def monotonic_s(self) -> float:
        return self.at_s

    def reboot(self, off_s: float, boot_s: float) -> None:
        self._wall_ms += int((self.at_s + off_s - boot_s) * 1000)
        self.at_s, self.boot = boot_s, self.boot + "'"


class QuotaFile:
    """The quota's table, as the outbox keeps it."""

    def __init__(self) -> None:
        self.rows: dict[tuple, QuotaRow] = {}

    def commit(self, lease: Lease) -> None:
        given_minutes, boots = {row.boot_minute for row in lease.rows}, {row.boot_id for row in lease.rows}
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if not (
                lease.replaces_all
                or (row.boot_id in boots and (row.boot_minute < lease.drop_before or row.boot_minute in given_minutes))
            )
        }
        self.rows |= {row[:3]: row for row in lease.rows}


def send(quota: Quota, file: QuotaFile, most: int, *, priority: Priority = Priority.NORMAL) -> int:
    """Send up to ``most`` requests now; return how many the quota allowed."""
    sent = 0
    while sent < most:
        ready_s = quota.ready_at_s(0.0, priority=priority)
        if ready_s == 0.0:
            quota.take(priority=priority)
            sent += 1
        lease = quota.wants_lease()
        if lease is not None:
            file.commit(lease)
            quota.granted(lease)
        elif ready_s > 0.0:
            break
    return sent

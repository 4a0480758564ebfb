"""``StateReader``, which builds ``DaemonState``, the one record of the daemon's state.

``/status``, ``/metrics``, the status screen and systemd's status line are views of this record. Its cost does not
depend on the number of pending events. If the disk hangs, the record is incomplete after two seconds instead of late.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.config import DeliverConfig
from sidecar.control.delivery_control import FleetSource, fleet_facts, is_paused
from sidecar.control.status import (
    DAY_S,
    DaemonState,
    FleetFacts,
    NameShare,
    OutboxFacts,
    QuotaFacts,
    RefusedCalls,
    SlowUser,
    by_reason,
    drain_s,
    total,
)
from sidecar.deliver import destination
from sidecar.deliver.delivery_loop import Delivery
from sidecar.deliver.order import LoadedEvent
from sidecar.deliver.quota import Quota, QuotaRow, QuotaStatus
from sidecar.errors import SidecarError, with_instance
from sidecar.mapping import LiveSettings, Priority
from sidecar.observe import DaemonTelemetry, Problem
from sidecar.outbox import Outbox, Store
from sidecar.outbox.queries import newest_delivery_ms
from sidecar.outbox.readers import describe_log
from sidecar.outbox.records import PENDING
from sidecar.outbox.rescue import files_set_aside
from sidecar.units import iso_utc, show_count, show_duration

__all__ = ["Notices", "StateReader", "status_line"]

# What is sent meanwhile; the problem of the fleet says why: its engine is away, or it answers and refuses this host.
FLEET_REASONS: Final = {
    "joining": (
        "This host has not joined its fleet since this start, and no promise of an earlier process may be used (first start, "
        "reboot, orderly stop), so nothing is sent."
    ),
    "quiet": "This host is not connected to its fleet; nothing is sent for some seconds, then what is set aside for it.",
    "alone": "This host is not connected to its fleet; only what is set aside for it is sent.",
    "rejoining": "This host is returning to its fleet; it sends again within seconds.",
}
SILENT: Final = ("joining", "quiet", "rejoining")  # the states in which a host of a fleet sends nothing
STORE_TIMEOUT_S: Final = 2.0  # a healthy store answers within milliseconds; status must answer when the disk hangs


class Notices:
    """Sentences that every status shows as warnings.

    ``startup`` reports a damaged outbox that was set aside at this start; empty otherwise.
    """

    def __init__(self, startup: str = "") -> None:
        self._startup = startup
        self._reload = ""
        self._rules: list[str] = []
        self.unreachable: list[str] = []
        self.limits: list[str] = []
        self.busiest_name: NameShare | None = None

    def sockets_unreachable(self, sentences: list[str]) -> None:
        """Set the sentences about listeners that clients cannot reach; they are reasons, not only warnings."""
        self.unreachable = sentences

    def reloaded(self, sentence: str) -> None:
        """Set the sentence about the last reload, replacing the previous one; empty clears it."""
        self._reload = sentence

    def near_limits(self, sentences: list[str]) -> None:
        """Set the sentences about silent limits of PX that are near, replacing the previous ones."""
        self.limits = sentences

    def busiest(self, name: NameShare | None) -> None:
        """Set the name that came most often in the last day; None if no event came."""
        self.busiest_name = name

    def idle_rules(self, sentences: list[str]) -> None:
        """Set the sentences about mapping rules that do nothing, replacing the previous ones."""
        self._rules = sentences

    def all(self) -> list[str]:
        """Return all sentences."""
        return [notice for notice in (self._startup, self._reload, *self.limits, *self._rules) if notice]

    def notes(self) -> list[str]:
        """Return what is neither damage nor a limit."""
        return [notice for notice in (self._reload, *self._rules) if notice]

    def damage(self) -> list[str]:
        """Return what the start has found to be damaged or moved away."""
        return [self._startup] if self._startup else []

    def lasting(self) -> list[str]:
        """Return the sentences for systemd's status line: those that change only at a restart or a reload."""
        return [notice for notice in (self._startup, self._reload) if notice]


class _Flow(NamedTuple):
    """Delivery's part of the state; ``state`` is None without a daemon, ``fleet`` without [fleet]."""

    state: destination.DestinationStatus | None
    quota: QuotaStatus
    pace: float
    fleet: FleetFacts | None
    in_flight: int = 0
    lanes: int = 0
    lanes_in_use: int = 0
    slowest: SlowUser | None = None
    last_retry: Problem | None = None
    last_delivered_ms: int | None = None
    paused: bool = False  # without a daemon: a start would continue an operator's pause


class _File(NamedTuple):
    """The outbox file's part of the state; ``error`` is the reason if it could not be read."""

    used_bytes: int | None
    oldest_ms: Mapping[Priority, int]
    last_delivered_ms: int | None
    wal_bytes: int
    set_aside: list[str]
    log: list[str]
    error: str | None


class StateReader:
    """Build ``DaemonState``. ``delivery`` and ``telemetry`` are None without a daemon."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        settings: LiveSettings,
        clock: Clock,
        notices: Notices,
        instance: str = "",
        *,
        delivery: Delivery | None = None,
        telemetry: DaemonTelemetry | None = None,
        fleet: FleetSource | None = None,
    ) -> None:
        self._fleet = fleet
        self.instance = instance
        self._store = store  # for its path and notice only; everything else goes through the outbox
        self._outbox = outbox
        self._settings = settings
        self._clock = clock
        self._notices = notices
        self._delivery = delivery
        self._telemetry = telemetry
        self._started_s = clock.monotonic_s()

    @property
    def _deliver(self) -> DeliverConfig:
        return self._settings.now.config.deliver

    async def read(self) -> DaemonState:
        """Return the current state, within two seconds even if the disk hangs."""
        file = await self._read_file()
        flow = await self._stopped_flow() if self._delivery is None else self._flow(self._delivery)
        now_s, now_ms = self._clock.monotonic_s(), self._clock.wall_ms()
        # Everything below is read without an await, so that counters and state belong to one moment.
        counters = self._outbox.counters
        pending = sum(counters.get(name, 0) for name in PENDING.values())
        state = flow.state
        not_delivered, not_stored = self._not_delivered(flow), self._not_stored(file)
        # After a restart the history says when the last delivery was.
        last_delivered_ms = flow.last_delivered_ms or file.last_delivered_ms
        seen = None if self._telemetry is None else self._telemetry.statistics()
        return DaemonState(
            version=__version__,
            state="stopped" if state is None else state.state.value,
            since=None if state is None else iso_utc(now_ms - 1000 * (now_s - state.since_s)),
            next_try_in_s=None if state is None or state.until_s is None else max(0.0, state.until_s - now_s),
            delivering=self._delivers(flow),
            reasons=[*not_delivered, *not_stored],
            not_delivered=not_delivered,
            not_stored=not_stored,
            damage=[*self._clock_problem(), *self._notices.damage(), *file.set_aside],
            limits=self._notices.limits,
            notes=self._notices.notes(),
            refused=self._refused(now_ms),
            busiest_name=self._notices.busiest_name,
            warnings=[*self._clock_problem(), *self._notices.all(), *file.set_aside, *file.log],
            pending=pending,
            **_counted(counters),
            in_flight=flow.in_flight,
            lanes=flow.lanes,
            rate=0.0 if seen is None else round(seen.delivered_per_s, 1),
            pace=round(flow.pace, 2),
            ceiling=self._deliver.host_per_second,
            quota=_quota_facts(flow.quota, _reserve(self._deliver)),
            **_ages(file.oldest_ms, now_ms),
            drain_s=self._drain_s(flow, pending),
            full=self._outbox.capacity.full,
            outbox=self._outbox_facts(file),
            slowest_user=flow.slowest,
            last_delivered=None if last_delivered_ms is None else iso_utc(last_delivered_ms),
            last_problem=self._last_problem(flow),
            uptime_s=None if state is None else now_s - self._started_s,
            counters=counters,
            lanes_in_use=flow.lanes_in_use,
            changed=0 if seen is None else seen.changed,
            without_account=0 if seen is None else seen.without_account,
            last_delivered_ms=last_delivered_ms,
            set_aside=bool(self._store.notice),
            instance=self.instance,
            fleet=flow.fleet,
        )

    def _delivers(self, flow: _Flow) -> bool:
        """Return whether a normal event accepted now would be sent at once."""
        return (
            flow.state is not None
            and flow.state.state is destination.DestinationState.OPEN
            and flow.quota.free_in_s == 0
            and flow.pace > 0
            and not (flow.fleet and flow.fleet.state in SILENT)
            and not self._outbox.clock_trust.delivery_waits_s()
        )

    def _outbox_facts(self, file: _File) -> OutboxFacts:
        return OutboxFacts(
            path=str(self._store.path),
            bytes=file.used_bytes,
            max_bytes=int(self._outbox.capacity.max_bytes),
            wal_bytes=file.wal_bytes,
        )

    async def _read_file(self) -> _File:
        file = _File(None, {}, None, 0, [], [], "The outbox does not answer; check its disk and the log.")
        # Cancelling abandons the wait only; the read itself ends in the store's thread.
        with trio.move_on_after(STORE_TIMEOUT_S):
            try:
                file = await self._outbox.read(partial(_read_facts, self._outbox.capacity.log_copied_at_bytes))
            except SidecarError as failure:
                file = file._replace(error=str(failure))
        return file

    def _flow(self, delivery: Delivery) -> _Flow:
        dispatcher, now_s = delivery.dispatcher, self._clock.monotonic_s()
        statistics, state = dispatcher.statistics(), dispatcher.destination.describe(now_s)
        fleet = fleet_facts(self._fleet)
        failed = [event for event in dispatcher.waiting() if event.row.failure is not None]
        return _Flow(
            state,
            dispatcher.limiter.quota_status(),
            _pace_in_fleet(fleet, dispatcher.limiter.per_second(state.pace)),
            fleet,
            in_flight=len(statistics.in_flight),
            lanes=delivery.lanes_open,
            lanes_in_use=statistics.under_way,
            slowest=_slowest(failed, self._clock.wall_ms()),
            last_retry=_newest_failure(failed),
            last_delivered_ms=statistics.last_delivered_ms,
        )

    async def _stopped_flow(self) -> _Flow:
        """Return what the outbox file holds about delivery: the day's quota."""
        rows = [QuotaRow(*row) for row in await self._outbox.read(Store.quota_rows)]
        trust = self._outbox.clock_trust
        quota = Quota(lambda: self._deliver, clock=self._clock, rows=rows, trust=trust)
        pace = min(self._deliver.host_per_second, quota.pace_per_s())
        paused = await self._outbox.read(is_paused)
        return _Flow(None, quota.describe(), pace, fleet_facts(self._fleet), paused=paused)

    def _not_delivered(self, flow: _Flow) -> list[str]:
        reasons = []
        if flow.state is None:
            reasons.append("The daemon is not running; start it with `systemctl start px-sidecar` or `px-sidecar run`.")
            if flow.paused:
                reasons.append(
                    "Delivery was paused, and a start does not end that: `px-sidecar resume` does, afterwards."
                )
        elif flow.state.message:
            reasons.append(flow.state.message)
        if self._outbox.clock_trust.delivery_waits_s():
            reasons.append(self._outbox.clock_trust.problem())
        if flow.fleet:
            reasons += [text for text in (flow.fleet.problem, FLEET_REASONS.get(flow.fleet.state)) if text]
        if flow.quota.free_in_s > 0:
            reasons.append(_quota_reason(flow.quota, _reserve(self._deliver)))
        return reasons

    def _not_stored(self, file: _File) -> list[str]:
        reasons = []
        try:
            self._outbox.capacity.check()
        except SidecarError as error:
            reasons.append(str(error))
        reasons += self._notices.unreachable
        if problem := file.error or self._outbox.problem:
            reasons.append(problem)
        return reasons

    def _clock_problem(self) -> list[str]:
        """Return what is wrong with the clock, unless delivery waits for it: that is a reason of its own."""
        trust = self._outbox.clock_trust
        problem = "" if trust.delivery_waits_s() else trust.problem()
        return [problem] if problem else []

    def _refused(self, now_ms: int) -> RefusedCalls | None:
        described = None if self._telemetry is None else self._telemetry.refusals.describe()
        if not described or not described["newest"]:
            return None
        newest = described["newest"][0]
        last_s = max(0.0, now_ms / 1000 - datetime.fromisoformat(newest["at"]).timestamp())
        return RefusedCalls(described["counts"], last_s, newest["message"])

    def _last_problem(self, flow: _Flow) -> Problem | None:
        """Return the newest problem and remember it: it stays visible after it is over."""
        if self._telemetry is None:
            return None
        newest = self._telemetry.statistics().last_problem
        if flow.state is not None and flow.state.message and flow.state.reason != destination.BY_OPERATOR:
            newest = Problem(iso_utc(self._clock.wall_ms()), flow.state.message)
        elif flow.last_retry and (newest is None or flow.last_retry.when > newest.when):
            newest = flow.last_retry
        if newest is not None:
            self._telemetry.problem(newest)
        return newest

    def _drain_s(self, flow: _Flow, pending: int) -> float | None:
        quota, reserve = flow.quota, _reserve(self._deliver)
        # Only high-priority events may use the reserve.
        high = self._outbox.counters.get(PENDING[Priority.HIGH], 0)
        left = min(_left(quota), max(0, _left(quota) - reserve) + high)
        paused = flow.paused or (flow.state is not None and flow.state.state is destination.DestinationState.PAUSED)
        if paused or not flow.pace:
            return None
        if self._deliver.pace == "spread":
            return pending / flow.pace
        if self._deliver.day == "utc":
            next_day_in_s = DAY_S - self._clock.wall_ms() / 1000 % DAY_S
        else:
            next_day_in_s = quota.free_in_s or DAY_S
        held_s = quota.free_in_s if quota.by_px and left else 0.0
        limit = quota.limit - reserve
        return held_s + drain_s(pending, pace_per_s=flow.pace, left=left, limit=limit, next_day_in_s=next_day_in_s)


def _pace_in_fleet(fleet: FleetFacts | None, per_second: float) -> float:
    """Return the requests per second that this host may send: only its promise while the fleet's engine is away."""
    return min(per_second, fleet.alone) if fleet and fleet.state in ("joining", "quiet", "alone") else per_second


def _ages(received_ms: Mapping[Priority, int], now_ms: float) -> dict[str, Any]:
    """Return the fields about the oldest pending events."""
    ages_s = {priority.name.lower(): max(0.0, (now_ms - at_ms) / 1000) for priority, at_ms in received_ms.items()}
    return {"oldest_pending_age_s": max(ages_s.values(), default=None), "oldest_age_s_by_class": ages_s}


def _read_facts(log_copied_at_bytes: int, store: Store) -> _File:
    """Read what the file and its folder say, in the store's thread: a disk that hangs must not stop the daemon's loop."""
    try:
        wal_bytes = store.path.with_name(store.path.name + "-wal").stat().st_size
    except OSError:
        wal_bytes = 0  # the file does not exist before the first commit
    grown = describe_log(store.path, wal_bytes, log_copied_at_bytes)
    beside = (wal_bytes, files_set_aside(store.path), [grown] if grown else [])
    return _File(store.used_bytes(), store.oldest_pending_ms(), newest_delivery_ms(store), *beside, None)


def _counted(counters: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields that are counters of the outbox."""
    names = ("accepted", "pending_high", "delivered", "repeated", "ambiguous", "retries")
    counted: dict[str, Any] = {name: counters.get(name, 0) for name in names}
    for state in ("dropped", "dead"):
        counted |= {state: total(counters, state), f"{state}_by_reason": by_reason(counters, state)}
    return counted


def status_line(state: DaemonState) -> str:
    """Return the state in one line, for systemd's ``STATUS=``."""
    text = f"{state.state}, {show_count(state.pending)} pending, {state.rate:g}/s"
    return with_instance(f"{text}; {state.reasons[0]}", state.instance) if state.reasons else text


def _left(quota: QuotaStatus) -> int:
    return max(0, quota.limit - quota.used)


def _quota_facts(quota: QuotaStatus, reserve: int) -> QuotaFacts:
    return QuotaFacts(
        used=quota.used,
        limit=quota.limit,
        left=_left(quota),
        reserve=reserve,
        free_in_s=quota.free_in_s,
        by_px=quota.by_px,
    )


def _reserve(deliver: DeliverConfig) -> int:
    return math.floor(deliver.host_per_day * deliver.reserve_for_high)


def _slowest(failed: Sequence[LoadedEvent], now_ms: int) -> SlowUser | None:
    failures = [(event, event.row.failure) for event in failed if event.row.failure is not None]
    if not failures:
        return None
    event, failure = min(failures, key=lambda pair: pair[1].first_failed_ms)
    return SlowUser(
        user=event.row.user,
        waiting_for_s=max(0.0, (now_ms - failure.first_failed_ms) / 1000),
        attempts=failure.attempts,
        detail=failure.detail,
    )


def _newest_failure(failed: Sequence[LoadedEvent]) -> Problem | None:
    failures = [event.row.failure for event in failed if event.row.failure is not None]
    newest = max(failures, key=lambda failure: failure.last_failed_ms, default=None)
    return None if newest is None else Problem(iso_utc(newest.last_failed_ms), newest.detail)


def _quota_reason(quota: QuotaStatus, reserve: int) -> str:
    when = show_duration(quota.free_in_s)
    if quota.by_px:
        return (
            f"PX keeps answering 429 at the lowest pace, so the day counts as spent; delivery continues in {when} by "
            "itself. If others use the same PX subscription, lower deliver.per_day or set deliver.hosts."
        )
    high = " (high-priority events may still use the reserve)" if quota.used < quota.limit and reserve else ""
    return (
        f"The day's quota of {show_count(quota.limit)} requests is spent{high}; "
        f"nothing is lost, and delivery continues in {when} by itself."
    )

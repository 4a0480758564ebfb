"""The desk: how things are, pausing and resuming, and the live feed.

Asking costs the daemon little and the same whatever is pending; a disk that hangs makes an answer incomplete, not late.
"""

import json
import math
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from sidecar import __version__
from sidecar.control.archive import Archive
from sidecar.control.house import House
from sidecar.control.records import accepted_record, outcome_record, retry_record
from sidecar.control.status import (
    DAY_S,
    OutboxFacts,
    Problem,
    QuotaFacts,
    Rate,
    SlowUser,
    Status,
    by_reason,
    drain_s,
    iso,
    total,
)
from sidecar.deliver import destination
from sidecar.deliver.order import Item
from sidecar.deliver.quota import Quota, QuotaRow, QuotaStatus
from sidecar.deliver.shell import Delivery
from sidecar.errors import Failed, SidecarError
from sidecar.outbox import Failure, NewEvent, Settlement, State, Store
from sidecar.units import show_count, show_duration

__all__ = ["DESTINATION", "Desk"]

DESTINATION: Final = "destination"  # the name under which the outbox keeps what the destination knows
FILE_PATIENCE_S: Final = 2.0


class _Flow(NamedTuple):
    """What delivery knows at one moment."""

    state: destination.Status | None  # None: no daemon
    quota: QuotaStatus
    reserve: int
    pace: float
    in_flight: int
    lanes: int
    slowest: SlowUser | None
    last_retry: Problem | None


class _File(NamedTuple):
    """What only the file knows; ``wrong`` is why it could not be asked."""

    used_bytes: int | None
    oldest_ms: int | None
    wrong: str | None


class Desk:
    """What people ask of the daemon.

    ``notices`` are sentences that every status repeats as warnings (a damaged outbox was set aside at this start),
    ``limits`` those about PX's silent limits.
    Making it lets the dispatcher of ``house`` tell it of outcomes; ``accepted`` and ``retried`` are to be called by
    whoever knows, while ``feed.listeners`` is above zero.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.archive = Archive(house)
        self.notices: list[str] = []
        self.limits: list[str] = []
        now_s = house.clock.monotonic_s()
        self._started_s = now_s
        self._rate = Rate(now_s)
        self._last_problem: Problem | None = None
        if house.delivery is not None:
            house.delivery.dispatcher.publish = self.settled

    # What the rooms tell ----------------------------------------------------------------------------------------

    def accepted(self, events: Sequence[NewEvent]) -> None:
        """Events were accepted."""
        if self.house.feed.listeners:
            now_ms = self.house.clock.wall_ms()
            for event in events:
                self.house.feed.publish(accepted_record(event, self.house.mapper.redact, now_ms))

    def retried(self, item: Item, failure: Failure) -> None:
        """An attempt failed, and its event will be sent again."""
        if self.house.feed.listeners:
            self.house.feed.publish(retry_record(item, failure, self.house.clock.wall_ms()))

    def settled(self, item: Item, settlement: Settlement) -> None:
        """An event has its final answer."""
        if settlement.state is State.DELIVERED:
            self._rate.add(self.house.clock.monotonic_s())
        elif settlement.state is State.DEAD:
            when = iso(self.house.clock.wall_ms())
            self._last_problem = Problem(when, f"Event {item.id} is dead ({settlement.reason}): {settlement.detail}")
        if self.house.feed.listeners:
            self.house.feed.publish(outcome_record(item, settlement, self.house.clock.wall_ms()))

    # Status -----------------------------------------------------------------------------------------------------

    async def status(self) -> Status:
        """How things are. Takes at most two seconds, whatever the disk does."""
        file = await self._ask_file()
        flow = await self._stopped_flow() if self.house.delivery is None else self._flow(self.house.delivery)
        now_s, now_ms = self.house.clock.monotonic_s(), self.house.clock.wall_ms()
        counters, outbox, room = self.house.outbox.counters, self.house.outbox, self.house.room
        left = max(0, flow.quota.limit - flow.quota.used)
        reasons = self._reasons(flow, file)
        self._notice_problem(flow)
        pending = counters.get("pending_high", 0) + counters.get("pending_normal", 0)
        state = flow.state
        return Status(
            version=__version__,
            state="stopped" if state is None else state.state.value,
            since=None if state is None else iso(now_ms - 1000 * (now_s - state.since_s)),
            next_try_in_s=None if state is None or state.until_s is None else max(0.0, state.until_s - now_s),
            delivering=state is not None and state.state is destination.State.OPEN and flow.quota.free_in_s == 0,
            reasons=reasons,
            warnings=[*self.notices, *self.limits],
            accepted=counters.get("accepted", 0),
            pending=pending,
            pending_high=counters.get("pending_high", 0),
            delivered=counters.get("delivered", 0),
            dropped=total(counters, "dropped"),
            dead=total(counters, "dead"),
            dropped_by_reason=by_reason(counters, "dropped"),
            dead_by_reason=by_reason(counters, "dead"),
            repeated=counters.get("repeated", 0),
            ambiguous=counters.get("ambiguous", 0),
            retries=counters.get("retries", 0),
            in_flight=flow.in_flight,
            lanes=flow.lanes,
            rate=round(self._rate.per_second(now_s), 1),
            pace=round(flow.pace, 2),
            ceiling=self._ceiling(),
            quota=QuotaFacts(
                used=flow.quota.used,
                limit=flow.quota.limit,
                left=left,
                reserve=flow.reserve,
                free_in_s=flow.quota.free_in_s,
                by_px=flow.quota.by_px,
            ),
            oldest_pending_age_s=None if file.oldest_ms is None else max(0.0, (now_ms - file.oldest_ms) / 1000),
            drain_s=self._drain_s(flow, pending, left),
            full=outbox.full,
            outbox=OutboxFacts(
                path=str(self.house.store.path),
                bytes=file.used_bytes,
                max_bytes=int(room.max_bytes),
                wal_bytes=self._wal_bytes(),
            ),
            slowest_user=flow.slowest,
            last_delivered=self._last_delivered(),
            last_problem=self._last_problem,
            uptime_s=None if state is None else now_s - self._started_s,
        )

    async def line(self) -> str:
        """The status in one line, for systemd's ``STATUS=``."""
        status = await self.status()
        text = f"{status.state}, {show_count(status.pending)} pending, {status.rate:g}/s"
        return f"{text}; {status.reasons[0]}" if status.reasons else text

    async def _ask_file(self) -> _File:
        used_bytes = oldest_ms = None
        wrong: str | None = "The outbox does not answer; look at its disk and at the log."
        with trio.move_on_after(FILE_PATIENCE_S):
            try:
                used_bytes, oldest_ms = await self.house.outbox.read(
                    lambda store: (store.used_bytes(), store.oldest_pending_ms())
                )
                wrong = None
            except SidecarError as error:
                wrong = str(error)
        return _File(used_bytes, oldest_ms, wrong)

    def _flow(self, delivery: Delivery) -> _Flow:
        dispatcher, now_s = delivery.dispatcher, self.house.clock.monotonic_s()
        state, quota = dispatcher.destination.describe(now_s), dispatcher.quota
        pace = min(self._ceiling() * state.pace, quota.pace_per_s())
        failed = [item for item in dispatcher.waiting() if item.row.failure is not None]
        return _Flow(
            state,
            quota.describe(),
            self._reserve(quota.per_day),
            pace,
            dispatcher.in_flight(),
            delivery.lanes_open,
            _slowest(failed, self.house.clock.wall_ms()),
            _newest_failure(failed),
        )

    async def _stopped_flow(self) -> _Flow:
        """As far as the file tells."""
        deliver = self.house.config.deliver
        rows = [QuotaRow(*row) for row in await self.house.outbox.read(Store.quota_rows)]
        per_day = deliver.host_per_day
        quota = Quota(
            per_day,
            clock=self.house.clock,
            day=deliver.day,
            pace=deliver.pace,
            reserve_for_high=deliver.reserve_for_high,
            rows=rows,
        )
        pace = min(self._ceiling(), quota.pace_per_s())
        return _Flow(None, quota.describe(), self._reserve(per_day), pace, 0, 0, None, None)

    def _ceiling(self) -> float:
        return self.house.config.deliver.host_per_second

    def _reserve(self, per_day: int) -> int:
        return math.floor(per_day * self.house.config.deliver.reserve_for_high)

    def _reasons(self, flow: _Flow, file: _File) -> list[str]:
        reasons = []
        if flow.state is None:
            reasons.append("The daemon is not running; start it with `systemctl start px-sidecar` or `px-sidecar run`.")
        elif flow.state.message:
            reasons.append(flow.state.message)
        if flow.quota.free_in_s > 0:
            reasons.append(_quota_reason(flow.quota, flow.reserve))
        try:
            self.house.room.check()
        except SidecarError as error:
            reasons.append(str(error))
        return [*reasons, file.wrong] if file.wrong else reasons

    def _notice_problem(self, flow: _Flow) -> None:
        """Remember the newest thing that went wrong, also when it is over."""
        if flow.state is not None and flow.state.message and flow.state.reason != destination.BY_OPERATOR:
            self._last_problem = Problem(iso(self.house.clock.wall_ms()), flow.state.message)
        elif flow.last_retry and (self._last_problem is None or flow.last_retry.when > self._last_problem.when):
            self._last_problem = flow.last_retry

    def _drain_s(self, flow: _Flow, pending: int, left: int) -> float | None:
        if flow.state is not None and flow.state.state is destination.State.PAUSED:
            return None
        if self.house.config.deliver.pace == "spread":
            return pending / flow.pace
        if self.house.config.deliver.day == "utc":
            next_day_in_s = DAY_S - self.house.clock.wall_ms() / 1000 % DAY_S
        else:
            next_day_in_s = DAY_S if left else flow.quota.free_in_s
        return drain_s(pending, pace_per_s=flow.pace, left=left, limit=flow.quota.limit, next_day_in_s=next_day_in_s)

    def _wal_bytes(self) -> int:
        path = self.house.store.path
        try:
            return path.with_name(path.name + "-wal").stat().st_size
        except OSError:
            return 0  # there is none until the first commit

    def _last_delivered(self) -> str | None:
        if self.house.delivery is None or self.house.delivery.dispatcher.last_delivered_ms is None:
            return None
        return iso(self.house.delivery.dispatcher.last_delivered_ms)

    # Pausing and watching ---------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Send nothing more until ``resume``, restarts included; what is in flight comes back. Accepting goes on."""
        delivery = self.running()
        delivery.dispatcher.destination.pause(self.house.clock.monotonic_s())
        await self._keep_destination(delivery)

    async def resume(self) -> None:
        """Lift the operator's pause; another pause, and an outage, are probed at once."""
        delivery = self.running()
        delivery.dispatcher.destination.resume(self.house.clock.monotonic_s())
        await self._keep_destination(delivery)

    async def _keep_destination(self, delivery: Delivery) -> None:
        delivery.wake()
        saved = json.dumps(delivery.dispatcher.destination.saved())
        await self.house.outbox.write(partial(_set_meta, DESTINATION, saved))

    def running(self) -> Delivery:
        """The running delivery. Raises Failed where no daemon runs."""
        if self.house.delivery is None:
            raise Failed("The daemon is not running; start it first.")
        return self.house.delivery

    async def tail(self) -> AsyncIterator[dict[str, Any]]:
        """The live feed, beginning with a record that says that nothing is missed from here on. Endless."""
        async with self.house.feed.subscribe() as records:
            yield {"at": iso(self.house.clock.wall_ms()), "what": "listening"}
            async for record in records:
                yield record


def _set_meta(name: str, value: str, store: Store, _now_ms: int) -> None:
    store.set_meta(name, value)


def _slowest(failed: list[Item], now_ms: int) -> SlowUser | None:
    item = min(failed, key=lambda one: one.row.failure.first_failed_ms if one.row.failure else 0, default=None)
    if item is None or item.row.failure is None:
        return None
    failure = item.row.failure
    return SlowUser(
        user=item.row.user,
        waiting_for_s=max(0.0, (now_ms - failure.first_failed_ms) / 1000),
        attempts=failure.attempts,
        detail=failure.detail,
    )


def _newest_failure(failed: list[Item]) -> Problem | None:
    failures = [item.row.failure for item in failed if item.row.failure is not None]
    newest = max(failures, key=lambda failure: failure.last_failed_ms, default=None)
    return None if newest is None else Problem(iso(newest.last_failed_ms), newest.detail)


def _quota_reason(quota: QuotaStatus, reserve: int) -> str:
    when = show_duration(quota.free_in_s)
    if quota.by_px:
        return (
            f"PX goes on saying 429 at the lowest pace, so that the day counts as spent; delivery goes on in {when} by "
            "itself. If others use the same PX subscription, lower deliver.per_day or set deliver.hosts."
        )
    high = " (high-priority events may still use the reserve)" if quota.used < quota.limit and reserve else ""
    return (
        f"The day's quota of {show_count(quota.limit)} requests is spent{high}; "
        f"nothing is lost, and delivery goes on in {when} by itself."
    )

"""Checks at the moment of each decision: which event a request belongs to, and whether it may be sent now.

``sim_check.py`` checks the result at the end. Violations of the configuration in force, and the number of loaded
events, are visible only at the moment itself; they are recorded in ``World.violations``.
"""

from typing import TYPE_CHECKING, Any

import trio
from sim_scenario import SECRET, SECRET_NAME

import sidecar.outbox.retention as retention
from sidecar.deliver import dispatcher as sizes
from sidecar.deliver import order as order_sizes
from sidecar.deliver.actions import LoadPage, LoadParked, Send
from sidecar.outbox.dead import discard_ids
from sidecar.px import PxRequest

if TYPE_CHECKING:
    from sim_process import Process

__all__ = ["DispatcherMonitor", "StoreMonitor"]


class StoreMonitor:
    """Wraps the store of a process: records when events were accepted and settled, and checks what is discarded by age.

    The times are simulated ones, which no wrong clock changes.
    """

    def __init__(self, process: "Process") -> None:
        self._world, self._store = process.world, process.daemon.store
        self._accept, self._settle = self._store.accept, self._store.settle
        self._store.accept = self._accept_and_record  # type: ignore[method-assign]
        self._store.settle = self._settle_and_record  # type: ignore[method-assign]
        retention.discard_ids = self._discard_and_check

    def _accept_and_record(self, groups: Any, now_ms: int) -> Any:
        before = self._store.value("next_id")
        result = self._accept(groups, now_ms)
        now_s = self._world.now_s()
        # The time of the batch; a freeze may have come between that and its commit.
        if self._world.frozen_s:
            now_s -= max(0.0, (self._world.clock.wall_ms() - now_ms) / 1000)
        for event_id in range(before + 1, self._store.value("next_id") + 1):
            self._world.accepted_s[event_id] = self._world.settled_s[event_id] = now_s
        return result

    def _settle_and_record(self, settlements: Any, now_ms: int) -> None:
        now_s, world = self._world.now_s(), self._world
        for settlement in settlements:
            query = "SELECT settled_ms FROM events WHERE id = ? AND state < 4"
            if row := self._store.connection.execute(query, (settlement.id,)).fetchone():
                world.settled_s[settlement.id] = now_s
                if settlement.reason == "too_old" and row[0] is None:
                    world.too_old_s[settlement.id] = now_s - world.accepted_s[settlement.id]
        self._settle(settlements, now_ms)

    def _discard_and_check(self, store: Any, ids: list[int], now_ms: int) -> None:
        world = self._world
        for event_id in ids:
            age_s = world.now_s() - world.settled_s[event_id]
            if not world.stepped and age_s < world.config.outbox.keep_dead:
                world.violations.append(f"dead letter {event_id} was discarded after {age_s} s")
        world.coverage["dead letter too old"] += len(ids)
        discard_ids(store, ids, now_ms)


class DispatcherMonitor:
    """Wraps the dispatcher of a process: checks each action it returns."""

    def __init__(self, process: "Process") -> None:
        self._process, self._world = process, process.world
        self._dispatcher = process.daemon.delivery.dispatcher
        self._sending: dict[int, tuple[PxRequest, int]] = {}
        self._mapped: dict[int, Any] = {}  # event id -> its attempt when it was last sent
        in_flight = process.daemon.config.deliver.max_in_flight
        self._window = sizes.QUEUE_MAX * (in_flight + sizes.READY_LOW) + sizes.PAGE_ROWS
        self._queue = sizes.QUEUE_MAX + 1  # plus one dead letter that is retried
        self._leases_to_go = self._decisions_to_go = 0  # until the requested crash
        self._down_s = 0.0
        self._decide, self._wants = self._dispatcher.decide, self._dispatcher.wants
        self._wants_lease = self._dispatcher.limiter.quota.wants_lease
        self._dispatcher.wants = self._wants_and_check  # type: ignore[method-assign]
        self._dispatcher.decide = self._decide_and_check  # type: ignore[method-assign]
        self._dispatcher.limiter.quota.wants_lease = self._wants_lease_and_count  # type: ignore[method-assign]

    def event_of(self, request: PxRequest) -> int:
        """Return the outbox id of the event of a request."""
        return self._sending[id(request)][1]

    def crash_at_lease(self, leases: int, decisions: int, down_s: float) -> None:
        """Crash ``decisions`` decisions after the ``leases``-th lease from now is requested: it must be on disk by then."""
        self._leases_to_go, self._decisions_to_go, self._down_s = leases, decisions, down_s

    def _wants_lease_and_count(self) -> Any:
        lease = self._wants_lease()
        self._leases_to_go -= lease is not None and self._leases_to_go > 0
        return lease

    def _crash_if_due(self) -> None:
        if self._decisions_to_go and not self._leases_to_go:
            self._decisions_to_go -= 1
            if not self._decisions_to_go:
                self._world.down_s = self._down_s
                self._world.coverage["crash at a lease"] += not self._process.killed
                self._process.crash()

    def _decide_and_check(self, now_s: float) -> Any:
        self._world.count_step()
        self._crash_if_due()
        in_flight_before = len(self._dispatcher.statistics().in_flight)
        step = self._decide(now_s)
        if isinstance(step, Send):
            self._sending[id(step.request)] = (step.request, step.event.id)
            self._check_send(step, in_flight_before)
        self._check_loaded()
        return step

    def _check_send(self, send: Send, in_flight_before: int) -> None:
        """Check a request that is sent now against the configuration in force and the operator's pause."""
        event, config, world = send.event, self._process.daemon.config, self._world
        continues = self._mapped.get(event.id) is event.attempt and send.request.path != "/v1/events/custom"
        self._mapped[event.id] = event.attempt
        in_flight = len(self._dispatcher.statistics().in_flight)
        self._require(in_flight <= max(in_flight_before, config.deliver.max_in_flight), f"{in_flight} in flight", send)
        self._require(not world.paused, "sent while an operator has paused", send)
        if continues:
            return  # a later people call of the same attempt: checked with the first one
        # After a step that stays, a time that two segments of the clock share counts as the younger one.
        if trio.current_time() >= world.believed_from_s and not (event.row.retried_ms or world.stepped):
            waited_s = world.now_s() - world.accepted_s[event.id] - 0.002  # times are stored in milliseconds
            self._require(not 0 < config.deliver.max_age < waited_s, f"sent after {waited_s} s", send)
        forbidden = SECRET_NAME in config.mapping.attributes.drop
        self._require(not forbidden or SECRET not in send.request.body, "sent with a forbidden field", send)
        world.coverage["sent without a forbidden field"] += forbidden

    def _wants_and_check(self) -> Any:
        """Check that a requested page fits the window, and the waiting limit if every event of it fails."""
        action = self._wants()
        if isinstance(action, LoadPage | LoadParked):
            queues = self._dispatcher.statistics().queues
            waiting = queues.waiting
            after = queues.loaded - waiting + action.limit
            self._require(after <= self._window, f"{after} events loaded, {self._window} allowed")
            self._require(
                waiting + action.limit <= order_sizes.WAITING_MAX, f"{waiting} waiting, {action.limit} requested"
            )
            self._world.coverage["the window was nearly full"] += 4 * after > 3 * self._window
        return action

    def _check_loaded(self) -> None:
        """Check that no more is loaded than window plus waiting limit, and no more per user than a queue holds."""
        queues = self._dispatcher.statistics().queues
        allowed = self._window + order_sizes.WAITING_MAX
        self._require(queues.loaded <= allowed, f"{queues.loaded} events loaded, {allowed} allowed")
        longest = queues.longest_queue
        self._require(longest <= self._queue, f"{longest} events in a queue, {self._queue} allowed")

    def _require(self, holds: bool, what: str, send: Send | None = None) -> None:
        if not holds:
            at_s = trio.current_time() - self._world.started_s
            self._world.violations.append(f"at {at_s:.4f} s: {what}{f': event {send.event.id}' if send else ''}")

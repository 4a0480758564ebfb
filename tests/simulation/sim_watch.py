"""What is looked at in each moment of a life: to which event a request belongs, and whether it may leave just then.

The account at the end (``sim_account.py``) sees what came of it all. What the configuration forbade, and what was loaded,
only shows in the moment itself, and is noted in ``World.wrong``.
"""

from typing import TYPE_CHECKING, Any

import trio
from sim_scenario import SECRET, SECRET_NAME

from sidecar.deliver import dispatcher as sizes
from sidecar.deliver import order as order_sizes
from sidecar.deliver.steps import AsidePage, NextPage, Send
from sidecar.px import Request

if TYPE_CHECKING:
    from sim_life import Life

__all__ = ["Watch"]


class Watch:
    """Looks over the shoulder of a life's dispatcher."""

    def __init__(self, life: "Life") -> None:
        self._life, self._world = life, life.world
        self._dispatcher = life.daemon.delivery.dispatcher
        self._sending: dict[int, tuple[Request, int]] = {}
        self._mapped: dict[int, Any] = {}  # event id -> what was made of it when it was last sent
        in_flight = life.daemon.config.deliver.max_in_flight
        self._window = sizes.QUEUE_MAX * (in_flight + sizes.READY_LOW) + sizes.PAGE_ROWS
        self._queue = sizes.QUEUE_MAX + 1  # and a dead letter that is retried
        self._leases_to_go = self._decisions_to_go = 0  # until the crash that was asked for
        self._down_s = 0.0
        self._decide, self._wants = self._dispatcher.decide, self._dispatcher.wants
        self._wants_lease = self._dispatcher.quota.wants_lease
        self._dispatcher.wants = self._told_wish  # type: ignore[method-assign]
        self._dispatcher.decide = self._told  # type: ignore[method-assign]
        self._dispatcher.quota.wants_lease = self._told_lease  # type: ignore[method-assign]

    def event_of(self, request: Request) -> int:
        """The outbox id of the event that a request is for."""
        return self._sending[id(request)][1]

    def crash_at_lease(self, leases: int, decisions: int, down_s: float) -> None:
        """``kill -9`` so many decisions after the so-many-th lease from now was asked for: is it in the file by then?"""
        self._leases_to_go, self._decisions_to_go, self._down_s = leases, decisions, down_s

    def _told_lease(self) -> Any:
        lease = self._wants_lease()
        self._leases_to_go -= lease is not None and self._leases_to_go > 0
        return lease

    def _crash_if_due(self) -> None:
        if self._decisions_to_go and not self._leases_to_go:
            self._decisions_to_go -= 1
            if not self._decisions_to_go:
                self._world.down_s = self._down_s
                self._world.met["crash at a lease"] += not self._life.killed
                self._life.crash()

    def _told(self, now_s: float) -> Any:
        self._world.turn()
        self._crash_if_due()
        before = self._dispatcher.in_flight()
        step = self._decide(now_s)
        if isinstance(step, Send):
            self._sending[id(step.request)] = (step.request, step.item.id)
            self._judge(step, before)
        self._look_at_memory()
        return step

    def _judge(self, send: Send, in_flight_before: int) -> None:
        """Hold what leaves in this moment against the configuration that is in force, and against the operator's pause."""
        item, config, world = send.item, self._life.daemon.config, self._world
        went_on = self._mapped.get(item.id) is item.prepared and send.request.path != "/v1/events/custom"
        self._mapped[item.id] = item.prepared
        in_flight = self._dispatcher.in_flight()
        self._must(in_flight <= max(in_flight_before, config.deliver.max_in_flight), f"{in_flight} in flight", send)
        self._must(not world.paused, "sent while an operator has paused", send)
        if went_on:
            return  # a person's second request: it was judged when the first one left
        waited_s = (world.clock.wall_ms() - max(item.row.received_ms, item.row.retried_ms)) / 1000
        self._must(not 0 < config.deliver.max_age < waited_s, f"sent after {waited_s} s", send)
        forbidden = SECRET_NAME in config.mapping.attributes.drop
        self._must(not forbidden or SECRET not in send.request.body, "sent with a field that is forbidden", send)
        world.met["sent without a forbidden field"] += forbidden

    def _told_wish(self) -> Any:
        """What is asked for has room in the window, and among those who wait if all of it fails."""
        wish = self._wants()
        if isinstance(wish, NextPage | AsidePage):
            order = self._dispatcher._order
            waiting = len(order._waiting)
            after = len(order.items) - waiting + wish.limit
            self._must(after <= self._window, f"{after} events loaded, {self._window} allowed")
            self._must(waiting + wish.limit <= order_sizes.WAITING_MAX, f"{waiting} wait, {wish.limit} are asked for")
            self._world.met["the window was nearly full"] += 4 * after > 3 * self._window
        return wish

    def _look_at_memory(self) -> None:
        """No more is loaded than the window and those who wait, and of no user more than a queue."""
        order = self._dispatcher._order
        most = self._window + order_sizes.WAITING_MAX
        self._must(len(order.items) <= most, f"{len(order.items)} events loaded, {most} allowed")
        longest = max(map(len, order._queues.values()), default=0)
        self._must(longest <= self._queue, f"{longest} events in a queue, {self._queue} allowed")

    def _must(self, well: bool, what: str, send: Send | None = None) -> None:
        if not well:
            at_s = trio.current_time() - self._world.started_s
            self._world.wrong.append(f"at {at_s:.4f} s: {what}{f': event {send.item.id}' if send else ''}")

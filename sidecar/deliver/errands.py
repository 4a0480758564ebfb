"""Requests that are not about an event, sent under the same limits: such as the deletion of a PX user.

Each asks the destination and the limiter as the dispatcher does, so that pace, day, outage and pause hold for it; it holds
no slot, because there is nothing to settle. Its answer says little about events: only one that asks to slow down or to
wait is a verdict for the destination.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from sidecar.clock import Clock
from sidecar.deliver.delivery_loop import Delivery, LimitedDeparture
from sidecar.deliver.destination import Open, Probe
from sidecar.mapping import PRIORITIES, Priority
from sidecar.observe import Telemetry
from sidecar.px import Kind, Lane, PxAnswer, PxRequest, Reply, classify

__all__ = ["Errands"]

# Permission may also come from outside: a lease that is committed, a destination that opens.
ASK_AGAIN_S: Final = 0.1
ASK_AGAIN_LEAST_S: Final = 0.001
PX_IS_THERE: Final = frozenset({Kind.DELIVERED, Kind.REFUSED, Kind.WRONG_REGION, Kind.NEXT_STEP})


class Errands:
    """Sends such requests of a running daemon, one at a time."""

    def __init__(self, delivery: Delivery, clock: Clock, telemetry: Telemetry) -> None:
        self._delivery = delivery
        self._dispatcher = delivery.dispatcher
        self._clock = clock
        self._telemetry = telemetry
        self._one_at_a_time = trio.Lock()
        self._waits = False

    def demand(self, now_s: float) -> tuple[int, ...]:
        """Return the dispatcher's demand with the request that waits for permission here: a fleet gives as much as is wanted."""
        wanted = list(self._dispatcher.demand(now_s))
        if self._waits and isinstance(self._dispatcher.destination.may_send(now_s), Open | Probe):
            wanted[PRIORITIES.index(Priority.NORMAL)] += 1
        return tuple(wanted)

    async def send_all(self, requests: Sequence[PxRequest], *, within_s: float) -> list[Reply]:
        """Send the requests in turn; return the replies, fewer than requests if ``within_s`` was not enough.

        A request that PX asks to repeat later (429, 408, 425, 5xx with Retry-After) is sent again once it may be.
        """
        replies: list[Reply] = []
        with trio.move_on_after(within_s):
            async with self._one_at_a_time, self._lane() as lane:
                for request in requests:
                    replies.append(await self._send(lane, request))
        return replies

    def why_not(self) -> str:
        """Return why a request may not be sent now, in one sentence."""
        now_s = self._clock.monotonic_s()
        status = self._dispatcher.destination.describe(now_s)
        if status.message:
            return status.message
        if self._dispatcher.limiter.quota_status().free_in_s > 0:
            return "The day's requests are spent (deliver.per_day)."
        return "PX answers slowly, or events take all of the pace."

    async def _send(self, lane: Lane, request: PxRequest) -> Reply:
        destination = self._dispatcher.destination
        while True:
            self._waits = True
            try:
                now_s, is_probe = await self._wait_for_permission()
            finally:
                self._waits = False
            reply: Reply | None = None
            try:
                reply = await lane.send(request, LimitedDeparture(self._dispatcher.limiter, self._clock, now_s))
            finally:
                if is_probe and reply is None:
                    destination.probe_abandoned(self._clock.monotonic_s())
            if not self._take_reply(reply, is_probe=is_probe, took_s=self._clock.monotonic_s() - now_s):
                return reply

    async def _wait_for_permission(self) -> tuple[float, bool]:
        """Wait until a request may be sent and count it; return when, and whether it is the probe of an outage."""
        limiter, destination = self._dispatcher.limiter, self._dispatcher.destination
        while True:
            now_s = self._clock.monotonic_s()
            permission = destination.may_send(now_s)
            # A pause is probed by an event: whether PX takes this key for events is not answered by another request.
            is_probe = isinstance(permission, Probe) and destination.describe(now_s).state == "waiting"
            ready_s = now_s + ASK_AGAIN_S
            if is_probe or isinstance(permission, Open):
                ready_s = limiter.ready_at_s(now_s, priority=Priority.NORMAL, pace=destination.pace())
            if ready_s <= now_s:
                limiter.take(now_s, priority=Priority.NORMAL)
                if is_probe:
                    destination.probe_started(now_s)
                return now_s, is_probe
            self._delivery.wake()  # the loading task commits the lease that this may wait for
            await trio.sleep(min(ASK_AGAIN_S, max(ASK_AGAIN_LEAST_S, ready_s - now_s)))

    def _take_reply(self, reply: Reply, *, is_probe: bool, took_s: float) -> bool:
        """Report the reply; return True if the request has to be sent again."""
        now_s, destination = self._clock.monotonic_s(), self._dispatcher.destination
        if isinstance(reply, PxAnswer):
            self._telemetry.px_answered(reply.status, took_s)
        verdict = classify(reply, wall_ms=self._clock.wall_ms())
        asked_to_wait = verdict.kind in (Kind.TOO_FAST, Kind.WAIT)
        if asked_to_wait:
            outcome = destination.on_verdict(verdict, event=0, user=None, now_s=now_s, probe=is_probe)
            if outcome.day_spent:
                self._dispatcher.limiter.treat_day_as_spent()
        elif is_probe and verdict.kind in PX_IS_THERE:
            destination.sequence_continued(now_s, probe=True, accepted=verdict.kind is Kind.DELIVERED)
        elif is_probe:
            destination.probe_abandoned(now_s)
        self._delivery.wake()
        return asked_to_wait or verdict.kind is Kind.HELD

    @asynccontextmanager
    async def _lane(self) -> AsyncIterator[Lane]:
        lane = self._delivery.network.lane()
        try:
            yield lane
        finally:
            with trio.CancelScope(shield=True):
                await lane.aclose()

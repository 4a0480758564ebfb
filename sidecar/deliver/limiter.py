"""Permission to send: the one interface through which the dispatcher asks for pace and quota.

The dispatcher decides *which* event is next; a ``SendLimiter`` decides *when* a request of its class may leave. Every
request asks: probes, retries and people calls, too. ``LocalLimiter`` is the limiter of a host by itself: a leaky bucket
for the second and a durable quota for the day (sidecar/deliver/README.md#pace, sidecar/deliver/README.md#quota). ``SharedLimiter``
lays a ``SharedPace`` over it, which several hosts have in common (sidecar/fleet/README.md).
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from sidecar.config import DeliverConfig
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.quota import Lease, Quota, QuotaStatus
from sidecar.mapping import PRIORITIES, Priority

__all__ = ["LocalLimiter", "SendLimiter", "SharedLimiter", "SharedPace"]

ASK_AGAIN_S: Final = 0.05
ASK_AGAIN_LEAST_S: Final = 0.005
GIVEN_UP_S: Final = 1.0
ABANDONED_S: Final = 120.0  # longer than an attempt takes
T = TypeVar("T")


class SendLimiter(Protocol):
    """Decides when a request may be sent. Pure: monotonic time is an argument, nothing waits, reads or writes.

    ``pace`` is the share of the full rate that the destination allows, from above 0 to 1. A lease is a part of the day's
    quota that the caller commits to the outbox before any of its sends is used.
    """

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float:
        """Return ``now_s`` if a request may be sent now, otherwise when to ask again.

        Infinity: something outside must happen first, such as the commit of a lease; it wakes the caller.
        """
        ...

    def take(self, now_s: float, *, priority: Priority) -> None:
        """Count a request that is sent now; ``ready_at_s`` must allow it (AssertionError otherwise)."""
        ...

    def regrant(self, granted_s: float, now_s: float) -> float:
        """Return when a request taken at ``granted_s`` may leave; its lane is ready now.

        A time that is not ``granted_s`` replaces it in further calls: the lane came too late for the first one.
        """
        ...

    def departed(self, granted_s: float, now_s: float) -> None:
        """Record that the request granted ``granted_s`` has left the host at ``now_s``."""
        ...

    def treat_day_as_spent(self) -> None:
        """Hold everything for a while: PX answers 429 although our own count is below the quota."""
        ...

    def per_second(self, pace: float) -> float:
        """Return the requests per second that are allowed now."""
        ...

    def quota_status(self) -> QuotaStatus:
        """Return the state of the day's quota, for `status`."""
        ...

    def wants_lease(self) -> Lease | None:
        """Return a lease to commit; None if none is needed now."""
        ...

    def granted(self, lease: Lease) -> None:
        """Take over a lease that is committed."""
        ...

    def abandoned(self, lease: Lease) -> None:
        """Take back a lease that could not be committed."""
        ...

    def closing_lease(self) -> Lease:
        """Return the last lease of a process: it returns what was not used. Call nothing after it."""
        ...


class LocalLimiter:
    """The limits of one host: a leaky bucket for the second, a durable quota for the day.

    ``config`` returns the configuration in force; it is read at each decision.
    """

    def __init__(self, bucket: Bucket, quota: Quota, config: Callable[[], DeliverConfig]) -> None:
        self.bucket = bucket
        self.quota = quota
        self._config = config

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float:
        # The pace is set first: it may have changed since the last send, and both limits must hold at once.
        return max(self.quota.ready_at_s(now_s, priority=priority), self._bucket_at(pace, now_s).ready_at_s(now_s))

    def take(self, now_s: float, *, priority: Priority) -> None:
        self.bucket.take(now_s)
        self.quota.take(priority=priority)

    def regrant(self, granted_s: float, now_s: float) -> float:
        return self.bucket.regrant(granted_s, now_s)

    def departed(self, granted_s: float, now_s: float) -> None:
        self.bucket.departed(granted_s, now_s)

    def treat_day_as_spent(self) -> None:
        self.quota.treat_as_spent()

    def per_second(self, pace: float) -> float:
        return min(self._config().host_per_second * pace, self.quota.pace_per_s())

    def quota_status(self) -> QuotaStatus:
        return self.quota.describe()

    def wants_lease(self) -> Lease | None:
        return self.quota.wants_lease()

    def granted(self, lease: Lease) -> None:
        self.quota.granted(lease)

    def abandoned(self, lease: Lease) -> None:
        self.quota.abandoned(lease)

    def closing_lease(self) -> Lease:
        return self.quota.closing_lease()

    def _bucket_at(self, pace: float, now_s: float) -> Bucket:
        """Return the bucket, set to the pace that destination and quota allow now."""
        rate, spaced = self.per_second(pace), self._config().hosts > 1
        if (rate, spaced) != (self.bucket.per_second, self.bucket.spaced):
            self.bucket.set_rate(rate, now_s, ceiling=self._config().host_per_second, spaced=spaced)
        return self.bucket


class SharedPace(Protocol):
    """Permission to send that is shared with other hosts; the methods mean what those of ``SendLimiter`` mean."""

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float: ...

    def take(self, now_s: float, *, priority: Priority) -> tuple[float, int | None]:
        """Count a request that leaves now; return until when it may leave, for ``is_late``, and what ``give_back`` takes."""
        ...

    def give_back(self, minute: int | None) -> None:
        """Take back a request of ``take`` that did not leave: the day of all hosts does not count it."""
        ...

    def is_late(self, until_s: float) -> bool:
        """Return whether ``until_s`` has passed, by a clock that also runs while this process is frozen."""
        ...

    def set_late(self, late: Sequence[int], until_s: float) -> None:
        """Set how many requests of each class, in the order of ``PRIORITIES``, need permission again; valid ``until_s``."""
        ...

    def used(self) -> int:
        """Return the requests of all hosts in this day."""
        ...


class SharedLimiter(LocalLimiter):
    """The limits of one host below those of a fleet: both must allow a request.

    The local limits are those of the whole subscription. They stay underneath, so that an error of the shared part cannot
    make one host exceed them, and the local quota is this host's durable record of what it sent.

    A request whose lane is ready too late loses its permission, since other hosts use the time that follows: after an outage of
    PX all hosts' connections are established at once. It asks again, and its lane waits.
    """

    def __init__(self, bucket: Bucket, quota: Quota, config: Callable[[], DeliverConfig], shared: SharedPace) -> None:
        super().__init__(bucket, quota, config)
        self._shared = shared
        self._pace = 1.0
        # By the time of the grant: class, until when, and what to give back if it does not leave.
        self._leaving: dict[float, list[tuple[Priority, float, int | None]]] = {}
        self._late: dict[float, list[Priority]] = {}  # requests without permission, by the time at which they ask again

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float:
        self._pace = pace
        local_s = super().ready_at_s(now_s, priority=priority, pace=pace)
        # Asked in any case: asking is how the fleet learns that there is something to send.
        return max(local_s, self._shared.ready_at_s(now_s, priority=priority, pace=pace))

    def take(self, now_s: float, *, priority: Priority) -> None:
        super().take(now_s, priority=priority)
        self._grant(now_s, priority)

    def regrant(self, granted_s: float, now_s: float) -> float:
        if late := self._late.get(granted_s):
            priority = _pop(self._late, granted_s, late)
        elif grants := self._leaving.get(granted_s):
            priority, until_s, minute = grants[-1]
            if not self._shared.is_late(until_s):
                again_s = super().regrant(granted_s, now_s)
                if again_s != granted_s:
                    self._leaving.setdefault(again_s, []).append(_pop(self._leaving, granted_s, grants))
                return again_s
            _pop(self._leaving, granted_s, grants)
            self.bucket.give_back(granted_s)
            self._shared.give_back(minute)
        else:
            priority = Priority.NORMAL  # forgotten: its lane took very long
        return self._ask_again(now_s, priority)

    def _ask_again(self, now_s: float, priority: Priority) -> float:
        """Return when a late request may leave, or ask once more. The day's quota has it counted already."""
        self._report_late(now_s, priority)
        ready_s = max(self.bucket.ready_at_s(now_s), self._shared.ready_at_s(now_s, priority=priority, pace=self._pace))
        if ready_s > now_s:
            # A time that has passed before the lane compares it means "now", and this one has no permission.
            again_s = max(now_s + ASK_AGAIN_LEAST_S, min(ready_s, now_s + ASK_AGAIN_S))
            self._late.setdefault(again_s, []).append(priority)
            return again_s
        self._report_late(now_s)
        self.bucket.take(now_s)
        self._grant(now_s, priority)
        return now_s

    def departed(self, granted_s: float, now_s: float) -> None:
        if grants := self._leaving.get(granted_s):
            _pop(self._leaving, granted_s, grants)
        super().departed(granted_s, now_s)

    def _grant(self, now_s: float, priority: Priority) -> None:
        self._leaving.setdefault(now_s, []).append((priority, *self._shared.take(now_s, priority=priority)))
        while (oldest_s := next(iter(self._leaving))) < now_s - ABANDONED_S:  # their lanes could not connect
            del self._leaving[oldest_s]

    def _report_late(self, now_s: float, *more: Priority) -> None:
        for again_s in [at_s for at_s in self._late if at_s < now_s - ABANDONED_S]:
            del self._late[again_s]
        # Those that should have asked long ago have been given up.
        waiting = (priorities for at_s, priorities in self._late.items() if at_s >= now_s - GIVEN_UP_S)
        late = [*more, *(priority for priorities in waiting for priority in priorities)]
        self._shared.set_late([late.count(priority) for priority in PRIORITIES], now_s + 2 * ASK_AGAIN_S)

    def statistics(self) -> tuple[int, int]:
        """Return how many requests have permission and have not left, and how many ask again; for tests."""
        return sum(map(len, self._leaving.values())), sum(map(len, self._late.values()))

    def quota_status(self) -> QuotaStatus:
        status = super().quota_status()
        return msgspec.structs.replace(status, used=max(status.used, self._shared.used()))


def _pop(of: dict[float, list[T]], at_s: float, values: list[T]) -> T:
    """Remove the last value of one time, and the time with the last of its values."""
    value = values.pop()
    if not values:
        del of[at_s]
    return value

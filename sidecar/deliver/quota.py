"""The day's quota: how many requests may still be sent, and when more may be.

Theory
------
* **Minute buckets.** Every request counts in the minute it was sent in. ``rolling``: a bucket leaves when all of it is
  24 hours old, so that no 24 hours ever hold more than ``per_day``. ``utc``: those of the calendar day count.
* **Two clocks.** Within one boot the boot clock dates a bucket, and no step of the wall clock can move it. Buckets of
  an earlier boot are dated by the wall clock once, when they are loaded; one from the future counts as of now. Calendar
  days need the wall clock: a bucket that a step back left in the future counts today.
* **Leases.** Sends are written to the file before they are made, some at a time: a lease is booked as spent, committed,
  and then used up without another write. A crash loses the rest of it and so can only over-count. It is valid in the
  minute it was booked from and the next one, and dated in the latter, so that a send never counts as older than it is;
  what is left then is given back.
* **Reserve.** Normal events stop when (1 - reserve_for_high) of the day is spent, by whomever; high ones go on.
* **PX knows better.** If it says 429 for minutes at the lowest pace, others spend the same quota: ``treat_as_spent``
  holds everything until the calendar day ends, or, as nobody knows when PX's day does, for an hour when rolling.
"""

import math
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import msgspec

from sidecar.clock import Clock

__all__ = ["Lease", "Quota", "QuotaRow", "QuotaStatus"]

DAY_MINUTES: Final = 1440
DAY_S: Final = 86_400.0
HOLD_S: Final = 3600.0
LEASE: Final = 100  # half a second at the default pace; what a crash may cost
LEASE_SHARE: Final = 100  # but of a small quota no more than a hundredth
FAST_S, SLOW_S = 0.25, 2.0  # a lease half gone sooner is doubled, as a commit must not be waited for; later, halved


class QuotaRow(NamedTuple):
    """One bucket as it is stored: the wall clock's minute since the epoch, the boot and its minute, requests sent."""

    minute: int
    boot_id: str
    boot_minute: int
    sent: int


class Lease(msgspec.Struct, frozen=True):
    """Leave for ``sends`` more requests, once this is committed.

    To be written in one transaction: delete every row if ``replaces_all``, else those with a ``boot_minute`` below
    ``drop_before`` or equal to that of a row given here; then insert ``rows``. Then ``granted``, or ``abandoned``.
    """

    sends: int
    through_minute: int
    rows: tuple[QuotaRow, ...]
    drop_before: int
    replaces_all: bool


class QuotaStatus(msgspec.Struct, frozen=True):
    """For `status`. ``free_in_s``: seconds until a normal event may go again, 0 now; ``by_px``: because PX said so."""

    used: int
    limit: int
    free_in_s: float
    by_px: bool


class _Minute:
    """A bucket: requests booked, and the wall clock's minute."""

    __slots__ = ("minute", "sent")

    def __init__(self, minute: int) -> None:
        self.minute = minute
        self.sent = 0


class Quota:
    """Counts requests against ``per_day``; ``rows`` are those of the file. Reads boot and wall clock from ``clock``."""

    def __init__(
        self,
        per_day: int,
        *,
        clock: Clock,
        day: Literal["rolling", "utc"] = "rolling",
        pace: Literal["burst", "spread"] = "burst",
        reserve_for_high: float = 0.0,
        rows: Iterable[QuotaRow] = (),
    ) -> None:
        self._set(per_day, pace, reserve_for_high)
        self._granted_boot_s = -math.inf
        self._clock, self._boot_id = clock, clock.boot_id()
        self._utc = day == "utc"
        self._minutes: dict[int, _Minute] = {}
        self._unused = 0  # booked and committed, not sent; dated in _booked
        self._booked = self._through = -1
        self._asked: Lease | None = None
        self._wanted = False
        self._held_until_boot_s = -math.inf
        self._free_at_boot_s: dict[int, float] = {}  # by limit; computed once, as it is asked for at every wake-up
        self._now = (int(clock.boot_s() // 60), clock.wall_ms() // 60_000)
        self._spent = 0
        self._load(rows)
        self._dirty, self._replaces_all = set(self._minutes), True
        self._roll(*self._now)

    def reconfigure(
        self, per_day: int, *, pace: Literal["burst", "spread"] = "burst", reserve_for_high: float = 0.0
    ) -> None:
        """From now on the day is this large; what was leased of a larger one is sent only as far as this one allows."""
        self._set(per_day, pace, reserve_for_high)
        self._roll(*self._now)

    def _set(self, per_day: int, pace: Literal["burst", "spread"], reserve_for_high: float) -> None:
        assert per_day >= 1, per_day
        self.per_day = per_day
        self._normal_limit = per_day - math.floor(per_day * reserve_for_high)
        self._largest = max(1, per_day // LEASE_SHARE)
        self._smallest = self._size = min(LEASE, self._largest)
        self._spread = pace == "spread"

    # --- leave to send ---

    def ready_at_s(self, now_s: float, *, high: bool) -> float:
        """When the next request may be sent, in the monotonic time of ``now_s``; infinity: once a lease is granted."""
        self._tick()
        self._wanted = True
        wait_s = self._wait_s(self.per_day if high else self._normal_limit)
        if wait_s > 0:
            return now_s + wait_s
        return now_s if self._unused and self._now[0] <= self._through else math.inf

    def take(self, *, high: bool) -> None:
        """Count a request that is sent now, which ``ready_at_s`` must allow."""
        assert self.ready_at_s(0.0, high=high) == 0.0, "no leave to send"
        self._unused -= 1

    def pace_per_s(self) -> float:
        """The pace that spreads the day evenly; infinity for ``burst``."""
        self._tick()
        return self._spread_per_s

    def treat_as_spent(self) -> None:
        """PX says 429 although our count is below the quota: hold everything until it may have forgotten."""
        wait_s = self._to_midnight_s() if self._utc else HOLD_S
        self._held_until_boot_s = self._clock.boot_s() + wait_s

    def used(self) -> int:
        """Requests of the day, rests of leases not counted."""
        self._tick()
        return self._used()

    def describe(self) -> QuotaStatus:
        """What `status` shows."""
        self._tick()
        held = self._held_until_boot_s > self._clock.boot_s()
        return QuotaStatus(self._used(), self.per_day, self._wait_s(self._normal_limit), held)

    # --- leases ---

    def wants_lease(self) -> Lease | None:
        """A lease to commit, or None: there is one under way, enough left, nothing asked for, or nothing to be had."""
        self._tick()
        minute, wall_minute = self._now
        through = minute if self._utc and (wall_minute + 1) % DAY_MINUTES == 0 else minute + 1
        stale = minute >= self._through and through > self._through
        if self._asked or not self._wanted or self._wait_s(self.per_day) > 0:
            return None
        if not stale and (2 * self._unused >= self._size or self._spent >= self.per_day):
            return None  # enough left, or all the rest of the day is leased already
        self._resize()
        sends = max(0, min(self._size - self._unused, self.per_day - self._spent))
        self._book(self._booked, -self._unused)
        self._book(through, self._unused + sends, wall_minute + through - minute)
        self._booked, self._wanted = through, False
        self._asked = self._lease(sends, through)
        return self._asked

    def granted(self, lease: Lease) -> None:
        """The lease is committed."""
        assert lease is self._asked, "granted a lease that was not asked for"
        self._asked = None
        self._replaces_all = False
        self._granted_boot_s = self._clock.boot_s()
        self._unused += lease.sends
        self._through = lease.through_minute

    def abandoned(self, lease: Lease) -> None:
        """The lease could not be committed; another can be asked for."""
        assert lease is self._asked, "abandoned a lease that was not asked for"
        self._asked = None
        self._dirty.update(row.boot_minute for row in lease.rows)
        self._book(lease.through_minute, -lease.sends)

    def given_back(self) -> Lease:
        """At the end of a process: a lease without sends, which gives back what was not used. Nothing may follow it."""
        self._tick()
        self._give_back()
        return self._lease(0, self._now[0])

    def _resize(self) -> None:
        lasted_s = self._clock.boot_s() - self._granted_boot_s
        if lasted_s < FAST_S:
            self._size = min(2 * self._size, self._largest)
        elif lasted_s > SLOW_S:
            self._size = max(self._size // 2, self._smallest, self._unused)

    def _lease(self, sends: int, through: int) -> Lease:
        rows = [
            QuotaRow(self._minutes[at].minute, self._boot_id, at, self._minutes[at].sent)
            for at in sorted(self._minutes if self._replaces_all else self._dirty)
            if at in self._minutes
        ]
        self._dirty.clear()
        return Lease(sends, through, tuple(rows), self._now[0] - DAY_MINUTES, self._replaces_all)

    def _give_back(self) -> None:
        self._book(self._booked, -self._unused)
        self._unused = 0

    def _book(self, at: int, sends: int, wall_minute: int = 0) -> None:
        """Add to a bucket, which may have left meanwhile if something is taken out of it."""
        if sends == 0 or (sends < 0 and at not in self._minutes):
            return
        bucket = self._minutes.setdefault(at, _Minute(wall_minute))
        bucket.sent += sends
        self._dirty.add(at)
        self._spent += sends if self._counts(bucket) else 0
        self._free_at_boot_s.clear()

    # --- what counts now ---

    def _load(self, rows: Iterable[QuotaRow]) -> None:
        minute, wall_minute = self._now
        for row in rows:
            if row.boot_id == self._boot_id:
                at = min(row.boot_minute, minute + 1)
            else:  # the minutes of the two clocks begin at different seconds: the later date is the safe one
                at = minute + 1 - max(0, wall_minute - row.minute)
            bucket = self._minutes.setdefault(at, _Minute(min(row.minute, wall_minute + 1)))
            bucket.sent += row.sent

    def _tick(self) -> None:
        now = (int(self._clock.boot_s() // 60), self._clock.wall_ms() // 60_000)
        if now != self._now:
            self._roll(*now)

    def _roll(self, minute: int, wall_minute: int) -> None:
        """A minute has passed, or the wall clock was moved: let go what is too old, and count again."""
        if minute > self._through:
            self._give_back()
        self._now = (minute, wall_minute)
        for at, bucket in list(self._minutes.items()):
            if at + 1 + DAY_MINUTES <= minute:
                del self._minutes[at]
            elif bucket.minute > wall_minute + 1:
                bucket.minute = wall_minute
                self._dirty.add(at)
        self._spent = sum(bucket.sent for bucket in self._minutes.values() if self._counts(bucket))
        self._free_at_boot_s.clear()
        left = max(1, self.per_day - self._used())
        spread = left / (60 * (DAY_MINUTES - wall_minute % DAY_MINUTES)) if self._utc else self.per_day / DAY_S
        self._spread_per_s = spread if self._spread else math.inf

    def _counts(self, bucket: _Minute) -> bool:
        return not self._utc or bucket.minute // DAY_MINUTES >= self._now[1] // DAY_MINUTES

    def _used(self) -> int:
        return self._spent - self._unused - (self._asked.sends if self._asked else 0)

    def _wait_s(self, limit: int) -> float:
        """Seconds until less than ``limit`` is used; 0 if it is now."""
        boot_s = self._clock.boot_s()
        wait_s = max(0.0, self._held_until_boot_s - boot_s)
        if self._used() < limit:
            return wait_s
        if self._utc:
            return max(wait_s, self._to_midnight_s())
        if limit not in self._free_at_boot_s:
            self._free_at_boot_s[limit] = self._enough_has_left_boot_s(self._used() - limit + 1)
        return max(wait_s, self._free_at_boot_s[limit] - boot_s)

    def _enough_has_left_boot_s(self, too_many: int) -> float:
        """When the oldest buckets that hold ``too_many`` requests have left."""
        for at, bucket in sorted(self._minutes.items()):
            too_many -= bucket.sent
            if too_many <= 0:
                return 60.0 * (at + 1 + DAY_MINUTES)
        raise AssertionError("more is used than all buckets hold")

    def _to_midnight_s(self) -> float:
        return DAY_S - self._clock.wall_ms() / 1000 % DAY_S

"""The day's quota: how many requests may still be sent today, and when more are allowed.

Theory
------
* **Minute buckets.** Every request counts in the minute in which it was sent. ``rolling``: a bucket expires when all of
  it is 24 hours old, so that no 24 hours hold more than ``per_day``. ``utc``: the buckets of the calendar day count.
* **Two clocks.** Within one boot the boot clock dates a bucket, and no step of the wall clock can move it. Buckets of
  an earlier boot are dated by the wall clock once, as soon as it is believed (sidecar/outbox/README.md#clock); one from
  the future counts as of now. Until then they count whole and are kept as they are: a clock that is wrong at boot must
  not make the day's requests yesterday's. Calendar days need the wall clock, too: while it is not believed every bucket
  counts, and after a jump each is dated by the boot clock.
* **Leases.** Sends are written to the outbox before they are made, several at a time: a lease is booked as spent,
  committed, and then used up without another write. A crash loses the rest of the lease, and so can only over-count. A
  lease is valid in the minute in which it was booked and in the next one, and dated in the latter, so that a send never
  counts as older than it is. What is left after that is returned.
* **Reserve.** Normal events stop when (1 - reserve_for_high) of the day is spent, by events of either class; high ones
  continue.
* **PX knows better.** If PX answers 429 for minutes at the lowest pace, other clients spend the same quota.
  ``treat_as_spent`` then holds everything until the calendar day ends; when rolling, for one hour, since it is not
  documented when PX's day resets (sidecar/px/README.md#limits).

See sidecar/deliver/README.md#quota.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from sidecar.clock import Clock
from sidecar.config import DeliverConfig
from sidecar.mapping import Cap, Priority
from sidecar.outbox import AgeScale, CapUse, ClockTrust

__all__ = ["DailyCaps", "Lease", "Quota", "QuotaRow", "QuotaStatus"]

DAY_MINUTES: Final = 1440
DAY_S: Final = 86_400.0
MINUTE_MS: Final = 60_000
SAME_MINUTES: Final = 2  # the two clocks' minutes begin at different seconds, and a lease is booked a minute ahead
HOLD_S: Final = 3600.0
ASK_AGAIN_S: Final = 60.0
LEASE: Final = 100  # half a second at the default pace; what a crash may cost
LEASE_SHARE: Final = 100  # but no more than a hundredth of a small quota
# A lease that is half used within FAST_S is doubled, so that no send waits for a commit; after SLOW_S it is halved.
FAST_S, SLOW_S = 0.25, 2.0


class QuotaRow(NamedTuple):
    """One bucket as it is stored: the wall-clock minute since the epoch, the boot and its minute, the requests sent."""

    minute: int
    boot_id: str
    boot_minute: int
    sent: int


class Lease(msgspec.Struct, frozen=True):
    """Permission for ``sends`` more requests, valid once it is committed.

    The caller writes it in one transaction: delete every row if ``replaces_all``, else those of the same boot with a
    ``boot_minute`` below ``drop_before`` or equal to that of a row given here; then insert ``rows``. Then it calls
    ``granted``, or ``abandoned`` if the transaction failed.
    """

    sends: int
    through_minute: int
    rows: tuple[QuotaRow, ...]
    drop_before: int
    replaces_all: bool


class QuotaStatus(msgspec.Struct, frozen=True):
    """The quota as `status` shows it.

    ``free_in_s`` is the seconds until a normal event may be sent, 0 if now; ``by_px`` is true after ``treat_as_spent``.
    """

    used: int
    limit: int
    free_in_s: float
    by_px: bool


class _Minute:
    """A bucket: the requests booked in it, and its wall-clock minute."""

    __slots__ = ("minute", "sent")

    def __init__(self, minute: int) -> None:
        self.minute = minute
        self.sent = 0


class Quota:
    """Counts requests against the day of the configuration in force; ``rows`` are the buckets of the outbox.

    Reads boot and wall clock from ``clock``; ``trust`` says whether the wall clock can be believed, which it always is
    without one. ``day`` (rolling or utc) is read once, at the start.
    """

    def __init__(
        self,
        config: Callable[[], DeliverConfig],
        *,
        clock: Clock,
        rows: Iterable[QuotaRow] = (),
        trust: ClockTrust | None = None,
    ) -> None:
        self._config = config
        self._trust, self._was_believed = trust, trust is None or trust.believed
        self._apply_config(config())
        self._granted_boot_s = -math.inf
        self._clock, self._boot_id = clock, clock.boot_id()
        self._utc = config().day == "utc"  # a request booked under one rule cannot be counted by the other
        self._minutes: dict[int, _Minute] = {}
        self._undated: list[QuotaRow] = []  # of earlier boots, until the wall clock is believed
        self._unused = 0  # booked and committed, not sent; dated in _booked_minute
        # The day is that of the wall clock at the booking: later the bucket may be given another date.
        self._booked_minute = self._valid_through = self._booked_day = -1
        self._open_lease: Lease | None = None
        self._lease_needed = False
        self._held_until_boot_s = -math.inf
        self._free_at_boot_s: dict[int, float] = {}  # by limit; cached, as every decision needs it
        self._now = (int(clock.boot_s() // 60), clock.wall_ms() // 60_000)
        self._spent = 0
        self._dirty: set[int] = set()
        self._load(rows)
        self._dirty, self._replaces_all = set(self._minutes), True
        self._recount(*self._now)

    def _apply_config(self, config: DeliverConfig) -> None:
        """Compute limits and lease sizes from the configuration in force."""
        self._applied = config
        self.per_day = per_day = config.host_per_day
        self._normal_limit = per_day - math.floor(per_day * config.reserve_for_high)
        self._largest = max(1, per_day // LEASE_SHARE)
        self._smallest = self._size = min(LEASE, self._largest)
        self._spread = config.pace == "spread"

    # --- permission to send ---

    def ready_at_s(self, now_s: float, *, priority: Priority) -> float:
        """Return when the next request may be sent, as monotonic time; infinity while it waits for a lease.

        Asking also records that a lease is needed, so that an idle process writes nothing.
        """
        self._refresh()
        self._lease_needed = True
        wait_s = self._wait_s(self._limit_of(priority))
        if wait_s > 0:
            # Once they are dated, the buckets of earlier boots may expire at once. And a wait below the precision of
            # ``now_s`` is still a wait, not permission.
            wait_s = min(wait_s, ASK_AGAIN_S) if self._undated else wait_s
            return max(now_s + wait_s, math.nextafter(now_s, math.inf))
        return now_s if self._unused and self._lease_holds() else math.inf

    def take(self, *, priority: Priority) -> None:
        """Count a request that is sent now; ``ready_at_s`` must have allowed it (AssertionError otherwise)."""
        # By the counts of that question: the lease's minute or day may have ended since, while the event was mapped.
        assert self._unused, "no lease holds a request"
        assert self._wait_s(self._limit_of(priority)) == 0, "the quota does not allow a request now"
        self._lease_needed = True
        self._unused -= 1

    def _limit_of(self, priority: Priority) -> int:
        return self.per_day if priority is Priority.HIGH else self._normal_limit

    def pace_per_s(self) -> float:
        """Return the requests per second that spread the day evenly; infinity for ``burst``."""
        self._refresh()
        return self._spread_per_s

    def treat_as_spent(self) -> None:
        """Hold everything for a while: PX answers 429 although our own count is below the quota."""
        wait_s = self._to_midnight_s() if self._utc else HOLD_S
        # In boot time: a step of the wall clock must not end the hold.
        self._held_until_boot_s = self._clock.boot_s() + wait_s

    def used(self) -> int:
        """Return the requests sent today; unused parts of leases are not counted."""
        self._refresh()
        return self._used()

    @property
    def normal_limit(self) -> int:
        """The requests of the day that normal events may use."""
        return self._normal_limit

    def describe(self) -> QuotaStatus:
        """Return the state that `status` shows."""
        self._refresh()
        held = self._held_until_boot_s > self._clock.boot_s()
        return QuotaStatus(self._used(), self.per_day, self._wait_s(self._normal_limit), held)

    # --- leases ---

    def wants_lease(self) -> Lease | None:
        """Return a lease to commit; None if one is open, enough is left, none is needed, or the day is spent."""
        self._refresh()
        minute, wall_minute = self._now
        # In the last minute of a calendar day a lease ends with it: dated later, its sends would count tomorrow.
        through = minute if self._utc and (wall_minute + 1) % DAY_MINUTES == 0 else minute + 1
        # In the last minute of a lease the next one is due, so that no send waits for its commit. Before midnight it
        # would end in the same minute, and be asked for again and again.
        stale = minute >= self._valid_through and through > self._valid_through
        if self._open_lease or not self._lease_needed or self._wait_s(self.per_day) > 0:
            return None
        if not stale and (2 * self._unused >= self._size or self._spent >= self.per_day):
            # Enough is left, or all of the day is leased. A lease of 0 would be granted and asked for again, with a
            # commit each, until its last request is sent.
            return None
        self._resize()
        sends = max(0, min(self._size - self._unused, self.per_day - self._spent))
        # The unused part of the previous lease moves into the new minute: a send must not count as older than it is.
        self._book(self._booked_minute, -self._unused)
        self._book(through, self._unused + sends, wall_minute + through - minute)
        self._booked_minute, self._lease_needed = through, False
        self._booked_day = wall_minute // DAY_MINUTES
        self._open_lease = self._build_lease(sends, through)
        return self._open_lease

    def granted(self, lease: Lease) -> None:
        """Take over a lease that is committed: its sends may be used."""
        assert lease is self._open_lease, "granted a lease that is not open"
        self._open_lease = None
        # The first lease of a process writes all buckets; from here on only those that changed.
        self._replaces_all = False
        self._granted_boot_s = self._clock.boot_s()
        self._unused += lease.sends
        self._valid_through = lease.through_minute

    def abandoned(self, lease: Lease) -> None:
        """Take back a lease that could not be committed; ``wants_lease`` returns another one."""
        assert lease is self._open_lease, "abandoned a lease that is not open"
        self._open_lease = None
        # The rows that it carried are not in the file: the next lease must write them again.
        self._dirty.update(row.boot_minute for row in lease.rows)
        self._book(lease.through_minute, -lease.sends)

    def closing_lease(self) -> Lease:
        """Return the last lease of a process: without sends, it returns the unused ones. Call nothing after it."""
        self._refresh()
        self._return_unused()
        return self._build_lease(0, self._now[0])

    def _resize(self) -> None:
        lasted_s = self._clock.boot_s() - self._granted_boot_s
        if lasted_s < FAST_S:
            self._size = min(2 * self._size, self._largest)
        elif lasted_s > SLOW_S:
            self._size = max(self._size // 2, self._smallest, self._unused)

    def _build_lease(self, sends: int, through: int) -> Lease:
        rows = [
            QuotaRow(self._minutes[at].minute, self._boot_id, at, self._minutes[at].sent)
            for at in sorted(self._minutes if self._replaces_all else self._dirty)
            if at in self._minutes
        ]
        if self._replaces_all:
            rows += self._undated
        self._dirty.clear()
        return Lease(sends, through, tuple(rows), self._now[0] - DAY_MINUTES, self._replaces_all)

    def _lease_holds(self) -> bool:
        """Return whether sends may still count in the minute of the lease.

        The minutes of the boot clock do not end at midnight: a calendar day may begin within the last minute of a lease.
        """
        minute, wall_minute = self._now
        is_over = self._utc and self._booked_day < wall_minute // DAY_MINUTES
        return minute <= self._valid_through and not is_over

    def _return_unused(self) -> None:
        self._book(self._booked_minute, -self._unused)
        self._unused = 0

    def _book(self, at: int, sends: int, wall_minute: int = 0) -> None:
        """Add ``sends`` to a bucket; negative ones are ignored if the bucket has expired."""
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
                # No lease is dated later than the next minute. A damaged row that is would count for longer than a day.
                bucket = self._minutes.setdefault(min(row.boot_minute, minute + 1), _Minute(row.minute))
                bucket.sent += row.sent
            else:
                self._undated.append(row)
        if self._was_believed:
            self._date_by_wall_clock(minute, wall_minute)

    def _date_by_wall_clock(self, minute: int, wall_minute: int) -> None:
        """Date the buckets of earlier boots by the wall clock, which is believed now."""
        scale = self._trust.scale() if self._trust and self._undated else AgeScale(wall_minute * MINUTE_MS)
        for row in self._undated:
            # A wrong clock may have dated it, for a second or longer; a lease is dated up to two minutes ahead.
            age_ms = scale.age_ms(row.minute * MINUTE_MS, earlier_ms=2 * MINUTE_MS, later_ms=MINUTE_MS - 1)
            age = wall_minute - (scale.now_ms - age_ms) // MINUTE_MS
            # The minutes of the two clocks begin at different seconds: the later date can only over-count.
            at = minute + 1 - max(0, age)
            bucket = self._minutes.setdefault(at, _Minute(min(wall_minute - age, wall_minute + 1)))
            bucket.sent += row.sent
        if self._undated:
            self._undated = []
            self._dirty, self._replaces_all = set(self._minutes), True
        for at, bucket in self._minutes.items():
            true_minute = wall_minute - (minute - at)
            if abs(bucket.minute - true_minute) > SAME_MINUTES:  # booked while the wall clock showed another time
                bucket.minute = min(true_minute, wall_minute + 1)
                self._dirty.add(at)

    def _refresh(self) -> None:
        # Every question comes through here, so a new minute, a clock that jumped or was set, and a reload are noticed
        # before anything is allowed by the old count.
        now = (int(self._clock.boot_s() // 60), self._clock.wall_ms() // 60_000)
        config, believed = self._config(), self._trust is None or self._trust.believed
        if believed != self._was_believed:
            self._was_believed = believed
            if believed:
                self._date_by_wall_clock(*now)
            self._recount(*now)
        if config is not self._applied:
            # A lease of a larger day may exceed a smaller one: its sends are allowed only within the new limit.
            self._apply_config(config)
            self._recount(*now)
        elif now != self._now:
            self._recount(*now)

    def _recount(self, minute: int, wall_minute: int) -> None:
        """Drop expired buckets and count again, after a new minute, a step of the wall clock or a new configuration."""
        self._now = (minute, wall_minute)
        if not self._lease_holds():
            self._return_unused()
        for at, bucket in list(self._minutes.items()):
            # One minute more than a day: the last request of a bucket may have left at the end of its minute.
            if at + 1 + DAY_MINUTES <= minute:
                del self._minutes[at]
            elif bucket.minute > wall_minute + 1 and self._was_believed:
                # The wall clock was set back. Left in the future, the bucket would count again on a later day.
                bucket.minute = min(wall_minute, wall_minute - (minute - at))
                self._dirty.add(at)
        self._spent = sum(row.sent for row in self._undated)
        self._spent += sum(bucket.sent for bucket in self._minutes.values() if self._counts(bucket))
        self._free_at_boot_s.clear()
        left = max(1, self.per_day - self._used())
        spread = left / (60 * (DAY_MINUTES - wall_minute % DAY_MINUTES)) if self._utc else self.per_day / DAY_S
        self._spread_per_s = spread if self._spread else math.inf

    def _counts(self, bucket: _Minute) -> bool:
        # Which calendar day a bucket is of, only the wall clock can tell: while it is not believed, all of them count.
        return not (self._utc and self._was_believed) or bucket.minute // DAY_MINUTES >= self._now[1] // DAY_MINUTES

    def _used(self) -> int:
        # Leases are booked before they are used: what they still hold has not been sent.
        return self._spent - self._unused - (self._open_lease.sends if self._open_lease else 0)

    def _wait_s(self, limit: int) -> float:
        """Return the seconds until less than ``limit`` is used; 0 if it is now."""
        boot_s = self._clock.boot_s()
        wait_s = max(0.0, self._held_until_boot_s - boot_s)
        if self._used() < limit:
            return wait_s
        if self._utc and self._was_believed:
            return max(wait_s, self._to_midnight_s())
        # Kept for each limit until a bucket changes: every decision asks, and the answer sorts all buckets of the day.
        if limit not in self._free_at_boot_s:
            self._free_at_boot_s[limit] = self._expiry_boot_s(self._used() - limit + 1)
        return max(wait_s, self._free_at_boot_s[limit] - boot_s)

    def _expiry_boot_s(self, excess: int) -> float:
        """Return when the oldest buckets that hold ``excess`` requests have expired, as boot time."""
        # Undated buckets count as of now until they are dated, which clears what is cached here.
        undated = (self._now[0], sum(row.sent for row in self._undated))
        for at, sent in sorted([*((at, bucket.sent) for at, bucket in self._minutes.items()), undated]):
            excess -= sent
            if excess <= 0:
                return 60.0 * (at + 1 + DAY_MINUTES)
        raise AssertionError("more is used than all buckets hold")

    def _to_midnight_s(self) -> float:
        return DAY_S - self._clock.wall_ms() / 1000 % DAY_S


_DAY_MS: Final = 86_400_000
# Names and days. Not cleared at a new day: a clock that is wrong for a minute would forget the true day.
COUNTED_MAX: Final = 10_000


class DailyCaps:
    """The places taken, by name and day. ``rows`` are those of earlier processes: (number, day, taken)."""

    def __init__(self, rows: Iterable[tuple[int, int, int]] = ()) -> None:
        self._taken: Counter[CapUse] = Counter({CapUse(number, day): taken for number, day, taken in rows})

    def take(self, cap: Cap, now_ms: int) -> CapUse | None:
        """Take a place for one event; None if the day's places are taken."""
        use = CapUse(_number_of(cap.name), now_ms // _DAY_MS)
        if self._taken[use] >= cap.per_day:
            return None
        if len(self._taken) > COUNTED_MAX:
            self._taken = Counter({held: taken for held, taken in self._taken.items() if held.day >= use.day - 1})
        self._taken[use] += 1
        return use

    def give_back(self, use: CapUse | None) -> None:
        """Return the place of an event that will not be sent, if it has one."""
        if use is not None:
            self._taken[use] -= 1


def _number_of(name: str) -> int:
    """Return a number that stands for the name in the outbox, the same in every process."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1

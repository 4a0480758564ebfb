"""The pace that PX accepts is found and kept, an hour of virtual time in a second."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple, Protocol

import pytest
from deliver_parts import make_destination

from sidecar.deliver.bucket import Bucket
from sidecar.deliver.destination import Open, Probe
from sidecar.deliver.pace import LOWEST_PER_S, Pace
from sidecar.px import PxAnswer, classify

CEILING = 190
LATENCY_S = 0.1
CREATED = PxAnswer(201)


class Limiter(Protocol):
    """Decides whether PX takes a request at this time, when it takes ``per_s`` a second."""

    def takes(self, now_s: float, per_s: int) -> bool: ...


class SlidingWindow:
    """Counts what it took in the last second."""

    def __init__(self) -> None:
        self._taken = deque[float]()

    def takes(self, now_s: float, per_s: int) -> bool:
        while self._taken and self._taken[0] <= now_s - 1.0:
            self._taken.popleft()
        if len(self._taken) >= per_s:
            return False
        self._taken.append(now_s)
        return True


class FixedWindow:
    """Counts what it took in this second of the clock."""

    def __init__(self) -> None:
        self._second, self._taken = 0, 0

    def takes(self, now_s: float, per_s: int) -> bool:
        if int(now_s) != self._second:
            self._second, self._taken = int(now_s), 0
        self._taken += 1
        return self._taken <= per_s


class TokenBucket:
    """Saves up for a second."""

    def __init__(self) -> None:
        self._tokens, self._at_s = 0.0, 0.0

    def takes(self, now_s: float, per_s: int) -> bool:
        self._tokens = min(float(per_s), self._tokens + (now_s - self._at_s) * per_s)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Arrival(NamedTuple):
    """A request at PX: when, whether it was taken, and how many a second PX took then."""

    at_s: float
    taken: bool
    limit: int


def arrivals(
    limiter: Limiter, limit: Callable[[float], int], seconds: float, *, retry_after: str | None, seed: int = 1
) -> Iterator[Arrival]:
    """Send as fast as destination and bucket allow to a PX that takes ``limit(time)`` a second."""
    rng = Random(seed)
    now_s, number = 0.0, 0
    bucket, destination = Bucket(CEILING, now_s), make_destination(now_s, rng.random, per_second=CEILING)
    answers: list[tuple[float, int, bool, bool]] = []  # when, number, taken, probe
    while now_s < seconds:
        while answers and answers[0][0] <= now_s:
            _, event, taken, probe = heapq.heappop(answers)
            reply = CREATED if taken else PxAnswer(429, b"", retry_after)
            verdict = classify(reply, wall_ms=0)
            destination.on_verdict(verdict, event=event, user=f"u{event}", now_s=now_s, probe=probe)
        permission = destination.may_send(now_s)
        next_s = answers[0][0] if answers else float("inf")
        if isinstance(permission, Open | Probe):
            rate = CEILING * destination.pace()
            if rate != bucket.per_second:
                bucket.set_rate(rate, now_s, ceiling=CEILING)
            ready_s = bucket.ready_at_s(now_s)
            if ready_s <= now_s:
                number += 1
                if probe := isinstance(permission, Probe):
                    destination.probe_started(now_s)
                bucket.take(now_s)
                taken = limiter.takes(now_s + LATENCY_S / 2, limit(now_s))
                heapq.heappush(answers, (now_s + LATENCY_S, number, taken, probe))
                yield Arrival(now_s, taken, limit(now_s))
                continue
            next_s = min(next_s, ready_s)
        else:
            next_s = min(next_s, permission.until_s)
        now_s = next_s


LIMITERS = [SlidingWindow, FixedWindow, TokenBucket]


def used_and_refused(seen: list[Arrival], from_s: float, to_s: float, limit: int) -> tuple[float, float]:
    """Return what was taken, as a share of the limit, and which share was refused, between two times."""
    within = [arrival for arrival in seen if from_s <= arrival.at_s < to_s]
    taken = sum(arrival.taken for arrival in within)
    return taken / (limit * (to_s - from_s)), 1 - taken / len(within)


@pytest.mark.parametrize("limiter", LIMITERS, ids=lambda limiter: limiter.__name__)
@pytest.mark.parametrize(
    ("limit", "seconds", "retry_after"),
    [
        *((1, 3600, None), (1, 3600, "1"), (2, 3600, "1"), (3, 3600, None), (7, 3600, None), (20, 900, "1")),
        *((50, 600, None), (100, 420, None), (150, 300, "1"), (189, 300, None)),
    ],
)
def test_a_lower_limit_of_px_is_found_and_kept(limiter, limit, seconds, retry_after):
    seen = list(arrivals(limiter(), lambda _: limit, seconds, retry_after=retry_after))
    used, refused = used_and_refused(seen, 120, seconds, limit)
    assert used >= 0.9
    assert refused <= 0.02


@pytest.mark.parametrize("limiter", LIMITERS, ids=lambda limiter: limiter.__name__)
def test_a_limit_that_changes_is_followed(limiter):
    limits, each_s = [189, 20, 110, 1, 60, 5, 90, 100], 240
    seen = list(
        arrivals(limiter(), lambda at_s: limits[min(int(at_s / each_s), 7)], each_s * len(limits), retry_after="1")
    )
    for number, limit in enumerate(limits):
        used, refused = used_and_refused(seen, number * each_s + 120, (number + 1) * each_s, limit)
        assert (used >= 0.9, refused <= 0.02) == (True, True), (limit, used, refused)


# --- rules ---


def deliver(pace: Pace, from_s: float, seconds: float, per_s: float | None = None) -> float:
    """Deliver at the pace in force (or at ``per_s``) for some time; return its end."""
    now_s = from_s
    while now_s < from_s + seconds:
        now_s += 1 / (per_s or pace.per_second())
        pace.delivered(now_s)
    return now_s


def test_an_episode_lowers_the_pace_once():
    pace = Pace(lambda: CEILING, 0.0)
    pace.refused(1.0, new_episode=True)
    for number in range(50):
        pace.refused(1.0 + number, new_episode=False)
    assert pace.share() == pytest.approx(0.9)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 1 / CEILING])
def test_deliveries_bring_the_ceiling_back_in_about_ten_seconds(share):
    pace = Pace(lambda: CEILING, 0.0, share)
    deliver(pace, 0.0, 11.0)
    assert pace.share() == 1.0


def test_time_alone_does_not_raise_the_pace():
    pace = Pace(lambda: CEILING, 0.0)
    pace.refused(1.0, new_episode=True)
    pace.reopened(5.0)
    pace.delivered(100_000.0)
    assert pace.share() == pytest.approx(0.9)


def test_a_late_refusal_at_the_ceiling_is_a_first_one():
    pace = Pace(lambda: CEILING, 0.0)
    pace.refused(1.0, new_episode=True)
    now_s = deliver(pace, 2.0, 40.0)
    pace.refused(now_s, new_episode=True)
    assert pace.share() == pytest.approx(0.9)


def test_refused_again_it_holds_just_below():
    pace = Pace(lambda: CEILING, 0.0)
    pace.refused(1.0, new_episode=True)
    now_s = deliver(pace, 2.0, 1.5)
    refused = pace.per_second()
    pace.refused(now_s, new_episode=True)
    held = pace.per_second()
    assert 0.9 * refused <= held < refused
    deliver(pace, now_s, 9.0)
    assert pace.per_second() == held


def test_tries_become_rarer_while_they_are_refused():
    pace, now_s, waits = Pace(lambda: CEILING, 0.0, 0.5), 0.0, []
    pace.refused(now_s, new_episode=True)
    for _ in range(6):
        held, began_s = pace.per_second(), now_s
        while pace.per_second() <= held:
            now_s = deliver(pace, now_s, 0.1)
        waits.append(now_s - began_s)
        pace.refused(now_s, new_episode=True)
    assert waits == sorted(waits)
    assert waits[0] < 15 < 55 < waits[-1] < 65


@pytest.mark.parametrize("ceiling", [0.2, 1.0, 190.0])
def test_the_lowest_pace_is_one_a_second_or_the_ceiling(ceiling):
    pace = Pace(lambda: ceiling, 0.0)
    for number in range(100):
        pace.refused(10.0 * number, new_episode=True)
    assert pace.per_second() == min(ceiling, LOWEST_PER_S)
    assert 0 < pace.share() <= 1.0


def test_a_saved_pace_is_taken_up():
    assert Pace(lambda: CEILING, 0.0, 0.5).per_second() == CEILING / 2

"""Full garbage collections hold up all connections: they are kept apart, and connections leave nothing to collect."""

import gc

from sidecar.http.collector import SHARE, CollectionPace


class Recorded:
    """A clock, and the threshold of full collections that was set last."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.full = gc.get_threshold()[2]
        self.pace = CollectionPace(lambda: self.now_s, self.set_threshold)

    def set_threshold(self, _younger: int, _middle: int, full: int) -> None:
        self.full = full

    def collect(self, generation: int, took_s: float = 0.0) -> None:
        self.pace("start", {"generation": generation})
        self.now_s += took_s
        self.pace("stop", {"generation": generation})


def test_a_long_full_collection_is_followed_by_none_for_long():
    recorded = Recorded()
    usual = recorded.full
    recorded.collect(2, took_s=0.3)
    assert recorded.full > 100_000
    recorded.now_s = 0.3 / SHARE
    recorded.collect(1)
    assert recorded.full > 100_000
    recorded.now_s += 0.3
    recorded.collect(0)
    assert recorded.full > 100_000
    recorded.collect(1)
    assert recorded.full == usual


def test_a_short_full_collection_delays_the_next_shortly():
    recorded = Recorded()
    usual = recorded.full
    recorded.collect(2, took_s=0.001)
    recorded.now_s += 0.21
    recorded.collect(1)
    assert recorded.full == usual

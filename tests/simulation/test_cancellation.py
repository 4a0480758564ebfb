"""One short story, broken off at every step of every task, and with every request failing in every way.

Whatever is cancelled between deciding and doing, the next process takes up: the account of ``sim_account`` is exact.
"""

from collections.abc import Callable

import msgspec
import pytest
import trio
from sim_px import NOT_PROCESSED
from sim_run import run
from sim_scenario import Event, Scenario, Step
from sim_world import World

CONFIG = """
[px]
property_key = "AP-XXXXXXXXXX-2"
[people]
users = "upsert"
accounts = "upsert"
[mapping.event.Paid]
priority = "high"
[deliver]
per_second = 40
max_in_flight = 3
stop_timeout = "1s"
"""
EVENTS = [
    *(Event(0, "identify", "a"), Event(1, "track", "a"), Event(2, "track", "b"), Event(3, "group", "b")),
    *(Event(4, "no_user", None), Event(5, "high", "a"), Event(6, "bad", "a"), Event(7, "track", "b")),
    *(Event(number, "track", "c") for number in range(8, 17)),
]
STORY = Scenario(
    seed=1,
    config=CONFIG,
    knobs={
        "page_rows": 3,
        "ready_low": 2,
        "queue_max": 2,
        "waiting_max": 10,
        "commit_rows": 5,
        "newest_ids": 4,
        "wal_pages": 4,
    },
    per_second=40,
    per_day=990_000,
    steps=(
        Step(0.0, "px", {"faults": ["later"], "share": 0.2, "for_s": 0.5, "waits": False}),
        Step(0.0, "send", {"way": "routed", "events": msgspec.to_builtins(EVENTS[:8]), "patience_s": None}),
        Step(0.05, "send", {"way": "array", "events": msgspec.to_builtins(EVENTS[8:]), "patience_s": None}),
        Step(1.0, "restart", {"down_s": 0.01, "twice_s": None}),
    ),
)
FAULTS = (*NOT_PROCESSED, "away", "lost", "hang", "late", "drip")


class At(trio.abc.Instrument):
    """Does something right before the ``n``-th step of any task."""

    def __init__(self, n: int, do: Callable[[], None]) -> None:
        self.left, self.steps, self.do = n, 0, do

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.left:
            self.do()


def end_life(world: World, how: str) -> None:
    if world.life is None:
        return
    world.log(f"--- {how}")
    if how == "kill":
        world.life.crash()
    elif how == "cancel":
        world.life.cancel()
    else:
        for client in world.clients:
            client.cancel()


def story(watch: Callable[[World], trio.abc.Instrument]) -> None:
    done = run(STORY, watch)
    if done.error is not None:
        raise AssertionError("\n".join(done.lines)) from done.error


def length_of_the_story() -> tuple[int, int]:
    """How many steps of tasks it takes until the script is through, and how many requests."""
    found: list[tuple[At, World]] = []

    def watch(world: World) -> At:
        found.append((At(-1, lambda: None), world))
        return found[0][0]

    story(watch)
    return found[0][0].steps, len(found[0][1].px.sent)


@pytest.mark.parametrize("how", ["kill", "cancel", "clients go away"])
def test_broken_off_at_any_step_nothing_is_lost_and_little_is_repeated(how: str):
    steps, _ = length_of_the_story()
    assert steps > 300
    for n in range(1, steps + 1):
        story(lambda world, n=n: At(n, lambda: end_life(world, how)))


@pytest.mark.parametrize("fault", FAULTS)
def test_whichever_request_fails_the_account_is_exact(fault: str):
    _, requests = length_of_the_story()

    def failing(world: World, n: int) -> At:
        world.px.fault_at = (n, fault)
        return At(-1, lambda: None)

    for n in range(1, requests + 1):
        story(lambda world, n=n: failing(world, n))

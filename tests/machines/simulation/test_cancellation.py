"""One short scenario, stopped at every step of every task, and with every kind of fault at every request.

The next process continues whatever is cancelled between decision and action; ``sim_check`` verifies each run.
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
SCENARIO = Scenario(
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


class BeforeStep(trio.abc.Instrument):
    """Calls ``action`` right before the ``n``-th step of any task."""

    def __init__(self, n: int, action: Callable[[], None]) -> None:
        self.remaining, self.steps, self.action = n, 0, action

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.remaining:
            self.action()


def end_process(world: World, end: str) -> None:
    if world.process is None:
        return
    world.log(f"--- {end}")
    if end == "kill":
        world.process.crash()
    elif end == "cancel":
        world.process.cancel()
    else:
        for client in world.clients:
            client.cancel()


def run_with(watch: Callable[[World], trio.abc.Instrument]) -> None:
    outcome = run(SCENARIO, watch)
    if outcome.error is not None:
        raise AssertionError("\n".join(outcome.lines)) from outcome.error


def length_of_the_scenario() -> tuple[int, int]:
    """Return the number of task steps and of requests in one undisturbed run."""
    watched: list[tuple[BeforeStep, World]] = []

    def watch(world: World) -> BeforeStep:
        watched.append((BeforeStep(-1, lambda: None), world))
        return watched[0][0]

    run_with(watch)
    return watched[0][0].steps, len(watched[0][1].px.sent)


@pytest.mark.parametrize("end", ["kill", "cancel", "clients go away"])
def test_a_stop_at_any_step_loses_nothing(end: str):
    steps, _ = length_of_the_scenario()
    assert steps > 300
    for n in range(1, steps + 1):
        run_with(lambda world, n=n: BeforeStep(n, lambda: end_process(world, end)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_request_loses_nothing(fault: str):
    _, requests = length_of_the_scenario()

    def failing(world: World, n: int) -> BeforeStep:
        world.px.fault_at = (n, fault)
        return BeforeStep(-1, lambda: None)

    for n in range(1, requests + 1):
        run_with(lambda world, n=n: failing(world, n))

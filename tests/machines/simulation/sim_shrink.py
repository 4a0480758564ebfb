"""Shrink a failing scenario: fewer steps, then fewer events, while it still fails."""

from collections.abc import Callable, Iterator

import msgspec
from sim_scenario import Scenario, Step

__all__ = ["shrink"]

RUNS_MAX = 400


def shrink(scenario: Scenario, fails: Callable[[Scenario], BaseException | None]) -> Scenario:
    """Return the smallest scenario found whose error has the same class."""
    first = fails(scenario)
    assert first is not None
    runs, smaller = 0, True
    while smaller and runs < RUNS_MAX:
        smaller = False
        for candidate in _candidates(scenario):
            runs += 1
            error = fails(candidate)
            if type(error) is type(first):
                scenario, smaller = candidate, True
                break
            if runs >= RUNS_MAX:
                break
    return scenario


def _candidates(scenario: Scenario) -> Iterator[Scenario]:
    """Yield the scenario without halves, quarters … of the steps, then of the events of each step."""
    for kept in _without_parts(scenario.steps):
        yield msgspec.structs.replace(scenario, steps=kept)
    for at, step in enumerate(scenario.steps):
        events = tuple(step.args.get("events", ()))
        if len(events) > 1:
            for kept in _without_parts(events):
                if kept:
                    fewer = Step(step.at_s, step.what, step.args | {"events": list(kept)})
                    yield msgspec.structs.replace(
                        scenario, steps=(*scenario.steps[:at], fewer, *scenario.steps[at + 1 :])
                    )


def _without_parts(items: tuple) -> Iterator[tuple]:
    size = len(items) // 2
    while size:
        for start in range(0, len(items), size):
            yield items[:start] + items[start + size :]
        size //= 2
    if len(items) == 1:
        yield ()

"""Regressions found by the simulation: commits that report an error although they happened."""

from sim_draw import draw
from sim_run import run
from sim_scenario import Event, Scenario, Step


def scenario(*steps: Step) -> Scenario:
    """Return a scenario with these steps and nothing else."""
    return Scenario(1, draw(1).config.partition("[mapping")[0], {}, 190, 990_000, steps)


def send(at_s: float, *events: Event) -> Step:
    events = [{"number": event.number, "kind": event.kind, "user": event.user} for event in events]
    return Step(at_s, "send", {"way": "routed", "events": events, "patience_s": None})


def test_a_retry_whose_commit_reported_an_error_is_delivered():
    """Seed found by the simulation: a dead letter was retried in a commit that failed with an I/O error but happened.

    Delivery did not learn of the retry and never sent the event.
    """
    error = {"error": "ioerr_after", "count": 1, "skip": 0, "anywhere": False}
    result = run(
        scenario(
            send(0.0, Event(0, "refused", "u0")),
            Step(5.0, "disk_error", error),
            Step(6.0, "retry_dead"),
            send(6.1, Event(0, "refused", "u0")),
        )
    )
    assert result.error is None, "\n".join(result.lines)
    assert any("retry_dead failed" in line for line in result.lines)
    assert result.coverage["px refused"] == 2

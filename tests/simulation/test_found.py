"""What the simulation has found, as short stories."""

from sim_draw import draw
from sim_run import run
from sim_scenario import Event, Scenario, Step


def story(*steps: Step) -> Scenario:
    """These steps, with nothing else."""
    return Scenario(1, draw(1).config.partition("[mapping")[0], {}, 190, 990_000, steps)


def send(at_s: float, *events: Event) -> Step:
    made = [{"number": event.number, "kind": event.kind, "user": event.user} for event in events]
    return Step(at_s, "send", {"way": "routed", "events": made, "patience_s": None})


def test_a_dead_letter_that_was_retried_although_the_commit_failed_is_not_forgotten():
    error = {"error": "ioerr_after", "count": 1, "skip": 0, "anywhere": False}
    told = run(
        story(
            send(0.0, Event(0, "bad", "u0")),
            Step(5.0, "disk_error", error),
            Step(6.0, "retry_dead"),
            send(6.1, Event(0, "bad", "u0")),
        )
    )
    assert told.error is None, "\n".join(told.lines)
    assert any("retry_dead failed" in line for line in told.lines)
    assert told.met["dead:mapping_error"] == 1

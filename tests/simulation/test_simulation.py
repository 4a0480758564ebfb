"""The whole daemon in simulated days: after each seed the account is exact.

``PX_SIDECAR_SEEDS=5000 pytest tests/simulation`` runs more of them; ``replay.py`` even more, and one again with its log.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from replay import failure
from sim_run import run
from sim_scenario import Scenario, Step, draw
from sim_shrink import shrink

SEEDS = int(os.environ.get("PX_SIDECAR_SEEDS", "600"))
BLOCK = 100


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_a_seed_brings_the_account_is_exact(first: int):
    wrong = [said for seed in range(first, min(first + BLOCK, SEEDS)) if (said := failure(seed)) is not None]
    assert not wrong, "\n".join(wrong)


def test_a_seed_always_tells_the_same_story():
    """Also in another process, where texts have other hashes."""
    command = [sys.executable, str(Path(__file__).with_name("replay.py")), "4"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    told = [
        subprocess.run(
            command, env=environment | {"PYTHONHASHSEED": hashes}, capture_output=True, text=True, check=True
        ).stdout
        for hashes in ("1", "2")
    ]
    assert told[0].count("\n") > 50
    assert _without_folders(told[0]) == _without_folders(told[1])
    assert _without_folders("\n".join(run(draw(4)).lines)) in _without_folders(told[0])


def _without_folders(text: str) -> str:
    return re.sub(r"/tmp\w+|/dev/shm/\w+", "", text)


def test_a_failing_story_is_shrunk_to_what_makes_it_fail():
    """Here it fails whenever there is a crash and event 7 is sent."""

    def fails(story: Scenario) -> Exception | None:
        what = {step.what for step in story.steps}
        numbers = {event["number"] for step in story.steps for event in step.args.get("events", ())}
        return ValueError() if "crash" in what and 7 in numbers else None

    events = [{"number": number, "kind": "track", "user": "u"} for number in range(20)]
    steps = [Step(float(at_s), "pause") for at_s in range(10)]
    steps += [Step(11.0, "send", {"events": events}), Step(12.0, "crash"), Step(13.0, "resume")]
    story = shrink(Scenario(1, "", {}, 1.0, 1, tuple(steps)), fails)
    assert [step.what for step in story.steps] == ["send", "crash"]
    assert [event["number"] for event in story.steps[0].args["events"]] == [7]

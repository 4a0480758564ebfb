"""The whole daemon in simulated days: after each seed the account is exact.

``PX_SIDECAR_SEEDS=5000 pytest tests/simulation`` runs more of them; ``replay.py`` even more, and one again with its log.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from replay import failure
from sim_draw import FAULTS, KINDS, LOOKS, ODD, WAYS, draw
from sim_px import NOT_PROCESSED, RETRY_AFTER
from sim_run import run
from sim_scenario import APPS, Scenario, Step
from sim_shrink import shrink

from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.steps import Rest
from sidecar.px import Answer

SEEDS = int(os.environ.get("PX_SIDECAR_SEEDS", "2000"))
BLOCK = 100
COVERING = 1000  # among so many seeds each kind of trouble occurs
EVERY = (
    *("crash", "crash with requests out", "reboot", "restart", "second signal", "gave up", "did not begin"),
    *("disk torn log", "disk torn database", "disk full", "disk busy", "disk ioerr", "disk ioerr_after"),
    *(
        "disk not in a commit",
        "slow disk",
        "clock back",
        "clock ahead",
        "reloaded",
        "reload refused",
        "pause",
        "resume",
    ),
    *(
        "replayed",
        "discarded",
        "forget",
        "client gave up",
        "carried",
        "broke off",
        "asked again",
        "quota spent",
        "duplicates",
        "ambiguous",
    ),
    *("crash at a lease", "sent without a forbidden field", "account known", "the window was nearly full"),
    *("replayed, more pages", "discarded, more pages"),
    *("refused outbox_full", "refused disk_full", "stored again", *(f"look at {at}" for at in LOOKS)),
    *(f"way {way}" for way in WAYS),
    *(f"app {app}" for app in APPS),
    *(f"event {kind}" for kind in {*KINDS, *ODD}),
    *(f"px {fault}" for fault in FAULTS),
    *(f"px status {one.status}" for kind in NOT_PROCESSED.values() for one in kind if isinstance(one, Answer)),
    *(f"px retry-after {after}" for after in RETRY_AFTER),
    *(f"dead:{reason}" for reason in ("bad_event", "refused", "firewall", "too_old")),
    *(
        f"dropped:{reason}"
        for reason in ("no_user", "remembered", "not_supported", "opted_out", "discarded", "forgotten", "outbox_full")
    ),
)


@cache
def block(first: int) -> tuple[list[str], Counter[str]]:
    """What was wrong with the seeds of a block, and what they met."""
    met: Counter[str] = Counter()
    seeds = range(first, min(first + BLOCK, SEEDS))
    return [said for seed in seeds if (said := failure(seed, met)) is not None], met


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_a_seed_brings_the_account_is_exact(first: int):
    wrong, _ = block(first)
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(600)  # alone it has to run the blocks itself
def test_each_kind_of_trouble_occurs():
    met = sum((block(first)[1] for first in range(0, min(COVERING, SEEDS), BLOCK)), Counter())
    rare = {kind: met[kind] for kind in EVERY if met[kind] < (1 if kind.startswith(("px status", "px retry")) else 3)}
    assert not rare or SEEDS < COVERING, f"too rare: {rare}"


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


def test_who_turns_without_end_is_found(monkeypatch):
    monkeypatch.setattr(Dispatcher, "decide", lambda _self, now_s: Rest(now_s))
    assert "turns without end" in repr(run(draw(4)).error)


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

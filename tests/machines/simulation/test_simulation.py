"""The whole daemon under many seeds; the check after each run finds no violation.

``PX_SIDECAR_SEEDS=5000 pytest tests/machines/simulation`` runs more seeds; ``replay.py`` runs any number, or repeats one.
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

from sidecar.deliver.actions import WaitUntil
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.px import PxAnswer

SEEDS = int(os.environ.get("PX_SIDECAR_SEEDS", "2000"))
BLOCK = 100
COVERING = 1000  # every kind of trouble occurs among this many seeds
EXPECTED = (
    *("crash", "crash with requests out", "reboot", "restart", "second signal", "gave up", "did not start"),
    *("disk torn log", "disk torn database", "disk full", "disk busy", "disk ioerr", "disk ioerr_after"),
    *(
        "disk not in a commit",
        "slow disk",
        "clock back",
        "clock ahead",
        "clock wrong",
        "clock wrong at boot",
        "dead letter too old",
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
        "exported",
        "broke off",
        "asked again",
        "quota spent",
        "duplicates",
        "ambiguous",
    ),
    *("crash at a lease", "sent without a forbidden field", "account known", "the window was nearly full"),
    *("replayed, more pages", "discarded, more pages"),
    *(
        "disk files removed",
        "disk files log_removed",
        "disk files replaced",
        "disk files put back",
        "disk files rescued",
    ),
    *("outbox replaced", "freeze", "frozen with requests out"),
    *("refused outbox_full", "refused disk_full", "stored again", *(f"look at {at}" for at in LOOKS)),
    *(f"way {way}" for way in WAYS),
    *(f"app {app}" for app in APPS),
    *(f"event {kind}" for kind in {*KINDS, *ODD}),
    *(f"px {fault}" for fault in FAULTS),
    *(
        f"px status {answer.status}"
        for kind in NOT_PROCESSED.values()
        for answer in kind
        if isinstance(answer, PxAnswer)
    ),
    *(f"px retry-after {after}" for after in RETRY_AFTER),
    *(f"dead:{reason}" for reason in ("bad_event", "refused", "firewall", "too_old")),
    *(
        f"dropped:{reason}"
        for reason in ("no_user", "remembered", "not_supported", "opted_out", "discarded", "forgotten", "outbox_full")
    ),
)


@cache
def block(first: int) -> tuple[list[str], Counter[str]]:
    """Return the failures of a block of seeds, and its coverage."""
    coverage: Counter[str] = Counter()
    seeds = range(first, min(first + BLOCK, SEEDS))
    return [message for seed in seeds if (message := failure(seed, coverage)) is not None], coverage


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_seed_passes_the_check(first: int):
    failures, _ = block(first)
    assert not failures, "\n".join(failures)


@pytest.mark.timeout(600)  # run alone, it has to run the blocks itself
def test_every_kind_of_trouble_occurs():
    coverage = sum((block(first)[1] for first in range(0, min(COVERING, SEEDS), BLOCK)), Counter())
    rare = {
        kind: coverage[kind]
        for kind in EXPECTED
        if coverage[kind] < (1 if kind.startswith(("px status", "px retry")) else 3)
    }
    assert not rare or SEEDS < COVERING, f"too rare: {rare}"


def test_a_seed_always_gives_the_same_run():
    """Also in another process, with another hash seed for strings."""
    command = [sys.executable, str(Path(__file__).with_name("replay.py")), "4"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    outputs = [
        subprocess.run(
            command, env=environment | {"PYTHONHASHSEED": hashes}, capture_output=True, text=True, check=True
        ).stdout
        for hashes in ("1", "2")
    ]
    assert outputs[0].count("\n") > 50
    assert _strip_paths(outputs[0]) == _strip_paths(outputs[1])
    assert _strip_paths("\n".join(run(draw(4)).lines)) in _strip_paths(outputs[0])


def test_a_busy_loop_is_reported(monkeypatch):
    monkeypatch.setattr(Dispatcher, "decide", lambda _self, now_s: WaitUntil(now_s))
    assert "busy loop" in repr(run(draw(4)).error)


def _strip_paths(text: str) -> str:
    return re.sub(r"/tmp\w+|/dev/shm/\w+", "", text)


def test_a_failing_scenario_is_shrunk_to_its_cause():
    """The example fails whenever there is a crash and event 7 is sent."""

    def fails(scenario: Scenario) -> Exception | None:
        kinds = {step.what for step in scenario.steps}
        numbers = {event["number"] for step in scenario.steps for event in step.args.get("events", ())}
        return ValueError() if "crash" in kinds and 7 in numbers else None

    events = [{"number": number, "kind": "track", "user": "u"} for number in range(20)]
    steps = [Step(float(at_s), "pause") for at_s in range(10)]
    steps += [Step(11.0, "send", {"events": events}), Step(12.0, "crash"), Step(13.0, "resume")]
    scenario = shrink(Scenario(1, "", {}, 1.0, 1, tuple(steps)), fails)
    assert [step.what for step in scenario.steps] == ["send", "crash"]
    assert [event["number"] for event in scenario.steps[0].args["events"]] == [7]

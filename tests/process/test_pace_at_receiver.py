"""The pace as PX sees it, on a quiet machine: never above the ceiling, across idle time, restarts and kills.

All tests are ``-m slow`` and need the machine for themselves: if the receiver waits for a processor, requests that were
sent evenly arrive in bursts, and the figure describes the machine. ``tests/deliver/test_send_log.py`` checks the send
times of the daemon itself against the ceiling, without tolerance, in every run.
"""

import json
import random
import time

import pytest
from process_harness import ProcessHarness, wait_until

CEILING = 190
# The most that a receiver on the same host may see in a second, while no more than CEILING are sent: requests that are
# sent evenly arrive with jitter.
SEEN = 1.05 * CEILING
TARGET = 0.995


def fill(harness: ProcessHarness, events: int, users: int = 1_200) -> None:
    """Have the daemon accept a backlog while PX is unreachable."""
    for start in range(0, events, 1_000):
        batch = [
            {"type": "track", "event": "Feature Used", "userId": f"u{number % users}", "messageId": f"m{number}"}
            for number in range(start, min(start + 1_000, events))
        ]
        status, _, _ = harness.post("/v1/batch", json.dumps({"batch": batch}).encode())
        assert status == 200


def prepare_backlog(harness: ProcessHarness, events: int, latency: str) -> None:
    """Fill the outbox of a daemon that cannot reach PX, stop it, and start PX."""
    harness.write_config()
    daemon = harness.start_daemon()
    fill(harness, events)
    assert harness.stop(daemon) == 0
    harness.start_sandbox("--latency", latency)


@pytest.mark.slow
def test_the_ceiling_holds_after_a_start_and_after_idle_time(harness: ProcessHarness):
    prepare_backlog(harness, 600, "20ms")
    harness.start_daemon()
    wait_until(lambda: harness.report()["stored"] == 600, what="the first drain")
    time.sleep(1.5)
    fill_again = [
        {"type": "track", "event": "Feature Used", "userId": f"v{number}", "messageId": f"n{number}"}
        for number in range(600)
    ]
    harness.post("/v1/batch", json.dumps({"batch": fill_again}).encode())
    wait_until(lambda: harness.report()["stored"] == 1_200, what="the second drain")
    assert harness.report()["largest_second"] <= SEEN
    assert harness.report()["by_status"] == {"201": 1_200}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends", ["RKRRKRKR"])
def test_the_ceiling_holds_across_restarts_and_kills(harness: ProcessHarness, ends: str):
    """R is a restart, K a ``kill -9``."""
    events = 450 * len(ends)
    prepare_backlog(harness, events, "20ms")
    dice = random.Random()
    for number, end in enumerate(ends, 1):
        daemon = harness.start_daemon()
        wait_until(lambda goal=number * 330: harness.report()["stored"] > goal, what="progress")
        time.sleep(dice.random() * 0.2)
        if end == "K":
            harness.kill(daemon)
        else:
            assert harness.stop(daemon) == 0
    harness.start_daemon()
    wait_until(lambda: len({event["eventId"] for event in harness.arrived()}) == events, 60, what="an empty backlog")
    assert harness.report()["largest_second"] <= SEEN
    assert set(harness.report()["by_status"]) == {"201"}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("latency", ["5ms", "100ms", "500ms"])
def test_a_minute_of_backlog_uses_the_ceiling(harness: ProcessHarness, latency: str):
    events = CEILING * 60
    prepare_backlog(harness, events, latency)
    harness.start_daemon()
    wait_until(lambda: harness.report()["stored"] == events, 120, what="the drain")
    report = harness.report()
    used = report["rate_per_s"] / CEILING
    print(f"latency {latency}: {used:.4f} of the ceiling, largest second {report['largest_second']}")
    assert report["largest_second"] <= SEEN
    assert used >= TARGET

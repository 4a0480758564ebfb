"""`px-sidecar resume` makes one statement, and it holds."""

import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.cli.resume import _outcome


def test_a_lifted_pause_is_resumed_delivery(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        ran = verb("resume", *daemon_dir.flags)
        again = verb("resume", *daemon_dir.flags)
    assert ran.out == "Delivery is resumed; 1 event is pending.\n"
    assert again.out.startswith("Delivery was not stopped; ")


def test_while_the_key_is_wrong_delivery_is_not_called_resumed(daemon_dir: DaemonDir, verb):
    """It said "Delivery is resumed", and in the next line why it was not."""
    with daemon_dir.running(always(401)) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        ran = verb("resume", *daemon_dir.flags)
    assert "resumed" not in ran.out
    assert ran.out.startswith("PX is tried at once with one event, and delivery continues if PX takes it; 1 event")
    assert "PX answered 401" in ran.out


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        ({"state": "open", "delivering": True, "reasons": ["The disk is full."]}, "Delivery is resumed; 3 events"),
        ({"state": "open", "delivering": False, "reasons": ["The day is spent."]}, "No pause is in force, but nothing"),
        ({"state": "waiting", "delivering": False, "reasons": ["PX is away."]}, "No pause is in force, but nothing"),
        ({"state": "probing", "delivering": False, "reasons": []}, "PX is tried at once"),
    ],
)
def test_each_state_has_its_statement(now, begins):
    said = _outcome({"state": "paused"}, {"pending": 3, **now})
    assert said.startswith(begins)
    assert all(reason in said for reason in now["reasons"])

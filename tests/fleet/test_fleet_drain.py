"""``fleet.on_stop = "drain"``: delivery continues after the listeners are closed."""

import time

from running_daemon import DaemonDir, wait_until

from sidecar.daemon import _drain
from sidecar.px.network import PxAnswer


class DrainingFleet:
    """The fleet's part of a stop."""

    asked = False

    def drain(self) -> None:
        self.asked = True


def test_a_drain_waits_for_an_event_that_is_not_ready(tmp_path):
    """It ended as soon as no event was ready: before a retry, and while a page was read."""
    answers = [PxAnswer(500, b""), PxAnswer(201, b"{}")]

    async def px(_request):
        return answers.pop(0)

    more = '[deliver]\nretry_initial = "200ms"\nretry_max = "200ms"\n'
    with DaemonDir(tmp_path, more).running(px) as daemon:
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["last_problem"], "the first answer")
        fleet = DrainingFleet()
        daemon.run(_drain, daemon.app, fleet)
        assert fleet.asked
        assert daemon.app.store.pending() == 0


def test_a_drain_ends_at_once_while_delivery_is_paused(tmp_path):
    with DaemonDir(tmp_path).running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        began_s = time.monotonic()
        daemon.run(_drain, daemon.app, DrainingFleet())
        assert time.monotonic() - began_s < 5
        assert daemon.app.store.pending() == 1

"""How a daemon is stopped while PX does not answer: in order within its deadline, or at once."""

import json
import signal
import time

from stage import Stage, wait_until


def test_a_second_signal_ends_it_at_once_and_what_was_in_flight_is_sent_again(stage: Stage):
    stage.start_sandbox("--latency", "20s")
    stage.write_config(deliver='stop_timeout = "15s"')
    daemon = stage.start_daemon()
    event = {"type": "track", "event": "Logged In", "userId": "u1", "messageId": "m1"}
    stage.post("/v1/track", json.dumps(event).encode())
    wait_until(lambda: stage.status()["in_flight"] == 1, what="the request")
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping, upon SIGTERM" in stage.log("run"), what="the begin of the end")
    time.sleep(0.3)
    assert daemon.poll() is None  # it waits for PX
    begun_s = time.monotonic()
    assert stage.stop(daemon) == 0
    assert time.monotonic() - begun_s < 3
    stage.start_daemon()
    assert stage.status()["pending"] == 1

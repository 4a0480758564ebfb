"""Stopping while PX does not answer: in order within the deadline, or at once on a second signal."""

import json
import signal
import time

from process_harness import ProcessHarness, wait_until


def test_a_second_signal_stops_at_once_and_keeps_the_events(harness: ProcessHarness):
    harness.start_sandbox("--latency", "20s")
    harness.write_config(deliver='stop_timeout = "15s"')
    daemon = harness.start_daemon()
    event = {"type": "track", "event": "Logged In", "userId": "u1", "messageId": "m1"}
    harness.post("/v1/track", json.dumps(event).encode())
    wait_until(lambda: harness.status()["in_flight"] == 1, what="the request")
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping on SIGTERM" in harness.log("run"), what="the start of the stop")
    time.sleep(0.3)
    assert daemon.poll() is None  # it waits for the answer of PX
    started_s = time.monotonic()
    assert harness.stop(daemon) == 0
    assert time.monotonic() - started_s < 3
    harness.start_daemon()
    assert harness.status()["pending"] == 1


def test_what_is_unanswered_at_the_end_is_logged(harness: ProcessHarness):
    """PX may have these events, and gets them again: the log ended with the signal."""
    harness.start_sandbox("--latency", "20s")
    harness.write_config(deliver='stop_timeout = "300ms"')
    daemon = harness.start_daemon()
    event = {"type": "track", "event": "Logged In", "userId": "u1", "messageId": "m1"}
    harness.post("/v1/track", json.dumps(event).encode())
    wait_until(lambda: harness.status()["in_flight"] == 1, what="the request")
    assert harness.stop(daemon) == 0
    last = json.loads(harness.log("run").splitlines()[-1])
    assert last["message"].startswith("1 request had no answer from PX within deliver.stop_timeout;")


def test_events_are_accepted_until_delivery_has_stopped(harness: ProcessHarness):
    """A restart otherwise refuses clients for as long as PX takes to answer the requests in flight."""
    harness.start_sandbox("--latency", "2s")
    harness.write_config()
    daemon = harness.start_daemon()
    event = {"type": "track", "event": "Logged In", "userId": "u1", "messageId": "m1"}
    harness.post("/v1/track", json.dumps(event).encode())
    wait_until(lambda: harness.status()["in_flight"] == 1, what="the request")
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping on SIGTERM" in harness.log("run"), what="the start of the stop")
    event["messageId"] = "m2"
    assert harness.post("/v1/track", json.dumps(event).encode())[0] == 200
    assert daemon.wait(20) == 0
    harness.start_daemon()
    wait_until(lambda: harness.status()["delivered"] == 2, what="the delivery")
    assert [stored["eventId"] for stored in harness.arrived()] == ["m1", "m2"]

"""Stopping while PX does not answer: in order within the deadline, or at once on a second signal."""

import json
import os
import signal
import time

import pytest
import trio
from process_harness import ProcessHarness, wait_until
from running_daemon import DaemonDir

from sidecar.observe import DISPATCHER
from sidecar.px import PxAnswer, PxRequest, Reply


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


def test_a_stop_that_waits_for_px_counts_as_progress(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """After five seconds of it /health was 503, and the log said that delivery stands still, or has a bug."""
    monkeypatch.setattr("sidecar.daemon.PROBE_EVERY_S", 0.01)

    answered = trio.Event()

    async def slow(_request: PxRequest) -> Reply:
        await answered.wait()
        return PxAnswer(201, b"{}", content_type="application/json")

    with DaemonDir(tmp_path).running(slow) as daemon:
        daemon.track("u1", "Logged In")
        wait_until(lambda: daemon.status()["in_flight"] == 1, what="the request")
        daemon.begin_stop()
        wait_until(lambda: daemon.do(lambda: daemon.app.delivery.is_stopping), what="the end of the decisions")
        stopping_s = time.monotonic()

        def beats() -> bool:
            heartbeats = daemon.app.telemetry.heartbeats
            age_s = daemon.do(lambda: heartbeats.ages_s(heartbeats.monotonic_s())[DISPATCHER])
            return bool(age_s < time.monotonic() - stopping_s - 0.03)

        wait_until(beats, what="another beat", timeout_s=5)
        daemon.do(answered.set)


# Loaded by the interpreter before the daemon: each call to the outbox waits while HANGS exists, as on a disk that hangs.
HANGING_DISK = """
import os, time
import sidecar.control.signals
import sidecar.outbox.writer
sidecar.control.signals.HUNG_S = 0.2
run = sidecar.outbox.writer.ThreadRunner.run
async def run_slowly(runner, call):
    def hang():
        while os.path.exists(os.environ["HANGS"]):
            time.sleep(0.01)
        return call()
    return await run(runner, hang)
sidecar.outbox.writer.ThreadRunner.run = run_slowly
"""


def test_a_second_signal_ends_the_process_on_a_disk_that_hangs(harness: ProcessHarness):
    """It cancelled the task that ends a process whose disk hangs, and then waited for the disk."""
    (harness.folder / "sitecustomize.py").write_text(HANGING_DISK)
    hangs = harness.folder / "hangs"
    harness.write_config(deliver='stop_timeout = "100ms"')
    path = os.pathsep.join(filter(None, (str(harness.folder), os.environ.get("PYTHONPATH"))))
    daemon = harness.start_daemon(HANGS=str(hangs), PYTHONPATH=path)
    hangs.touch()
    try:
        daemon.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping on SIGTERM" in harness.log("run"), what="the start of the stop")
        daemon.send_signal(signal.SIGTERM)
        wait_until(lambda: daemon.poll() is not None, what="the end of the process", timeout_s=8)
    finally:
        hangs.unlink()
    assert daemon.returncode == 1
    assert "Stopped without closing the outbox: its disk has not answered" in harness.log("run")

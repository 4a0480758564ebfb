"""The main purpose, with real processes: events reach PX from every input, and survive ``kill -9``."""

import json
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from process_harness import ProcessHarness, wait_until

from sidecar.client import Client, NotAccepted

SEED = Path(__file__).parent / "seed_event.json"
KILLS = 3
IN_FLIGHT = 128


def test_the_documented_example_arrives_field_by_field(harness: ProcessHarness):
    event = json.loads(SEED.read_text())
    harness.start_sandbox()
    harness.write_config()
    harness.start_daemon()
    status, _, answer = harness.post("/v1/track", json.dumps(event["call"]).encode())
    assert (status, json.loads(answer)) == (200, {"success": True, "accepted": 1})
    wait_until(harness.arrived, what="the delivery")
    (arrived,) = harness.arrived()
    arrived.pop("eventId")
    assert arrived == event["payload"]


def test_every_input_reaches_px(harness: ProcessHarness):
    harness.start_sandbox()
    harness.write_config()
    harness.start_daemon()
    track = {"type": "track", "event": "Logged In", "userId": "u1"}
    harness.post("/v1/track", json.dumps(track | {"messageId": "http"}).encode())
    harness.post("/v1/batch", json.dumps({"batch": [track | {"messageId": f"batch-{n}"} for n in range(3)]}).encode())
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(harness.unix))
        line.sendall(json.dumps(track | {"messageId": "ndjson"}).encode() + b"\n")
        assert line.recv(1000) == b'{"success":true,"accepted":1}\n'
    with socket.socket(socket.AF_UNIX) as curl:
        curl.connect(str(harness.unix))
        body = json.dumps(track | {"messageId": "unix-http"}).encode()
        curl.sendall(b"POST /v1/track HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert curl.recv(1000).startswith(b"HTTP/1.1 200 ")
    with Client(str(harness.unix)) as client:
        client.track("u1", "Logged In", message_id="client")
    wait_until(lambda: len(harness.arrived()) == 7, what="seven deliveries")
    assert {event["eventId"] for event in harness.arrived()} == {
        "http",
        "batch-0",
        "batch-1",
        "batch-2",
        "ndjson",
        "unix-http",
        "client",
    }


# Two seconds of sending, so that the signal arrives in the middle of it on a busy machine as well.
EVENTS = 400


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stop_finishes_requests_in_flight_and_exits_0(harness: ProcessHarness, number: str):
    import signal

    harness.start_sandbox("--latency", "300ms")
    harness.write_config()
    process = harness.start_daemon()
    harness.post("/v1/batch", json.dumps({"batch": [call(n) for n in range(EVENTS)]}).encode())
    wait_until(lambda: harness.report()["requests"] > 5, what="the first requests")
    assert harness.stop(process, getattr(signal, number)) == 0
    sent = len(harness.arrived())
    harness.start_daemon()
    wait_until(lambda: len(harness.arrived()) >= EVENTS, what="the rest")
    ids = [event["eventId"] for event in harness.arrived()]
    assert 0 < sent < EVENTS
    assert len(ids) == len(set(ids)) == EVENTS  # no duplicates: requests in flight were finished


@pytest.mark.whole
def test_nothing_accepted_is_lost_through_three_kills(harness: ProcessHarness):
    """5,000 events arrive through the Segment SDK and the Unix socket, at four times PX's pace to save time."""
    harness.start_sandbox("--per-second", "0")
    harness.write_config(deliver="per_second = 800")
    daemon = harness.start_daemon()
    accepted: set[str] = set()
    apps = [
        threading.Thread(target=app, args=(harness, range(start, start + 2_500), accepted), daemon=True)
        for app, start in ((over_unix, 0), (with_segment, 2_500))
    ]
    for app in apps:
        app.start()
    daemon = kill_at_random(harness, daemon, accepted)
    for app in apps:
        app.join(60)
        assert not app.is_alive()
    assert len(accepted) == 5_000
    wait_until(
        lambda: {event["eventId"] for event in harness.arrived()} >= accepted, 60, what="the delivery of all events"
    )
    arrived = [event["eventId"] for event in harness.arrived()]
    assert len(arrived) - len(set(arrived)) <= IN_FLIGHT * KILLS


def kill_at_random(
    harness: ProcessHarness, daemon: subprocess.Popen[bytes], accepted: set[str]
) -> subprocess.Popen[bytes]:
    dice = random.Random()
    for kill in range(1, KILLS + 1):
        wait_until(lambda goal=kill * 1_000: len(accepted) > goal, 60, what="traffic")
        time.sleep(dice.random() * 0.3)
        harness.kill(daemon)
        daemon = harness.start_daemon()
    return daemon


def call(number: int) -> dict[str, object]:
    return {"type": "track", "event": "Feature Used", "userId": f"u{number % 500}", "messageId": f"m{number}"}


def over_unix(harness: ProcessHarness, numbers: range, accepted: set[str]) -> None:
    with Client(str(harness.unix)) as client:
        for number in numbers:
            while True:
                try:
                    client.track(f"u{number % 500}", "Feature Used", {"n": number}, message_id=f"m{number}")
                    break
                except NotAccepted:
                    time.sleep(0.02)
            accepted.add(f"m{number}")
            time.sleep(0.001)


def with_segment(harness: ProcessHarness, numbers: range, accepted: set[str]) -> None:
    from segment.analytics.client import Client as Segment

    failed: list[dict[str, str]] = []
    client = Segment(
        "key", host=f"http://{harness.http}", upload_interval=0.05, on_error=lambda _error, items: failed.extend(items)
    )
    for number in numbers:
        client.track(f"u{number % 500}", "Feature Used", {"n": number}, message_id=f"m{number}")
        time.sleep(0.001)
    client.flush()
    client.join()
    accepted.update({f"m{number}" for number in numbers} - {item["messageId"] for item in failed})

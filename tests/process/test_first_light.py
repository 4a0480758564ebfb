"""The main job, with real processes: events go from a real SDK to PX, and survive ``kill -9``."""

import json
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from stage import Stage, wait_until

from sidecar.client import Client, NotAccepted

SEED = Path(__file__).parent / "seed_event.json"
KILLS = 3
IN_FLIGHT = 128


def test_the_seeds_example_arrives_field_for_field(stage: Stage):
    event = json.loads(SEED.read_text())
    stage.start_sandbox()
    stage.write_config()
    stage.start_daemon()
    status, _, answer = stage.post("/v1/track", json.dumps(event["call"]).encode())
    assert (status, json.loads(answer)) == (200, {"success": True, "accepted": 1})
    wait_until(stage.arrived, what="the delivery")
    (arrived,) = stage.arrived()
    arrived.pop("eventId")
    assert arrived == event["payload"]


def test_every_way_in_ends_at_px(stage: Stage):
    stage.start_sandbox()
    stage.write_config()
    stage.start_daemon()
    track = {"type": "track", "event": "Logged In", "userId": "u1"}
    stage.post("/v1/track", json.dumps(track | {"messageId": "http"}).encode())
    stage.post("/v1/batch", json.dumps({"batch": [track | {"messageId": f"batch-{n}"} for n in range(3)]}).encode())
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(stage.unix))
        line.sendall(json.dumps(track | {"messageId": "ndjson"}).encode() + b"\n")
        assert line.recv(1000) == b'{"success":true,"accepted":1}\n'
    with socket.socket(socket.AF_UNIX) as curl:
        curl.connect(str(stage.unix))
        body = json.dumps(track | {"messageId": "unix-http"}).encode()
        curl.sendall(b"POST /v1/track HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert curl.recv(1000).startswith(b"HTTP/1.1 200 ")
    with Client(str(stage.unix)) as client:
        client.track("u1", "Logged In", message_id="client")
    wait_until(lambda: len(stage.arrived()) == 7, what="seven deliveries")
    assert {event["eventId"] for event in stage.arrived()} == {
        "http",
        "batch-0",
        "batch-1",
        "batch-2",
        "ndjson",
        "unix-http",
        "client",
    }


# Two seconds of sending: a signal comes in the middle of it on a busy machine, too.
EVENTS = 400


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_an_orderly_stop_finishes_what_is_in_flight_and_exits_0(stage: Stage, number: str):
    import signal

    stage.start_sandbox("--latency", "300ms")
    stage.write_config()
    process = stage.start_daemon()
    stage.post("/v1/batch", json.dumps({"batch": [call(n) for n in range(EVENTS)]}).encode())
    wait_until(lambda: stage.report()["requests"] > 5, what="the first requests")
    assert stage.stop(process, getattr(signal, number)) == 0
    sent = len(stage.arrived())
    stage.start_daemon()
    wait_until(lambda: len(stage.arrived()) >= EVENTS, what="the rest")
    ids = [event["eventId"] for event in stage.arrived()]
    assert 0 < sent < EVENTS
    assert len(ids) == len(set(ids)) == EVENTS  # nothing twice: what was in flight had come back


def test_nothing_accepted_is_lost_through_three_kills(stage: Stage):
    """5,000 events through the Segment SDK and the Unix socket, at four times PX's pace to be done sooner."""
    stage.start_sandbox("--per-second", "0")
    stage.write_config(deliver="per_second = 800")
    daemon = stage.start_daemon()
    accepted: set[str] = set()
    apps = [
        threading.Thread(target=app, args=(stage, range(start, start + 2_500), accepted), daemon=True)
        for app, start in ((over_unix, 0), (with_segment, 2_500))
    ]
    for app in apps:
        app.start()
    daemon = kill_at_random(stage, daemon, accepted)
    for app in apps:
        app.join(60)
        assert not app.is_alive()
    assert len(accepted) == 5_000
    wait_until(
        lambda: {event["eventId"] for event in stage.arrived()} >= accepted, 60, what="the delivery of everything"
    )
    arrived = [event["eventId"] for event in stage.arrived()]
    assert len(arrived) - len(set(arrived)) <= IN_FLIGHT * KILLS


def kill_at_random(stage: Stage, daemon: subprocess.Popen[bytes], accepted: set[str]) -> subprocess.Popen[bytes]:
    dice = random.Random()
    for kill in range(1, KILLS + 1):
        wait_until(lambda goal=kill * 1_000: len(accepted) > goal, 60, what="traffic")
        time.sleep(dice.random() * 0.3)
        stage.kill(daemon)
        daemon = stage.start_daemon()
    return daemon


def call(number: int) -> dict[str, object]:
    return {"type": "track", "event": "Feature Used", "userId": f"u{number % 500}", "messageId": f"m{number}"}


def over_unix(stage: Stage, numbers: range, accepted: set[str]) -> None:
    with Client(str(stage.unix)) as client:
        for number in numbers:
            while True:
                try:
                    client.track(f"u{number % 500}", "Feature Used", {"n": number}, message_id=f"m{number}")
                    break
                except NotAccepted:
                    time.sleep(0.02)
            accepted.add(f"m{number}")
            time.sleep(0.001)


def with_segment(stage: Stage, numbers: range, accepted: set[str]) -> None:
    from segment.analytics.client import Client as Segment

    failed: list[dict[str, str]] = []
    client = Segment(
        "key", host=f"http://{stage.http}", upload_interval=0.05, on_error=lambda _error, items: failed.extend(items)
    )
    for number in numbers:
        client.track(f"u{number % 500}", "Feature Used", {"n": number}, message_id=f"m{number}")
        time.sleep(0.001)
    client.flush()
    client.join()
    accepted.update({f"m{number}" for number in numbers} - {item["messageId"] for item in failed})

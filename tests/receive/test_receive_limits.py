"""The limits of the outbox met by a real daemon: a full outbox, a full disk, requests and events that are too large.

Each time: 503 with Retry-After, then room, and accepting goes on without a restart.
"""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from stage import Stage, wait_until

PADDING = "x" * 2_000


def batch(first: int, count: int) -> bytes:
    events = [
        {"type": "track", "event": "E", "userId": f"u{n % 97}", "messageId": f"m{n}", "properties": {"p": PADDING}}
        for n in range(first, first + count)
    ]
    return json.dumps({"batch": events}).encode()


def fill(stage: Stage, code: str, step: int = 100, most: int = 20_000) -> int:
    """Send until the answer is 503; how many were accepted."""
    for start in range(0, most, step):
        status, headers, body = stage.post("/v1/batch", batch(start, step))
        if status != 200:
            said = json.loads(body)
            assert (status, headers["retry-after"]) == (503, "10")
            assert (said["success"], said["code"]) == (False, code)
            assert said["message"] == said["error"]
            return start
    raise AssertionError("it was never full")


def is_accepted(stage: Stage, message_id: str) -> bool:
    body = json.dumps({"event": "E", "userId": "late", "messageId": message_id}).encode()
    return stage.post("/v1/track", body)[0] == 200


def is_reachable(stage: Stage) -> bool:
    """Whether the daemon answers; by the Unix socket, as a TCP port that nobody has may connect to itself."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(stage.unix)) == 0


def delivered(stage: Stage) -> set[str]:
    return {event["eventId"] for event in stage.arrived()}


def test_a_full_outbox_refuses_and_goes_on_once_delivery_has_made_room(stage: Stage):
    stage.write_config(deliver="per_second = 2000\nretry_max = '1s'")
    stage.start_daemon(PX_SIDECAR_OUTBOX_MAX_BYTES="3MiB")
    accepted = fill(stage, "outbox_full", step=20)
    assert 500 < accepted < 1_600
    status, _, body = stage.post("/v1/track", b'{"event":"E","userId":"u"}')
    assert (status, json.loads(body)["code"]) == (503, "outbox_full")
    stage.start_sandbox("--per-second", "0")
    wait_until(lambda: is_accepted(stage, "late"), 60, what="accepting again")
    wait_until(lambda: len(delivered(stage)) == accepted + 1, 60, what="the delivery")
    assert delivered(stage) == {f"m{n}" for n in range(accepted)} | {"late"}


def test_with_drop_oldest_nothing_is_refused_and_what_went_is_counted(stage: Stage):
    stage.write_config()
    stage.start_daemon(PX_SIDECAR_OUTBOX_MAX_BYTES="3MiB", PX_SIDECAR_OUTBOX_WHEN_FULL="drop_oldest")
    for start in range(0, 3_000, 100):
        assert stage.post("/v1/batch", batch(start, 100))[0] == 200
    status = stage.status()
    dropped = status["dropped"]["outbox_full"] if isinstance(status["dropped"], dict) else status["dropped"]
    assert 1_000 < dropped < 3_000
    assert status["pending"] + dropped == status["accepted"] == 3_000


def test_the_sizes_of_events_and_requests_are_what_the_configuration_says(stage: Stage):
    stage.write_config()
    stage.start_daemon(PX_SIDECAR_OUTBOX_MAX_EVENT_BYTES="1KiB", PX_SIDECAR_OUTBOX_MAX_REQUEST_BYTES="8KiB")
    status, _, body = stage.post("/v1/batch", batch(0, 2))
    assert (status, [one["code"] for one in json.loads(body)["refused"]]) == (200, ["bad_event"] * 2)
    status, _, body = stage.post("/v1/track", json.dumps({"event": "E", "userId": "u", "p": PADDING}).encode())
    assert (status, json.loads(body)["code"]) == (400, "bad_event")
    status, _, body = stage.post("/v1/batch", batch(0, 5))
    assert (status, json.loads(body)["code"]) == (400, "too_large")
    assert "outbox.max_request_bytes" in json.loads(body)["message"]


# A disk that is really full -------------------------------------------------------------------------------------

may_mount = os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def small_disk(stage: Stage):
    """A file system of 24 MiB for the outbox of the stage."""
    if not may_mount:
        pytest.skip("only root may mount a small file system")
    place = stage.folder / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    stage.outbox = place / "outbox.db"
    try:
        yield place
    finally:
        stage.end()
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("killed", [False, True], ids=["living on", "killed while full"])
def test_a_full_disk_refuses_and_goes_on_once_there_is_room(stage: Stage, small_disk: Path, killed: bool):
    stage.write_config(deliver="per_second = 2000\nretry_max = '1s'")
    daemon = stage.start_daemon()
    ballast = small_disk / "ballast"
    wait_until(lambda: (small_disk / "outbox.db.reserve").exists(), what="the reserve")
    ballast.write_bytes(bytes(6 * 2**20))
    accepted = fill(stage, "disk_full")
    assert accepted > 100
    if killed:
        stage.kill(daemon)
        process = stage.start("run", "--config", str(stage.folder / "config.toml"))
        wait_until(lambda: process.poll() is not None or is_reachable(stage), what="the start")
        assert process.poll() is None, stage.log("run")
    ballast.unlink()
    wait_until(lambda: is_accepted(stage, "late"), 60, what="accepting again")
    stage.start_sandbox("--per-second", "0")
    wait_until(lambda: len(delivered(stage)) == accepted + 1, 60, what="the delivery")
    assert delivered(stage) == {f"m{n}" for n in range(accepted)} | {"late"}

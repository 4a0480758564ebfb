"""A real daemon at the limits of its outbox: a full outbox, a full disk, too large requests and events.

A full outbox or disk is answered 503 with Retry-After; once there is space, the daemon accepts again without a restart.
"""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from process_harness import ProcessHarness, wait_until

PADDING = "x" * 2_000


def batch(first: int, count: int) -> bytes:
    events = [
        {"type": "track", "event": "E", "userId": f"u{n % 97}", "messageId": f"m{n}", "properties": {"p": PADDING}}
        for n in range(first, first + count)
    ]
    return json.dumps({"batch": events}).encode()


def fill(harness: ProcessHarness, code: str, step: int = 100, most: int = 20_000) -> int:
    """Send until the answer is 503; return how many events were accepted."""
    for start in range(0, most, step):
        status, headers, body = harness.post("/v1/batch", batch(start, step))
        if status != 200:
            answer = json.loads(body)
            assert (status, headers["retry-after"]) == (503, "10")
            assert (answer["success"], answer["code"]) == (False, code)
            assert answer["message"] == answer["error"]
            return start
    raise AssertionError("the outbox never became full")


def is_accepted(harness: ProcessHarness, message_id: str) -> bool:
    body = json.dumps({"event": "E", "userId": "late", "messageId": message_id}).encode()
    return harness.post("/v1/track", body)[0] == 200


def is_reachable(harness: ProcessHarness) -> bool:
    """Return whether the daemon listens. On the Unix socket, because a free TCP port may connect to itself."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(harness.unix)) == 0


def delivered(harness: ProcessHarness) -> set[str]:
    return {event["eventId"] for event in harness.arrived()}


def test_full_outbox_refuses_until_delivery_frees_space(harness: ProcessHarness):
    harness.write_config(deliver="per_second = 2000\nretry_max = '1s'")
    harness.start_daemon(PX_SIDECAR_OUTBOX_MAX_BYTES="3MiB")
    accepted = fill(harness, "outbox_full", step=20)
    assert 500 < accepted < 1_600
    status, _, body = harness.post("/v1/track", b'{"event":"E","userId":"u"}')
    assert (status, json.loads(body)["code"]) == (503, "outbox_full")
    harness.start_sandbox("--per-second", "0")
    wait_until(lambda: is_accepted(harness, "late"), 60, what="accepting again")
    wait_until(lambda: len(delivered(harness)) == accepted + 1, 60, what="the delivery")
    assert delivered(harness) == {f"m{n}" for n in range(accepted)} | {"late"}


def test_drop_oldest_refuses_nothing_and_counts_the_dropped(harness: ProcessHarness):
    harness.write_config()
    harness.start_daemon(PX_SIDECAR_OUTBOX_MAX_BYTES="3MiB", PX_SIDECAR_OUTBOX_WHEN_FULL="drop_oldest")
    for start in range(0, 3_000, 100):
        assert harness.post("/v1/batch", batch(start, 100))[0] == 200
    status = harness.status()
    dropped = status["dropped"]["outbox_full"] if isinstance(status["dropped"], dict) else status["dropped"]
    assert 1_000 < dropped < 3_000
    assert status["pending"] + dropped == status["accepted"] == 3_000


def test_configured_sizes_of_events_and_requests_apply(harness: ProcessHarness):
    harness.write_config()
    harness.start_daemon(PX_SIDECAR_OUTBOX_MAX_EVENT_BYTES="1KiB", PX_SIDECAR_OUTBOX_MAX_REQUEST_BYTES="8KiB")
    status, _, body = harness.post("/v1/batch", batch(0, 2))
    assert (status, [entry["code"] for entry in json.loads(body)["refused"]]) == (200, ["bad_event"] * 2)
    status, _, body = harness.post("/v1/track", json.dumps({"event": "E", "userId": "u", "p": PADDING}).encode())
    assert (status, json.loads(body)["code"]) == (400, "bad_event")
    status, _, body = harness.post("/v1/batch", batch(0, 5))
    assert (status, json.loads(body)["code"]) == (400, "too_large")
    assert "outbox.max_request_bytes" in json.loads(body)["message"]


# A disk that is really full -------------------------------------------------------------------------------------

may_mount = os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def small_disk(harness: ProcessHarness):
    """A file system of 24 MiB for the outbox of the harness."""
    if not may_mount:
        pytest.skip("only root may mount a small file system")
    folder = harness.folder / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    harness.outbox = folder / "outbox.db"
    try:
        yield folder
    finally:
        harness.end()
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.whole
@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed while full"])
def test_full_disk_refuses_until_there_is_space(harness: ProcessHarness, small_disk: Path, killed: bool):
    harness.write_config(deliver="per_second = 2000\nretry_max = '1s'")
    daemon = harness.start_daemon()
    ballast = small_disk / "ballast"
    wait_until(lambda: (small_disk / "outbox.db.reserve").exists(), what="the reserve")
    ballast.write_bytes(bytes(6 * 2**20))
    accepted = fill(harness, "disk_full")
    assert accepted > 100
    if killed:
        harness.kill(daemon)
        process = harness.start("run", "--config", str(harness.folder / "config.toml"))
        wait_until(lambda: process.poll() is not None or is_reachable(harness), what="the start")
        assert process.poll() is None, harness.log("run")
    ballast.unlink()
    wait_until(lambda: is_accepted(harness, "late"), 60, what="accepting again")
    harness.start_sandbox("--per-second", "0")
    wait_until(lambda: len(delivered(harness)) == accepted + 1, 60, what="the delivery")
    assert delivered(harness) == {f"m{n}" for n in range(accepted)} | {"late"}

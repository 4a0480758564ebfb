"""Recovery with real processes: a daemon is killed, its file is damaged, and the next start recovers it."""

import json
import random

import pytest
from process_harness import ProcessHarness, wait_until

PER_SECOND = 400
EVENTS = 600


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_start_on_damaged_files_delivers_what_is_readable(harness: ProcessHarness, suffix: str):
    dice = random.Random(suffix)
    harness.start_sandbox("--per-second", "0", "--latency", "50ms")
    harness.write_config(deliver=f"per_second = {PER_SECOND}")
    daemon = harness.start_daemon()
    batch = [
        {"type": "track", "event": "Logged In", "userId": f"u{n}", "messageId": f"m{n}", "properties": {"p": "x" * 400}}
        for n in range(EVENTS)
    ]
    status, _, _ = harness.post("/v1/batch", json.dumps({"batch": batch}).encode())
    assert status == 200
    # Damage in the last transaction of the log looks like a write that a power cut tore, which is not an error. So one
    # more transaction follows.
    last = {"type": "track", "event": "Logged In", "userId": "u", "messageId": "last"}
    assert harness.post("/v1/track", json.dumps(last).encode())[0] == 200
    harness.kill(daemon)
    target = harness.outbox.with_name(harness.outbox.name + suffix)
    if not suffix:  # a stop checkpoints the log into the file, so that there are events in it to damage
        harness.stop(harness.start_daemon(PX_SIDECAR_DELIVER_PER_SECOND="1"))
    data = bytearray(target.read_bytes())
    begin = dice.randrange(len(data) // 4, len(data) // 2)
    data[begin : begin + 4096] = dice.randbytes(4096)
    target.write_bytes(data)
    harness.start_daemon()
    wait_until(lambda: harness.status()["pending"] == 0, 30, what="an empty backlog")
    now = harness.status()
    assert now["accepted"] == now["delivered"] + now["dropped"] + now["dead"]
    assert len({event["eventId"] for event in harness.arrived()}) > EVENTS - 60
    assert any("was damaged" in warning for warning in now["warnings"])
    assert "was damaged" in harness.log("run")

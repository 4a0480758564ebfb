"""Real processes on damaged files: killed, damaged, started again, and every account still holds."""

import json
import random

import pytest
from stage import Stage, wait_until

PER_SECOND = 400
EVENTS = 600


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_killed_daemon_whose_files_were_damaged_starts_and_delivers_the_rest(stage: Stage, suffix: str):
    dice = random.Random(suffix)
    stage.start_sandbox("--per-second", "0", "--latency", "50ms")
    stage.write_config(deliver=f"per_second = {PER_SECOND}")
    daemon = stage.start_daemon()
    batch = [
        {"type": "track", "event": "Logged In", "userId": f"u{n}", "messageId": f"m{n}", "properties": {"p": "x" * 400}}
        for n in range(EVENTS)
    ]
    status, _, _ = stage.post("/v1/batch", json.dumps({"batch": batch}).encode())
    assert status == 200
    # Damage in the very last transaction of the log cannot be told from one that a power cut has torn.
    last = {"type": "track", "event": "Logged In", "userId": "u", "messageId": "last"}
    assert stage.post("/v1/track", json.dumps(last).encode())[0] == 200
    stage.kill(daemon)
    target = stage.outbox.with_name(stage.outbox.name + suffix)
    if not suffix:  # so that there is something in it
        stage.stop(stage.start_daemon(PX_SIDECAR_DELIVER_PER_SECOND="1"))
    data = bytearray(target.read_bytes())
    begin = dice.randrange(len(data) // 4, len(data) // 2)
    data[begin : begin + 4096] = dice.randbytes(4096)
    target.write_bytes(data)
    stage.start_daemon()
    wait_until(lambda: stage.status()["pending"] == 0, 30, what="the delivery of the rest")
    now = stage.status()
    assert now["accepted"] == now["delivered"] + now["dropped"] + now["dead"]
    assert len({event["eventId"] for event in stage.arrived()}) > EVENTS - 60
    assert any("was damaged" in warning for warning in now["warnings"])
    assert "was damaged" in stage.log("run")

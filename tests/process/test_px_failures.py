"""Failures of PX, with real processes: events are kept, and status, health, metrics and log say what to do."""

import json
import urllib.request

from process_harness import ProcessHarness, get_json, wait_until


def track(harness: ProcessHarness, number: int) -> None:
    event = {"event": "Logged In", "userId": f"u{number}", "messageId": f"m{number}"}
    assert harness.post("/v1/track", json.dumps(event).encode())[0] == 200


def test_a_read_only_key_pauses_and_every_surface_says_so(harness: ProcessHarness):
    harness.start_sandbox()
    harness.write_config()
    harness.start_daemon(PX_SIDECAR_PX_API_KEY="sandbox-read-only")
    for number in range(30):
        track(harness, number)
    wait_until(lambda: harness.status()["state"] == "paused", what="the pause")
    status = harness.status()
    health = get_json(f"http://{harness.http}/health")
    assert (status["pending"], status["dead"], status["delivering"]) == (30, 0, False)
    assert (health["healthy"], health["delivering"]) == (True, False)
    shown = harness.run("status", "--config", str(harness.folder / "config.toml")).stdout
    for text in (
        " ".join(status["reasons"]),
        " ".join(health["reasons"]),
        " ".join(shown.split()),
        harness.log("run"),
    ):
        assert "read-only" in text
        assert "Write" in text
    assert "px_sidecar_paused 1.0" in metrics(harness)


def metrics(harness: ProcessHarness) -> str:
    with urllib.request.urlopen(f"http://{harness.http}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_an_outage_and_its_end_are_logged_once_each(harness: ProcessHarness):
    harness.write_config(deliver='retry_max = "1s"')
    harness.start_daemon()
    for number in range(5):
        track(harness, number)
    wait_until(lambda: harness.status()["state"] != "open", what="the outage")
    harness.start_sandbox()
    wait_until(lambda: len(harness.arrived()) == 5, what="the delivery")
    wait_until(lambda: "continues" in harness.log("run"), what="the log")
    assert harness.log("run").count("Delivery is waiting") == 1
    assert harness.log("run").count("Delivery to PX continues") == 1

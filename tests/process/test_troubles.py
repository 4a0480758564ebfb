"""What PX can do to a delivery, with real processes: everything is kept, and every surface says what to do."""

import json
import urllib.request

from stage import Stage, get_json, wait_until


def track(stage: Stage, number: int) -> None:
    event = {"event": "Logged In", "userId": f"u{number}", "messageId": f"m{number}"}
    assert stage.post("/v1/track", json.dumps(event).encode())[0] == 200


def test_a_read_only_key_pauses_with_words_on_every_surface(stage: Stage):
    stage.start_sandbox()
    stage.write_config()
    stage.start_daemon(PX_SIDECAR_PX_API_KEY="sandbox-read-only")
    for number in range(30):
        track(stage, number)
    wait_until(lambda: stage.status()["state"] == "paused", what="the pause")
    status = stage.status()
    health = get_json(f"http://{stage.http}/health")
    assert (status["pending"], status["dead"], status["delivering"]) == (30, 0, False)
    assert (health["healthy"], health["delivering"]) == (True, False)
    shown = stage.run("status", "--config", str(stage.folder / "config.toml")).stdout
    for words in (" ".join(status["reasons"]), " ".join(health["reasons"]), " ".join(shown.split()), stage.log("run")):
        assert "read-only" in words
        assert "Write" in words
    assert "px_sidecar_paused 1.0" in metrics(stage)


def metrics(stage: Stage) -> str:
    with urllib.request.urlopen(f"http://{stage.http}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_px_away_and_back_is_logged_once_each(stage: Stage):
    stage.write_config(deliver='retry_max = "1s"')
    stage.start_daemon()
    for number in range(5):
        track(stage, number)
    wait_until(lambda: stage.status()["state"] != "open", what="the outage")
    stage.start_sandbox()
    wait_until(lambda: len(stage.arrived()) == 5, what="the delivery")
    wait_until(lambda: "goes on" in stage.log("run"), what="the log")
    assert stage.log("run").count("Delivery is waiting") == 1
    assert stage.log("run").count("Delivery to PX goes on") == 1

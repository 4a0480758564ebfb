"""The log of a whole run, with an outage, a reload, a refused reload and a stop, is JSON lines as documented."""

import json
import signal

from log_lines import check_log_line
from process_harness import ProcessHarness, wait_until


def test_each_line_of_a_run_fits_the_schema(harness: ProcessHarness):
    harness.start_sandbox("--error-rate", "0.5")
    harness.write_config(deliver='retry_initial = "10ms"\nretry_max = "20ms"')
    daemon = harness.start_daemon(PX_SIDECAR_LOG_LEVEL="debug")
    for number in range(20):
        event = {"type": "track", "event": "Logged In", "userId": f"u{number}", "messageId": f"m{number}"}
        harness.post("/v1/track", json.dumps(event).encode())
    harness.post("/v1/track", b"not JSON")
    wait_until(lambda: harness.status()["delivered"] == 20, what="the deliveries")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "was reloaded" in harness.log("run"), what="the reload")
    (harness.folder / "config.toml").write_text("[deliver]\nhosts = 0\n")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "was not reloaded" in harness.log("run"), what="the refused reload")
    assert harness.stop(daemon) == 0
    given = [check_log_line(line) for line in harness.log("run").splitlines()]
    assert {"info", "error"} <= {line["level"] for line in given}
    assert any("Stopping on SIGTERM" in line["message"] for line in given)


def test_a_repeat_before_the_end_is_logged(harness: ProcessHarness):
    """It waited for its minute to be over, and the process ended first."""
    harness.start_sandbox()
    harness.write_config()
    daemon = harness.start_daemon()
    (harness.folder / "config.toml").write_text("[deliver]\nhosts = 0\n")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "was not reloaded" in harness.log("run"), what="the refused reload")
    (harness.folder / "config.toml").write_text("[deliver]\nhosts = -7\n")
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "hosts is -7" in json.dumps(harness.status()), what="the second refused reload")
    assert "hosts is -7" not in harness.log("run")
    assert harness.stop(daemon) == 0
    assert "hosts is -7" in harness.log("run").splitlines()[-1]


def test_a_pause_is_logged_and_so_is_its_end_and_a_start_during_it(harness: ProcessHarness):
    """An operator's pause left no line: the log gave no reason why the daemon sent nothing."""
    harness.start_sandbox()
    harness.write_config()
    daemon = harness.start_daemon()
    assert harness.run("pause", "--config", str(harness.folder / "config.toml")).returncode == 0
    assert harness.stop(daemon) == 0
    daemon = harness.start_daemon()
    wait_until(lambda: harness.log("run").count("Delivery was paused; `px-sidecar resume`") == 2, what="both lines")
    assert harness.run("resume", "--config", str(harness.folder / "config.toml")).returncode == 0
    wait_until(lambda: "Delivery to PX continues." in harness.log("run"), what="the end of the pause")
    assert harness.stop(daemon) == 0


def test_the_error_that_ends_a_daemon_is_a_line_of_its_log(harness: ProcessHarness):
    """It was plain text between lines of JSON, which a collector of logs leaves out or cannot read."""
    harness.start_sandbox()
    harness.write_config()
    daemon = harness.start_daemon()
    outbox = harness.folder / "outbox.db"
    (harness.folder / "other.db").write_bytes(outbox.read_bytes())
    (harness.folder / "other.db").replace(outbox)
    assert daemon.wait(20) == 78
    given = [check_log_line(line) for line in harness.log("run").splitlines()]
    assert given[-1]["level"] == "critical"
    assert "was replaced by another file" in given[-1]["message"]

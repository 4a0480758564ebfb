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
    assert any("Stopping upon SIGTERM" in line["message"] for line in given)

"""`per_day` for a name takes hold of what is pending when it is written, in a running daemon and after a restart."""

import pytest
from running_daemon import DaemonDir, always, wait_until

CAP = '[mapping.event."Chatty"]\nper_day = 2\n'


def fill(daemon) -> None:
    for number in range(5):
        daemon.track(f"u{number}", "Chatty")
    daemon.track("u1", "Other")


@pytest.mark.parametrize("how", ["paused", "PX is away"])
def test_a_reload_caps_what_is_pending(tmp_path, how):
    daemon_dir = DaemonDir(tmp_path, '[deliver]\nretry_initial = "10ms"\nretry_max = "20ms"\n')
    answer = {"status": 503 if how == "PX is away" else 201}

    async def script(request):
        return await always(answer["status"])(request)

    with daemon_dir.running(script) as daemon:
        if how == "paused":
            daemon.client.post("/v1/pause")
        fill(daemon)
        if how == "PX is away":
            wait_until(lambda: daemon.status()["retries"] >= 3, "failed attempts")
        daemon.reload(daemon_dir.file.read_text() + CAP)
        answer["status"] = 201
        daemon.client.post("/v1/resume")
        status = daemon.settle()
    assert (status["delivered"], status["dropped_by_reason"]) == (3, {"capped": 3})


def test_a_restart_caps_what_is_pending(tmp_path):
    daemon_dir = DaemonDir(tmp_path)
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        fill(daemon)
    daemon_dir.file.write_text(daemon_dir.file.read_text() + CAP)
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/resume")
        status = daemon.settle()
    assert (status["delivered"], status["dropped_by_reason"]) == (3, {"capped": 3})

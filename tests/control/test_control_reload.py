"""A reload of a running daemon: which changes apply, and how pending ones are reported."""

from running_daemon import DaemonDir, RunningDaemon, always, wait_until

from sidecar.client import Client

DAY = "[deliver]\nper_day = 1\nreserve_for_high = 0\n"


def change(daemon: RunningDaemon, old: str, new: str) -> None:
    """Reload the daemon with its configuration, one text replaced by another."""
    text = daemon.daemon_dir.file.read_text()
    assert old in text
    daemon.reload(text.replace(old, new))


def reload_warnings(daemon: RunningDaemon) -> list[str]:
    """The warnings of status about the last reload."""
    return [text for text in daemon.status()["warnings"] if "restart" in text or "reloaded" in text]


def test_a_larger_quota_applies_at_once(tmp_path):
    with DaemonDir(tmp_path, DAY).running() as daemon:
        for number in range(3):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["delivered"] == 1, "the first delivery")
        assert daemon.status()["delivering"] is False
        change(daemon, "per_day = 1", "per_day = 100")
        assert daemon.settle()["delivered"] == 3
        assert daemon.status()["quota"]["limit"] == 100
        assert reload_warnings(daemon) == []


def test_writing_people_applies_at_once(tmp_path):
    with DaemonDir(tmp_path).running() as daemon:
        daemon.reload(daemon.daemon_dir.file.read_text() + '[people]\nusers = "upsert"\n')
        with Client(daemon.daemon_dir.unix) as client:
            client.identify("u1", {"plan": "gold"})
        assert daemon.settle()["delivered"] == 1
        assert daemon.network.sent[0].path == "/v1/users/u1"


def test_the_backoff_of_an_outage_applies_at_once(tmp_path):
    with DaemonDir(tmp_path, '[deliver]\nretry_initial = "1h"\nretry_max = "1h"\n').running(always(429)) as daemon:
        daemon.reload(daemon.daemon_dir.file.read_text().replace("1h", "10s"))
        daemon.track("u1", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "waiting", "the wait")
        assert daemon.status()["next_try_in_s"] <= 10


def test_status_names_what_waits_for_a_restart(tmp_path):
    with DaemonDir(tmp_path, DAY).running() as daemon:
        daemon.reload(daemon.daemon_dir.file.read_text() + 'order = "none"\n[identity]\nmax_users = 5\n')
        assert reload_warnings(daemon) == ["Changes that wait for a restart: deliver.order, identity.max_users."]
        change(daemon, "per_day = 1", 'per_day = "many"')
        assert len(reload_warnings(daemon)) == 1
        assert "deliver.per_day" in reload_warnings(daemon)[0]
        daemon.reload(daemon.daemon_dir.file.read_text())
        assert reload_warnings(daemon) == []

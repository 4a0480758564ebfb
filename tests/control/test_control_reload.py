"""A reload of a running daemon: which changes apply, and how pending ones are reported."""

import trio
from running_daemon import DaemonDir, RunningDaemon, always, wait_until

from sidecar.client import Client
from sidecar.config import Config, load_text

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


def test_of_two_reloads_the_file_that_is_read_last_is_in_force(tmp_path):
    """A slow reload put back the older state of the file, and both operators were told that theirs is in force."""
    with DaemonDir(tmp_path, "[deliver]\nper_second = 1\n").running() as daemon:
        path = daemon.daemon_dir.file
        older, newer = (path.read_text().replace("per_second = 1", f"per_second = {rate}") for rate in (2, 3))

        async def reload_twice() -> None:
            has_read, may_end = trio.Event(), trio.Event()

            async def slowly() -> Config:
                config = load_text(older)
                has_read.set()
                await may_end.wait()
                return config

            async def fast() -> Config:
                return load_text(newer)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.app.reloader.reload, slowly)
                await has_read.wait()
                nursery.start_soon(daemon.app.reloader.reload, fast)
                await trio.sleep(0.2)
                may_end.set()

        daemon.run(reload_twice)
        assert daemon.status()["ceiling"] == 3

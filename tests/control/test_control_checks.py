"""`GET /v1/checks`: the file as it is now, and the host, as the daemon sees them."""

from running_daemon import DaemonDir

from sidecar.config import ConfigFile


def test_a_change_that_waits_for_a_restart_is_named(daemon_dir: DaemonDir):
    """The address that the edited file names was said to be the one that the daemon listens on."""
    sentence = "Changes that wait for a restart: listen.http; restart the daemon."
    with daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file))) as daemon:
        before = [finding["message"] for finding in daemon.client.get("/v1/checks")["findings"]]
        daemon_dir.file.write_text(daemon_dir.file.read_text().replace('http = ""', 'http = "127.0.0.1:9"'))
        after = [finding["message"] for finding in daemon.client.get("/v1/checks")["findings"]]
    assert sentence not in before
    assert sentence in after
    assert not any("listens on" in message for message in after)

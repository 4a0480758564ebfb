"""A verb that root runs on the outbox file leaves only files that the daemon's user can use."""

import os
import tempfile
from pathlib import Path

import pytest
from running_daemon import DaemonDir

NOBODY = 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_root_works_as_the_owner_of_the_outbox(verb):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        daemon_dir = DaemonDir(folder)
        with daemon_dir.running() as daemon:
            daemon.track("u1", "Feature Used")
            daemon.settle()
        (folder / "outbox.db.reserve").unlink(missing_ok=True)
        for path in folder.glob("outbox.db*"):
            os.chown(path, NOBODY, NOBODY)
        os.chown(folder, NOBODY, NOBODY)
        (folder / "outbox.db.lock").unlink(missing_ok=True)
        assert verb("events", "list", *daemon_dir.flags).code == 0
        assert verb("forget", "u1", *daemon_dir.flags).code == 0
        assert {path.stat().st_uid for path in folder.glob("outbox.db*")} == {NOBODY}
        assert (folder / "outbox.db.lock").exists()
        assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_rights_is_refused_with_advice(verb):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        daemon_dir = DaemonDir(folder)
        with daemon_dir.running() as daemon:
            daemon.track("u1", "Feature Used")
            daemon.settle()
            os.seteuid(NOBODY)
            try:
                paused = verb("pause", *daemon_dir.flags)
                status = verb("status", *daemon_dir.flags)
            finally:
                os.seteuid(0)
    assert paused.code == status.code == 69
    assert "This changes something (pause)" in paused.err
    assert "use sudo." in paused.err
    assert "for reading calls join the group px-sidecar-operators" in status.err

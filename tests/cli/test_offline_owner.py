"""Who works on the file as root leaves nothing behind that the daemon's user cannot use."""

import os
import tempfile
from pathlib import Path

import pytest
from living import Place

NOBODY = 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_root_works_as_the_owner_of_the_outbox(verb):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        place = Place(folder)
        with place.living() as daemon:
            daemon.track("u1", "Feature Used")
            daemon.settle()
        (folder / "outbox.db.reserve").unlink(missing_ok=True)
        for path in folder.glob("outbox.db*"):
            os.chown(path, NOBODY, NOBODY)
        os.chown(folder, NOBODY, NOBODY)
        (folder / "outbox.db.lock").unlink(missing_ok=True)
        assert verb("events", "list", *place.flags).code == 0
        assert verb("forget", "u1", *place.flags).code == 0
        assert {path.stat().st_uid for path in folder.glob("outbox.db*")} == {NOBODY}
        assert (folder / "outbox.db.lock").exists()
        assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_use_the_socket_or_the_file_is_told_so(verb):
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        place = Place(folder)
        with place.living() as daemon:
            daemon.track("u1", "Feature Used")
            daemon.settle()
            os.seteuid(NOBODY)
            try:
                paused = verb("pause", *place.flags)
                status = verb("status", *place.flags)
            finally:
                os.seteuid(0)
    assert paused.code == status.code == 69
    assert "use sudo" in paused.err
    assert status.err == paused.err

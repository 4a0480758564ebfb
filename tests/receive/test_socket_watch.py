"""A socket that vanishes from its path is opened again, or named if systemd has to open it."""

import contextlib
import errno
import logging
import socket
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from outbox_files import raiser

from sidecar.errors import Failed
from sidecar.observe import LogLines
from sidecar.receive import keep_open, unix_sockets, watch_inherited
from sidecar.receive.unix_sockets import bind_unix


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        yield Path(folder) / "events.sock"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def test_a_vanished_socket_is_opened_again(path, nursery, autojump_clock):
    opened = []
    with contextlib.ExitStack() as stack, bind_unix(path, 0o600):
        nursery.start_soon(keep_open, str(path), lambda: bind_unix(path, 0o600), opened.append, stack)
        await trio.sleep(3)
        assert opened == []
        path.unlink()
        await trio.sleep(2)
        assert len(opened) == 1
        assert connects(path)
        path.unlink()
        path.parent.rmdir()
        await trio.sleep(2)
        assert len(opened) == 2
        assert connects(path)
        nursery.cancel_scope.cancel()


async def test_what_stands_at_the_path_instead_is_not_touched(path, nursery, autojump_clock):
    lines = LogLines()
    logging.getLogger("sidecar").addHandler(lines)
    with contextlib.ExitStack() as stack, bind_unix(path, 0o600):
        nursery.start_soon(keep_open, str(path), lambda: bind_unix(path, 0o600), pytest.fail, stack)
        await trio.testing.wait_all_tasks_blocked()
        path.unlink()
        path.write_text("a file")
        await trio.sleep(3)
        assert path.read_text() == "a file"
        nursery.cancel_scope.cancel()
    logging.getLogger("sidecar").removeHandler(lines)
    path.unlink()
    (said,) = [line["message"] for line in lines.after(0)]
    assert f"Another file stands at the socket {path}" in said


async def test_a_socket_that_cannot_be_opened_is_tried_again(path, nursery, autojump_clock):
    opened, attempts = [], []

    def bind():
        attempts.append(1)
        if len(attempts) < 3:
            raise Failed("The folder is not writable.")
        return bind_unix(path, 0o600)

    with contextlib.ExitStack() as stack:
        nursery.start_soon(keep_open, str(path), bind, opened.append, stack)
        await trio.sleep(5)
        assert (len(attempts), len(opened)) == (3, 1)
        nursery.cancel_scope.cancel()


async def test_a_shortage_of_descriptors_does_not_end_the_watch(path, nursery, autojump_clock, monkeypatch):
    """A socket that vanished while no descriptor was left ended the daemon."""
    opened = []
    with contextlib.ExitStack() as stack, bind_unix(path, 0o600):
        nursery.start_soon(keep_open, str(path), lambda: bind_unix(path, 0o600), opened.append, stack)
        await trio.testing.wait_all_tasks_blocked()
        with monkeypatch.context() as patch:
            patch.setattr(unix_sockets.socket, "socket", raiser(OSError(errno.EMFILE, "Too many open files")))
            path.unlink()
            await trio.sleep(3)
            assert opened == []
        await trio.sleep(2)
        assert len(opened) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "unit"), [("events.sock", "px-sidecar.socket"), ("events-shop.sock", "px-sidecar@shop.socket")]
)
async def test_an_inherited_socket_that_vanished_is_named_with_its_unit(path, nursery, autojump_clock, name, unit):
    path = path.with_name(name)
    reports = []
    with bind_unix(path, 0o600) as listener:
        nursery.start_soon(watch_inherited, [listener], reports.append)
        await trio.sleep(2)
        assert reports == []
        moved = path.rename(path.with_name("aside.sock"))
        await trio.sleep(2)
        assert len(reports) == 1
        assert f"run `systemctl restart {unit}`" in reports[0][0]
        moved.rename(path)
        await trio.sleep(2)
        assert reports[1:] == [[]]
        nursery.cancel_scope.cancel()


async def test_an_inherited_socket_that_was_gone_before_the_start_is_named(path, nursery, autojump_clock):
    """After a restart of the service alone `/health` was 200, and no client could connect."""
    reports = []
    with bind_unix(path, 0o600) as listener:
        path.unlink()
        nursery.start_soon(watch_inherited, [listener], reports.append)
        await trio.sleep(2)
        assert len(reports) == 1
        assert "run `systemctl restart px-sidecar.socket`" in reports[0][0]
        nursery.cancel_scope.cancel()


async def test_an_inherited_socket_out_of_sight_is_not_reported(path, nursery, autojump_clock, monkeypatch):
    """In a folder that only clients may search it was called vanished, and `/health` was 503."""
    reports = []
    with bind_unix(path, 0o600) as listener, monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", raiser(PermissionError(errno.EACCES, "Permission denied")))
        nursery.start_soon(watch_inherited, [listener], reports.append)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert reports == []

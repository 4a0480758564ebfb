"""Calls that only Linux has are not needed: each test takes one away."""

import importlib
import os
import socket
import time
from pathlib import Path

from sidecar import clock, systemd
from sidecar.outbox import capacity


def test_without_clock_boottime_the_boot_clock_is_monotonic(monkeypatch):
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    try:
        changed = importlib.reload(clock)
        assert abs(changed.SystemClock().boot_s() - time.monotonic()) < 1
    finally:
        monkeypatch.undo()
        importlib.reload(clock)


def test_without_a_boot_id_each_process_has_one_of_its_own(monkeypatch):
    monkeypatch.setattr(clock, "_BOOT_ID_FILE", Path("/nowhere"))
    first = clock.SystemClock().boot_id()
    assert first == clock.SystemClock().boot_id()
    assert first.startswith("process-")


def test_without_posix_fallocate_the_reserve_is_written(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "posix_fallocate")
    with (tmp_path / "reserve").open("wb") as file:
        capacity._allocate_blocks(file.fileno(), 3 * 2**20 + 5)
    facts = (tmp_path / "reserve").stat()
    assert facts.st_size == 3 * 2**20 + 5
    assert facts.st_blocks * 512 >= facts.st_size


def test_notifying_needs_no_linux_flag_of_sockets(monkeypatch, tmp_path):
    monkeypatch.delattr(socket, "SOCK_CLOEXEC")
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        systemd.Notifier({"NOTIFY_SOCKET": path}).status("ready")
        assert receiver.recv(100) == b"STATUS=ready"

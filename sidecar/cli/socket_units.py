"""The systemd units of the daemon whose outbox a verb moves: stopped before an export, started again after an import.

A connection to one of the sockets starts the daemon, and on a live host there is always one. While the events are moved away
the sockets stay stopped: clients are refused and keep their events. ``systemctl start`` of the service starts them again
(``Wants=``, systemd/README.md#sockets).
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sidecar.cli.common import global_option
from sidecar.config import config_path
from sidecar.config.file import DEFAULT_PATH
from sidecar.errors import Failed

__all__ = ["restart_sockets", "stop_units"]

BOOTED = Path("/run/systemd/system")  # exists where systemd is PID 1 (sd_booted(3))


def stop_units(config_flag: str | None) -> list[str]:
    """Stop the active sockets of the daemon, then the daemon; return the sockets.

    Nothing happens without systemd, or if the configuration is not that of the shipped units: their outbox is another
    one then. Raises Failed if systemctl refuses.
    """
    instance = global_option("instance")
    usual = Path(DEFAULT_PATH).with_name(f"{instance}.toml") if instance else Path(DEFAULT_PATH)
    if not BOOTED.exists() or config_path(config_flag, os.environ, instance)[0] != usual:
        return []
    name = f"px-sidecar@{instance}" if instance else "px-sidecar"
    sockets = [f"{name}.socket"] + ([] if instance else ["px-sidecar-http.socket"])
    active = [unit for unit in sockets if _is_active(unit)]
    running = _is_active(f"{name}.service")
    if active or running:
        # One call, sockets first: a daemon that is stopped alone is started again by the next connection.
        _systemctl("stop", *active, f"{name}.service")
    return active


def restart_sockets(units: Sequence[str]) -> None:
    """Start sockets that an export has stopped. Raises Failed if systemctl refuses."""
    if units and BOOTED.exists():
        _systemctl("start", *units)


def _is_active(unit: str) -> bool:
    return _run("is-active", "--quiet", unit).returncode == 0


def _systemctl(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise Failed(f"`systemctl {' '.join(arguments)}` failed ({said}); run this verb as root.")


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(  # noqa: S603 - names of units, none from outside
            ["systemctl", "--no-ask-password", *arguments],  # noqa: S607 - from the PATH, as an operator would
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 1, "", "systemctl is not installed")

"""The files that ``init`` writes for a user without root: paths below the XDG base directories, and a unit of the user's systemd."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sidecar.cli.common import own_command
from sidecar.config.file import user_folder

__all__ = ["UserPaths", "unit_text", "user_paths"]


class UserPaths(NamedTuple):
    """The paths of the sockets, the outbox and the unit of a daemon without root."""

    sockets: Path
    outbox: Path
    unit: Path


def user_paths(config: Path, environ: Mapping[str, str] = os.environ) -> UserPaths:
    """Return the paths for a configuration below ``$XDG_CONFIG_HOME``.

    Sockets are below ``$XDG_RUNTIME_DIR``, which a login sets; without it below the state, which outlives the login.
    """
    state = user_folder(environ, "XDG_STATE_HOME", ".local/state") or config.parent
    run = Path(f"/run/user/{os.geteuid()}")
    runtime = user_folder(environ, "XDG_RUNTIME_DIR", "") if environ.get("XDG_RUNTIME_DIR") else None
    sockets = runtime or (run / "px-sidecar" if os.access(run, os.W_OK) else state)
    unit = config.parent.parent / "systemd" / "user" / "px-sidecar.service"
    return UserPaths(sockets, state / "outbox.db", unit)


def unit_text(config: Path) -> str:
    """Return the unit: notify, watchdog and restarts as in systemd/px-sidecar.service, without what needs root."""
    command = " ".join(_quoted(part) for part in (*own_command(), "run", "--config", str(config)))
    return f"""# Written by px-sidecar init. systemctl --user enable --now px-sidecar; loginctl enable-linger keeps it without a login.
[Unit]
Description=Delivery of product-usage events to Gainsight PX
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
TimeoutStopSec=30s
Restart=always
RestartSec=200ms
RestartPreventExitStatus=78
WatchdogSec=30s

[Install]
WantedBy=default.target
"""


def _quoted(text: str) -> str:
    """Quote one argument for a unit (systemd.service(5), COMMAND LINES)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != text or any(char in text for char in " '") else text

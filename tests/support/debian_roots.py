"""Clean Debian roots for tests of packages and images, made once by debootstrap and kept in /var/tmp."""

import os
import subprocess
from pathlib import Path

KEPT = Path("/var/tmp/px-roots")
INCLUDED = "systemd,systemd-sysv,python3,dbus,ca-certificates"


def clean_root(release: str) -> Path:
    """Return a Debian with nothing in it but systemd and Python. Tests copy it. Takes a minute and a mirror the first time."""
    root = KEPT / release
    if not root.exists():
        making = root.with_name(f"{release}.{os.getpid()}")
        making.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", release, str(making)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        making.rename(root)
    return root

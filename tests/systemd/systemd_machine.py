"""A booted systemd with the shipped units; tests skip with the reason on a machine that cannot boot one.

Run as a program it prints the reason, or an empty line if this machine can boot a container.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# What stands at /usr/bin/px-sidecar in the machine: this very checkout, by the interpreter that runs the tests.
COMMAND = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/px-sidecar:/opt/packages PYTHONDONTWRITEBYTECODE=1
exec /opt/python/bin/python3 -m sidecar "$@"
"""


class Machine:
    """One booted system. ``run`` runs a command in it, as root, with nothing but a PATH in its environment."""

    def __init__(self, files: Path, binds: dict[str, str]):
        options = [f"--bind-ro={here}:{there}" for here, there in binds.items()]
        self._boot = subprocess.Popen(
            [str(HERE / "boot.sh"), str(files), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.init = self._boot.stdout.readline().strip()
        if not self.init:
            raise RuntimeError("the container did not boot; boot.sh has said why")

    def run(self, *command: str, check: bool = True, timeout_s: float = 60, **more) -> str:
        """What the command prints. Commands must end before the machine does: a shutdown waits for them without end."""
        inside = [
            "nsenter",
            "-t",
            self.init,
            "-a",
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            *command,
        ]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=timeout_s, **more)
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def sh(self, script: str, **options) -> str:
        return self.run("sh", "-c", script, **options)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as ``systemctl show`` has them."""
        lines = self.run("systemctl", "show", f"--property={','.join(properties)}", unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def power_off(self) -> None:
        self._boot.stdin.close()
        try:
            self._boot.wait(30)
        finally:
            self._boot.terminate()
            self._boot.wait(10)
            self._boot.stdout.close()


@cache
def boot_obstacle() -> str:
    """Return why this machine cannot boot a container, or an empty string. Boots an empty one, once per process."""
    if os.geteuid() != 0:
        return "booting a system needs root"
    for tool in ("systemd-nspawn", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if not Path("/lib/systemd/systemd").exists():
        return "there is no systemd in /lib/systemd to boot"
    with tempfile.TemporaryDirectory() as empty:
        try:
            # Standard input is at its end, so that the container is powered off as soon as it is up.
            done = subprocess.run(
                [str(HERE / "boot.sh"), empty],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=100,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "an empty container did not boot within 100 s"
    if done.returncode == 0 and done.stdout.strip():
        return ""
    said = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])
    return f"systemd-nspawn cannot boot an empty container here: {said[-300:] or f'exit code {done.returncode}'}"


def shipped_files(folder: Path, command: str = COMMAND) -> Path:
    """Lays out what a package would install, with ``command`` in place of the console script."""
    units = ROOT / "systemd"
    shutil.copytree(units / "sysusers.d", folder / "etc/sysusers.d")
    shutil.copytree(units / "tmpfiles.d", folder / "etc/tmpfiles.d")
    (folder / "etc/systemd/system").mkdir(parents=True)
    for unit in (*units.glob("*.service"), *units.glob("*.socket")):
        shutil.copy(unit, folder / "etc/systemd/system")
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/px-sidecar").write_text(command, encoding="utf-8")
    (folder / "usr/bin/px-sidecar").chmod(0o755)
    for mount_point in ("python", "px-sidecar", "packages"):
        (folder / "opt" / mount_point).mkdir(parents=True)
    return folder


def booted(folder: Path, command: str = COMMAND):
    """A fixture's body: a machine with the shipped files, powered off at the end."""
    if reason := boot_obstacle():
        pytest.skip(reason)
    binds = {
        sys.base_prefix: "/opt/python",
        str(ROOT): "/opt/px-sidecar",
        sysconfig.get_path("purelib"): "/opt/packages",
    }
    machine = Machine(shipped_files(folder, command), binds)
    try:
        yield machine
    finally:
        machine.power_off()


if __name__ == "__main__":
    print(boot_obstacle())

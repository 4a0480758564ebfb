"""The Debian package in a clean Debian: built, installed, started, upgraded and purged, as an operator would.

Takes a minute and a Debian mirror the first time, when the clean root is made; it is kept in /var/tmp for the next.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from systemd_machine import ROOT, Machine, why_not

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(900)]

RELEASE = "bookworm"
CLEAN = Path("/var/tmp/px-roots") / RELEASE
OURS = ("usr/bin/px-sidecar", "usr/lib/px-sidecar", "usr/lib/systemd/system/px-sidecar.service", "etc/px-sidecar")


def clean_root() -> Path:
    """A Debian with nothing in it but systemd and Python."""
    if not CLEAN.exists():
        making = CLEAN.with_name(f"{RELEASE}.{os.getpid()}")
        making.parent.mkdir(parents=True, exist_ok=True)
        include = "systemd,systemd-sysv,python3,dbus,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={include}", RELEASE, str(making)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        making.rename(CLEAN)
    return CLEAN


def why_not_here() -> str:
    if reason := why_not():
        return reason
    if f"VERSION_CODENAME={RELEASE}" not in Path("/etc/os-release").read_text():
        return f"the package is for the release it is built on, and this is not {RELEASE}"
    return "" if shutil.which("debootstrap") else "debootstrap is not installed"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The package, and one that is newer."""
    if reason := why_not_here():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("packages")
    build = [str(ROOT / "systemd/build-deb")]
    first = subprocess.run([*build, "0.1.0", str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", first, str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("Version: 0.1.0", "Version: 0.1.1"))
    second = folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(second)], check=True)
    return Path(first), second


@pytest.fixture(scope="module")
def machine(packages, tmp_path_factory):
    root = tmp_path_factory.mktemp("root") / "debian"
    subprocess.run(["cp", "-a", "--reflink=auto", str(clean_root()), str(root)], check=True)
    root.chmod(0o755)
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for number, package in enumerate(packages, 1):
        shutil.copy(package, root / f"root/{number}.deb")
    machine = Machine(root, {})
    try:
        yield machine
    finally:
        machine.power_off()
        shutil.rmtree(root)


def wait_until(true, what, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def test_the_life_of_a_package(machine):
    install(machine)
    first_use(machine)
    upgrade(machine)
    purge(machine)


def install(machine):
    before = machine.sh("dpkg -l | grep -c ^ii")
    assert "px-sidecar init" in machine.sh("dpkg -i /root/1.deb 2>&1")
    assert int(machine.sh("dpkg -l | grep -c ^ii")) == int(before) + 1
    assert machine.sh("px-sidecar --version") == "px-sidecar 0.1.0\n"
    assert machine.sh("stat -c '%U %G %a' /run/px-sidecar") == "px-sidecar px-sidecar 755\n"
    assert machine.sh("systemctl is-enabled px-sidecar.service || true") == "disabled\n"
    assert machine.sh("dpkg --verify px-sidecar") == ""
    assert "config.toml" in machine.sh("dpkg-query --show -f '${Conffiles}' px-sidecar")
    manual = machine.sh("zcat /usr/share/man/man1/px-sidecar.1.gz")
    assert manual.startswith(".TH PX-SIDECAR 1 ")
    assert all(f".SS {verb}" in manual for verb in ("run", "init", "status", "dead"))
    # Without a key the daemon says what to do, once.
    machine.sh("systemctl start px-sidecar || true")
    assert machine.show("px-sidecar", "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}
    machine.sh("systemctl reset-failed px-sidecar")


def first_use(machine):
    """The way of somebody who has just installed it, against the sandbox."""
    machine.sh("systemd-run -q --unit=px-sandbox px-sidecar sandbox --port 8399 --key sandbox-key")
    init = "px-sidecar init --yes --region us --property-key AP-XXXXXXXXXX-2 --key-from -"
    assert "/etc/px-sidecar/api_key" in machine.sh(f"{init} 2>&1", input="sandbox-key\n")
    assert machine.sh("stat -c '%U %a' /etc/px-sidecar/api_key") == "root 600\n"
    machine.sh(r"sed -i '/^\[px\]/a base_url = \"http://127.0.0.1:8399\"' /etc/px-sidecar/config.toml")
    check = machine.run("px-sidecar", "check", "--live")
    assert "WRONG" not in check
    assert " PX " in check
    machine.sh("systemctl enable --now px-sidecar 2>&1")
    assert (
        machine.sh("systemctl is-enabled px-sidecar.service px-sidecar.socket px-sidecar-http.socket")
        == 3 * "enabled\n"
    )
    said = machine.sh("px-sidecar send 'Logged In' --user u1 --wait")
    assert "delivered" in said
    assert '"delivered":1' in machine.sh("px-sidecar status --json").replace(" ", "")


def upgrade(machine):
    pid = machine.show("px-sidecar", "MainPID")["MainPID"]
    machine.sh("echo '# mine' >>/etc/px-sidecar/config.toml; dpkg -i /root/2.deb 2>&1")
    wait_until(lambda: machine.show("px-sidecar", "MainPID")["MainPID"] not in ("0", pid), "the restart")
    assert machine.sh("dpkg-query --show -f '${Version}' px-sidecar") == "0.1.1"
    assert machine.sh("grep -c '# mine' /etc/px-sidecar/config.toml") == "1\n"
    assert '"delivered":1' in machine.sh("px-sidecar status --json").replace(" ", "")


def purge(machine):
    machine.sh("systemctl stop px-sandbox; dpkg --remove px-sidecar 2>&1")
    assert machine.sh("ls /var/lib/px-sidecar/outbox.db /etc/px-sidecar/config.toml").count("\n") == 2
    assert machine.sh("systemctl list-units --no-legend 'px-sidecar*'") == ""
    machine.sh("dpkg --purge px-sidecar 2>&1")
    left = machine.sh(
        "find / -xdev -name '*px-sidecar*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/var/log/*'"
    )
    assert left == ""
    assert machine.sh("grep -c px-sidecar /etc/passwd /etc/group /etc/shadow || true").count(":0") == 3
    assert machine.sh("dpkg -l px-sidecar 2>&1 || true").startswith("dpkg-query: no packages found")

"""The Debian package in a clean Debian: built, installed, started, upgraded and purged, as an operator would.

Takes a minute and a Debian mirror the first time, when the clean root is made; it is kept in /var/tmp for the next.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from debian_roots import KEPT, clean_root
from systemd_machine import ROOT, Machine, boot_obstacle

from sidecar.outbox.schema import SCHEMA_VERSION

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

RELEASES = ("bookworm", "trixie")
OURS = ("usr/bin/px-sidecar", "usr/lib/px-sidecar", "usr/lib/systemd/system/px-sidecar.service", "etc/px-sidecar")

# A later version whose outbox has a later file format.
LATER_FORMAT = """

@migrations()
def m9999_of_a_later_version(database: sqlite_utils.Database) -> None:
    database.conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
"""

# Apps: four threads that send over HTTP and over the Unix socket, each event on a new connection, until /root/stop exists.
LOAD = r"""
import http.client, json, os, socket, threading

counts, failures = [0, 0], []

def over_http():
    connection = http.client.HTTPConnection("127.0.0.1", 8321, timeout=30)
    connection.request("POST", "/v1/track", json.dumps({"event": "Load", "userId": "u"}))
    return json.load(connection.getresponse())

def over_unix():
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect("/run/px-sidecar/events.sock")
        connection.sendall(b'{"type":"track","event":"Load","userId":"u"}\n')
        return json.loads(connection.makefile().readline())

def send(kind):
    while not os.path.exists("/root/stop"):
        try:
            assert (over_http, over_unix)[kind]()["success"]
            counts[kind] += 1
        except Exception as error:
            failures.append(repr(error))

threads = [threading.Thread(target=send, args=(number % 2,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
json.dump({"http": counts[0], "unix": counts[1], "failures": failures}, open("/root/load.json", "w"))
"""


def why_not_here() -> str:
    if reason := boot_obstacle():
        return reason
    return "" if shutil.which("debootstrap") else "debootstrap is not installed"


def build_for(release: str, folder: Path) -> Path:
    """Build the package for a release: here if this is one, else in a chroot of it."""
    if f"VERSION_CODENAME={release}" in Path("/etc/os-release").read_text():
        command = [str(ROOT / "systemd/build-deb"), "0.1.0", str(folder)]
        return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    root = builder_root(release)
    source = root / "src"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    parts = ["pyproject.toml", ".ci/build_backend.py", "README.md", "LICENSE", "CHANGELOG.md", "sidecar", "systemd"]
    subprocess.run(["cp", "-a", "--parents", *parts, str(source)], cwd=ROOT, check=True)
    inside = in_chroot(root, "/src/systemd/build-deb", "0.1.0", "/src/dist").strip()
    return Path(shutil.copy(root / inside.lstrip("/"), folder))


def builder_root(release: str) -> Path:
    """A root that can build a package, kept like the clean one."""
    root = KEPT / f"{release}-builder"
    if not root.exists():
        making = root.with_name(f"{root.name}.{os.getpid()}")
        subprocess.run(["cp", "-a", "--reflink=auto", str(clean_root(release)), str(making)], check=True)
        shutil.copy("/etc/resolv.conf", making / "etc/resolv.conf")
        in_chroot(making, "apt-get", "update", "-qq")
        in_chroot(making, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "python3-venv")
        # The certificates of this machine, by which it reaches the package index.
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", making / "etc/ssl/certs/ca-certificates.crt")
        making.rename(root)
    return root


def in_chroot(root: Path, *command: str) -> str:
    """Run a command in a root, with /proc, and return what it prints."""
    script = 'mount -t proc proc "$1/proc" && root=$1 && shift && exec chroot "$root" "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(root), *command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command} in {root.name}: {done.stderr[-2000:]}"
    return done.stdout


def replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path.name, old)
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module", params=RELEASES)
def release(request):
    if reason := why_not_here():
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def packages(release, tmp_path_factory):
    """The package, and one that is newer, with a later file format."""
    folder = tmp_path_factory.mktemp("packages")
    first = build_for(release, folder)
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(first), str(tree)], check=True)
    later = SCHEMA_VERSION + 1
    library = tree / "usr/lib/px-sidecar/sidecar/outbox"
    replace_once(tree / "DEBIAN/control", "Version: 0.1.0", "Version: 0.1.1")
    replace_once(tree / "DEBIAN/preinst", "VERSION=0.1.0", "VERSION=0.1.1")
    replace_once(tree / "DEBIAN/preinst", f"FORMAT={SCHEMA_VERSION}", f"FORMAT={later}")
    replace_once(library / "lock.py", f"SCHEMA_VERSION: Final = {SCHEMA_VERSION}", f"SCHEMA_VERSION: Final = {later}")
    schema = library / "schema.py"
    schema.write_text(schema.read_text() + LATER_FORMAT)
    second = folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(second)], check=True)
    return first, second


@pytest.fixture(scope="module")
def machine(release, packages, tmp_path_factory):
    root = tmp_path_factory.mktemp("root") / "debian"
    subprocess.run(["cp", "-a", "--reflink=auto", str(clean_root(release)), str(root)], check=True)
    root.chmod(0o755)
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "root/load.py").write_text(LOAD)
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


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed (Debian package: lintian)")
def test_lintian_finds_nothing_without_a_reason(packages):
    """What it has to accept, and why, is in systemd/debian/lintian-overrides."""
    command = ["lintian", "--allow-root", "--tag-display-limit", "0", "--fail-on", "error,warning", str(packages[0])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_life_of_a_package(machine):
    install(machine)
    first_use(machine)
    upgrade(machine)
    downgrade(machine)
    purge(machine)


def install(machine):
    before = machine.sh("dpkg -l | grep -c ^ii")
    assert "px-sidecar init" in machine.sh("dpkg -i /root/1.deb 2>&1")
    assert int(machine.sh("dpkg -l | grep -c ^ii")) == int(before) + 1
    assert machine.sh("px-sidecar --version") == "px-sidecar 0.1.0\n"
    assert machine.sh("stat -c '%U %G %a' /run/px-sidecar") == "px-sidecar px-sidecar-operators 2755\n"
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
    """The way of a fresh installation, against the sandbox."""
    assert machine.sh("px-sidecar demo --events 200 2>&1 | tail -n 1").strip().endswith("lost=0")
    machine.sh("systemd-run -q --unit=px-sandbox px-sidecar sandbox --port 8399 --key sandbox-key")
    init = "px-sidecar init --yes --region us --property-key AP-XXXXXXXXXX-2 --key-from -"
    assert "/etc/px-sidecar/api_key" in machine.sh(f"{init} 2>&1", input="sandbox-key\n")
    assert machine.sh("stat -c '%U %a' /etc/px-sidecar/api_key") == "root 600\n"
    machine.sh(r"sed -i '/^\[px\]/a base_url = \"http://127.0.0.1:8399\"' /etc/px-sidecar/config.toml")
    check = machine.run("px-sidecar", "check", "--live")
    assert "FAIL" not in check
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
    """Under load, with a migration of the outbox: no app is refused, and every answered event is stored."""
    before = accepted(machine)
    machine.sh("systemd-run -q --unit=load /usr/bin/python3 /root/load.py")
    wait_until(lambda: accepted(machine) > before + 20, "the load")
    pid = machine.show("px-sidecar", "MainPID")["MainPID"]
    machine.sh("echo '# mine' >>/etc/px-sidecar/config.toml; dpkg -i /root/2.deb 2>&1", timeout_s=200)
    wait_until(lambda: machine.show("px-sidecar", "MainPID")["MainPID"] not in ("0", pid), "the restart")
    at_restart = accepted(machine)
    wait_until(lambda: accepted(machine) > at_restart + 20, "load on the new version")
    machine.sh("touch /root/stop")
    wait_until(lambda: machine.sh("systemctl is-active load || true") != "active\n", "the end of the load", 60)
    load = json.loads(machine.sh("cat /root/load.json"))
    assert load["failures"] == []
    assert min(load["http"], load["unix"]) > 10
    assert accepted(machine) == before + load["http"] + load["unix"]
    assert machine.sh("dpkg-query --show -f '${Version}' px-sidecar") == "0.1.1"
    assert machine.sh("grep -c '# mine' /etc/px-sidecar/config.toml") == "1\n"


def accepted(machine) -> int:
    # While the daemon restarts, the verb reads the file or says that it cannot.
    text = machine.sh("px-sidecar status --json || true")
    return json.loads(text).get("accepted", 0) if text else 0


def downgrade(machine):
    """A package that cannot read the outbox changes nothing, and says how to go back; that way works."""
    pid = machine.show("px-sidecar", "MainPID")["MainPID"]
    said = machine.sh("dpkg -i /root/1.deb 2>&1 || echo refused")
    assert said.endswith("refused\n")
    assert "px-sidecar 0.1.0 cannot read /var/lib/px-sidecar/outbox.db, which px-sidecar 0.1.1 has written" in said
    assert "move /var/lib/px-sidecar/outbox.db away, and install 0.1.0 again" in said
    assert machine.show("px-sidecar", "MainPID", "ActiveState") == {"MainPID": pid, "ActiveState": "active"}
    assert machine.sh("dpkg-query --show -f '${Version} ${Status}' px-sidecar") == "0.1.1 install ok installed"
    machine.sh(
        "systemctl stop px-sidecar; mv /var/lib/px-sidecar/outbox.db /var/lib/px-sidecar/later.db; dpkg -i /root/1.deb 2>&1"
    )
    machine.sh("systemctl start px-sidecar")
    assert machine.sh("dpkg-query --show -f '${Version}' px-sidecar") == "0.1.0"
    assert accepted(machine) == 0


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

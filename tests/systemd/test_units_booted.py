"""What the shipped units promise by themselves, under a real systemd and whatever the daemon does.

The daemon is a stand-in of a few lines that does as ``/etc/px-sidecar/mode`` says.
"""

import json

import pytest
from systemd_machine import booted

pytestmark = pytest.mark.systemd

STAND_IN = """#!/bin/sh
LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/px-sidecar exec /opt/python/bin/python3 -BSc '
import json, os, resource, signal, socket, sys, time
from sidecar.systemd import Notifier, inherited_sockets, watchdog_s

def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return error.strerror

mode = open("/etc/px-sidecar/mode").read().strip()
with open(os.environ["CREDENTIALS_DIRECTORY"] + "/px_api_key") as file:
    key = file.read()
if mode.isdigit():
    sys.exit(int(mode))
sockets = inherited_sockets()
about = {
    "arguments": sys.argv[1:],
    "sockets": {name: [sock.getsockname() for sock in several] for name, several in sockets.items()},
    "key": key.strip(),
    "state": os.environ["STATE_DIRECTORY"],
    "watchdog_s": watchdog_s(),
    "user": [os.getuid() != 0, os.environ["USER"]],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 10_000,
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "write /etc": attempt(lambda: open("/etc/px-sidecar/new", "w")),
    "write state": attempt(lambda: open(os.environ["STATE_DIRECTORY"] + "/new", "w")),
    "bind control": attempt(lambda: socket.socket(socket.AF_UNIX).bind("/run/px-sidecar/control-%d.sock" % os.getpid())),
    "read the key file": attempt(lambda: open("/etc/px-sidecar/api_key")),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "boot id": attempt(lambda: open("/proc/sys/kernel/random/boot_id")),
}
notifier = Notifier()
signal.signal(signal.SIGHUP, lambda *_: (notifier.reloading(), notifier.ready("reloaded")))
notifier.ready("ready")
while True:
    listener = sockets["unix"][0]
    listener.settimeout(0.1)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        notifier.watchdog()
        continue
    if mode == "fail":
        os._exit(1)
    if mode == "hang":
        time.sleep(1000)
    connection.sendall(json.dumps(about).encode())
    connection.close()
' "$@"
"""

ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(20)
    connection.connect(sys.argv[1])
    print(b"".join(iter(lambda: connection.recv(65536), b"")).decode())
"""


CONNECT_AND_WAIT = (
    "(LD_LIBRARY_PATH=/opt/python/lib timeout 4 /opt/python/bin/python3 -Sc 'import socket, time; "
    's = socket.socket(socket.AF_UNIX); s.connect("/run/px-sidecar/events.sock"); time.sleep(9)\' >/dev/null 2>&1 &)'
)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory):
    yield from booted(tmp_path_factory.mktemp("files"), STAND_IN)


@pytest.fixture
def machine(one_machine):
    one_machine.sh("echo work >/etc/px-sidecar/mode; systemctl start px-sidecar.socket px-sidecar-http.socket")
    yield one_machine
    one_machine.sh(
        "systemctl stop px-sidecar.socket px-sidecar-http.socket px-sidecar; systemctl reset-failed; rm -f /etc/px-sidecar/api_key"
    )


def ask(machine, path="/run/px-sidecar/events.sock"):
    """Connects and returns what the stand-in says about itself."""
    command = ("env", "LD_LIBRARY_PATH=/opt/python/lib", "/opt/python/bin/python3", "-Sc", ASK, path)
    return json.loads(machine.run(*command))


def test_a_started_daemon_finds_its_sockets_by_name(machine):
    assert machine.show("px-sidecar", "ActiveState") == {"ActiveState": "inactive"}
    about = ask(machine)
    assert about["sockets"] == {"unix": ["/run/px-sidecar/events.sock"], "http": [["127.0.0.1", 8321]]}
    assert about["arguments"] == ["run"]
    assert machine.show("px-sidecar", "ActiveState", "StatusText") == {"ActiveState": "active", "StatusText": "ready"}


def test_apps_of_the_clients_group_may_connect_and_others_may_not(machine):
    assert machine.sh("stat -c '%U %G %a' /run/px-sidecar /run/px-sidecar/events.sock") == (
        "px-sidecar px-sidecar-operators 2755\npx-sidecar px-sidecar-clients 660\n"
    )


def test_the_daemon_can_do_what_it_must_and_nothing_else(machine):
    about = ask(machine)
    assert about["user"] == [True, "px-sidecar"]
    assert about["state"] == "/var/lib/px-sidecar"
    assert machine.sh("stat -c '%U %a' /var/lib/px-sidecar") == "px-sidecar 700\n"
    assert {about[can] for can in ("write state", "bind control", "boot id")} == {"done"}
    assert about["write /etc"] == "Read-only file system"
    assert about["netlink"] == "Address family not supported by protocol"
    assert about["files"] is True
    assert about["core"] == 0
    assert about["watchdog_s"] == 30


def test_the_key_is_a_credential_and_its_file_stays_roots(machine):
    machine.sh("umask 077; echo k-e-y >/etc/px-sidecar/api_key")
    about = ask(machine)
    assert about["key"] == "k-e-y"
    assert about["read the key file"] == "Permission denied"


def test_without_a_key_file_the_daemon_starts_and_sees_an_empty_key(machine):
    assert ask(machine)["key"] == ""


def test_a_daemon_that_says_78_stays_down_and_its_sockets_stay_open(machine):
    machine.sh("echo 78 >/etc/px-sidecar/mode; systemctl start px-sidecar || true")
    assert machine.show("px-sidecar", "ActiveState", "NRestarts", "ExecMainStatus") == {
        "ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "78",
    }  # fmt: skip
    for unit in ("px-sidecar.socket", "px-sidecar-http.socket"):
        assert machine.show(unit, "SubState") == {"SubState": "listening"}


def test_a_killed_daemon_answers_the_connection_that_waits(machine):
    ask(machine)
    inode = machine.sh("stat -c %i /run/px-sidecar/events.sock")
    machine.run("systemctl", "kill", "-s", "KILL", "px-sidecar")
    assert ask(machine)["arguments"] == ["run"]
    assert machine.show("px-sidecar", "NRestarts") == {"NRestarts": "1"}
    assert machine.sh("stat -c %i /run/px-sidecar/events.sock") == inode


@pytest.mark.parametrize("mode", ["fail", "78"])
def test_a_failing_daemon_is_not_started_in_a_loop(machine, mode):
    before = machine.journal("px-sidecar").count("Starting px-sidecar.service")
    machine.sh(f"echo {mode} >/etc/px-sidecar/mode; for n in 1 2 3; do {CONNECT_AND_WAIT}; done; sleep 4")
    starts = machine.journal("px-sidecar").count("Starting px-sidecar.service") - before
    assert 2 <= starts <= 3
    assert machine.show("px-sidecar.socket", "ActiveState", "Result") == {"ActiveState": "active", "Result": "success"}
    machine.sh("echo work >/etc/px-sidecar/mode")
    assert ask(machine)["arguments"] == ["run"]


def test_a_daemon_that_makes_no_progress_is_ended_by_the_watchdog(machine):
    machine.sh(
        "mkdir -p /run/systemd/system/px-sidecar.service.d; cd /run/systemd/system/px-sidecar.service.d;"
        "printf '[Service]\\nWatchdogSec=1s\\n' >watchdog.conf; systemctl daemon-reload; echo hang >/etc/px-sidecar/mode"
    )
    try:
        machine.sh(f"{CONNECT_AND_WAIT}; sleep 2.5")
        assert "Watchdog timeout" in machine.journal("px-sidecar")
        assert int(machine.show("px-sidecar", "NRestarts")["NRestarts"]) >= 1
        assert "Fatal Python error: Aborted" in machine.journal("px-sidecar"), "the stacks are in the journal"
    finally:
        machine.sh("rm -r /run/systemd/system/px-sidecar.service.d; systemctl daemon-reload")


def test_an_instance_has_its_own_socket_state_and_argument(machine):
    machine.sh("umask 077; echo acmes >/etc/px-sidecar/acme.api_key; systemctl start px-sidecar@acme")
    about = ask(machine, "/run/px-sidecar/events-acme.sock")
    assert about["sockets"] == {"unix": ["/run/px-sidecar/events-acme.sock"]}
    assert about["state"] == "/var/lib/px-sidecar/acme"
    assert about["arguments"] == ["--instance", "acme", "run"]
    assert about["key"] == "acmes"
    machine.run("systemctl", "stop", "px-sidecar@acme.socket", "px-sidecar@acme.service")


def test_a_reload_reaches_the_daemon(machine):
    ask(machine)
    machine.run("systemctl", "reload", "px-sidecar")
    ask(machine)
    assert machine.show("px-sidecar", "ActiveState", "StatusText", "NRestarts") == {
        "ActiveState": "active", "StatusText": "reloaded", "NRestarts": "0",
    }  # fmt: skip


def test_enabling_the_daemon_enables_its_sockets(machine):
    machine.run("systemctl", "enable", "px-sidecar.service")
    assert machine.run("systemctl", "is-enabled", "px-sidecar.socket", "px-sidecar-http.socket") == "enabled\nenabled\n"
    machine.run("systemctl", "disable", "px-sidecar.service", "px-sidecar.socket", "px-sidecar-http.socket")

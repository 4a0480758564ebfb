"""The real daemon by the shipped units under a real systemd, delivering to a sandbox in the same machine."""

import json
import subprocess
import threading
import time
from collections import Counter

import pytest
from systemd_machine import booted

pytestmark = pytest.mark.systemd

KEY = "k-e-y-of-the-credential"
CONFIG = """[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "http://127.0.0.1:8399"
[deliver]
per_second = 1000
[mapping.fields]
eventId = "messageId"
"""
PYTHON = "env LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/px-sidecar /opt/python/bin/python3 -S"

# One connection an event, by turns over HTTP and the Unix socket. Prints what became of each.
STREAM = """
import http.client, json, socket, sys, time
name, seconds = sys.argv[1], float(sys.argv[2])
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect("/run/px-sidecar/events.sock")
number, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    number += 1
    mid = f"{name}-{number}"
    body = json.dumps({"event": "Logged In", "userId": f"u{number % 50}", "messageId": mid})
    try:
        connection = Unix("localhost") if number % 2 else http.client.HTTPConnection("127.0.0.1", 8321, timeout=20)
        connection.request("POST", "/v1/track", body)
        answer = connection.getresponse()
        print(mid, "accepted" if answer.status == 200 and json.load(answer)["success"] else answer.status, flush=True)
        connection.close()
    except OSError as error:
        print(mid, type(error).__name__, flush=True)
"""

ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
connection.request("GET", sys.argv[2])
print(connection.getresponse().read().decode().strip())
"""


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory):
    yield from booted(tmp_path_factory.mktemp("files"))


@pytest.fixture
def machine(one_machine):
    """Sockets that wait, a sandbox that knows the key, an outbox without events; the daemon is not running."""
    write(one_machine, "config.toml", CONFIG)
    write(one_machine, "api_key", KEY, mode="600")
    one_machine.sh("systemd-run -q --unit=px-sandbox px-sidecar sandbox --port 8399 --per-second 0 --key " + KEY)
    one_machine.sh("systemctl start px-sidecar.socket px-sidecar-http.socket")
    yield one_machine
    one_machine.sh(
        "systemctl stop px-sidecar.socket px-sidecar-http.socket px-sidecar; systemctl stop px-sandbox;"
        "systemctl reset-failed; rm -rf /var/lib/px-sidecar/* /run/systemd/system/px-sidecar.service.d; systemctl daemon-reload"
    )


def write(machine, name, text, mode="644"):
    machine.sh(f"umask 077; cat >/etc/px-sidecar/{name}; chmod {mode} /etc/px-sidecar/{name}", input=text)


def ask(machine, port, path):
    return machine.run(*PYTHON.split(), "-c", ASK, str(port), path)


def status(machine):
    return json.loads(ask(machine, 8321, "/status"))


def arrived(machine):
    return [json.loads(line)["eventId"] for line in ask(machine, 8399, "/sandbox/events").splitlines() if line]


def wait_until(true, what, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)
    return found


def status_text(machine):
    return machine.show("px-sidecar", "StatusText")["StatusText"]


def is_new_main_pid(machine, old):
    shown = machine.show("px-sidecar", "ActiveState", "MainPID")
    return shown["ActiveState"] == "active" and shown["MainPID"] not in ("0", old)


class Stream:
    """Events in a stream, from the background, until it ends by itself after ``seconds``."""

    def __init__(self, machine, name, seconds):
        self.outcomes = {}
        command = [*PYTHON.split(), "-c", STREAM, name, str(seconds)]
        inside = ["nsenter", "-t", machine.init, "-a", "env", "-i", "PATH=/usr/bin:/bin", *command]
        self._process = subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            mid, outcome = line.split()
            self.outcomes[mid] = outcome

    def wait(self):
        self._process.wait(60)
        self._reader.join(10)
        self._process.stdout.close()
        return Counter(self.outcomes.values())

    def accepted(self):
        return {mid for mid, outcome in self.outcomes.items() if outcome == "accepted"}


def test_the_first_connection_starts_a_daemon_with_credentials(machine):
    assert machine.show("px-sidecar", "ActiveState") == {"ActiveState": "inactive"}
    assert Stream(machine, "first", 0.3).wait().keys() == {"accepted"}
    assert machine.show("px-sidecar", "ActiveState") == {"ActiveState": "active"}
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    assert status(machine)["delivered"] == len(arrived(machine)) > 0
    assert machine.sh("stat -c '%U %a' /run/px-sidecar/control.sock /var/lib/px-sidecar/outbox.db") == (
        "px-sidecar 600\npx-sidecar 600\n"
    )
    line = wait_until(lambda: "0 pending" in status_text(machine) and status_text(machine), "STATUS= shows the backlog")
    assert line.startswith("open, 0 pending")


def test_restarts_and_kills_refuse_no_connection(machine):
    machine.run("systemctl", "start", "px-sidecar")
    stream = Stream(machine, "stream", 15)
    for action in ("restart", "kill -s KILL", "restart"):
        pid = machine.show("px-sidecar", "MainPID")["MainPID"]
        goal = len(stream.outcomes) + 50
        wait_until(lambda goal=goal: len(stream.outcomes) > goal, "traffic")
        machine.run("systemctl", *action.split(), "px-sidecar")
        wait_until(lambda pid=pid: is_new_main_pid(machine, pid), "a new daemon")
    outcomes = stream.wait()
    assert "ConnectionRefusedError" not in outcomes, outcomes
    assert outcomes["accepted"] > 150  # fifty around each of the three
    # What a killed daemon had read and not answered was not accepted; an orderly restart costs no client an answer.
    assert outcomes.total() - outcomes["accepted"] <= 2, outcomes
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    assert stream.accepted() <= set(arrived(machine))


def test_a_frozen_daemon_is_ended_by_the_watchdog_and_nothing_is_lost(machine):
    machine.sh(
        "mkdir -p /run/systemd/system/px-sidecar.service.d; cd /run/systemd/system/px-sidecar.service.d;"
        "printf '[Service]\\nWatchdogSec=2s\\n' >watchdog.conf; systemctl daemon-reload; systemctl start px-sidecar"
    )
    time.sleep(2.5)  # longer than the limit: a working daemon feeds it
    pid = machine.show("px-sidecar", "MainPID", "NRestarts")
    assert pid["NRestarts"] == "0"
    machine.run("systemctl", "kill", "-s", "STOP", "px-sidecar")
    stream = Stream(machine, "frozen", 4)
    wait_until(lambda: is_new_main_pid(machine, pid["MainPID"]), "the watchdog's restart")
    assert machine.show("px-sidecar", "NRestarts") == {"NRestarts": "1"}
    assert "Watchdog timeout" in machine.journal("px-sidecar")
    outcomes = stream.wait()
    assert "ConnectionRefusedError" not in outcomes
    assert outcomes["accepted"] > 0
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    assert stream.accepted() <= set(arrived(machine))


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one_aloud(machine):
    machine.run("systemctl", "start", "px-sidecar")
    pid = machine.show("px-sidecar", "MainPID")["MainPID"]
    write(machine, "config.toml", CONFIG.replace("per_second = 1000", 'per_second = "fast"'))
    machine.run("systemctl", "reload", "px-sidecar")
    wait_until(lambda: "per_second" in status_text(machine), "STATUS= says what is wrong")
    time.sleep(1.5)  # and continues to report
    assert "per_second" in status_text(machine)
    assert "the old one stays in force" in machine.journal("px-sidecar")
    assert status(machine)["ceiling"] == 1000
    assert any("per_second" in warning for warning in status(machine)["warnings"])
    write(machine, "config.toml", CONFIG.replace("per_second = 1000", "per_second = 77"))
    machine.run("systemctl", "reload", "px-sidecar")
    wait_until(lambda: status(machine)["ceiling"] == 77, "the new rate is in force")
    wait_until(lambda: status_text(machine).startswith("open, 0 pending"), "the complaint is over")
    assert "per_second" not in status_text(machine)
    assert machine.show("px-sidecar", "MainPID", "ActiveState", "NRestarts") == {
        "MainPID": pid, "ActiveState": "active", "NRestarts": "0",
    }  # fmt: skip


def test_a_stop_finishes_what_is_in_flight_and_exits_0(machine):
    machine.run("systemctl", "start", "px-sidecar")
    deactivated = machine.journal("px-sidecar").count("px-sidecar.service: Deactivated successfully.")
    stream = Stream(machine, "stop", 0.5)
    stream.wait()
    machine.run("systemctl", "stop", "px-sidecar.socket", "px-sidecar-http.socket", "px-sidecar")
    assert machine.show("px-sidecar", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert machine.journal("px-sidecar").count("px-sidecar.service: Deactivated successfully.") > deactivated
    first = arrived(machine)
    machine.run("systemctl", "start", "px-sidecar")
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    everything = arrived(machine)
    assert len(everything) == len(set(everything)), "nothing in flight was repeated"
    assert len(first) <= len(everything)
    assert stream.accepted() <= set(everything)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [("rm /etc/px-sidecar/api_key", "api_key_file"), ("echo 'frobs = 1' >/etc/px-sidecar/config.toml", "'frobs'")],
)
def test_an_error_that_needs_an_operator_is_reported_once_not_retried(machine, spoil, says):
    machine.sh(f"{spoil}; systemctl start px-sidecar || true")
    assert machine.show("px-sidecar", "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0",
    }  # fmt: skip
    assert says in machine.journal("px-sidecar")


def test_a_damaged_outbox_does_not_keep_the_daemon_from_starting(machine):
    machine.run("systemctl", "start", "px-sidecar")
    assert Stream(machine, "damage", 0.3).wait().keys() == {"accepted"}
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    machine.sh(
        "systemctl stop px-sidecar.socket px-sidecar-http.socket px-sidecar;"
        "dd if=/dev/urandom of=/var/lib/px-sidecar/outbox.db bs=4096 seek=3 count=4 conv=notrunc status=none;"
        "systemctl start px-sidecar"
    )
    assert machine.show("px-sidecar", "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert machine.sh("ls /var/lib/px-sidecar | grep -c 'outbox.db.damaged-.*Z$'") == "1\n"
    wait_until(lambda: "was damaged" in status_text(machine), "STATUS= says it")
    assert "was damaged" in machine.journal("px-sidecar")
    assert "px_sidecar_outbox_set_aside 1.0" in ask(machine, 8321, "/metrics")
    assert any("set aside as outbox.db.damaged-" in warning for warning in status(machine)["warnings"])


def test_pending_events_move_off_a_live_host_and_back(machine):
    """The sockets restarted the daemon behind every stop, so that an export was refused or met a running daemon."""
    machine.run("systemctl", "start", "px-sidecar")
    machine.run("px-sidecar", "pause")
    assert Stream(machine, "before", 1).wait().keys() == {"accepted"}
    stream = Stream(machine, "during", 8)
    wait_until(lambda: len(stream.outcomes) > 20, "traffic")
    machine.sh("mkdir -p /root; cd /root; systemctl stop px-sidecar; px-sidecar outbox export moved.ndjson")
    assert machine.sh("stat -c '%U %a' /root/moved.ndjson") == "root 600\n"
    accepted = stream.accepted()
    stream.wait()
    assert stream.accepted() == accepted, "clients are refused, and none starts the daemon"
    assert machine.show("px-sidecar", "ActiveState") == {"ActiveState": "inactive"}
    assert "px-sidecar.socket, px-sidecar-http.socket stay stopped" in machine.sh(
        "px-sidecar status | tr -s ' \\n' ' '; true"
    )
    back = json.loads(machine.sh("cd /root; px-sidecar outbox import --back moved.ndjson --json"))
    assert back["accepted"] >= len(accepted)
    assert Stream(machine, "after", 0.5).wait().keys() == {"accepted"}, "the sockets start the daemon again"
    machine.run("px-sidecar", "resume")
    wait_until(lambda: status(machine)["pending"] == 0, "everything is delivered")
    assert accepted <= set(arrived(machine))


def test_a_start_of_the_daemon_ends_an_export(machine):
    machine.run("systemctl", "start", "px-sidecar")
    machine.sh("cd /root; rm -f moved.ndjson; px-sidecar outbox export moved.ndjson")
    assert machine.show("px-sidecar.socket", "ActiveState") == {"ActiveState": "inactive"}
    machine.run("systemctl", "start", "px-sidecar")
    assert machine.show("px-sidecar.socket", "ActiveState") == {"ActiveState": "active"}
    assert "is over: this daemon was started" in machine.journal("px-sidecar")
    assert Stream(machine, "started", 0.3).wait().keys() == {"accepted"}

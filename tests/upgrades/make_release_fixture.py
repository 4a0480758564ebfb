"""Keep an outbox and a configuration of a version: ``make_release_fixture.py [--tree CHECKOUT] [--name NAME]``.

Runs the daemon of the checkout (this one by default) against its own sandbox, through its public interfaces alone, so that
it works with every version. Writes ``fixtures/NAME``: ``config.toml`` with ``@FOLDER@`` and ``@PX@`` where a test puts
its own, ``outbox.db.gz``, and ``expected.json`` with what the outbox holds by the daemon's own word. NAME is the version
by default; an existing folder is never replaced, since it stands for what was released.
"""

import argparse
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from process_harness import ProcessHarness, wait_until  # noqa: E402

CONFIG = """# Every table that the version has had from the start; what is not set here has its default.
[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "@PX@"
[listen]
http = ""
unix = "@FOLDER@/events.sock"
control = "@FOLDER@/control.sock"
[outbox]
path = "@FOLDER@/outbox.db"
keep_delivered = "7d"
keep_ids = "7d"
keep_dead = "90d"
max_bytes = "1GiB"
[deliver]
per_second = 150
per_day = 5000
reserve_for_high = 0.2
[mapping]
anonymous = "drop"
[mapping.fields]
eventId = "messageId"
[mapping.events]
"Old Name" = "New Name"
"Noise *" = ""
[mapping.event."Subscription Started"]
priority = "high"
[mapping.attributes]
drop = ["email"]
[[source]]
write_key = "second-product"
property_key = "AP-YYYYYYYYYY-3"
[[source]]
write_key = "first-product"
property_key = "AP-XXXXXXXXXX-2"
"""


class OfTree(ProcessHarness):
    """A harness whose programs are those of another checkout."""

    def __init__(self, folder: Path, tree: Path) -> None:
        super().__init__(folder)
        self._tree = tree

    def environ(self, **more: str) -> dict[str, str]:
        return super().environ(PYTHONPATH=str(self._tree), **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=HERE.parents[1])
    parser.add_argument("--name")
    arguments = parser.parse_args()
    os.chdir("/")  # python -m sidecar must find the tree's, not the working directory's
    with TemporaryDirectory(prefix="pxs-") as folder:
        harness = OfTree(Path(folder), arguments.tree.resolve())
        version = harness.run("--version").stdout.split()[-1]
        target = HERE / "fixtures" / (arguments.name or version)
        target.mkdir(parents=True)
        try:
            expected = fill(harness)
        finally:
            harness.end()
        expected["version"] = version
        (target / "config.toml").write_text(CONFIG)
        (target / "outbox.db.gz").write_bytes(gzip.compress(harness.outbox.read_bytes(), mtime=0))
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        print(target, (target / "outbox.db.gz").stat().st_size, "bytes")


def fill(harness: OfTree) -> dict[str, Any]:
    """Return what the outbox holds after every kind of event has come to every kind of end."""
    text = CONFIG.replace("@FOLDER@", str(harness.folder)).replace("@PX@", harness.sandbox_url)
    (harness.folder / "config.toml").write_text(text)
    config = ("--config", str(harness.folder / "config.toml"))
    harness.start_sandbox("--fail-user", "refused-*", "--fail-status", "400")
    daemon = harness.start("run", *config)
    wait_until(lambda: status(harness)["state"] == "open", what="the daemon's start")
    people = [call("identify", 1, traits={"plan": "pro", "email": "a@example.com"}), call("group", 2, groupId="acme")]
    ended = [
        *(call("track", number, event="Feature Used", properties={"n": number}) for number in range(10, 20)),
        call("track", 20, event="Old Name", properties={"email": "a@example.com"}),
        call("track", 21, event="Noise 1"),
        {"type": "track", "messageId": "m22", "anonymousId": "a", "event": "Feature Used"},
        call("alias", 23, previousId="older"),
        call("page", 24, name="Start", properties={"url": "https://example.com/"}),
        call("track", 25, event="Feature Used", user="refused-1", properties={"kept": "payload"}),
        call("track", 26, event="Feature Used", user="refused-2"),
    ]
    send(harness, [*people, *ended, *ended[:3]])
    wait_until(lambda: status(harness)["pending"] == 0, what="the delivery")
    change_faults(harness, {"fail_users": ["failing"], "fail_status": 503})
    send(
        harness,
        [call("track", 30, event="Feature Used", user="failing"), call("track", 31, event="After", user="failing")],
    )
    wait_until(lambda: status(harness)["retries"] > 0, what="a retry")
    assert harness.run("pause", *config).returncode == 0
    pending = [
        *(call("track", number, event="Feature Used", properties={"n": number}) for number in range(40, 45)),
        call("track", 45, event="Subscription Started", properties={"plan": "pro"}),
    ]
    send(harness, pending)
    seen = status(harness)
    assert harness.stop(daemon) == 0
    made_ms = int(time.time() * 1000)
    with sqlite3.connect(harness.outbox) as database:
        sent_a_day = database.execute("SELECT sum(sent) FROM quota").fetchone()[0]
        file_format = database.execute("PRAGMA user_version").fetchone()[0]
    database.close()
    names = (
        "accepted",
        "pending",
        "delivered",
        "dropped",
        "dead",
        "dropped_by_reason",
        "dead_by_reason",
        "repeated",
        "retries",
    )
    return {
        "made_ms": made_ms,
        "file_format": file_format,
        "quota_used": sent_a_day,
        "status": {name: seen[name] for name in names},
        "first_accepted_id": "m10",
        "pending_ids": ["m30", "m31", *(f"m{number}" for number in range(40, 46))],
        "dead_ids": ["m25", "m26"],
        "account_of_u1": "acme",
    }


def call(kind: str, number: int, *, user: str = "u1", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "messageId": f"m{number}", "userId": user, "timestamp": "2026-01-02T03:04:05.678Z", **fields}


def send(harness: OfTree, events: list[dict[str, Any]]) -> None:
    """Send a batch to the Unix socket as HTTP, with curl: what any version serves."""
    body = json.dumps({"batch": events, "writeKey": "first-product"})
    command = [
        "curl",
        "-sS",
        "--fail-with-body",
        "--unix-socket",
        str(harness.unix),
        "http://localhost/v1/batch",
        "-d",
        body,
    ]
    subprocess.run(command, check=True, capture_output=True)


def status(harness: OfTree) -> dict[str, Any]:
    done = harness.run("status", "--json", "--config", str(harness.folder / "config.toml"))
    return json.loads(done.stdout) if done.returncode == 0 else {"state": "starting", "pending": -1, "retries": 0}


def change_faults(harness: OfTree, faults: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{harness.sandbox_url}/sandbox/faults", json.dumps(faults).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


if __name__ == "__main__":
    main()

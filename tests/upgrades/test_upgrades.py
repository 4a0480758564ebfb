"""Today's version opens the outbox and the configuration of every released one (tests/upgrades/README.md)."""

import gzip
import json
import re
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from running_daemon import DaemonDir, RunningDaemon, always, wait_until

from sidecar import __version__
from sidecar.clock import SystemClock
from sidecar.errors import ConfigError
from sidecar.outbox import Store
from sidecar.outbox.schema import SCHEMA_VERSION
from sidecar.px.network import FakeNetwork

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "upgrades" / "fixtures"
RELEASES = sorted(folder.name for folder in FIXTURES.iterdir())
AN_HOUR_MS = 3_600_000
LATER_BOOT = "0b0751ed-0000-4000-8000-000000000000"


class AfterBoot(SystemClock):
    """A host that was booted again, an hour after the fixture was made: its day is not over yet."""

    def __init__(self, made_ms: int) -> None:
        self._ahead_ms = made_ms + AN_HOUR_MS - time.time_ns() // 1_000_000

    def wall_ms(self) -> int:
        return super().wall_ms() + self._ahead_ms

    def boot_id(self) -> str:
        return LATER_BOOT


class Release:
    """A copy of one release's fixture, and what it must hold."""

    def __init__(self, name: str, folder: Path) -> None:
        self.expected: dict[str, Any] = json.loads((FIXTURES / name / "expected.json").read_text())
        self.daemon_dir = DaemonDir(folder)
        config = (FIXTURES / name / "config.toml").read_text()
        self.daemon_dir.file.write_text(config.replace("@FOLDER@", str(folder)).replace("@PX@", "http://127.0.0.1:9"))
        self.daemon_dir.outbox.write_bytes(gzip.decompress((FIXTURES / name / "outbox.db.gz").read_bytes()))

    def running(self, network: FakeNetwork) -> Any:
        return self.daemon_dir.running(network=network, clock=AfterBoot(self.expected["made_ms"]))


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(request.param, tmp_path_factory.mktemp("r"))


def in_states(daemon: RunningDaemon, state: str) -> set[str]:
    page = daemon.client.get("/v1/events", {"state": state, "limit": "1000"})
    return {event["messageId"] for event in page["events"]}


def send(daemon: RunningDaemon, event: dict[str, Any]) -> dict[str, Any]:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(daemon.daemon_dir.unix)
        connection.sendall(json.dumps({"writeKey": "first-product", "type": "track", **event}).encode() + b"\n")
        return json.loads(connection.makefile().readline())


def test_an_old_outbox_has_every_event_and_every_counter(release):
    with release.running(FakeNetwork()) as daemon:
        status = daemon.status()
        for name, value in release.expected["status"].items():
            assert status[name] == value, name
        assert status["accepted"] == sum(status[name] for name in ("pending", "delivered", "dropped", "dead"))
        assert in_states(daemon, "pending") == set(release.expected["pending_ids"])
        assert in_states(daemon, "dead") == set(release.expected["dead_ids"])
        assert len(in_states(daemon, "delivered")) == status["delivered"]
        assert len(in_states(daemon, "dropped")) == status["dropped"]


def test_an_old_pause_and_the_spent_day_hold(release):
    network = FakeNetwork()
    with release.running(network) as daemon:
        status = daemon.status()
        assert status["state"] == "paused"
        assert status["quota"]["used"] == release.expected["quota_used"]
        assert status["quota"]["limit"] == 5000
    assert not network.sent


def test_a_message_id_seen_by_an_old_version_is_not_stored_again(release):
    with release.running(FakeNetwork()) as daemon:
        answer = send(
            daemon, {"messageId": release.expected["first_accepted_id"], "userId": "u1", "event": "Feature Used"}
        )
        assert answer["success"]
        assert daemon.status()["accepted"] == release.expected["status"]["accepted"]


def test_old_pending_events_are_delivered_with_their_account(release):
    network = FakeNetwork(always(201))
    with release.running(network) as daemon:
        daemon.client.post("/v1/resume", {})
        wait_until(lambda: daemon.status()["pending"] == 0, "the delivery")
        status = daemon.status()
    sent = [json.loads(request.body) for request in network.sent]
    assert sorted(event["eventId"] for event in sent) == sorted(release.expected["pending_ids"])
    assert {event["identifyId"]: event.get("accountId") for event in sent} == {"u1": "acme", "failing": None}
    assert {event["eventName"] for event in sent} == {"Feature Used", "After", "Subscription Started"}
    assert status["delivered"] == release.expected["status"]["delivered"] + len(sent)


def test_memory_of_an_old_version_gives_new_events_their_account(release):
    network = FakeNetwork(always(201))
    with release.running(network) as daemon:
        daemon.client.post("/v1/resume", {})
        send(daemon, {"messageId": "new", "userId": "u1", "event": "Feature Used"})
        wait_until(lambda: daemon.status()["pending"] == 0, "the delivery")
    new = [event for request in network.sent if (event := json.loads(request.body))["eventId"] == "new"]
    assert [event["accountId"] for event in new] == [release.expected["account_of_u1"]]


def test_old_dead_letters_can_be_sent_again(release):
    network = FakeNetwork(always(201))
    with release.running(network) as daemon:
        daemon.client.post("/v1/dead/retry", {"all": True})
        daemon.client.post("/v1/resume", {})
        wait_until(lambda: daemon.status()["pending"] == 0, "the delivery")
        assert daemon.status()["dead"] == 0
    sent = {event["eventId"]: event for request in network.sent if (event := json.loads(request.body))}
    assert set(release.expected["dead_ids"]) <= sent.keys()
    assert sent["m25"]["attributes"] == {"kept": "payload"}


def test_a_file_of_a_later_version_is_refused_with_what_to_do(release):
    with closing(sqlite3.connect(release.daemon_dir.outbox)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        database.commit()
    with pytest.raises(ConfigError, match="newer"):
        Store(release.daemon_dir.outbox)


def test_fixtures_hold_what_they_say():
    for name in RELEASES:
        expected = json.loads((FIXTURES / name / "expected.json").read_text())
        database = gzip.decompress((FIXTURES / name / "outbox.db.gz").read_bytes())
        assert int.from_bytes(database[60:64]) == expected["file_format"], (
            "user_version, sqlite.org/fileformat.html 1.3"
        )
        assert sum(file.stat().st_size for file in (FIXTURES / name).iterdir()) < 50_000, name


def test_every_release_in_the_changelog_has_a_fixture():
    dated = re.findall(r"^## \[(\d[^\]]*)\] - \d", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    kept = {json.loads((FIXTURES / name / "expected.json").read_text())["version"] for name in RELEASES}
    assert set(dated) <= kept, "tests/upgrades/README.md says how to add one"
    assert __version__ in kept or __version__ not in dated

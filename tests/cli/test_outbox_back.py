"""`px-sidecar outbox` on the host that exported: nothing is lost without a word, and the sockets wait."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from running_daemon import DaemonDir

from sidecar.cli import socket_units
from sidecar.control.export import export_note
from sidecar.outbox import Store

BOTH = ["px-sidecar.socket", "px-sidecar-http.socket"]


def fill(daemon_dir: DaemonDir, count: int) -> list[str]:
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        return [daemon.track(f"u{number % 3}", "Feature Used", properties={"n": number}) for number in range(count)]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "moved.ndjson"


def test_importing_on_the_same_host_is_not_a_success(daemon_dir: DaemonDir, verb, file):
    """It lost all events, with exit code 0: their ids are known, so none was accepted."""
    fill(daemon_dir, 3)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    ran = verb("outbox", "import", str(file), "--json", *daemon_dir.flags)
    assert (ran.code, ran.json) == (1, {"accepted": 0, "repeated": 3, "moved": 3})
    assert f"`px-sidecar outbox import --back {file}` makes them pending here again" in ran.err


def test_a_path_with_blanks_is_quoted_in_each_command(daemon_dir: DaemonDir, verb, tmp_path):
    """A command that was copied from the screen meant two files."""
    fill(daemon_dir, 1)
    file = tmp_path / "my events.ndjson"
    assert "`px-sidecar outbox import 'my events.ndjson'`" in verb("outbox", "export", str(file), *daemon_dir.flags).out
    again = f"`px-sidecar outbox import --back '{file}'`"
    assert again in json.dumps(verb("status", "--json", *daemon_dir.flags).json)
    assert again in verb("outbox", "import", str(file), *daemon_dir.flags).err


@pytest.mark.parametrize("alive", [True, False], ids=["with a daemon", "from the file"])
def test_import_back_makes_them_pending_in_their_order(daemon_dir: DaemonDir, verb, file, alive):
    ids = fill(daemon_dir, 7)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    command = ("outbox", "import", "--back", str(file), *daemon_dir.flags)
    if not alive:
        assert verb(*command).out == "7 events were imported; 0 were already stored.\n"
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/resume")
        if alive:
            assert verb(*command).out == "7 events were imported; 0 were already stored.\n"
        status = daemon.settle()
        sent = [json.loads(request.body)["attributes"]["n"] for request in daemon.network.sent]
        delivered = {event["messageId"] for event in daemon.client.get("/v1/events")["events"]}
        again = verb(*command, "--json")
    assert (status["accepted"], status["delivered"], status["dropped"]) == (7, 7, 0)
    assert delivered == set(ids)
    for user in range(3):
        assert [n for n in sent if n % 3 == user] == sorted(n for n in sent if n % 3 == user)
    assert (again.code, again.json) == (0, {"accepted": 0, "repeated": 7})


def test_import_back_takes_events_of_another_host_too(daemon_dir: DaemonDir, verb, file, tmp_path):
    (tmp_path / "other").mkdir()
    other = DaemonDir(tmp_path / "other")
    fill(other, 2)
    verb("outbox", "export", str(file), *other.flags)
    with daemon_dir.running():
        ran = verb("outbox", "import", "--back", str(file), "--json", *daemon_dir.flags)
    assert ran.json == {"accepted": 2, "repeated": 0}


def test_events_whose_rows_are_pruned_are_named(daemon_dir: DaemonDir, verb, file):
    fill(daemon_dir, 2)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    store = Store(daemon_dir.outbox)
    with store.transaction():
        store.connection.execute("DELETE FROM events WHERE id = 1")
    store.close()
    ran = verb("outbox", "import", "--back", str(file), "--json", *daemon_dir.flags)
    assert (ran.code, ran.json) == (1, {"accepted": 1, "repeated": 1, "pruned": 1})


def test_a_dry_run_of_import_back_counts(daemon_dir: DaemonDir, verb, file):
    fill(daemon_dir, 2)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    ran = verb("outbox", "import", "--back", "--dry-run", str(file), *daemon_dir.flags)
    assert (ran.code, ran.err) == (0, "2 events to import back.\n")
    assert verb("status", "--json", *daemon_dir.flags).json["pending"] == 0


@pytest.mark.parametrize("alive", [True, False], ids=["with a daemon", "from the file"])
def test_the_count_is_of_what_is_still_moved(daemon_dir: DaemonDir, verb, file, alive):
    """It was the number of lines, also after all of them were pending again."""
    fill(daemon_dir, 3)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    dry_run = ("outbox", "import", "--back", "--dry-run", "--json", str(file), *daemon_dir.flags)
    with daemon_dir.running() if alive else nullcontext():
        assert verb(*dry_run).json == {"accepted": 0, "repeated": 0, "selected": 3, "dry_run": True}
        assert verb("outbox", "import", "--back", str(file), *daemon_dir.flags).err.startswith(
            "3 events to import back.\n"
        )
        again = verb(*dry_run)
    assert (again.json["selected"], again.err) == (0, "0 events to import back.\n")


def test_a_line_that_is_not_json_is_reported_before_a_count(daemon_dir: DaemonDir, verb, file):
    fill(daemon_dir, 1)
    file.write_text("[outbox]\n")
    ran = verb("outbox", "import", "--back", str(file), *daemon_dir.flags)
    assert (ran.code, ran.err.startswith("px-sidecar: Line 1 is not JSON")) == (1, True)


def test_the_file_is_for_its_owner_alone(daemon_dir: DaemonDir, verb, file):
    fill(daemon_dir, 1)
    before = os.umask(0)
    try:
        verb("outbox", "export", str(file), *daemon_dir.flags)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_status_says_that_events_were_moved_away(daemon_dir: DaemonDir, verb, file):
    fill(daemon_dir, 2)
    verb("outbox", "export", str(file), *daemon_dir.flags)
    ran = verb("status", "--json", *daemon_dir.flags)
    assert f"2 events were moved to {file} at" in " ".join(ran.json["warnings"])
    with daemon_dir.running() as daemon:
        assert daemon.status()["warnings"] == []


class Units:
    """A systemctl that knows which units are active, and starts and stops them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, daemon_dir: DaemonDir, booted: Path) -> None:
        self.active = {*BOTH, "px-sidecar.service"}
        self.said: list[str] = []
        monkeypatch.setattr(socket_units, "_run", self.run)
        monkeypatch.setattr(socket_units, "BOOTED", booted)
        monkeypatch.setattr(socket_units, "DEFAULT_PATH", str(daemon_dir.file))

    def run(self, verb: str, *units: str):
        units = tuple(unit for unit in units if not unit.startswith("-"))
        if verb == "is-active":
            return socket_units.subprocess.CompletedProcess(units, 0 if set(units) <= self.active else 3, "", "")
        self.said.append(f"{verb} {' '.join(units)}")
        self.active = self.active - set(units) if verb == "stop" else self.active | set(units)
        return socket_units.subprocess.CompletedProcess(units, 0, "", "")


@pytest.fixture
def units(monkeypatch, daemon_dir: DaemonDir, tmp_path) -> Units:
    fill(daemon_dir, 2)
    return Units(monkeypatch, daemon_dir, tmp_path)


@pytest.mark.parametrize("back", [True, False])
def test_sockets_stay_stopped_until_an_import(units: Units, daemon_dir: DaemonDir, verb, file, back):
    ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert units.said == ["stop px-sidecar.socket px-sidecar-http.socket px-sidecar.service"]
    assert "They stay so until `px-sidecar outbox import`" in ran.err
    assert "stay stopped" in " ".join(verb("status", *daemon_dir.flags).out.split())
    imported = verb("outbox", "import", *(["--back"] if back else []), str(file), *daemon_dir.flags)
    assert units.said[1:] == ["start px-sidecar.socket px-sidecar-http.socket"]
    assert "may start the daemon again" in imported.err
    verb("outbox", "import", str(file), *daemon_dir.flags)
    assert len(units.said) == 2


def test_only_what_was_active_is_started_again(units: Units, daemon_dir: DaemonDir, verb, file):
    units.active = {"px-sidecar.socket"}
    verb("outbox", "export", str(file), *daemon_dir.flags)
    verb("outbox", "import", "--back", str(file), *daemon_dir.flags)
    assert units.said == ["stop px-sidecar.socket px-sidecar.service", "start px-sidecar.socket"]


def test_a_start_of_the_daemon_lifts_it(units: Units, daemon_dir: DaemonDir, verb, file):
    verb("outbox", "export", str(file), *daemon_dir.flags)
    with daemon_dir.running():
        pass
    store = Store(daemon_dir.outbox)
    assert export_note(store) is None
    store.close()


def test_an_export_that_moves_nothing_starts_the_sockets_again(units: Units, daemon_dir: DaemonDir, verb, file):
    with daemon_dir.running():  # a daemon that systemd knows nothing of
        ran = verb("outbox", "export", str(file), *daemon_dir.flags)
    assert (ran.code, "The daemon is running" in ran.err) == (1, True)
    assert units.said[-1] == "start px-sidecar.socket px-sidecar-http.socket"
    assert not file.exists()


def test_units_of_another_outbox_are_left_alone(units: Units, daemon_dir: DaemonDir, verb, file, monkeypatch, tmp_path):
    monkeypatch.setattr(socket_units, "DEFAULT_PATH", str(tmp_path / "other.toml"))
    assert verb("outbox", "export", str(file), *daemon_dir.flags).code == 0
    assert units.said == []

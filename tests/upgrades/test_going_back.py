"""Going back: what today's version exports, the last version with the previous file format imports; and a killed upgrade."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import load_text
from sidecar.events import judge
from sidecar.mapping import compile_settings
from sidecar.outbox import Store, new_event
from sidecar.outbox.schema import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[px]
api_key = "key-12345678"
property_key = "AP-XXXXXXXXXX-2"
base_url = "http://127.0.0.1:9"
[listen]
http = ""
unix = "{folder}/e.sock"
control = "{folder}/c.sock"
[outbox]
path = "{folder}/o.db"
[mapping.attributes]
hash = ["phone"]
"""
RECEIVED_MS = 1_790_000_000_000
START_S = 60.0
HOLD_MS = 20.0


def git(*arguments: str) -> bytes:
    # In a workflow's container the checkout belongs to another user.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the last commit with the previous file format; skips where the history is not there."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the history of the repository")
    if git("rev-parse", "--is-shallow-repository").strip() == b"true":
        pytest.skip("the history of the repository does not reach back to the previous file format")
    line = rf"^SCHEMA_VERSION(: Final)? = {SCHEMA_VERSION}( |$)"
    commits = git("log", "--reverse", "--format=%H", f"-G{line}", "--", "sidecar/outbox").decode().split()
    assert commits, "no commit has brought this file format: where is its number now?"
    folder = tmp_path_factory.mktemp("earlier")
    archive = git("archive", f"{commits[0]}^", "sidecar")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    code = "from sidecar.outbox.schema import SCHEMA_VERSION; print(SCHEMA_VERSION)"
    assert python(code, source=folder).stdout == f"{SCHEMA_VERSION - 1}\n"
    return folder


class Host:
    """A configuration and an outbox, run by one version of the program."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self._source = folder, source
        folder.mkdir()
        self.file = folder / "c.toml"
        self.file.write_text(CONFIG.format(folder=folder))

    def start(self, *arguments: str, **more: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "sidecar", "--config", str(self.file), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self._source)}
        return subprocess.Popen(command, cwd=self._source, env=environment, text=True, **more)

    def verb(self, *arguments: str) -> str:
        process = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=START_S)
        assert process.returncode == 0, err
        return out

    def status(self) -> dict[str, Any]:
        """Return the daemon's status once it is ready."""
        deadline_s = time.monotonic() + START_S
        while True:
            process = self.start("status", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, err = process.communicate(timeout=START_S)
            if process.returncode == 0:
                return dict(json.loads(out))
            assert "is starting" in err, err
            assert time.monotonic() < deadline_s, err
            time.sleep(0.2)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        process = self.start("run", stderr=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + START_S
            while not (self.folder / "c.sock").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(START_S)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path("/tmp") / f"px-back-{os.getpid()}-{random.randrange(10**6)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def fill(host: Host) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"type": "group", "userId": "u1", "groupId": "acme", "messageId": "m0"}]
    for number in range(1, 40):
        properties = {"n": number, "phone": "123"}
        lines.append(
            {"type": "track", "userId": "u1", "event": "A", "messageId": f"m{number}", "properties": properties}
        )
    settings = compile_settings(load_text(host.file.read_text()), {}, {})
    store = Store(host.folder / "o.db")
    with store.transaction():
        store.accept(
            [[new_event(settings, 0, judge(json.loads(json.dumps(line)), 2**15)) for line in lines]], RECEIVED_MS
        )
    store.close()
    return lines


@pytest.mark.whole
def test_the_previous_version_imports_what_this_one_exports(earlier, folder):
    new, old = Host(folder / "new", ROOT), Host(folder / "old", earlier)
    lines = fill(new)
    moved = folder / "moved.ndjson"
    new.verb("outbox", "export", str(moved))
    with old.daemon():
        old.verb("outbox", "import", str(moved))
        status = json.loads(old.verb("status", "--json"))
        listed = json.loads(old.verb("events", "list", "--json", "--limit", "1000"))
    # Without [people] the group is settled at once: the memory has its account.
    assert (status["accepted"], status["pending"]) == (len(lines), len(lines) - 1)
    assert status["dropped_by_reason"] == {"remembered": 1}
    events = {row["messageId"]: row for row in (listed["events"] if isinstance(listed, dict) else listed)}
    assert set(events) == {line["messageId"] for line in lines}
    assert {row["user"] for row in events.values()} == {"u1"}
    assert {row["event"].get("groupId") for row in events.values() if row["event"]["type"] == "group"} == {"acme"}


# An upgrade that is killed ----------------------------------------------------------------------------------------------

MAKE = "import sys; from pathlib import Path; from sidecar.outbox import Store; Store(Path(sys.argv[1])).close()"
# Opens the outbox, and ends as by `kill -9` before a given statement; else prints how many there were, and for how long the
# longest transaction held the writer (wall clock and processor time, in milliseconds).
OPEN = """
import json, os, signal, sqlite3, sys, time
from pathlib import Path

class Counted(sqlite3.Connection):
    statements, longest, since = 0, (0.0, 0.0), None

    def execute(self, *arguments):
        Counted.statements += 1
        if Counted.statements == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return super().execute(*arguments)
        finally:
            now = time.perf_counter(), time.thread_time()
            if self.in_transaction:
                Counted.since = Counted.since or now
            elif Counted.since:
                held = [1000 * (end - start) for start, end in zip(Counted.since, now)]
                Counted.longest, Counted.since = max(Counted.longest, tuple(held)), None

sys.path.insert(0, sys.argv[3])
from sidecar.outbox import Store
store = Store(Path(sys.argv[1]), factory=Counted)
print(json.dumps([Counted.statements, *Counted.longest]))
"""


def python(code: str, *arguments: str, source: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


def fill_earlier(path: Path, source: Path, count: int) -> None:
    """Make an outbox of the previous format with pending events; one in a thousand is parked."""
    made = python(MAKE, str(path), source=source)
    assert made.returncode == 0, made.stderr
    body = b'{"type":"track","event":"Feature Used","userId":"u%d","messageId":"m%d","properties":{"n":%d}}'
    rows = (
        (number, 0 if number % 1000 else 2, 0, f"u{number % 5000}", RECEIVED_MS, body % (number % 5000, number, number))
        for number in range(1, count + 1)
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION - 1,)
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO events (id, state, source, user, received_ms, body) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        counters = [("accepted", count), ("pending_normal", count), ("next_id", count), ("ids_flushed_to", count)]
        database.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", counters)
        database.execute("COMMIT")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "count",
    [pytest.param(20_000, marks=pytest.mark.whole), pytest.param(1_000_000, marks=pytest.mark.slow)],
)
def test_an_upgrade_that_is_killed_at_any_statement_loses_nothing(earlier, folder, count):
    """Each kill finds the file as the one before has left it, or the older one again once the upgrade was done."""
    host = Host(folder / "h", ROOT)
    path, kept = host.folder / "o.db", folder / "earlier.db"
    fill_earlier(kept, earlier, count)
    shutil.copy(kept, path)
    versions: list[int] = []
    began_s = time.monotonic()
    kill = 0
    while (ended := python(OPEN, str(path), str(kill := kill + 1), str(ROOT))).returncode == -signal.SIGKILL:
        with closing(sqlite3.connect(path)) as database:
            versions.append(database.execute("PRAGMA user_version").fetchone()[0])
            assert database.execute("SELECT count(*), max(id) FROM events").fetchone() == (count, count)
            assert database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if versions[-1] == SCHEMA_VERSION:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            shutil.copy(kept, path)
    assert ended.returncode == 0, ended.stderr
    assert set(versions) == {SCHEMA_VERSION - 1, SCHEMA_VERSION}, "no kill hit the upgrade"
    assert versions.count(SCHEMA_VERSION - 1) > 20
    shutil.copy(kept, path)
    statements, held_ms, processor_ms = json.loads(python(OPEN, str(path), "0", str(ROOT)).stdout)
    print(
        f"{count:,} pending: {len(versions)} kills in {time.monotonic() - began_s:.0f} s at {statements} statements, "
        f"longest hold of the writer {held_ms:.1f} ms ({processor_ms:.1f} ms of processor time)"
    )
    assert processor_ms < HOLD_MS
    with host.daemon():
        status = host.status()
    assert (status["accepted"], status["pending"], status["dead"], status["dropped"]) == (count, count, 0, 0)

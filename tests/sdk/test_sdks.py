"""The real SDKs as apps of their own, against a real daemon that is restarted in the middle.

What an SDK does not report as failed must be stored once, and be at PX once or be accounted for. ``.ci/run`` installs
the Node packages; the older Python SDK is installed into pytest's cache folder the first time. With ``-m slow`` each
kind of call is made 1,000 times, else all together are.
"""

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from process_harness import ProcessHarness, wait_until

pytestmark = pytest.mark.whole

HERE = Path(__file__).parent
NODE_MODULES = HERE / "node" / "node_modules"
OLD_SEGMENT = "segment-analytics-python==2.3.4"
COUNT = 1_000
# The kinds of calls in the order in which apps make them, and what becomes of each.
OUTCOMES = {
    "identify": ("dropped", "remembered"),
    "track": ("delivered", None),
    "page": ("delivered", None),
    "screen": ("delivered", None),
    "group": ("dropped", "remembered"),
    "alias": ("dropped", "not_supported"),
}
STATES = {4: "delivered", 5: "dropped", 6: "dead"}

# Language, SDK, and whether it compresses; Segment's for Node cannot.
APPS = [
    *(("python", sdk, gzip) for sdk in ("segment", "old", "rudder") for gzip in ("plain", "gzip")),
    ("node", "@segment/analytics-node", "plain"),
    ("node", "analytics-node-2", "plain"),
    *(("node", "@rudderstack/rudder-sdk-node", gzip) for gzip in ("plain", "gzip")),
]


@pytest.fixture
def command(request: pytest.FixtureRequest):
    """How to start the app with an SDK, and its environment."""

    def of(language: str, sdk: str) -> tuple[list[str], dict[str, str]]:
        if language == "node":
            if shutil.which("node") is None or not NODE_MODULES.exists():
                pytest.skip("needs node and the packages of tests/sdk/node (npm ci there, as .ci/run does)")
            return ["node", str(HERE / "node" / "app.mjs"), sdk], {}
        app = [sys.executable, str(HERE / "python_app.py")]
        if sdk == "old":
            return [*app, "segment"], {"PYTHONPATH": str(old_segment(request.config.cache))}
        return [*app, sdk], {}

    return of


def old_segment(cache: pytest.Cache) -> Path:
    folder = cache.mkdir("sdk") / OLD_SEGMENT
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.{subprocess.os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(new), OLD_SEGMENT]
        done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=100)
        if done.returncode:
            pytest.skip(f"{OLD_SEGMENT} cannot be installed: {done.stderr.strip()[-200:]}")
        try:
            new.rename(folder)
        except OSError:
            shutil.rmtree(new)  # another worker was faster
    return folder


class App:
    """A running app that makes ``count`` calls."""

    def __init__(
        self, harness: ProcessHarness, command: tuple[list[str], dict[str, str]], gzip: str, count: int, name: str
    ) -> None:
        arguments, environ = command
        self.count = count
        self.name = name
        self.log = harness.folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*arguments, f"http://{harness.http}", gzip, str(count), name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=harness.environ(**environ),
            )
        harness.processes.append(self.process)

    def half_way(self) -> None:
        """Wait until it has made half of its calls."""
        assert self.process.stdout.readline() == "half\n", self.log.read_text()

    def sent(self) -> set[str]:
        """Wait for its end: the ids it does not report as failed."""
        with self.process.stdout:
            out = self.process.stdout.read()
        assert self.process.wait(100) == 0, self.log.read_text()
        kinds = list(OUTCOMES)
        made = {f"{self.name}-{kinds[number % len(kinds)]}-{number}" for number in range(self.count)}
        return made - set(json.loads(out))


def kept(harness: ProcessHarness) -> list[tuple[str, str, str | None]]:
    """Message id, state and reason of every event in the outbox of a daemon that has ended."""
    with sqlite3.connect(f"file:{harness.outbox}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT body, state, reason FROM events ORDER BY id").fetchall()
    database.close()
    return [(json.loads(body)["messageId"], STATES.get(state, "pending"), reason) for body, state, reason in rows]


def account(harness: ProcessHarness, daemon: subprocess.Popen[bytes], sent: set[str]) -> None:
    """Every event that was sent is stored once, and has come to its end once."""
    wait_until(lambda: harness.status()["pending"] == 0, 60, what="the delivery")
    arrived = Counter(event["eventId"] for event in harness.arrived())
    assert harness.stop(daemon) == 0
    events = kept(harness)
    times = Counter(message_id for message_id, _, _ in events)
    assert set(times.values()) == {1}, [one for one, count in times.items() if count > 1]
    assert sent <= times.keys()
    wrong = [one for one in events if one[1:] != OUTCOMES[one[0].split("-")[-2]]]
    assert not wrong, wrong[:5]
    delivered = {message_id for message_id, state, _ in events if state == "delivered"}
    assert arrived == Counter(delivered)


def check(harness: ProcessHarness, command, apps: list[tuple[str, str, str]], count: int, *, inherited: bool) -> None:
    harness.start_sandbox("--per-second", "0")
    harness.write_config(deliver="per_second = 2000")
    with listening(harness.http) if inherited else socket.socket() as listener:
        http = listener if inherited else None
        daemon = harness.start_daemon(http=http)
        running = [
            App(harness, command(language, sdk), gzip, count, f"{sdk}-{gzip}".replace("/", "-"))
            for language, sdk, gzip in apps
        ]
        running[0].half_way()
        assert harness.stop(daemon) == 0
        daemon = harness.start_daemon(http=http)
        for app in running[1:]:
            app.half_way()
        sent = {app.name: app.sent() for app in running}
        if inherited:
            refused = {name for name, ids in sent.items() if len(ids) < count}
            assert not refused, "some were refused, though the socket was open all the time"
        account(harness, daemon, set().union(*sent.values()))


def listening(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_server((host, int(port)), backlog=512)


@pytest.mark.parametrize("language", ["python", "node"])
def test_every_event_is_there_once_through_an_inherited_socket(harness, command, language):
    check(harness, command, [app for app in APPS if app[0] == language], COUNT, inherited=True)


@pytest.mark.parametrize("language", ["python", "node"])
def test_what_an_sdk_reports_as_sent_is_there_once_after_a_restart(harness, command, language):
    check(harness, command, [app for app in APPS if app[0] == language and app[2] == "plain"], COUNT, inherited=False)


@pytest.mark.slow
@pytest.mark.parametrize("inherited", [True, False], ids=["inherited", "refusing"])
@pytest.mark.parametrize("app", APPS, ids="-".join)
def test_a_thousand_of_each_kind(harness, command, app, inherited):
    check(harness, command, [app], COUNT * len(OUTCOMES), inherited=inherited)

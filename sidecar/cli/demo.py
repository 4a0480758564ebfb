"""``px-sidecar demo``: the main job with nothing to set up, a ``kill -9`` included."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from sidecar.cli.demo_picture import Progress
from sidecar.cli.demo_traffic import Traffic, answers
from sidecar.errors import Failed
from sidecar.sandbox.ports import free_ports
from sidecar.units import show_count

__all__ = ["demo"]

PACE_PER_S = 190
# The apps send faster than PX takes, so that there is a backlog to lose.
TRAFFIC_S = 6.0
STARTED_TIMEOUT_S = 20.0
DOWN_S = 1.0
# Beyond what the pace needs; what takes longer is stuck.
PATIENCE_S = 30.0
LOOK_S = 0.1


@click.command()
@click.option(
    "--events", default=4_000, show_default=True, type=click.IntRange(30, 1_000_000), help="How many events are sent."
)
@click.option("--users", default=1_000, show_default=True, type=click.IntRange(1), help="How many users they are of.")
@click.option("--keep", is_flag=True, help="Keep the folder with configuration, outbox and logs.")
def demo(events: int, users: int, keep: bool) -> None:
    """See the main job done, with no account and no configuration.

    Starts a stand-in for PX and the daemon in a temporary folder, sends real
    traffic through the Unix socket, HTTP and (if it is installed) the Segment
    SDK for Python, ends the daemon with `kill -9` in the middle, starts it
    again, and then holds what was accepted against what has arrived.

    The last line is the account. The exit code is 0 only if nothing that was
    accepted is lost.

    \b
    Example:
        px-sidecar demo --events 2000
    """
    console = Console(highlight=False)
    progress = Progress(ceiling_per_s=PACE_PER_S, events=events)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="px-sidecar-demo-"))
        if not keep:
            stack.callback(_remove, folder)
        stage = Stage(folder, stack)
        progress.begin()
        if console.is_terminal:
            with Live(progress, console=console, refresh_per_second=8):
                _play(stage, progress, events, users)
        else:
            _play(stage, progress, events, users)
            for at_s, text in progress.said:
                console.print(f"{at_s:6.1f}s  {text}", soft_wrap=True)
        for line in progress.summary():
            console.print(line, soft_wrap=True)
        if keep:
            console.print(f"Everything is kept in {folder}.", soft_wrap=True)
    click.echo(progress.account())
    sys.exit(0 if progress.finished and progress.lost == 0 else 1)


def _play(stage: "Stage", progress: Progress, events: int, users: int) -> None:
    """The whole scene: start, traffic, kill, restart, drain, account."""
    progress.phase = "starting the stand-in for PX and the daemon"
    stage.start_sandbox()
    daemon = stage.start_daemon()
    traffic = Traffic(
        events=events, users=users, pause_s=3 * TRAFFIC_S / events, socket=str(stage.socket), address=stage.http_address
    )
    ways = "the Unix socket, HTTP and the Segment SDK" if traffic.sdk else "the Unix socket and HTTP"
    progress.say(f"Apps send {show_count(events)} events of {show_count(users)} users: {ways}.")
    progress.phase = "receiving and delivering"
    traffic.start()
    _look(stage, progress, traffic, while_=lambda: len(traffic.accepted) < events * 0.4 and traffic.running())
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    pending = len(traffic.accepted) - stage.delivered()
    progress.say(f"kill -9 of the daemon, with about {show_count(max(0, pending))} events accepted and not delivered.")
    progress.phase = "the daemon is dead; the apps keep trying"
    back_s = time.monotonic() + DOWN_S
    _look(stage, progress, traffic, while_=lambda: time.monotonic() < back_s)
    stage.start_daemon()
    progress.say("The daemon runs again, on the same outbox.")
    progress.phase = "receiving and delivering"
    deadline_s = time.monotonic() + TRAFFIC_S + events / PACE_PER_S + PATIENCE_S
    _look(stage, progress, traffic, while_=lambda: traffic.running() and time.monotonic() < deadline_s)
    progress.say("The apps have sent everything; the backlog drains at the pace PX allows.")
    progress.phase = "draining"
    _look(
        stage,
        progress,
        traffic,
        while_=lambda: progress.delivered < len(traffic.accepted) and time.monotonic() < deadline_s,
    )
    _settle_account(stage, progress, traffic)
    progress.phase = ""
    progress.say("Every accepted event was held against what has arrived.")


def _look(stage: "Stage", progress: Progress, traffic: Traffic, *, while_: Callable[[], bool]) -> None:
    """Keep the picture up to date while something goes on."""
    while while_():
        progress.accepted = len(traffic.accepted)
        progress.seen(stage.delivered())
        time.sleep(LOOK_S)


def _settle_account(stage: "Stage", progress: Progress, traffic: Traffic) -> None:
    """Hold every accepted message id against what the stand-in has, and ask the daemon for the rest."""
    arrived = [event.get("eventId") for event in stage.events()]
    report = stage.report()
    status = stage.status()
    progress.accepted = len(traffic.accepted)
    progress.delivered = len(set(arrived) & traffic.accepted)
    progress.duplicates = len(arrived) - len(set(arrived))
    progress.dropped, progress.dead = status["dropped"], status["dead"]
    progress.lost = len(traffic.accepted - set(arrived)) - progress.dropped - progress.dead
    progress.largest_second = report["largest_second"]
    progress.finished = not traffic.running()


class Stage:
    """The processes of the demo and the folder they live in. All of them end with the demo at the latest."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.socket = folder / "events.sock"
        http_port, self._sandbox_port = free_ports(2)
        self.http_address = f"127.0.0.1:{http_port}"
        self._folder = folder
        self._stack = stack

    def start_sandbox(self) -> None:
        """Start the stand-in for PX. Raises Failed."""
        address = f"127.0.0.1:{self._sandbox_port}"
        process = self._start("sandbox", "--port", str(self._sandbox_port))
        self._wait_for(process, "sandbox", lambda: answers(address, "/sandbox/report"))

    def start_daemon(self) -> subprocess.Popen[bytes]:
        """Start the daemon, with the configuration an operator would write, and wait until it accepts. Raises Failed."""
        path = self._folder / "config.toml"
        path.write_text(
            f"""[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "http://127.0.0.1:{self._sandbox_port}"

[listen]
http = "{self.http_address}"
unix = "{self.socket}"
control = "{self._folder / "control.sock"}"

[outbox]
path = "{self._folder / "outbox.db"}"

[deliver]
per_second = {PACE_PER_S}

[mapping.fields]
eventId = "messageId"
"""
        )
        process = self._start("run", "--config", str(path))
        self._wait_for(process, "run", lambda: answers(self.http_address, "/health"))
        return process

    def _start(self, verb: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{verb}.log").open("ab"))
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
        environ["PX_SIDECAR_PX_API_KEY"] = "sandbox-key"
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "sidecar", verb, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
        )
        self._stack.callback(_end, process)
        return process

    def _wait_for(self, process: subprocess.Popen[bytes], verb: str, ready: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + STARTED_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = (self._folder / f"{verb}.log").read_text(errors="replace").strip()[-500:]
                raise Failed(f"`px-sidecar {verb}` did not start for the demo; it said: {said}")
            time.sleep(0.02)

    def delivered(self) -> int:
        """How many events the stand-in has, repeats included."""
        return int(self.report()["stored"])

    def report(self) -> dict[str, Any]:
        """The stand-in's figures."""
        report: dict[str, Any] = json.loads(self._ask(f"127.0.0.1:{self._sandbox_port}/sandbox/report"))
        return report

    def events(self) -> list[dict[str, Any]]:
        """All events the stand-in has."""
        return [json.loads(line) for line in self._ask(f"127.0.0.1:{self._sandbox_port}/sandbox/events").splitlines()]

    def status(self) -> dict[str, Any]:
        """What the daemon counts."""
        status: dict[str, Any] = json.loads(self._ask(f"{self.http_address}/status"))
        return status

    @staticmethod
    def _ask(address: str) -> bytes:
        with urllib.request.urlopen(f"http://{address}", timeout=30) as answer:
            data: bytes = answer.read()
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

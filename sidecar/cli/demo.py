"""``px-sidecar demo``: durable, paced delivery through a ``kill -9``, with nothing to set up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.live import Live

from sidecar.cli.common import own_command, temporary_folder
from sidecar.cli.console import open_browser
from sidecar.cli.demo_picture import Progress
from sidecar.cli.demo_traffic import Traffic, answers, end_process, get_bytes
from sidecar.errors import Failed
from sidecar.sandbox.server import free_ports
from sidecar.units import counted, show_count

__all__ = ["demo"]

PACE_PER_S = 190
# The apps send faster than PX accepts, so that the kill finds a backlog that could be lost.
TRAFFIC_S = 6.0
START_TIMEOUT_S = 20.0
DOWN_S = 1.0
# Time allowed beyond what the pace needs; after it the demo gives up.
STUCK_AFTER_S = 30.0
POLL_S = 0.1


@click.command()
@click.option(
    "--events", default=4_000, show_default=True, type=click.IntRange(30, 1_000_000), help="Number of events."
)
@click.option("--users", default=1_000, show_default=True, type=click.IntRange(1), help="Number of users.")
@click.option("--keep", is_flag=True, help="Keep the folder with configuration, outbox and logs.")
@click.option("--console", "with_console", is_flag=True, help="Open the console, and keep everything until Ctrl-C.")
@click.option("--fleet", "hosts", type=click.IntRange(2, 16), help="Show this many hosts under one ceiling instead.")
def demo(events: int, users: int, keep: bool, with_console: bool, hosts: int | None) -> None:
    """Show a delivery through a crash; no account, no configuration needed.

    Starts a stand-in for PX and the daemon in a temporary folder, sends events
    through the Unix socket, HTTP and (if installed) the Segment SDK for Python,
    kills the daemon with `kill -9` in the middle, starts it again, and compares
    the accepted events with those that arrived.

    With --fleet it starts several daemons and a Redis or Valkey that is
    installed, and shows how they share the rate, even while it is away.

    The last line counts the outcomes. The exit code is 0 only if no accepted
    event is lost.

    \b
    Examples:
        px-sidecar demo --events 2000
        px-sidecar demo --console
        px-sidecar demo --fleet 4
    """
    # A closed terminal, too, ends what was started: the daemon takes SIGHUP for a reload.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    os.environ["no_proxy"] = "*"  # all of it is on this host, where no proxy leads; the Segment SDK would use one
    console = Console(highlight=False, markup=False)
    if hosts is not None:
        chosen = click.get_current_context().get_parameter_source("users") is not ParameterSource.DEFAULT
        if keep or with_console or chosen:
            raise click.UsageError("--fleet takes --events alone; leave out --users, --keep and --console.")
        from sidecar.cli.demo_fleet import run_fleet_demo

        sys.exit(0 if run_fleet_demo(console, hosts, events) else 1)
    progress = Progress(ceiling_per_s=PACE_PER_S, events=events, ascii_only=console.options.ascii_only)
    with ExitStack() as stack:
        folder = temporary_folder("demo")
        if not keep:
            stack.callback(_remove, folder)
        processes = DemoProcesses(folder, stack)
        progress.start()
        if console.is_terminal:
            with Live(progress, console=console, refresh_per_second=8):
                _run_scenario(processes, progress, events, users, with_console=with_console)
        else:
            _run_scenario(processes, progress, events, users, with_console=with_console)
            for at_s, text in progress.log_lines:
                console.print(f"{at_s:6.1f}s  {text}", soft_wrap=True)
        for line in progress.summary():
            console.print(line, soft_wrap=True)
        if keep:
            console.print(f"Configuration, outbox and logs are kept in {folder}.", soft_wrap=True)
        if with_console:
            click.echo("The console stays open; Ctrl-C ends it.")
            processes.wait_for_console()
    click.echo(progress.outcome_line())
    sys.exit(0 if progress.finished and progress.lost == 0 else 1)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _environ() -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
    return environ | {"PX_SIDECAR_PX_API_KEY": "sandbox-key"}


def _run_scenario(
    processes: "DemoProcesses", progress: Progress, events: int, users: int, *, with_console: bool = False
) -> None:
    """Run the scenario: start, traffic, kill, restart, drain, comparison."""
    progress.phase = "starting the stand-in for PX and the daemon"
    processes.start_sandbox()
    daemon = processes.start_daemon()
    if with_console:
        url = processes.start_console()
        click.echo(f"Console: {url}")
        open_browser(url)
    traffic = Traffic(
        events=events,
        users=users,
        pause_s=3 * TRAFFIC_S / events,
        socket=str(processes.socket),
        address=processes.http_address,
    )
    paths = "the Unix socket, HTTP and the Segment SDK" if traffic.sdk else "the Unix socket and HTTP"
    progress.log(f"Apps send {counted(events, 'event')} of {counted(users, 'user')} over {paths}.")
    progress.phase = "receiving and delivering"
    traffic.start()
    _update_while(
        processes, progress, traffic, while_=lambda: len(traffic.accepted) < events * 0.4 and traffic.running()
    )
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    pending = len(traffic.accepted) - processes.delivered()
    progress.log(f"kill -9 of the daemon, with about {show_count(max(0, pending))} accepted events not delivered.")
    progress.phase = "the daemon is down; the apps retry"
    restart_s = time.monotonic() + DOWN_S
    _update_while(processes, progress, traffic, while_=lambda: time.monotonic() < restart_s)
    processes.start_daemon()
    progress.log("The daemon is restarted on the same outbox.")
    progress.phase = "receiving and delivering"
    deadline_s = time.monotonic() + TRAFFIC_S + events / PACE_PER_S + STUCK_AFTER_S
    _update_while(processes, progress, traffic, while_=lambda: traffic.running() and time.monotonic() < deadline_s)
    progress.log("The apps have finished; the backlog drains at the pace PX allows.")
    progress.phase = "draining"
    _update_while(
        processes,
        progress,
        traffic,
        while_=lambda: progress.delivered < len(traffic.accepted) and time.monotonic() < deadline_s,
    )
    _count_outcome(processes, progress, traffic)
    progress.phase = ""
    progress.log("Every accepted event was compared with what arrived.")


def _update_while(
    processes: "DemoProcesses", progress: Progress, traffic: Traffic, *, while_: Callable[[], bool]
) -> None:
    """Update the figures while the condition holds."""
    while while_():
        progress.accepted = len(traffic.accepted)
        progress.record_delivered(processes.delivered())
        time.sleep(POLL_S)


def _count_outcome(processes: "DemoProcesses", progress: Progress, traffic: Traffic) -> None:
    """Compare the accepted message ids with the events in the sandbox; dropped and dead ones come from the daemon."""
    arrived = [event.get("eventId") for event in processes.events()]
    report = processes.report()
    status = processes.status()
    progress.accepted = len(traffic.accepted)
    progress.delivered = len(set(arrived) & traffic.accepted)
    progress.duplicates = len(arrived) - len(set(arrived))
    progress.dropped, progress.dead = status["dropped"], status["dead"]
    progress.lost = len(traffic.accepted - set(arrived)) - progress.dropped - progress.dead
    progress.largest_second = report["largest_second"]
    progress.finished = not traffic.running()


class DemoProcesses:
    """The processes of the demo and their folder. ``stack`` ends all of them when the demo ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.socket = folder / "events.sock"
        http_port, self._sandbox_port = free_ports(2)
        self.http_address = f"127.0.0.1:{http_port}"
        self._folder = folder
        self._stack = stack
        self._console: subprocess.Popen[str] | None = None

    def start_sandbox(self) -> None:
        """Start the stand-in for PX. Raises Failed."""
        address = f"127.0.0.1:{self._sandbox_port}"
        process = self._start("sandbox", "--port", str(self._sandbox_port))
        self._wait_for(process, "sandbox", lambda: answers(address, "/sandbox/report"))

    def start_daemon(self) -> subprocess.Popen[bytes]:
        """Start the daemon with a configuration as an operator would write it, and wait until it accepts. Raises Failed."""
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

    def start_console(self) -> str:
        """Start the console in front of the daemon, and return its address. Raises Failed."""
        command = [
            *own_command(),
            "console",
            "--no-browser",
            "--config",
            str(self._folder / "config.toml"),
        ]
        environ = _environ()  # as the daemon's: the checks on the page are about its key
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environ)  # noqa: S603
        self._stack.callback(end_process, process)
        self._console = process
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith("Console: "):
                    return line.removeprefix("Console: ").strip()
        raise Failed("`px-sidecar console` did not start for the demo.")

    def wait_for_console(self) -> None:
        """Wait until the console ends, by Ctrl-C or after its idle time."""
        try:
            if self._console is not None:
                self._console.wait()
        except KeyboardInterrupt:
            pass  # the way to end it

    def _start(self, verb: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{verb}.log").open("ab"))
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [*own_command(), verb, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environ(),
        )
        self._stack.callback(end_process, process)
        return process

    def _wait_for(self, process: subprocess.Popen[bytes], verb: str, ready: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                output = (self._folder / f"{verb}.log").read_text(errors="replace").strip()[-500:]
                raise Failed(f"`px-sidecar {verb}` did not start for the demo; its log ends with: {output}")
            time.sleep(0.02)

    def delivered(self) -> int:
        """Return the number of events in the sandbox, duplicates included."""
        return int(self.report()["stored"])

    def report(self) -> dict[str, Any]:
        """Return the report of the sandbox."""
        report: dict[str, Any] = json.loads(get_bytes(f"127.0.0.1:{self._sandbox_port}/sandbox/report"))
        return report

    def events(self) -> list[dict[str, Any]]:
        """Return all events in the sandbox."""
        return [json.loads(line) for line in get_bytes(f"127.0.0.1:{self._sandbox_port}/sandbox/events").splitlines()]

    def status(self) -> dict[str, Any]:
        """Return the status of the daemon."""
        status: dict[str, Any] = json.loads(get_bytes(f"{self.http_address}/status"))
        return status


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

"""``px-sidecar demo --fleet N``: several daemons under one ceiling, through an engine that dies and comes back.

The story: at first one host is busy and gets all of the rate; then all are, and share it; the engine is killed, and each
host sends what was set aside for it; a new, empty engine starts, and the whole rate returns.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from sidecar.cli.common import own_command, temporary_folder
from sidecar.cli.demo_traffic import answers, end_process, get_bytes
from sidecar.cli.screen import columns
from sidecar.errors import Failed
from sidecar.sandbox.server import free_ports
from sidecar.units import show_count

__all__ = ["run_fleet_demo"]

PER_SECOND: Final = 190
START_S: Final = 30.0
# A new engine sets everything aside for ten seconds; the kill comes when the hosts have their promises.
ALONE_AT_S, BACK_AT_S = 14.0, 26.0
ALL_BUSY_AT_S: Final = 6.0
GIVE_UP_S: Final = 60.0
BATCH: Final = 500
WIDTH: Final = 57  # columns of the picture; one is 3.3 requests a second
AROUND: Final = 13  # columns of a line around the picture
COLORS: Final = ("green", "cyan", "yellow", "magenta", "blue", "red")


def run_fleet_demo(console: Console, hosts: int, events: int) -> bool:
    """Run the demo; print its picture and the outcome line; return whether no event was lost. Raises Failed."""
    with ExitStack() as stack:
        folder = temporary_folder("demo")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        fleet = _FleetProcesses(folder, stack, hosts)
        fleet.start()
        console.print(
            f"{hosts} hosts share {PER_SECOND} requests per second. One letter is {PER_SECOND / _width():.1f} of them:",
            soft_wrap=True,
        )
        seconds = _run(console, fleet, events)
        outcome = fleet.outcome(events)
        console.print(
            f"Largest second at the stand-in for PX: {fleet.report()['largest_second']} of {PER_SECOND} to 200."
        )
        console.print(f"It took {seconds:.0f} s for {show_count(events)} events.")
    click.echo(" ".join(f"{name}={count}" for name, count in outcome.items()))
    return outcome["lost"] == 0


def _run(console: Console, fleet: "_FleetProcesses", events: int) -> float:
    """Send the events in two parts, kill the engine and start it again; print a line each second until all arrived."""
    first = events // 3
    fleet.send(0, 0, first)
    began_s, before, number = time.monotonic(), fleet.delivered(), 0
    said: set[str] = set()

    def once(at_s: float, text: str) -> bool:
        due = time.monotonic() - began_s >= at_s and text not in said
        if due:
            said.add(text)
            console.print(Text(f"       {text}", style="bold"), soft_wrap=True)
        return due

    while sum(before) < events and time.monotonic() - began_s < GIVE_UP_S + events / PER_SECOND:
        once(0, "Only host A has events: it gets nearly all of the rate.")
        if once(ALL_BUSY_AT_S, "All hosts have events: they share the rate."):
            rest = events - first
            bounds = [first + rest * host // fleet.hosts for host in range(fleet.hosts + 1)]
            for host in range(fleet.hosts):
                fleet.send(host, bounds[host], bounds[host + 1])
        if once(ALONE_AT_S, "kill -9 of the engine: slots are used up, then each host sends only what was set aside."):
            fleet.kill_engine()
        if once(BACK_AT_S, "An empty engine starts: the hosts bring back what matters."):
            fleet.start_engine()
        number += 1
        time.sleep(max(0.0, began_s + number - time.monotonic()))
        now = fleet.delivered()
        rates = [later - earlier for earlier, later in zip(before, now, strict=True)]
        console.print(_picture(number, rates, _width()), soft_wrap=True)
        before = now
    return time.monotonic() - began_s


def _width() -> int:
    """Return the columns of the picture: fewer on a narrow terminal, where its lines would wrap."""
    return max(1, min(WIDTH, columns(sys.stdout) - AROUND))


def _picture(second: int, rates: list[int], width: int) -> Text:
    """Return one second as a bar of ``width`` columns: a letter for each host, as long as its share of the rate."""
    line = Text(f"{second:4d}s  ")
    drawn = total = 0
    for host, rate in enumerate(rates):
        total += rate
        upto = min(width, round(total * width / PER_SECOND))
        line.append(chr(ord("A") + host % 26) * (upto - drawn), style=COLORS[host % len(COLORS)])
        drawn = max(drawn, upto)
    return line.append(" " * (width - drawn) + f"| {total}")


class _FleetProcesses:
    """The stand-in for PX, the engine and the daemons of the demo. ``stack`` ends all of them."""

    def __init__(self, folder: Path, stack: ExitStack, hosts: int) -> None:
        self.hosts = hosts
        self._folder, self._stack = folder, stack
        self._sandbox, *ports = (f"127.0.0.1:{port}" for port in free_ports(hosts + 1))
        self._addresses = ports
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            raise Failed("`demo --fleet` needs valkey-server or redis-server; install one, for example redis-server.")
        self._program = program
        self._engine: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything, and wait until all hosts share. Raises Failed."""
        self.start_engine()
        self._verb("sandbox", "--port", self._sandbox.rpartition(":")[2])
        for number, address in enumerate(self._addresses):
            home = self._folder / f"host{number}"
            home.mkdir()
            (home / "config.toml").write_text(self._config(home, address), encoding="utf-8")
            self._verb("run", "--config", str(home / "config.toml"))
        limit_s = START_S + 3 * self.hosts
        deadline_s = time.monotonic() + limit_s
        while not self._all_share():
            if time.monotonic() > deadline_s:
                raise Failed(f"The fleet did not start within {limit_s:.0f} s; run `px-sidecar demo` to see why.")
            time.sleep(0.1)

    def _config(self, home: Path, address: str) -> str:
        return f"""[px]
property_key = "AP-XXXXXXXXXX-2"
base_url = "http://{self._sandbox}"
[listen]
http = "{address}"
unix = ""
control = "{home}/control.sock"
[outbox]
path = "{home}/outbox.db"
[fleet]
url = "unix://{self._folder}/engine.sock"
name = "demo"
[mapping.fields]
eventId = "messageId"
"""

    def _all_share(self) -> bool:
        if not answers(self._sandbox, "/sandbox/report") or not all(
            answers(address, "/health") for address in self._addresses
        ):
            return False
        return all(self._status(address)["fleet"]["state"] == "sharing" for address in self._addresses)

    def start_engine(self) -> None:
        """Start an empty engine."""
        options = (
            "--unixsocket",
            f"{self._folder}/engine.sock",
            "--port",
            "0",
            "--save",
            "",
            "--dir",
            str(self._folder),
        )
        self._engine = self._process([self._program, *options])

    def kill_engine(self) -> None:
        """End the engine at once."""
        assert self._engine is not None
        self._engine.kill()
        self._engine.wait()

    def _verb(self, *arguments: str) -> None:
        self._process([*own_command(), *arguments])

    def _process(self, command: list[str]) -> subprocess.Popen[bytes]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PX_SIDECAR_")}
        environ["PX_SIDECAR_PX_API_KEY"] = "sandbox-key"
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environ)  # noqa: S603
        self._stack.callback(end_process, process)
        return process

    def send(self, host: int, first: int, until: int) -> None:
        """Send the events of these numbers to a host, each of a user of its own."""
        for begin in range(first, until, BATCH):
            numbers = range(begin, min(begin + BATCH, until))
            batch = [
                {"type": "track", "event": "Logged In", "userId": f"user-{number}", "messageId": f"event-{number}"}
                for number in numbers
            ]
            body = json.dumps({"batch": batch}).encode()
            request = urllib.request.Request(f"http://{self._addresses[host]}/v1/batch", body)
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    def delivered(self) -> list[int]:
        """Return the delivered events of each host."""
        return [int(self._status(address)["delivered"]) for address in self._addresses]

    def outcome(self, events: int) -> dict[str, int]:
        """Compare what was accepted with what arrived at the stand-in for PX."""
        arrived = [event.get("eventId") for event in self._lines("/sandbox/events")]
        statuses = [self._status(address) for address in self._addresses]
        dropped, dead = (sum(status[what] for status in statuses) for what in ("dropped", "dead"))
        delivered = len(set(arrived))
        return {
            "accepted": events,
            "delivered": delivered,
            "dropped": dropped,
            "dead": dead,
            "duplicates": len(arrived) - delivered,
            "lost": events - delivered - dropped - dead,
        }

    def report(self) -> dict[str, Any]:
        """Return the report of the stand-in for PX."""
        report: dict[str, Any] = json.loads(get_bytes(f"{self._sandbox}/sandbox/report"))
        return report

    def _lines(self, path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in get_bytes(f"{self._sandbox}{path}").splitlines()]

    def _status(self, address: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(get_bytes(f"{address}/status"))
        return status

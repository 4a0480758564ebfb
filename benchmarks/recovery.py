"""Repeated ``kill -9`` under load: the time until the daemon accepts and delivers again, and lost events.

An app sends batches and retries until they are answered. The daemon is killed and started at once, as systemd does.
systemd would also keep the sockets open; here they are closed, so that the gap is the whole start.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from time import sleep

from benchmarks.load import Load, connect, request
from benchmarks.results import Results, percentile
from benchmarks.rig import Rig, open_rig, wait_until
from benchmarks.traffic import message_id

__all__ = ["run"]

Report = Callable[[str], None]
NAME = "recovery"
LATENCY_MS = 100
PER_SECOND = 190
MAX_IN_FLIGHT = 128
BATCH, PAUSE_S = 10, 0.04
RUNNING_S = 1.5
KILLS_VARIABLE = "PX_SIDECAR_BENCH_KILLS"


class App(threading.Thread):
    """Sends batches until ``stop``; ``accepted`` holds the message ids answered with success."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.accepted: list[str] = []
        self.answered_s: list[float] = []
        self._load = Load(address=str(port), batch=BATCH)
        self._stopping = threading.Event()

    def run(self) -> None:
        number, connection = 0, None
        while not self._stopping.is_set():
            try:
                connection = connection or self._connect()
                connection.sendall(request(self._load, number))
                if b'"success":true' not in connection.recv(65536):
                    raise OSError("no success")
            except OSError:
                if connection is not None:
                    connection.close()
                connection = None
                sleep(0.002)
                continue  # send the same batch again: its message ids make that safe
            self.answered_s.append(_now_s())
            self.accepted += [message_id(number + at) for at in range(BATCH)]
            number += BATCH
            sleep(PAUSE_S)

    def _connect(self) -> socket.socket:
        connection = connect(self._load.address)
        connection.settimeout(5)
        return connection

    def stop(self) -> None:
        self._stopping.set()
        self.join(20)


def run(results: Results, report: Report, quick: bool) -> None:
    """Kill the daemon $PX_SIDECAR_BENCH_KILLS times (default 20) and compare accepted events with PX's log."""
    kills = int(os.environ.get(KILLS_VARIABLE, "2" if quick else "20"))
    to_accept_ms: list[float] = []
    to_deliver_ms: list[float] = []
    with open_rig() as rig:
        rig.configure()
        rig.start_sandbox("--latency", f"{LATENCY_MS}ms")
        daemon = rig.start_daemon()
        app = App(rig.http_port)
        app.start()
        for number in range(kills):
            if number % 10 == 0:
                report(f"kill -9, {number} of {kills}")
            sleep(0.5 if quick else RUNNING_S)
            killed_s = _now_s()
            rig.stop(daemon, 9)
            daemon = rig.start_daemon()
            wait_until(lambda killed_s=killed_s: app.answered_s[-1] > killed_s + 0.001, 20, "an answer to the app")
            to_accept_ms.append(1000 * (next(at for at in app.answered_s if at > killed_s + 0.001) - killed_s))
            wait_until(lambda killed_s=killed_s: _first_after(rig, killed_s), 20, "the next delivery")
            to_deliver_ms.append(1000 * ((_first_after(rig, killed_s) or 0) - killed_s))
        app.stop()
        accepted = set(app.accepted)
        report(f"draining; {len(accepted):,} were accepted")
        wait_until(lambda: rig.status()["pending"] == 0 or sleep(0.2), 60 + len(accepted) / 100, "an empty backlog")
        arrived = [str(entry.messageId) for entry in rig.arrivals()]
    lost, repeated = len(accepted - set(arrived)), len(arrived) - len(set(arrived))
    results.add(
        NAME, "from kill -9 to accepting again", to_accept_ms, "ms", note="started at once; with start-up of Python"
    )
    results.add(NAME, "from kill -9 to the next delivery", to_deliver_ms, "ms")
    results.add(NAME, "from kill -9 to the next delivery, worst", max(to_deliver_ms), "ms")
    results.add(
        NAME, f"events lost in {kills} kills under load", lost, "events", target=0, bound="most",
        note=f"of {len(accepted):,} accepted; more kills: {KILLS_VARIABLE}=1000",
    )  # fmt: skip
    results.add(
        NAME, "events delivered twice, per kill", repeated / kills, "events", target=MAX_IN_FLIGHT, bound="most",
        note="the target is max_in_flight",
    )  # fmt: skip
    results.series["recovery_ms"] = {"accepting": sorted(to_accept_ms), "delivering": sorted(to_deliver_ms)}
    results.add(NAME, "from kill -9 to accepting again, 90th percentile", percentile(to_accept_ms, 0.9), "ms")


def _first_after(rig: Rig, killed_s: float) -> float | None:
    """Return when the first request after the kill reached PX; requests already sent arrive within 5 ms."""
    total = rig.report()["requests"]
    start = max(0, total - 2 * PER_SECOND)
    page = json.loads(rig.ask(rig.sandbox_port, f"/sandbox/log?start={start}&limit=1000")[1])
    later = [entry["arrival_s"] for entry in page["entries"] if entry["arrival_s"] > killed_s + 0.005]
    return later[0] if later else None


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)

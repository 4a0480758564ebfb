"""Measure what the console costs: ``PYTHONPATH=.:tests/support python tests/console/cost.py --events 10000000``.

Fills an outbox, delivers from it to the sandbox, and compares the daemon's processor time per delivered event, and how long
the call of an app takes, without a page and with pages. A page is what Live asks for: status each second, series every two, and the sampled feed. Rounds alternate,
because the machine is not the same a minute later. Times of a browser's first picture and of the mapping's preview follow.
"""

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from console_process import ConsoleProcess, running_console, wait_for
from playwright.sync_api import sync_playwright

from benchmarks.fill import fill
from sidecar.client import Client
from sidecar.control.client import DaemonClient
from sidecar.errors import SidecarError
from sidecar.sandbox.server import free_ports

TICKS = 100
NAMES = 500


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def live_page(console: ConsoleProcess, over: threading.Event) -> list[threading.Thread]:
    """Ask for what one open page of Live asks for, until ``over``."""

    def poll(path: str, every_s: float) -> None:
        while not over.wait(every_s):
            console.get(path)

    def feed() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=10)
        connection.request("GET", "/api/v1/live", headers={"Authorization": f"Bearer {console.token}"})
        answer = connection.getresponse()
        while not over.is_set():
            answer.read1(65_536)
        connection.close()

    calls = [(poll, ("/v1/status", 1.0)), (poll, ("/v1/series", 2.0)), (feed, ())]
    return [threading.Thread(target=call, args=arguments) for call, arguments in calls]


def track_steadily(socket: str, over: threading.Event, calls_s: list[float]) -> None:
    """Send an event every 20 ms, until ``over``, and add how long each call took."""
    with Client(socket) as app:
        while not over.wait(0.02):
            began_s = time.monotonic()
            app.track(f"u-{len(calls_s) % NAMES}", "Feature Used")
            calls_s.append(time.monotonic() - began_s)


def measure(
    daemon_pid: int,
    client: DaemonClient,
    console: ConsoleProcess,
    pages: int,
    seconds: float,
    app: tuple[str, list[float]],
) -> list[float]:
    """Return CPU seconds of the daemon, delivered events, CPU seconds of the console, and the wall time.

    ``app`` is the socket for events, and the list that an app's calls are added to.
    """
    over = threading.Event()
    threads = [thread for _ in range(pages) for thread in live_page(console, over)]
    threads.append(threading.Thread(target=track_steadily, args=(app[0], over, app[1])))
    for thread in threads:
        thread.start()
    time.sleep(1)
    before = [cpu_s(daemon_pid), client.get("/v1/status")["delivered"], cpu_s(console.process.pid), time.monotonic()]
    time.sleep(seconds)
    after = [cpu_s(daemon_pid), client.get("/v1/status")["delivered"], cpu_s(console.process.pid), time.monotonic()]
    over.set()
    for thread in threads:
        thread.join()
    return [late - early for early, late in zip(before, after, strict=True)]


def compare(
    daemon_pid: int, client: DaemonClient, console: ConsoleProcess, rounds: int, seconds: float, socket: str
) -> None:
    sums = {0: [0.0] * 4, 1: [0.0] * 4, 5: [0.0] * 4}
    calls_s: dict[int, list[float]] = {pages: [] for pages in sums}
    for number in range(rounds):
        for pages in list(sums)[:: 1 if number % 2 else -1]:
            found = measure(daemon_pid, client, console, pages, seconds, (socket, calls_s[pages]))
            sums[pages] = [total + value for total, value in zip(sums[pages], found, strict=True)]
    for pages, (daemon_s, events, console_s, wall_s) in sums.items():
        print(
            f"{pages} pages: {1000 * daemon_s / events:.3f} ms CPU an event, {19_000 * daemon_s / events:.1f} % of a core at "
            f"190/s ({events / wall_s:.0f}/s delivered); console {100 * console_s / wall_s:.2f} %"
        )
        taken_ms = sorted(1000 * call_s for call_s in calls_s[pages])
        print(
            f"{pages} pages: an app's call takes {statistics.median(taken_ms):.2f} ms, p90 {taken_ms[len(taken_ms) * 9 // 10]:.2f}, "
            f"p99 {taken_ms[len(taken_ms) * 99 // 100]:.2f}, {len(taken_ms):,} calls"
        )
    print(f"resident: daemon {resident_mb(daemon_pid):.1f} MB, console {resident_mb(console.process.pid):.1f} MB")


def first_pictures(console: ConsoleProcess) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for number in range(3):
            empty = browser.new_context().new_page()
            began_s = time.monotonic()
            empty.goto(f"{console.origin}/icon.svg")
            empty_s = time.monotonic() - began_s
            page = browser.new_context().new_page()
            url, began_s = console.press_enter(), time.monotonic()
            page.goto(url)
            page.wait_for_selector(".tiles")
            label = "cold" if number == 0 else "new browser profile"
            print(f"first picture, {label}: {time.monotonic() - began_s:.2f} s; an icon alone: {empty_s:.2f} s")
        browser.close()


def previews(client: DaemonClient, toml: str) -> None:
    rules = "\n".join(f'"Name {number}" = "Mapped {number}"' for number in range(NAMES))
    for label, text in (("no rule", toml), (f"{NAMES} rules", f"{toml}[mapping.events]\n{rules}\n")):
        times_s = []
        for _ in range(9):
            began_s = time.monotonic()
            client.post("/v1/mapping/preview", {"toml": text, "unmatched": True})
            times_s.append(time.monotonic() - began_s)
        print(
            f"preview, {NAMES} names, {label}: {1000 * min(times_s):.0f} ms, median {1000 * statistics.median(times_s):.0f}"
        )


def answers(client: DaemonClient) -> bool:
    try:
        return bool(client.get("/v1/status")["delivered"])
    except SidecarError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument(
        "--outbox", type=Path, help="deliver from this file, which benchmarks.fill made, instead of a new one"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=25)
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pxs-", dir="/var/tmp")))
        outbox = (chosen.outbox or folder / "outbox.db").absolute()
        if chosen.outbox is None:
            fill(outbox, pending=chosen.events // 2, delivered=chosen.events // 2, report=print)
        (port,) = free_ports(1)
        toml = (
            f'[px]\napi_key = "sandbox-key"\nproperty_key = "AP-SANDBOX-2"\nbase_url = "http://127.0.0.1:{port}"\n'
            f'[listen]\nhttp = ""\nunix = "{folder}/events.sock"\ncontrol = "{folder}/control.sock"\n'
            f'[outbox]\npath = "{outbox}"\nmax_bytes = "40GiB"\n'
        )
        file = folder / "config.toml"
        file.write_text(toml)
        commands = (
            ["sandbox", "--port", str(port), "--per-second", "0", "--per-day", "0", "--latency", "100ms"],
            ["run", "--config", str(file)],
        )
        processes = [subprocess.Popen([sys.executable, "-m", "sidecar", *command]) for command in commands]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.terminate)
        client = DaemonClient(str(folder / "control.sock"))
        wait_for(lambda: answers(client), "deliveries", 60)
        with Client(str(folder / "events.sock")) as app:
            for number in range(4 * NAMES):
                app.track(f"u-{number}", f"Name {number % NAMES}", {"plan_name": "pro", "rows": number})
        with running_console(file) as console:
            console.sign_in()
            first_pictures(console)
            previews(client, toml)
            compare(processes[1].pid, client, console, chosen.rounds, chosen.seconds, str(folder / "events.sock"))


if __name__ == "__main__":
    main()

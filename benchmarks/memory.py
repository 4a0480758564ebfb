"""What remembered users cost: events per second with a memory of a million users, next to an empty one.

    python -m benchmarks.memory [--quick]

The daemon takes the same load with both by turns, so that a busy host slows both alike: of a thousand active users, and,
as the worst case, of all of them in turn, so that no cache helps. Not part of ``python -m benchmarks``.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.load import Load, run_load
from benchmarks.rig import Rig, free_port, open_rig
from sidecar.outbox import Store

__all__ = ["measure", "remember"]

PRODUCT = "AP-XXXXXXXXXX-2"
NOW_MS = 1_790_000_000_000
KNOWN = b'{"account_id":"acme-123456","digests":{"user":"c1f1d4bd6a7f1f0f"}}'


def remember(path: Path, users: int) -> None:
    """Make an outbox that remembers users of accounts."""
    store = Store(path)
    rows = (
        (PRODUCT, f"user-{number:04d}", KNOWN, NOW_MS, f"acme-{number % 5000}", "groupId", 1) for number in range(users)
    )
    with store.transaction():
        store.connection.executemany(
            "INSERT INTO users (property_key, user, known, seen_ms, account, account_from, account_call)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        store.count("users", users)
    store.close()


def _rate(rig: Rig, master: Path, load: Load) -> float:
    rig.delete_outbox()
    rig.outbox.write_bytes(master.read_bytes())
    os.sync()  # the copy is of another size for each, and its writing would delay the commits
    rig.configure(px_port=free_port(), outbox='max_bytes = "64GiB"')
    daemon = rig.start_daemon()
    measured = run_load(load)
    rig.stop(daemon)
    return measured.per_second


def measure(users: int, events: int, repeats: int, say: Callable[[str], None]) -> None:
    """Measure batches and single events; ``say`` gets the figures."""
    with open_rig() as rig:
        masters = [rig.folder / f"{count}-users.db" for count in (0, users)]
        for master, count in zip(masters, (0, users), strict=True):
            remember(master, count)
        for active, batch, connections, total in (
            *((1000, 100, 8, events), (1000, 1, 64, events // 4)),
            *((users, 100, 8, events), (users, 1, 64, events // 4)),
        ):
            load = Load(address=str(rig.http_port), batch=batch, connections=connections, events=total, users=active)
            rates: list[list[float]] = [[], []]
            for _ in range(repeats):
                for at in (0, 1):
                    rates[at].append(_rate(rig, masters[at], load))
            empty, full = map(median, rates)
            ratios = ", ".join(f"{second / first:.3f}" for first, second in zip(*rates, strict=True))
            say(
                f"{'batches of 100' if batch > 1 else 'single events '} of {active:>9,} active users: {empty:>8,.0f} events/s with 0 users, {full:>8,.0f}"
                f" with {users:,}: {full / empty:.3f} (each pair: {ratios})"
            )


if __name__ == "__main__":
    quick = "--quick" in sys.argv[1:]
    measure(*((10_000, 2_000, 1) if quick else (1_000_000, 40_000, 5)), print)

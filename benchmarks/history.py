"""What the history for ``trace`` and ``names`` costs: events per second and bytes on disk, next to the smallest history.

    python -m benchmarks.history [--quick]

Rates: the daemon takes the same load with delivered events kept for a day and for a second, by turns, while it delivers at
the default pace, so that rows are settled, and removed where they are kept for a second. Disk: the columns that only the
history needs (name, way in, place and call of the account, failed attempts), next to the same rows without them. Not part
of ``python -m benchmarks``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from msgspec import structs

from benchmarks.fill import new_events
from benchmarks.load import Load, run_load
from benchmarks.rig import Rig, open_rig
from sidecar.outbox import Store, Via

__all__ = ["bytes_with_and_without", "measure"]

NOW_MS = 1_790_000_000_000
HISTORY = ("name", "via", "account_from", "account_call", "history")
KEPT = ("24h", "1s")


def bytes_with_and_without(path: Path, events: int) -> tuple[int, int]:
    """Return the bytes of an outbox with this number of events, as accepted by HTTP, and without their history."""
    store = Store(path)
    batch = [
        structs.replace(event, kind="track", name="Feature Used", via=Via.HTTP, says=("acme-corp", "context.groupId"))
        for event in new_events(0, events)
    ]
    with store.transaction():
        store.accept([batch], NOW_MS)
    whole = _bytes(store)
    store.connection.execute(f"UPDATE events SET {', '.join(f'{column} = NULL' for column in HISTORY)}")
    store.connection.execute("DELETE FROM names")
    bare = _bytes(store)
    store.close()
    return whole, bare


def _bytes(store: Store) -> int:
    store.connection.execute("VACUUM")
    (pages,), (size,) = (store.connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(size)


def _rate(rig: Rig, keep: str, load: Load) -> float:
    rig.delete_outbox()
    rig.configure(outbox=f'keep_delivered = "{keep}"\nmax_bytes = "64GiB"')
    daemon = rig.start_daemon()
    measured = run_load(load)
    rig.stop(daemon)
    return measured.per_second


def measure(events: int, repeats: int, say: Callable[[str], None]) -> None:
    """Measure batches, single events and the file; ``say`` gets the figures."""
    with open_rig() as rig:
        rig.start_sandbox("--per-second", "0")
        for batch, connections, total in ((100, 8, events), (1, 64, events // 4)):
            load = Load(address=str(rig.http_port), batch=batch, connections=connections, events=total)
            rates: dict[str, list[float]] = {keep: [] for keep in KEPT}
            for repeat in range(repeats):
                for keep in KEPT if repeat % 2 else reversed(KEPT):
                    rates[keep].append(_rate(rig, keep, load))
            day, second = (median(rates[keep]) for keep in KEPT)
            ratios = ", ".join(f"{kept / gone:.3f}" for kept, gone in zip(*rates.values(), strict=True))
            say(
                f"{'batches of 100' if batch > 1 else 'single events '}: {day:>8,.0f} events/s kept for {KEPT[0]}, "
                f"{second:>8,.0f} for {KEPT[1]}: {day / second:.3f} (each pair: {ratios})"
            )
        whole, bare = bytes_with_and_without(rig.folder / "bytes.db", events)
        say(
            f"bytes of an event: {whole / events:.0f} with its history, {bare / events:.0f} without: {whole / bare:.3f}"
        )


if __name__ == "__main__":
    quick = "--quick" in sys.argv[1:]
    measure(*((2_000, 1) if quick else (100_000, 5)), print)

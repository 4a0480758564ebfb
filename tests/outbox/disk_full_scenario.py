"""Fill a real disk; run in its own mount namespace by ``test_outbox_disk_full.py``.

Mounts a small tmpfs on the given folder, fills it with events and a ballast file, and prints a report as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

import trio
from outbox_files import RecordingListener, check_counters, delivered, event, pending_ids

from sidecar.clock import SystemClock
from sidecar.outbox import Capacity, DiskFull, Outbox, Retention, Store, ThreadRunner
from sidecar.outbox.housekeeping import repeat_step

BATCH = 50


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


async def fill(outbox, first):
    for number in range(first, first + 10**6, BATCH):
        try:
            await outbox.accept([event(n, padding=2000) for n in range(number, number + BATCH)])
        except DiskFull:
            return number
    raise AssertionError("the disk was never full")


async def scenario(folder):
    store = Store(folder / "o.db")
    listener = RecordingListener()
    outbox = Outbox(store, SystemClock(), Capacity(store.path, 2**30), ThreadRunner(), listener=listener)
    retention = Retention(delivered_ms=10**9, ids_ms=10**9, dead_ms=10**9, max_users=10)
    report = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        nursery.start_soon(repeat_step, outbox, retention.prune_step)
        reserve = store.path.with_name("o.db.reserve")
        await until(lambda: reserve.exists() and reserve.stat().st_size)
        report["reserve_bytes"] = reserve.stat().st_size
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(5 * 2**20))
        first = await fill(outbox, 0)
        report["accepted"] = first
        report["full"] = outbox.capacity.full
        report["reserve_released"] = not reserve.exists()

        # Every pending event can be settled in the space of the reserve, however often the WAL is used again.
        ids = await outbox.read(lambda store: [row[0] for row in store.connection.execute("SELECT id FROM events")])
        for start in range(0, len(ids), 100):
            for event_id in ids[start : start + 100]:
                outbox.settle(delivered(event_id), more_expected=True)
            await until(lambda: set(listener.ids).issuperset(ids[: start + 100]))  # noqa: B023 - awaited at once
        report["settled"] = len(set(listener.ids))
        report["still_full"] = outbox.capacity.full

        ballast.unlink()
        await until(lambda: outbox.capacity.full is None)
        report["accepted_again"] = (await outbox.accept([event("again")])).stored
        report["reserve_again"] = reserve.stat().st_size
        nursery.cancel_scope.deadline = trio.current_time() + 20
        outbox.stop()
    store.close()
    store = Store(folder / "o.db")
    check_counters(store)
    report["pending_at_last"] = len(pending_ids(store))
    report["delivered_at_last"] = store.counters["delivered"]
    report["integrity"] = store.connection.execute("PRAGMA integrity_check").fetchone()[0]
    store.close()
    return report


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}", "tmpfs", str(folder)], check=True)
    print(json.dumps(trio.run(scenario, folder)))

"""A disk that is really full: run in a mount namespace of its own by ``test_outbox_disk_full.py``.

Mounts a small tmpfs on the folder given, fills it with events and a ballast, and prints what became of them as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

import trio
from outbox_files import check_account, delivered, event, pending_ids

from sidecar.clock import SystemClock
from sidecar.outbox import DiskFull, Keeper, Outbox, Room, Store, ThreadRunner

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
    raise AssertionError("the disk never was full")


async def scenario(folder):
    store = Store(folder / "o.db")
    outbox = Outbox(store, SystemClock(), Room(store.path, 2**30), ThreadRunner())
    keeper = Keeper(delivered_ms=10**9, ids_ms=10**9, dead_ms=10**9, max_users=10)
    outbox.keep = lambda store, now_ms: keeper.step(store, now_ms, hurry=outbox.short)
    settled = set()
    outbox.on_settled = lambda settlements: settled.update(one.id for one in settlements)
    report = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        reserve = store.path.with_name("o.db.reserve")
        await until(lambda: reserve.exists() and reserve.stat().st_size)
        report["reserve_bytes"] = reserve.stat().st_size
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(5 * 2**20))
        first = await fill(outbox, 0)
        report["accepted"] = first
        report["full"] = outbox.full
        report["reserve_given_up"] = not reserve.exists()

        # Every pending event can be settled in the room of the reserve, however often the WAL has to be used again.
        ids = await outbox.read(lambda store: [row[0] for row in store.connection.execute("SELECT id FROM events")])
        for start in range(0, len(ids), 100):
            for event_id in ids[start : start + 100]:
                outbox.settle(delivered(event_id), more_expected=True)
            await until(lambda: settled.issuperset(ids[: start + 100]))  # noqa: B023 - awaited at once
        report["settled"] = len(settled)
        report["still_full"] = outbox.full

        ballast.unlink()
        await until(lambda: outbox.full is None)
        report["accepted_again"] = (await outbox.accept([event("again")])).stored
        report["reserve_again"] = reserve.stat().st_size
        outbox.stop()
    store.close()
    store = Store(folder / "o.db")
    check_account(store)
    report["pending_at_last"] = len(pending_ids(store))
    report["delivered_at_last"] = store.counters["delivered"]
    report["integrity"] = store.connection.execute("PRAGMA integrity_check").fetchone()[0]
    store.close()
    return report


if __name__ == "__main__":
    place = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}", "tmpfs", str(place)], check=True)
    print(json.dumps(trio.run(scenario, place)))

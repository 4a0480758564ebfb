"""Actions of an operator while the daemon runs, and between two processes; each returns what is logged of it.

An action raises ConnectionLost or SidecarError if it failed.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from sim_process import Process

from sidecar.config import PeopleConfig
from sidecar.control.export import mark_exported, pending_pages
from sidecar.daemon import reload
from sidecar.errors import ConfigError
from sidecar.outbox import Store
from sidecar.outbox.dead import DeadLetterFilter

if TYPE_CHECKING:
    from sim_world import World

__all__ = ["OPERATIONS", "export_pending"]


async def _reload(
    world: "World",
    process: Process,
    bad: bool,
    people: str | None = None,
    drop: list[str] | None = None,
    **changes: Any,
) -> None:
    """Reload with other values: ``changes`` in ``[deliver]``, ``drop`` the attributes that mapping removes."""

    async def read() -> Any:
        await trio.lowlevel.checkpoint()
        if bad:
            raise ConfigError("the configuration is invalid")
        deliver = msgspec.structs.replace(world.config.deliver, **changes)
        upserts = world.config.people if people is None else PeopleConfig(users=people, accounts=people)
        mapping = world.config.mapping
        if drop is not None:
            attributes = msgspec.structs.replace(mapping.attributes, drop=drop)
            mapping = msgspec.structs.replace(mapping, attributes=attributes)
        world.config = msgspec.structs.replace(world.config, deliver=deliver, people=upserts, mapping=mapping)
        world.record_limits(deliver, pending=True)
        return world.config

    async with world.reload_lock:  # reloads run one after another, as signals are handled
        await reload(process.daemon, read)
        if not process.unreachable.is_set():  # else the next process has loaded the file as it was then
            notices = process.daemon.notices.all()
            refused = any(notice.startswith("The configuration was not reloaded") for notice in notices)
            assert refused or process.daemon.config == world.config, f"not reloaded and not reported: {notices}"
            world.record_limits(process.daemon.config.deliver)
        world.coverage["reload refused" if bad else "reloaded"] += 1


async def _pause(world: "World", process: Process) -> None:
    await process.daemon.delivery_control.pause()
    if not process.unreachable.is_set():
        # Unless a resume came in between: from here on nothing is sent, also after a restart.
        world.paused = process.daemon.delivery.dispatcher.destination.operator_paused


async def _resume(world: "World", process: Process) -> None:
    world.paused = False
    await process.daemon.delivery_control.resume()


async def _retry_dead(world: "World", process: Process, by_id: bool = False) -> Any:
    """Retry page by page, as ``px-sidecar dead retry`` does: all dead letters, or those listed before."""
    ids = await process.daemon.outbox.read(_dead_ids)
    which = DeadLetterFilter(ids=ids) if by_id else DeadLetterFilter()
    return await _page_by_page(world, process, ids, "replayed", partial(process.daemon.admin.retry, which))


async def _discard(world: "World", process: Process) -> Any:
    ids = await process.daemon.outbox.read(_dead_ids)
    return await _page_by_page(
        world, process, ids, "discarded", partial(process.daemon.admin.discard, DeadLetterFilter())
    )


def _dead_ids(store: Store) -> set[int]:
    return {event_id for (event_id,) in store.connection.execute("SELECT id FROM dead")}


def _replayed_dead_ids(store: Store) -> set[int]:
    return {
        event_id
        for (event_id,) in store.connection.execute("SELECT id FROM dead WHERE id IN (SELECT id FROM replayed)")
    }


async def _page_by_page(
    world: "World", process: Process, ids: set[int], kind: str, call: Callable[..., Awaitable[Any]]
) -> int:
    """Run ``call`` for all pages: no letter of ``ids`` may still be dead, except one that was replayed in between."""
    moved, after = 0, 0
    while after is not None:
        done = await call(after=after)
        moved, after = moved + done["moved"], done["next"]
        world.coverage[kind] += done["moved"]
        world.coverage[f"{kind}, more pages"] += after is not None
    remaining = await process.daemon.outbox.read(lambda store: ids & (_dead_ids(store) - _replayed_dead_ids(store)))
    assert not remaining or process.unreachable.is_set(), f"dead letters {remaining} were skipped"
    return moved


async def _forget(world: "World", process: Process, user: str) -> Any:
    world.forgotten.add(user)
    return await process.daemon.admin.forget([user])


async def _read(world: "World", process: Process, at: str, which: int) -> Any:
    world.coverage[f"look at {at}"] += 1
    return await _READS[at](world, process, which)


async def _read_status(_world: "World", process: Process, _which: int) -> Any:
    status = await process.daemon.state.read()
    assert status.accepted == status.pending + status.delivered + status.dropped + status.dead, status
    return status.state


async def _read_events(_world: "World", process: Process, which: int) -> Any:
    return len((await process.daemon.admin.events(limit=1 + which))["events"])


async def _read_event(_world: "World", process: Process, which: int) -> Any:
    return (await process.daemon.admin.event(which)) is not None


async def _read_letters(_world: "World", process: Process, _which: int) -> Any:
    return len((await process.daemon.admin.letters(DeadLetterFilter()))["letters"])


async def _read_delivered(_world: "World", process: Process, _which: int) -> Any:
    return (await process.daemon.admin.delivered(since_ms=0, until_ms=2**52))["rows"]


async def _read_tail(world: "World", process: Process, which: int) -> Any:
    with trio.move_on_after(which / 3):
        async with aclosing(process.daemon.control.tail()) as records:
            async for record in records:
                world.coverage[f"tail {record['what']}"] += 1


_READS: dict[str, Callable[["World", Process, int], Awaitable[Any]]] = {
    "status": _read_status,
    "events": _read_events,
    "event": _read_event,
    "letters": _read_letters,
    "delivered": _read_delivered,
    "tail": _read_tail,
}
OPERATIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    "reload": _reload,
    "pause": _pause,
    "resume": _resume,
    "retry_dead": _retry_dead,
    "discard": _discard,
    "forget": _forget,
    "look": _read,
}


def export_pending(world: "World") -> None:
    """Export the first pending events, as ``px-sidecar outbox export`` does while no daemon runs."""
    store = Store(world.last_path)
    try:
        for rows in pending_pages(store):
            exported = rows[: world.export_rows]
            mark_exported(store, exported, world.clock.wall_ms())
            world.export_rows -= len(exported)
            world.moved.update(row.id for row in exported)
    finally:
        store.close()
    world.export_rows = 0
    world.log(f"moved to another host: {sorted(world.moved)}")
    world.coverage["exported"] += len(world.moved)

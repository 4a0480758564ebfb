"""What an operator does while the daemon lives, and between two lives; each gives what is to be logged of it.

Raises Gone or SidecarError if it did not work; an operator who needs it does it again.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from sim_life import Life

from sidecar.config import People
from sidecar.control.carrying import moved, pending_pages
from sidecar.errors import ConfigError
from sidecar.outbox import Store
from sidecar.outbox.dead import Which

if TYPE_CHECKING:
    from sim_world import World

__all__ = ["OPERATES", "carry_away"]


async def _reload(
    world: "World", life: Life, bad: bool, people: str | None = None, drop: list[str] | None = None, **changes: Any
) -> None:
    """``changes`` are those of ``[deliver]``, ``drop`` what mapping is to leave out."""

    def read() -> Any:
        if bad:
            raise ConfigError("there is a mistake in it")
        deliver = msgspec.structs.replace(world.config.deliver, **changes)
        upserts = world.config.people if people is None else People(users=people, accounts=people)
        mapping = world.config.mapping
        if drop is not None:
            attributes = msgspec.structs.replace(mapping.attributes, drop=drop)
            mapping = msgspec.structs.replace(mapping, attributes=attributes)
        world.config = msgspec.structs.replace(world.config, deliver=deliver, people=upserts, mapping=mapping)
        world.in_force(deliver, perhaps=True)
        return world.config

    async with world.one_reload:  # as one signal after the other is obeyed
        await life.daemon.reload(read)
        if not life.gone.is_set():  # else the next one has begun, with what the file said then
            notices = life.daemon.desk.notices
            refused = any(notice.startswith("The configuration was not reloaded") for notice in notices)
            assert refused or life.daemon.config == world.config, f"not reloaded, and not said: {notices}"
            world.in_force(life.daemon.delivery.dispatcher.config)
        world.met["reload refused" if bad else "reloaded"] += 1


async def _pause(world: "World", life: Life) -> None:
    await life.daemon.desk.pause()
    if not life.gone.is_set():
        # Unless somebody has resumed it meanwhile: from here on, and in the next lives, nothing is sent.
        world.paused = life.daemon.delivery.dispatcher.destination._operator_since_s is not None


async def _resume(world: "World", life: Life) -> None:
    world.paused = False
    await life.daemon.desk.resume()


async def _retry_dead(world: "World", life: Life, by_id: bool = False) -> Any:
    """Page by page, as ``px-sidecar dead retry`` does: all of them, or those that it has looked up before."""
    ids = await life.daemon.outbox.read(_dead)
    which = Which(ids=ids) if by_id else Which()
    return await _each_page(world, life, ids, "replayed", partial(life.daemon.desk.archive.retry, which))


async def _discard(world: "World", life: Life) -> Any:
    ids = await life.daemon.outbox.read(_dead)
    return await _each_page(world, life, ids, "discarded", partial(life.daemon.desk.archive.discard, Which()))


def _dead(store: Store) -> set[int]:
    return {one for (one,) in store.connection.execute("SELECT id FROM dead")}


def _dead_again(store: Store) -> set[int]:
    return {one for (one,) in store.connection.execute("SELECT id FROM dead WHERE id IN (SELECT id FROM replayed)")}


async def _each_page(world: "World", life: Life, ids: set[int], what: str, call: Callable[..., Awaitable[Any]]) -> int:
    """Of those that were dead before none may be dead still, unless it was retried meanwhile."""
    moved, after = 0, 0
    while after is not None:
        done = await call(after=after)
        moved, after = moved + done["moved"], done["next"]
        world.met[what] += done["moved"]
        world.met[f"{what}, more pages"] += after is not None
    left = await life.daemon.outbox.read(lambda store: ids & (_dead(store) - _dead_again(store)))
    assert not left or life.gone.is_set(), f"dead letters {left} were passed over"
    return moved


async def _forget(world: "World", life: Life, user: str) -> Any:
    world.forgotten.add(user)
    return await life.daemon.desk.archive.forget(user)


async def _look(world: "World", life: Life, at: str, which: int) -> Any:
    world.met[f"look at {at}"] += 1
    return await _LOOKS[at](world, life, which)


async def _at_status(_world: "World", life: Life, _which: int) -> Any:
    status = await life.daemon.desk.status()
    assert status.accepted == status.pending + status.delivered + status.dropped + status.dead, status
    return status.state


async def _at_events(_world: "World", life: Life, which: int) -> Any:
    return len((await life.daemon.desk.archive.events(limit=1 + which))["events"])


async def _at_event(_world: "World", life: Life, which: int) -> Any:
    return (await life.daemon.desk.archive.event(which)) is not None


async def _at_letters(_world: "World", life: Life, _which: int) -> Any:
    return len((await life.daemon.desk.archive.letters(Which()))["letters"])


async def _at_delivered(_world: "World", life: Life, _which: int) -> Any:
    return (await life.daemon.desk.archive.delivered(since_ms=0, until_ms=2**52))["rows"]


async def _at_tail(world: "World", life: Life, which: int) -> Any:
    with trio.move_on_after(which / 3):
        async with aclosing(life.daemon.desk.tail()) as records:
            async for record in records:
                world.met[f"tail {record['what']}"] += 1


_LOOKS: dict[str, Callable[["World", Life, int], Awaitable[Any]]] = {
    "status": _at_status,
    "events": _at_events,
    "event": _at_event,
    "letters": _at_letters,
    "delivered": _at_delivered,
    "tail": _at_tail,
}
OPERATES: dict[str, Callable[..., Awaitable[Any]]] = {
    "reload": _reload,
    "pause": _pause,
    "resume": _resume,
    "retry_dead": _retry_dead,
    "discard": _discard,
    "forget": _forget,
    "look": _look,
}


def carry_away(world: "World") -> None:
    """Move the first pending events to another host, as ``px-sidecar outbox export`` does while no daemon runs."""
    store = Store(world.last_path)
    try:
        for rows in pending_pages(store):
            carried = rows[: world.carry_rows]
            moved(store, carried, world.clock.wall_ms())
            world.carry_rows -= len(carried)
            world.moved.update(row.id for row in carried)
    finally:
        store.close()
    world.carry_rows = 0
    world.log(f"moved to another host: {sorted(world.moved)}")
    world.met["carried"] += len(world.moved)

"""A life is one process: the daemon's rooms as they are, with a network, clocks and a disk made of dice.

It ends by a stop, by a second signal, by a crash (the file as of that moment is all that is left of it) or, when its
disk failed too often, by itself.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from sim_disk import Files
from sim_watch import Watch

from sidecar.daemon import Daemon
from sidecar.errors import SidecarError
from sidecar.http import Stopping
from sidecar.outbox import Store, StoreFailed
from sidecar.outbox.writer import FAILURES_MAX
from sidecar.px import Reply, Request
from sidecar.px.fake import FakeNetwork
from sidecar.receive import Front, Routes

if TYPE_CHECKING:
    from sim_world import World

__all__ = ["End", "Gone", "Life"]


class Gone(Exception):
    """The process that was asked is not there any more, or not yet."""


class End(NamedTuple):
    """How one life ended: events that were sent or whose failure was not noted yet, by id."""

    in_flight: frozenset[int]
    not_noted: Counter[int]
    max_in_flight: int


class Runner:
    """Store calls on the spot, one at a time, each taking as long as the disk does; never abandoned but by a crash."""

    def __init__(self, world: "World", life: "Life") -> None:
        self._world, self._life, self._lock = world, life, trio.Lock()

    async def run(self, call: Callable[[], Any]) -> Any:
        self._world.turn()
        self._life.under_way = call  # from here on: who is cancelled as he waits for the lock has it in his hands too
        async with self._lock:  # which is a checkpoint, as going to the thread is
            with trio.CancelScope(shield=True) as scope:
                self._life.uninterrupted = scope
                await self._wait()
                result = self._life.perform(call)
                await self._wait()
                self._life.under_way = None
                return result
            await trio.lowlevel.checkpoint()  # a crash: nothing comes back from here
        raise AssertionError("a crash cancels everything")

    async def _wait(self) -> None:
        disk = self._world.disk
        if disk.slow_until_s > trio.current_time():
            self._world.met["slow disk"] += 1
            await trio.sleep(self._world.dice.random() * disk.up_to_s)


class Life:
    """One process, on the outbox at ``path``."""

    def __init__(self, world: "World", number: int, path: Path) -> None:
        self.world, self.number, self.path = world, number, path
        self.gone = trio.Event()
        self.ended = trio.Event()
        self.stop = trio.Event()
        self.stopping = Stopping()
        self.asking: dict[int, trio.CancelScope] = {}
        self.asked = 0
        self.no_request = trio.Event()
        self.uninterrupted: trio.CancelScope | None = None
        self.under_way: Callable[[], Any] | None = None
        self.scope = trio.CancelScope()
        self.killed = False
        self.failed_before = world.disk.failed
        self.network = FakeNetwork(self._reach_px)
        store = Store(path, durability=world.config.outbox.durability, factory=world.disk.connection())
        try:
            self.daemon = Daemon(
                world.config,
                store=store,
                network=self.network,
                clock=world.clock,
                runner=Runner(world, self),
                random=Random(world.dice.random()),
            )
        except BaseException:
            store.connection.close()
            raise
        self.watch = Watch(self)
        world.px.which = self.watch.event_of
        daemon = self.daemon
        self.routes = Routes(daemon.intake, daemon.outbox, {})
        self.front = Front(self.routes, daemon.intake, daemon.outbox, max_request_bytes=2**20, stopping=self.stopping)

    async def _reach_px(self, request: Request) -> Reply:
        """Who was killed sends nothing more, though trio lets each of its tasks go on until it waits."""
        if self.killed:
            await trio.sleep_forever()
        return await self.world.px.answer(request)

    async def run(self) -> None:
        """Live; returns when it is over, however it ended."""
        with self.scope:
            try:
                await self.daemon.run(self._serve)
            except* StoreFailed as failed:
                self.world.log(f"life {self.number} gives up: {failed}")
                self.world.met["gave up"] += 1
                failures = self.world.disk.failed - self.failed_before
                assert self.killed or failures >= FAILURES_MAX, f"given up after {failures} failures of the disk"
        if not self.killed:
            self.leave_behind()
            assert self.network.lanes == self.network.closed, (
                f"{self.network.lanes - self.network.closed} lanes left open"
            )
        self._go()
        self.ended.set()

    async def _serve(self) -> None:
        await self.stop.wait()
        self.stopping.set()
        while self.asking:
            self.no_request = trio.Event()
            await self.no_request.wait()

    def _go(self) -> None:
        self.gone.set()
        for scope in self.asking.values():
            scope.cancel()

    # The end ------------------------------------------------------------------------------------------------------

    def perform(self, call: Callable[[], Any]) -> Any:
        """Do a call of the store; the power may fail in the middle."""
        try:
            return call()
        finally:
            if self.world.disk.left is not None:
                self.leave_behind(self.world.disk.left)
                self.kill()

    def crash(self) -> None:
        """``kill -9`` now."""
        if not self.killed and not self.ended.is_set():
            self.leave_behind()
            self.kill()

    def cancel(self) -> None:
        """What a second signal does: everything is cancelled, and unwinds; calls of the store come to their end."""
        if not self.ended.is_set():
            self.scope.cancel()

    def kill(self) -> None:
        self.killed = True
        self._go()
        self.scope.cancel()
        if self.uninterrupted is not None:
            self.uninterrupted.cancel()

    def leave_behind(self, left: Files | None = None) -> None:
        """Keep for the next life what is on disk now, and for the account what was in flight."""
        world, dispatcher = self.world, self.daemon.delivery.dispatcher
        left = left or Files.of(self.path)
        world.disk.new_process()
        left.write(world.folder / f"{self.number + 1}.db")
        failures = [*self.daemon.outbox._failures]
        for work in getattr(self.under_way, "args", ()):
            failures += getattr(work, "failures", ())  # these may be noted, or not
        not_noted = Counter(one.id for one in failures if one.ambiguous)
        in_flight = frozenset(dispatcher._slots)
        world.ends.append(End(in_flight, not_noted, world.most_allowed))
        world.log(
            f"life {self.number} leaves {len(left.database)} + {len(left.log)} bytes, in flight {sorted(in_flight)}"
        )

    def close(self) -> None:
        """What the operating system does when the process is gone."""
        self.daemon.store.connection.close()
        for suffix in ("", "-wal", "-shm", ".reserve"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    # Asking it ----------------------------------------------------------------------------------------------------

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What ``call`` gives. Raises Gone if this life ends first."""
        if self.stop.is_set() or self.gone.is_set():
            raise Gone
        self.asked += 1
        number = self.asked
        with trio.CancelScope() as scope:
            self.asking[number] = scope
            try:
                answer = await call()
            except SidecarError:
                if self.gone.is_set():
                    raise Gone from None
                raise
            finally:
                del self.asking[number]
                self.no_request.set()
        if self.gone.is_set() or scope.cancelled_caught:
            raise Gone
        return answer

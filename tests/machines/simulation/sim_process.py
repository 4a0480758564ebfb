"""One simulated process: the real daemon with a simulated network, clock and disk.

It ends by a stop, by a second signal, by a crash (only the files of that moment remain), or by itself after repeated
disk failures.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from sim_disk import Files
from sim_monitor import DispatcherMonitor, StoreMonitor

from sidecar.daemon import Seams, build, serve
from sidecar.errors import SidecarError
from sidecar.http import Shutdown
from sidecar.outbox import Store, StoreFailed
from sidecar.outbox.rescue import OutboxReplaced
from sidecar.outbox.writer import FAILURES_MAX
from sidecar.px import PxRequest, Reply
from sidecar.px.network import FakeNetwork
from sidecar.receive import ClientMemory, IngestServer, Routes

if TYPE_CHECKING:
    from sim_world import World

__all__ = ["ConnectionLost", "Process", "ProcessEnd"]


class ConnectionLost(Exception):
    """The process has ended before it answered, or is stopping."""


class ProcessEnd(NamedTuple):
    """What a process left unsettled: event ids in flight, and ambiguous failures that were not recorded, by id."""

    in_flight: frozenset[int]
    unrecorded: Counter[int]
    max_in_flight: int


class Runner:
    """Runs store calls inline, one at a time, each with the delay of the disk; only a crash abandons one."""

    def __init__(self, world: "World", process: "Process") -> None:
        self._world, self._process, self._lock = world, process, trio.Lock()

    async def run(self, call: Callable[[], Any]) -> Any:
        self._world.count_step()
        self._process.current_call = call  # also while it waits for the lock: the call may run
        async with self._lock:  # a checkpoint, as handing the call to a thread is
            with trio.CancelScope(shield=True) as scope:
                self._process.store_scope = scope
                await self._wait()
                result = self._process.perform(call)
                await self._wait()
                self._process.current_call = None
                return result
            await trio.lowlevel.checkpoint()  # after a crash this raises Cancelled
        raise AssertionError("a crash cancels every task")

    async def _wait(self) -> None:
        disk = self._world.disk
        if disk.slow_until_s > trio.current_time():
            self._world.coverage["slow disk"] += 1
            await trio.sleep(self._world.rng.random() * disk.up_to_s)


class Process:
    """One process on the outbox at ``path``."""

    def __init__(self, world: "World", number: int, path: Path) -> None:
        self.world, self.number, self.path = world, number, path
        self.unreachable = trio.Event()
        self.ended = trio.Event()
        self.stop = trio.Event()
        self.shutdown = Shutdown()
        self.requests: dict[int, trio.CancelScope] = {}
        self.request_count = 0
        self.request_done = trio.Event()
        self.store_scope: trio.CancelScope | None = None
        self.current_call: Callable[[], Any] | None = None
        self.scope = trio.CancelScope()
        self.killed = False
        self.failed_before = world.disk.failed
        self.network = FakeNetwork(self._reach_px)
        store = Store(path, durability=world.config.outbox.durability, factory=world.disk.connection())
        try:
            self.daemon = build(
                world.config,
                Seams(store, self.network, world.clock, Runner(world, self), Random(world.rng.random())),
            )
        except BaseException:
            store.connection.close()
            raise
        self.monitor = DispatcherMonitor(self)
        StoreMonitor(self)
        world.px.event_of_request = self.monitor.event_of
        daemon = self.daemon
        memory = ClientMemory(world.config.listen.max_memory)
        self.routes = Routes(daemon.parser, daemon.outbox, daemon.telemetry, {}, memory)
        self.server = IngestServer(
            self.routes,
            daemon.parser,
            daemon.outbox,
            daemon.telemetry,
            memory,
            max_request_bytes=2**20,
            shutdown=self.shutdown,
        )

    async def _reach_px(self, request: PxRequest) -> Reply:
        """Answer a request; a killed process sends nothing more, although its tasks run until their next checkpoint."""
        if self.killed:
            await trio.sleep_forever()
        return await self.world.px.answer(request)

    async def run(self) -> None:
        """Run until the process ends, for whatever reason."""
        with self.scope:
            try:
                await serve(self.daemon, self._serve)
            except* StoreFailed as failed:
                self.world.log(f"process {self.number} gives up: {failed}")
                self.world.coverage["gave up"] += 1
                failures = self.world.disk.failed - self.failed_before
                assert self.killed or failures >= FAILURES_MAX, f"the process gave up after {failures} disk failures"
            except* OutboxReplaced:
                self.world.log(f"process {self.number} ends: its outbox was replaced")
                self.world.coverage["outbox replaced"] += 1
        if not self.killed:
            self.save_files()
            assert self.network.lanes == self.network.closed, (
                f"{self.network.lanes - self.network.closed} lanes left open"
            )
        self._drop_clients()
        self.ended.set()

    async def _serve(self) -> None:
        await self.stop.wait()
        self.shutdown.set()
        while self.requests:
            self.request_done = trio.Event()
            await self.request_done.wait()

    def _drop_clients(self) -> None:
        self.unreachable.set()
        for scope in self.requests.values():
            scope.cancel()

    # Ending ------------------------------------------------------------------------------------------------------

    def perform(self, call: Callable[[], Any]) -> Any:
        """Perform a store call; the power may fail within it."""
        try:
            return call()
        finally:
            if self.world.disk.remains is not None:
                self.save_files(self.world.disk.remains)
                self.kill()

    def crash(self) -> None:
        """``kill -9`` now."""
        if not self.killed and not self.ended.is_set():
            self.save_files()
            self.kill()

    def cancel(self) -> None:
        """Cancel everything, as a second signal does; running store calls are completed."""
        if not self.ended.is_set():
            self.scope.cancel()

    def kill(self) -> None:
        self.killed = True
        self._drop_clients()
        self.scope.cancel()
        if self.store_scope is not None:
            self.store_scope.cancel()

    def save_files(self, remains: Files | None = None) -> None:
        """Save the files for the next process, and what was in flight for the check."""
        world, dispatcher = self.world, self.daemon.delivery.dispatcher
        remains = remains or world.disk.files(self.path)
        world.disk.new_process()
        remains.write(world.folder / f"{self.number + 1}.db")
        failures = [*self.daemon.outbox.unrecorded_failures]
        for batch in getattr(self.current_call, "args", ()):
            failures += getattr(batch, "failures", ())  # the commit of these may or may not happen
        unrecorded = Counter(failure.id for failure in failures if failure.ambiguous)
        in_flight = dispatcher.statistics().in_flight
        world.ends.append(ProcessEnd(in_flight, unrecorded, world.max_in_flight))
        world.log(
            f"process {self.number} leaves {len(remains.database)} + {len(remains.log)} bytes, in flight {sorted(in_flight)}"
        )

    def close(self) -> None:
        """Close and delete the files of an ended process."""
        self.daemon.store.connection.close()
        for suffix in ("", "-wal", "-shm", ".reserve"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    # Requests ----------------------------------------------------------------------------------------------------

    async def request(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of ``call``. Raises ConnectionLost if the process ends first."""
        if self.stop.is_set() or self.unreachable.is_set():
            raise ConnectionLost
        self.request_count += 1
        number = self.request_count
        with trio.CancelScope() as scope:
            self.requests[number] = scope
            try:
                answer = await call()
            except SidecarError:
                if self.unreachable.is_set():
                    raise ConnectionLost from None
                raise
            finally:
                del self.requests[number]
                self.request_done.set()
        if self.unreachable.is_set() or scope.cancelled_caught:
            raise ConnectionLost
        return answer

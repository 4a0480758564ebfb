"""The simulated world: the daemon's rooms as they are, and a network, clocks, a disk and clients made of dice.

Everything happens in one trio run under a mock clock with a seeded scheduler, so that a seed always gives the same run.
A *life* is one process: it ends by a stop, by a crash (the file as of that moment is all that is left of it) or, when
its disk failed too often, by itself; then the supervisor starts the next one.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import trio
import trio.testing
from sim_px import Px
from sim_scenario import Event, Scenario
from trio._core import _run as scheduler

import sidecar.control.limits
import sidecar.daemon
import sidecar.deliver.dispatcher
import sidecar.deliver.order
import sidecar.outbox.database
import sidecar.outbox.ids
import sidecar.outbox.room
import sidecar.outbox.writer
from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Daemon
from sidecar.deliver.steps import Send
from sidecar.errors import ConfigError, SidecarError
from sidecar.http import Request, Stopping
from sidecar.outbox import Store, StoreFailed
from sidecar.outbox.dead import Which
from sidecar.outbox.writer import FAILURES_MAX
from sidecar.px.fake import FakeNetwork
from sidecar.receive import Front, Routes

__all__ = ["End", "Gone", "Life", "World", "simulate"]

START_MS = 1_700_000_000_000
HOURS_S = 3_600.0
CLIENT_BREATH_S = 20.0


class Gone(Exception):
    """The process that was asked is not there any more, or not yet."""


class End(NamedTuple):
    """How one life ended: events that were sent or whose failure was not noted yet, by id."""

    in_flight: frozenset[int]
    not_noted: Counter[int]
    max_in_flight: int


class Disk:
    """What the next commits meet, and how long calls take."""

    def __init__(self) -> None:
        self.errors: list[str] = []  # one for each of the next commits, "" for none
        self.failed = 0
        self.slow_until_s = 0.0
        self.up_to_s = 0.0

    def connection(self) -> type[sqlite3.Connection]:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                how = disk.errors.pop(0) if sql == "COMMIT" and disk.errors else ""
                if how in ("", "ioerr_after"):
                    done = super().execute(sql, *rest)
                    if not how:
                        return done
                disk.failed += 1
                error = sqlite3.OperationalError(f"injected {how}")
                error.sqlite_errorcode = {"full": sqlite3.SQLITE_FULL, "busy": sqlite3.SQLITE_BUSY}.get(
                    how, sqlite3.SQLITE_IOERR
                )
                raise error

        return Connection


class Runner:
    """Store calls on the spot, one at a time, each taking as long as the disk does; never abandoned but by a crash."""

    def __init__(self, world: "World", life: "Life") -> None:
        self._world, self._life, self._lock = world, life, trio.Lock()

    async def run(self, call: Callable[[], Any]) -> Any:
        async with self._lock:
            await trio.lowlevel.checkpoint()
            with trio.CancelScope(shield=True) as scope:
                self._life.uninterrupted, self._life.under_way = scope, call
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
            await trio.sleep(self._world.dice.random() * disk.up_to_s)


class Life:
    """One process."""

    def __init__(self, world: "World", number: int, path: Path) -> None:
        self.world, self.number, self.path = world, number, path
        self.gone = trio.Event()
        self.ended = trio.Event()
        self.stop = trio.Event()
        self.requests = 0
        self.no_request = trio.Event()
        self.crash_in_trip = False
        self.uninterrupted: trio.CancelScope | None = None
        self.under_way: Callable[[], Any] | None = None
        self.scope = trio.CancelScope()
        self.killed = False
        self.failed_before = world.disk.failed
        store = Store(path, durability=world.config.outbox.durability, factory=world.disk.connection())
        self.daemon = Daemon(
            world.config,
            store=store,
            network=FakeNetwork(world.px.answer),
            clock=world.clock,
            runner=Runner(world, self),
            random=Random(world.dice.random()),
        )
        self._sending: dict[int, tuple[Any, int]] = {}
        self._tell_which_event()
        daemon, stopping = self.daemon, Stopping()
        self.routes = Routes(daemon.intake, daemon.outbox, {})
        self.front = Front(self.routes, daemon.intake, daemon.outbox, max_request_bytes=2**20, stopping=stopping)

    def _tell_which_event(self) -> None:
        """Let the model of PX know, for the account, to which event of the outbox a request belongs."""
        dispatcher, decide = self.daemon.delivery.dispatcher, self.daemon.delivery.dispatcher.decide

        def told(now_s: float) -> Any:
            step = decide(now_s)
            if isinstance(step, Send):
                self._sending[id(step.request)] = (step.request, step.item.id)
            self.world.measure(self)
            return step

        dispatcher.decide = told  # type: ignore[method-assign]
        self.world.px.which = lambda request: self._sending[id(request)][1]

    async def run(self) -> None:
        """Live; returns when it is over, however it ended."""
        with self.scope:
            try:
                await self.daemon.run(self._serve)
            except* StoreFailed as failed:
                self.world.log(f"life {self.number} gives up: {failed}")
                failures = self.world.disk.failed - self.failed_before
                assert self.killed or failures >= FAILURES_MAX, f"given up after {failures} failures of the disk"
        if not self.killed:
            self.leave_behind()
        self.gone.set()
        self.ended.set()

    async def _serve(self) -> None:
        await self.stop.wait()
        while self.requests:
            self.no_request = trio.Event()
            await self.no_request.wait()

    # The end ------------------------------------------------------------------------------------------------------

    def perform(self, call: Callable[[], Any]) -> Any:
        """Do a call of the store; it may be the last one, and its writes may not all reach the disk."""
        if not self.crash_in_trip:
            return call()
        before = _files(self.path)
        result = call()
        self.leave_behind(torn_since=before)
        self.kill()
        return result

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
        self.gone.set()
        self.scope.cancel()
        if self.uninterrupted is not None:
            self.uninterrupted.cancel()

    def leave_behind(self, torn_since: "_Files | None" = None) -> None:
        """Keep for the next life what is on disk now, and for the account what was in flight."""
        world, dispatcher = self.world, self.daemon.delivery.dispatcher
        left = _files(self.path)
        if torn_since is not None:
            left = _torn(torn_since, left, world.dice)
        path = world.folder / f"{self.number + 1}.db"
        path.write_bytes(left.database)
        path.with_name(path.name + "-wal").write_bytes(left.log)
        failures = [*self.daemon.outbox._failures]
        for work in getattr(self.under_way, "args", ()):
            failures += getattr(work, "failures", ())  # these may be noted, or not
        not_noted = Counter(one.id for one in failures if one.ambiguous)
        in_flight = frozenset(dispatcher._slots)
        world.ends.append(End(in_flight, not_noted, world.config.deliver.max_in_flight))
        world.log(
            f"life {self.number} leaves {len(left.database)} + {len(left.log)} bytes, in flight {sorted(in_flight)}"
        )

    # Asking it ----------------------------------------------------------------------------------------------------

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What ``call`` gives. Raises Gone if this life ends first."""
        if self.stop.is_set() or self.gone.is_set():
            raise Gone
        answer: list[Any] = []
        wrong: SidecarError | None = None
        self.requests += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up, nursery.cancel_scope)
                try:
                    answer.append(await call())
                except SidecarError as error:
                    wrong = error
                nursery.cancel_scope.cancel()
        finally:
            self.requests -= 1
            self.no_request.set()
        if self.gone.is_set() or not (answer or wrong):
            raise Gone
        if wrong is not None:
            raise wrong
        return answer[0]

    async def _give_up(self, scope: trio.CancelScope) -> None:
        await self.gone.wait()
        scope.cancel()


class _Files(NamedTuple):
    database: bytes
    log: bytes


def _files(path: Path) -> _Files:
    log = path.with_name(path.name + "-wal")
    return _Files(path.read_bytes(), log.read_bytes() if log.exists() else b"")


def _torn(before: _Files, after: _Files, dice: Random) -> _Files:
    """As if the power had failed while the log was written: a prefix of what changed, over what was there before.

    If the call has copied the log into the database it was synced before: then nothing is torn.
    """
    if before.database != after.database:
        return after
    old = before.log.ljust(len(after.log), b"\0")
    changed = [at for at in range(0, len(after.log), 8) if old[at : at + 8] != after.log[at : at + 8]]
    if not changed:
        return after
    cut = dice.randint(changed[0], changed[-1] + 8)
    return _Files(after.database, after.log[:cut] + before.log[cut:])


class World:
    """Everything around the daemon, and the record of what happened for the account at the end."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.dice = Random(scenario.seed ^ 0x5EED)
        self.lines: list[str] = []
        self.px = Px(Random(scenario.seed ^ 0x9A), self.log)
        self.disk = Disk()
        self.config = load_text(scenario.config)
        self.started_s = trio.current_time()
        self.clock = VirtualClock(start_wall_ms=START_MS, started_s=self.started_s)
        self.boots = 1
        self.life: Life | None = None
        self.last_path = folder / "1.db"
        self.begun = trio.Event()
        self.ends: list[End] = []
        self.ceilings: list[tuple[float, float]] = [(self.started_s, scenario.per_second)]
        self.answered: dict[int, str] = {}  # number -> "stored" or "refused", by the first success answer
        self.sent: dict[int, Event] = {}
        self.repeated: set[int] = set()  # numbers that several requests carry
        self.in_order: list[list[int]] = []  # numbers in the order in which one client had them answered
        self.replayed: set[int] = set()
        self.forgotten: set[str] = set()
        self.most_loaded = 0
        self.most_in_flight = 0
        self.stepped = False
        self.one_reload = trio.Lock()
        self.clients: list[trio.CancelScope] = []
        self.ending = False

    def log(self, line: str) -> None:
        self.lines.append(f"{trio.current_time() - self.started_s:12.4f}  {line}")

    def measure(self, life: Life) -> None:
        dispatcher = life.daemon.delivery.dispatcher
        self.most_loaded = max(self.most_loaded, len(dispatcher._order.items))
        self.most_in_flight = max(self.most_in_flight, dispatcher.in_flight())

    # Lives --------------------------------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """Start one life after the other, with the down times that the script asks for, until the end."""
        number = 1
        while True:
            self.down_s = 0.1
            try:
                self.life = Life(self, number, self.last_path)
            except sqlite3.OperationalError as error:
                if not self.disk.failed:
                    raise
                self.log(f"life {number} did not begin: {error}")
                await trio.sleep(0.1)
                continue
            self.log(f"life {number} begins")
            self.ceilings.append((trio.current_time(), self.config.deliver.per_second))
            self.begun.set()
            await self.life.run()
            self.begun = trio.Event()
            self._close(self.life)
            self.log(f"life {number} has ended")
            number += 1
            self.last_path = self.folder / f"{number}.db"
            if self.ending:
                return
            await trio.sleep(self.down_s)

    def _close(self, life: Life) -> None:
        life.daemon.store.connection.close()
        for suffix in ("", "-wal", "-shm", ".reserve"):
            life.path.with_name(life.path.name + suffix).unlink(missing_ok=True)

    async def alive(self) -> Life:
        """The life there is, once there is one."""
        await self.begun.wait()
        assert self.life is not None
        return self.life

    async def operate(self, what: str, call: Callable[[Life], Awaitable[Any]]) -> Any:
        """Something an operator does. What does not work is logged, and done again if it is needed."""
        life = await self.alive()
        try:
            done = await life.ask(partial(call, life))
        except (Gone, SidecarError) as error:
            self.log(f"{what} failed: {error!r}")
            return None
        self.log(f"{what}: {done}")
        return done

    # Clients ------------------------------------------------------------------------------------------------------

    async def client(self, way: str, events: list[Event], patience_s: float | None) -> None:
        """An app with some events: it sends until it is answered, or its patience ends."""
        self.repeated.update(event.number for event in events if event.number in self.sent)
        self.sent.update((event.number, event) for event in events)
        order: list[int] = []
        self.in_order.append(order)
        breath_s = 0.02
        with trio.move_on_after(float("inf") if patience_s is None else patience_s) as scope:
            self.clients.append(scope)
            while True:
                life = await self.alive()
                try:
                    answer = await life.ask(partial(_ways[way], life, [event.call() for event in events]))
                except Gone:
                    answer = {"success": False}
                if answer["success"]:
                    self._answered(events, answer, order)
                    return
                self.log(f"refused: {answer}")
                await trio.sleep(self.dice.random() * breath_s)
                breath_s = min(2 * breath_s, CLIENT_BREATH_S)

    def _answered(self, events: list[Event], answer: dict[str, Any], order: list[int]) -> None:
        bad = {one["index"] for one in answer.get("refused", ())}
        self.log(f"answered {[event.number for event in events]}: {answer}")
        for index, event in enumerate(events):
            assert (index in bad) == (event.kind == "bad"), answer
            if event.number not in self.answered:
                order.append(event.number)
            self.answered.setdefault(event.number, "refused" if index in bad else "stored")

    # The script ---------------------------------------------------------------------------------------------------

    async def play(self, nursery: trio.Nursery) -> None:
        """Perform the steps in their time."""
        for step in self.scenario.steps:
            await trio.sleep_until(self.started_s + step.at_s)
            self.log(f"step {step.what} { ({k: v for k, v in step.args.items() if k != 'events'}) }")
            await getattr(self, f"do_{step.what}")(nursery, **step.args)

    async def do_send(self, nursery: trio.Nursery, way: str, events: list[Any], patience_s: float | None) -> None:
        made = [msgspec.convert(event, Event) for event in events]
        nursery.start_soon(self.client, way, made, patience_s)

    async def do_px(self, nursery: trio.Nursery, **trouble: Any) -> None:
        self.px.trouble(**trouble)

    async def do_crash(
        self, nursery: trio.Nursery, rounds: int, down_s: float, in_trip: bool = False, reboot: bool = False
    ) -> None:
        life = await self.alive()
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        self.down_s = down_s
        if in_trip and not life.ended.is_set():
            life.crash_in_trip = True
            with trio.move_on_after(5):
                await life.gone.wait()
        life.crash()
        await life.ended.wait()
        if reboot:
            self.boots += 1
            self.clock = VirtualClock(
                start_wall_ms=START_MS, boot_id=f"boot-{self.boots}", started_s=self.started_s
            )  # the same wall time, and the boot clock goes on: only the id tells

    async def do_restart(self, nursery: trio.Nursery, down_s: float) -> None:
        life = await self.alive()
        self.down_s = down_s
        life.stop.set()
        await life.ended.wait()

    async def do_slow_disk(self, nursery: trio.Nursery, up_to_s: float, for_s: float) -> None:
        self.disk.up_to_s, self.disk.slow_until_s = up_to_s, trio.current_time() + for_s

    async def do_disk_error(self, nursery: trio.Nursery, error: str, count: int, skip: int) -> None:
        self.disk.errors = [""] * skip + [error] * count

    async def do_clock(self, nursery: trio.Nursery, step_ms: int) -> None:
        self.stepped = True
        self.clock.wall_step_ms += step_ms

    async def do_reload(self, nursery: trio.Nursery, per_second: float, bad: bool) -> None:
        deliver = msgspec.structs.replace(self.config.deliver, per_second=per_second)
        config = msgspec.structs.replace(self.config, deliver=deliver)

        def read() -> Any:
            if bad:
                raise ConfigError("there is a mistake in it")
            self.config = config
            self.ceilings.append((trio.current_time(), max(per_second, self.ceilings[-1][1])))
            return config

        async def reload(life: Life) -> None:
            async with self.one_reload:  # as one signal after the other is obeyed
                await life.daemon.reload(read)
                rate = life.daemon.delivery.dispatcher.config.per_second
                self.ceilings.append((trio.current_time(), rate))

        nursery.start_soon(self.operate, "reload", reload)

    async def do_pause(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.operate, "pause", lambda life: life.daemon.desk.pause())

    async def do_resume(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.operate, "resume", lambda life: life.daemon.desk.resume())

    async def do_retry_dead(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.operate, "retry", self._retry)

    async def _retry(self, life: Life) -> Any:
        ids = await life.daemon.outbox.read(lambda store: store.connection.execute("SELECT id FROM dead").fetchall())
        self.replayed.update(one for (one,) in ids)
        return await life.daemon.desk.archive.retry(Which(ids=[one for (one,) in ids]))

    async def do_discard(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.operate, "discard", lambda life: life.daemon.desk.archive.discard(Which()))

    async def do_forget(self, nursery: trio.Nursery, user: str) -> None:
        self.forgotten.add(user)
        nursery.start_soon(self.operate, "forget", lambda life: life.daemon.desk.archive.forget(user))

    # The end ------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """All trouble is over: everything must now be settled within the time that the rules allow."""
        self.px.healthy, self.disk.errors, self.disk.slow_until_s = True, [], 0.0
        resumed: Life | None = None
        await self.alive()
        limit_s = 3 * HOURS_S + (len(self.sent) * 4 / self.scenario.per_day + 1.1) * 24 * HOURS_S
        limit_s = limit_s if self.scenario.per_day < 1000 or "spread" in self.scenario.config else 3 * HOURS_S
        breath_s = 0.5
        with trio.move_on_after(limit_s) as patience:
            while True:
                life = await self.alive()
                if resumed is not life:
                    await self.operate("resume", lambda life: life.daemon.desk.resume())
                    resumed = life
                if resumed.daemon.store.pending() == 0 and not life.gone.is_set():
                    break
                await trio.sleep(breath_s)
                breath_s = min(breath_s * 1.5, 600.0)
        life = await self.alive()
        assert not patience.cancelled_caught, f"{life.daemon.store.pending()} events wait for ever: {self._stuck(life)}"
        self.ending = True
        life.stop.set()
        await life.ended.wait()

    def _stuck(self, life: Life) -> str:
        dispatcher = life.daemon.delivery.dispatcher
        rows = life.daemon.store.connection.execute(
            "SELECT id, state, user FROM events WHERE state < 4 LIMIT 5"
        ).fetchall()
        state = dispatcher.destination.describe(trio.current_time())
        order = dispatcher._order
        return (
            f"{rows}; {state}; items {list(order.items)[:5]}, aside {order._aside}, hungry {list(order._hungry)}, "
            f"slots {dispatcher._slots}, wants {dispatcher.wants()}, decides {dispatcher.decide(trio.current_time())}"
        )

    async def run(self) -> None:
        async with trio.open_nursery() as everything:
            everything.start_soon(self.supervise)
            async with trio.open_nursery() as script:
                await self.play(script)
                # Whoever still waits must be answered within a day: an error, and not a run without end.
                script.cancel_scope.deadline = trio.current_time() + 24 * HOURS_S
                self.px.healthy, self.disk.errors, self.disk.slow_until_s = True, [], 0.0
            assert not script.cancel_scope.cancelled_caught, "a client or an operator waits for ever"
            await self.recover()


async def _over_http(life: Life, calls: list[dict[str, Any]]) -> dict[str, Any]:
    body = json.dumps({"batch": calls}).encode()
    response = await life.routes.over_unix(Request("POST", "/v1/batch", "", [], body, "1.1", True))
    return json.loads(response.body)


async def _over_ndjson(life: Life, calls: list[dict[str, Any]]) -> dict[str, Any]:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.front.unix, theirs)
        await ours.send_all(json.dumps(calls).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            more = await ours.receive_some()
            if not more:
                raise Gone
            line += more
        nursery.cancel_scope.cancel()
    return json.loads(line)


async def _direct(life: Life, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Like a program that uses the rooms themselves."""
    opened = life.daemon.intake.open(json.dumps({"batch": calls}).encode(), "batch", None, trusted=True)
    try:
        accepted = await life.daemon.outbox.accept(opened.events)
    except SidecarError as error:
        return json.loads(life.daemon.intake.not_stored(error).body)
    return json.loads(life.daemon.intake.accepted(opened, accepted).body)


_ways = {"http": _over_http, "ndjson": _over_ndjson, "direct": _direct}


@contextmanager
def _patched(scenario: Scenario):
    """The sizes that the scenario wants, and no heartbeat: it would hide a wake-up that was forgotten."""
    knobs = scenario.knobs
    pages = knobs.get("wal_pages", 64)
    small_log = lambda _folder: pages * 4096  # noqa: E731 - a value, not a function
    wanted: list[tuple[Any, str, Any]] = [
        (sidecar.daemon, "PROOF_EVERY_S", 1e6),
        (sidecar.outbox.writer, "KEEP_INTERVAL_S", 900.0),
        (sidecar.control.limits, "ROUND_EVERY_S", 1e6),
        (sidecar.outbox.database, "wal_bytes", small_log),
        (sidecar.outbox.room, "wal_bytes", small_log),
    ]
    if knobs:
        wanted += [
            (sidecar.deliver.dispatcher, "PAGE_ROWS", knobs["page_rows"]),
            (sidecar.deliver.dispatcher, "ASIDE_ROWS", knobs["queue_max"]),
            (sidecar.deliver.dispatcher, "QUEUE_MAX", knobs["queue_max"]),
            (sidecar.deliver.dispatcher, "READY_LOW", knobs["ready_low"]),
            (sidecar.deliver.order, "QUEUE_MAX", knobs["queue_max"]),
            (sidecar.deliver.order, "WAITING_MAX", knobs["waiting_max"]),
            (sidecar.outbox.writer, "COMMIT_ROWS", knobs["commit_rows"]),
        ]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    defaults = sidecar.outbox.ids.MessageIds.__init__.__kwdefaults__
    newest = defaults["newest"]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        defaults["newest"] = knobs.get("newest_ids", newest)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        defaults["newest"] = newest


def simulate(
    scenario: Scenario,
    folder: Path,
    check: Callable[[World], None],
    watch: Callable[[World], trio.abc.Instrument] | None = None,
) -> tuple[list[str], BaseException | None]:
    """Run a scenario and check its account. Returns the log, and what was wrong if something was.

    ``watch`` gives an instrument that is told of every step of every task, and may interfere.
    """
    worlds: list[World] = []

    async def main() -> None:
        worlds.append(World(scenario, folder))
        if watch is not None:
            trio.lowlevel.add_instrument(watch(worlds[0]))
        await worlds[0].run()

    deterministic = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    try:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # as pytest-trio does for hypothesis
        scheduler._r.seed(scenario.seed)
        with _patched(scenario):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        check(worlds[0])
    except Exception as error:
        return worlds[0].lines, error
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = deterministic
    return worlds[0].lines, None

"""The simulated world: processes one after another, apps, an operator and a script, and the record of a run."""

import math
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import trio
from sim_clients import WAYS
from sim_disk import Disk, empty_outbox
from sim_operator import OPERATIONS, export_pending
from sim_process import ConnectionLost, Process, ProcessEnd
from sim_px import Px
from sim_scenario import Event, Scenario

from sidecar.clock import VirtualClock
from sidecar.config import DeliverConfig, load_text
from sidecar.errors import SidecarError
from sidecar.outbox.recovery import damage_in
from sidecar.px import Kind

__all__ = ["World"]

START_MS = 1_700_000_000_000
HOUR_S = 3_600.0
STEPS_AT_ONCE_MAX = 20_000  # steps without any time passing: a busy loop
CLIENT_BACKOFF_MAX_S = 3_600.0

_load = lru_cache(maxsize=64)(load_text)


class WorldClock(VirtualClock):
    """The clocks of the host: they go on while the process is frozen, the clock of its loop does not (``FreezeClock``)."""

    def __init__(self, world: "World", boot_id: str, booted_s: float = 10_000.0) -> None:
        super().__init__(start_wall_ms=START_MS, boot_id=boot_id, started_s=world.started_s, booted_s=booted_s)
        self._world = world

    def wall_ms(self) -> int:
        return super().wall_ms() + int(self._world.frozen_s * 1000)

    def boot_s(self) -> float:
        return super().boot_s() + self._world.frozen_s


class World:
    """Everything around the daemon, and the record of the run for the check at the end."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.rng = Random(scenario.seed ^ 0x5EED)
        self.lines: list[str] = []
        self.px = Px(Random(scenario.seed ^ 0x9A), self.log, self.now_s)
        self.px.product_of = lambda number: self.sent[number].product
        self.disk = Disk()
        self.config = _load(scenario.config)
        self.started_s = trio.current_time()
        self.frozen_s = 0.0  # time in which no process ran; it passes for everything outside
        self.clock: VirtualClock = WorldClock(self, "boot-1")
        self.boots = 1
        self.process: Process | None = None
        self.last_path = folder / "1.db"
        empty_outbox().write(self.last_path)
        self.started = trio.Event()
        self.ends: list[ProcessEnd] = []
        # Limits with the time from which they hold: the ceiling, the day's quota, and the part for normal events.
        self.ceilings: list[tuple[float, float]] = []
        self.days: list[tuple[float, float]] = []
        self.normal_days: list[tuple[float, float]] = []
        self.max_ages: set[float] = set()  # of all configurations in force
        self.max_in_flight = 0  # the largest of all configurations
        self.record_limits(self.config.deliver)
        self.answered: dict[int, str] = {}  # number -> "stored" or "refused", by the first success answer
        self.sent: dict[int, Event] = {}
        self.repeated: set[int] = set()  # numbers sent in several requests
        self.answer_orders: list[list[int]] = []  # per client: numbers in the order of their answers
        self.forgotten: set[str] = set()
        self.export_rows = 0  # rows to export between two processes
        self.moved: set[int] = set()
        self.paused = False  # by an operator, and confirmed
        self.violations: list[str] = []  # found by sim_monitor.py during the run
        self.coverage: Counter[str] = Counter()  # kind of trouble -> times
        self.stepped = False  # for good
        self.wrong_ms = 0  # by how much the wall clock is wrong for a while
        self.believed_from_s = 0.0  # what discards by age may do so from here on
        # By event id, in simulated time; overwritten where a crash undid it and the id was given again.
        self.accepted_s: dict[int, float] = {}
        self.settled_s: dict[int, float] = {}
        self.too_old_s: dict[int, float] = {}  # how old it was
        self.reload_lock = trio.Lock()
        self.clients: list[trio.CancelScope] = []
        self.unanswered = 0  # clients
        self.steps_at_once, self.step_s = 0, 0.0
        self.ending = False

    def now_s(self) -> float:
        """Return the time outside: that of the loop, and all freezes so far."""
        return trio.current_time() + self.frozen_s

    def log(self, line: str) -> None:
        self.lines.append(f"{trio.current_time() - self.started_s:12.4f}  {line}")

    def total_coverage(self) -> Counter[str]:
        """Return how often each kind of trouble occurred."""
        return (
            self.coverage
            + self.px.coverage()
            + Counter({f"disk {kind}": times for kind, times in self.disk.coverage.items()})
        )

    def count_step(self) -> None:
        """Count a step of delivery or store. Raises AssertionError if too many happen without time passing."""
        now_s = trio.current_time()
        self.steps_at_once = self.steps_at_once + 1 if now_s == self.step_s else 0
        self.step_s = now_s
        assert self.steps_at_once < STEPS_AT_ONCE_MAX, f"busy loop at {now_s - self.started_s} s"

    # Processes --------------------------------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """Run one process after another, with the down times of the script, until the end."""
        number = 1
        while True:
            self.down_s = 0.1
            try:
                self.process = Process(self, number, self.last_path)
            except (sqlite3.OperationalError, SidecarError) as error:
                if not self.disk.failed:
                    raise
                self.coverage["did not start"] += 1
                self.log(f"process {number} did not start: {error}")
                await trio.sleep(0.1)
                continue
            self.log(f"process {number} starts")
            self.record_limits(self.config.deliver)
            self.started.set()
            try:
                await self.process.run()
            finally:
                self.process.close()
            self.started = trio.Event()
            self.log(f"process {number} has ended")
            number += 1
            self.last_path = self.folder / f"{number}.db"
            if not self.ending:
                await trio.sleep(self.down_s)
            if self.ending:
                return
            if self.export_rows:
                export_pending(self)
            assert (why := damage_in(self.last_path)) is None, f"the files of a crash are reported as damaged: {why}"

    async def running_process(self) -> Process:
        """Wait until a process runs and return it."""
        await self.started.wait()
        assert self.process is not None
        return self.process

    async def operate(self, what: str, call: Callable[[Process], Awaitable[Any]]) -> Any:
        """Perform an action of the operator. A failure is logged and returns None."""
        process = await self.running_process()
        try:
            done = await process.request(partial(call, process))
        except (ConnectionLost, SidecarError) as error:
            self.log(f"{what} failed: {error!r}")
            return None
        self.log(f"{what}: {done}")
        return done

    # Clients ------------------------------------------------------------------------------------------------------

    async def client(self, way: str, events: list[Event], patience_s: float | None) -> None:
        """Send events as an app does: until they are answered, or its patience ends."""
        self.repeated.update(event.number for event in events if event.number in self.sent)
        self.sent.update((event.number, event) for event in events)
        order: list[int] = []
        self.answer_orders.append(order)
        with trio.move_on_after(float("inf") if patience_s is None else patience_s) as scope:
            self.clients.append(scope)
            await self._until_answered(way, events, order)
        self.coverage["client gave up"] += scope.cancelled_caught
        self.unanswered -= 1

    async def _until_answered(self, way: str, events: list[Event], order: list[int]) -> None:
        backoff_s = 0.02
        while True:
            process = await self.running_process()
            try:
                answer = await process.request(partial(WAYS[way], process, [event.call() for event in events]))
            except ConnectionLost:
                answer = {"success": False}
            if way in ("singles", "lines") and (self.disk.failed or self.is_small()):
                order = []  # a connection that broke off unseen may have stored some of them in another order
            if answer["success"]:
                self._answered(way, events, answer, order)
                return
            if way in ("singles", "lines"):
                order = []  # some may be stored already, before others that are sent again
                events = self._not_done(events, answer)
            self.log(f"refused: {answer}")
            self.coverage["asked again"] += 1
            self.coverage[f"refused {answer.get('code')}"] += 1
            await trio.sleep(self.rng.random() * backoff_s)
            backoff_s = min(2 * backoff_s, CLIENT_BACKOFF_MAX_S)

    def _not_done(self, events: list[Event], answer: dict[str, Any]) -> list[Event]:
        """Return the events to send again, where each event had its own answer."""
        done = answer.get("done", ())
        self.answered.update({events[index].number: "stored" for index in done if events[index].kind != "bad"})
        return [event for index, event in enumerate(events) if index not in done]

    def is_small(self) -> bool:
        """Whether the outbox can be full."""
        return self.config.outbox.max_bytes < 2**30

    def _answered(self, way: str, events: list[Event], answer: dict[str, Any], order: list[int]) -> None:
        bad = {refusal["index"] for refusal in answer.get("refused", ())}
        self.log(f"answered {[event.number for event in events]}: {answer}")
        for index, event in enumerate(events):
            assert (index in bad) == (event.kind == "bad"), answer
            if index in bad and way in ("singles", "lines"):
                continue  # a bad call sent alone is refused and not stored
            if event.number not in self.answered:
                order.append(event.number)
            self.answered.setdefault(event.number, "refused" if index in bad else "stored")

    # The script ---------------------------------------------------------------------------------------------------

    async def play(self, nursery: trio.Nursery) -> None:
        """Perform the steps at their times."""
        for step in self.scenario.steps:
            await trio.sleep_until(self.started_s + step.at_s)
            self.log(f"step {step.what} { ({k: v for k, v in step.args.items() if k != 'events'}) }")
            self.coverage[step.what] += 1
            if operation := OPERATIONS.get(step.what):
                nursery.start_soon(self.operate, step.what, partial(operation, self, **step.args))
            else:
                await getattr(self, f"do_{step.what}")(nursery, **step.args)

    async def do_send(self, nursery: trio.Nursery, way: str, events: list[Any], patience_s: float | None) -> None:
        drawn = [msgspec.convert(event, Event) for event in events]
        self.coverage.update(f"event {event.kind}" for event in drawn)
        self.coverage.update(f"app {event.app}" for event in drawn)
        self.coverage[f"way {way}"] += 1
        self.unanswered += 1
        nursery.start_soon(self.client, way, drawn, patience_s)

    async def do_px(self, nursery: trio.Nursery, **trouble: Any) -> None:
        self.px.trouble(**trouble)

    async def do_crash(self, nursery: trio.Nursery, rounds: int, down_s: float, commits: int | None = None) -> None:
        process = await self.running_process()
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        self.down_s = down_s
        if commits is not None and not process.ended.is_set():
            self.disk.cut_power(commits, process.path, self.rng)
            with trio.move_on_after(5):
                await process.unreachable.wait()
        self.coverage["crash with requests out"] += process.daemon.delivery.dispatcher.has_requests_out
        process.crash()
        await process.ended.wait()

    async def do_crash_at_lease(self, nursery: trio.Nursery, **when: Any) -> None:
        (await self.running_process()).monitor.crash_at_lease(**when)

    async def do_reboot(self, nursery: trio.Nursery, down_s: float, wrong_ms: int = 0, for_s: float = 0.0) -> None:
        await self.do_crash(nursery, 1, down_s)
        self.boots += 1
        # Wall clock as at the start, whatever steps there were, or wrong for a while.
        self.clock = WorldClock(self, f"boot-{self.boots}", booted_s=self.started_s - self.now_s())
        self.wrong_ms = 0
        self._clock_jumped()
        self.believed_from_s += down_s  # the hour begins with the boot
        if wrong_ms:
            self.coverage["clock wrong at boot"] += 1
            nursery.start_soon(self.do_wrong_clock, nursery, wrong_ms, down_s + for_s)

    async def do_wrong_clock(self, nursery: trio.Nursery, wrong_ms: int, for_s: float) -> None:
        """Let the wall clock be wrong for a while; unlike a step of ``do_clock`` this excuses nothing."""
        self.coverage["clock wrong"] += 1
        clock = self.clock
        clock.wall_step_ms += wrong_ms - self.wrong_ms
        self.wrong_ms = wrong_ms
        self._clock_jumped()
        await trio.sleep(for_s)
        if self.clock is clock and self.wrong_ms == wrong_ms:
            clock.wall_step_ms -= wrong_ms
            self.wrong_ms = 0
            self._clock_jumped()

    def _clock_jumped(self) -> None:
        # An hour after the jump is noticed, which may be with the next round of housekeeping. A jump while the host is down
        # does not shorten the hour of its next boot.
        self.believed_from_s = max(self.believed_from_s, trio.current_time() + 2 * HOUR_S)

    async def do_restart(self, nursery: trio.Nursery, down_s: float, twice_s: float | None) -> None:
        process = await self.running_process()
        self.down_s = down_s
        process.stop.set()
        if twice_s is not None:
            with trio.move_on_after(twice_s):
                await process.ended.wait()
            self.coverage["second signal"] += not process.ended.is_set()
            process.cancel()
        await process.ended.wait()

    async def do_slow_disk(self, nursery: trio.Nursery, up_to_s: float, for_s: float) -> None:
        self.disk.up_to_s, self.disk.slow_until_s = up_to_s, trio.current_time() + for_s

    async def do_disk_error(self, nursery: trio.Nursery, error: str, count: int, skip: int, anywhere: bool) -> None:
        self.disk.errors, self.disk.any_statement = [""] * skip + [error] * count, anywhere

    async def do_file_fault(self, nursery: trio.Nursery, fault: str) -> None:
        process = await self.running_process()
        if not process.unreachable.is_set() and not process.ended.is_set():
            self.disk.take_files(process.path, fault)

    async def do_freeze(self, nursery: trio.Nursery, for_s: float) -> None:
        self.frozen_s += for_s
        self.stepped |= bool(self.wrong_ms) and for_s >= HOUR_S  # a clock that stays wrong for so long is believed
        if self.process is not None:
            self.coverage["frozen with requests out"] += self.process.daemon.delivery.dispatcher.has_requests_out

    async def do_clock(self, nursery: trio.Nursery, step_ms: int) -> None:
        self.stepped = True
        self.coverage["clock back" if step_ms < 0 else "clock ahead"] += 1
        self.clock.wall_step_ms += step_ms
        self._clock_jumped()

    async def do_carry(self, nursery: trio.Nursery, rows: int) -> None:
        self.export_rows = rows
        await self.do_restart(nursery, 1.0, None)

    def record_limits(self, deliver: DeliverConfig, *, pending: bool = False) -> None:
        """Record the limits in force from now on; with ``pending`` (a reload runs) the larger of old and new."""
        for limits, limit in (
            (self.ceilings, deliver.per_second),
            (self.days, deliver.per_day),
            (self.normal_days, _normal(deliver)),
        ):
            limits.append((self.now_s(), max(limit, limits[-1][1]) if pending else limit))
        self.max_ages.add(deliver.max_age)
        self.max_in_flight = max(self.max_in_flight, deliver.max_in_flight)

    # The end ------------------------------------------------------------------------------------------------------

    def stop_faults(self) -> None:
        """Stop the faults of PX and disk."""
        self.px.healthy = True
        self.disk.stop_faults()

    async def recover(self) -> None:
        """Stop all faults; everything must now be settled within the time that the rules allow."""
        self.stop_faults()
        resumed_process: Process | None = None
        await self.running_process()
        backoff_s = 0.5
        with trio.move_on_after(self._patience_s()) as limit:
            while True:
                process = await self.running_process()
                if resumed_process is not process:
                    await self.operate("resume", partial(OPERATIONS["resume"], self))
                    resumed_process = process
                if resumed_process.daemon.store.pending() == 0 and not process.unreachable.is_set():
                    break
                if self._blocked(process):
                    self.coverage["only events that a firewall blocks"] += 1
                    self.unanswered += 1
                    await self.client("routed", [Event(max(self.sent) + 1, "track", "newcomer")], None)
                await trio.sleep(backoff_s)
                backoff_s = min(backoff_s * 1.5, 600.0)
        process = await self.running_process()
        assert not limit.cancelled_caught, (
            f"{process.daemon.store.pending()} events are not settled: {self._stuck(process)}"
        )
        self.ending = True
        process.stop.set()
        await process.ended.wait()

    def _blocked(self, process: Process) -> bool:
        """Whether delivery is paused by a firewall and every pending event would be blocked even by a healthy PX.

        Delivery cannot distinguish that from a firewall that blocks everything; it ends with the next good event.
        """
        if process.daemon.delivery.dispatcher.destination.describe(trio.current_time()).reason != Kind.FIREWALL:
            return False
        users = process.daemon.store.connection.execute("SELECT user FROM events WHERE state < 4").fetchall()
        return all(user and user.startswith("odd") for (user,) in users)

    def _patience_s(self) -> float:
        """Return the longest time, in seconds, that the pending events may take with this quota."""
        least = self.scenario.least_per_day
        if least < 1000 or self.scenario.spreads:
            return 3 * HOUR_S + (len(self.sent) * 4 / least + 1.1) * 24 * HOUR_S
        return 3 * HOUR_S

    async def _drain_full_outbox(self) -> None:
        """Free a full outbox as an operator does: resume delivery and discard dead letters until all clients are answered."""
        while self.unanswered:
            await self.operate("resume", partial(OPERATIONS["resume"], self))
            await self.operate("discard", partial(OPERATIONS["discard"], self))
            await trio.sleep(600)

    def _stuck(self, process: Process) -> str:
        dispatcher = process.daemon.delivery.dispatcher
        rows = process.daemon.store.connection.execute(
            "SELECT id, state, user FROM events WHERE state < 4 LIMIT 5"
        ).fetchall()
        state = dispatcher.destination.describe(trio.current_time())
        return f"{rows}; {state}; {dispatcher.statistics()}, wants {dispatcher.wants()}, decides {dispatcher.decide(trio.current_time())}"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.supervise)
            async with trio.open_nursery() as script:
                # A step that does not end, or a client that waits for a day, fails the run instead of hanging it.
                last_s = max((step.at_s for step in self.scenario.steps), default=0.0)
                script.cancel_scope.deadline = self.started_s + last_s + 7 * 24 * HOUR_S  # includes down times
                await self.play(script)
                script.cancel_scope.deadline = trio.current_time() + 24 * HOUR_S + self._patience_s()
                self.stop_faults()
                if self.is_small():
                    await self._drain_full_outbox()
            assert not script.cancel_scope.cancelled_caught, "a client or an operator still waits"
            await self.recover()


def _normal(deliver: DeliverConfig) -> int:
    """Return the part of the day's quota that normal events may use."""
    return deliver.per_day - math.floor(deliver.per_day * deliver.reserve_for_high)

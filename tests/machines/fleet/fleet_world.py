"""A discrete-event simulation of a fleet: real state machines, the real script in a real server, simulated time.

See README.md beside this file for what it can and cannot see.
"""

import heapq
import itertools
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from fleet_engine import SIMULATED, EngineClient

from sidecar.fleet.host import Demand, FleetHost, FleetLimits, FleetState, Hello, Process
from sidecar.fleet.record import FleetRecord, decode_record, encode_record, restore
from sidecar.fleet.wire import KEYS, ScriptCall, parse_answer
from sidecar.mapping import Priority

MICRO = 1_000_000
WALL_S = 1_700_000_000.0 // 86_400 * 86_400 + 1000  # the engine's clock when the simulation begins
LIMITS = FleetLimits(190.0, 990_000, 0.1, "rolling", False, "us key", 86_400.0)
EVER = float("inf")
BOOT = "boot"


class Sent(NamedTuple):
    """A request that left: true time, host, class, and whether the host was alone."""

    at_s: float
    host: int
    priority: Priority
    lone: bool


class SimEngine:
    """One process of the engine: a namespace of its own in the server, a clock, and its troubles."""

    count = itertools.count()

    def __init__(self, client: EngineClient, script: str) -> None:
        self.client = client
        self.sha = client.command("SCRIPT", "LOAD", script)
        assert isinstance(self.sha, bytes), self.sha
        self.run = f"run{next(self.count)}"
        self.name = f"sim{id(self)}-{self.run}"
        self.skew_s = 0.0
        self.alive = True
        self.acknowledges = True  # a replica answers WAIT
        self.frozen_until_s = 0.0
        self.calls = 0
        self.saved: list[tuple[str, bytes]] = []
        self.successor: SimEngine | None = None  # after a split that is over

    def latest(self) -> "SimEngine":
        """Return the engine that is left of it after all splits that are over, which may overlap."""
        return self if self.successor is None else self.successor.latest()

    def clock_us(self, true_s: float) -> int:
        return int((WALL_S + true_s + self.skew_s) * MICRO)

    def keys(self) -> list[str]:
        return [f"{{px:{self.name}}}:{key}" for key in KEYS]

    def wipe(self) -> None:
        self.client.command("DEL", *self.keys())

    def save(self) -> None:
        """Remember the state: what a replica has."""
        self.saved = [(key, dump) for key in self.keys() if (dump := self.client.command("DUMP", key)) is not None]

    def restore(self) -> None:
        self.wipe()
        for key, dump in self.saved:
            self.client.command("RESTORE", key, 0, dump)

    def restart(self) -> None:
        self.run = f"run{next(self.count)}"
        self.alive, self.frozen_until_s = True, 0.0

    def call(self, call: ScriptCall, true_s: float) -> Any:
        self.calls += 1
        now = self.clock_us(true_s)
        reply = self.client.command(
            *("EVALSHA", self.sha, len(KEYS), *self.keys(), *call.arguments()), now // MICRO, now % MICRO
        )
        if isinstance(reply, Exception):
            raise AssertionError(f"the script failed: {reply}")
        return parse_answer(reply) if self.acknowledges else None


class SimHost:
    """A host in the simulation: its state machine, its clock, its connection and its backlog."""

    def __init__(self, world: "FleetWorld", number: int) -> None:
        self.world, self.number = world, number
        self.random = world.random
        self.start = 0
        self.offset_s, self.drift = self.random.uniform(1000, 1e6), self.random.uniform(-50e-6, 50e-6)
        self.delay_s = world.delay_s
        self.connected = self.cut_off = self.down = False
        self.frozen_until_s = 0.0
        self.connection = 0
        self.want = Demand(normal=256)
        self.left: float = EVER  # requests to send
        self.pace = 1.0
        self.generation = 0
        self.run = ""  # of the engine's process at the other end of the connection
        self.waiting = False
        self.rows: dict[tuple[int, int], int] = {}  # what its outbox has on disk: sent by wall-clock and boot minute
        self.stored = ""  # the record in its outbox
        self.engine = world.engine
        self.machine = self.new_machine()

    def new_machine(self) -> FleetHost:
        self.start += 1
        limits, now_s = self.world.limits, self.local_s(self.world.now_s)
        rows = [(minute, BOOT, boot_minute, sent) for (minute, boot_minute), sent in self.rows.items()]
        restored = restore(decode_record(self.stored), rows, boot_id=BOOT, now_s=now_s)
        self.stored = encode_record(restored.record)
        process = Process(f"m{self.number}", self.start, f"n{self.random.random()}", f"host{self.number}")
        return FleetHost(process, lambda: limits, restored)

    def count(self) -> None:
        """Count a request that leaves, as the outbox does: in a lease that is dated a minute later."""
        now_s = self.world.now_s
        at = int((WALL_S + now_s) // 60) + 1, int(self.local_s(now_s) // 60) + 1
        self.rows[at] = self.rows.get(at, 0) + 1

    def keep_record(self, local_s: float) -> None:
        """Write the record at once."""
        record = self.machine.wanted_record(local_s, BOOT)
        if record is not None:
            self.stored = encode_record(record)
            self.machine.recorded(decode_record(self.stored))

    def local_s(self, true_s: float) -> float:
        return self.offset_s + true_s * (1 + self.drift)

    def true_s(self, local_s: float) -> float:
        return (local_s - self.offset_s) / (1 + self.drift)

    def demand(self) -> Demand:
        if self.left < 1:
            return Demand()
        return Demand(*(min(part, int(min(self.left, 1e6))) for part in self.want))

    def priority(self) -> Priority | None:
        demand = self.demand()
        for priority, count in zip((Priority.HIGH, Priority.NORMAL, Priority.LOW), demand, strict=True):
            if count:
                return priority
        return None


class FleetWorld:
    """Hosts, an engine and what happens to them; ``run`` advances true time. ``patch`` replaces text of the script."""

    def __init__(
        self,
        client: EngineClient,
        hosts: int,
        *,
        seed: int = 1,
        limits: FleetLimits = LIMITS,
        delay_s: tuple[float, float] = (0.0002, 0.003),
        script: str = SIMULATED,
        start_within_s: float = 0.5,
    ) -> None:
        self.random = Random(seed)
        self.limits = limits
        self.delay_s = delay_s
        self.script = script
        self.waits_for_replicas = True
        self.now_s = 0.0
        self.sent: list[Sent] = []
        self.engine = SimEngine(client, script)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.hosts = [SimHost(self, number) for number in range(hosts)]
        for host in self.hosts:
            self.at(self.random.uniform(0, start_within_s), lambda host=host: self._connect(host))

    def at(self, true_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (true_s, next(self._order), call))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(self._events)
            call()
        self.now_s = until_s

    # Hosts ----------------------------------------------------------------------------------------------------------

    def wake(self, host: SimHost, at_s: float | None = None) -> None:
        host.generation += 1
        generation = host.generation
        self.at(self.now_s if at_s is None else at_s, lambda: self._step(host, generation))

    def freeze(self, host: SimHost, for_s: float) -> None:
        host.frozen_until_s = self.now_s + for_s
        self.wake(host, host.frozen_until_s)

    def restart(self, host: SimHost, down_s: float) -> None:
        """Kill the process and start another one on the same outbox."""
        host.down, host.connected, host.waiting = True, False, False
        host.generation += 1

        def up() -> None:
            host.down = False
            host.machine = host.new_machine()
            self._connect(host)
            self.wake(host)

        self.at(self.now_s + down_s, up)

    def restart_in_order(self, host: SimHost, down_s: float) -> None:
        """Stop the process in order, and start another one on the same outbox."""
        local_s = host.local_s(self.now_s)
        host.machine.recorded(host.machine.leaving_record(local_s, BOOT))
        assert self.engine.call(host.machine.leave(local_s), self.now_s).outcome == "ok"
        host.stored = encode_record(FleetRecord())
        self.restart(host, down_s)

    def _frozen(self, host: SimHost, call: Callable[[], None]) -> bool:
        """If the host is frozen, do ``call`` when it is not; a process that is down does nothing."""
        if host.down:
            return True
        if self.now_s < host.frozen_until_s:
            self.at(host.frozen_until_s + self.random.uniform(0, 0.001), call)
            return True
        return False

    def _step(self, host: SimHost, generation: int) -> None:
        if generation != host.generation or self._frozen(host, lambda: self._step(host, generation)):
            return
        local_s = host.local_s(self.now_s)
        next_s = EVER
        host.keep_record(local_s)
        while (priority := host.priority()) is not None:
            ready_s = host.machine.ready_at_s(local_s, priority)
            if ready_s > local_s:
                next_s = ready_s
                break
            lone = host.machine.state(local_s) is FleetState.ALONE
            host.machine.take(local_s, priority)
            host.count()
            self.sent.append(Sent(self.now_s, host.number, priority, lone))
            host.left -= 1
        host.machine.pace = host.pace
        if host.connected and not host.waiting:
            action = host.machine.next_action(local_s, host.demand())
            if isinstance(action, float):
                next_s = min(next_s, action)
            else:
                self._send(host, action)
        if next_s < EVER:
            # A wake-up is a little late, as on a real machine.
            self.wake(host, max(self.now_s + 1e-6, host.true_s(next_s)) + self.random.expovariate(1 / 0.0005))

    # The connection -------------------------------------------------------------------------------------------------

    def _connect(self, host: SimHost) -> None:
        if self._frozen(host, lambda: self._connect(host)):
            return
        if host.connected:  # an attempt that was planned before another one succeeded
            return
        host.waiting = False
        if host.cut_off or not host.engine.alive:
            self.at(self.now_s + self.random.uniform(0.2, 1.0), lambda: self._connect(host))
            return
        host.connected, host.run = True, host.engine.run
        self.wake(host)

    def _send(self, host: SimHost, action: Hello | ScriptCall) -> None:
        sent_s, machine, engine = host.local_s(self.now_s), host.machine, host.engine
        host.waiting = True
        answered, connection = [], host.connection

        def arrive() -> None:
            if self.now_s < engine.frozen_until_s:  # a frozen engine answers queued calls later
                self.at(engine.frozen_until_s + self.random.uniform(0, 0.01), arrive)
                return
            if not engine.alive or host.cut_off or engine is not host.engine or engine.run != host.run:
                return
            if isinstance(action, Hello):
                reply = (engine.clock_us(self.now_s), engine.run)
            else:
                reply = engine.call(action, self.now_s)
            if reply is not None:
                self.at(self.now_s + self._delay(host), lambda: receive(reply))

        def receive(reply: Any) -> None:
            if host.machine is not machine or answered or host.cut_off or connection != host.connection:
                return
            if engine.run != host.run:
                return
            if self._frozen(host, lambda: receive(reply)):
                return
            answered.append(True)
            host.waiting = False
            now_s = host.local_s(self.now_s)
            if isinstance(action, Hello):
                machine.hello_answered(sent_s, now_s, *reply)
            else:
                machine.answered(sent_s, now_s, reply)
            self.wake(host)

        def give_up() -> None:
            if host.machine is not machine or answered or connection != host.connection:
                return
            if self._frozen(host, give_up):
                return
            answered.append(True)
            host.connected = False
            machine.disconnected(host.local_s(self.now_s), "The engine does not answer.")
            self.at(self.now_s + self.random.uniform(0.05, 0.5), lambda: self._connect(host))
            self.wake(host)

        self.at(self.now_s + self._delay(host), arrive)
        self.at(self.now_s + 0.5, give_up)

    def _delay(self, host: SimHost) -> float:
        return self.random.uniform(*host.delay_s)

    def break_connections(self) -> None:
        """End all connections as a process that dies does: the hosts notice at once and connect again within 20 ms."""
        for host in self.hosts:
            if host.connected:
                host.connected = False
                host.machine.disconnected(host.local_s(self.now_s), "The engine closed the connection.")
                host.connection += 1
                self.at(self.now_s + self.random.uniform(0.001, 0.02), lambda host=host: self._connect(host))

    # What came out ----------------------------------------------------------------------------------------------------

    def largest_second(self, jitter_s: float = 0.0, since_s: float = 0.0) -> int:
        """Return the most requests in any one second; with ``jitter_s`` as a receiver sees them."""
        random = Random(1)
        times = sorted(sent.at_s + random.uniform(0, jitter_s) for sent in self.sent if sent.at_s >= since_s)
        most = first = 0
        for index, at_s in enumerate(times):
            while times[first] <= at_s - 1.0:
                first += 1
            most = max(most, index - first + 1)
        return most

    def rate(self, from_s: float, until_s: float) -> float:
        return sum(from_s <= sent.at_s < until_s for sent in self.sent) / (until_s - from_s)

    def by_host(self, from_s: float, until_s: float) -> list[int]:
        counts = [0] * len(self.hosts)
        for sent in self.sent:
            if from_s <= sent.at_s < until_s:
                counts[sent.host] += 1
        return counts

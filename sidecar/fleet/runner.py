"""The task that connects the state machine to the engine, and the pace that the dispatcher asks.

``Fleet`` is thin: the state machine says what comes next, this sends it and reports what came back. The dispatcher asks
through ``ready_at_s`` and ``take`` in monotonic time; the state machine counts in ``CLOCK_BOOTTIME``, which runs on
while the host is suspended.
"""

import hashlib
import logging
import math
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

import trio

from sidecar.clock import Clock
from sidecar.config import Config, Secret
from sidecar.errors import SidecarError
from sidecar.fleet.connection import EngineAway, EngineConnection, EngineRefused, no_answer_of_redis
from sidecar.fleet.host import TIMEOUT_S, Demand, FleetHost, FleetLimits, FleetStatus, Hello, Process
from sidecar.fleet.record import FleetRecord
from sidecar.fleet.wire import Answer, ScriptCall, keys_of, members_of, parse_answer
from sidecar.mapping import Priority
from sidecar.outbox import Store

__all__ = ["Fleet", "Write", "limits_of", "load_script", "new_process"]

Write = Callable[[Callable[[Store, int], None]], Awaitable[None]]

log = logging.getLogger(__name__)

RECONNECT_S: Final = (0.1, 1.0)
RECORD_EVERY_S: Final = 1.0
PROBLEM_EVERY_S: Final = 60.0
# The engine at the other end is no longer the one to ask: a failover without a lost connection.
NOT_THE_PRIMARY: Final = ("READONLY", "MOVED", "MASTERDOWN", "CLUSTERDOWN")


def load_script() -> str:
    """Return the text of the script."""
    return resources.files(__package__).joinpath("script.lua").read_text(encoding="utf-8")


def limits_of(config: Config, key: Secret) -> FleetLimits:
    """Return the limits that all hosts of a fleet must share; the PX key goes in as a fingerprint that reveals nothing."""
    fingerprint = hashlib.sha256(f"{config.fleet.name}\0{key.reveal()}".encode()).hexdigest()[:12]
    deliver = config.deliver
    return FleetLimits(
        deliver.per_second,
        deliver.per_day,
        deliver.reserve_for_high,
        deliver.day,
        deliver.pace == "spread",
        f"{config.px.base_url or config.px.region}/{fingerprint}",
        config.fleet.forget_after,
    )


def new_process(member: str, start: int) -> Process:
    """Return the identity of this process: the outbox's, and a nonce that distinguishes two copies of it."""
    return Process(member, start, secrets.token_hex(8), socket.gethostname()[:64] or "host")


class _DeliveryLink(NamedTuple):
    """The parts of delivery and the outbox that the task needs, which are built after the fleet."""

    write: Write
    demand: Callable[[float], Sequence[int]]
    wake: Callable[[], None]


class Fleet:
    """Permission to send from the engine. ``save`` writes the record into the outbox, inside a transaction."""

    def __init__(
        self,
        machine: FleetHost,
        connection: EngineConnection,
        clock: Clock,
        save: Callable[[Store, FleetRecord], None],
        *,
        name: str,
        replicas: int,
        random: Callable[[], float],
    ) -> None:
        self.machine = machine
        self._connection = connection
        self._clock = clock
        self._save = save
        self._name, self._keys = name, keys_of(name)
        self._replicas = replicas
        self._random = random
        self._script = load_script()
        self._digest = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._changed = trio.Event()
        self._asked = (-math.inf, 0.0)
        self._late: tuple[Sequence[int], float] = ((), -math.inf)
        self._said = ("", -math.inf)
        self._failures = 0
        self._running = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()

    # For the dispatcher -------------------------------------------------------------------------------------------------

    def ready_at_s(self, now_s: float, *, priority: Priority, pace: float) -> float:
        """Return ``now_s`` if a request may leave now, else when to ask again (monotonic time)."""
        boot_s = self._boot_s(now_s)
        self._asked = (now_s, boot_s)
        self.machine.pace = pace
        ready_s = self.machine.ready_at_s(boot_s, priority)
        if ready_s > boot_s and self.machine.may_call(boot_s, priority):
            self._changed.set()
        return now_s + max(0.0, ready_s - boot_s)

    def take(self, now_s: float, *, priority: Priority) -> tuple[float, int | None]:
        """Count a request that leaves now; return until when it may leave (boot time), and the minute of its slot."""
        asked_s, boot_s = self._asked
        if asked_s != now_s:
            boot_s = self._boot_s(now_s)
        # The same reading as in ready_at_s: a slot must not become late between the question and the send.
        return self.machine.take(boot_s, priority)

    def give_back(self, minute: int | None) -> None:
        """Give back the slot of a request that did not leave; a turn of a lone host (None) stays counted."""
        if minute is not None:
            self.machine.give_back(minute)

    def is_late(self, until_s: float) -> bool:
        """Return whether a request may no longer leave: the daemon's monotonic clock leaves out the time of a freeze."""
        return self._clock.boot_s() > until_s

    def set_late(self, late: Sequence[int], until_s: float) -> None:
        """Set how many requests of each class lost their slots, since their lanes were late; they need others."""
        self._late = (late, until_s)

    def facts(self) -> dict[str, Any]:
        """Return the state as the control API shows it."""
        status = self.status()
        uncertainty_s = status.uncertainty_s if math.isfinite(status.uncertainty_s) else None
        return {
            "name": self._name,
            "state": status.state.value,
            "problem": status.problem,
            "members": status.members,
            "absent": status.absent,
            "rate": status.rate,
            "alone": status.alone,
            "used": status.used,
            "slots_held": status.held,
            "slots_granted": status.granted,
            "slots_late": status.late_slots,
            "calls": status.calls,
            "clock_uncertainty_s": uncertainty_s,
            "clone": status.clone,
        }

    def drain(self) -> None:
        """Ask for everything as high priority from now on: this process is about to end."""
        self.machine.draining = True
        self._changed.set()

    def used(self) -> int:
        """Return the requests of all hosts in this day."""
        return self.status().used

    def status(self) -> FleetStatus:
        """Return the state at this moment."""
        return self.machine.status(self._clock.boot_s())

    def _boot_s(self, monotonic_s: float) -> float:
        return self._clock.boot_s() - (self._clock.monotonic_s() - monotonic_s)

    def wanted(self, demand: Sequence[int], monotonic_s: float) -> Demand:
        """Return the demand of delivery and of the requests that lost their slots."""
        late, until_s = self._late
        return Demand(*(map(sum, zip(demand, late, strict=True)) if monotonic_s <= until_s else demand))

    # The task -----------------------------------------------------------------------------------------------------------

    async def run(self, write: Write, demand: Callable[[float], Sequence[int]], wake: Callable[[], None]) -> None:
        """Keep the connection, make the calls that the state machine wants, and keep the record, until ``leave``.

        ``write`` runs a call inside a transaction of the outbox, ``demand`` returns how many requests could leave in each
        class at a monotonic time, ``wake`` wakes the dispatcher, after new slots.
        """
        link = _DeliveryLink(write, demand, wake)
        self._ended = trio.Event()
        try:
            with self._running:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_record, link)
                    await self._keep_connection(link)
        finally:
            self._ended.set()

    async def _keep_connection(self, link: _DeliveryLink) -> None:
        try:
            while True:
                await self._stay_connected_or_report(link)
                low_s, high_s = RECONNECT_S
                self._failures += 1
                await trio.sleep(min(high_s, low_s * self._failures) * (0.5 + self._random() / 2))
        finally:
            with trio.CancelScope(shield=True):
                await self._connection.aclose()

    async def _keep_record(self, link: _DeliveryLink) -> None:
        """Write what the next process may use; a lone host sends only after that."""
        failed = False
        while True:
            record = self.machine.wanted_record(self._clock.boot_s(), self._clock.boot_id())
            if record is not None:
                failed = not await self._write_record(link.write, record, report=not failed)
                link.wake()
            await trio.sleep(RECORD_EVERY_S)

    async def _write_record(self, write: Write, record: FleetRecord, *, report: bool) -> bool:
        """Return whether it is written; the record in force is then the new one."""
        try:
            await write(lambda store, _now_ms: self._save(store, record))
        except SidecarError as error:
            if report:
                log.warning(
                    "What the fleet has promised to this host is not recorded, so nothing is sent alone: %s", error
                )
            return False
        self.machine.recorded(record)
        return True

    async def _stay_connected_or_report(self, link: _DeliveryLink) -> None:
        try:
            await self._stay_connected(link)
        except (EngineAway, EngineRefused) as error:
            self.machine.disconnected(self._clock.boot_s(), str(error))
            self._report(str(error))
            link.wake()

    async def _stay_connected(self, link: _DeliveryLink) -> None:
        info = await self._connection.connect()
        while True:
            now_s, monotonic_s = self._clock.boot_s(), self._clock.monotonic_s()
            action = self.machine.next_action(now_s, self.wanted(link.demand(monotonic_s), monotonic_s))
            if isinstance(action, Hello):
                await self._hello(info.run)
            elif isinstance(action, ScriptCall):
                await self._call(action, link)
                self._failures = 0
            else:
                await self._wait(action - now_s)

    async def _wait(self, for_s: float) -> None:
        with trio.move_on_after(max(0.0, for_s)):
            await self._changed.wait()
        self._changed = trio.Event()

    async def _hello(self, run: str) -> None:
        sent_s = self._clock.boot_s()
        engine_us = await self._connection.time_us(TIMEOUT_S)
        self.machine.hello_answered(sent_s, self._clock.boot_s(), engine_us, run)

    async def _call(self, call: ScriptCall, link: _DeliveryLink) -> None:
        sent_s = self._clock.boot_s()
        try:
            answer = await self._run_script(call)
        except EngineRefused as error:
            self.machine.call_refused(self._clock.boot_s(), str(error))
            if error.code in NOT_THE_PRIMARY:
                raise  # a new connection finds the primary that the name in fleet.url leads to by now
            self._report(str(error))
            return
        self.machine.answered(sent_s, self._clock.boot_s(), answer)
        self._report(self.machine.problem)
        # Slots may have come, or the end of a day: the dispatcher waits for either.
        link.wake()

    async def _run_script(self, call: ScriptCall) -> Answer:
        reply = await self._connection.run_script(
            self._digest, self._script, self._keys, call.arguments(), replicas=self._replicas, timeout_s=TIMEOUT_S
        )
        with no_answer_of_redis():
            return parse_answer(reply)

    async def leave(self, write: Write) -> None:
        """End ``run``, and give slots and promise back; an engine that is away keeps them set aside for the next process."""
        self._running.cancel()
        await self._ended.wait()  # it closes its connection, perhaps with a call on it
        if self.machine.can_leave(self._clock.boot_s()):
            try:
                # A connection first: if there is none the promise stays, in the ledger and in the record.
                info = await self._connection.connect()
                # Another process of the engine knows another epoch: a call in the old one would begin a further one for all.
                if not self.machine.can_leave(self._clock.boot_s(), info.run):
                    raise EngineAway(f"The engine at {self._connection.address} has restarted or failed over.")
                await self._give_back(write)
            except SidecarError as error:
                log.info("The fleet still counts this host, until it is away for fleet.forget_after: %s", error)
        await self._connection.aclose()

    async def _give_back(self, write: Write) -> None:
        record = self.machine.leaving_record(self._clock.boot_s(), self._clock.boot_id())
        if await self._write_record(write, record, report=True):
            answer = await self._run_script(self.machine.leave(self._clock.boot_s()))
            if answer.outcome == "ok":  # else what was sent alone is not reported, and the next process does that
                await self._write_record(write, FleetRecord(), report=True)

    async def members(self) -> list[dict[str, Any]]:
        """Return all members as the engine knows them, over a connection of its own. Raises SidecarError."""
        connection = self._connection.another()
        try:
            await connection.connect()
            reply = await connection.run_script(
                self._digest, self._script, self._keys, ["look"], replicas=0, timeout_s=TIMEOUT_S
            )
        finally:
            await connection.aclose()
        with no_answer_of_redis():
            return members_of(reply, self.machine.process.member)

    def _report(self, problem: str) -> None:
        """Log a problem when it is new, and from time to time while it lasts; log once when it is over."""
        said, said_s = self._said
        now_s = self._clock.boot_s()
        if problem and (problem != said or now_s >= said_s + PROBLEM_EVERY_S):
            log.warning("%s", problem)
            self._said = (problem, now_s)
        elif not problem and said:
            log.info("This host is connected to its fleet again, by the engine at %s.", self._connection.address)
            self._said = ("", now_s)

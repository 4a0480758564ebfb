"""The simulated world: lives one after the other, apps, an operator and a script, and the record of what happened."""

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
from sim_life import End, Gone, Life
from sim_operator import OPERATES, carry_away
from sim_px import Px
from sim_scenario import Event, Scenario

from sidecar.clock import VirtualClock
from sidecar.config import Deliver, load_text
from sidecar.errors import SidecarError
from sidecar.outbox.recovery import damage_in
from sidecar.px import Kind

__all__ = ["World"]

START_MS = 1_700_000_000_000
HOURS_S = 3_600.0
TURNS_MAX = 20_000  # at one time
CLIENT_BREATH_S = 3_600.0

_load = lru_cache(maxsize=64)(load_text)


class World:
    """Everything around the daemon, and the record of what happened for the account at the end."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.dice = Random(scenario.seed ^ 0x5EED)
        self.lines: list[str] = []
        self.px = Px(Random(scenario.seed ^ 0x9A), self.log)
        self.px.product_of = lambda number: self.sent[number].product
        self.disk = Disk()
        self.config = _load(scenario.config)
        self.started_s = trio.current_time()
        self.clock = VirtualClock(start_wall_ms=START_MS, started_s=self.started_s)
        self.boots = 1
        self.life: Life | None = None
        self.last_path = folder / "1.db"
        empty_outbox().write(self.last_path)
        self.begun = trio.Event()
        self.ends: list[End] = []
        # Limits, each with when it began to hold: the ceiling, the day's quota, and what of it normal events may use.
        self.ceilings: list[tuple[float, float]] = []
        self.days: list[tuple[float, float]] = []
        self.normal_days: list[tuple[float, float]] = []
        self.max_ages: set[float] = set()  # of all configurations that were in force
        self.most_allowed = 0  # in flight, of all configurations
        self.in_force(self.config.deliver)
        self.answered: dict[int, str] = {}  # number -> "stored" or "refused", by the first success answer
        self.sent: dict[int, Event] = {}
        self.repeated: set[int] = set()  # numbers that several requests carry
        self.in_order: list[list[int]] = []  # numbers in the order in which one client had them answered
        self.forgotten: set[str] = set()
        self.carry_rows = 0  # how many are to be moved to another host between two lives
        self.moved: set[int] = set()
        self.paused = False  # by an operator, who was told so
        self.wrong: list[str] = []  # what must not be, as it was seen in the moment it was (sim_watch.py)
        self.met: Counter[str] = Counter()  # what this run had of each kind of trouble
        self.stepped = False
        self.one_reload = trio.Lock()
        self.clients: list[trio.CancelScope] = []
        self.unanswered = 0  # clients
        self.turns, self.turned_s = 0, 0.0
        self.ending = False

    def log(self, line: str) -> None:
        self.lines.append(f"{trio.current_time() - self.started_s:12.4f}  {line}")

    def everything_met(self) -> Counter[str]:
        """How often this run had each kind of trouble."""
        return self.met + self.px.met() + Counter({f"disk {how}": times for how, times in self.disk.met.items()})

    def turn(self) -> None:
        """Delivery or the store does something; where time never passes meanwhile, somebody turns without end."""
        now_s = trio.current_time()
        self.turns = self.turns + 1 if now_s == self.turned_s else 0
        self.turned_s = now_s
        assert self.turns < TURNS_MAX, f"turns without end at {now_s - self.started_s} s"

    # Lives --------------------------------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """Start one life after the other, with the down times that the script asks for, until the end."""
        number = 1
        while True:
            self.down_s = 0.1
            try:
                self.life = Life(self, number, self.last_path)
            except (sqlite3.OperationalError, SidecarError) as error:
                if not self.disk.failed:
                    raise
                self.met["did not begin"] += 1
                self.log(f"life {number} did not begin: {error}")
                await trio.sleep(0.1)
                continue
            self.log(f"life {number} begins")
            self.in_force(self.config.deliver)
            self.begun.set()
            try:
                await self.life.run()
            finally:
                self.life.close()
            self.begun = trio.Event()
            self.log(f"life {number} has ended")
            number += 1
            self.last_path = self.folder / f"{number}.db"
            if not self.ending:
                await trio.sleep(self.down_s)
            if self.ending:
                return
            if self.carry_rows:
                carry_away(self)
            assert (why := damage_in(self.last_path)) is None, f"what a crash has left is called damaged: {why}"

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
        with trio.move_on_after(float("inf") if patience_s is None else patience_s) as scope:
            self.clients.append(scope)
            await self._until_answered(way, events, order)
        self.met["client gave up"] += scope.cancelled_caught
        self.unanswered -= 1

    async def _until_answered(self, way: str, events: list[Event], order: list[int]) -> None:
        breath_s = 0.02
        while True:
            life = await self.alive()
            try:
                answer = await life.ask(partial(WAYS[way], life, [event.call() for event in events]))
            except Gone:
                answer = {"success": False}
            if way in ("singles", "lines") and (self.disk.failed or self.is_small()):
                order = []  # of a connection that broke off, too, where nobody saw it
            if answer["success"]:
                self._answered(way, events, answer, order)
                return
            if way in ("singles", "lines"):
                order = []  # some of them may be stored, and come before others now
                events = self._not_done(events, answer)
            self.log(f"refused: {answer}")
            self.met["asked again"] += 1
            self.met[f"refused {answer.get('code')}"] += 1
            await trio.sleep(self.dice.random() * breath_s)
            breath_s = min(2 * breath_s, CLIENT_BREATH_S)

    def _not_done(self, events: list[Event], answer: dict[str, Any]) -> list[Event]:
        """What is to be sent again where each event had an answer of its own."""
        done = answer.get("done", ())
        self.answered.update({events[index].number: "stored" for index in done if events[index].kind != "bad"})
        return [event for index, event in enumerate(events) if index not in done]

    def is_small(self) -> bool:
        """Whether the outbox can be full."""
        return self.config.outbox.max_bytes < 2**30

    def _answered(self, way: str, events: list[Event], answer: dict[str, Any], order: list[int]) -> None:
        bad = {one["index"] for one in answer.get("refused", ())}
        self.log(f"answered {[event.number for event in events]}: {answer}")
        for index, event in enumerate(events):
            assert (index in bad) == (event.kind == "bad"), answer
            if index in bad and way in ("singles", "lines"):
                continue  # a bad call of its own is refused, and not stored
            if event.number not in self.answered:
                order.append(event.number)
            self.answered.setdefault(event.number, "refused" if index in bad else "stored")

    # The script ---------------------------------------------------------------------------------------------------

    async def play(self, nursery: trio.Nursery) -> None:
        """Perform the steps in their time."""
        for step in self.scenario.steps:
            await trio.sleep_until(self.started_s + step.at_s)
            self.log(f"step {step.what} { ({k: v for k, v in step.args.items() if k != 'events'}) }")
            self.met[step.what] += 1
            if asked := OPERATES.get(step.what):
                nursery.start_soon(self.operate, step.what, partial(asked, self, **step.args))
            else:
                await getattr(self, f"do_{step.what}")(nursery, **step.args)

    async def do_send(self, nursery: trio.Nursery, way: str, events: list[Any], patience_s: float | None) -> None:
        made = [msgspec.convert(event, Event) for event in events]
        self.met.update(f"event {event.kind}" for event in made)
        self.met.update(f"app {event.app}" for event in made)
        self.met[f"way {way}"] += 1
        self.unanswered += 1
        nursery.start_soon(self.client, way, made, patience_s)

    async def do_px(self, nursery: trio.Nursery, **trouble: Any) -> None:
        self.px.trouble(**trouble)

    async def do_crash(self, nursery: trio.Nursery, rounds: int, down_s: float, commits: int | None = None) -> None:
        life = await self.alive()
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        self.down_s = down_s
        if commits is not None and not life.ended.is_set():
            self.disk.fail_power(commits, life.path, self.dice)
            with trio.move_on_after(5):
                await life.gone.wait()
        self.met["crash with requests out"] += life.daemon.delivery.dispatcher.under_way() > 0
        life.crash()
        await life.ended.wait()

    async def do_crash_at_lease(self, nursery: trio.Nursery, **when: Any) -> None:
        (await self.alive()).watch.crash_at_lease(**when)

    async def do_reboot(self, nursery: trio.Nursery, down_s: float) -> None:
        await self.do_crash(nursery, 1, down_s)
        self.boots += 1
        # The same wall time, whatever steps there were, and the boot clock goes on: only the id tells.
        self.clock = VirtualClock(start_wall_ms=START_MS, boot_id=f"boot-{self.boots}", started_s=self.started_s)

    async def do_restart(self, nursery: trio.Nursery, down_s: float, twice_s: float | None) -> None:
        life = await self.alive()
        self.down_s = down_s
        life.stop.set()
        if twice_s is not None:
            with trio.move_on_after(twice_s):
                await life.ended.wait()
            self.met["second signal"] += not life.ended.is_set()
            life.cancel()
        await life.ended.wait()

    async def do_slow_disk(self, nursery: trio.Nursery, up_to_s: float, for_s: float) -> None:
        self.disk.up_to_s, self.disk.slow_until_s = up_to_s, trio.current_time() + for_s

    async def do_disk_error(self, nursery: trio.Nursery, error: str, count: int, skip: int, anywhere: bool) -> None:
        self.disk.errors, self.disk.any_statement = [""] * skip + [error] * count, anywhere

    async def do_clock(self, nursery: trio.Nursery, step_ms: int) -> None:
        self.stepped = True
        self.met["clock back" if step_ms < 0 else "clock ahead"] += 1
        self.clock.wall_step_ms += step_ms

    async def do_carry(self, nursery: trio.Nursery, rows: int) -> None:
        self.carry_rows = rows
        await self.do_restart(nursery, 1.0, None)

    def in_force(self, deliver: Deliver, *, perhaps: bool = False) -> None:
        """From now on these limits hold; ``perhaps``: or those that held, whichever is more."""
        for limits, limit in (
            (self.ceilings, deliver.per_second),
            (self.days, deliver.per_day),
            (self.normal_days, _normal(deliver)),
        ):
            limits.append((trio.current_time(), max(limit, limits[-1][1]) if perhaps else limit))
        self.max_ages.add(deliver.max_age)
        self.most_allowed = max(self.most_allowed, deliver.max_in_flight)

    # The end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more trouble from PX and the disk."""
        self.px.healthy = True
        self.disk.heal()

    async def recover(self) -> None:
        """All trouble is over: everything must now be settled within the time that the rules allow."""
        self.heal()
        resumed: Life | None = None
        await self.alive()
        breath_s = 0.5
        with trio.move_on_after(self._patience_s()) as patience:
            while True:
                life = await self.alive()
                if resumed is not life:
                    await self.operate("resume", partial(OPERATES["resume"], self))
                    resumed = life
                if resumed.daemon.store.pending() == 0 and not life.gone.is_set():
                    break
                if self._blocked(life):
                    self.met["only what a firewall blocks"] += 1
                    self.unanswered += 1
                    await self.client("routed", [Event(max(self.sent) + 1, "track", "newcomer")], None)
                await trio.sleep(breath_s)
                breath_s = min(breath_s * 1.5, 600.0)
        life = await self.alive()
        assert not patience.cancelled_caught, f"{life.daemon.store.pending()} events wait for ever: {self._stuck(life)}"
        self.ending = True
        life.stop.set()
        await life.ended.wait()

    def _blocked(self, life: Life) -> bool:
        """Whether delivery is paused by a firewall, with nothing left to probe but what it would block even if well.

        Nothing tells that from a firewall that blocks everything, so it lasts until the app is used again.
        """
        if life.daemon.delivery.dispatcher.destination.describe(trio.current_time()).reason != Kind.FIREWALL:
            return False
        users = life.daemon.store.connection.execute("SELECT user FROM events WHERE state < 4").fetchall()
        return all(user and user.startswith("odd") for (user,) in users)

    def _patience_s(self) -> float:
        """How long what is pending may take, at most, with this quota."""
        least = self.scenario.least_per_day
        if least < 1000 or self.scenario.spreads:
            return 3 * HOURS_S + (len(self.sent) * 4 / least + 1.1) * 24 * HOURS_S
        return 3 * HOURS_S

    async def _make_room(self) -> None:
        """What an operator does whose outbox is full: let it be delivered, and give up what was refused for good."""
        while self.unanswered:
            await self.operate("resume", partial(OPERATES["resume"], self))
            await self.operate("discard", partial(OPERATES["discard"], self))
            await trio.sleep(600)

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
                # A step that does not end, or a client that still waits a day later, is an error and not a run without end.
                last_s = max((step.at_s for step in self.scenario.steps), default=0.0)
                script.cancel_scope.deadline = self.started_s + last_s + 7 * 24 * HOURS_S  # of down times
                await self.play(script)
                script.cancel_scope.deadline = trio.current_time() + 24 * HOURS_S + self._patience_s()
                self.heal()
                if self.is_small():
                    await self._make_room()
            assert not script.cancel_scope.cancelled_caught, "a client or an operator waits for ever"
            await self.recover()


def _normal(deliver: Deliver) -> int:
    """How much of the day's quota is for events of any class."""
    return deliver.per_day - math.floor(deliver.per_day * deliver.reserve_for_high)

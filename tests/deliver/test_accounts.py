"""The account of an event is that of its acceptance: whatever delivery does, PX gets what `map` gives for the same lines.

Each history is drawn from one number: calls of few users over several connections, the answers of PX, restarts, repeats,
retried dead letters, and pending events that move to another host or back. ``--hypothesis-profile=long`` runs 20,000.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import trio
from delivery_harness import CREATED, ScriptedPx, delivering
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from sidecar.cli.map import ParsedEvent, map_events
from sidecar.config import Config, load_text
from sidecar.control.export import exported_events, mark_exported, pending_pages
from sidecar.control.outbox_admin import ExportedEvent
from sidecar.daemon import Application
from sidecar.http import Shutdown
from sidecar.mapping import compile_settings
from sidecar.outbox import Store
from sidecar.outbox.dead import DeadLetterFilter
from sidecar.px import PxAnswer, Reply, Unknown
from sidecar.receive import ClientMemory, IngestServer, Routes

RULES = """
[deliver]
retry_initial = "500ms"
retry_max = "2s"
[mapping.event.Paid]
priority = "high"
[mapping.event.Scrolled]
priority = "low"
"""
PEOPLE = '[people]\nusers = "upsert"\naccounts = "upsert"\n'
KINDS = ("identify", "group", "track", "track", "track", "track", "page")
USERS = ("ann", "ben", "cem")
BUSY = PxAnswer(503, b"{}")
NOW_MS = 1_717_700_000_000
Call = dict[str, Any]


def draw_calls(rng: Random, most: int, named: str = "") -> list[Call]:
    """Draw calls of a history in the order in which they are sent; ``named`` begins their message ids."""
    return [draw_call(rng, number, named) for number in range(rng.randrange(2, most))]


def draw_call(rng: Random, number: int, named: str) -> Call:
    kind = rng.choice(KINDS)
    call: Call = {"type": kind, "userId": rng.choice(USERS), "messageId": f"{named}m{number}"}
    call["timestamp"] = "2023-11-01T18:00:00Z"
    if kind == "group":
        call["groupId"] = f"g{rng.randrange(4)}{named}"
    if kind == "identify":
        call["traits"] = rng.choice(
            [{}, {"plan": f"p{number}"}, {"account_id": f"a{number}{named}"}, {"company": {"id": "c"}}]
        )
    if kind in ("track", "page"):
        call["properties"] = {"n": call["messageId"]}
    if kind == "track":
        call["event"] = rng.choice(["Clicked", "Clicked", "Paid", "Scrolled"])
    return call


def scripted(rng: Random, trouble: float) -> ScriptedPx:
    """A PX that refuses, fails and loses answers with the probability ``trouble``; after a while it is well."""

    def decide(event: dict[str, Any], px: ScriptedPx) -> Reply:
        if len(px.requests_s) > 150 or rng.random() >= trouble:
            return CREATED
        return rng.choice([BUSY, BUSY, Unknown("lost"), PxAnswer(400, b'{"error":"no"}')])

    return ScriptedPx(decide)


class Host:
    """One outbox and what it has accepted from apps, in the order of acceptance."""

    def __init__(self, folder: Path, rng: Random, px: ScriptedPx, config: str) -> None:
        self.folder, self.rng, self.px, self.config = folder, rng, px, config
        self.accepted: list[Call] = []
        self._read_to = 0
        folder.mkdir()

    async def live(self, calls: list[Call]) -> None:
        """Accept the calls in rounds while PX has its troubles, over lives of the process that end at any moment."""
        left = list(calls)
        while left:
            async with delivering(self.folder, self.px, self.config) as daemon:
                while left:
                    batch = [left.pop(0) for _ in range(min(len(left), self.rng.randrange(1, 8)))]
                    await self._accept(daemon, batch)
                    if self.rng.random() < 0.2:
                        await self._accept(daemon, batch)  # the app repeats what it has sent
                    if self.rng.random() < 0.1:
                        await daemon.admin.retry(DeadLetterFilter())
                    if self.rng.random() < 0.1:  # so that an export finds more than what is in flight
                        await daemon.delivery_control.pause()
                    await trio.sleep(self.rng.choice([0.0, 0.0, 0.05, 0.5, 2.0]))
                    if self.rng.random() < 0.15:
                        break

    async def _accept(self, daemon: Application, batch: list[Call]) -> None:
        """Send the calls over up to three connections at once, and read in which order they were accepted."""
        memory = ClientMemory(2**26)
        routes = Routes(daemon.parser, daemon.outbox, daemon.telemetry, {}, memory)
        parts = (daemon.parser, daemon.outbox, daemon.telemetry, memory)
        server = IngestServer(routes, *parts, max_request_bytes=2**20, shutdown=Shutdown())
        connections = self.rng.randrange(1, 4)
        async with trio.open_nursery() as nursery:
            for number in range(connections):
                nursery.start_soon(send_lines, server, batch[number::connections])
        rows = await daemon.outbox.read(self._new_rows)
        self._read_to = max([self._read_to, *(event_id for event_id, _, _ in rows)])
        self.accepted += [json.loads(body) for _, body, via in rows if via != IMPORTED]

    def _new_rows(self, store: Store) -> list[tuple[int, bytes, int]]:
        query = "SELECT id, body, via FROM events WHERE id > ? ORDER BY id"
        return store.connection.execute(query, (self._read_to,)).fetchall()

    def export(self) -> list[ExportedEvent]:
        """Move all pending events away, as `outbox export` does while no daemon runs."""
        store, lines = Store(self.folder / "outbox.db"), []
        settings = compile_settings(configured(self.config), {}, {})
        for rows in pending_pages(store):
            lines += [line for _, line in exported_events(store, rows, settings)]
            mark_exported(store, rows, NOW_MS)
        store.close()
        return msgspec.json.decode(msgspec.json.encode(lines), type=list[ExportedEvent])

    async def take_in(self, lines: list[ExportedEvent], *, back: bool) -> None:
        """Import in requests of few lines; one of them is repeated, as after a lost answer."""
        async with delivering(self.folder, self.px, self.config) as daemon:
            while lines:
                size = self.rng.randrange(1, 6)
                for _ in range(self.rng.randrange(1, 3)):
                    await daemon.admin.import_events(lines[:size], back=back)
                lines = lines[size:]

    async def settle(self) -> None:
        """Deliver everything, retried dead letters included."""
        async with delivering(self.folder, self.px, self.config) as daemon:
            self.px.decide = lambda _event, _px: CREATED
            await daemon.delivery_control.resume()
            with trio.fail_after(1e6):
                while daemon.store.pending() or any(
                    count for name, count in daemon.outbox.counters.items() if name.startswith("dead:")
                ):
                    await daemon.admin.retry(DeadLetterFilter())
                    await trio.sleep(3.0)


IMPORTED = 4  # ``Via.IMPORT``


async def send_lines(server: IngestServer, calls: list[Call]) -> None:
    """Send the calls as lines of one connection, and wait for the answers."""
    here, there = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_unix, there)
        await here.send_all(b"".join(json.dumps(call).encode() + b"\n" for call in calls))
        answers = b""
        while answers.count(b"\n") < len(calls):
            answers += await here.receive_some()
        nursery.cancel_scope.cancel()
    assert all(json.loads(answer)["success"] for answer in answers.splitlines())


def configured(config: str) -> Config:
    return load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n' + config)


def custom_events(calls: Iterable[Call], config: str) -> dict[str, Any]:
    """Return the custom events that `map` gives for the calls, by their number."""
    outcomes = map_events([ParsedEvent(json.loads(json.dumps(call))) for call in calls], configured(config), NOW_MS)
    bodies = [request["body"] for outcome in outcomes for request in outcome.get("requests", ())]
    return {body["attributes"]["n"]: body for body in bodies if "attributes" in body}


def brought_along(lines: list[ExportedEvent], before: list[Call], accepted: list[Call]) -> list[Call]:
    """Return what a host remembers by the import, as calls: what the first host ``accepted`` of users in the lines.

    Its own apps have said ``before``, and what they said of a user is not overwritten.
    """
    say = compile_settings(configured(""), {}, {}).mapper.account_said
    told = {call["userId"] for call in before if say(call)}
    moved = {line.event["userId"] for line in lines} - told
    return [call for call in accepted if call["userId"] in moved and say(call)]


@pytest.mark.whole
@given(st.integers(0, 2**32))
def test_px_gets_what_map_gives_for_the_same_lines(seed):
    rng = Random(seed)
    config = RULES + rng.choice(["", PEOPLE])
    px = scripted(rng, rng.choice([0.0, 0.1, 0.4]))
    with TemporaryDirectory() as folder:
        expected = trio.run(run_history, Path(folder), rng, px, config, clock=MockClock(autojump_threshold=0))
    stored = [event for event in px.stored if "attributes" in event]
    for event in stored:
        assert event == expected[event["attributes"]["n"]]
    assert {event["attributes"]["n"] for event in stored} == set(expected)


async def run_history(folder: Path, rng: Random, px: ScriptedPx, config: str) -> dict[str, Any]:
    """Run one history to its end, and return the custom events that PX has to get, by their number."""
    host = Host(folder / "host", rng, px, config)
    await host.live(draw_calls(rng, 40))
    if rng.random() < 0.6:
        lines = host.export()
        if rng.random() < 0.5:
            await host.take_in(lines, back=True)
            await host.live(draw_calls(rng, 15, "later "))
        else:
            return await move(host, Host(folder / "other", rng, px, config), lines)
    await host.settle()
    return custom_events(host.accepted, config)


async def move(host: Host, other: Host, lines: list[ExportedEvent]) -> dict[str, Any]:
    """Import the lines elsewhere, between calls of the other host's own apps; both go on and deliver."""
    rng = host.rng
    await other.live(draw_calls(rng, 8, "there "))
    before, told = list(other.accepted), brought_along(lines, other.accepted, host.accepted)
    await other.take_in(lines, back=False)
    await other.live(draw_calls(rng, 15, "after "))
    await host.live(draw_calls(rng, 8, "later "))
    for each_host in (host, other):
        await each_host.settle()
    after = other.accepted[len(before) :]
    return custom_events(host.accepted, host.config) | custom_events([*before, *told, *after], host.config)

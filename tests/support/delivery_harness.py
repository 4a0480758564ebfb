"""The whole daemon under virtual time: the real outbox and dispatcher, and a PX that a function scripts."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio

from sidecar.clock import VirtualClock
from sidecar.config import load_text
from sidecar.daemon import Application, Seams, build, serve
from sidecar.outbox import InlineRunner, NewEvent, Store
from sidecar.px import PxAnswer, PxRequest, Reply, Unknown
from sidecar.px.key_renewal import KeyRenewal
from sidecar.px.network import FakeNetwork

CREATED = PxAnswer(201, b"{}")
LOST = Unknown("lost")
LATENCY_S = 0.1
CEILING = 190


class ScriptedPx:
    """A PX that answers as ``decide`` says and keeps what it stored, with the virtual time of each request."""

    def __init__(self, decide: Callable[[dict, "ScriptedPx"], Reply]) -> None:
        self.decide = decide
        self.requests_s: list[float] = []
        self.stored: list[dict] = []

    async def answer(self, request: PxRequest) -> Reply:
        event = json.loads(request.body)
        self.requests_s.append(trio.current_time())
        reply = self.decide(event, self)
        if reply == CREATED:
            self.stored.append(event)
        await trio.sleep(LATENCY_S)
        if reply == LOST:
            self.stored.append(event)
        return reply


def create_all(_event: dict, _px: ScriptedPx) -> Reply:
    return CREATED


def new_event(number: int, user: str) -> NewEvent:
    body = {
        "type": "track",
        "event": "Logged In",
        "userId": user,
        "messageId": f"m{number}",
        "properties": {"n": number},
    }
    return NewEvent(0, False, user, f"m{number}", json.dumps(body).encode(), kind="track", name="Logged In")


def number_of(stored: dict) -> int:
    return stored["attributes"]["n"]


def make_daemon(folder: Path, px: ScriptedPx, config: str = "", key: KeyRenewal | None = None) -> Application:
    return build(
        load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n' + config),
        Seams(
            store=Store(folder / "outbox.db"),
            network=FakeNetwork(px.answer),
            clock=VirtualClock(started_s=trio.current_time()),
            runner=InlineRunner(),
            random=Random(1),
            key=key,
        ),
    )


@asynccontextmanager
async def delivering(
    folder: Path, px: ScriptedPx, config: str = "", key: KeyRenewal | None = None
) -> AsyncIterator[Application]:
    """Run a daemon on the outbox in ``folder``; it stops at the end."""
    daemon = make_daemon(folder, px, config, key)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, daemon, stop.wait)
        yield daemon
        stop.set()
    daemon.store.close()


async def wait_until_settled(daemon: Application) -> None:
    with trio.fail_after(1e6):
        while daemon.store.pending():
            await trio.sleep(1.0)


def first_arrivals(px: ScriptedPx) -> dict[str, list[int]]:
    """Return for each user the numbers of its events, in the order in which they arrived first."""
    arrivals: dict[str, list[int]] = defaultdict(list)
    seen: set[int] = set()
    for event in px.stored:
        if number_of(event) not in seen:
            seen.add(number_of(event))
            arrivals[event["identifyId"]].append(number_of(event))
    return arrivals


def most_in_a_second(times_s: list[float]) -> int:
    """Return the largest number of times in any half-open second; ``times_s`` are in order."""
    most = first = 0
    for last, at_s in enumerate(times_s):
        while times_s[first] <= at_s - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most

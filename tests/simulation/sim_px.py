"""A model of PX: what it answers, when, and what it then has. It judges by what it gets and shares no code with us."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import trio

from sidecar.px import Answer, NotSent, Reply, Request, Unknown

__all__ = ["NOT_PROCESSED", "RETRY_AFTER", "Arrival", "Departure", "Px"]

JSON, HTML = "application/json", "text/html; charset=utf-8"
CREATED = Answer(201, b"{}", content_type=JSON)
OOPS = b'{"errorMessage":"attributes are bad"}'
HANG_S = 30.0  # when a lane has waited long enough (deliver.timeout)
# What PX has not processed, by what it means for the event; one of the answers is thrown.
NOT_PROCESSED: dict[str, tuple[Answer | Unknown, ...]] = {
    "later": (
        *(
            Answer(500, b"oops"),
            Answer(502, b"<html>bad gateway</html>", content_type=HTML),
            Answer(503, b"", cut=True),
        ),
        *(Answer(504), Answer(408), Answer(425, b"{}", content_type=JSON)),
    ),
    "too_fast": (Answer(429, b"{}", content_type=JSON),),
    "busy": (Answer(503, b"busy"), Answer(408, b"busy")),
    "wrong_key": (Answer(401, b"{}", content_type=JSON), Answer(403, b"{}", content_type=JSON)),
    "firewall": (Answer(403, b"<html>blocked</html>", content_type=HTML), Answer(403, b"<!doctype html>")),
    "wrong_region": (Answer(404, b"nothing here"), Answer(301), Answer(402), Answer(405), Answer(407)),
    "refused": tuple(Answer(status, OOPS, content_type=JSON) for status in (400, 409, 410, 413, 415, 422)),
    "garbage": (Answer(999, b"\x00"), Answer(199)),
    "reset": (Unknown("reset before it was processed"),),
}
RETRY_AFTER = (
    *("0", "1", "30", "600", "86400", "-5", "soon", ""),
    *("Wed, 21 Oct 2015 07:28:00 GMT", "Tue, 14 Nov 2023 22:20:00 GMT", "Thu, 16 Nov 2023 00:00:00 GMT"),
)


class Departure(NamedTuple):
    """A request that left, for the event with this id in the outbox."""

    at_s: float
    event_id: int


class Arrival(NamedTuple):
    """A request that reached PX; ``account`` is the one that a custom event came with."""

    at_s: float
    event_id: int
    is_event: bool
    account: str | None


class Px:
    """Answers requests. ``which`` tells the outbox id of a request, for the account only.

    ``sent`` are all requests that left, those that never arrived included: all of them count.
    """

    def __init__(self, dice: Random, log: Callable[[str], None]) -> None:
        self.which: Callable[[Request], int] = lambda _request: 0
        self.product_of: Callable[[int], str] = lambda _number: ""  # the property key that a number should come with
        self.sent: list[Departure] = []
        self.arrivals: list[Arrival] = []
        self.first_seen: dict[int, int] = {}  # event id -> place in arrivals
        self.first_stored: dict[int, int] = {}  # event id -> place in arrivals when it was stored
        self.stored: Counter[int] = Counter()  # number -> times
        self.answered: dict[int, Counter[str]] = defaultdict(Counter)  # event id -> kinds of answers
        self.last_call: dict[int, str] = {}  # event id -> how its last request was answered
        self.ambiguous: Counter[int] = Counter()  # event id -> answers lost
        self.kinds: Counter[str] = Counter()  # what was answered, for the account of what was tried at all
        self.users: set[str] = set()
        self.accounts: set[str] = set()
        self.healthy = False
        self.fault_at: tuple[int, str] | None = None  # the request with this number meets this fault
        self._dice = dice
        self._log = log
        self._troubles: list[tuple[float, list[str], float, bool]] = []

    def met(self) -> Counter[str]:
        """How often each kind of answer was given."""
        return Counter({f"px {kind}": times for kind, times in self.kinds.items()})

    def trouble(self, faults: list[str], share: float, for_s: float, waits: bool) -> None:
        """From now on for a while some requests meet one of the faults."""
        self._troubles.append((trio.current_time() + for_s, faults, share, waits))

    async def answer(self, request: Request) -> Reply:
        """The answer to a request; what PX stores it stores at once or a little later."""
        event_id = self.which(request)
        self.sent.append(Departure(trio.current_time(), event_id))
        fault, waits = self._fault()
        how = self._poisoned(request) or fault
        if how == "away":
            await trio.sleep(self._dice.choice((0, 0.01, 3)))
            return self._said(event_id, "away", NotSent("connection refused"))
        body = json.loads(request.body)
        self._arrived(event_id, request, body)
        latency_s = self._dice.choice((0.0, 0.005, 0.1, 0.3)) if how != "late" else 20.0
        early = self._dice.random() < 0.5
        processed = how not in NOT_PROCESSED
        reply = self._process(event_id, request, body) if processed and early else None
        await trio.sleep(latency_s)
        if processed:
            return await self._answered(event_id, how, reply or self._process(event_id, request, body))
        if how == "reset" and self._dice.random() < 0.3:
            await trio.sleep(HANG_S)
        self.ambiguous[event_id] += how in ("reset", "garbage")
        return self._said(event_id, how, self._with_retry_after(how, waits))

    async def _answered(self, event_id: int, how: str, reply: Answer) -> Reply:
        """What comes of the answer to a request that PX has processed."""
        if how in ("hang", "drip"):
            await trio.sleep(HANG_S)
        self.kinds[how] += how in ("late", "drip")
        if how in ("lost", "hang"):
            self.ambiguous[event_id] += 1
            return self._said(event_id, how, Unknown("the answer was lost"))
        if how == "drip":
            reply = Answer(reply.status, reply.body[:1], content_type=reply.content_type, cut=True)
        return self._said(event_id, f"{reply.status}", reply)

    def _with_retry_after(self, how: str, waits: bool) -> Reply:
        said = self._dice.choice(NOT_PROCESSED[how])
        if not isinstance(said, Answer):
            return said
        self.kinds[f"status {said.status}"] += 1
        if how != "busy" and not (how == "too_fast" and waits):
            return said
        after = self._dice.choice(RETRY_AFTER)
        self.kinds[f"retry-after {after}"] += 1
        return Answer(said.status, said.body, retry_after=after, content_type=said.content_type)

    def _said(self, event_id: int, how: str, reply: Reply) -> Reply:
        self.kinds[how] += 1
        self.answered[event_id][how] += 1
        self.last_call[event_id] = how
        self._log(f"px answers {how} for event {event_id}")
        return reply

    def _fault(self) -> tuple[str, bool]:
        now_s = trio.current_time()
        if self.fault_at is not None and self.fault_at[0] == len(self.sent):
            return self.fault_at[1], False
        self._troubles = [one for one in self._troubles if one[0] > now_s]
        if not self.healthy:
            for _, faults, share, waits in self._troubles:
                if self._dice.random() < share:
                    return self._dice.choice(faults), waits
        return "", False

    def _poisoned(self, request: Request) -> str:
        for kind in ("refused", "firewall"):
            if b'"poison":"%b"' % kind.encode() in request.body:
                return kind
        return ""

    def _arrived(self, event_id: int, request: Request, body: dict) -> None:
        is_event = request.path == "/v1/events/custom"
        number = body["attributes"]["n"] if is_event else None
        self.first_seen.setdefault(event_id, len(self.arrivals))
        self.arrivals.append(Arrival(trio.current_time(), event_id, is_event, body.get("accountId")))
        self._log(f"px gets {request.method} {request.path} for event {event_id}, number {number}")

    def _process(self, event_id: int, request: Request, body: dict) -> Answer:
        if request.path == "/v1/events/custom":
            assert body["identifyId"]
            assert isinstance(body["date"], int)
            assert not math.isnan(body["date"])
            number = body["attributes"]["n"]
            assert body["propertyKey"] == self.product_of(number), body
            self.stored[number] += 1
            self.first_stored.setdefault(event_id, len(self.arrivals))
            return CREATED
        there, key = (self.users, "identifyId") if request.path.startswith("/v1/users") else (self.accounts, "id")
        if request.method == "PUT":
            self.first_stored.setdefault(event_id, len(self.arrivals))
            who = request.path.rpartition("/")[2]
            return Answer(204) if who in there else Answer(404, b"{}", content_type=JSON)
        if body[key] in there:
            return Answer(400, b'{"errorMessage":"Duplicate"}', content_type=JSON)
        there.add(body[key])
        return CREATED

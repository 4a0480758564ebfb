"""A model of PX: its answers, their delays, and what it stores. It shares no code with the product."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import trio

from sidecar.px import NotSent, PxAnswer, PxRequest, Reply, Unknown

__all__ = ["NOT_PROCESSED", "RETRY_AFTER", "Arrival", "Departure", "Px"]

JSON, HTML = "application/json", "text/html; charset=utf-8"
CREATED = PxAnswer(201, b"{}", content_type=JSON)
OOPS = b'{"errorMessage":"attributes are bad"}'
HANG_S = 30.0  # deliver.timeout: the lane gives up
# Answers to requests that PX has not processed, by kind of fault; one of the answers is drawn.
NOT_PROCESSED: dict[str, tuple[PxAnswer | Unknown, ...]] = {
    "later": (
        *(
            PxAnswer(500, b"oops"),
            PxAnswer(502, b"<html>bad gateway</html>", content_type=HTML),
            PxAnswer(503, b"", cut=True),
        ),
        *(PxAnswer(504), PxAnswer(408), PxAnswer(425, b"{}", content_type=JSON)),
    ),
    "too_fast": (PxAnswer(429, b"{}", content_type=JSON),),
    "busy": (PxAnswer(503, b"busy"), PxAnswer(408, b"busy")),
    "wrong_key": (PxAnswer(401, b"{}", content_type=JSON), PxAnswer(403, b"{}", content_type=JSON)),
    "firewall": (PxAnswer(403, b"<html>blocked</html>", content_type=HTML), PxAnswer(403, b"<!doctype html>")),
    "wrong_region": (PxAnswer(404, b"nothing here"), PxAnswer(301), PxAnswer(402), PxAnswer(405), PxAnswer(407)),
    "refused": tuple(PxAnswer(status, OOPS, content_type=JSON) for status in (400, 409, 410, 413, 415, 422)),
    "garbage": (PxAnswer(999, b"\x00"), PxAnswer(199)),
    "reset": (Unknown("reset before it was processed"),),
}
RETRY_AFTER = (
    *("0", "1", "30", "600", "86400", "-5", "soon", ""),
    *("Wed, 21 Oct 2015 07:28:00 GMT", "Tue, 14 Nov 2023 22:20:00 GMT", "Thu, 16 Nov 2023 00:00:00 GMT"),
)


class Departure(NamedTuple):
    """A request sent for the event with this id in the outbox."""

    at_s: float
    event_id: int


class Arrival(NamedTuple):
    """A request that reached PX; ``account`` is the accountId of a custom event."""

    at_s: float
    event_id: int
    is_event: bool
    account: str | None


class Px:
    """The model. ``event_of_request`` maps a request to its outbox id, for the records of the check only.

    ``sent`` holds all requests sent, including those that never arrived: all of them count against the limits.
    """

    def __init__(self, rng: Random, log: Callable[[str], None], now_s: Callable[[], float]) -> None:
        self.event_of_request: Callable[[PxRequest], int] = lambda _request: 0
        self.product_of: Callable[[int], str] = lambda _number: ""  # number -> the property key it must come with
        self.sent: list[Departure] = []
        self.arrivals: list[Arrival] = []
        self.first_seen: dict[int, int] = {}  # event id -> index in arrivals
        self.first_stored: dict[int, int] = {}  # event id -> index in arrivals when it was stored
        self.stored: Counter[int] = Counter()  # number -> times
        self.answered: dict[int, Counter[str]] = defaultdict(Counter)  # event id -> kinds of answers
        self.last_call: dict[int, str] = {}  # event id -> kind of the last answer
        self.ambiguous: Counter[int] = Counter()  # event id -> answers lost
        self.kinds: Counter[str] = Counter()  # kind of answer -> times, for the coverage
        self.users: set[str] = set()
        self.accounts: set[str] = set()
        self.healthy = False
        self.fault_at: tuple[int, str] | None = None  # (number of a request, fault it meets)
        self._rng = rng
        self._log = log
        self._now_s = now_s
        self._troubles: list[tuple[float, list[str], float, bool]] = []

    def coverage(self) -> Counter[str]:
        """Return how often each kind of answer was given."""
        return Counter({f"px {kind}": times for kind, times in self.kinds.items()})

    def trouble(self, faults: list[str], share: float, for_s: float, waits: bool) -> None:
        """For the next ``for_s`` seconds let a ``share`` of the requests meet one of the faults."""
        self._troubles.append((trio.current_time() + for_s, faults, share, waits))

    async def answer(self, request: PxRequest) -> Reply:
        """Answer a request; an event is stored at once or after the latency."""
        event_id = self.event_of_request(request)
        self.sent.append(Departure(self._now_s(), event_id))
        fault, waits = self._fault()
        outcome = self._poisoned(request) or fault
        if outcome == "away":
            await trio.sleep(self._rng.choice((0, 0.01, 3)))
            return self._reply(event_id, "away", NotSent("connection refused"))
        body = json.loads(request.body)
        self._arrived(event_id, request, body)
        latency_s = self._rng.choice((0.0, 0.005, 0.1, 0.3)) if outcome != "late" else 20.0
        early = self._rng.random() < 0.5
        processed = outcome not in NOT_PROCESSED
        reply = self._process(event_id, request, body) if processed and early else None
        await trio.sleep(latency_s)
        if processed:
            return await self._answered(event_id, outcome, reply or self._process(event_id, request, body))
        if outcome == "reset" and self._rng.random() < 0.3:
            await trio.sleep(HANG_S)
        self.ambiguous[event_id] += outcome in ("reset", "garbage")
        return self._reply(event_id, outcome, self._with_retry_after(outcome, waits))

    async def _answered(self, event_id: int, outcome: str, reply: PxAnswer) -> Reply:
        """Return, lose or cut the answer to a request that PX has processed."""
        if outcome in ("hang", "drip"):
            await trio.sleep(HANG_S)
        self.kinds[outcome] += outcome in ("late", "drip")
        if outcome in ("lost", "hang"):
            self.ambiguous[event_id] += 1
            return self._reply(event_id, outcome, Unknown("the answer was lost"))
        if outcome == "drip":
            reply = PxAnswer(reply.status, reply.body[:1], content_type=reply.content_type, cut=True)
        return self._reply(event_id, f"{reply.status}", reply)

    def _with_retry_after(self, outcome: str, waits: bool) -> Reply:
        answer = self._rng.choice(NOT_PROCESSED[outcome])
        if not isinstance(answer, PxAnswer):
            return answer
        self.kinds[f"status {answer.status}"] += 1
        if outcome != "busy" and not (outcome == "too_fast" and waits):
            return answer
        after = self._rng.choice(RETRY_AFTER)
        self.kinds[f"retry-after {after}"] += 1
        return PxAnswer(answer.status, answer.body, retry_after=after, content_type=answer.content_type)

    def _reply(self, event_id: int, outcome: str, reply: Reply) -> Reply:
        self.kinds[outcome] += 1
        self.answered[event_id][outcome] += 1
        self.last_call[event_id] = outcome
        self._log(f"px answers {outcome} for event {event_id}")
        return reply

    def _fault(self) -> tuple[str, bool]:
        now_s = trio.current_time()
        if self.fault_at is not None and self.fault_at[0] == len(self.sent):
            return self.fault_at[1], False
        self._troubles = [trouble for trouble in self._troubles if trouble[0] > now_s]
        if not self.healthy:
            for _, faults, share, waits in self._troubles:
                if self._rng.random() < share:
                    return self._rng.choice(faults), waits
        return "", False

    def _poisoned(self, request: PxRequest) -> str:
        for kind in ("refused", "firewall"):
            if b'"poison":"%b"' % kind.encode() in request.body:
                return kind
        return ""

    def _arrived(self, event_id: int, request: PxRequest, body: dict) -> None:
        is_event = request.path == "/v1/events/custom"
        number = body["attributes"]["n"] if is_event else None
        self.first_seen.setdefault(event_id, len(self.arrivals))
        self.arrivals.append(Arrival(self._now_s(), event_id, is_event, body.get("accountId")))
        self._log(f"px gets {request.method} {request.path} for event {event_id}, number {number}")

    def _process(self, event_id: int, request: PxRequest, body: dict) -> PxAnswer:
        if request.path == "/v1/events/custom":
            assert body["identifyId"]
            assert isinstance(body["date"], int)
            assert not math.isnan(body["date"])
            number = body["attributes"]["n"]
            assert body["propertyKey"] == self.product_of(number), body
            self.stored[number] += 1
            self.first_stored.setdefault(event_id, len(self.arrivals))
            return CREATED
        existing, key = (self.users, "identifyId") if request.path.startswith("/v1/users") else (self.accounts, "id")
        if request.method == "PUT":
            self.first_stored.setdefault(event_id, len(self.arrivals))
            identifier = request.path.rpartition("/")[2]
            return PxAnswer(204) if identifier in existing else PxAnswer(404, b"{}", content_type=JSON)
        if body[key] in existing:
            return PxAnswer(400, b'{"errorMessage":"Duplicate"}', content_type=JSON)
        existing.add(body[key])
        return CREATED

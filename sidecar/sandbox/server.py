"""The routes of the sandbox: PX's own, and the control paths below ``/sandbox/``."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs

import msgspec
import trio

from sidecar.clock import Clock, SystemClock
from sidecar.http import Hangup, Raw, Request, Response, Shutdown, serve, serve_connection
from sidecar.sandbox.faults import Faults, choose_fault, fault_of_event, retry_after_header
from sidecar.sandbox.journal import ANSWER_DROPPED, STORED, Journal, LogEntry
from sidecar.sandbox.judge import (
    MAX_ATTRIBUTES,
    JudgeAnswer,
    JudgeRules,
    decode,
    judge_event,
    judge_key,
    judge_permission,
    px_error,
)
from sidecar.sandbox.open_answers import OpenAnswers, decide
from sidecar.sandbox.people import PeopleStore
from sidecar.sandbox.reading import read_events
from sidecar.sandbox.report import Report, arrivals_since, make_report

__all__ = ["DEFAULT_KEY", "READ_ONLY_KEY", "Sandbox", "free_ports", "serve_sandbox"]

DEFAULT_KEY = "sandbox-key"
READ_ONLY_KEY = "sandbox-read-only"

_MAX_CONNECTIONS = 2_000
_EVENTS = "/v1/events/custom"
_MODELS = ("/v1/admin/model/user/attributes", "/v1/admin/model/account/attributes")
_DAY_S = 86_400.0
_MAX_LOG_PAGE = 10_000

Reply = Response | Hangup | Raw


class Sandbox:
    """A PX subscription in memory, with its requests in a file. The package's docstring is the overview.

    ``per_second`` and ``per_day`` are the limits on the requests of the last second and the last 24 hours, above which
    429 is answered; refused requests count too, and 0 disables a limit. An empty ``property_keys`` accepts any
    ``AP-…``. ``state`` is the file with which a killed sandbox continues. ``seed`` is for the random faults. Raises
    OSError if the state file cannot be opened.
    """

    def __init__(
        self,
        *,
        keys: Sequence[str] = (DEFAULT_KEY,),
        read_only_keys: Sequence[str] = (READ_ONLY_KEY,),
        property_keys: Sequence[str] = (),
        per_second: int = 200,
        per_day: int = 1_000_000,
        faults: Faults | None = None,
        open_answers: OpenAnswers | None = None,
        state: Path | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.rules = JudgeRules(
            keys=frozenset(keys), read_only_keys=frozenset(read_only_keys), property_keys=frozenset(property_keys)
        )
        self.per_second = per_second
        self.per_day = per_day
        self.clock = clock or SystemClock()
        self.journal = Journal(state, self.clock.boot_s())
        self.open_answers = open_answers or OpenAnswers()
        self.people = PeopleStore(self.rules, self.open_answers)
        self._event_ids: set[str] = set()
        self.errors: list[BaseException] = []
        self._rng = Random(seed)  # noqa: S311 - faults need repeatable numbers, not secret ones
        self.set_faults(faults or Faults())
        self._replay_people()
        if self.open_answers.repeated_event_id != "store":
            self._event_ids.update(event["eventId"] for event in self.events if "eventId" in event)

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self._faults

    def set_faults(self, faults: Faults) -> None:
        """Replace all faults; the times of their outages start now."""
        self._faults = faults
        self._faults_set_s = self.clock.boot_s()

    @property
    def events(self) -> list[dict[str, Any]]:
        """All stored events in order of arrival, repetitions included, read back from the file."""
        return [self.journal.event(index) for index in self.journal.stored()]

    def log(self, start: int = 0, stop: int | None = None) -> list[LogEntry]:
        """Return the requests ``start`` to ``stop`` of the log."""
        return [self.journal.entry(index) for index in range(*slice(start, stop).indices(len(self.journal)))]

    def report(self, key: str | None = None) -> Report:
        """Return the figures. ``key``, such as ``attributes.seq``, identifies events; without it their bodies do."""
        users, accounts = len(self.people.users), len(self.people.accounts)
        return make_report(self.journal, key=key, users=users, accounts=accounts)

    def reset(self) -> None:
        """Forget requests, events, users and accounts; faults and limits stay."""
        self.journal.clear()
        self.people = PeopleStore(self.rules, self.open_answers)
        self._event_ids.clear()

    def close(self) -> None:
        """Close the journal's file."""
        self.journal.close()

    async def connection(self, stream: trio.abc.Stream, *, shutdown: Shutdown | None = None) -> None:
        """Serve one connection on any kind of stream, and close it."""
        await serve_connection(
            stream, self.handle, shutdown=shutdown, on_error=lambda raised, _: self.errors.append(raised)
        )

    async def handle(self, request: Request) -> Reply:
        """Answer one request to PX or to the control paths."""
        if request.path.startswith("/sandbox/"):
            return self._control(request)
        arrival_s = self.clock.boot_s()
        fault = choose_fault(self._faults, arrival_s - self._faults_set_s, self._rng)
        if fault in ("refuse", "hang"):
            self._record(arrival_s, request, 0, 0, None)
            return Hangup(reset=True) if fault == "refuse" else Raw(_never())
        date_ms: int | None = None
        if fault == "503":
            answer = px_error(503, "Service unavailable (sandbox outage)")
        elif fault == "error":
            answer = self._faults.error_answer(self._faults.error_status)
        else:
            answer, date_ms = self._judge(request, arrival_s)
        flags = STORED if date_ms is not None else 0
        if flags and self._occurs(self._faults.dropped_answers):
            flags |= ANSWER_DROPPED
        # Recorded before the delay: the request has taken effect, even if the client gives up during the wait.
        self._record(arrival_s, request, answer.status, flags, date_ms)
        delay_s = self._faults.delay_s(self._rng)
        if delay_s > 0:
            await trio.sleep(delay_s)
        return self._reply(answer, flags)

    def _reply(self, answer: JudgeAnswer, flags: int) -> Reply:
        faults = self._faults
        if flags & ANSWER_DROPPED:
            return Hangup(reset=True)
        if self._occurs(faults.garbage):
            return Raw(_once(b"\x15\x03\x01 this is not HTTP\r\n\r\n"))
        body = _drip(answer.body, faults.drip_s) if faults.drip_s > 0 and answer.body else answer.body
        headers = retry_after_header(faults, answer.status, self.clock.wall_ms())
        return Response(answer.status, body, answer.content_type, headers)

    def _judge(self, request: Request, arrival_s: float) -> tuple[JudgeAnswer, int | None]:
        """Return PX's answer, and the date of the event if one is to be stored."""
        key_header = request.header(b"x-aptrinsic-api-key")
        key = key_header.decode("latin-1") if key_header is not None else None
        refusal = judge_key(key, self.rules) or self._over_limit(arrival_s)
        if refusal is None and request.method != "GET":
            refusal = judge_permission(key, self.rules)
        if refusal is not None:
            return refusal, None
        if request.path == _EVENTS:
            return self._events_call(request)
        if request.path in _MODELS and request.method == "GET":
            declared = [{"name": name, "state": "ENABLED"} for name in self.open_answers.declared_traits]
            return JudgeAnswer(200, msgspec.json.encode(declared)), None
        answer = self.people.answer(request.method, request.path, request.body)
        return answer or px_error(404, f"No endpoint {request.method} {request.path}"), None

    def _events_call(self, request: Request) -> tuple[JudgeAnswer, int | None]:
        if request.method == "GET":
            return read_events(self.journal, request.query, self.clock.wall_ms()), None
        if request.method != "POST":
            return px_error(405, f"Request method '{request.method}' is not supported"), None
        event = decode(request.body)
        if isinstance(event, JudgeAnswer):
            return event, None
        faults = self._faults
        refusal = None
        if faults.firewall_names or faults.fail_users:
            refusal = fault_of_event(faults, event.get("eventName"), event.get("identifyId"))
        refusal = refusal or judge_event(self._within_cap(event), self.rules)
        if refusal is not None:
            return refusal, None
        body = b'{"body":{},"statusCode":201,"statusCodeValue":201}'
        date_ms = event.get("date", self.clock.wall_ms())
        if self.open_answers != OpenAnswers():
            decision = self._decide(request, event)
            return (
                (decision, None)
                if isinstance(decision, JudgeAnswer)
                else (JudgeAnswer(201, body), date_ms if decision == "store" else None)
            )
        return JudgeAnswer(201, body), date_ms

    def _within_cap(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event as far as the contract judges it: without its attributes if their number is an open question."""
        attributes = event.get("attributes")
        if self.open_answers.many_attributes == "refuse" or not isinstance(attributes, dict):
            return event
        return event | {"attributes": dict(list(attributes.items())[:MAX_ATTRIBUTES])}

    def _decide(self, request: Request, event: dict[str, Any]) -> JudgeAnswer | str:
        decision = decide(
            self.open_answers, event, now_ms=self.clock.wall_ms(), users=self.people.users, event_ids=self._event_ids
        )
        if not isinstance(decision, JudgeAnswer):
            request.body = msgspec.json.encode(event)  # as it was cut
            if "eventId" in event:
                self._event_ids.add(event["eventId"])
        return decision

    def _over_limit(self, arrival_s: float) -> JudgeAnswer | None:
        arrivals = self.journal.columns.arrival_s
        for limit, width_s, name in ((self.per_second, 1.0, "second"), (self.per_day, _DAY_S, "day")):
            if limit and arrivals_since(arrivals, arrival_s - width_s) >= limit:
                return px_error(429, f"Rate limit exceeded: {limit} requests per {name}")
        return None

    def _record(self, arrival_s: float, request: Request, status: int, flags: int, date_ms: int | None) -> None:
        method, path, body = request.method, request.path, request.body
        self.journal.append(arrival_s, method, path, body, status, flags, date_ms or 0)

    def _occurs(self, rate: float) -> bool:
        return rate > 0 and self._rng.random() < rate

    def _replay_people(self) -> None:
        """Rebuild users and accounts from the successful requests of an earlier run."""
        for method, path, status, body in self.journal.requests():
            if method != "GET" and status in (201, 204) and path != _EVENTS:
                self.people.answer(method, path, body)

    def _control(self, request: Request) -> Response:
        query = {name: values[-1] for name, values in parse_qs(request.query).items()}
        match f"{request.method} {request.path.removeprefix('/sandbox/')}":
            case "GET report":
                return _json(self.report(query.get("key")))
            case "GET log":
                return self._log_page(query)
            case "GET events":
                return Response(200, self._event_lines(), "application/x-ndjson")
            case "GET faults":
                return _json(self._faults)
            case "POST faults":
                return self._change_faults(request.body)
            case "DELETE faults":
                self.set_faults(Faults())
                return _json(self._faults)
            case "POST reset":
                self.reset()
                return _json(self.report())
        paths = "GET report, log, events; GET, POST, DELETE faults; POST reset"
        return _json(
            {"error": f"Unknown: {request.method} {request.path}. The paths below /sandbox/ are: {paths}."}, 404
        )

    def _change_faults(self, body: bytes) -> Response:
        try:
            changes = msgspec.json.decode(body, type=dict[str, Any])
            changed = msgspec.convert(msgspec.to_builtins(self._faults) | changes, Faults)
        except msgspec.MsgspecError as error:
            return _json({"error": f"The faults are unchanged: {error}."}, 400)
        self.set_faults(changed)
        return _json(changed)

    def _log_page(self, query: dict[str, str]) -> Response:
        try:
            start, limit = int(query.get("start", "0")), int(query.get("limit", "1000"))
        except ValueError:
            return _json({"error": "start and limit must be whole numbers."}, 400)
        stop = max(start, 0) + min(max(limit, 0), _MAX_LOG_PAGE)
        entries = self.log(max(start, 0), stop)
        return _json({"entries": entries, "next": stop if stop < len(self.journal) else None})

    async def _event_lines(self) -> AsyncIterator[bytes]:
        lines: list[bytes] = []
        columns = self.journal.columns
        for index in self.journal.stored():
            if self.journal.columns is not columns:
                return  # a reset between two parts of the answer: the index belongs to another request, or to none
            # In JSON a line end can only stand between tokens, so this changes no value.
            lines.append(self.journal.body(index).replace(b"\n", b" "))
            if len(lines) == 500:
                yield b"\n".join(lines) + b"\n"
                lines.clear()
        if lines:
            yield b"\n".join(lines) + b"\n"


async def serve_sandbox(
    sandbox: Sandbox,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    bound: socket.socket | None = None,
    shutdown: Shutdown | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``sandbox`` on TCP until ``shutdown`` is set or until cancellation; ``started`` passes the base URL.

    ``port`` 0 selects a free port; ``bound`` listens already, and is closed at the end. Raises OSError if the address
    cannot be bound.
    """
    if bound is None:
        listeners = await trio.open_tcp_listeners(port, host=host)
    else:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(bound))]
    shutdown = shutdown or Shutdown()
    port = listeners[0].socket.getsockname()[1]
    shown_host = f"[{host}]" if ":" in host else host

    async def connection(stream: trio.SocketStream) -> None:
        await sandbox.connection(stream, shutdown=shutdown)

    try:
        task_status.started(f"http://{shown_host}:{port}")
        await serve(
            listeners, connection, max_connections=_MAX_CONNECTIONS, shutdown=shutdown, on_error=sandbox.errors.append
        )
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)


def _json(value: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value))


async def _never() -> AsyncIterator[bytes]:
    yield b""
    await trio.sleep_forever()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _drip(body: bytes, pause_s: float) -> AsyncIterator[bytes]:
    for offset in range(len(body)):
        await trio.sleep(pause_s)
        yield body[offset : offset + 1]


def free_ports(count: int) -> list[int]:
    """Return ``count`` different TCP ports of 127.0.0.1 that nothing listens on at the moment."""
    with ExitStack() as stack:
        # All are bound at once, so that the system cannot give the same port twice.
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

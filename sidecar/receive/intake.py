"""The one synchronous place that turns a body into events for the outbox, and what became of them into an answer.

HTTP and NDJSON go through it alike. ``open`` reads and judges; its result is stored by the caller, who then has the
answer made by ``accepted`` or ``not_stored``. The answers are those of DESIGN 2, because SDKs depend on them to the
byte (facts: ``px_and_sdks.md`` 3.4): success is 200 with ``"success":true`` and nothing else; what will never be
accepted is 400 with ``code``, ``message`` and ``error``; what cannot be made durable just now is 503.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple, Protocol

from sidecar.errors import SidecarError
from sidecar.events import BadJson, Sealed, decode, encode, encode_mended, merge_batch, seal
from sidecar.outbox import Accepted, DiskFull, NewEvent, Refused
from sidecar.receive.sources import Sources, UnknownWriteKey

__all__ = ["BATCH", "Answer", "Intake", "Opened", "nothing_to_store", "refusal"]

# The route kind of a body that holds a batch; the others are the types of single calls.
BATCH: Final = "batch"
# What one request may become, however little it weighs: four times what Segment allows in a batch. A few bytes each
# ("1,1,1…") would become many thousand rows, and an answer that names each of them.
MAX_EVENTS: Final = 10_000
# And what the batch's own context may weigh in all its events together: twice what a request may weigh.
MAX_SHARED_BYTES: Final = 8 * 2**20


class Answer(NamedTuple):
    """A status and a JSON body; ``retry_after_s`` is for a Retry-After header."""

    status: int
    body: bytes
    retry_after_s: int | None = None
    code: str = ""


nothing_to_store: Final = Answer(200, b'{"success":true,"accepted":0}')


class Opened(NamedTuple):
    """A body that was read and judged: the events to store, and the bad ones for the answer."""

    events: list[NewEvent]
    refused: list[dict[str, Any]]


class Classifier(Protocol):
    """What the mapping says about an event when it is accepted."""

    def is_high(self, event: dict[str, Any]) -> bool:
        """Whether it goes before normal ones."""
        ...

    def user_of(self, event: dict[str, Any]) -> str | None:
        """The key of order and memory."""
        ...


def refusal(code: str, message: str, status: int = 400, retry_after_s: int | None = None) -> Answer:
    """An answer that says no. Ruby's SDK reads ``error``, Python's ``code`` and ``message``."""
    body = encode({"success": False, "code": code, "message": message, "error": message})
    return Answer(status, body, retry_after_s, code)


class Intake:
    """Reads bodies. ``sources``, ``mapper`` and the limits may be replaced while it is used.

    ``count`` is told the code of every refusal, ``tell`` of events that were accepted.
    """

    def __init__(
        self,
        sources: Sources,
        mapper: Classifier,
        *,
        max_event_bytes: int,
        count: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self.sources = sources
        self.mapper = mapper
        self.max_event_bytes = max_event_bytes
        self.count = count
        self.tell: Callable[[Sequence[NewEvent]], None] = lambda _events: None

    def open(self, body: bytes, kind: str | None, write_key: str | None, *, trusted: bool) -> Opened | Answer:
        """Read a body. ``kind`` is ``BATCH``, the type of a single call, or None for an NDJSON line.

        ``write_key`` is the one that came with the request; else the body's own is used.
        """
        try:
            value = decode(body)
        except BadJson as error:
            return self._no("bad_json", f"The body is not JSON: {error}; send a JSON object.")
        if kind == BATCH:
            return self._open_batch(value, write_key, trusted=trusted)
        if kind is None:
            if isinstance(value, list):
                return self._open_list(value, write_key, trusted=trusted)
            if isinstance(value, dict) and "batch" in value and "type" not in value:
                return self._open_batch(value, write_key, trusted=trusted)
        return self._open_single(value, kind, write_key, trusted=trusted)

    def _open_single(self, value: Any, kind: str | None, write_key: str | None, *, trusted: bool) -> Opened | Answer:
        if not isinstance(value, dict):
            return self._no("bad_event", "The event is not a JSON object; send one call as an object.")
        try:
            source = self.sources.number(write_key or _text(value.get("writeKey")), trusted=trusted)
        except UnknownWriteKey:
            return self._unknown_key()
        sealed = seal(value, self.max_event_bytes, kind)
        if sealed.bad is not None:
            return self._no("bad_event", f"The event cannot be accepted: {sealed.bad}.")
        return Opened([self._new(sealed, source)], [])

    def _open_batch(self, value: Any, write_key: str | None, *, trusted: bool) -> Opened | Answer:
        if not isinstance(value, dict) or not isinstance(value.get("batch"), list):
            return self._no("bad_json", 'The body has no list `batch`; send {"batch": [events]}.')
        events: list[Any] = value["batch"]
        shared = {key: value[key] for key in ("context", "integrations") if value.get(key)}
        if shared:
            if _weight(shared) * len(events) > MAX_SHARED_BYTES:
                return self._no(
                    "too_large", "The batch's own context is too large for so many events; send fewer per batch."
                )
            for event in events:
                merge_batch(shared, event)
        return self._open_list(events, write_key or _text(value.get("writeKey")), trusted=trusted)

    def _open_list(self, events: list[Any], write_key: str | None, *, trusted: bool) -> Opened | Answer:
        if len(events) > MAX_EVENTS:
            return self._no("too_large", f"There are more than {MAX_EVENTS:,} events; send fewer per request.")
        try:
            sources = self._sources_of(events, write_key, trusted=trusted)
        except UnknownWriteKey:
            return self._unknown_key()
        new: list[NewEvent] = []
        refused: list[dict[str, Any]] = []
        limit, is_high, user_of = self.max_event_bytes, self.mapper.is_high, self.mapper.user_of
        for index, (event, source) in enumerate(zip(events, sources, strict=False)):
            sealed = seal(event, limit)
            if sealed.bad is None and sealed.event is not None:
                new.append(
                    NewEvent(source, is_high(sealed.event), user_of(sealed.event), sealed.message_id, sealed.body)
                )
            else:
                new.append(NewEvent(source, False, None, sealed.message_id, sealed.body, sealed.bad))
                message = f"The event cannot be accepted: {sealed.bad}."
                refused.append(
                    {"index": index, "messageId": sealed.message_id, "code": "bad_event", "message": message}
                )
                self.count("bad_event")
        return Opened(new, refused)

    def _sources_of(self, events: list[Any], write_key: str | None, *, trusted: bool) -> Iterable[int]:
        """A source for each event: the request's; without a key of the request the event's own, else the first one's.

        Raises UnknownWriteKey.
        """
        if write_key or not self.sources:
            return repeat(self.sources.number(write_key, trusted=trusted))
        keys = [_text(event.get("writeKey")) if isinstance(event, dict) else None for event in events] or [None]
        return [self.sources.number(key or keys[0], trusted=trusted) for key in keys]

    def _new(self, sealed: Sealed, source: int) -> NewEvent:
        event = sealed.event or {}
        return NewEvent(source, self.mapper.is_high(event), self.mapper.user_of(event), sealed.message_id, sealed.body)

    def accepted(self, opened: Opened, outcome: Accepted) -> Answer:
        """The answer once the events are on disk."""
        self.tell(opened.events)
        if not outcome.repeated and not opened.refused:
            return Answer(200, b'{"success":true,"accepted":%d}' % outcome.stored)
        body: dict[str, Any] = {"success": True, "accepted": outcome.stored}
        if outcome.repeated:
            body["repeated"] = outcome.repeated
        if opened.refused:
            body["refused"] = opened.refused
        return Answer(200, encode(body))

    def not_stored(self, error: SidecarError) -> Answer:
        """The answer if they could not be made durable."""
        code = error.code if isinstance(error, Refused) else DiskFull.code
        after_s = error.retry_after_s if isinstance(error, Refused) else DiskFull.retry_after_s
        self.count(code)
        return refusal(code, str(error), 503, after_s)

    def _unknown_key(self) -> Answer:
        return self._no(
            "unknown_write_key", "The write key is missing or unknown; use one of the configured [[source]] write keys."
        )

    def _no(self, code: str, message: str) -> Answer:
        self.count(code)
        return refusal(code, message)


def _weight(shared: dict[str, Any]) -> int:
    """About how many bytes it adds to each event."""
    try:
        return len(encode(shared))
    except (UnicodeEncodeError, RecursionError):
        return len(encode_mended(shared))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

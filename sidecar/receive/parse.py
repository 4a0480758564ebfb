"""Parse a body into the events to store: decode it, find the source, judge each event. The same for HTTP and NDJSON.

The stages, and the type after each::

    bytes ──decode──► event objects ──judge──► JudgedEvent ──classify──► NewEvent
                                        └─ bad: stored as a dead letter, and named in the answer

A body without any event (not JSON, not a list of events, an unknown write key) becomes an error response instead. One
bad event never costs its batch, because SDKs drop or repeat a batch as a whole (sidecar/receive/README.md#answers).
"""

from collections.abc import Generator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from sidecar.events import (
    SHARED_KEYS,
    BadJson,
    JudgedEvent,
    decode,
    encode_repaired,
    judge,
    shared_error,
    shared_of,
    too_large_error,
)
from sidecar.http import LARGE_BYTES, at_once
from sidecar.mapping import LiveSettings
from sidecar.outbox import NewEvent, Via, WriteRequest, new_event
from sidecar.receive.responses import IngestResponse, ParsedRequest, error_response
from sidecar.receive.sources import UnknownWriteKey, source_number
from sidecar.receive.split import Piece, SentSizes, decode_piece, sent_shared_bytes, sent_sizes, split

__all__ = ["BATCH", "EventParser", "parsed_bytes"]

# The route kind of a body that holds a batch; the others are the types of single calls.
BATCH: Final = "batch"
# Four times what Segment allows in a batch. Without a limit, events of a few bytes ("1,1,1…") would become a million
# rows, and an answer that names each of them.
MAX_EVENTS: Final = 10_000
# How many bytes the batch's own context may add to all its events together: twice the default size of a request.
MAX_SHARED_BYTES: Final = 8 * 2**20
NO_SHARED: Final[Mapping[str, Any]] = MappingProxyType({})
# What a parsed event occupies beside its body, and an entry for a bad one in the answer.
EVENT_BYTES: Final = 400
REFUSED_BYTES: Final = 1_000
# Events are decoded and judged in slices of this many bytes, about a millisecond; each costs as much as some more bytes, or
# 10,000 events of one byte would be a single slice.
_SLICE_BYTES: Final = 64 * 1024
_SLICE_BYTES_PER_EVENT: Final = 256
# A value of this many times the limit is too large without being decoded: no client escapes or indents that much.
_MAX_ESCAPED: Final = 16
_KEPT_VALUE_BYTES: Final = 1_000
_PIECES: Final = (bytes, msgspec.Raw)
_BATCH_KEYS: Final = (*SHARED_KEYS, "writeKey")
_NO_BATCH: Final = error_response("bad_json", 'The body has no list `batch`; send {"batch": [events]}.')


class EventParser:
    """Parse bodies by the settings in force; a reload takes effect with the next body."""

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings

    @property
    def has_sources(self) -> bool:
        """True if at least one ``[[source]]`` is configured; without any, write keys are ignored."""
        return bool(self._settings.now.source_numbers)

    def parse(
        self, body: bytes, kind: str | None, write_key: str | None, *, trusted: bool
    ) -> ParsedRequest | IngestResponse:
        """Parse one body.

        ``kind`` is ``BATCH``, the type of a single call, or None for an NDJSON line. ``write_key`` is the one that came
        with the request; without it the body's own is used. ``trusted`` clients may use unknown write keys.
        """
        return at_once(self.steps(body, kind, write_key, trusted=trusted))

    def parse_one(
        self, body: bytes, kind: str, write_key: str | None, *, trusted: bool
    ) -> ParsedRequest | IngestResponse:
        """Parse a small body that holds a single call of type ``kind``, as ``parse`` does, without the cost of slices."""
        try:
            return _BodyParser(self._settings, body, kind, write_key, trusted=trusted).single(decode(body))
        except (BadJson, UnknownWriteKey) as error:
            return _refusal(error)

    def steps(
        self, body: bytes, kind: str | None, write_key: str | None, *, trusted: bool
    ) -> Generator[None, None, ParsedRequest | IngestResponse]:
        """Parse one body as ``parse`` does, and yield after each slice of the work, about a millisecond.

        A large body is never decoded as a whole: its events are taken one after the other.
        """
        calls = _BodyParser(self._settings, body, kind, write_key, trusted=trusted)
        try:
            if len(body) < LARGE_BYTES:
                return (yield from calls.parse(decode(body)))
            return (yield from calls.parse_large())
        except (BadJson, UnknownWriteKey) as error:
            return _refusal(error)


def _refusal(error: BadJson | UnknownWriteKey) -> IngestResponse:
    if isinstance(error, BadJson):
        return error_response("bad_json", f"The body is not JSON: {error}; send a JSON object.")
    return error_response(
        "unknown_write_key", "The write key is missing or unknown; use one of the configured [[source]] write keys."
    )


class _BodyParser:
    """Parse one body by the settings that are in force when it begins."""

    def __init__(
        self, settings: LiveSettings, body: bytes, kind: str | None, write_key: str | None, *, trusted: bool
    ) -> None:
        self._now = settings.now
        self._body = body
        self._sizes: SentSizes | None = None
        self._numbers = settings.now.source_numbers
        self._limit = settings.now.config.outbox.max_event_bytes
        self._reject = settings.now.config.identity.reject
        self._kind = kind
        self._write_key = write_key
        self._trusted = trusted
        # A line of NDJSON has no path that says its kind; HTTP requests of the Unix socket are the trusted ones.
        self._via = int(Via.NDJSON if kind is None else Via.UNIX_HTTP if trusted else Via.HTTP)

    def parse(self, value: Any) -> Generator[None, None, ParsedRequest | IngestResponse]:
        """Parse a decoded body. Raises UnknownWriteKey."""
        kind = self._kind
        if isinstance(value, list) and kind is None:
            return (yield from self._list(value))
        if isinstance(value, dict) and (kind == BATCH or (kind is None and "batch" in value and "type" not in value)):
            return (yield from self._batch(value, value.get("batch")))
        if kind == BATCH:
            return _NO_BATCH
        return self.single(value)

    def parse_large(self) -> Generator[None, None, ParsedRequest | IngestResponse]:
        """Parse a large body piece by piece. Raises BadJson and UnknownWriteKey."""
        body = self._body
        values, events = yield from split(body, MAX_EVENTS)
        if values is None and events is not None and self._kind is None:
            return (yield from self._list(events))
        if (
            values is not None
            and events is not None
            and (self._kind == BATCH or (not self._kind and "type" not in values))
        ):
            shared = {}
            self._sizes = SentSizes([], sent_shared_bytes(values))
            for key in _BATCH_KEYS:
                piece = values.get(key, b"null")
                if _size(piece) > _MAX_ESCAPED * self._limit:
                    return error_response("too_large", f"The batch's own {key} is too large; send less of it.")
                shared[key] = decode_piece(piece)
            return (yield from self._batch(shared, events))
        if self._kind == BATCH and (values is not None or events is not None):
            return _NO_BATCH
        if len(body) > _MAX_ESCAPED * self._limit:
            bad = too_large_error(len(body), self._limit)
            return error_response("bad_event", f"The event cannot be accepted: {bad}.")
        return (yield from self.parse(decode(body)))

    def single(self, value: Any) -> ParsedRequest | IngestResponse:
        """Parse a decoded body that holds one event. Raises UnknownWriteKey."""
        if not isinstance(value, dict):
            return error_response("bad_event", "The event is not a JSON object; send one call as an object.")
        source = self._source(self._write_key or _text(value.get("writeKey")))
        judged = judge(value, self._limit, self._kind, None, self._reject, len(self._body))
        if judged.bad is not None:
            return error_response("bad_event", f"The event cannot be accepted: {judged.bad}.")
        return ParsedRequest([new_event(self._now, source, judged, via=self._via)], [])

    def _batch(self, batch: dict[str, Any], events: Any) -> Generator[None, None, ParsedRequest | IngestResponse]:
        if not isinstance(events, list):
            return _NO_BATCH
        shared = shared_of(batch)
        if error := shared_error(shared, self._limit, lambda: self._sent_sizes().shared):
            return error_response("too_large", error)
        if shared and len(encode_repaired(shared)) * len(events) > MAX_SHARED_BYTES:
            return error_response(
                "too_large", "The batch's own context is too large for that many events; send fewer per batch."
            )
        self._write_key = self._write_key or _text(batch.get("writeKey"))
        return (yield from self._list(events, shared))

    def _list(
        self, events: list[Any], shared: Mapping[str, Any] = NO_SHARED
    ) -> Generator[None, None, ParsedRequest | IngestResponse]:
        """Parse a list of events: decoded ones, or pieces of a large body."""
        if len(events) > MAX_EVENTS:
            return error_response("too_large", f"There are more than {MAX_EVENTS:,} events; send fewer per request.")
        new: list[NewEvent] = []
        refused: list[dict[str, Any]] = []
        # The request's key, else the event's own, else that of the first event that is an object.
        of_each = not self._write_key and bool(self._numbers)
        first_key = self._first_key(events) if of_each else None
        source = -1 if of_each and events else self._source(self._write_key)
        slice_bytes = 0
        is_small = len(self._body) <= self._limit
        for index, element in enumerate(events):
            is_piece = isinstance(element, _PIECES)
            slice_bytes += _SLICE_BYTES_PER_EVENT + (_size(element) if is_piece else 0)
            if slice_bytes > _SLICE_BYTES:
                yield
                slice_bytes = 0
            event = self._decode_element(element, index) if is_piece else element
            if of_each:
                source = self._source(_write_key(event) or first_key)
            if is_piece and self._is_huge(element):
                judged = self._judge_huge(event, _size(element))
            else:
                sent = _size(element) if is_piece else len(self._body) if is_small else partial(self._sent_bytes, index)
                judged = judge(event, self._limit, None, shared, self._reject, sent)
            new.append(new_event(self._now, source, judged, via=self._via))
            if judged.bad is not None:
                refused.append(
                    {
                        "index": index,
                        "messageId": judged.message_id,
                        "code": "bad_event",
                        "message": f"The event cannot be accepted: {judged.bad}.",
                    }
                )
        return ParsedRequest(new, refused)

    def _sent_bytes(self, index: int) -> int:
        """Return the size of one event of a small body as the app sent it."""
        return self._sent_sizes().events[index]

    def _sent_sizes(self) -> SentSizes:
        if self._sizes is None:
            self._sizes = sent_sizes(self._body)
        return self._sizes

    def _first_key(self, events: list[Any]) -> str | None:
        """Return the write key of the first element that is an object; None if it has none. Raises BadJson."""
        for index, element in enumerate(events):
            is_piece = isinstance(element, _PIECES)
            if bytes(memoryview(element)[:1]) == b"{" if is_piece else isinstance(element, dict):
                return _write_key(self._decode_element(element, index) if is_piece else element)
        return None

    def _is_huge(self, piece: Piece) -> bool:
        return _size(piece) > _MAX_ESCAPED * self._limit

    def _decode_element(self, piece: Piece, index: int) -> Any:
        """Decode one event of a large body; of one that is far too large only the short values. Raises BadJson."""
        try:
            if not self._is_huge(piece):
                return decode_piece(piece)
            values, _ = at_once(split(bytes(piece), 0))
            short = {key: value for key, value in (values or {}).items() if _size(value) <= _KEPT_VALUE_BYTES}
            return {key: decode_piece(value) for key, value in short.items()}
        except BadJson as error:  # its position counts from the start of the piece
            raise BadJson(f"in event {index}: {error}") from None

    def _judge_huge(self, short: dict[str, Any], size_bytes: int) -> JudgedEvent:
        """Judge an event of ``size_bytes`` by its length; its short values are stored."""
        short["shortened"] = {"all": size_bytes}
        judged = judge(short, self._limit, None, None, self._reject)
        event = judged.event or {}
        # The event itself keeps its type: the dedup index knows it by that, as it does any other.
        stored = event | {"call": event.get("type")}
        stored.pop("type", None)
        body = encode_repaired(stored)
        if len(body) > self._limit:
            body = encode_repaired({"messageId": judged.message_id, "shortened": {"all": size_bytes}})
        return JudgedEvent(event, judged.message_id, body, too_large_error(size_bytes, self._limit))

    def _source(self, write_key: str | None) -> int:
        return source_number(self._numbers, write_key, trusted=self._trusted)


def parsed_bytes(parsed: ParsedRequest, write: WriteRequest) -> int:
    """Return about what the events of a request occupy until their commit, with their entries in the answer."""
    return write.size_bytes + EVENT_BYTES * len(parsed.events) + REFUSED_BYTES * len(parsed.refused)


def _size(piece: Piece) -> int:
    return memoryview(piece).nbytes


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _write_key(event: Any) -> str | None:
    return _text(event.get("writeKey")) if isinstance(event, dict) else None

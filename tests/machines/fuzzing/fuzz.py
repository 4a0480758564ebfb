"""Properties that must hold for any bytes, and a coverage-guided search for bytes that break them.

``test_any_bytes.py`` runs ``check`` over examples of hypothesis and, where atheris is installed (the ``fuzz`` extra),
a short search. For a long one, which keeps its inputs in a folder:

    python tests/machines/fuzzing/fuzz.py CORPUS_FOLDER -runs=10000000 -max_len=600
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None and __name__ == "__main__":
    with atheris.instrument_imports(include=["sidecar"]):
        import sidecar.http.coding
        import sidecar.http.reader
        import sidecar.receive.ndjson  # noqa: F401 - with all its imports, before another import loads them uninstrumented

from sidecar.config import load_text
from sidecar.events import MAX_DEPTH, decode, encode, judge
from sidecar.http import Limits
from sidecar.http.budget import at_once
from sidecar.http.coding import decode_body
from sidecar.http.reader import Reader
from sidecar.mapping import LiveSettings, compile_settings
from sidecar.outbox import NewEvent, WriteRequest
from sidecar.receive.ndjson import LineParser
from sidecar.receive.parse import BATCH, EventParser
from sidecar.receive.responses import IngestResponse, ParsedRequest

MAX_EVENT_BYTES = 500
MAX_LINE_BYTES = 200
LIMITS = Limits(max_header_bytes=400, max_headers=8, max_body_bytes=300)

SEEDS = (
    b'\0{"event":"x","userId":null,"properties":{"a":NaN,"b":[1e400,-Infinity]},"messageId":"m"}',
    b'\0{"batch":[{"type":"track","event":"\\ud800","userId":1e21},[],"x"],"context":{"a":{}},"writeKey":"k"}',
    b'\1{"type":"page"}\n\n[{"type":"alias"},1]\r\n{"batch":[]}\nnull',
    b"\2POST /v1/track HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /health HTTP/1.0\r\n\r\n",
    b"\2POST //v1/b/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\n{}\r\n0\r\nT: x\r\n\r\n",
    b"\2POST http://h/ HTTP/1.1\r\nContent-Encoding: gzip\r\nUpgrade: h2c\r\nConnection: close, upgrade\r\n\r\n",
)


def check(data: bytes) -> None:
    """Check one input: its first byte selects the check, the rest is the data. Raises AssertionError."""
    which, more = (data[0] % 3, data[0] // 3) if data else (0, 0)
    (check_body, check_lines, check_http)[which](data[1:], more)


def check_body(body: bytes, choice: int) -> None:
    """Each body gets an error response or is parsed completely; parsed events are strict JSON."""
    kind = (BATCH, "track", None)[choice % 3]
    parsed = PARSER.parse(body, kind, None, trusted=False)
    if isinstance(parsed, IngestResponse):
        assert parsed.status == 400
        answer = json.loads(parsed.body)
        assert answer["success"] is False
        assert answer["code"] == parsed.code
        assert answer["message"] == answer["error"]
    else:
        check_parsed(body, kind, parsed)


def check_parsed(body: bytes, kind: str | None, parsed: ParsedRequest) -> None:
    value = decode(body)
    if isinstance(value, dict) and (kind == BATCH or (kind is None and "batch" in value and "type" not in value)):
        value = value["batch"]
    assert len(parsed.events) == (len(value) if isinstance(value, list) else 1)
    bad = [index for index, event in enumerate(parsed.events) if event.bad is not None]
    assert bad == [entry["index"] for entry in parsed.refused]
    for event in parsed.events:
        check_event(event)


def check_event(event: NewEvent) -> None:
    stored = json.loads(event.body, parse_constant=_not_json)
    assert msgspec.json.decode(event.body) == stored
    assert event.message_id
    event.body.decode("utf-8")
    if event.user is not None:
        event.user.encode("utf-8")
    if event.bad is None:
        assert len(event.body) <= MAX_EVENT_BYTES
        assert depth_of(stored) <= MAX_DEPTH
        assert stored["messageId"] == event.message_id
        assert "writeKey" not in stored
        assert judge(stored, MAX_EVENT_BYTES).body == event.body, "judging the stored event again changes it"
    else:
        event.bad.encode("utf-8")


def check_lines(data: bytes, choice: int) -> None:
    """Each line that is not blank gets one answer, however the bytes were cut."""
    whole = responses_to([data])
    assert whole == responses_to(list(cut(data, choice + 1)))
    lines = [line.strip() for line in data.split(b"\n")]
    assert len(whole) == sum(1 for line in lines if line), "the number of answers differs from the number of lines"


def responses_to(pieces: list[bytes]) -> list[object]:
    lines = LineParser(PARSER, SubmitOnly(), MAX_LINE_BYTES)  # type: ignore[arg-type]
    pending = [response for piece in pieces for response in at_once(lines.feed(piece))] + at_once(lines.end())
    return [
        response.code or response.body if isinstance(response, IngestResponse) else len(response[0].events)
        for response in pending
    ]


class SubmitOnly:
    """Stands in for the outbox."""

    def submit(self, events: list[NewEvent], behind: WriteRequest | None) -> WriteRequest:
        return WriteRequest(events)


def cut(data: bytes, length: int) -> Iterator[bytes]:
    return (data[start : start + length] for start in range(0, len(data), length))


def check_http(data: bytes, choice: int) -> None:
    """Requests are complete and within the limits, and the same however the bytes were cut."""
    whole, pieces = Reader(LIMITS), Reader(LIMITS)
    whole.feed(data)
    for piece in cut(data, choice + 1):
        pieces.feed(piece)
    # In pieces, the limit of a head counts the line ends, too: a request that is accepted in one piece may be refused.
    if pieces.refused is None or pieces.refused.code != "headers_too_large":
        assert list(whole.ready) == list(pieces.ready), "the requests depend on how the bytes were cut"
    for request in whole.ready:
        assert len(request.body) <= LIMITS.max_body_bytes
        assert sum(len(name) + len(value) for name, value in request.headers) <= LIMITS.max_header_bytes
        encode(request.path)
        assert at_once(decode_body(request, LIMITS.max_body_bytes)) is None or request.coding
        assert len(request.body) <= LIMITS.max_body_bytes
    if whole.refused is not None:
        assert whole.refused.status in (400, 413, 415, 431)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth_of(element) for element in inner), default=0)


def add_seeds(corpus: Path | None) -> None:
    """Add the seeds to the corpus: without them, a search takes millions of inputs to find a brace."""
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS):
            (corpus / f"seed-{number}").write_bytes(seed)


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


CONFIG = load_text(f'[outbox]\nmax_event_bytes = "{MAX_EVENT_BYTES}B"\n')
PARSER = EventParser(LiveSettings(compile_settings(CONFIG, {}, {})))

if __name__ == "__main__":
    assert atheris is not None, "install the fuzz extra: pip install -e '.[fuzz]'"
    add_seeds(next((Path(option) for option in sys.argv[1:] if not option.startswith("-")), None))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()

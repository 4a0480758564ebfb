"""What must hold for any bytes at all, and a coverage-guided search for bytes for which it does not.

``test_any_bytes.py`` runs ``check`` over examples of hypothesis and, where atheris is installed (the ``fuzz`` extra),
a short search. A long one, with inputs found so far kept in a folder:

    python tests/receive/fuzz.py CORPUS_FOLDER -runs=10000000 -max_len=600
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
        import sidecar.receive.ndjson  # noqa: F401 - with all that it imports, before anybody else does

from sidecar.config import People
from sidecar.config.schema import Mapping
from sidecar.events import MAX_DEPTH, decode, encode, seal
from sidecar.http import Limits
from sidecar.http.coding import decode_body
from sidecar.http.reader import Reader
from sidecar.mapping import compile_mapping
from sidecar.outbox import NewEvent
from sidecar.receive.intake import BATCH, Answer, Intake, Opened
from sidecar.receive.ndjson import Lines
from sidecar.receive.sources import Sources

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
    """The first byte chooses who is asked, the rest is what comes in. Raises if anything is not as it must be."""
    which, more = (data[0] % 3, data[0] // 3) if data else (0, 0)
    (check_body, check_lines, check_http)[which](data[1:], more)


def check_body(body: bytes, choice: int) -> None:
    """Every body gets an answer or is opened whole; what is opened is strict JSON."""
    kind = (BATCH, "track", None)[choice % 3]
    opened = INTAKE.open(body, kind, None, trusted=False)
    if isinstance(opened, Answer):
        assert opened.status == 400
        said = json.loads(opened.body)
        assert said["success"] is False
        assert said["code"] == opened.code
        assert said["message"] == said["error"]
    else:
        check_opened(body, kind, opened)


def check_opened(body: bytes, kind: str | None, opened: Opened) -> None:
    value = decode(body)
    if isinstance(value, dict) and (kind == BATCH or (kind is None and "batch" in value and "type" not in value)):
        value = value["batch"]
    assert len(opened.events) == (len(value) if isinstance(value, list) else 1)
    bad = [index for index, event in enumerate(opened.events) if event.bad is not None]
    assert bad == [one["index"] for one in opened.refused]
    for event in opened.events:
        check_event(event)


def check_event(event: NewEvent) -> None:
    kept = json.loads(event.body, parse_constant=_not_json)
    assert msgspec.json.decode(event.body) == kept
    assert event.message_id
    event.body.decode("utf-8")
    if event.user is not None:
        event.user.encode("utf-8")
    if event.bad is None:
        assert len(event.body) <= MAX_EVENT_BYTES
        assert depth_of(kept) <= MAX_DEPTH
        assert kept["messageId"] == event.message_id
        assert "writeKey" not in kept
        assert seal(kept, MAX_EVENT_BYTES).body == event.body, "sealing again changes it"
    else:
        event.bad.encode("utf-8")


def check_lines(data: bytes, choice: int) -> None:
    """One answer for each line that is not blank, however the bytes were cut."""
    whole = owed_for([data])
    assert whole == owed_for(list(cut(data, choice + 1)))
    lines = [line.strip() for line in data.split(b"\n")]
    assert len(whole) == sum(1 for line in lines if line), "an answer is missing or too many"


def owed_for(pieces: list[bytes]) -> list[object]:
    lines = Lines(INTAKE, Submitted(), MAX_LINE_BYTES)  # type: ignore[arg-type]
    owed = [one for piece in pieces for one in lines.feed(piece)] + lines.end()
    return [one.code or one.body if isinstance(one, Answer) else len(one[0].events) for one in owed]


class Submitted:
    """In place of the outbox."""

    def submit(self, events: list[NewEvent]) -> list[NewEvent]:
        return events


def cut(data: bytes, length: int) -> Iterator[bytes]:
    return (data[start : start + length] for start in range(0, len(data), length))


def check_http(data: bytes, choice: int) -> None:
    """Requests come out whole and within the limits, the same however the bytes were cut."""
    whole, pieces = Reader(LIMITS), Reader(LIMITS)
    whole.feed(data)
    for piece in cut(data, choice + 1):
        pieces.feed(piece)
    # The limit of a head in pieces counts the line ends too: a request may be whole and yet refused in pieces.
    if pieces.refused is None or pieces.refused.code != "headers_too_large":
        assert list(whole.ready) == list(pieces.ready), "how it was cut makes a difference"
    for request in whole.ready:
        assert len(request.body) <= LIMITS.max_body_bytes
        assert sum(len(name) + len(value) for name, value in request.headers) <= LIMITS.max_header_bytes
        encode(request.path)
        assert decode_body(request, LIMITS.max_body_bytes) is None or request.coding
        assert len(request.body) <= LIMITS.max_body_bytes
    if whole.refused is not None:
        assert whole.refused.status in (400, 413, 415, 431)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth_of(one) for one in inner), default=0)


def plant(corpus: Path | None) -> None:
    """Put the seeds beside what was found so far: from nothing, a search takes millions of inputs to find a brace."""
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS):
            (corpus / f"seed-{number}").write_bytes(seed)


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


INTAKE = Intake(
    Sources([], lambda _digest, _product: 0), compile_mapping(Mapping(), People()), max_event_bytes=MAX_EVENT_BYTES
)

if __name__ == "__main__":
    assert atheris is not None, "install the fuzz extra: pip install -e '.[fuzz]'"
    plant(next((Path(one) for one in sys.argv[1:] if not one.startswith("-")), None))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()

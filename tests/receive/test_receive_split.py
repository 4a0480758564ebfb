"""A large body is taken apart into the same values as a small one, in slices that leave the loop to others."""

import json
import math
import tracemalloc
from contextlib import suppress

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from receive_harness import MAX_EVENT_BYTES, receiving, track

from sidecar.events import BadJson, decode
from sidecar.http import LARGE_BYTES, at_once
from sidecar.receive import split as splitting
from sidecar.receive.responses import ParsedRequest
from sidecar.receive.split import decode_piece, sent_sizes, split

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
batches = st.builds(
    lambda others, events: others | {"batch": events},
    st.dictionaries(st.text(max_size=5), values, max_size=3),
    st.lists(values, max_size=5),
)


def pieces(text: bytes, max_events: int = 10_000):
    body = at_once(split(text, max_events))
    others = None if body.values is None else {key: decode_piece(piece) for key, piece in body.values.items()}
    return others, None if body.events is None else [decode_piece(piece) for piece in body.events]


@pytest.mark.parametrize("commas", [400_000, -1], ids=["msgspec", "scanner"])
@given(value=st.lists(values, max_size=6) | batches, indent=st.none() | st.integers(0, 2))
@example(value={"batch": [], "x": [[]]}, indent=None)
@example(value=[[], {}, [[]], '"[,]"', "\\", "\ud800"], indent=1)
def test_the_pieces_are_those_of_the_whole(commas, value, indent):
    text = json.dumps(value, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_MAX_COMMAS", commas)
        others, events = pieces(text)
    whole = decode(text)
    if isinstance(whole, list):
        assert (others, events) == (None, whole)
    else:
        assert events == whole["batch"]
        assert others == whole
    assert len(sent_sizes(text).events) == len(events)


@pytest.mark.parametrize(
    "text",
    [
        b"[1,2",
        b"[1,2}",
        b"[1] x",
        b"[1,]",
        b"[,1]",
        b"[1,,2]",
        b'{"a":1',
        b'{"a" 1}',
        b'{"a":}',
        b"{1:2}",
        b'{"batch":[1}',
        b"{,}",
        b'["a]',
        b"[",
    ],
)
@pytest.mark.parametrize("commas", [400_000, -1])
def test_what_is_not_json_stays_bad(monkeypatch, text, commas):
    monkeypatch.setattr(splitting, "_MAX_COMMAS", commas)
    with pytest.raises(BadJson):
        decode(text)
    with pytest.raises(BadJson):
        pieces(text)


@given(st.text(alphabet='[]{},:"\\ 1aNn', max_size=30))
def test_any_structure_is_pieces_or_bad_json(text):
    try:
        pieces(text.encode())
    except BadJson:
        pass


def test_the_scanner_stops_after_the_allowed_number():
    _, events = pieces(b"[" + b"1," * 1_000_000 + b"1]", 100)
    assert len(events) == 101


@pytest.mark.parametrize("text", [b"[" + b"1," * 500_000 + b"1]", b'{"batch":[' + b'{"a":NaN},' * 50_000 + b"1]}"])
def test_scanning_is_done_in_slices(text):
    assert sum(1 for _ in split(text, 10**9)) > 20


ESCAPES = rb"\n" * 500_000
REFUSED_BY_MSGSPEC = [
    b'{"batch":[NaN],"x":"%b"}' % ESCAPES,
    b'{"batch":[NaN],"%b":1}' % ESCAPES,
    b'{"batch":[NaN,{"x":"%b"}]}' % ESCAPES,
    b'[NaN,"%b' % ESCAPES,
]


@pytest.mark.parametrize("text", REFUSED_BY_MSGSPEC, ids=["value", "name", "event", "unclosed"])
def test_a_string_of_escapes_is_scanned_in_slices_and_in_place(text):
    """A body of 5 MB with nothing but escapes took 280 MB, and was scanned in one step of half a second."""
    tracemalloc.start()
    try:
        steps = 0
        with suppress(BadJson):
            for _ in split(text, 10_000):
                steps += 1
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 * len(text)
    assert steps > 50


@pytest.mark.parametrize("slice_bytes", [2, 3, 7])
@given(st.text(alphabet='[]{},:"\\ x\n', max_size=40) | (st.lists(values, max_size=6) | batches).map(json.dumps))
@example('["a\\\\","\\"",{"[":[1]}]')
@example('["a\\')
def test_the_pieces_do_not_depend_on_the_slices(slice_bytes, text):
    def taken():
        try:
            return at_once(split(text.encode(), 10_000))
        except BadJson as error:
            return str(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_MAX_COMMAS", -1)
        whole = taken()
        patch.setattr(splitting, "_SLICE_BYTES", slice_bytes)
        assert taken() == whole


async def test_a_small_batch_of_many_events_leaves_the_loop_to_others(tmp_path, monkeypatch):
    """18 KB of ``1,1,1…`` are 9,000 bad events; they were judged in one step of 150 ms."""
    ran = ""

    async def other_task() -> None:
        nonlocal ran
        while True:
            ran += "o"
            await trio.lowlevel.checkpoint()

    def noted(work):
        nonlocal ran
        while True:
            ran += "s"
            try:
                next(work)
            except StopIteration as end:
                return end.value
            yield

    async with receiving(tmp_path / "o.db") as harness, trio.open_nursery() as nursery:
        steps = harness.parser.steps
        monkeypatch.setattr(harness.parser, "steps", lambda *arguments, **more: noted(steps(*arguments, **more)))
        nursery.start_soon(other_task)
        body = b'{"batch":[%b]}' % b",".join([b"1"] * 9_000)
        assert len(body) < LARGE_BYTES
        assert len((await harness.post("/v1/batch", body)).json["refused"]) == 9_000
        nursery.cancel_scope.cancel()
    assert ran.count("s") > 30
    assert ran.count("sss") == 0  # two tasks that can run do so in any order


async def test_a_large_batch_is_parsed_in_slices(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        events = [track(number, properties={"x": "y" * 500}) for number in range(2_000)]
        body = json.dumps({"batch": events}).encode()
        assert sum(1 for _ in harness.parser.steps(body, "batch", None, trusted=False)) > 10
        parsed = harness.parser.parse(body, "batch", None, trusted=False)
        assert [event.message_id for event in parsed.events] == [f"m{number}" for number in range(2_000)]


@pytest.mark.parametrize("odd", [None, math.nan, "\ud800"], ids=["strict", "NaN", "surrogate"])
@pytest.mark.parametrize("kind", ["batch", None])
async def test_a_large_body_gives_what_a_small_one_gives(tmp_path, odd, kind):
    batch = {
        "context": {"app": "shared"},
        "writeKey": "wk",
        "batch": [
            track(1, properties={"p": odd}),
            {"type": "nothing"},
            5,
            {"messageId": "m3", "type": "page", "writeKey": "x"},
        ],
    }
    async with receiving(tmp_path / "o.db") as harness:
        text = json.dumps(batch).encode()
        small = harness.parser.parse(text, kind, None, trusted=True)
        large = harness.parser.parse(text + b" " * LARGE_BYTES, kind, None, trusted=True)
        assert [event.bad for event in small.events] == [event.bad for event in large.events]
        assert [event.body for event in small.events if not event.bad] == [
            event.body for event in large.events if not event.bad
        ]
        assert [entry["index"] for entry in large.refused] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("batch", b'{"batch":{}}', "bad_json"),
        ("batch", b"[1]", "bad_json"),
        ("batch", b"{", "bad_json"),
        ("batch", b'{"batch":[{]}', "bad_json"),
        ("batch", b'{"batch":[],"context":{"a":"%b"}}' % (b"x" * 20 * MAX_EVENT_BYTES), "too_large"),
        ("track", b'{"event":"E","p":"%b"}' % (b"x" * 20 * MAX_EVENT_BYTES), "bad_event"),
        ("track", b"[]", "bad_event"),
        (None, b'{"type":"page","p":"%b"}' % (b"x" * 20 * MAX_EVENT_BYTES), "bad_event"),
    ],
)
async def test_a_large_body_is_refused_as_a_small_one(tmp_path, kind, text, code):
    async with receiving(tmp_path / "o.db") as harness:
        answer = harness.parser.parse(text + b" " * LARGE_BYTES, kind, None, trusted=True)
        assert (answer.status, answer.code) == (400, code)


async def test_an_event_that_is_far_too_large_is_stored_short(tmp_path):
    """Judged by its length, without being decoded: decoded it costs ten times its bytes."""
    async with receiving(tmp_path / "o.db") as harness:
        huge = track(1, properties={"list": list(range(40_000))})
        parsed = harness.parser.parse(json.dumps({"batch": [huge, track(2)]}).encode(), "batch", None, trusted=False)
        bad, good = parsed.events
        assert (bad.message_id, good.bad) == ("m1", None)
        assert "bytes, more than the 2,000 allowed" in bad.bad
        stored = json.loads(bad.body)
        assert (stored["event"], stored["call"], stored["messageId"]) == ("Feature Used", "track", "m1")
        assert len(bad.body) <= MAX_EVENT_BYTES
        assert "type" not in stored


TWO_SOURCES = (("wk_web", "AP-WEB-2"), ("wk_app", "AP-APP-2"))
HUGE = {"list": list(range(10_000))}


@pytest.mark.parametrize("first", ["wk_web", "wk_app"])
@pytest.mark.parametrize("odd", [1, math.nan], ids=["msgspec", "scanner"])
async def test_an_event_far_too_large_has_the_source_of_its_own_key(tmp_path, first, odd):
    """Its key was gone before it was read: as the first event it cost the batch, later it went to another app."""
    huge = [track(number, properties=HUGE, writeKey=key) for number, (key, _) in enumerate(TWO_SOURCES)]
    events = [*sorted(huge, key=lambda event: event["writeKey"] != first), track(3, writeKey="wk_app", odd=odd)]
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        parsed = harness.parser.parse(json.dumps({"batch": events}).encode(), "batch", None, trusted=False)
        products = harness.store.source_products()
        by_id = {event.message_id: products[event.source] for event in parsed.events}
        assert by_id == {"m0": "AP-WEB-2", "m1": "AP-APP-2", "m3": "AP-APP-2"}
        assert b"wk_" not in b"".join(event.body for event in parsed.events)


@pytest.mark.parametrize("rest", [{}, HUGE], ids=["small body", "large body"])
async def test_the_first_key_is_that_of_the_first_object(tmp_path, rest):
    """A batch that began with null was refused for the key that null does not have."""
    events = [None, [], "x", track(1, writeKey="wk_app", properties=rest), track(2), 5]
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        parsed = harness.parser.parse(json.dumps({"batch": events}).encode(), "batch", None, trusted=False)
        products = harness.store.source_products()
        assert [products[event.source] for event in parsed.events] == ["AP-APP-2"] * len(events)
        other = [None, track(3), track(4, writeKey="wk_app")]
        answer = harness.parser.parse(json.dumps({"batch": other}).encode(), "batch", None, trusted=False)
        assert answer.code == "unknown_write_key"


async def test_events_that_are_far_too_large_do_not_share_a_rejected_id(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        huge = track(1, properties={"list": list(range(40_000))}, messageId="undefined")
        parsed = harness.parser.parse(json.dumps({"batch": [huge, huge]}).encode(), "batch", None, trusted=False)
        assert len({event.message_id for event in parsed.events} - {"undefined"}) == 2


def broken(number: int, size_bytes: int) -> bytes:
    """An event of so many bytes as sent, a tenth of which is not UTF-8 and three times as long when it is stored."""
    head = b'{"type":"track","event":"E","userId":"u","messageId":"m%d","p":"' % number
    bad = size_bytes // 10
    return head + b"\xff" * bad + b"x" * (size_bytes - bad - len(head) - 2) + b'"}'


@pytest.mark.parametrize("before", [0, 10_000, 2 * LARGE_BYTES], ids=["alone", "small body", "large body"])
@pytest.mark.parametrize("opening", [b'{"batch":[', b"["])
async def test_an_event_is_judged_by_its_bytes_as_sent(tmp_path, before, opening):
    """Each byte that is not UTF-8 is stored as three: an event within the limit was refused for what we add to it."""
    blanks = b" " * before
    fits, longer = broken(1, MAX_EVENT_BYTES), broken(2, MAX_EVENT_BYTES + 1)
    body = opening + fits + b"," + blanks + longer + b"]" + (b"}" if opening[:1] == b"{" else b"")
    async with receiving(tmp_path / "o.db") as harness:
        parsed = harness.parser.parse(body, "batch" if opening[:1] == b"{" else None, None, trusted=True)
        assert [event.bad is None for event in parsed.events] == [True, False]
        assert "it has 2,001 bytes, more than the 2,000 allowed" in parsed.events[1].bad
        for number, text in enumerate((fits, longer)):
            single = harness.parser.parse(text, None, None, trusted=True)
            assert isinstance(single, ParsedRequest) is (number == 0)


@pytest.mark.parametrize("before", [0, 2 * LARGE_BYTES], ids=["small body", "large body"])
async def test_a_shared_context_is_judged_by_its_bytes_as_sent(tmp_path, before):
    async with receiving(tmp_path / "o.db") as harness:
        for more, accepted in ((0, True), (1, False)):
            context = b'{"app":"%b%b"}' % (b"\xff" * 300, b"x" * (MAX_EVENT_BYTES - 300 - 10 + more))
            body = b'{"batch":[{"type":"page","userId":"u"}],%b"context":%b}' % (b" " * before, context)
            parsed = harness.parser.parse(body, "batch", None, trusted=True)
            assert isinstance(parsed, ParsedRequest) is accepted


async def test_what_is_not_json_in_a_large_body_is_placed_in_its_event(tmp_path):
    """The position counted from the start of the event, and read as one in the body."""
    good = track()
    body = b'{"batch":[%b,%b%b]}' % (json.dumps(good).encode(), b" " * 2 * LARGE_BYTES, b'{"type":01}')
    async with receiving(tmp_path / "o.db") as harness:
        refused = harness.parser.parse(body, "batch", None, trusted=True)
        assert refused.code == "bad_json"
        assert "in event 1: Expecting ',' delimiter at character 9" in refused.message

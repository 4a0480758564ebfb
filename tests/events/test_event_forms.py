"""Decoding bodies, judging events, and the strict form that is stored (sidecar/receive/README.md#wire-details)."""

import json
import math
import subprocess
import sys
import time
import tracemalloc
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.events import MAX_DEPTH, BadJson, decode, decode_stored, encode, encode_repaired, judge, merge_batch

LIMIT = 32_768


def stored(text: bytes, kind: str | None = None):
    """Judge one event; return the result and the stored event, decoded strictly."""
    judged = judge(decode(text), LIMIT, kind)
    return judged, json.loads(judged.body, parse_constant=lambda name: pytest.fail(f"{name} was stored"))


def track(**more):
    return {"type": "track", "event": "Searched", "userId": "u", "messageId": "m", **more}


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b"NaN", None),
        (b"Infinity", None),
        (b"-Infinity", None),
        (b"1e400", None),
        (b"-1e400", None),
        (b"1180591620717411303424", 2**70),
        (b"-1180591620717411303424", -(2**70)),
        (b"1e+21", 1e21),
        (b"9" * 5000, None),
        (b'"\\ud800"', "\ufffd"),
        (b'"\\udc00\\ud800"', "\ufffd\ufffd"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"a\xffb"', "a\ufffdb"),
        (b'"tab\tinside"', "tab\tinside"),
        (b'"\\u0000"', "\ufffd"),
        (b"null", None),
        (b'"2024-01-02T03:04:05.678901"', "2024-01-02T03:04:05.678901"),
    ],
)
def test_values_of_sdks_are_stored_as_strict_json(sent: bytes, value):
    judged, event = stored(b'{"type":"track","event":"e","userId":"u","properties":{"p":%b}}' % sent)
    assert event["properties"] == {"p": value}
    assert judged.bad is None


def test_lone_surrogates_are_replaced_in_names_too():
    judged, event = stored(b'{"type":"track","event":"\\ud800","userId":"\\udfff","messageId":"\\ud801","\\udc01":1}')
    assert (event["event"], event["userId"], event["\ufffd"]) == ("\ufffd", "\ufffd", 1)
    assert judged.message_id == event["messageId"] == "\ufffd"
    assert judged.event == event
    assert judged.bad is None


def test_explicit_nulls_are_valid():
    judged, event = stored(b'{"type":"group","userId":null,"anonymousId":null,"groupId":null,"event":null}')
    assert judged.bad is None
    assert event["userId"] is None


def test_byte_order_mark_is_skipped():
    assert decode(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


@pytest.mark.parametrize("text", [b"", b" ", b"{", b'{"a":1}x', b'{"a":01}', b"'a'", b"\xff\xfe", b"-", b"[" * 10_000])
def test_invalid_json_raises_with_its_position(text: bytes):
    with pytest.raises(BadJson, match="at character"):
        decode(text)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ([], "not a JSON object"),
        ("text", "not a JSON object"),
        (None, "not a JSON object"),
        (7, "not a JSON object"),
        ({}, "its type is missing"),
        ({"type": "tracked"}, "its type is 'tracked', not one of alias, group, identify, page, screen, track"),
        ({"type": ["track"]}, "its type is a list"),
        ({"type": True}, "its type is True"),
        (track(event=None), "a track call needs a text `event`"),
        (track(event=""), "a track call needs a text `event`"),
        (track(event=5), "a track call needs a text `event`"),
        (track(event={}), "a track call needs a text `event`"),
        (track(userId=["u"]), "its userId is a list, neither text nor number"),
        (track(userId={"id": 1}), "its userId is an object"),
        (track(userId=True), "its userId is True"),
        (track(anonymousId=[]), "its anonymousId is a list"),
        ({"type": "group", "groupId": {}}, "its groupId is an object"),
        (track(properties={"p": "x" * LIMIT}), "more than the 32,768 allowed (outbox.max_event_bytes)"),
    ],
)
def test_undeliverable_event_is_bad_with_a_reason(event, reason: str):
    judged = judge(event, LIMIT)
    assert reason in (judged.bad or "")
    assert judged.message_id
    json.loads(judged.body)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "track", "event": "e"},
        {"type": "identify"},
        {"type": "page", "userId": 12345, "anonymousId": 1.5},
        {"type": "track", "event": "e", "userId": 2**70},
        {"type": "alias", "previousId": ["odd"]},
        {"type": "track", "event": "e", "properties": "not an object", "context": 7, "timestamp": []},
    ],
)
def test_unusual_but_meaningful_event_is_not_bad(event):
    assert judge(event, LIMIT).bad is None


def test_route_sets_the_type():
    _, event = stored(b'{"type":"page","event":"e"}', "track")
    assert event["type"] == "track"


def test_write_key_is_not_stored():
    assert "writeKey" not in stored(b'{"type":"page","writeKey":"secret"}')[1]


@pytest.mark.parametrize(("sent", "known_by"), [("m-1", "m-1"), (17, "17"), (2**70, str(2**70)), (17.0, "17")])
def test_usable_message_id_is_kept(sent, known_by: str):
    assert judge(track(messageId=sent), LIMIT).message_id == known_by


@pytest.mark.parametrize("sent", [None, "", " \t", True, 1.5, [], {}])
def test_unusable_message_id_is_replaced(sent):
    first, second = (judge(track(messageId=sent), LIMIT) for _ in range(2))
    assert first.message_id != second.message_id
    assert json.loads(first.body)["messageId"] == first.message_id
    made = uuid.UUID(first.message_id)
    assert str(made) == first.message_id
    assert (made.version, made.variant) == (4, uuid.RFC_4122)


@pytest.mark.parametrize("levels", [MAX_DEPTH - 2, MAX_DEPTH - 1])
def test_nesting_up_to_the_limit_is_valid(levels: int):
    assert judge(decode(b'{"type":"page","p":%b}' % deep(levels)), LIMIT).bad is None


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 10, 900, 5_000, 200_000])
def test_deeper_nesting_is_bad_and_stored_cut(levels: int):
    event = decode(b'{"type":"page","messageId":"m","p":%b}' % deep(levels))
    judged = judge(event, 2**22)
    assert judged.bad == "it is nested deeper than 64 levels"
    assert judged.message_id == "m"
    assert judged.body.count(b"{") <= MAX_DEPTH + 6


@pytest.mark.parametrize(
    "nested", [deep(2_000), b"[" * 5_000 + b"]" * 5_000, b'[{"a":"]}["},' * 3_000 + b"1" + b"]" * 3_000]
)
def test_extreme_nesting_does_not_affect_other_events(nested: bytes):
    batch = decode(b'[{"type":"page","userId":"before"},{"p":%b,"q":"[{"},{"type":"page","userId":"behind"}]' % nested)
    assert [event.get("userId") for event in batch] == ["before", None, "behind"]
    assert batch[1]["q"] == "[{"
    assert [judge(event, 2**22).bad is None for event in batch] == [True, False, True]


def test_size_limit_applies_to_the_stored_text():
    padding = LIMIT - len(encode(track(pad="")))
    fits = judge(track(pad="x" * padding, writeKey="k" * 50), LIMIT)
    assert (fits.bad, len(fits.body)) == (None, LIMIT)
    too_large = judge(track(pad="x" * (padding + 1)), LIMIT)
    assert too_large.bad == "it has 32,769 bytes, more than the 32,768 allowed (outbox.max_event_bytes)"


@pytest.mark.parametrize("without_id", [False, True])
def test_what_is_added_to_an_event_does_not_count_in_its_size(without_id):
    event = track(pad="")
    if without_id:
        del event["messageId"]
    event["pad"] = "x" * (LIMIT - len(encode(event)))
    shared = {"context": {"app": "y" * (LIMIT - 100)}}
    judged = judge(event, LIMIT, None, shared)
    assert judged.bad is None
    assert LIMIT < len(judged.body) <= 2 * LIMIT
    assert decode(judged.body)["context"] == shared["context"]


def test_an_event_is_too_large_by_its_own_context():
    judged = judge(track(context={"own": "x" * LIMIT}), LIMIT, None, {"context": {"app": 1}})
    assert judged.bad.startswith("it has 32,8")


@pytest.mark.parametrize("part", [b"\xff", b"1e9", b"x" * 6], ids=["not UTF-8", "numbers", "plain"])
def test_an_event_is_judged_by_the_text_that_the_app_sent(part: bytes):
    inner = b"[%b1]" % (b"1e9," * 100) if part == b"1e9" else b'"%b"' % (part * 300)
    text = b'{"type":"page","messageId":"m","pad":"%b","p":%b}' % (b"x" * 2_000, inner)
    limit = len(text)
    assert judge(decode(text), limit, sent_bytes=limit).bad is None
    assert judge(decode(text), limit, sent_bytes=lambda: limit).bad is None
    assert judge(decode(text), limit - 1, sent_bytes=limit).bad.startswith(f"it has {limit:,} bytes, more than")


def test_a_repaired_event_is_bad_above_twice_the_limit():
    judged = judge(decode(b'{"type":"page","p":"%b"}' % (b"\xff" * 30_000)), LIMIT, sent_bytes=30_100)
    assert "as stored, more than twice the 32,768 allowed" in judged.bad
    assert len(judged.body) <= 2 * LIMIT


@pytest.mark.parametrize(
    "bad",
    [
        track(properties={"p": "x" * 10 * LIMIT}),
        track(context={"p": "x" * 5 * LIMIT}, event="Named", userId="u"),
        {"type": "nothing", **{f"k{number}": "x" * 100 for number in range(5_000)}},
        track(messageId="m" * 3 * LIMIT),
        {"type": "page", "k" * 5 * LIMIT: 1},
        ["x" * 5 * LIMIT],
        "x" * 5 * LIMIT,
        track(properties=[[[["x" * 5 * LIMIT]]]] * 2, n={"d": "\ud800"}),
    ],
)
def test_a_stored_text_is_at_most_twice_the_limit(bad):
    judged = judge(bad, LIMIT)
    assert judged.bad
    assert len(judged.body) <= 2 * LIMIT
    assert len(judged.message_id) <= LIMIT
    stored = decode_stored(judged.body)
    assert stored["shortened"]
    assert "type" not in stored, "a retry would deliver an incomplete event"


def test_a_shortened_event_keeps_its_name_and_ids():
    judged = judge(track(messageId="m1", userId="u1", event="Export", properties={"p": "x" * 10 * LIMIT}), LIMIT)
    stored = decode_stored(judged.body)
    assert (stored["messageId"], stored["userId"], stored["event"], stored["call"]) == ("m1", "u1", "Export", "track")
    assert stored["shortened"]["properties"] > 10 * LIMIT


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        ([track(writeKey="wk_a")], "list"),
        ([[{"batch": [track(writeKey="wk_a")]}]], "list"),
        (json.dumps(track(writeKey="wk_a")), "text"),
        ([["x" * 2 * LIMIT]], "list"),
        ("x" * 2 * LIMIT, "text"),
    ],
)
def test_of_a_value_that_may_hold_an_event_only_the_size_is_stored(sent, kind: str):
    """A batch in a batch, or an event encoded twice, was stored with its write key, and `forget` did not find its user."""
    judged = judge(sent, LIMIT)
    assert decode_stored(judged.body) == {"shortened": {kind: len(encode(strict(sent)))}}


@pytest.mark.parametrize("sent", [7, 0.5, True, None, "text", ["a", [1]]])
def test_another_value_that_is_no_event_is_stored_as_received(sent):
    assert decode_stored(judge(sent, LIMIT).body) == {"value": sent}


@pytest.mark.parametrize("bad", [5, None, "x", ["\ud800"], {"type": "\ud800"}, decode(deep(5_000))])
def test_stored_bad_event_can_be_decoded(bad):
    judged = judge(bad, LIMIT)
    judged.bad.encode()
    assert isinstance(decode_stored(judged.body), dict)


def test_many_flat_brackets_are_not_deep():
    event = track(properties={"list": [[n] for n in range(500)]})
    assert judge(event, LIMIT).bad is None


@pytest.mark.parametrize(
    "hostile", [b"[" * 4_000_000, b'{"a":' * 600_000, b"[NaN," + b"[]," * 1_300_000 + b"1]", b'"' + b"\\" * 4_000_000]
)
def test_hostile_body_of_4_mib_decodes_in_bounded_time(hostile: bytes):
    began_s = time.process_time()
    try:
        decode(hostile)
    except BadJson:
        pass
    assert time.process_time() - began_s < 5


@pytest.mark.parametrize("part", [b"x", rb"\n"])
def test_cutting_the_depth_takes_no_memory_for_each_character(part: bytes):
    """The regular expression kept a record of each character of a string: 100 bytes for one."""
    text = b'{"a":' + b"[" * 2_000 + b"]" * 2_000 + b',"s":"' + part * 500_000 + b'"}'
    tracemalloc.start()
    try:
        decode(text)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(text)
    finally:
        tracemalloc.stop()


def test_batch_context_is_merged_and_the_event_wins():
    batch = {"context": {"library": "batch", "app": 1}, "integrations": {"All": False}, "sentAt": "now"}
    own = {"type": "page", "context": {"library": "own"}}
    merge_batch(batch, own)
    assert own == {"type": "page", "context": {"library": "own", "app": 1}, "integrations": {"All": False}}


def test_merging_does_not_change_the_batch():
    batch = {"context": {"app": 1}}
    first, second = {"context": {"a": 1}}, {"context": {"b": 2}}
    merge_batch(batch, first)
    merge_batch(batch, second)
    assert (first["context"], second["context"]) == ({"app": 1, "a": 1}, {"app": 1, "b": 2})
    assert batch == {"context": {"app": 1}}


@pytest.mark.parametrize("own", [{"context": 5}, {"context": "x"}])
def test_event_context_that_is_not_an_object_stays(own):
    merge_batch({"context": {"a": 1}}, own)
    assert own["context"] in (5, "x")


def test_empty_list_of_php_does_not_hide_the_context_of_the_batch():
    own = {"context": [], "integrations": []}
    merge_batch({"context": {"a": 1}, "integrations": {"All": False}}, own)
    assert own == {"context": {"a": 1}, "integrations": {"All": False}}


@pytest.mark.parametrize("shared", [None, [], "x", 5, {}])
def test_batch_context_that_is_not_an_object_is_ignored(shared):
    event = {"type": "page"}
    merge_batch({"context": shared}, event)
    assert event == {"type": "page"}


def test_null_context_is_replaced_by_that_of_the_batch():
    event = {"context": None}
    merge_batch({"context": {"a": 1}}, event)
    assert event["context"] == {"a": 1}


def test_null_in_a_context_leaves_the_value_of_the_batch():
    event = {"context": {"groupId": None, "ip": None, "app": 0}, "integrations": {"All": None}}
    merge_batch({"context": {"groupId": "acme", "app": 1}, "integrations": {"All": False}}, event)
    assert event == {"context": {"groupId": "acme", "ip": None, "app": 0}, "integrations": {"All": False}}


odd_text = st.text(st.characters(), max_size=20)  # surrogates too
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(odd_text, inner, max_size=5),
)
odd_event = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["track", "page", "identify", "group"]) | odd_json,
        **dict.fromkeys(("event", "userId", "anonymousId", "groupId", "messageId", "properties", "writeKey"), odd_json),
    },
)


@given(odd_event | odd_json)
def test_judging_python_json_is_strict_and_idempotent(value):
    judged = judge(decode(json.dumps(value).encode()), LIMIT)
    event = json.loads(judged.body, parse_constant=lambda name: pytest.fail(name))
    judged.body.decode()
    judged.message_id.encode()
    if isinstance(value, dict):
        assert judge(dict(event), LIMIT).body == judged.body
        value = {key: inner for key, inner in value.items() if key != "writeKey"} | {"messageId": judged.message_id}
    if isinstance(value, dict) or b"{" not in encode_repaired(value):
        assert event == strict(value)
    else:
        assert decode_stored(judged.body).keys() == {"shortened"}


def strict(value):
    """Return the strict form of a JSON value, by the plainest code."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {strict(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strict(inner) for inner in value]
    return value


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_bad_json(data: bytes):
    try:
        value = decode(data)
    except BadJson:
        return
    json.loads(judge(value, LIMIT).body, parse_constant=lambda name: pytest.fail(name))
    assert judge(value, LIMIT).message_id


def test_made_ids_differ_between_calls_and_processes():
    """The random numbers are fetched for many ids at once: a process that is forked must not use those of its parent."""
    made = {judge(track(messageId=None), LIMIT).message_id for _ in range(1_000)}
    judged = "judge({}, 100).message_id"
    script = (
        f"import os; from sidecar.events import judge; {judged}; os.fork(); os.write(1, {judged}.encode() + b'\\n')"
    )
    forked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert (len(made), len(set(forked))) == (1_000, 2)
    assert {uuid.UUID(text).version for text in made} == {4}

"""Decoding what apps send, judging it, and the strict form in which it is kept (facts: px_and_sdks.md 3.3)."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.events import MAX_DEPTH, BadJson, decode, decode_stored, encode, merge_batch, seal

LIMIT = 32_768


def kept(text: bytes, kind: str | None = None):
    sealed = seal(decode(text), LIMIT, kind)
    return sealed, json.loads(sealed.body, parse_constant=lambda name: pytest.fail(f"{name} was kept"))


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
        (b'"\\u0000"', "\0"),
        (b"null", None),
        (b'"2024-01-02T03:04:05.678901"', "2024-01-02T03:04:05.678901"),
    ],
)
def test_a_value_that_sdks_send_is_kept_as_strict_json(sent: bytes, value):
    sealed, event = kept(b'{"type":"track","event":"e","userId":"u","properties":{"p":%b}}' % sent)
    assert event["properties"] == {"p": value}
    assert sealed.bad is None


def test_lone_surrogates_are_mended_in_names_too():
    sealed, event = kept(b'{"type":"track","event":"\\ud800","userId":"\\udfff","messageId":"\\ud801","\\udc01":1}')
    assert (event["event"], event["userId"], event["\ufffd"]) == ("\ufffd", "\ufffd", 1)
    assert sealed.message_id == event["messageId"] == "\ufffd"
    assert sealed.event == event
    assert sealed.bad is None


def test_explicit_nulls_are_no_mistake():
    sealed, event = kept(b'{"type":"group","userId":null,"anonymousId":null,"groupId":null,"event":null}')
    assert sealed.bad is None
    assert event["userId"] is None


def test_a_byte_order_mark_is_passed_over():
    assert decode(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


@pytest.mark.parametrize("text", [b"", b" ", b"{", b'{"a":1}x', b'{"a":01}', b"'a'", b"\xff\xfe", b"-", b"[" * 10_000])
def test_what_is_no_json_at_all_is_refused_with_its_place(text: bytes):
    with pytest.raises(BadJson, match="at character"):
        decode(text)


@pytest.mark.parametrize(
    ("event", "why"),
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
def test_what_cannot_be_delivered_is_bad_and_says_why(event, why: str):
    sealed = seal(event, LIMIT)
    assert why in (sealed.bad or "")
    assert sealed.message_id
    json.loads(sealed.body)


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
def test_what_is_odd_but_means_something_is_not_bad(event):
    assert seal(event, LIMIT).bad is None


def test_the_route_gives_the_type():
    _, event = kept(b'{"type":"page","event":"e"}', "track")
    assert event["type"] == "track"


def test_a_write_key_is_not_kept():
    assert "writeKey" not in kept(b'{"type":"page","writeKey":"secret"}')[1]


@pytest.mark.parametrize(("sent", "known_by"), [("m-1", "m-1"), (17, "17"), (2**70, str(2**70))])
def test_a_message_id_that_can_be_used_is(sent, known_by: str):
    assert seal(track(messageId=sent), LIMIT).message_id == known_by


@pytest.mark.parametrize("sent", [None, "", True, 1.5, [], {}])
def test_without_a_usable_message_id_an_event_gets_one(sent):
    first, second = (seal(track(messageId=sent), LIMIT) for _ in range(2))
    assert first.message_id != second.message_id
    assert json.loads(first.body)["messageId"] == first.message_id


@pytest.mark.parametrize("levels", [MAX_DEPTH - 2, MAX_DEPTH - 1])
def test_an_event_may_be_nested_as_deep_as_allowed(levels: int):
    assert seal(decode(b'{"type":"page","p":%b}' % deep(levels)), LIMIT).bad is None


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 10, 900, 5_000, 200_000])
def test_deeper_is_bad_and_kept_only_as_deep_as_can_be_shown(levels: int):
    event = decode(b'{"type":"page","messageId":"m","p":%b}' % deep(levels))
    sealed = seal(event, 2**22)
    assert sealed.bad == "it is nested deeper than 64 levels"
    assert sealed.message_id == "m"
    assert sealed.body.count(b"{") <= MAX_DEPTH + 6


@pytest.mark.parametrize(
    "nested", [deep(2_000), b"[" * 5_000 + b"]" * 5_000, b'[{"a":"]}["},' * 3_000 + b"1" + b"]" * 3_000]
)
def test_absurd_nesting_does_not_cost_the_events_beside_it(nested: bytes):
    batch = decode(b'[{"type":"page","userId":"before"},{"p":%b,"q":"[{"},{"type":"page","userId":"behind"}]' % nested)
    assert [event.get("userId") for event in batch] == ["before", None, "behind"]
    assert batch[1]["q"] == "[{"
    assert [seal(event, 2**22).bad is None for event in batch] == [True, False, True]


def test_the_limit_of_size_is_of_the_strict_text_without_the_write_key():
    room = LIMIT - len(encode(track(pad="")))
    fits = seal(track(pad="x" * room, writeKey="k" * 50), LIMIT)
    assert (fits.bad, len(fits.body)) == (None, LIMIT)
    too_large = seal(track(pad="x" * (room + 1)), LIMIT)
    assert too_large.bad == "it has 32,769 bytes, more than the 32,768 allowed (outbox.max_event_bytes)"


@pytest.mark.parametrize("bad", [5, None, "x", ["\ud800"], {"type": "\ud800"}, decode(deep(5_000))])
def test_what_is_kept_of_a_bad_event_can_be_read_again_and_told(bad):
    sealed = seal(bad, LIMIT)
    sealed.bad.encode()
    assert isinstance(decode_stored(sealed.body), dict)


def test_many_flat_brackets_are_not_deep():
    event = track(properties={"list": [[n] for n in range(500)]})
    assert seal(event, LIMIT).bad is None


@pytest.mark.parametrize(
    "hostile", [b"[" * 4_000_000, b'{"a":' * 600_000, b"[NaN," + b"[]," * 1_300_000 + b"1]", b'"' + b"\\" * 4_000_000]
)
def test_four_mebibytes_of_anything_take_no_time_worth_mentioning(hostile: bytes):
    began_s = time.process_time()
    try:
        decode(hostile)
    except BadJson:
        pass
    assert time.process_time() - began_s < 5


def test_context_and_integrations_of_a_batch_go_into_its_events_and_theirs_win():
    batch = {"context": {"library": "batch", "app": 1}, "integrations": {"All": False}, "sentAt": "now"}
    own = {"type": "page", "context": {"library": "own"}}
    merge_batch(batch, own)
    assert own == {"type": "page", "context": {"library": "own", "app": 1}, "integrations": {"All": False}}


def test_events_of_one_batch_do_not_share_what_they_change():
    batch = {"context": {"app": 1}}
    first, second = {"context": {"a": 1}}, {"context": {"b": 2}}
    merge_batch(batch, first)
    merge_batch(batch, second)
    assert (first["context"], second["context"]) == ({"app": 1, "a": 1}, {"app": 1, "b": 2})
    assert batch == {"context": {"app": 1}}


@pytest.mark.parametrize("own", [{"context": 5}, {"context": "x"}])
def test_an_odd_context_of_an_event_stays(own):
    merge_batch({"context": {"a": 1}}, own)
    assert own["context"] in (5, "x")


@pytest.mark.parametrize("shared", [None, [], "x", 5, {}])
def test_an_odd_context_of_a_batch_is_passed_over(shared):
    event = {"type": "page"}
    merge_batch({"context": shared}, event)
    assert event == {"type": "page"}


def test_a_null_context_of_an_event_takes_that_of_its_batch():
    event = {"context": None}
    merge_batch({"context": {"a": 1}}, event)
    assert event["context"] == {"a": 1}


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
def test_whatever_python_calls_json_is_sealed_strictly_and_only_once(value):
    sealed = seal(decode(json.dumps(value).encode()), LIMIT)
    event = json.loads(sealed.body, parse_constant=lambda name: pytest.fail(name))
    sealed.body.decode()
    sealed.message_id.encode()
    if isinstance(value, dict):
        assert seal(dict(event), LIMIT).body == sealed.body
        value = {key: one for key, one in value.items() if key != "writeKey"} | {"messageId": sealed.message_id}
    assert event == strict(value)


def strict(value):
    """What must be kept of a JSON value, said in the plainest way."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {strict(key): strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [strict(one) for one in value]
    return value


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_said_not_to_be(data: bytes):
    try:
        value = decode(data)
    except BadJson:
        return
    seal(value, LIMIT)

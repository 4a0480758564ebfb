"""Routes, write keys, refusals and answers over HTTP, byte for byte where an SDK depends on them.

The facts about SDKs are in sidecar/receive/README.md#sdks.
"""

import base64
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receive_harness import MAX_EVENT_BYTES, MAX_REQUEST_BYTES, answers, basic, receiving, track

from sidecar.http import Request
from sidecar.outbox import DiskFull, OutboxFull, StoreFailed
from sidecar.receive.parse import MAX_EVENTS

OK = b'{"success":true,"accepted":1}'
TWO_SOURCES = [("wk_web", "AP-WEB-2"), ("wk_app", "AP-APP-2")]


def batch(*events, **more) -> dict:
    return {"batch": list(events), **more}


@pytest.mark.parametrize("kind", ["track", "identify", "page", "screen", "group", "alias"])
@pytest.mark.parametrize("form", ["/v1/{}", "/v1/{}/", "//v1/{}", "/v1//{}//", "/v1/{}?x=1"])
async def test_single_call_routes_set_the_type(tmp_path, kind: str, form: str):
    async with receiving(tmp_path / "o.db") as harness:
        answer = await harness.post(form.format(kind), {"event": "Searched", "userId": "u"})
        assert (answer.status, answer.body) == (200, OK)
        assert answer.headers["content-type"] == "application/json"
        assert [event["type"] for event in harness.stored()] == [kind]


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/import", "/v1/b", "/v1/batch/", "//v1/import/", "/v1/b/"])
async def test_batch_routes_store_all_events(tmp_path, path: str):
    async with receiving(tmp_path / "o.db") as harness:
        answer = await harness.post(path, batch(track(1), track(2), sentAt="2024-01-02T03:04:05Z"))
        assert (answer.status, answer.body) == (200, b'{"success":true,"accepted":2}')
        assert [event["messageId"] for event in harness.stored()] == ["m1", "m2"]


async def test_cluster_info_answers_rudderstacks_go_sdk(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        (answer,) = answers(await harness.exchange(b"GET /cluster-info HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert (answer.status, answer.body) == (200, b'{"nodeCount":1}')


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


BODY = json.dumps(batch(track())).encode()
GZIP = gzip.compress(BODY)


@pytest.mark.parametrize(
    "wire",
    [
        b"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1:8321\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        b"POST /v1/batch HTTP/1.1\r\nHost: [::1]:8321\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
        # rudder-sdk-node: gzip JSON with the content type of a form
        b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(GZIP), GZIP),
        # rudder-sdk-java: gzip of unknown length
        b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n%b"
        % chunked(GZIP),
        b"POST /v1/import/ HTTP/1.1\r\nHost: LOCALHOST:1\r\nTransfer-Encoding: chunked\r\n\r\n%b" % chunked(BODY),
        b"POST /v1/b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        b"POST http://127.0.0.1:8321/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
        b"POST /v1/b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
    ],
    ids=["plain", "json", "form+gzip", "gzip+chunked", "chunked", "http/1.0", "absolute", "close"],
)
async def test_every_framing_of_the_sdks_is_accepted(tmp_path, wire: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        (answer,) = answers(await harness.exchange(wire))
        assert (answer.status, answer.body) == (200, OK)
        assert harness.count() == 1


async def test_expect_100_is_answered_before_the_body(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect()
        head = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % len(BODY))
        assert await stream.receive_some(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(BODY)
        (answer,) = answers(bytes(await stream.receive_some(1000)))
        assert answer.body == OK


async def test_pipelined_requests_are_answered_in_order(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        bodies = [json.dumps(batch(*[track(f"{n}-{m}") for m in range(n)])).encode() for n in (1, 3, 2)]
        wire = b"".join(
            b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in bodies
        )
        received = answers(await harness.exchange(wire))
        assert [answer.json["accepted"] for answer in received] == [1, 3, 2]


# Write keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["team:app", "clé", "a:b:c"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_any_write_key_is_known_by_its_basic_header(tmp_path, key, encoding):
    """SDKs send the key with an empty password; a colon in it cut it, and Python's SDKs send Latin-1."""
    header = "Authorization: Basic " + base64.b64encode(f"{key}:".encode(encoding)).decode()
    async with receiving(tmp_path / "o.db", sources=[(key, "AP-1")]) as harness:
        assert (await harness.post("/v1/track", track(), header)).body == OK


@pytest.mark.parametrize(
    ("headers", "body_key"),
    [
        ([basic("wk_app:")], None),
        ([basic("wk_app")], None),
        ([basic("wk_app:ignored")], None),
        ([basic("wk_app").rstrip("=")], None),
        (["authorization: basic " + basic("wk_app:").split()[-1]], None),
        (["Authorization: Bearer some.oauth.token"], "wk_app"),
        ([basic(":")], "wk_app"),
        ([], "wk_app"),
        (["Authorization: Basic %%%"], "wk_app"),
        ([basic("wk_app:")], "wk_web"),
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_write_key_selects_the_source_from_header_or_body(tmp_path, headers, body_key, kind):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        key = {} if body_key is None else {"writeKey": body_key}
        assert (await harness.post("/v1/batch", batch(track(1), **key), *headers, kind=kind)).body == OK
        assert (await harness.post("/v1/track", track(2) | key, *headers, kind=kind)).body == OK
        assert harness.products() == ["AP-APP-2", "AP-APP-2"]
        assert all("writeKey" not in event for event in harness.stored())


@pytest.mark.parametrize(
    ("headers", "key"),
    [([], {}), ([], {"writeKey": "wk_we"}), ([basic("wk_web2:")], {}), ([], {"writeKey": 5}), ([], {"writeKey": None})],
)
async def test_unknown_key_is_refused_over_tcp_but_not_over_unix(tmp_path, headers, key):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        for path, body in (("/v1/batch", batch(track(1), **key)), ("/v1/track", track(2) | key)):
            answer = await harness.post(path, body, *headers)
            message = "The write key is missing or unknown; use one of the configured [[source]] write keys."
            assert answer.status == 400
            assert answer.json == {
                "success": False,
                "code": "unknown_write_key",
                "message": message,
                "error": message,
            }
        assert harness.count() == 0
        assert harness.refused == ["unknown_write_key"] * 2
        assert (await harness.post("/v1/batch", batch(track(1), **key), *headers, kind="unix")).body == OK
        assert harness.products() == [None]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_events_have_their_own_key_or_that_of_the_first(tmp_path, kind):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        events = [track(1, writeKey="wk_web"), track(2, writeKey="wk_app"), track(3), 7]
        assert (await harness.post("/v1/batch", batch(*events), kind=kind)).json["accepted"] == 4
        assert harness.products() == ["AP-WEB-2", "AP-APP-2", "AP-WEB-2", "AP-WEB-2"]
        answer = await harness.post("/v1/batch", batch(track(4, writeKey="wk_app")), basic("wk_web:"), kind=kind)
        assert answer.body == OK
        assert harness.products()[-1] == "AP-WEB-2"


async def test_no_key_of_a_batch_in_a_batch_is_stored(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        call = track(1, writeKey="wk_app")
        answer = await harness.post("/v1/batch", batch([call], json.dumps(call)), basic("wk_web:"))
        assert [entry["index"] for entry in answer.json["refused"]] == [0, 1]
        assert [list(event["shortened"]) for event in harness.stored()] == [["list"], ["text"]]


async def test_unknown_key_of_one_event_refuses_the_tcp_request(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        events = [track(1, writeKey="wk_web"), track(2, writeKey="wk_other")]
        assert (await harness.post("/v1/batch", batch(*events))).json["code"] == "unknown_write_key"
        assert harness.count() == 0
        assert (await harness.post("/v1/batch", batch(*events), kind="unix")).status == 200
        assert harness.products() == ["AP-WEB-2", None]


async def test_one_line_may_hold_events_of_several_sources(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        await harness.lines([track(1, writeKey="wk_web"), track(2, writeKey="wk_app")], track(3, writeKey="wk_app"))
        assert harness.products() == ["AP-WEB-2", "AP-APP-2", "AP-APP-2"]


async def test_without_sources_any_key_is_accepted(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        assert (await harness.post("/v1/track", track(), basic("whatever:"))).body == OK


async def test_same_message_id_of_two_sources_is_two_events(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as harness:
        for key in ("wk_web", "wk_app", "wk_web"):
            await harness.post("/v1/track", track(), basic(key))
        assert harness.products() == ["AP-WEB-2", "AP-APP-2"]


# Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "code", "word"),
    [
        ("/v1/batch", b"", "bad_json", "Expecting value at character 0"),
        ("/v1/batch", b"not json", "bad_json", "character 0"),
        ("/v1/track", b'{"event":', "bad_json", "character 9"),
        ("/v1/batch", b"[]", "bad_json", "no list `batch`"),
        ("/v1/batch", b'{"batch":{}}', "bad_json", "no list `batch`"),
        ("/v1/batch", b"null", "bad_json", "no list `batch`"),
        ("/v1/track", b"[]", "bad_event", "not a JSON object"),
        ("/v1/track", b'{"userId":"u"}', "bad_event", "text `event`"),
        ("/v1/page", b'{"userId":[]}', "bad_event", "userId is a list"),
        ("/v1/page", b'{"userId":"%b"}' % (b"x" * MAX_EVENT_BYTES), "bad_event", "more than the 2,000 allowed"),
        ("/v1/track", b" " * (MAX_REQUEST_BYTES + 1), "too_large", "raise outbox.max_request_bytes"),
        ("/v1/batch", b'{"batch":[%b1]}' % (b"1," * MAX_EVENTS), "too_large", "more than 10,000 events"),
        (
            "/v1/batch",
            b'{"context":{"a":"%b"},"batch":[%b{}]}' % (b"x" * 9000, b"{}," * 1_000),
            "too_large",
            "more than the 2,000 allowed (outbox.max_event_bytes)",
        ),
    ],
)
async def test_permanent_refusals_are_400_with_code_and_error(tmp_path, path, body, code, word):
    async with receiving(tmp_path / "o.db") as harness:
        if len(body) > MAX_REQUEST_BYTES and code == "too_large" and "raise" not in word:
            answer = harness.parser.parse(body, "batch", None, trusted=False)
            status, parsed = answer.status, json.loads(answer.body)
        else:
            answer = await harness.post(path, body)
            status, parsed = answer.status, answer.json
            assert "retry-after" not in answer.headers
            assert answer.headers["content-type"] == "application/json"
        assert status == 400
        assert list(parsed) == ["success", "code", "message", "error"]
        assert parsed["success"] is False
        assert parsed["code"] == code
        assert word in parsed["message"]
        assert parsed["error"] == parsed["message"]
        assert harness.count() == 0


@pytest.mark.parametrize(
    ("wire", "status", "code"),
    [
        (b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"x" * 40_000), 400, "too_large"),
        (b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (b"X: y\r\n" * 200), 400, "too_large"),
        (
            b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x01\x02",
            400,
            "bad_json",
        ),
        (
            b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n\x01\x02",
            400,
            "bad_json",
        ),
        (b"HELO example\r\n\r\n", 400, "bad_request"),
        (b"GET /v1/track HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "method_not_allowed"),
        (b"PUT /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 405, "method_not_allowed"),
        (b"POST /cluster-info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405, "method_not_allowed"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 404, "not_found"),
        (b"POST /v2/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 404, "not_found"),
    ],
)
async def test_refusals_before_a_route_have_the_same_form(tmp_path, wire, status, code):
    async with receiving(tmp_path / "o.db") as harness:
        (answer,) = answers(await harness.exchange(wire))
        assert (answer.status, answer.json["code"]) == (status, code)
        assert answer.json["success"] is False
        assert answer.json["message"] == answer.json["error"]
        assert answer.headers.get("allow") == {405: "GET" if b"cluster" in wire else "POST"}.get(status)
        assert harness.refused == ([code] if status == 400 else [])


@pytest.mark.parametrize("depth", range(900, 1_000, 5))
async def test_very_deep_batch_context_is_answered_400(tmp_path, depth):
    """At one depth the JSON could be decoded but not encoded again to measure it, and the answer was always 500."""
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    async with receiving(tmp_path / "o.db") as harness:
        for at in range(5):
            deeper = nested.replace(b"1", b'{"a":' * at + b"1" + b"}" * at)
            parsed = harness.parser.parse(b'{"context":%b,"batch":[{}]}' % deeper, "batch", None, trusted=False)
            assert getattr(parsed, "status", 400) == 400


async def test_gzip_bomb_is_refused(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        bomb = gzip.compress(bytes(50 * 2**20))
        answer = await harness.post("/v1/batch", gzip.compress(bytes(MAX_REQUEST_BYTES + 1)), "Content-Encoding: gzip")
        assert (answer.status, answer.json["code"]) == (400, "too_large")
        answer = await harness.post("/v1/batch", bomb, "Content-Encoding: gzip")
        assert (answer.status, answer.json["code"]) == (400, "too_large")


async def test_slow_request_is_answered_408(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as harness:
        stream = harness.connect()
        await stream.send_all(b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        (answer,) = answers(bytes(await stream.receive_some(1000)))
        assert (answer.status, answer.json["code"], answer.headers["connection"]) == (408, "timeout", "close")


@pytest.mark.parametrize(
    ("error", "code"),
    [(OutboxFull("The outbox is full."), "outbox_full"), (DiskFull("The disk is full."), "disk_full")],
)
async def test_full_outbox_is_answered_503_with_retry_after(tmp_path, error, code):
    async with receiving(tmp_path / "o.db") as harness:
        harness.capacity.full = code
        answer = await harness.post("/v1/batch", batch(track()))
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert answer.json["code"] == code == error.code
        assert answer.json["success"] is False
        assert harness.refused == [code]
        harness.capacity.full = None
        assert (await harness.post("/v1/batch", batch(track()))).body == OK


async def test_failed_write_is_answered_disk_error(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:

        def fail(_events):
            raise StoreFailed("The outbox could not be written.")

        harness.outbox.submit = fail
        answer = await harness.post("/v1/batch", batch(track()))
        assert (answer.status, answer.headers["retry-after"], answer.json["code"]) == (503, "10", "disk_error")
        assert answer.json["error"] == "The outbox could not be written."


async def test_too_large_body_names_the_setting_to_raise(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        answer = await harness.post("/v1/batch", b" " * (MAX_REQUEST_BYTES + 1))
        message = "The body is larger than 20000 bytes; send it in smaller parts, or raise outbox.max_request_bytes."
        assert answer.json == {"success": False, "code": "too_large", "message": message, "error": message}


async def test_origin_is_refused_over_tcp_and_ignored_over_unix(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        for header in (
            "Origin: http://localhost:8321",
            "Origin: null",
            "Origin: https://evil.example",
            "Origin:",
        ):
            answer = await harness.post("/v1/track", track(), header)
            assert (answer.status, answer.json["code"]) == (403, "foreign_origin")
        assert harness.count() == 0
        assert (await harness.post("/v1/track", track(), "Origin: null", kind="unix")).body == OK


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8321",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"evil.example@127.0.0.1",
        b"192.168.0.1",
        b"0.0.0.0:8321",
        b"[::2]:8321",
        b"[::ffff:10.0.0.1]",
        b"localhost.example",
        b"px.internal",
        b"",
    ],
)
async def test_foreign_host_is_refused_over_tcp_but_not_over_unix(tmp_path, host: bytes):
    async with receiving(tmp_path / "o.db") as harness:
        wire = b"POST /v1/batch HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (host, len(BODY), BODY)
        absolute = b"POST http://%b/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        (answer,) = answers(await harness.exchange(wire))
        assert (answer.status, answer.json["code"]) == (403, "foreign_host")
        if host and b"@" not in host:
            (answer,) = answers(await harness.exchange(absolute % (host, len(BODY), BODY)))
            assert (answer.status, answer.json["code"]) == (403, "foreign_host")
        assert harness.count() == 0
        (answer,) = answers(await harness.exchange(wire, "unix"))
        assert answer.body == OK


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1",
        b"127.255.0.3:80",
        b"[::1]:8321",
        b"[::ffff:127.0.0.1]",
        b"[::FFFF:7f00:1]:8321",
        b"LocalHost.",
        b"app.localhost:8321",
        b"ip6-localhost:8321",
        b"ip6-loopback",
        b"px.internal:8321",
    ],
)
async def test_loopback_names_and_the_configured_one_are_own_hosts(tmp_path, host: bytes):
    async with receiving(tmp_path / "o.db", own_hosts={"px.internal"}) as harness:
        wire = b"POST /v1/batch HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (host, len(BODY), BODY)
        (answer,) = answers(await harness.exchange(wire))
        assert answer.body == OK


async def test_allow_remote_accepts_any_host_but_no_origin(tmp_path):
    async with receiving(tmp_path / "o.db", foreign_hosts=True) as harness:
        wire = b"POST /v1/batch HTTP/1.1\r\nHost: events.example\r\n%bContent-Length: %d\r\n\r\n%b"
        (answer,) = answers(await harness.exchange(wire % (b"", len(BODY), BODY)))
        assert answer.body == OK
        (answer,) = answers(await harness.exchange(wire % (b"Origin: http://events.example\r\n", len(BODY), BODY)))
        assert answer.status == 403


# Event by event -----------------------------------------------------------------------------------------------


async def test_bad_events_of_a_batch_are_stored_dead_and_named(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        odd = {"type": "track", "messageId": "odd", "userId": "u"}
        answer = await harness.post("/v1/batch", batch(track(1), odd, track(2), "text", track(1)))
        assert answer.status == 200
        refused = answer.json.pop("refused")
        assert answer.json | {"refused": 0} == {"success": True, "accepted": 4, "repeated": 1, "refused": 0}
        assert [(entry["index"], entry["code"]) for entry in refused] == [(1, "bad_event"), (3, "bad_event")]
        assert refused[0]["messageId"] == "odd"
        assert refused[0]["message"].startswith("The event cannot be accepted: a track call needs")
        assert refused[1]["messageId"]
        assert [reason for reason, _ in harness.dead()] == ["bad_event", "bad_event"]
        assert harness.stored() == [track(1), odd, track(2), "text"]
        assert harness.refused == ["bad_event", "bad_event"]
        counters = harness.outbox.counters
        assert (counters["accepted"], counters["pending_normal"], counters["dead:bad_event"]) == (4, 2, 2)


async def test_one_odd_event_does_not_refuse_its_batch(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        absurd = b'{"p":' + b"[" * 1_500 + b"]" * 1_500 + b"}"
        events = [
            b'{"type":"track","event":"\\ud800","userId":"u","messageId":"a"}',
            b'{"type":"track","event":"e","userId":"u","messageId":"b","properties":{"p":NaN,"q":-Infinity}}',
            absurd,
            json.dumps(track("c")).encode(),
        ]
        answer = await harness.post("/v1/batch", b'{"batch":[%b]}' % b",".join(events))
        assert answer.json["accepted"] == 4
        assert [entry["index"] for entry in answer.json["refused"]] == [2]
        stored = harness.stored()
        assert stored[0]["event"] == "\ufffd"
        assert stored[1]["properties"] == {"p": None, "q": None}
        assert stored[3] == track("c")


async def test_event_with_null_ids_is_accepted(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        answer = await harness.post("/v1/track", {"event": "e", "userId": None, "anonymousId": None})
        assert answer.body == OK
        assert harness.dead() == []


async def test_fields_of_rudderstack_and_go_are_kept(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        rudder = {
            "type": "identify",
            "userId": "u",
            "messageId": "m",
            "channel": "server",
            "context": {"traits": {"email": "e"}},
            "originalTimestamp": "2024-01-02T03:04:05.678901Z",
            "sentAt": "2024-01-02T03:04:06Z",
        }
        go_context = {"library": {"name": "analytics-go", "version": "3.0.0"}}
        await harness.post("/v1/batch", batch(rudder, context=go_context, integrations={"All": True}, messageId="x"))
        (stored,) = harness.stored()
        assert stored == rudder | {"context": go_context | rudder["context"], "integrations": {"All": True}}


async def test_empty_batch_is_a_success(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        assert (await harness.post("/v1/batch", batch())).body == b'{"success":true,"accepted":0}'


async def test_stored_events_are_reported_as_accepted(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        await harness.post("/v1/batch", batch(track(1), track(2)))
        assert harness.accepted == ["m1", "m2"]


# Repeats ------------------------------------------------------------------------------------------------------


async def test_repeated_id_is_a_success_and_stored_once(tmp_path):
    path = tmp_path / "o.db"
    async with receiving(path) as harness:
        answer = await harness.post("/v1/batch", batch(track(1), track(1, anonymousId="other"), track(2)))
        assert answer.body == b'{"success":true,"accepted":2,"repeated":1}'
        answer = await harness.post("/v1/track", track(1))
        assert (answer.status, answer.body) == (200, b'{"success":true,"accepted":0,"repeated":1}')
    async with receiving(path) as harness:
        answer = await harness.post("/v1/batch", batch(track(2), track(3)))
        assert answer.body == b'{"success":true,"accepted":1,"repeated":1}'
        assert [event["messageId"] for event in harness.stored()] == ["m1", "m2", "m3"]
        assert harness.stored()[0]["event"] == "Feature Used"
        assert harness.outbox.counters["repeated"] == 3


async def test_a_repeat_is_not_reported_as_accepted(tmp_path):
    """The counters by name and source, and the feed, would have more accepted events than the outbox."""
    async with receiving(tmp_path / "o.db") as harness:
        await harness.post("/v1/batch", batch(track(1), track(1), track(2)))
        await harness.post("/v1/track", track(1))
        assert harness.accepted == ["m1", "m2"]


async def test_id_that_is_a_mistake_of_the_app_makes_no_repeats(tmp_path):
    """``String(undefined)`` as the id of every call lost all of them but the first."""
    async with receiving(tmp_path / "o.db") as harness:
        for sent in ("undefined", "null", " "):
            answer = await harness.post("/v1/batch", batch(*(track(1, messageId=sent) for _ in range(2))))
            assert answer.body == b'{"success":true,"accepted":2}'
            answer = await harness.post("/v1/track", track(1, messageId=sent))
            assert answer.body == b'{"success":true,"accepted":1}'
        assert len({event["messageId"] for event in harness.stored()}) == 9


async def test_repeated_bad_event_is_stored_once(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        for accepted in (1, 0):
            answer = await harness.post("/v1/batch", batch({"type": "odd", "messageId": "m"}))
            assert (answer.status, answer.json["accepted"]) == (200, accepted)
        assert len(harness.dead()) == 1


async def test_events_without_an_id_are_never_duplicates(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        answer = await harness.post("/v1/batch", batch(*[{"type": "page", "userId": "u"}] * 3))
        assert answer.json["accepted"] == 3


# Anything -----------------------------------------------------------------------------------------------------

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
any_event = any_json | st.fixed_dictionaries(
    {"type": st.sampled_from(["track", "page"])},
    optional={"event": any_json, "userId": any_json, "messageId": any_json},
)


@given(st.lists(any_event, max_size=8), any_json)
async def test_any_batch_is_stored_and_its_counts_add_up(tmp_path_factory, events, context):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as harness:
        body = json.dumps(batch(*events, context=context)).encode()
        response = await harness.routes.over_tcp(Request("POST", "/v1/batch", "", [], body, "1.1", True))
        answer = json.loads(response.body)
        assert response.status == 200, answer
        assert answer["accepted"] + answer.get("repeated", 0) == len(events)
        assert answer["accepted"] == harness.count() == harness.outbox.counters.get("accepted", 0)
        assert len(harness.dead()) <= len(answer.get("refused", []))
        for event in harness.stored():
            json.dumps(event).encode()


@given(any_json, st.sampled_from(["/v1/track", "/v1/page", "/v1/batch", "/v1/alias"]))
async def test_any_json_is_answered_200_or_400(tmp_path_factory, value, path: str):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as harness:
        response = await harness.routes.over_tcp(Request("POST", path, "", [], json.dumps(value).encode(), "1.1", True))
        assert response.status in (200, 400)
        assert harness.count() == json.loads(response.body).get("accepted", 0)

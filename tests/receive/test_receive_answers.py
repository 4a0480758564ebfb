"""Every way in over HTTP and every answer, byte for byte where an SDK depends on it (DESIGN 2, px_and_sdks.md 3)."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receive_help import MAX_EVENT_BYTES, MAX_REQUEST_BYTES, answers, basic, receiving, track

from sidecar.http import Request
from sidecar.outbox import DiskFull, OutboxFull, StoreFailed
from sidecar.receive.intake import MAX_EVENTS

OK = b'{"success":true,"accepted":1}'
TWO_SOURCES = [("wk_web", "AP-WEB-2"), ("wk_app", "AP-APP-2")]


def batch(*events, **more) -> dict:
    return {"batch": list(events), **more}


@pytest.mark.parametrize("kind", ["track", "identify", "page", "screen", "group", "alias"])
@pytest.mark.parametrize("form", ["/v1/{}", "/v1/{}/", "//v1/{}", "/v1//{}//", "/v1/{}?x=1"])
async def test_the_single_routes_give_the_type(tmp_path, kind: str, form: str):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.post(form.format(kind), {"event": "Searched", "userId": "u"})
        assert (said.status, said.body) == (200, OK)
        assert said.headers["content-type"] == "application/json"
        assert [event["type"] for event in rooms.stored()] == [kind]


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/import", "/v1/b", "/v1/batch/", "//v1/import/", "/v1/b/"])
async def test_the_batch_routes(tmp_path, path: str):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.post(path, batch(track(1), track(2), sentAt="2024-01-02T03:04:05Z"))
        assert (said.status, said.body) == (200, b'{"success":true,"accepted":2}')
        assert [event["messageId"] for event in rooms.stored()] == ["m1", "m2"]


async def test_cluster_info_is_answered_as_rudders_go_sdk_wants_it(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        (said,) = answers(await rooms.exchange(b"GET /cluster-info HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert (said.status, said.body) == (200, b'{"nodeCount":1}')


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
        # rudder-sdk-node: gzip JSON under a form's type
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
async def test_every_framing_an_sdk_uses(tmp_path, wire: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        (said,) = answers(await rooms.exchange(wire))
        assert (said.status, said.body) == (200, OK)
        assert rooms.count() == 1


async def test_a_client_that_expects_100_gets_it_before_it_sends_its_body(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect()
        head = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % len(BODY))
        assert await stream.receive_some(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(BODY)
        (said,) = answers(bytes(await stream.receive_some(1000)))
        assert said.body == OK


async def test_pipelined_requests_are_answered_in_order(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        bodies = [json.dumps(batch(*[track(f"{n}-{m}") for m in range(n)])).encode() for n in (1, 3, 2)]
        wire = b"".join(
            b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in bodies
        )
        said = answers(await rooms.exchange(wire))
        assert [one.json["accepted"] for one in said] == [1, 3, 2]


# Write keys ---------------------------------------------------------------------------------------------------


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
async def test_the_write_key_chooses_the_source_wherever_it_comes_from(tmp_path, headers, body_key, kind):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        key = {} if body_key is None else {"writeKey": body_key}
        assert (await rooms.post("/v1/batch", batch(track(1), **key), *headers, kind=kind)).body == OK
        assert (await rooms.post("/v1/track", track(2) | key, *headers, kind=kind)).body == OK
        assert rooms.products() == ["AP-APP-2", "AP-APP-2"]
        assert all("writeKey" not in event for event in rooms.stored())


@pytest.mark.parametrize(
    ("headers", "key"),
    [([], {}), ([], {"writeKey": "wk_we"}), ([basic("wk_web2:")], {}), ([], {"writeKey": 5}), ([], {"writeKey": None})],
)
async def test_over_tcp_an_unknown_key_is_refused_and_over_unix_it_is_not_asked_for(tmp_path, headers, key):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        for path, body in (("/v1/batch", batch(track(1), **key)), ("/v1/track", track(2) | key)):
            said = await rooms.post(path, body, *headers)
            message = "The write key is missing or unknown; use one of the configured [[source]] write keys."
            assert said.status == 400
            assert said.json == {
                "success": False,
                "code": "unknown_write_key",
                "message": message,
                "error": message,
            }
        assert rooms.count() == 0
        assert rooms.refused == ["unknown_write_key"] * 2
        assert (await rooms.post("/v1/batch", batch(track(1), **key), *headers, kind="unix")).body == OK
        assert rooms.products() == [None]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_without_a_key_of_the_request_each_event_has_its_own_or_the_first_ones(tmp_path, kind):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        events = [track(1, writeKey="wk_web"), track(2, writeKey="wk_app"), track(3), 7]
        assert (await rooms.post("/v1/batch", batch(*events), kind=kind)).json["accepted"] == 4
        assert rooms.products() == ["AP-WEB-2", "AP-APP-2", "AP-WEB-2", "AP-WEB-2"]
        said = await rooms.post("/v1/batch", batch(track(4, writeKey="wk_app")), basic("wk_web:"), kind=kind)
        assert said.body == OK
        assert rooms.products()[-1] == "AP-WEB-2"


async def test_one_unknown_key_among_the_events_costs_the_request_over_tcp(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        events = [track(1, writeKey="wk_web"), track(2, writeKey="wk_other")]
        assert (await rooms.post("/v1/batch", batch(*events))).json["code"] == "unknown_write_key"
        assert rooms.count() == 0
        assert (await rooms.post("/v1/batch", batch(*events), kind="unix")).status == 200
        assert rooms.products() == ["AP-WEB-2", None]


async def test_a_line_of_several_events_may_come_from_several_sources(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        await rooms.lines([track(1, writeKey="wk_web"), track(2, writeKey="wk_app")], track(3, writeKey="wk_app"))
        assert rooms.products() == ["AP-WEB-2", "AP-APP-2", "AP-APP-2"]


async def test_without_sources_any_key_will_do(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        assert (await rooms.post("/v1/track", track(), basic("whatever:"))).body == OK


async def test_the_same_message_id_of_two_sources_is_two_events(tmp_path):
    async with receiving(tmp_path / "o.db", sources=TWO_SOURCES) as rooms:
        for key in ("wk_web", "wk_app", "wk_web"):
            await rooms.post("/v1/track", track(), basic(key))
        assert rooms.products() == ["AP-WEB-2", "AP-APP-2"]


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
            "own context is too large",
        ),
    ],
)
async def test_what_will_never_be_accepted_is_a_400_that_every_sdk_understands(tmp_path, path, body, code, word):
    async with receiving(tmp_path / "o.db") as rooms:
        if len(body) > MAX_REQUEST_BYTES and code == "too_large" and "raise" not in word:
            said = rooms.intake.open(body, "batch", None, trusted=False)
            status, parsed = said.status, json.loads(said.body)
        else:
            answer = await rooms.post(path, body)
            status, parsed = answer.status, answer.json
            assert "retry-after" not in answer.headers
            assert answer.headers["content-type"] == "application/json"
        assert status == 400
        assert list(parsed) == ["success", "code", "message", "error"]
        assert parsed["success"] is False
        assert parsed["code"] == code
        assert word in parsed["message"]
        assert parsed["error"] == parsed["message"]
        assert rooms.count() == 0


@pytest.mark.parametrize(
    ("wire", "status", "code"),
    [
        (b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"x" * 40_000), 400, "too_large"),
        (b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (b"X: y\r\n" * 200), 400, "too_large"),
        (
            b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            400,
            "bad_json",
        ),
        (
            b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
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
async def test_what_never_reaches_a_route_is_refused_in_the_same_form(tmp_path, wire, status, code):
    async with receiving(tmp_path / "o.db") as rooms:
        (said,) = answers(await rooms.exchange(wire))
        assert (said.status, said.json["code"]) == (status, code)
        assert said.json["success"] is False
        assert said.json["message"] == said.json["error"]
        assert said.headers.get("allow") == {405: "GET" if b"cluster" in wire else "POST"}.get(status)
        assert rooms.refused == ([code] if status == 400 else [])


@pytest.mark.parametrize("depth", range(900, 1_000, 5))
async def test_a_context_of_a_batch_that_was_nested_very_deep_was_answered_500_for_ever(tmp_path, depth):
    """There was one depth that JSON could read, and that could not be weighed."""
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    async with receiving(tmp_path / "o.db") as rooms:
        for at in range(5):
            deeper = nested.replace(b"1", b'{"a":' * at + b"1" + b"}" * at)
            opened = rooms.intake.open(b'{"context":%b,"batch":[{}]}' % deeper, "batch", None, trusted=False)
            assert getattr(opened, "status", 400) == 400


async def test_a_gzip_bomb_is_refused_and_not_held(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        bomb = gzip.compress(bytes(50 * 2**20))
        said = await rooms.post("/v1/batch", gzip.compress(bytes(MAX_REQUEST_BYTES + 1)), "Content-Encoding: gzip")
        assert (said.status, said.json["code"]) == (400, "too_large")
        said = await rooms.post("/v1/batch", bomb, "Content-Encoding: gzip")
        assert (said.status, said.json["code"]) == (400, "too_large")


async def test_a_request_that_is_too_slow_is_told_to_come_again(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db") as rooms:
        stream = rooms.connect()
        await stream.send_all(b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        (said,) = answers(bytes(await stream.receive_some(1000)))
        assert (said.status, said.json["code"], said.headers["connection"]) == (408, "timeout", "close")


@pytest.mark.parametrize(
    ("error", "code"), [(OutboxFull("No room."), "outbox_full"), (DiskFull("The disk is full."), "disk_full")]
)
async def test_without_room_the_answer_is_503_with_retry_after(tmp_path, error, code):
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.room.full = code
        said = await rooms.post("/v1/batch", batch(track()))
        assert (said.status, said.headers["retry-after"]) == (503, "10")
        assert said.json["code"] == code == error.code
        assert said.json["success"] is False
        assert rooms.refused == [code]
        rooms.room.full = None
        assert (await rooms.post("/v1/batch", batch(track()))).body == OK


async def test_a_disk_that_fails_is_answered_like_a_full_one(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:

        def fail(_events):
            raise StoreFailed("The outbox could not be written.")

        rooms.outbox.submit = fail
        said = await rooms.post("/v1/batch", batch(track()))
        assert (said.status, said.headers["retry-after"], said.json["code"]) == (503, "10", "disk_full")
        assert said.json["error"] == "The outbox could not be written."


async def test_a_body_that_is_too_large_is_told_in_one_sentence_with_what_to_do(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.post("/v1/batch", b" " * (MAX_REQUEST_BYTES + 1))
        message = "The body is larger than 20000 bytes; send it in smaller parts, or raise outbox.max_request_bytes."
        assert said.json == {"success": False, "code": "too_large", "message": message, "error": message}


async def test_a_browser_is_kept_out_of_tcp_and_is_no_matter_on_the_unix_socket(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        for header in (
            "Origin: http://localhost:8321",
            "Origin: null",
            "Origin: https://evil.example",
            "Origin:",
        ):
            said = await rooms.post("/v1/track", track(), header)
            assert (said.status, said.json["code"]) == (403, "foreign_origin")
        assert rooms.count() == 0
        assert (await rooms.post("/v1/track", track(), "Origin: null", kind="unix")).body == OK


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
        b"",
    ],
)
async def test_a_foreign_host_is_kept_out_of_tcp_and_is_no_matter_on_the_unix_socket(tmp_path, host: bytes):
    async with receiving(tmp_path / "o.db") as rooms:
        wire = b"POST /v1/batch HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (host, len(BODY), BODY)
        absolute = b"POST http://%b/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        (said,) = answers(await rooms.exchange(wire))
        assert (said.status, said.json["code"]) == (403, "foreign_host")
        if host and b"@" not in host:
            (said,) = answers(await rooms.exchange(absolute % (host, len(BODY), BODY)))
            assert (said.status, said.json["code"]) == (403, "foreign_host")
        assert rooms.count() == 0
        (said,) = answers(await rooms.exchange(wire, "unix"))
        assert said.body == OK


async def test_where_others_may_come_in_their_hosts_may_too_but_no_browser(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        rooms.routes._foreign_hosts = True
        wire = b"POST /v1/batch HTTP/1.1\r\nHost: events.example\r\n%bContent-Length: %d\r\n\r\n%b"
        (said,) = answers(await rooms.exchange(wire % (b"", len(BODY), BODY)))
        assert said.body == OK
        (said,) = answers(await rooms.exchange(wire % (b"Origin: http://events.example\r\n", len(BODY), BODY)))
        assert said.status == 403


# Event by event -----------------------------------------------------------------------------------------------


async def test_bad_events_of_a_batch_are_stored_dead_counted_and_named(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        odd = {"type": "track", "messageId": "odd", "userId": "u"}
        said = await rooms.post("/v1/batch", batch(track(1), odd, track(2), "text", track(1)))
        assert said.status == 200
        refused = said.json.pop("refused")
        assert said.json | {"refused": 0} == {"success": True, "accepted": 4, "repeated": 1, "refused": 0}
        assert [(one["index"], one["code"]) for one in refused] == [(1, "bad_event"), (3, "bad_event")]
        assert refused[0]["messageId"] == "odd"
        assert refused[0]["message"].startswith("The event cannot be accepted: a track call needs")
        assert refused[1]["messageId"]
        assert [reason for reason, _ in rooms.dead()] == ["bad_event", "bad_event"]
        assert rooms.stored() == [track(1), odd, track(2), "text"]
        assert rooms.refused == ["bad_event", "bad_event"]
        counters = rooms.outbox.counters
        assert (counters["accepted"], counters["pending_normal"], counters["dead:bad_event"]) == (4, 2, 2)


async def test_one_odd_event_does_not_cost_its_batch(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        absurd = b'{"p":' + b"[" * 1_500 + b"]" * 1_500 + b"}"
        events = [
            b'{"type":"track","event":"\\ud800","userId":"u","messageId":"a"}',
            b'{"type":"track","event":"e","userId":"u","messageId":"b","properties":{"p":NaN,"q":-Infinity}}',
            absurd,
            json.dumps(track("c")).encode(),
        ]
        said = await rooms.post("/v1/batch", b'{"batch":[%b]}' % b",".join(events))
        assert said.json["accepted"] == 4
        assert [one["index"] for one in said.json["refused"]] == [2]
        stored = rooms.stored()
        assert stored[0]["event"] == "\ufffd"
        assert stored[1]["properties"] == {"p": None, "q": None}
        assert stored[3] == track("c")


async def test_an_event_with_no_id_at_all_is_accepted(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.post("/v1/track", {"event": "e", "userId": None, "anonymousId": None})
        assert said.body == OK
        assert rooms.dead() == []


async def test_rudders_and_gos_fields_are_kept_as_they_came(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
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
        await rooms.post("/v1/batch", batch(rudder, context=go_context, integrations={"All": True}, messageId="x"))
        (stored,) = rooms.stored()
        assert stored == rudder | {"context": go_context | rudder["context"], "integrations": {"All": True}}


async def test_an_empty_batch_is_a_success(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        assert (await rooms.post("/v1/batch", batch())).body == b'{"success":true,"accepted":0}'


async def test_what_was_accepted_is_told_once_it_is_stored(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        await rooms.post("/v1/batch", batch(track(1), track(2)))
        assert rooms.told == ["m1", "m2"]


# Repeats ------------------------------------------------------------------------------------------------------


async def test_a_repeated_id_is_a_success_and_stored_once(tmp_path):
    path = tmp_path / "o.db"
    async with receiving(path) as rooms:
        said = await rooms.post("/v1/batch", batch(track(1), track(1, event="Other"), track(2)))
        assert said.body == b'{"success":true,"accepted":2,"repeated":1}'
        said = await rooms.post("/v1/track", track(1))
        assert (said.status, said.body) == (200, b'{"success":true,"accepted":0,"repeated":1}')
    async with receiving(path) as rooms:
        said = await rooms.post("/v1/batch", batch(track(2), track(3)))
        assert said.body == b'{"success":true,"accepted":1,"repeated":1}'
        assert [event["messageId"] for event in rooms.stored()] == ["m1", "m2", "m3"]
        assert rooms.stored()[0]["event"] == "Feature Used"
        assert rooms.outbox.counters["repeated"] == 3


async def test_a_repeated_bad_event_is_stored_once_too(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        for accepted in (1, 0):
            said = await rooms.post("/v1/batch", batch({"type": "odd", "messageId": "m"}))
            assert (said.status, said.json["accepted"]) == (200, accepted)
        assert len(rooms.dead()) == 1


async def test_events_without_an_id_are_never_taken_for_each_other(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        said = await rooms.post("/v1/batch", batch(*[{"type": "page", "userId": "u"}] * 3))
        assert said.json["accepted"] == 3


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
async def test_any_batch_is_stored_whole_and_the_numbers_add_up(tmp_path_factory, events, context):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as rooms:
        body = json.dumps(batch(*events, context=context)).encode()
        response = await rooms.routes.over_tcp(Request("POST", "/v1/batch", "", [], body, "1.1", True))
        said = json.loads(response.body)
        assert response.status == 200, said
        assert said["accepted"] + said.get("repeated", 0) == len(events)
        assert said["accepted"] == rooms.count() == rooms.outbox.counters.get("accepted", 0)
        assert len(rooms.dead()) <= len(said.get("refused", []))
        for event in rooms.stored():
            json.dumps(event).encode()


@given(any_json, st.sampled_from(["/v1/track", "/v1/page", "/v1/batch", "/v1/alias"]))
async def test_any_json_gets_an_answer(tmp_path_factory, value, path: str):
    async with receiving(tmp_path_factory.mktemp("any") / "o.db") as rooms:
        response = await rooms.routes.over_tcp(Request("POST", path, "", [], json.dumps(value).encode(), "1.1", True))
        assert response.status in (200, 400)
        assert rooms.count() == json.loads(response.body).get("accepted", 0)

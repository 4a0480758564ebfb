"""The classification of every answer (sidecar/px/README.md#answers), its excerpt, field and message."""

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Failed
from sidecar.px import Kind, NotSent, PxAnswer, Unknown, classify, decode_events
from sidecar.px.answers import PxCall, retry_after_s

NOW_MS = 1_700_000_000_000
JSON = "application/json"
HTML = "text/html; charset=utf-8"
PAGE = b"<!doctype html><html><head><title>403</title></head><body>403 Forbidden</body></html>"
NOT_FOUND = (
    b'{"externalapierror":{"status":"NOT_FOUND","message":"User was not found","debugMessage":null,"subErrors":null}}'
)
DUPLICATE = b'{"externalapierror":{"status":"BAD_REQUEST","message":"Bad request, possible Duplicate"}}'

ROWS = [
    (PxAnswer(200), Kind.DELIVERED),
    (PxAnswer(200, b'{"errorMessage":"odd"}', None, JSON), Kind.DELIVERED),
    (PxAnswer(201, b"{}", None, JSON), Kind.DELIVERED),
    (PxAnswer(202), Kind.DELIVERED),
    (PxAnswer(200, PAGE, None, HTML), Kind.FIREWALL),
    (PxAnswer(200, b"", None, HTML), Kind.FIREWALL),
    (PxAnswer(202, b"\xef\xbb\xbf\n" + PAGE), Kind.FIREWALL),
    (PxAnswer(200, b"Hello.\n<HTML><body>Sign in</body>", None, "text/plain"), Kind.FIREWALL),
    (PxAnswer(200, b"OK", None, "text/plain"), Kind.DELIVERED),
    (PxAnswer(200, b"{}", None, HTML), Kind.DELIVERED),
    (PxAnswer(200, b" " * 5000 + PAGE, None, JSON), Kind.DELIVERED),
    (PxAnswer(201, PAGE, None, HTML), Kind.DELIVERED),
    (PxAnswer(204, b"", None, HTML), Kind.DELIVERED),
    (PxAnswer(204), Kind.DELIVERED),
    (PxAnswer(201, b"x" * 10, None, JSON, cut=True), Kind.DELIVERED),
    (NotSent("connect error"), Kind.AWAY),
    (Unknown("read timeout"), Kind.AMBIGUOUS),
    (PxAnswer(101), Kind.AMBIGUOUS),
    (PxAnswer(199), Kind.AMBIGUOUS),
    (PxAnswer(299), Kind.DELIVERED),
    (PxAnswer(300), Kind.WRONG_REGION),
    (PxAnswer(399), Kind.WRONG_REGION),
    (PxAnswer(499), Kind.REFUSED),
    (PxAnswer(600), Kind.AMBIGUOUS),
    (PxAnswer(999), Kind.AMBIGUOUS),
    (PxAnswer(301), Kind.WRONG_REGION),
    (PxAnswer(302, PAGE, None, HTML), Kind.WRONG_REGION),
    (PxAnswer(304), Kind.WRONG_REGION),
    (PxAnswer(307), Kind.WRONG_REGION),
    (PxAnswer(400, b"{}", None, JSON), Kind.REFUSED),
    (PxAnswer(400, DUPLICATE, None, JSON), Kind.REFUSED),
    (PxAnswer(400, b"{}", "5", JSON), Kind.REFUSED),
    (PxAnswer(401), Kind.WRONG_KEY),
    (PxAnswer(401, PAGE, None, HTML), Kind.WRONG_KEY),
    (PxAnswer(402), Kind.WRONG_REGION),
    (PxAnswer(403, b'{"message":"no"}', None, JSON), Kind.WRONG_KEY),
    (PxAnswer(403, b'{"message":"no"}'), Kind.WRONG_KEY),
    (PxAnswer(403), Kind.WRONG_KEY),
    (PxAnswer(403, b"Forbidden", None, "text/plain"), Kind.WRONG_KEY),
    (PxAnswer(403, PAGE, None, HTML), Kind.FIREWALL),
    (PxAnswer(403, b"\r\n " + PAGE), Kind.FIREWALL),
    (PxAnswer(404, NOT_FOUND, None, JSON), Kind.WRONG_REGION),
    (PxAnswer(405), Kind.WRONG_REGION),
    (PxAnswer(407), Kind.WRONG_REGION),
    (PxAnswer(408), Kind.LATER),
    (PxAnswer(409), Kind.REFUSED),
    (PxAnswer(413), Kind.REFUSED),
    (PxAnswer(415), Kind.REFUSED),
    (PxAnswer(422), Kind.REFUSED),
    (PxAnswer(425), Kind.LATER),
    (PxAnswer(429), Kind.TOO_FAST),
    (PxAnswer(429, b"", "7"), Kind.TOO_FAST),
    (PxAnswer(451), Kind.REFUSED),
    (PxAnswer(500), Kind.LATER),
    (PxAnswer(502, PAGE, None, HTML), Kind.LATER),
    (PxAnswer(503), Kind.LATER),
    (PxAnswer(503, b"", "7"), Kind.WAIT),
    (PxAnswer(503, b"", "garbage"), Kind.WAIT),
    (PxAnswer(408, b"", "7"), Kind.WAIT),
    (PxAnswer(504), Kind.LATER),
    (PxAnswer(599), Kind.LATER),
]


@pytest.mark.parametrize(("reply", "kind"), ROWS, ids=str)
def test_an_answer_to_an_event_is_classified(reply, kind):
    verdict = classify(reply, wall_ms=NOW_MS)
    assert verdict.kind is kind
    assert verdict.status == getattr(reply, "status", None)
    assert verdict.message.endswith((".", "`."))


@pytest.mark.parametrize(
    ("call", "answer", "kind"),
    [
        (PxCall.UPDATE, PxAnswer(204), Kind.DELIVERED),
        (PxCall.UPDATE, PxAnswer(404, NOT_FOUND, None, JSON), Kind.NEXT_STEP),
        (PxCall.UPDATE, PxAnswer(400, DUPLICATE, None, JSON), Kind.REFUSED),
        (PxCall.CREATE, PxAnswer(201), Kind.DELIVERED),
        (PxCall.CREATE, PxAnswer(400, DUPLICATE, None, JSON), Kind.NEXT_STEP),
        (PxCall.CREATE, PxAnswer(400, b'{"message":"name missing"}', None, JSON), Kind.REFUSED),
        (PxCall.CREATE, PxAnswer(404, NOT_FOUND, None, JSON), Kind.WRONG_REGION),
        (PxCall.CREATE, PxAnswer(400, DUPLICATE[:-1], None, JSON, cut=True), Kind.NEXT_STEP),
        (PxCall.CREATE, PxAnswer(400, b"{", None, JSON, cut=True), Kind.LATER),
        (PxCall.UPDATE, PxAnswer(400, b"{", None, JSON, cut=True), Kind.REFUSED),
        (PxCall.EVENT, PxAnswer(400, b"{", None, JSON, cut=True), Kind.REFUSED),
        (PxCall.UPDATE, PxAnswer(401), Kind.WRONG_KEY),
        (PxCall.UPDATE, PxAnswer(503), Kind.LATER),
    ],
)
def test_an_answer_to_a_people_call_is_classified(call, answer, kind):
    """A create whose answer was cut before "duplicate" once made the event of an existing user a dead letter."""
    assert classify(answer, call=call, wall_ms=NOW_MS).kind is kind


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("1.5", 1.5),
        ("-5", 0),
        ("3601", 3600),
        ("9" * 400, 3600),
        ("9" * 60_000, 3600),
        ("soon", None),
        ("1e3", None),
        ("NaN", None),
        ("inf", None),
        ("٣", None),
        ("5, 6", None),
        (formatdate(NOW_MS / 1000 + 90, usegmt=True), 90),
        (formatdate(NOW_MS / 1000 - 90, usegmt=True), 0),
        (formatdate(NOW_MS / 1000 + 10**6, usegmt=True), 3600),
        ("Tue, 14 Nov 2023 22:14:00 +0000", 40),
        ("Tue, 99 Nov 2023 22:14:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 3600),
    ],
)
def test_retry_after_is_a_number_or_a_date(header, seconds):
    assert retry_after_s(header, NOW_MS) == seconds
    assert classify(PxAnswer(429, b"", header), wall_ms=NOW_MS).retry_after_s == seconds


@given(st.text(max_size=60))
def test_retry_after_is_unreadable_or_from_zero_to_an_hour(header):
    seconds = retry_after_s(header, NOW_MS)
    assert seconds is None or 0 <= seconds <= 3600


@pytest.mark.parametrize("status", [200, 400, 401])
def test_every_verdict_carries_the_retry_after(status):
    assert classify(PxAnswer(status, b"", "9"), wall_ms=NOW_MS).retry_after_s == 9


@pytest.mark.parametrize(
    ("body", "excerpt", "field"),
    [
        (b'{"externalapierror":{"message":"eventName must not be empty"}}', "eventName must not be empty", "eventName"),
        (b'{"errorMessage":"bad date"}', "bad date", "date"),
        (
            b'{"externalapierror":{"message":"Validation","subErrors":[{"field":"userType","message":"unknown value"}]}}',
            "Validation; unknown value",
            "userType",
        ),
        (b'{"message":"attributes.plan is too long"}', "attributes.plan is too long", "attributes.plan"),
        (b'{"message":"propertyKey AP-1 is unknown"}', "propertyKey AP-1 is unknown", "propertyKey"),
        (b'{"externalapierror":null,"x":[1]}', '{"externalapierror":null,"x":[1]}', None),
        (b'["eventName"]', '["eventName"]', "eventName"),
        (b"updated a nameless thing", "updated a nameless thing", None),
        (b"", "", None),
        (PAGE, "403 403 Forbidden", None),
        (b"<p>a &amp; b<script>var eventName = 1</script><!-- c --></p>", "a & b", None),
        (b"line\r\n\tbreak\x1b[31m red\x00\xff", "line break [31m red �", None),
        (b"[" * 60_000, "[" * 499 + "…", None),
    ],
)
def test_a_body_becomes_one_plain_line_and_a_field(body, excerpt, field):
    verdict = classify(PxAnswer(400, body), wall_ms=NOW_MS)
    assert (verdict.excerpt, verdict.field) == (excerpt, field)


@pytest.mark.parametrize(
    "text",
    [
        "X-APTRINSIC-API-KEY: s3cret-key",
        '{"x-aptrinsic-api-key": "s3cret-key"}',
        "Authorization: Bearer s3cret-key",
        "Proxy-Authorization: Basic s3cret-key",
        "/v1/x?api_key=s3cret-key&a=b",
        "apiKey='s3cret-key'",
    ],
)
def test_an_excerpt_masks_credentials(text):
    verdict = classify(PxAnswer(400, text.encode()), wall_ms=NOW_MS)
    assert "s3cret" not in verdict.excerpt + verdict.message
    assert "****" in verdict.excerpt


@given(
    status=st.integers(100, 999),
    body=st.binary(max_size=2000)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()),
    content_type=st.sampled_from(["", JSON, HTML, "é"]),
    call=st.sampled_from(PxCall),
)
def test_every_answer_can_be_classified(status, body, content_type, call):
    verdict = classify(PxAnswer(status, body, None, content_type), call=call, wall_ms=NOW_MS)
    assert len(verdict.excerpt) <= 500
    assert verdict.excerpt.isprintable()
    assert verdict.message.isprintable()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PxAnswer(401), "invalid or read-only; regenerate a key with Write access under Administration > Integrations"),
        (PxAnswer(400), "every event needs identifyId, propertyKey, userType and eventName"),
        (PxAnswer(404), "us, eu or us2"),
        (PxAnswer(429), "slow down"),
    ],
)
def test_a_message_says_what_to_do(answer, words):
    assert words in classify(answer, wall_ms=NOW_MS).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (PxAnswer(201, b"odd"), "PX answered 201: delivered."),
        (PxAnswer(500), "PX answered 500: PX has an internal problem; the event is retried."),
        (PxAnswer(500, b"oops."), "PX answered 500 (oops): PX has an internal problem; the event is retried."),
        (
            PxAnswer(500, b"x" * 200),
            f"PX answered 500 ({'x' * 120}): PX has an internal problem; the event is retried.",
        ),
    ],
)
def test_a_message_quotes_the_excerpt_except_of_deliveries(answer, message):
    assert classify(answer, wall_ms=NOW_MS).message == message


@pytest.mark.parametrize(("status", "word"), [(402, "plan"), (407, "proxy requires credentials"), (405, "base_url")])
def test_a_wrong_region_message_depends_on_the_status(status, word):
    message = classify(PxAnswer(status), wall_ms=NOW_MS).message
    assert word in message
    assert message.startswith("The proxy answered 407" if status == 407 else f"PX answered {status}")


@pytest.mark.parametrize("status", [302, 402, 404, 405])
def test_a_pause_for_a_wrong_region_names_the_regions(status):
    assert "us, eu or us2" in classify(PxAnswer(status), wall_ms=NOW_MS).message


def test_an_answer_is_complete_by_default():
    assert not PxAnswer(200).cut


def test_the_first_16_kib_of_a_body_are_read():
    def excerpt(body: bytes) -> str:
        return classify(PxAnswer(400, body), wall_ms=NOW_MS).excerpt

    assert excerpt(b" " * 16_383 + b"xy") == "x"
    assert excerpt(b"x" * 500) == "x" * 500
    assert excerpt(b"x" * 501) == "x" * 499 + "…"


def test_a_field_comes_from_the_first_16_kib_in_100_characters():
    def field(body: bytes) -> str | None:
        return classify(PxAnswer(400, body), wall_ms=NOW_MS).field

    error = json.dumps({"message": "bad", "field": "plan"}).encode()
    assert field(b" " * (16_384 - len(error)) + error) == "plan"
    assert field(b" " * (16_385 - len(error)) + error) is None
    assert field(json.dumps({"message": "bad", "field": "p" * 150}).encode()) == "p" * 100


@pytest.mark.parametrize(("status", "excerpt"), [(199, "it said"), (200, ""), (201, ""), (299, ""), (300, "it said")])
def test_every_answer_but_a_delivery_has_an_excerpt(status, excerpt):
    assert classify(PxAnswer(status, b"it said"), wall_ms=0).excerpt == excerpt


def test_events_are_read_as_px_answers_them():
    body = b'{"customEvents":[{"eventName":"Seen"}],"totalHits":1,"scrollId":"s"}'
    answer = decode_events(PxAnswer(200, body, content_type="application/json"))
    assert answer == {"customEvents": [{"eventName": "Seen"}], "totalHits": 1, "scrollId": "s"}


def test_events_of_another_shape_are_not_understood():
    for body in (b"[]", b"{}", b'{"customEvents":{},"totalHits":1}', b'{"customEvents":[],"totalHits":"1"}'):
        with pytest.raises(Failed, match=r"is not understood; check px\.base_url and px\.region"):
            decode_events(PxAnswer(200, body, content_type="application/json"))
    with pytest.raises(Failed, match="could not be read back from PX"):
        decode_events(PxAnswer(503, b""))


def test_a_px_that_is_away_is_said_without_events():
    """`forget --px` and `reconcile`, which ask about no event, said that events are kept and retried."""
    assert "Events" not in classify(NotSent("refused"), wall_ms=NOW_MS).message


def test_retry_after_in_asctimes_form_is_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_s("Thu Jun  6 16:02:00 2024", 1_717_689_600_000) == 120
    finally:
        monkeypatch.undo()
        time.tzset()

"""Every row of DESIGN 4's table, and what people get to read of an answer."""

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.px import Answer, Kind, NotSent, Unknown, classify
from sidecar.px.answers import Call, retry_after_s

NOW_MS = 1_700_000_000_000
JSON = "application/json"
HTML = "text/html; charset=utf-8"
PAGE = b"<!doctype html><html><head><title>403</title></head><body>403 Forbidden</body></html>"
NOT_FOUND = (
    b'{"externalapierror":{"status":"NOT_FOUND","message":"User was not found","debugMessage":null,"subErrors":null}}'
)
DUPLICATE = b'{"externalapierror":{"status":"BAD_REQUEST","message":"Bad request, possible Duplicate"}}'

ROWS = [
    (Answer(200), Kind.DELIVERED),
    (Answer(200, b'{"errorMessage":"odd"}', None, JSON), Kind.DELIVERED),
    (Answer(201, b"{}", None, JSON), Kind.DELIVERED),
    (Answer(202), Kind.DELIVERED),
    (Answer(204), Kind.DELIVERED),
    (Answer(201, b"x" * 10, None, JSON, cut=True), Kind.DELIVERED),
    (NotSent("connect error"), Kind.AWAY),
    (Unknown("read timeout"), Kind.AMBIGUOUS),
    (Answer(101), Kind.AMBIGUOUS),
    (Answer(199), Kind.AMBIGUOUS),
    (Answer(299), Kind.DELIVERED),
    (Answer(300), Kind.WRONG_REGION),
    (Answer(399), Kind.WRONG_REGION),
    (Answer(499), Kind.REFUSED),
    (Answer(600), Kind.AMBIGUOUS),
    (Answer(999), Kind.AMBIGUOUS),
    (Answer(301), Kind.WRONG_REGION),
    (Answer(302, PAGE, None, HTML), Kind.WRONG_REGION),
    (Answer(304), Kind.WRONG_REGION),
    (Answer(307), Kind.WRONG_REGION),
    (Answer(400, b"{}", None, JSON), Kind.REFUSED),
    (Answer(400, DUPLICATE, None, JSON), Kind.REFUSED),
    (Answer(400, b"{}", "5", JSON), Kind.REFUSED),
    (Answer(401), Kind.WRONG_KEY),
    (Answer(401, PAGE, None, HTML), Kind.WRONG_KEY),
    (Answer(402), Kind.WRONG_REGION),
    (Answer(403, b'{"message":"no"}', None, JSON), Kind.WRONG_KEY),
    (Answer(403, b'{"message":"no"}'), Kind.WRONG_KEY),
    (Answer(403), Kind.WRONG_KEY),
    (Answer(403, b"Forbidden", None, "text/plain"), Kind.WRONG_KEY),
    (Answer(403, PAGE, None, HTML), Kind.FIREWALL),
    (Answer(403, b"\r\n " + PAGE), Kind.FIREWALL),
    (Answer(404, NOT_FOUND, None, JSON), Kind.WRONG_REGION),
    (Answer(405), Kind.WRONG_REGION),
    (Answer(407), Kind.WRONG_REGION),
    (Answer(408), Kind.LATER),
    (Answer(409), Kind.REFUSED),
    (Answer(413), Kind.REFUSED),
    (Answer(415), Kind.REFUSED),
    (Answer(422), Kind.REFUSED),
    (Answer(425), Kind.LATER),
    (Answer(429), Kind.TOO_FAST),
    (Answer(429, b"", "7"), Kind.TOO_FAST),
    (Answer(451), Kind.REFUSED),
    (Answer(500), Kind.LATER),
    (Answer(502, PAGE, None, HTML), Kind.LATER),
    (Answer(503), Kind.LATER),
    (Answer(503, b"", "7"), Kind.TOO_FAST),
    (Answer(503, b"", "garbage"), Kind.TOO_FAST),
    (Answer(408, b"", "7"), Kind.TOO_FAST),
    (Answer(504), Kind.LATER),
    (Answer(599), Kind.LATER),
]


@pytest.mark.parametrize(("reply", "kind"), ROWS, ids=str)
def test_an_answer_to_an_event_means(reply, kind):
    verdict = classify(reply, wall_ms=NOW_MS)
    assert verdict.kind is kind
    assert verdict.status == getattr(reply, "status", None)
    assert verdict.message.endswith((".", "`."))


@pytest.mark.parametrize(
    ("call", "answer", "kind"),
    [
        (Call.UPDATE, Answer(204), Kind.DELIVERED),
        (Call.UPDATE, Answer(404, NOT_FOUND, None, JSON), Kind.NEXT_STEP),
        (Call.UPDATE, Answer(400, DUPLICATE, None, JSON), Kind.REFUSED),
        (Call.CREATE, Answer(201), Kind.DELIVERED),
        (Call.CREATE, Answer(400, DUPLICATE, None, JSON), Kind.NEXT_STEP),
        (Call.CREATE, Answer(400, b'{"message":"name missing"}', None, JSON), Kind.REFUSED),
        (Call.CREATE, Answer(404, NOT_FOUND, None, JSON), Kind.WRONG_REGION),
        (Call.CREATE, Answer(400, DUPLICATE[:-1], None, JSON, cut=True), Kind.NEXT_STEP),
        (Call.CREATE, Answer(400, b"{", None, JSON, cut=True), Kind.LATER),  # once a user who exists became dead
        (Call.UPDATE, Answer(400, b"{", None, JSON, cut=True), Kind.REFUSED),
        (Call.EVENT, Answer(400, b"{", None, JSON, cut=True), Kind.REFUSED),
        (Call.UPDATE, Answer(401), Kind.WRONG_KEY),
        (Call.UPDATE, Answer(503), Kind.LATER),
    ],
)
def test_an_answer_to_a_people_call_means(call, answer, kind):
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
def test_retry_after(header, seconds):
    assert retry_after_s(header, NOW_MS) == seconds
    assert classify(Answer(429, b"", header), wall_ms=NOW_MS).retry_after_s == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_garbage_or_from_zero_to_an_hour(header):
    seconds = retry_after_s(header, NOW_MS)
    assert seconds is None or 0 <= seconds <= 3600


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_retry_after_is_carried_whatever_the_answer_means(status):
    assert classify(Answer(status, b"", "9"), wall_ms=NOW_MS).retry_after_s == 9


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
def test_what_px_said_becomes_one_plain_line_and_a_field(body, excerpt, field):
    verdict = classify(Answer(400, body), wall_ms=NOW_MS)
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
def test_what_looks_like_a_credential_is_masked(text):
    verdict = classify(Answer(400, text.encode()), wall_ms=NOW_MS)
    assert "s3cret" not in verdict.excerpt + verdict.message
    assert "****" in verdict.excerpt


@given(
    status=st.integers(100, 999),
    body=st.binary(max_size=2000)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda one: json.dumps(one).encode()),
    content_type=st.sampled_from(["", JSON, HTML, "é"]),
    call=st.sampled_from(Call),
)
def test_no_answer_is_too_odd_to_be_judged(status, body, content_type, call):
    verdict = classify(Answer(status, body, None, content_type), call=call, wall_ms=NOW_MS)
    assert len(verdict.excerpt) <= 500
    assert verdict.excerpt.isprintable()
    assert verdict.message.isprintable()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401), "invalid or read-only; regenerate a key with Write access under Administration > Integrations"),
        (Answer(400), "every event needs identifyId, propertyKey, userType and eventName"),
        (Answer(404), "us, eu or us2"),
        (Answer(429), "slow down"),
    ],
)
def test_people_read_what_to_do(answer, words):
    assert words in classify(answer, wall_ms=NOW_MS).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(201, b"odd"), "PX answered 201: delivered."),
        (Answer(500), "PX answered 500: PX has a problem of its own; the event is tried again."),
        (Answer(500, b"oops."), "PX answered 500 (oops): PX has a problem of its own; the event is tried again."),
        (
            Answer(500, b"x" * 200),
            f"PX answered 500 ({'x' * 120}): PX has a problem of its own; the event is tried again.",
        ),
    ],
)
def test_people_read_the_status_and_what_px_said_unless_all_is_well(answer, message):
    assert classify(answer, wall_ms=NOW_MS).message == message


@pytest.mark.parametrize(("status", "word"), [(402, "plan"), (407, "proxy wants credentials"), (405, "base_url")])
def test_not_every_wrong_door_is_a_wrong_region(status, word):
    assert word in classify(Answer(status), wall_ms=NOW_MS).message


def test_an_answer_is_whole_unless_it_says_otherwise():
    assert not Answer(200).cut


def test_of_a_long_body_the_first_16_kib_are_read():
    def excerpt(body: bytes) -> str:
        return classify(Answer(400, body), wall_ms=NOW_MS).excerpt

    assert excerpt(b" " * 16_383 + b"xy") == "x"
    assert excerpt(b"x" * 500) == "x" * 500
    assert excerpt(b"x" * 501) == "x" * 499 + "…"


def test_a_field_is_found_in_the_first_16_kib_and_kept_to_100_characters():
    def field(body: bytes) -> str | None:
        return classify(Answer(400, body), wall_ms=NOW_MS).field

    said = json.dumps({"message": "bad", "field": "plan"}).encode()
    assert field(b" " * (16_384 - len(said)) + said) == "plan"
    assert field(b" " * (16_385 - len(said)) + said) is None
    assert field(json.dumps({"message": "bad", "field": "p" * 150}).encode()) == "p" * 100


@pytest.mark.parametrize(("status", "excerpt"), [(199, "it said"), (200, ""), (201, ""), (299, ""), (300, "it said")])
def test_what_px_said_is_kept_of_all_but_deliveries(status, excerpt):
    assert classify(Answer(status, b"it said"), wall_ms=0).excerpt == excerpt

"""The bytes of PX's requests, and the sequence of the requests of one event."""

import json
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.mapping.model import CustomEvent, UpsertAccount, UpsertUser
from sidecar.px import CallSequence, Kind, PxAnswer, PxRequest, Unknown, preview, read_events

SEED = {
    "identifyId": "user-123",
    "propertyKey": "AP-XXXXXXXXXX-2",
    "userType": "USER",
    "eventName": "Feature Used",
    "date": 1717689600000,
    "attributes": {"featureName": "Bulk Export", "value": 1},
}
EVENT = CustomEvent(SEED)
USER = UpsertUser("user-123", {"email": "a@example.com", "propertyKeys": ["AP-1"]}, {"signUpDate": 5})
ACCOUNT = UpsertAccount("acct-9", {"plan": "pro", "propertyKeys": ["AP-1"]}, {})
OK, CREATED, ABSENT = PxAnswer(204), PxAnswer(201), PxAnswer(404, b"{}")
EXISTS = PxAnswer(400, b'{"externalapierror":{"message":"possible duplicate"}}')


def body(request: PxRequest) -> dict:
    return json.loads(request.body)


def run_sequence(intents, *replies):
    """Return method, path and body of each request sent, and the verdict."""
    sequence, steps = CallSequence(intents), []
    outcome = sequence.current
    for reply in replies:
        assert isinstance(outcome, PxRequest)
        assert outcome is sequence.current
        steps.append((outcome.method, outcome.path, body(outcome)))
        outcome = sequence.after(reply, wall_ms=0)
    return steps, outcome


def test_a_custom_event_is_one_request_with_its_keys_in_order():
    steps, verdict = run_sequence([EVENT], CREATED)
    assert steps == [("POST", "/v1/events/custom", SEED)]
    assert list(steps[0][2]) == list(SEED)
    assert verdict.kind is Kind.DELIVERED


def test_an_existing_user_is_updated():
    steps, verdict = run_sequence([USER], OK)
    assert steps == [("PUT", "/v1/users/user-123", USER.fields)]
    assert verdict.kind is Kind.DELIVERED


def test_an_absent_user_is_created_with_the_fields_for_new_users():
    steps, verdict = run_sequence([USER], ABSENT, CREATED)
    assert steps[1] == ("POST", "/v1/users", {"identifyId": "user-123", "signUpDate": 5, **USER.fields})
    assert verdict.kind is Kind.DELIVERED


def test_a_user_created_in_between_is_updated():
    steps, verdict = run_sequence([USER], ABSENT, EXISTS, OK)
    assert steps[2] == steps[0]
    assert verdict.kind is Kind.DELIVERED


def test_a_user_deleted_in_between_is_retried_from_the_start():
    _, verdict = run_sequence([USER], ABSENT, EXISTS, ABSENT)
    assert verdict.kind is Kind.LATER


def test_a_new_account_without_a_name_is_named_by_its_id():
    steps, _ = run_sequence([ACCOUNT], ABSENT, CREATED)
    assert steps[0] == ("PUT", "/v1/accounts/acct-9", ACCOUNT.fields)
    assert steps[1] == ("POST", "/v1/accounts", {"id": "acct-9", "name": "acct-9", **ACCOUNT.fields})
    steps, _ = run_sequence([UpsertAccount("acct-9", {"name": "Acme"}, {})], ABSENT, CREATED)
    assert steps[1][2]["name"] == "Acme"
    steps, _ = run_sequence([UpsertAccount("acct-9", {}, {"name": "Acme"})], ABSENT, CREATED)
    assert steps[1][2]["name"] == "Acme"


def test_the_requests_of_one_event_run_in_order():
    steps, verdict = run_sequence([USER, ACCOUNT, EVENT], ABSENT, CREATED, OK, CREATED)
    assert [step[:2] for step in steps] == [
        ("PUT", "/v1/users/user-123"),
        ("POST", "/v1/users"),
        ("PUT", "/v1/accounts/acct-9"),
        ("POST", "/v1/events/custom"),
    ]
    assert verdict.kind is Kind.DELIVERED


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(PxAnswer(400, b"{}"), Kind.REFUSED), (PxAnswer(401), Kind.WRONG_KEY), (Unknown("reset"), Kind.AMBIGUOUS)],
)
def test_any_other_answer_ends_the_sequence_at_its_request(reply, kind):
    sequence = CallSequence([USER, EVENT])
    assert sequence.after(reply, wall_ms=0).kind is kind
    assert sequence.current.path == "/v1/users/user-123"


@pytest.mark.parametrize("user_id", ["a", "user-123", "jane.doe@example.com", "a+b", "AB~1_x:y", "...a", "x" * 200])
def test_a_plain_id_is_sent_in_the_path(user_id):
    (first, *_), _ = run_sequence([UpsertUser(user_id, {}, {})], OK)
    assert first[0] == "PUT"
    assert unquote(first[1]) == f"/v1/users/{user_id}"
    assert first[2] == {}


UNSAFE_IDS = [
    "a/b",
    "a\\b",
    ".",
    "..",
    "a b",
    "a;b",
    "a%2Fb",
    "ä",
    "a?b",
    "a#b",
    "\x00",
    "a\nb",
    "update",
    "denylist",
    "x" * 201,
]


@pytest.mark.parametrize("user_id", [*UNSAFE_IDS, "a\n", "", "x'--<script>"])
def test_an_id_that_a_path_could_change_is_sent_in_the_body(user_id):
    (user, *_), _ = run_sequence([UpsertUser(user_id, {"role": "admin"}, {})], OK)
    assert user == ("PUT", "/v1/users/update", {"identifyId": user_id, "role": "admin"})
    (account, *_), _ = run_sequence([UpsertAccount(user_id, {"plan": "pro"}, {})], OK)
    assert account == ("PUT", "/v1/accounts/update", {"id": user_id, "plan": "pro"})


@given(st.text(max_size=300).filter(lambda text: text.isprintable()))
def test_no_id_changes_the_requested_path(user_id):
    path = CallSequence([UpsertUser(user_id, {}, {})]).current.path
    url = httpx.URL("https://px.example" + path)
    assert url.raw_path.decode() == path
    assert path == "/v1/users/update" or unquote(path) == f"/v1/users/{user_id}"


def test_a_preview_shows_the_first_request_of_each_intent():
    assert preview([USER, EVENT]) == [
        {"method": "PUT", "path": "/v1/users/user-123", "body": USER.fields},
        {"method": "POST", "path": "/v1/events/custom", "body": SEED},
    ]


def test_events_are_read_back_by_name_user_and_date():
    request = read_events(event_name="Bulk & Export", user_id="user-1", from_ms=1, until_ms=2, scroll_id="s")
    assert (request.method, request.body) == ("GET", b"")
    assert request.path.startswith("/v1/events/custom?")
    assert httpx.URL("https://px.example" + request.path).raw_path.decode() == request.path
    assert parse_qs(urlsplit(request.path).query) == {
        "filter": ["eventName==Bulk & Export;identifyId==user-1"],
        "dateRangeStart": ["1"],
        "dateRangeEnd": ["2"],
        "pageSize": ["25"],
        "scrollId": ["s"],
    }


def test_a_filter_text_with_a_semicolon_is_refused():
    with pytest.raises(ValueError, match="semicolon"):
        read_events(event_name="a;b", from_ms=1, until_ms=2)

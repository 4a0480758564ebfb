"""The bytes PX gets, and the walk through the requests of one event."""

import json
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.mapping.model import CustomEvent, UpsertAccount, UpsertUser
from sidecar.px import Answer, Kind, Request, Unknown, Walk, preview, read_events

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
OK, CREATED, ABSENT = Answer(204), Answer(201), Answer(404, b"{}")
EXISTS = Answer(400, b'{"externalapierror":{"message":"possible duplicate"}}')


def body(request: Request) -> dict:
    return json.loads(request.body)


def walked(intents, *replies):
    """Method, path and body of each request sent, and the verdict."""
    walk, steps = Walk(intents), []
    said = walk.first()
    for reply in replies:
        assert isinstance(said, Request)
        assert said is walk.current
        steps.append((said.method, said.path, body(said)))
        said = walk.after(reply, wall_ms=0)
    return steps, said


def test_a_custom_event_is_one_request_with_its_keys_in_order():
    steps, verdict = walked([EVENT], CREATED)
    assert steps == [("POST", "/v1/events/custom", SEED)]
    assert list(steps[0][2]) == list(SEED)
    assert verdict.kind is Kind.DELIVERED


def test_a_user_that_exists_is_updated():
    steps, verdict = walked([USER], OK)
    assert steps == [("PUT", "/v1/users/user-123", USER.fields)]
    assert verdict.kind is Kind.DELIVERED


def test_a_user_that_does_not_exist_is_created_with_what_is_for_new_ones_only():
    steps, verdict = walked([USER], ABSENT, CREATED)
    assert steps[1] == ("POST", "/v1/users", {"identifyId": "user-123", "signUpDate": 5, **USER.fields})
    assert verdict.kind is Kind.DELIVERED


def test_a_user_that_somebody_else_just_created_is_updated():
    steps, verdict = walked([USER], ABSENT, EXISTS, OK)
    assert steps[2] == steps[0]
    assert verdict.kind is Kind.DELIVERED


def test_a_user_that_comes_and_goes_is_tried_later_from_the_start():
    _, verdict = walked([USER], ABSENT, EXISTS, ABSENT)
    assert verdict.kind is Kind.LATER


def test_a_new_account_gets_its_id_for_a_name_unless_it_has_one():
    steps, _ = walked([ACCOUNT], ABSENT, CREATED)
    assert steps[0] == ("PUT", "/v1/accounts/acct-9", ACCOUNT.fields)
    assert steps[1] == ("POST", "/v1/accounts", {"id": "acct-9", "name": "acct-9", **ACCOUNT.fields})
    steps, _ = walked([UpsertAccount("acct-9", {"name": "Acme"}, {})], ABSENT, CREATED)
    assert steps[1][2]["name"] == "Acme"
    steps, _ = walked([UpsertAccount("acct-9", {}, {"name": "Acme"})], ABSENT, CREATED)
    assert steps[1][2]["name"] == "Acme"


def test_the_requests_of_one_event_follow_each_other():
    steps, verdict = walked([USER, ACCOUNT, EVENT], ABSENT, CREATED, OK, CREATED)
    assert [step[:2] for step in steps] == [
        ("PUT", "/v1/users/user-123"),
        ("POST", "/v1/users"),
        ("PUT", "/v1/accounts/acct-9"),
        ("POST", "/v1/events/custom"),
    ]
    assert verdict.kind is Kind.DELIVERED


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(Answer(400, b"{}"), Kind.REFUSED), (Answer(401), Kind.WRONG_KEY), (Unknown("reset"), Kind.AMBIGUOUS)],
)
def test_any_other_answer_ends_the_walk_with_the_request_it_is_about(reply, kind):
    walk = Walk([USER, EVENT])
    assert walk.after(reply, wall_ms=0).kind is kind
    assert walk.current.path == "/v1/users/user-123"


@pytest.mark.parametrize("user_id", ["a", "user-123", "jane.doe@example.com", "a+b", "AB~1_x:y", "...a", "x" * 200])
def test_a_plain_id_travels_in_the_path(user_id):
    (first, *_), _ = walked([UpsertUser(user_id, {}, {})], OK)
    assert first[0] == "PUT"
    assert unquote(first[1]) == f"/v1/users/{user_id}"
    assert first[2] == {}


ODD = [
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


@pytest.mark.parametrize("user_id", [*ODD, "a\n", "", "x'--<script>"])
def test_an_id_that_a_path_could_change_travels_in_the_body(user_id):
    (user, *_), _ = walked([UpsertUser(user_id, {"role": "admin"}, {})], OK)
    assert user == ("PUT", "/v1/users/update", {"identifyId": user_id, "role": "admin"})
    (account, *_), _ = walked([UpsertAccount(user_id, {"plan": "pro"}, {})], OK)
    assert account == ("PUT", "/v1/accounts/update", {"id": user_id, "plan": "pro"})


@given(st.text(max_size=300).filter(lambda text: text.isprintable()))
def test_no_id_changes_the_path_that_is_asked_for(user_id):
    path = Walk([UpsertUser(user_id, {}, {})]).first().path
    url = httpx.URL("https://px.example" + path)
    assert url.raw_path.decode() == path
    assert path == "/v1/users/update" or unquote(path) == f"/v1/users/{user_id}"


def test_the_preview_is_the_first_request_of_each_intent():
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


def test_a_name_that_the_filter_would_misread_is_refused():
    with pytest.raises(ValueError, match="semicolon"):
        read_events(event_name="a;b", from_ms=1, until_ms=2)

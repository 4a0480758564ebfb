"""The judge accepts exactly what PX's contract allows, and names each problem."""

import json

import pytest

from sidecar.sandbox.judge import JudgeAnswer, JudgeRules, decode, judge_event, judge_key, judge_permission
from sidecar.sandbox.people import PeopleStore

RULES = JudgeRules(keys=frozenset({"k"}), read_only_keys=frozenset({"r"}), property_keys=frozenset({"AP-ONE-2"}))
# The example of https://docs.dataflysignal.com/integrations/crm/gainsight, "Example: Feature Used Event".
EVENT = {
    "identifyId": "user_123",
    "propertyKey": "AP-ONE-2",
    "userType": "USER",
    "eventName": "Feature Used",
    "date": 1700000000000,
    "sessionId": "s",
    "accountId": "acct",
    "url": "https://app.example.com/",
    "attributes": {"featureName": "x", "duration": 1.5, "count": 3, "new": True},
}


def problems(answer: JudgeAnswer | None) -> list[str]:
    assert answer is not None
    assert answer.status == 400
    envelope = json.loads(answer.body)["externalapierror"]
    assert set(envelope) == {"status", "message", "debugMessage", "subErrors"}
    return [sub["message"] for sub in envelope["subErrors"]]


def test_an_event_with_all_common_fields_is_accepted():
    assert judge_event(EVENT, RULES) is None


def test_exactly_four_fields_are_required():
    required = {name: EVENT[name] for name in ("eventName", "identifyId", "propertyKey", "userType")}
    assert judge_event(required, RULES) is None
    for name in required:
        (message,) = problems(judge_event({k: v for k, v in required.items() if k != name}, RULES))
        assert message.startswith(f"{name}: ")


INVALID = [
    ("eventName", ""), ("eventName", 5), ("eventName", None), ("eventName", "x" * 2001),
    ("identifyId", ""), ("identifyId", 12), ("identifyId", None),
    ("propertyKey", "AP-TWO-2"), ("propertyKey", ["AP-ONE-2"]),
    ("userType", "user"), ("userType", "CUSTOMER"), ("userType", None), ("userType", []),
    ("date", "2024-01-01"), ("date", 1.5), ("date", True), ("date", 2**63), ("date", None),
    ("sessionId", True), ("sessionId", {}), ("accountId", 5), ("url", None), ("referrer", 1), ("remoteHost", 1),
    ("eventId", 1), ("eventType", []),
    ("attributes", []), ("attributes", None), ("attributes", {"a": None}), ("attributes", {"a": {}}),
    ("attributes", {"a": [1]}), ("attributes", {f"a{n}": 1 for n in range(51)}), ("attributes", {"k" * 1025: 1}),
    ("globalContext", {"a": {}}), ("location", {}), ("propertyKeys", ["AP-ONE-2"]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), INVALID)
def test_a_wrong_field_is_named(field, value):
    (message,) = problems(judge_event(EVENT | {field: value}, RULES))
    assert message.startswith(f"{field}: ")


VALID = [
    ("eventName", "x" * 2000), ("userType", "EMPTY_USER_TYPE"), ("userType", "LEAD"), ("sessionId", 1679967592314),
    ("attributes", {}), ("attributes", {f"a{n}": 1 for n in range(50)}), ("attributes", {"k" * 1024: "[1,2]"}),
    ("date", -1), ("date", 2**63 - 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), VALID)
def test_values_at_the_limits_are_accepted(field, value):
    assert judge_event(EVENT | {field: value}, RULES) is None


def test_every_wrong_field_is_named_at_once():
    messages = problems(judge_event(EVENT | {"date": "x", "userType": "x"}, RULES))
    assert [message.split(":")[0] for message in messages] == ["userType", "date"]


def test_without_property_keys_any_that_begins_with_ap_is_known():
    rules = JudgeRules(keys=RULES.keys)
    assert judge_event(EVENT | {"propertyKey": "AP-ANY-2"}, rules) is None
    assert problems(judge_event(EVENT | {"propertyKey": "sandbox-key"}, rules))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e400}', b'{"a":"\\ud800"}', b'{"a":1}x',
     b'{"a":"\xff"}', b"{'a':1}", b"[" * 5000],
)  # fmt: skip
def test_invalid_json_is_refused(body):
    assert problems(decode(body))[0].startswith("body: ")


def test_unknown_keys_get_401_and_read_only_keys_403():
    assert judge_key("k", RULES) is None
    assert judge_key("r", RULES) is None
    for key in (None, "", "other"):
        refused = judge_key(key, RULES)
        assert refused is not None
        assert refused.status == 401
        assert b"Authentication failed in loginAwareAuthentication" in refused.body
    assert judge_permission("k", RULES) is None
    forbidden = judge_permission("r", RULES)
    assert forbidden is not None
    assert (forbidden.status, forbidden.content_type) == (403, "application/json")


class TestPeople:
    @pytest.fixture
    def people(self):
        people = PeopleStore(RULES)
        assert people.answer("POST", "/v1/users", b'{"identifyId":"a/b","propertyKeys":["AP-ONE-2"]}').status == 201
        assert people.answer("POST", "/v1/accounts", b'{"id":"c","name":"C","propertyKeys":["AP-ONE-2"]}').status == 201
        return people

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("POST", "/v1/users", b'{"identifyId":"a/b","propertyKeys":["AP-ONE-2"]}', 400),
            ("POST", "/v1/users", b'{"identifyId":"new","propertyKeys":["AP-ONE-2"],"email":"e"}', 201),
            ("POST", "/v1/users", b'{"identifyId":"new","propertyKeys":[]}', 400),
            ("POST", "/v1/users", b'{"identifyId":"new","propertyKeys":["AP-TWO-2"]}', 400),
            ("POST", "/v1/users", b'{"identifyId":"new"}', 400),
            ("POST", "/v1/users", b'{"identifyId":"new","propertyKeys":["AP-ONE-2"],"signUpDate":null}', 400),
            ("POST", "/v1/users", b'{"identifyId":"new","propertyKeys":["AP-ONE-2"],"company":"x"}', 400),
            ("POST", "/v1/users", b"nonsense", 400),
            ("PUT", "/v1/users/a%2Fb", b'{"email":"e"}', 204),
            ("PUT", "/v1/users/A%2FB", b'{"email":"e"}', 404),
            ("PUT", "/v1/users/a%2Fb", b'{"email":5}', 400),
            ("PUT", "/v1/users/a%2Fb", b'{"identifyId":"other"}', 400),
            ("PUT", "/v1/users/update", b'{"identifyId":"a/b","email":"e"}', 204),
            ("PUT", "/v1/users/update", b'{"identifyId":"none","email":"e"}', 404),
            ("PUT", "/v1/users/update", b'{"email":"e"}', 400),
            ("GET", "/v1/users/a%2Fb", b"", 200),
            ("GET", "/v1/users/none", b"", 404),
            ("DELETE", "/v1/users/a%2Fb", b"", 204),
            ("PUT", "/v1/accounts/c", b'{"numberOfEmployees":5}', 204),
            ("PUT", "/v1/accounts/d", b'{"plan":"x"}', 404),
            ("PUT", "/v1/accounts/update", b'{"id":"c","plan":"x"}', 204),
            ("POST", "/v1/accounts", b'{"id":"d","propertyKeys":["AP-ONE-2"]}', 400),
            ("PATCH", "/v1/users/a%2Fb", b"{}", 405),
        ],
    )
    def test_each_call_has_its_declared_status(self, people, method, path, body, status):
        assert people.answer(method, path, body).status == status

    def test_a_duplicate_is_named_as_by_px(self, people):
        answer = people.answer("POST", "/v1/users", b'{"identifyId":"a/b","propertyKeys":["AP-ONE-2"]}')
        assert b"Bad request, possible duplicate" in answer.body

    def test_an_absent_user_is_named_as_by_px(self, people):
        answer = people.answer("PUT", "/v1/users/none", b"{}")
        assert b"User was not found for parameters {id=none}" in answer.body

    def test_an_update_changes_only_the_given_fields(self, people):
        people.answer("PUT", "/v1/users/a%2Fb", b'{"email":"e"}')
        people.answer("PUT", "/v1/users/a%2Fb", b'{"title":"t"}')
        user = json.loads(people.answer("GET", "/v1/users/a%2Fb", b"").body)
        assert (user["email"], user["title"]) == ("e", "t")

    @pytest.mark.parametrize("path", ["/v1/events/page", "/v1/users/a/b", "/users", "/v1/usersx"])
    def test_other_paths_are_not_answered(self, people, path):
        assert people.answer("POST", path, b"{}") is None

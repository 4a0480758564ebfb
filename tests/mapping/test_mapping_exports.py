"""What is decided once for an event that is exported, sent again or shown: filters, its date, what an answer of PX quotes."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mapping_help import KEY, NOTHING_KNOWN, RECEIVED_MS, attributes, identify, map_one, mapper, track

from sidecar.config import load_text
from sidecar.mapping import Mapper, compile_mapping, explain
from sidecar.mapping.privacy import hide_in

DAY_MS = 86_400_000
HASHED = """
[mapping.fields]
identifyId = "{}"
[mapping.attributes]
hash = ["email"]
hash_salt = "salt"
"""


def test_an_exclusion_names_the_rule():
    config = load_text('[[mapping.drop]]\nevent = "Debug*"')
    rules = compile_mapping(
        config.mapping, config.people, config.identity, is_suppressed=lambda user: user == "user-123"
    )
    assert rules.excluded(track())[0] == "suppressed"
    assert rules.excluded(track(userId="other")) is None
    assert rules.excluded(track("Debug x", userId="other"))[0] == "filtered"
    assert rules.excluded({"type": "track", "event": "Feature Used"}) is None  # of nobody


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        ({"timestamp": "2024-06-06T12:00:00Z"}, {"timestamp": "2024-06-06T12:00:00Z"}),
        ({}, {"timestamp": RECEIVED_MS}),
        ({"timestamp": "soon"}, {"timestamp": "soon", "originalTimestamp": RECEIVED_MS}),
        ({"timestamp": "soon", "originalTimestamp": ""}, {"timestamp": "soon", "originalTimestamp": RECEIVED_MS}),
        ({"timestamp": "soon", "originalTimestamp": "later"}, {"timestamp": RECEIVED_MS, "originalTimestamp": "later"}),
        ({"timestamp": 0}, {"timestamp": RECEIVED_MS}),
    ],
)
def test_the_time_of_receipt_is_kept_where_it_decides(event: dict[str, Any], kept: dict[str, Any]):
    rules = mapper()
    assert rules.keep_date(track(**event), RECEIVED_MS) == track(**kept)
    later = rules.map(track(**kept), NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS + DAY_MS)
    now = rules.map(track(**event), NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS)
    assert later.intents[0].body["date"] == now.intents[0].body["date"]


def test_the_longest_hidden_text_is_hidden_first():
    assert hide_in("got azzzz.", {"x": "zzzz", "y": "azzzz"}, {}) == "got …."
    assert hide_in("got abc, de and secret-1.", {"x": "abc", "y": "de", "list": ["secret-1"]}, {}) == "got …, de and …."


def test_json_in_a_parameter_loses_what_is_dropped():
    url = "https://x.example/?q=%7B%22email%22%3A%22S3CRET%22%2C%22a%22%3A1%7D&b=2"
    sent = attributes({"url": url}, '[mapping.attributes]\ndrop = ["email"]')["url"]
    assert parse_qs(urlsplit(sent).query) == {"q": ['{"a":1}'], "b": ["2"]}


def test_explain_names_the_key_of_the_call():
    """A page's name is a key of the call, unless the properties have one."""

    def source(**more: Any) -> str:
        event = {"type": "page", "userId": "user-123", "name": "Orders", **more}
        rows = explain(mapper(), event, map_one(event))
        return next(row.source for row in rows if row.field == "attributes.name")

    assert source() == "name"
    assert source(properties={"name": None}) == "name"
    assert source(properties={"name": "Own"}) == "properties.name"


def test_explain_names_a_property_that_gives_way():
    event = track(properties={"plan_name": "pro", "planName": "team"})
    rows = explain(mapper(), event, map_one(event))
    assert [(row.field, row.value) for row in rows if row.value in ("properties.plan_name", "properties.planName")] == [
        ("not sent", "properties.plan_name")
    ]
    assert [row.source for row in rows if row.field == "date"] == ["time of receipt"]


@pytest.mark.parametrize(
    "name", ["accountId", "AccountID", "account_id", "account-id", "Account Id", f"account{11 * '_'}id"]
)
def test_the_account_of_a_user_in_any_spelling(name: str):
    assert map_one(identify({name: "acme"})).known.account_id == "acme"


def test_a_renamed_trait_names_the_account():
    renamed = '[mapping.traits]\nrename = { org = "accountId" }\n'
    assert map_one(identify({"org": "acme"}), renamed).known.account_id == "acme"
    assert map_one(identify({"org": "acme"})).known is None


@pytest.mark.parametrize(
    ("context", "rule"),
    [
        ({"session": {"id": {"a": 1}}}, "id"),
        ({"page": {"url": {"a": 1}, "referrer": True}}, "url"),
        ({"page": {"url": "https://a.test/", "referrer": True}}, "referrer"),
    ],
)
def test_the_digest_of_an_object_is_not_an_id(context: dict, rule: str):
    """An object is not an id, so PX gets none; the exported event had its digest in that place, a text."""
    rules = mapper(f'[mapping.attributes]\nhash = ["{rule}"]\n')
    event = track(context=context)
    exported, hashed = rules.export(event)
    when = {"property_key": KEY, "received_ms": RECEIVED_MS}
    sent = rules.map(event, NOTHING_KNOWN, **when).intents
    assert rules.map(exported, NOTHING_KNOWN, hashed=hashed, **when).intents == sent


def test_a_rejected_account_is_reported_once():
    changes = map_one(identify({"accountId": "undefined"}), '[people]\nusers = "upsert"').changes
    assert len([change for change in changes if change.field == "accountId"]) == 1


def test_an_imported_event_has_the_user_that_px_gets():
    """Its id was hashed once more, so that it was in another order than the user's other events, and found by no `forget`."""
    rules = mapper(HASHED.format("properties.email"))
    own = track(properties={"email": "a@example.com"})
    user = rules.user_of(own)
    for call in (own, identify(traits={"groupId": "acme"}) | {"properties": {"email": "a@example.com"}}):
        exported, hashed = rules.export(call)
        rules.map(
            track(properties={"email": "b@example.com"}), NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS
        )
        assert rules.user_of(exported, hashed) == user


@pytest.mark.parametrize("asked", ["account_said", "excluded"])
def test_a_filter_on_the_hashed_user_knows_an_imported_event(asked: str):
    def rules(of: str) -> Mapper:
        config = load_text(HASHED.format("traits.email"))
        return compile_mapping(config.mapping, config.people, config.identity, is_suppressed=lambda user: user == of)

    call = {"type": "group", "groupId": "acme", "traits": {"email": "a@example.com"}}
    user = rules("").user_of(call)
    assert user is not None
    exported, hashed = rules("").export(call)
    answers = [getattr(rules(of), asked)(exported, hashed) for of in ("other", user)]
    assert [answer is None for answer in answers] == ([False, True] if asked == "account_said" else [True, False])

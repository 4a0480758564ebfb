"""What is denied is nowhere: not in requests, not nested, not hashed into something else, not in what people see."""

from hashlib import sha256

import pytest
from mapping_help import body, group, identify, map_one, mapper, track

from sidecar.errors import ConfigError

DENY = """
[mapping.attributes]
drop = ["email", "address.street"]
hash = ["phone"]
hash_salt = "pepper"
[mapping.traits]
drop = ["ssn"]
[people]
users = "upsert"
accounts = "upsert"
"""
SECRET = "S3CRET"
HASH = sha256(b"pepper123").hexdigest()


@pytest.mark.parametrize("name", ["email", "Email", "E_MAIL", "e_mail"])
@pytest.mark.parametrize("nested", ['nested = "string"', 'nested = "flatten"'])
def test_a_denied_name_is_nowhere_at_any_depth(name: str, nested: str):
    bag = {name: SECRET, "n": {name: SECRET, "m": [{name: {"x": SECRET}}]}, f"n.{name}": 1, "ok": 1}
    rules = f"[mapping]\n{nested}\n{DENY}"
    for event in (
        track(properties=bag, traits=bag, context={"traits": bag, "other": bag}),
        identify(bag, context={"traits": bag}),
        identify({"company": bag | {"id": "c"}, "address": bag, "location": bag}),
        group("g", bag),
        {**track(), name: SECRET},
    ):
        mapped = map_one(event, rules)
        assert mapped.intents
        assert SECRET not in repr(mapped)
        assert SECRET not in repr(mapper(rules).redact(event))


def test_an_entry_with_dots_denies_one_nested_place():
    sent = body(track(properties={"address": {"street": SECRET, "city": "B"}, "street": "kept"}), DENY)
    assert sent["attributes"] == {"address": '{"city":"B"}', "street": "kept"}
    assert SECRET not in repr(mapper(DENY).redact(track(properties={"address": {"street": SECRET}})))


def test_hashed_names_are_hashed_at_any_depth_and_for_people():
    assert body(track(properties={"phone": 123, "n": {"Phone": "123"}}), DENY)["attributes"] == {
        "n": f'{{"Phone":"{HASH}"}}',
        "phone": HASH,
    }
    (user,) = map_one(identify({"phone": "123"}), DENY).intents
    assert user.fields["phone"] == HASH


def test_what_traits_deny_is_denied_in_traits_only():
    assert body(track(properties={"ssn": 1}), DENY)["attributes"] == {"ssn": 1}
    mapped = map_one(identify({"ssn": SECRET, "x": {"ssn": SECRET}}), DENY)
    assert SECRET not in repr(mapped)


def test_one_place_in_an_address_can_be_denied():
    rules = '[mapping.traits]\ndrop = ["address.city"]\n[people]\nusers = "upsert"'
    (user,) = map_one(identify({"address": {"city": SECRET, "country": "DE"}}), rules).intents
    assert user.fields["location"] == {"countryName": "DE"}


def test_the_account_id_is_not_taken_from_denied_traits():
    rules = '[mapping.attributes]\ndrop = ["account_id"]'
    event = track(traits={"account_id": SECRET}, context={"traits": {"account_id": SECRET}})
    assert "accountId" not in body(event, rules)
    assert map_one(identify({"account_id": SECRET}), rules).known is None


def test_session_and_page_address_are_no_attributes():
    rules = '[mapping.attributes]\ndrop = ["id", "url", "page"]\nhash = ["session"]'
    context = {"session": {"id": "s"}, "page": {"url": "u"}}
    event = track(properties={"id": 1, "url": 2}, context=context)
    sent = body(event, rules)
    assert (sent["attributes"], sent["sessionId"], sent["url"]) == ({}, "s", "u")
    more = {**context, "device": {"id": SECRET}, "id": SECRET, "page": {"url": "u", "id": SECRET}}
    assert mapper(rules).redact({**event, "context": more}) == {
        **event,
        "properties": {},
        "context": {**context, "device": {}},
    }
    assert more["id"] == SECRET
    with pytest.raises(ConfigError, match="denies"):
        mapper(rules + '\n[mapping.fields]\nsessionId = "context.device.id"')


@pytest.mark.parametrize(
    "path", ["properties.email", "traits.Email", "context.traits.e_mail", "context.user.email.0", "email", "traits.ssn"]
)
def test_a_field_cannot_be_read_from_a_denied_path(path: str):
    with pytest.raises(ConfigError, match=r"mapping\.fields\.sessionId reads .* denies"):
        mapper(f'[mapping.fields]\nsessionId = ["{path}"]\n{DENY}')


def test_a_field_read_from_a_hashed_path_is_hashed():
    rules = f'[mapping.fields]\nidentifyId = ["traits.phone", "userId"]\n{DENY}'
    event = {"type": "track", "event": "E", "traits": {"phone": "123"}}
    assert body(event, rules)["identifyId"] == HASH
    assert mapper(rules).user_of(event) == HASH


def test_a_field_that_is_an_object_is_sent_without_what_is_denied():
    bag = {"email": SECRET, "phone": "123", "k": {"email": SECRET}}
    rules = f'[mapping.fields]\nglobalContext = "properties.g"\n"globalContext.all" = "context"\n{DENY}'
    assert body(track(properties={"g": bag}), rules)["globalContext"] == {"k": "{}", "phone": HASH}
    whole = body(track(context={"traits": {**bag, "ssn": SECRET}, "o": bag}), rules)
    assert SECRET not in repr(whole)


def test_what_one_event_denies_is_denied_for_it_and_to_fields():
    rules = '[mapping.event."Login"]\nattributes.drop = ["ip"]\n'
    assert body(track("Login", properties={"ip": SECRET}), rules)["attributes"] == {}
    assert body(track("Other", properties={"ip": "1"}), rules)["attributes"] == {"ip": "1"}
    assert SECRET not in repr(mapper(rules).redact(track("Login", properties={"ip": SECRET})))
    with pytest.raises(ConfigError, match="remoteHost"):
        mapper(rules + '[mapping.fields]\nremoteHost = "properties.ip"')


def test_people_see_only_what_is_kept_and_what_fields_are_made_from():
    rules = '[mapping.fields]\nsessionId = "properties.sid"\n[mapping.attributes]\nkeep = ["plan"]\n[mapping.traits]\nkeep = ["title"]'
    event = {
        "type": "page",
        "userId": "u",
        "properties": {"plan": 1, "sid": 2, "url": "u", "other": SECRET},
        "traits": {"title": "t", "account_id": "a", "other": SECRET},
        "context": {"traits": {"other": SECRET}, "ip": "1.2.3.4"},
    }
    assert mapper(rules).redact(event) == {
        "type": "page",
        "userId": "u",
        "properties": {"plan": 1, "sid": 2, "url": "u"},
        "traits": {"title": "t", "account_id": "a"},
        "context": {"traits": {}, "ip": "1.2.3.4"},
    }


def test_without_rules_people_see_the_event_as_it_is():
    event = track(properties={"a": {"b": [1]}}, context={"x": 1}, own={"key": 1})
    assert mapper().redact(event) == event
    assert mapper(DENY).redact({"value": 7}) == {"value": 7}


def test_the_envelope_of_the_call_is_not_data():
    rules = '[mapping.attributes]\ndrop = ["user_id", "event", "type", "timestamp"]'
    event = track(timestamp="2024-06-06", properties={"userId": 1, "type": 2})
    assert mapper(rules).redact(event) == {**event, "properties": {}}
    assert body(event, rules)["identifyId"] == "user-123"


def test_a_value_that_already_is_a_sha256_is_not_hashed_again():
    event = track(properties={"phone": "123"})
    seen = mapper(DENY).redact(event)
    assert seen["properties"] == {"phone": HASH}
    assert body(seen, DENY) == body(event, DENY)


def test_reported_changes_hold_no_values():
    event = track(timestamp=SECRET, properties={"big": 2**70 + 1, "a_b": SECRET, "aB": SECRET})
    assert SECRET not in repr(map_one(event).changes)
    assert str(2**70 + 1) not in repr(map_one(event).changes)


@pytest.mark.parametrize("rule", ['drop = ["address"]', 'hash = ["address"]'])
def test_an_object_is_denied_as_a_whole_where_it_would_be_flattened(rule: str):
    rules = f'[mapping]\nnested = "flatten"\n[mapping.attributes]\n{rule}'
    sent = body(track(properties={"address": {"street": SECRET}, "n": {"address": {"street": SECRET}}}), rules)
    assert SECRET not in repr(sent)
    hashed = sent["attributes"].get("address")
    assert sent["attributes"] == ({"address": hashed, "n.address": hashed} if "hash" in rule else {"n": "{}"})
    assert hashed is None or len(hashed) == 64


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        (
            '[mapping]\nnested = "flatten"\n[mapping.attributes]\nkeep = ["plan"]',
            {"plan": {"tier": 1, "x": 2}, "plan.y": 3},
        ),
        ('[mapping]\nnested = "flatten"\n[mapping.attributes]\nkeep = ["plan.x", "z"]', {"plan": {"x": 2}}),
        ('[mapping.attributes]\nkeep = ["z"]\n[mapping.fields]\nsessionId = "properties.plan.x"', {"plan": {"x": 2}}),
        ('[mapping.attributes]\nkeep = ["plan"]', {"plan": {"tier": 1, "x": 2}}),
    ],
)
def test_people_see_of_a_nested_object_what_is_kept_of_it(rules: str, seen: dict):
    event = track(properties={"plan": {"tier": 1, "x": 2}, "plan.y": 3, "other": {"x": 4}, "l": [{"x": 5}]})
    assert mapper(rules).redact(event)["properties"] == seen
    assert body({**event, "properties": seen}, rules) == body(event, rules)

"""The way of the properties: keep, drop, hash, rename, case, set, caps."""

from hashlib import sha256

import pytest
from mapping_help import attributes, map_one, mapper, track, whats

from sidecar.errors import ConfigError


def rules(text: str, more: str = "") -> str:
    return f"[mapping]\n{more}\n[mapping.attributes]\n{text}\n"


def test_keep_lets_only_the_listed_names_through():
    assert attributes({"a": 1, "b": 2, "n": {"c": 3}}, rules('keep = ["a", "n"]')) == {"a": 1, "n": '{"c":3}'}


def test_rename_comes_before_the_case():
    assert attributes({"plan_name": "Pro"}, rules('rename = { plan_name = "plan_tier" }')) == {"planTier": "Pro"}
    kept = rules('rename = { plan_name = "plan_tier" }', 'attribute_case = "keep"')
    assert attributes({"plan_name": "Pro", "a_b": 1}, kept) == {"plan_tier": "Pro", "a_b": 1}


def test_set_adds_constants_to_every_event_and_wins():
    constant = rules('set = { environment = "production", build_number = 7 }')
    assert attributes({"environment": "mine", "Environment": 1, "a": 1}, constant) == {
        "environment": "production",
        "build_number": 7,
        "a": 1,
    }
    assert attributes(None, constant) == {"environment": "production", "build_number": 7}
    assert map_one(track(properties={"environment": "mine"}), constant).changes == ()


@pytest.mark.parametrize("properties", [None, {}, [], "text", 7, {"a": None}])
def test_without_properties_the_attributes_are_an_empty_object(properties: object):
    assert attributes(properties) == {}


def test_where_two_names_come_out_the_same_the_one_in_final_form_wins():
    for sent in ({"feature_name": 1, "featureName": 2}, {"featureName": 2, "feature_name": 1}):
        mapped = map_one(track(properties=sent))
        assert mapped.intents[0].body["attributes"] == {"featureName": 2}
        assert "'feature_name' left out" in whats(mapped)["attributes.featureName"]


def test_names_that_differ_only_in_case_are_one_to_px():
    for sent in ({"Plan": 1, "plan": 2}, {"plan": 2, "Plan": 1}):
        mapped = map_one(track(properties=sent))
        assert mapped.intents[0].body["attributes"] == {"Plan": 1}
        assert len(mapped.changes) == 1


def test_a_rename_onto_a_name_that_is_there_gives_way():
    assert attributes({"plan_name": "old", "plan": "new"}, rules('rename = { plan_name = "plan" }')) == {"plan": "new"}


def test_a_null_does_not_take_a_name():
    assert attributes({"featureName": None, "feature_name": 1}) == {"featureName": 1}


def test_of_more_than_50_the_first_by_name_are_sent_and_the_rest_is_reported():
    sent = {f"p{number:03}": number for number in reversed(range(53))}
    mapped = map_one(track(properties=sent))
    assert list(mapped.intents[0].body["attributes"]) == [f"p{number:03}" for number in range(50)]
    assert set(whats(mapped)) == {"attributes.p050", "attributes.p051", "attributes.p052"}
    constant = map_one(track(properties=sent), rules("set = { a = 1 }"))
    assert len(constant.intents[0].body["attributes"]) == 50


def test_a_name_over_1024_characters_is_cut_and_reported():
    mapped = map_one(track(properties={"k" * 1025: 1, "k" * 1024 + "z": 2, "l" * 1024: 3}))
    assert mapped.intents[0].body["attributes"] == {"k" * 1024: 1, "l" * 1024: 3}
    assert any("1,024" in change.what for change in mapped.changes)
    assert any("left out" in change.what for change in mapped.changes)


def test_an_empty_name_is_left_out():
    assert attributes({"": 1}) == {}


FLAT = 'nested = "flatten"'


def test_flattening_joins_names_with_dots_and_keeps_lists_as_text():
    sent = {"plan": {"tier_name": "Pro", "limits": {"max_seats": 5, "no": None}}, "tags": ["a", {"b": 1}], "none": {}}
    assert attributes(sent, rules("", FLAT)) == {
        "plan.tierName": "Pro",
        "plan.limits.maxSeats": 5,
        "tags": '["a",{"b":1}]',
        "none": "{}",
    }


def test_flattened_names_can_be_kept_dropped_and_renamed():
    sent = {"plan": {"tier": 1, "code": 2, "email": 3}, "user": {"email": 4, "name": 5}}
    assert attributes(sent, rules('keep = ["plan"]', FLAT)) == {"plan.tier": 1, "plan.code": 2, "plan.email": 3}
    assert attributes(sent, rules('keep = ["plan.code"]', FLAT)) == {"plan.code": 2}
    assert attributes(sent, rules('drop = ["plan.code", "email"]', FLAT)) == {"plan.tier": 1, "user.name": 5}
    assert attributes(sent, rules('rename = { "plan.tier" = "tier" }\nkeep = ["plan.tier"]', FLAT)) == {"tier": 1}


def test_a_name_that_the_app_dotted_wins_over_one_from_nesting():
    for sent in ({"a.b": 1, "a": {"b": 2}}, {"a": {"b": 2}, "a.b": 1}):
        assert attributes(sent, rules("", FLAT)) == {"a.b": 1}


def test_hashing_is_sha256_of_salt_and_value():
    salted = rules('hash = ["phone", "n"]\nhash_salt = "pepper"')
    got = attributes({"phone": "+49 30 1", "Phone_": 7, "n": {"b": 1, "a": 2}}, salted)
    assert got["phone"] == sha256(b"pepper+49 30 1").hexdigest()
    assert got["n"] == sha256(b'pepper{"a":2,"b":1}').hexdigest()
    assert got["Phone_"] == sha256(b"pepper7").hexdigest()
    assert attributes({"phone": None}, salted) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('drop = ["email"]\nrename = { mail = "E_Mail" }', "mapping.attributes.rename makes 'E_Mail'"),
        ('drop = ["email"]\nset = { email = "x" }', "mapping.attributes.set makes 'email'"),
        ("set = { x = nan }", "mapping.attributes.set.x is nan"),
        ("set = { x = 9223372036854775808 }", "mapping.attributes.set.x is 9223372036854775808"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        mapper(rules(text))

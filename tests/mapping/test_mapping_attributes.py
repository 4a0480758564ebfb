"""Attributes from properties: keep, drop, hash, rename, case, set, caps, collisions, flattening."""

from hashlib import sha256

import pytest
from mapping_help import attributes, body_of, changes_by_field, map_one, mapper, track

from sidecar.errors import ConfigError
from sidecar.mapping import Change

FLAT = 'nested = "flatten"'


def rules(text: str, general: str = "") -> str:
    """The configuration with ``text`` in ``[mapping.attributes]`` and ``general`` in ``[mapping]``."""
    return f"[mapping]\n{general}\n[mapping.attributes]\n{text}\n"


def test_keep_sends_only_listed_names():
    assert attributes({"a": 1, "b": 2, "n": {"c": 3}}, rules('keep = ["a", "n"]')) == {"a": 1, "n": '{"c":3}'}


def test_rename_runs_before_case():
    assert attributes({"plan_name": "Pro"}, rules('rename = { plan_name = "plan_tier" }')) == {"planTier": "Pro"}
    kept = rules('rename = { plan_name = "plan_tier" }', 'attribute_case = "keep"')
    assert attributes({"plan_name": "Pro", "a_b": 1}, kept) == {"plan_tier": "Pro", "a_b": 1}


def test_set_adds_constants_that_override_the_app():
    constant = rules('set = { environment = "production", build_number = 7 }')
    assert attributes({"environment": "mine", "Environment": 1, "a": 1}, constant) == {
        "environment": "production",
        "build_number": 7,
        "a": 1,
    }
    assert attributes(None, constant) == {"environment": "production", "build_number": 7}
    assert map_one(track(properties={"environment": "mine"}), constant).changes == ()


@pytest.mark.parametrize("properties", [None, {}, [], "text", 7, {"a": None}])
def test_missing_properties_give_an_empty_object(properties: object):
    assert attributes(properties) == {}


def test_name_in_final_form_wins_a_collision():
    for sent in ({"feature_name": 1, "featureName": 2}, {"featureName": 2, "feature_name": 1}):
        mapped = map_one(track(properties=sent))
        assert mapped.intents[0].body["attributes"] == {"featureName": 2}
        assert "'feature_name' left out" in changes_by_field(mapped)["attributes.featureName"]


def test_names_that_differ_only_by_case_collide():
    for sent in ({"Plan": 1, "plan": 2}, {"plan": 2, "Plan": 1}):
        mapped = map_one(track(properties=sent))
        assert mapped.intents[0].body["attributes"] == {"Plan": 1}
        assert len(mapped.changes) == 1


def test_renamed_value_loses_to_an_existing_name():
    assert attributes({"plan_name": "old", "plan": "new"}, rules('rename = { plan_name = "plan" }')) == {"plan": "new"}


def test_null_does_not_occupy_a_name():
    assert attributes({"featureName": None, "feature_name": 1}) == {"featureName": 1}


def test_attributes_over_50_are_left_out_and_reported():
    sent = {f"p{number:03}": number for number in reversed(range(53))}
    mapped = map_one(track(properties=sent))
    assert list(mapped.intents[0].body["attributes"]) == [f"p{number:03}" for number in range(50)]
    assert set(changes_by_field(mapped)) == {"attributes.p050", "attributes.p051", "attributes.p052"}
    constant = map_one(track(properties=sent), rules("set = { a = 1 }"))
    assert len(constant.intents[0].body["attributes"]) == 50


def test_name_over_1024_characters_is_cut_and_reported():
    mapped = map_one(track(properties={"k" * 1025: 1, "k" * 1024 + "z": 2, "l" * 1024: 3}))
    assert mapped.intents[0].body["attributes"] == {"k" * 1024: 1, "l" * 1024: 3}
    assert any("1,024" in change.what for change in mapped.changes)
    assert any("left out" in change.what for change in mapped.changes)


def test_empty_name_is_left_out():
    assert attributes({"": 1}) == {}


def test_a_value_without_a_name_is_reported_unless_it_is_null():
    assert map_one(track(properties={"": 6, "a": 1})).changes == (
        Change("attributes", "a value left out: it has an empty name"),
    )
    assert map_one(track(properties={"": None})).changes == ()


@pytest.mark.parametrize("name", [["Start"], {"en": "Start"}, True])
def test_a_page_name_that_is_not_text_is_reported(name: object):
    mapped = map_one({"type": "page", "userId": "u", "name": name, "category": None})
    assert body_of(mapped)["attributes"] == {}
    assert [change.field for change in mapped.changes] == ["attributes.name"]


def test_flatten_joins_names_with_dots_and_keeps_lists():
    sent = {"plan": {"tier_name": "Pro", "limits": {"max_seats": 5, "no": None}}, "tags": ["a", {"b": 1}], "none": {}}
    assert attributes(sent, rules("", FLAT)) == {
        "plan.tierName": "Pro",
        "plan.limits.maxSeats": 5,
        "tags": '["a",{"b":1}]',
        "none": "{}",
    }


def test_flattened_names_obey_keep_drop_and_rename():
    sent = {"plan": {"tier": 1, "code": 2, "email": 3}, "user": {"email": 4, "name": 5}}
    assert attributes(sent, rules('keep = ["plan"]', FLAT)) == {"plan.tier": 1, "plan.code": 2, "plan.email": 3}
    assert attributes(sent, rules('keep = ["plan.code"]', FLAT)) == {"plan.code": 2}
    assert attributes(sent, rules('drop = ["plan.code", "email"]', FLAT)) == {"plan.tier": 1, "user.name": 5}
    assert attributes(sent, rules('rename = { "plan.tier" = "tier" }\nkeep = ["plan.tier"]', FLAT)) == {"tier": 1}


def test_name_dotted_by_the_app_wins_over_a_flattened_one():
    for sent in ({"a.b": 1, "a": {"b": 2}}, {"a": {"b": 2}, "a.b": 1}):
        assert attributes(sent, rules("", FLAT)) == {"a.b": 1}


def test_hash_is_sha256_of_salt_and_value():
    salted = rules('hash = ["phone", "n"]\nhash_salt = "pepper"')
    got = attributes({"phone": "+49 30 1", "Phone_": 7, "n": {"b": 1, "a": 2}}, salted)
    assert got["phone"] == sha256(b"pepper+49 30 1").hexdigest()
    assert got["n"] == sha256(b'pepper{"a":2,"b":1}').hexdigest()
    assert got["Phone_"] == sha256(b"pepper7").hexdigest()
    assert attributes({"phone": None}, salted) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('drop = ["email"]\nrename = { mail = "E_Mail" }', "mapping.attributes.rename creates 'E_Mail'"),
        ('drop = ["email"]\nset = { email = "x" }', "mapping.attributes.set creates 'email'"),
        ("set = { x = nan }", "mapping.attributes.set.x is nan"),
        ("set = { x = 9223372036854775808 }", "mapping.attributes.set.x is 9223372036854775808"),
    ],
)
def test_contradicting_rules_are_a_config_error(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        mapper(rules(text))


def test_name_of_exactly_1024_characters_is_not_cut():
    assert changes_by_field(map_one(track(properties={"k" * 1024: 1}))) == {}
    mapped = map_one(track(properties={"k" * 1025: 1}))
    assert list(changes_by_field(mapped)) == [f"attributes.{'k' * 40}…"]
    assert list(mapped.intents[0].body["attributes"]) == ["k" * 1024]


def test_exactly_50_attributes_are_sent_without_report():
    assert changes_by_field(map_one(track(properties={f"k{number:02}": 1 for number in range(50)}))) == {}
    mapped = map_one(track(properties={f"k{number:02}": 1 for number in range(51)}))
    assert changes_by_field(mapped) == {"attributes.k50": "left out: over 50 attributes"}


def test_case_applies_to_each_part_of_a_flattened_name():
    assert attributes({"_a": {"_b_c": 1}, "my_form": {"first_name": 2}}, rules("", FLAT)) == {
        "_a._bC": 1,
        "myForm.firstName": 2,
    }


@pytest.mark.parametrize("denied", ["email", "form.email"])
def test_flattened_names_are_denied_by_part_and_by_path(denied):
    properties = {"form": {"email": "a@b.test", "step": 2}, "form.email": "a@b.test"}
    assert attributes(properties, rules(f'drop = ["{denied}"]', FLAT)) == {"form.step": 2}
    hashed = attributes(properties, rules(f'hash = ["{denied}"]\nhash_salt = "pepper"', FLAT))
    assert hashed["form.step"] == 2
    assert len(hashed["form.email"]) == 64
    assert set(hashed) == {"form.step", "form.email"}


def test_what_a_dotted_name_replaces_is_reported():
    """A null beside it made the value disappear."""
    toml = '[mapping]\nnested = "flatten"\n'
    assert attributes({"a.b": None, "a": {"b": 2}}, toml) == {"a.b": 2}
    mapped = map_one(track(properties={"a.b": 1, "a": {"b": 2}}), toml)
    assert list(changes_by_field(mapped)) == ["attributes.a.b"]


def test_a_constant_of_one_event_replaces_another_spelling():
    rules = '[mapping.attributes]\nset = { environment = "prod", region = "eu" }\n'
    rules += '[mapping.event."Feature Used".attributes]\nset = { Environment = "test" }\n'
    assert attributes({}, rules) == {"Environment": "test", "region": "eu"}

"""Events that are not sent: filters, samples, consent, caps; and texts that are not names or ids."""

from typing import Any

import pytest
from mapping_help import NOTHING_KNOWN, body, changes_by_field, group, identify, map_one, mapper, track

from sidecar.errors import ConfigError
from sidecar.mapping import explain

TEST_USERS = '[[mapping.drop]]\nwhere = { "context.traits.email" = "*@example.com" }\n'


@pytest.mark.parametrize(
    ("rule", "event", "dropped"),
    [
        ('event = "Debug *"', track("Debug Click"), True),
        ('event = "Debug *"', track("  Debug Click "), True),
        ('event = "Debug *"', track("Click"), False),
        ('event = "page"', {"type": "page", "userId": "u"}, True),
        ('event = "Page Viewed"', {"type": "page", "userId": "u"}, True),
        ('event = "group"', group(), True),
        ('where = { "properties.plan" = "trial*" }', track(properties={"plan": "trial-1"}), True),
        ('where = { "properties.plan" = "trial*" }', track(properties={"plan": "pro"}), False),
        ('where = { "properties.plan" = "*" }', track(), False),
        ('where = { "properties.bot" = "true" }', track(properties={"bot": True}), True),
        ('where = { "properties.n" = "4?" }', track(properties={"n": 42}), True),
        ('where = { "properties.tags" = "internal" }', track(properties={"tags": ["a", "internal"]}), True),
        ('event = "A"\nwhere = { "properties.x" = "1" }', track("A", properties={"x": 1}), True),
        ('event = "A"\nwhere = { "properties.x" = "1" }', track("B", properties={"x": 1}), False),
        ('where = { "properties.x" = "1", "properties.y" = "2" }', track(properties={"x": 1, "y": 3}), False),
    ],
)
def test_filter_matches_by_name_and_values(rule: str, event: dict[str, Any], dropped: bool):
    assert (map_one(event, f"[[mapping.drop]]\n{rule}\n").dropped == "filtered") == dropped


def test_a_filtered_call_sets_no_account():
    event = identify({"account_id": "a"}, context={"traits": {"email": "x@example.com"}})
    assert mapper(TEST_USERS).account_said(event) is None
    assert mapper().account_said(event) == ("a", "traits.account_id")


def test_explanation_names_the_filter_and_no_value_of_the_event():
    compiled = mapper('[[mapping.drop]]\nevent = "X"\n' + TEST_USERS)
    event = track(context={"traits": {"email": "secret@example.com"}})
    mapped = map_one(event, '[[mapping.drop]]\nevent = "X"\n' + TEST_USERS)
    (row,) = explain(compiled, event, mapped)
    assert row.value == "filtered"
    assert row.source == 'mapping.drop, entry 2 (event "*", where context.traits.email)'


def test_filter_that_would_drop_everything_is_a_config_error():
    with pytest.raises(ConfigError, match=r"mapping\.drop\[0\]\.event"):
        mapper("[[mapping.drop]]\n")


def test_sample_keeps_the_same_users_for_every_name():
    half = '[mapping.event."Feature Used"]\nsample = 0.5\n[mapping.event."Click"]\nsample = 0.5\n'
    compiled = mapper(half)
    dropped: dict[str, set[int]] = {}
    for name in ("Feature Used", "Click"):
        results = [
            compiled.map(
                {"type": "track", "event": name, "userId": f"u{n}"},
                NOTHING_KNOWN,
                property_key="AP-XXXXXXXXXX-2",
                received_ms=0,
            ).dropped
            for n in range(1000)
        ]
        assert set(results) == {None, "sampled"}
        dropped[name] = {n for n, reason in enumerate(results) if reason}
    assert dropped["Click"] == dropped["Feature Used"]
    assert 400 < len(dropped["Click"]) < 600


@pytest.mark.parametrize(("share", "reason"), [(0, "sampled"), (1, None)])
def test_sample_of_none_and_of_all(share: int, reason: str | None):
    for n in range(50):
        event = track(userId=f"u{n}")
        assert map_one(event, f'[mapping.event."Feature Used"]\nsample = {share}\n').dropped == reason


@pytest.mark.parametrize(
    ("preferences", "reason"),
    [
        ({"analytics": False}, "no_consent"),
        ({"analytics": True}, None),
        ({"ads": False}, None),
        ({}, None),
        (None, None),
    ],
)
def test_consent_that_is_refused_drops_the_event(preferences: Any, reason: str | None):
    consent = {"consent": {"categoryPreferences": preferences}}
    assert map_one(track(context=consent), '[mapping]\nconsent = ["analytics"]\n').dropped == reason


def test_cap_comes_with_the_request():
    mapped = map_one(track(), '[mapping.event."Feature Used"]\nper_day = 5\n')
    assert mapped.cap == ("Feature Used", 5)
    assert map_one(track("Other"), '[mapping.event."Feature Used"]\nper_day = 5\n').cap is None


@pytest.mark.parametrize("bad", ["undefined", "null", "None", "nil", "NaN", "[object Object]", "true", "false"])
def test_id_that_is_a_bug_of_the_app_counts_as_none(bad: str):
    mapped = map_one(track(userId=bad))
    assert mapped.dropped == "no_user"
    assert changes_by_field(mapped) == {"identifyId": "userId is not an id by identity.reject"}
    assert mapper().user_of(track(userId=bad)) is None
    anonymous = map_one(track(userId=bad, anonymousId="a"), '[mapping]\nanonymous = "visitor"\n')
    assert anonymous.intents[0].body["identifyId"] == "a"
    assert changes_by_field(anonymous) == {"identifyId": "userId is not an id by identity.reject"}


def test_rejected_account_is_none():
    assert mapper().account_said(group("undefined")) is None
    assert "accountId" not in body(track(context={"groupId": "null"}))
    assert mapper().account_said(group("undefined", context={"groupId": "a"})) == ("a", "context.groupId")


def test_rejected_session_is_none():
    """All events of all users would be one session of PX."""
    mapped = map_one(track(context={"session": {"id": "undefined"}, "sessionId": "s1"}))
    assert changes_by_field(mapped) == {"sessionId": "context.session.id is not an id by identity.reject"}
    assert body(track(context={"session": {"id": "undefined"}, "sessionId": "s1"}))["sessionId"] == "s1"


def test_reject_can_be_changed():
    assert body(track(userId="null"), '[identity]\nreject = ["test"]\n')["identifyId"] == "null"
    assert map_one(track(userId="test"), '[identity]\nreject = ["test"]\n').dropped == "no_user"


def test_blanks_around_an_event_name_are_cut_and_reported():
    mapped = map_one(track(" Products Searched\n"))
    assert mapped.intents[0].body["eventName"] == "Searched"
    assert changes_by_field(mapped) == {"eventName": "blanks around the name cut"}
    assert body(track(" X "), '[mapping.events]\n" X " = "Y"\n')["eventName"] == "Y"


@pytest.mark.parametrize("kind", ["page", "screen"])
def test_name_and_category_of_a_page_become_attributes(kind: str):
    call = {"type": kind, "userId": "u", "name": "Pricing", "category": "Docs"}
    assert body(call)["attributes"] == {"name": "Pricing", "category": "Docs"}
    assert body({**call, "properties": {"name": "own", "x": 1}})["attributes"] == {
        "name": "own",
        "category": "Docs",
        "x": 1,
    }
    assert body({**call, "properties": {"Name": "own"}})["attributes"] == {"Name": "own", "category": "Docs"}
    assert body({**call, "properties": {"name": None}})["attributes"]["name"] == "Pricing"
    rules = '[mapping.attributes]\nkeep = ["name"]\nrename = { name = "page_name" }\n'
    assert body(call, rules)["attributes"] == {"pageName": "Pricing"}


def test_name_of_a_track_call_is_not_an_attribute():
    assert body(track(name="x", category="y"))["attributes"] == {}


@pytest.mark.parametrize(
    ("properties", "reported"),
    [
        ({"name": "Pricing"}, False),
        ({"Name": "other"}, True),
        ({"name": {"a": 1}}, True),
        ({"name": None}, False),
    ],
)
def test_a_page_name_that_gives_way_to_a_property_is_reported(properties: dict[str, Any], reported: bool):
    mapped = map_one({"type": "page", "userId": "u", "name": "Pricing", "properties": properties})
    assert any("call's own name" in change.what for change in mapped.changes) is reported
    assert "Pricing" not in str(mapped.changes)


def test_text_that_was_not_valid_is_reported():
    mapped = map_one(track("a\0b", properties={"p": "x\0y", "n": {"k": "\ufffd"}, "k\ufffd": 1, "fine": "é"}))
    assert mapped.intents[0].body["attributes"] == {"p": "x\ufffdy", "n": '{"k":"\ufffd"}', "k\ufffd": 1, "fine": "é"}
    assert set(changes_by_field(mapped)) == {"eventName", "attributes.p", "attributes.n", "attributes.k\ufffd"}


def test_drop_means_the_name_of_a_configured_path():
    """``mapping.events`` is looked up by it, so a filter that ignored it sent what it was to drop."""
    toml = '[mapping.fields]\neventName = "properties.action"\n[[mapping.drop]]\nevent = "Debug*"\n'
    assert map_one(track(properties={"action": " Debug x"}), toml).dropped == "filtered"
    assert map_one(track(properties={"action": "Feature Used"}), toml).dropped is None
    assert map_one(track("Debug y"), toml).dropped == "filtered"
    assert map_one(group(properties={"action": "Debug x"}), toml).dropped == "remembered"

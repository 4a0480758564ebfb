"""The explanation of a mapping: the rule or path behind each value, and the reason for each value left out."""

import pytest
from mapping_help import group, map_one, mapper, track

from sidecar.mapping import Known, explain


def sources(event: dict, toml: str = "") -> dict[str, str]:
    """Return the source of each field, and the reason for each property that is not sent."""
    compiled = mapper(toml)
    mapped = map_one(event, toml)
    rows = explain(compiled, event, mapped)
    return {str(row.value) if row.field == "not sent" else row.field: row.source for row in rows}


def test_explain_gives_the_reason_for_unsent_properties():
    toml = """
[mapping.fields]
globalContext = "properties.where"
[mapping.attributes]
keep = ["plan", "email", "where", "rank", "_", "empty", "source"]
drop = ["email"]
rename = { "_" = "" }
set = { source = "billing" }
"""
    properties = {"plan": 1, "email": 2, "where": {"a": 1}, "rank": None, "_": 3, "other": 4, "source": 5}
    found = sources(track(properties=properties), toml)
    assert {name: why for name, why in found.items() if name.startswith("properties.")} == {
        "properties.email": "drop",
        "properties.where": "a PX field of its own",
        "properties.rank": "null",
        "properties._": "an empty name",
        "properties.other": "not in keep",
        "properties.source": "set",
    }
    assert found["attributes.source"] == "set"
    assert found["globalContext"] == "mapping.fields"


def test_explain_lists_the_rules_behind_a_name():
    toml = '[mapping.attributes]\nhash = ["user_mail"]\nhash_salt = "s"\nrename = { user_mail = "the_mail" }\n'
    found = sources(track(properties={"user_mail": "a@b.test", "plan": 1}), toml)
    assert found["attributes.theMail"] == "properties.user_mail (hash, rename, camel)"
    assert found["attributes.plan"] == "properties.plan"


def test_explain_names_the_winner_of_a_collision():
    toml = '[mapping.attributes]\nrename = { "0x" = "plan" }\n'
    assert sources(track(properties={"0x": 1, "plan": 2}), toml)["attributes.plan"] == "properties.plan"
    assert sources(track(properties={"my_plan": 1, "myPlan": 2}))["attributes.myPlan"] == "properties.myPlan"


def test_explain_names_the_path_of_each_field():
    context = {"session": {"id": "s-1"}, "groupId": "acct-1", "page": {"url": "https://a.test/"}}
    found = sources(track(context=context))
    assert found["sessionId"] == "context.session.id"
    assert found["accountId"] == "context.groupId"
    assert found["url"] == "context.page.url"
    page = {"type": "page", "userId": "u", "properties": {"url": "https://a.test/"}}
    assert sources(page)["url"] == "properties.url"


def test_explain_marks_an_account_from_memory():
    event, known = track(), Known(account_id="acct-1")
    mapped = map_one(event, "", known)
    found = {row.field: row.source for row in explain(mapper(), event, mapped)}
    assert found["accountId"] == "memory of the user (identify, group)"


def test_explain_shows_the_new_memory():
    compiled, event = mapper(), group("acct-1")
    rows = {row.field: row.value for row in explain(compiled, event, map_one(event))}
    assert rows["memory"] == {"account_id": "acct-1"}
    assert "memory" not in {row.field for row in explain(compiled, track(), map_one(track()))}


def test_explain_uses_the_rules_of_the_event():
    toml = '[mapping.event."Exported".attributes]\ndrop = ["plan"]\n'
    assert sources(track("Exported", properties={"plan": 1}), toml)["properties.plan"] == "drop"
    assert sources(track("Else", properties={"plan": 1}), toml)["attributes.plan"] == "properties.plan"


def test_explain_gives_the_reason_for_an_opt_out():
    assert "integrations" in sources(track(integrations={"All": False}))["opted_out"]


@pytest.mark.parametrize(
    ("event", "rules", "reason"),
    [
        ({"anonymousId": "a"}, "", "no userId, and mapping.anonymous does not allow anonymousId here"),
        ({}, "", "no userId, and no anonymousId"),
        ({"userId": "null"}, "", "no usable userId, and no usable anonymousId"),
        ({}, '[mapping]\nanonymous = "lead"\n', "no userId, and no anonymousId"),
        ({"userId": "u"}, '[mapping.fields]\nidentifyId = "traits.id"\n', "no traits.id, and no anonymousId"),
    ],
)
def test_explain_says_which_id_an_event_lacks(event: dict, rules: str, reason: str):
    assert sources({"type": "track", "event": "E", **event}, rules)["no_user"] == reason


def test_explain_names_the_path_that_was_sent():
    """Not the first that has a value: a rejected id, an absurd date, an unknown type and a null are passed over."""
    far, known = 1_917_700_000_000, {"account_id": "acct"}
    event = track(timestamp=far, context={"groupId": "null", "traits": known}, properties={"kind": "admin"})
    found = sources(event, '[mapping.fields]\nuserType = "properties.kind"\n')
    assert found["date"] == "time of receipt"
    assert found["accountId"] == "context.traits.account_id"
    assert found["userType"] == "default"
    unread = sources(track(timestamp="soon", originalTimestamp="2024-06-06T16:00:00Z"))
    assert unread["date"] == "originalTimestamp"
    spelled = sources(track(properties={"featureName": None, "feature_name": 1, "Feature_Name": 2}))
    assert spelled["attributes.FeatureName"] == "properties.Feature_Name (camel)"
    assert spelled["properties.featureName"] == "null"


def test_explain_names_the_cap():
    found = sources(track(properties={f"p{number:02}": number for number in range(51)}))
    assert found["properties.p50"] == "over 50 attributes"

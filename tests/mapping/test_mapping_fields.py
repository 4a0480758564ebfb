"""The fields of a custom event: default paths, configured paths, identity, global context, opt-out."""

import math

import pytest
from mapping_help import KEY, NOTHING_KNOWN, RECEIVED_MS, body, body_of, changes_by_field, map_one, mapper, track

from sidecar.mapping import Known
from sidecar.mapping.mapper import opted_out

ALL = """
[mapping.fields]
identifyId = ["properties.member", "userId"]
accountId = ["context.groupId", "traits.company_id"]
sessionId = "properties.sessionId"
url = ["properties.link"]
referrer = "properties.from"
remoteHost = "context.ip"
date = ["properties.when", "timestamp"]
eventName = ["properties.action", "event"]
userType = "context.user_type"
eventId = "messageId"
"globalContext.env" = ["context.env", "=production"]
"globalContext.build" = "context.app.build"
"""


def test_every_field_has_configurable_paths():
    event = track(
        "Ignored",
        messageId="m-1",
        timestamp="2024-06-06T12:00:00Z",
        traits={"company_id": 17},
        context={"ip": "10.0.0.1", "user_type": "lead", "app": {"build": 7}, "session": {"id": "not this"}},
        properties={
            "member": "m-9",
            "sessionId": 1679967592314,
            "link": "https://x.test",
            "from": "https://y.test",
            "when": "2024-06-06T13:00:00Z",
            "action": "Products Searched",
        },
    )
    sent = body(event, ALL)
    del sent["attributes"]
    assert sent == {
        "identifyId": "m-9",
        "propertyKey": KEY,
        "userType": "LEAD",
        "eventName": "Searched",
        "date": 1717678800000,
        "sessionId": "1679967592314",
        "accountId": "17",
        "url": "https://x.test",
        "referrer": "https://y.test",
        "remoteHost": "10.0.0.1",
        "eventId": "m-1",
        "globalContext": {"build": 7, "env": "production"},
    }


def test_fields_without_a_value_are_left_out_or_fall_back():
    sent = body(track("Own", timestamp=None), ALL)
    assert sent == {
        "identifyId": "user-123",
        "propertyKey": KEY,
        "userType": "USER",
        "eventName": "Own",
        "date": RECEIVED_MS,
        "globalContext": {"env": "production"},
        "attributes": {},
    }


@pytest.mark.parametrize("nothing", [None, "", "  ", True, {}, [], {"id": "x"}])
def test_path_without_text_or_number_falls_through(nothing: object):
    event = track(
        context={"groupId": nothing, "traits": {"account_id": "a-1"}, "session": {"id": nothing}, "sessionId": 7}
    )
    sent = body(event)
    assert (sent["accountId"], sent["sessionId"]) == ("a-1", "7")


def test_account_paths_have_a_default_order():
    context = {"groupId": "1", "traits": {"account_id": "2"}}
    event = track(context=context, traits={"account_id": "3"})
    known = Known(account_id="4")
    found = []
    for remove in (
        lambda: context.pop("groupId"),
        lambda: context.pop("traits"),
        lambda: event.pop("traits"),
        lambda: None,
    ):
        found.append(body(event, known=known)["accountId"])
        remove()
    assert found == ["1", "2", "3", "4"]
    assert "accountId" not in body(track())


def test_empty_list_switches_a_field_off():
    rules = "[mapping.fields]\naccountId = []\nurl = []\nsessionId = []\nreferrer = []"
    context = {"groupId": "g", "session": {"id": "s"}, "page": {"url": "u", "referrer": "r"}}
    sent = body(
        {"type": "page", "userId": "u1", "context": context, "properties": {"url": "u"}}, rules, Known(account_id="a")
    )
    assert set(sent) == {"identifyId", "propertyKey", "userType", "eventName", "date", "attributes"}


def test_only_page_calls_read_url_from_properties():
    properties = {"url": "https://p.test"}
    assert body({"type": "page", "userId": "u", "properties": properties})["url"] == "https://p.test"
    assert "url" not in body({"type": "screen", "userId": "u", "properties": properties})
    assert "url" not in body(track(properties=properties))
    both = {"type": "page", "userId": "u", "properties": properties, "context": {"page": {"url": "https://c.test"}}}
    assert body(both)["url"] == "https://c.test"


def test_dotted_key_wins_over_a_nested_value():
    rules = '[mapping.fields]\nsessionId = "properties.my.session"'
    assert body(track(properties={"my.session": "flat", "my": {"session": "deep"}}), rules)["sessionId"] == "flat"
    assert body(track(properties={"my": {"session": "deep"}}), rules)["sessionId"] == "deep"


@pytest.mark.parametrize("nested", ["string", "flatten"])
def test_null_under_a_dotted_key_leaves_the_nested_value(nested: str):
    properties = {"org.id": None, "org": {"id": "acct-1"}}
    rules = f'[mapping]\nnested = "{nested}"\n[mapping.fields]\naccountId = "properties.org.id"\n'
    assert body(track(properties=properties), rules)["accountId"] == "acct-1"


@pytest.mark.parametrize("sent", ["boss", 7, None, {"a": 1}])
def test_unknown_user_type_falls_through(sent: object):
    rules = '[mapping.fields]\nuserType = ["context.user_type", "=LEAD"]'
    mapped = map_one(track(context={"user_type": sent}), rules)
    assert body_of(mapped)["userType"] == "LEAD"
    assert ("userType" in changes_by_field(mapped)) == (sent is not None)


def test_user_type_of_an_event_wins_over_the_path():
    rules = '[mapping.fields]\nuserType = "context.t"\n[mapping.event."Special"]\nuser_type = "VISITOR"\n'
    assert body(track("Special", context={"t": "LEAD"}), rules)["userType"] == "VISITOR"


def test_global_context_object_replaces_its_members():
    rules = '[mapping.fields]\nglobalContext = "properties.globalContext"\n"globalContext.env" = "=production"\n'
    sent = body(
        track(properties={"globalContext": {"a_b": 1, "t": None, "n": {"x": [1]}, "nan": float("nan")}, "p": 1}), rules
    )
    assert sent["globalContext"] == {"a_b": 1, "n": '{"x":[1]}'}
    assert sent["attributes"] == {"p": 1}
    assert body(track(properties={"globalContext": {}}), rules)["globalContext"] == {"env": "production"}
    assert "globalContext" not in body(track(), '[mapping.fields]\nglobalContext = "properties.globalContext"')


@pytest.mark.parametrize(
    ("integrations", "off"),
    [
        ({"All": False}, True),
        ({"all": False}, True),
        ({"All": False, "Gainsight PX": True}, False),
        ({"All": False, "GAINSIGHT_PX": {"limitAPIForGroup": True}}, False),
        ({"All": False, "Mixpanel": True}, True),
        ({"Gainsight PX": False}, True),
        ({"GAINSIGHT_PX": False}, True),
        ({"Gainsight PX Cloud (Actions)": False}, True),
        ({"All": True, "Gainsight PX": False}, True),
        ({"All": False, "Gainsight PX": None}, True),
        ({"Gainsight PX": None}, False),
        ({"Mixpanel": False}, False),
        ({"All": True}, False),
        ({}, False),
        (None, False),
        ("no", False),
    ],
)
@pytest.mark.parametrize("kind", ["track", "identify"])
def test_integrations_can_opt_out(integrations: object, off: bool, kind: str):
    event = {"type": kind, "event": "E", "userId": "u1", "traits": {"account_id": "a"}, "integrations": integrations}
    mapped = map_one(event)
    assert (mapped.dropped == "opted_out") is off
    assert mapped.known is None or not off


def test_alias_is_not_supported():
    assert map_one({"type": "alias", "userId": "new", "previousId": "old"}).dropped == "not_supported"


@pytest.mark.parametrize("user", [None, "", "  "])
def test_event_without_any_id_is_dropped(user: object):
    for anonymous in ("drop", "visitor"):
        event = {"type": "track", "event": "E", "userId": user, "anonymousId": None}
        assert map_one(event, f'[mapping]\nanonymous = "{anonymous}"').dropped == "no_user"


def test_identified_user_is_not_a_visitor():
    sent = body(track(anonymousId="anon"), '[mapping]\nanonymous = "visitor"')
    assert (sent["identifyId"], sent["userType"]) == ("user-123", "USER")


def test_user_key_is_the_future_identify_id():
    event = {"type": "track", "event": "E", "anonymousId": "anon"}
    assert mapper().user_of(event) is None
    assert mapper('[mapping]\nanonymous = "lead"').user_of(event) == "anon"
    assert mapper().user_of({**event, "userId": 7}) == "7"


def test_failing_rules_make_the_event_dead():
    broken = mapper()
    broken.rules.plans.clear()
    mapped = broken.map(track(), NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS)
    assert (mapped.dead, mapped.intents) == ("mapping_error", ())
    assert "KeyError" in mapped.detail


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("text", "text"),
        ("", None),
        (True, True),
        (False, False),
        (None, None),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (200, 200),
        (1.5, 1.5),
        (math.nan, None),
        (math.inf, None),
        ([1, {"b": 2, "a": 1}], '[1,{"a":1,"b":2}]'),
    ],
)
@pytest.mark.parametrize(
    "fields", ['globalContext = "properties.where"', '"globalContext.one" = "properties.where.one"']
)
def test_global_context_members_are_scalars(sent, got, fields):
    made = body(track(properties={"where": {"one": sent}}), f"[mapping.fields]\n{fields}\n")
    assert made.get("globalContext") == (None if got is None else {"one": got})


@pytest.mark.parametrize("integrations", [None, [], "All", {}, {"All": True}])
def test_integrations_without_an_entry_do_not_opt_out(integrations):
    assert opted_out(integrations) is False


def test_page_call_sends_referrer_and_its_own_url():
    page = {"type": "page", "userId": "u", "properties": {"url": "https://a.test/"}}
    made = body(page | {"context": {"page": {"referrer": "https://b.test/"}}})
    assert (made["url"], made["referrer"]) == ("https://a.test/", "https://b.test/")


@pytest.mark.parametrize("value", [{"id": 1}, ["a"], True])
def test_field_that_is_no_text_is_reported(value: object):
    mapped = map_one(track(context={"session": {"id": value}, "groupId": value, "page": {"url": value}}))
    assert {"sessionId", "accountId", "url"} <= set(changes_by_field(mapped))
    assert "sessionId" not in body_of(mapped)
    assert "accountId" not in body_of(mapped)


def test_global_context_stays_within_the_caps_of_px():
    """PX refused the whole event for one long name."""
    values = {f"v{number:02}": number for number in range(50)} | {"k" * 1_100: 1}
    mapped = map_one(track(properties={"where": values}), '[mapping.fields]\nglobalContext = "properties.where"\n')
    assert body_of(mapped)["globalContext"] == {"k" * 1_024: 1} | {f"v{number:02}": number for number in range(49)}
    changes = changes_by_field(mapped)
    assert changes["globalContext.v49"] == "left out: over 50 values"
    assert changes["globalContext." + "k" * 40 + "…"] == "name cut: over 1,024 characters"


def test_a_global_context_that_is_no_object_is_reported():
    """It was neither sent nor an attribute, and nothing said so."""
    rules = '[mapping.fields]\nglobalContext = "properties.where"\n'
    changes = changes_by_field(map_one(track(properties={"where": "here"}), rules))
    assert changes == {"globalContext": "properties.where left out: str, not an object"}


@pytest.mark.parametrize(("sent", "got"), [(2**63, str(2**63)), (-(2**64), str(-(2**64))), (10**400, None)])
@pytest.mark.parametrize(
    "fields", ['globalContext = "properties.where"', '"globalContext.one" = ["properties.where.one"]']
)
def test_number_beyond_64_bits_in_global_context_is_reported(sent: int, got: str | None, fields: str):
    mapped = map_one(track(properties={"where": {"one": sent}}), f"[mapping.fields]\n{fields}\n")
    assert body_of(mapped).get("globalContext") == (None if got is None else {"one": got})
    what = "left out: beyond 1,024 bits" if got is None else "sent as text: beyond 64 bits"
    assert changes_by_field(mapped)["globalContext.one"] == what


def test_name_lost_in_global_context_is_reported():
    """PX does not distinguish names by case: of two it would keep one, and not say which."""
    rules = '[mapping.fields]\nglobalContext = "properties.where"\n'
    mapped = map_one(track(properties={"where": {"plan": 2, "Plan": 1, "": 3, "nothing": None}}), rules)
    assert body_of(mapped)["globalContext"] == {"Plan": 1}
    assert changes_by_field(mapped) == {
        "globalContext": "a value left out: it has an empty name",
        "globalContext.plan": "left out: another has the same name in PX",
    }


@pytest.mark.parametrize("path", ["where", "deep.where"])
def test_flattened_object_is_sent_in_global_context_alone(path: str):
    where = {"city": "B", "at": {"floor": 2}}
    properties = {"plan": "x", **({"where": where} if path == "where" else {"deep": {"where": where}})}
    rules = f'[mapping]\nnested = "flatten"\n[mapping.fields]\nglobalContext = "properties.{path}"\n'
    mapped = map_one(track(properties=properties), rules)
    assert body_of(mapped)["globalContext"] == {"at": '{"floor":2}', "city": "B"}
    assert body_of(mapped)["attributes"] == {"plan": "x"}


def test_second_object_for_global_context_is_reported():
    rules = '[mapping.fields]\nglobalContext = ["properties.a", "properties.b", "context.app", "properties.c"]\n'
    event = track(properties={"a": {}, "b": {"x": 1}, "c": {"y": 2}}, context={"app": {"z": 3}})
    mapped = map_one(event, rules)
    assert (body_of(mapped)["globalContext"], body_of(mapped)["attributes"]) == ({"x": 1}, {})
    assert changes_by_field(mapped) == {"globalContext": "properties.c left out: another path gives it"}

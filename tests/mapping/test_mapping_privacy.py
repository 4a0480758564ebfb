"""Denied data appears nowhere: not in requests, nested values, digests, reported changes or redacted events."""

import json
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import pytest
from mapping_help import (
    KEY,
    NOTHING_KNOWN,
    RECEIVED_MS,
    attributes,
    body,
    body_of,
    group,
    identify,
    map_one,
    mapper,
    track,
)

from sidecar.errors import ConfigError
from sidecar.mapping.privacy import PrivacyRules, hide_in

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
RULES = '[mapping.attributes]\ndrop = ["email"]\nhash = ["phone"]\nhash_salt = "s"\n'
HASH = sha256(b"pepper123").hexdigest()


@pytest.mark.parametrize("name", ["email", "Email", "E_MAIL", "e_mail"])
@pytest.mark.parametrize("nested", ['nested = "string"', 'nested = "flatten"'])
def test_dropped_name_appears_nowhere_at_any_depth(name: str, nested: str):
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


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ('{"email": "S3CRET", "a": 1}', '{"a":1}'),
        (' [{"E_Mail": "S3CRET"}, {"b": 2}]', '[{},{"b":2}]'),
        ('{"in": "{\\"email\\": \\"S3CRET\\"}"}', '{"in":"{}"}'),
        ('{"u": "https://x.test/?email=S3CRET&q=1"}', '{"u":"https://x.test/?q=1"}'),
        ('{"phone": "123"}', f'{{"phone":"{HASH}"}}'),
        ('{"a":  1.0, "b": []}', '{"a":  1.0, "b": []}'),
        ('\ufeff{"a":  {"email": "S3CRET"}, "a": {"n":  1}}', '{"a":{"n":1}}'),
        ('{"a":  [{"n": 1}], "n": 1}', '{"a":  [{"n": 1}], "n": 1}'),
        ("{email}?email=S3CRET&q=1", "{email}?q=1"),
        ("[" * 5_000, "[" * 5_000),
    ],
)
def test_rules_apply_to_texts_that_are_json(text: str, sent: str):
    """Apps write objects as texts, since many destinations take no nested ones."""
    event = track(properties={"note": text})
    assert body(event, DENY)["attributes"]["note"] == sent
    compiled = mapper(DENY)
    shown, hashed = compiled.export(event)
    assert shown["properties"]["note"] == sent
    assert compiled.redact(shown, hashed) == shown


def test_dotted_entry_drops_one_nested_value():
    sent = body(track(properties={"address": {"street": SECRET, "city": "B"}, "street": "kept"}), DENY)
    assert sent["attributes"] == {"address": '{"city":"B"}', "street": "kept"}
    assert SECRET not in repr(mapper(DENY).redact(track(properties={"address": {"street": SECRET}})))


def test_hash_applies_at_any_depth_and_in_traits():
    assert body(track(properties={"phone": 123, "n": {"Phone": "123"}}), DENY)["attributes"] == {
        "n": f'{{"Phone":"{HASH}"}}',
        "phone": HASH,
    }
    (user,) = map_one(identify({"phone": "123"}), DENY).intents
    assert user.fields["phone"] == HASH


def test_flattened_value_beside_a_dotted_null_is_hashed_once():
    event, rules = track(properties={"n.phone": None, "n": {"phone": "123"}}), f'[mapping]\nnested = "flatten"\n{DENY}'
    assert body(event, rules)["attributes"] == {"n.phone": HASH}
    shown, hashed = mapper(rules).export(event)
    again = mapper(rules).map(shown, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS, hashed=hashed)
    assert body_of(again)["attributes"] == {"n.phone": HASH}


@pytest.mark.parametrize("value", ["", "  "])
def test_the_digest_of_a_blank_text_is_not_an_id(value: str):
    """All users without a member number became one user of PX, and those without an account members of one."""
    toml = '[mapping.fields]\nidentifyId = "properties.member"\n[mapping.attributes]\nhash = ["member", "account_id"]\n'
    rules = mapper(toml)
    for event in (
        track(properties={"member": value}),
        track(properties={"member": "m"}, context={"traits": {"account_id": value}}),
        identify({"account_id": value}, properties={"member": "m"}),
    ):
        when = {"property_key": KEY, "received_ms": RECEIVED_MS}
        mapped = rules.map(event, NOTHING_KNOWN, **when)
        said = rules.account_said(event)
        exported, hashed = rules.export(event)
        assert rules.map(exported, NOTHING_KNOWN, hashed=hashed, **when) == mapped
        assert rules.account_said(exported, hashed) == said is None
        assert "accountId" not in str(mapped.intents)
        assert mapped.dropped == ("no_user" if event["properties"]["member"] == value else mapped.dropped)


@pytest.mark.parametrize("rejected", ["undefined", "null"])
def test_hashed_text_in_identity_reject_is_not_an_id(rejected: str):
    """All users and accounts without an id became one: that of the hash of `undefined`."""
    rules = '[mapping.fields]\nidentifyId = ["properties.phone", "userId"]\naccountId = "traits.phone"\n' + DENY
    event = track(properties={"phone": rejected}, traits={"phone": rejected})
    mapped = map_one(event, rules)
    assert (body_of(mapped)["identifyId"], body_of(mapped).get("accountId")) == ("user-123", None)
    assert {change.field for change in mapped.changes} == {"identifyId", "accountId"}
    assert body(track(properties={"phone": "123"}), rules)["identifyId"] == HASH


@pytest.mark.parametrize(
    "event",
    [
        identify({"account_id": {"a": 1}}),
        identify({"account_id": "null"}),
        identify({"account_id": "\ufffd"}),
        identify({"company": {"id": True}}),
        {"type": "page", "userId": "u", "name": {"a": 1}},
    ],
    ids=str,
)
def test_denied_name_is_not_in_reported_changes(event: dict[str, Any]):
    assert map_one(event).changes != ()
    assert map_one(event, '[mapping.attributes]\ndrop = ["account_id", "company", "name"]\n').changes == ()


def test_rules_for_traits_apply_in_traits_only():
    assert body(track(properties={"ssn": 1}), DENY)["attributes"] == {"ssn": 1}
    mapped = map_one(identify({"ssn": SECRET, "x": {"ssn": SECRET}}), DENY)
    assert SECRET not in repr(mapped)


def test_one_part_of_an_address_can_be_dropped():
    rules = '[mapping.traits]\ndrop = ["address.city"]\n[people]\nusers = "upsert"'
    (user,) = map_one(identify({"address": {"city": SECRET, "country": "DE"}}), rules).intents
    assert user.fields["location"] == {"countryName": "DE"}


def test_account_id_is_not_read_from_dropped_traits():
    rules = '[mapping.attributes]\ndrop = ["account_id"]'
    event = track(traits={"account_id": SECRET}, context={"traits": {"account_id": SECRET}})
    assert "accountId" not in body(event, rules)
    assert map_one(identify({"account_id": SECRET}), rules).known is None


def test_drop_does_not_apply_to_call_keys_of_the_context():
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
def test_field_read_from_a_denied_path_is_a_config_error(path: str):
    with pytest.raises(ConfigError, match=r"mapping\.fields\.sessionId reads .* denies"):
        mapper(f'[mapping.fields]\nsessionId = ["{path}"]\n{DENY}')


def test_field_read_from_a_hashed_path_is_hashed():
    rules = f'[mapping.fields]\nidentifyId = ["traits.phone", "userId"]\n{DENY}'
    event = {"type": "track", "event": "E", "traits": {"phone": "123"}}
    assert body(event, rules)["identifyId"] == HASH
    assert mapper(rules).user_of(event) == HASH


def test_object_fields_are_sent_without_denied_names():
    bag = {"email": SECRET, "phone": "123", "k": {"email": SECRET}}
    rules = f'[mapping.fields]\nglobalContext = "properties.g"\n"globalContext.all" = "context"\n{DENY}'
    assert body(track(properties={"g": bag}), rules)["globalContext"] == {"k": "{}", "phone": HASH}
    whole = body(track(context={"traits": {**bag, "ssn": SECRET}, "o": bag}), rules)
    assert SECRET not in repr(whole)


def test_drop_of_one_event_applies_to_it_and_to_all_fields():
    rules = '[mapping.event."Login"]\nattributes.drop = ["ip"]\n'
    assert body(track("Login", properties={"ip": SECRET}), rules)["attributes"] == {}
    assert body(track("Other", properties={"ip": "1"}), rules)["attributes"] == {"ip": "1"}
    assert SECRET not in repr(mapper(rules).redact(track("Login", properties={"ip": SECRET})))
    with pytest.raises(ConfigError, match="remoteHost"):
        mapper(rules + '[mapping.fields]\nremoteHost = "properties.ip"')


def test_redaction_shows_kept_names_and_sources_of_fields():
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


def test_redaction_without_rules_changes_nothing():
    event = track(properties={"a": {"b": [1]}}, context={"x": 1}, own={"key": 1})
    assert mapper().redact(event) == event
    assert mapper(DENY).redact({"value": 7}) == {"value": 7}


def test_drop_does_not_apply_to_keys_of_the_call():
    rules = '[mapping.attributes]\ndrop = ["user_id", "event", "type", "timestamp"]'
    event = track(timestamp="2024-06-06", properties={"userId": 1, "type": 2})
    assert mapper(rules).redact(event) == {**event, "properties": {}}
    assert body(event, rules)["identifyId"] == "user-123"


def test_what_another_host_hashed_is_not_hashed_again():
    event = track(properties={"phone": "123"})
    seen, hashed = mapper(DENY).export(event)
    assert seen["properties"] == {"phone": HASH}
    assert hashed == [HASH]
    again = mapper(DENY).map(seen, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS, hashed=hashed)
    assert body_of(again) == body(event, DENY)
    assert mapper(DENY).export(seen, hashed) == (seen, hashed)


def test_a_value_that_looks_like_a_digest_is_hashed():
    assert attributes({"phone": HASH}, DENY)["phone"] != HASH
    assert mapper(DENY).redact(track(properties={"phone": HASH}))["properties"]["phone"] != HASH


def test_reported_changes_contain_no_values():
    event = track(timestamp=SECRET, properties={"big": 2**70 + 1, "a_b": SECRET, "aB": SECRET})
    assert SECRET not in repr(map_one(event).changes)
    assert str(2**70 + 1) not in repr(map_one(event).changes)


@pytest.mark.parametrize("rule", ['drop = ["address"]', 'hash = ["address"]'])
def test_denied_object_is_not_flattened(rule: str):
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
def test_redaction_keeps_listed_parts_of_nested_objects(rules: str, seen: dict):
    event = track(properties={"plan": {"tier": 1, "x": 2}, "plan.y": 3, "other": {"x": 4}, "l": [{"x": 5}]})
    assert mapper(rules).redact(event)["properties"] == seen
    assert body({**event, "properties": seen}, rules) == body(event, rules)


def test_rules_apply_by_name_and_by_path():
    denied = PrivacyRules.compile(["email", "form.phone"], ["card", "form.tax_id"], "")
    assert [denied.drops("email", "a.email"), denied.drops("phone", "form.phone"), denied.drops("a", "a.a")] == [
        *(True, True, False)
    ]
    assert [denied.hashes("card", "a.card"), denied.hashes("tax_id", "form.tax_id"), denied.hashes("a", "a.a")] == [
        *(True, True, False)
    ]


def test_every_value_is_hashed():
    denied = PrivacyRules.compile([], ["x"], "")
    once = denied.digest("x" * 64)
    assert once != "x" * 64
    assert denied.digest(once) != once


URL = "https://a.test/p?email=j%40x.test&utm_source=x&user[phone]=1&next=%2Flogin%3Femail%3Dj#token=t&email=j"


@pytest.mark.parametrize("sent", [{"context": {"page": {"url": URL}}}, {"properties": {"link": URL}}])
def test_privacy_rules_apply_to_parameters_of_urls(sent: dict[str, Any]):
    rules = '[mapping.attributes]\ndrop = ["email"]\nhash = ["phone"]\n'
    made = body(track(**sent), rules)
    text = made.get("url") or made["attributes"]["link"]
    digest = sha256(b"1").hexdigest()
    assert text == f"https://a.test/p?utm_source=x&user[phone]={digest}&next=%2Flogin#token=t"
    seen, hashed = mapper(rules).export(track(**sent))
    assert "j%40x" not in repr(seen)
    mapped = mapper(rules).map(seen, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS, hashed=hashed)
    assert body_of(mapped) == made


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("?email=a", ""),
        ("see https://a.test/?email=a&x=1 there", "see https://a.test/?x=1 there"),
        ("what? email=a", "what? email=a"),
        ("/p?EMAIL=a", "/p"),
        ("https://a.test/?email=a b", "https://a.test/"),
    ],
)
def test_denied_parameter_is_found_wherever_a_url_stands(text: str, kept: str):
    assert attributes({"search": text}, '[mapping.attributes]\ndrop = ["email"]\n') == {"search": kept}


@pytest.mark.parametrize(
    ("rule", "url"),
    [
        ('"keep"', "https://a.test/p?a=1&b&utm_source=x#top"),
        ('"drop"', "https://a.test/p#top"),
        ('["utm_source"]', "https://a.test/p?utm_source=x#top"),
    ],
)
def test_url_query_says_which_parameters_stay(rule: str, url: str):
    sent = "https://a.test/p?a=1&b&utm_source=x#top"
    event = track(context={"page": {"url": sent, "referrer": sent}}, properties={"link": sent, "text": "a? b=1"})
    made = body(event, f"[mapping]\nurl_query = {rule}\n")
    assert (made["url"], made["referrer"], made["attributes"]) == (url, url, {"link": url, "text": "a? b=1"})


@pytest.mark.parametrize("fields", ["", '[mapping.fields]\nurl = "properties.url"\nreferrer = "properties.from"\n'])
def test_url_query_applies_to_url_and_referrer_of_any_path(fields: str):
    """A URL without its scheme does not look like one; as `url` and `referrer` it is."""
    event = {"type": "page", "userId": "u", "properties": {"url": "a.test/p?token=1#top", "from": "b.test?token=2"}}
    made = body(event, f'[mapping]\nurl_query = "drop"\n{fields}')
    assert (made["url"], made.get("referrer", "b.test")) == ("a.test/p#top", "b.test")


@pytest.mark.parametrize("name", ["userId", "user_id", "groupId"])
def test_hashing_an_id_of_the_call_is_a_config_error(name: str):
    with pytest.raises(ConfigError, match="hash names"):
        mapper(f'[mapping.attributes]\nhash = ["{name}"]\n')


@pytest.mark.parametrize("field", ["identifyId", "sessionId"])
def test_hashing_the_anonymous_id_that_a_field_reads_is_an_error(field: str):
    rules = '[mapping.attributes]\nhash = ["anonymous_id"]\n'
    mapper(rules)
    with pytest.raises(ConfigError, match=f"hash names 'anonymous_id', an id of the call that PX gets as {field}"):
        mapper(f'[mapping.fields]\n{field} = ["userId", "anonymousId"]\n{rules}')


def test_privacy_rules_apply_to_the_name_of_a_page():
    event = {"type": "page", "userId": "u", "name": SECRET, "category": "Docs"}
    for rules in ('drop = ["name"]', 'hash = ["name"]', 'keep = ["category"]'):
        toml = f"[mapping.attributes]\n{rules}\n"
        assert SECRET not in repr(map_one(event, toml))
        assert SECRET not in repr(mapper(toml).redact(event))


def test_drop_applies_to_objects_in_lists():
    made = attributes(
        {"rows": [{"email": "a@b.test", "n": 1}, 2, [{"Email": "x"}]]}, '[mapping.attributes]\ndrop = ["email"]\n'
    )
    assert made == {"rows": '[{"n":1},2,[{}]]'}


@pytest.mark.parametrize("denied", ["company", "company.info", "company.info.id", "id"])
def test_field_below_a_denied_trait_is_a_config_error(denied):
    toml = f'[mapping.fields]\naccountId = ["traits.company.info.id"]\n[mapping.traits]\ndrop = ["{denied}"]\n'
    with pytest.raises(ConfigError, match=r"reads traits\.company\.info\.id, but a `drop` list denies"):
        mapper(toml)


@pytest.mark.parametrize("table", ["mapping.attributes", "mapping.traits", 'mapping.event."Exported".attributes'])
def test_rename_to_a_denied_name_is_a_config_error(table):
    with pytest.raises(ConfigError, match="denies"):
        mapper(f'[{table}]\ndrop = ["email"]\nrename = {{ mail = "email" }}\n')


def test_redaction_hashes_own_keys_but_not_call_keys():
    compiled = mapper('[mapping.attributes]\nhash = ["extra"]\nhash_salt = "pepper"\n')
    seen = compiled.redact(track(extra="secret", other="plain"))
    assert (seen["userId"], seen["other"], len(seen["extra"])) == ("user-123", "plain", 64)


def test_redaction_keeps_call_keys_in_the_context():
    compiled = mapper('[mapping.attributes]\ndrop = ["groupId", "id", "url"]\n')
    context = {"groupId": "acct-1", "id": "x", "session": {"id": 7, "x": 1}, "page": {"url": "https://a.test/"}}
    seen = compiled.redact(track(context=context))
    assert seen["context"] == {"groupId": "acct-1", "session": {"x": 1, "id": 7}, "page": {"url": "https://a.test/"}}


@pytest.mark.parametrize(("nested", "seen"), [("flatten", {"address.city": "Bonn"}), ("string", {})])
def test_redaction_keeps_dotted_traits_only_if_flattened(nested, seen):
    compiled = mapper(f'[mapping.traits]\nkeep = ["address"]\nnested = "{nested}"\n')
    assert compiled.redact(identify({"address.city": "Bonn"}))["traits"] == seen


def test_quoted_values_are_hidden_when_a_rule_covers_them():
    event = track(properties={"email": "jane@x.test", "n": {"phone": 4930123}, "plan": "Pro"})
    redacted = mapper('[mapping.attributes]\ndrop = ["email", "phone"]\n').redact(event)
    said = "PX answered 400: jane@x.test and 4930123 are not valid for plan Pro."
    assert hide_in(said, event, redacted) == "PX answered 400: … and … are not valid for plan Pro."
    assert hide_in(said, event, event) == said


@pytest.mark.parametrize("name", ["e-mail", "E-Mail", "e mail"])
@pytest.mark.parametrize("rule", ["drop", "hash"])
def test_rule_covers_names_with_hyphens_and_blanks(rule: str, name: str):
    """A trait ``E-Mail`` is PX's field ``email``, so a rule for ``email`` has to cover it."""
    compiled = mapper(f'[mapping.attributes]\n{rule} = ["email"]\nhash_salt = "s"\n[people]\nusers = "upsert"\n')
    for event in (
        identify({name: SECRET}),
        track(properties={name: SECRET, "nested": [{name: SECRET}], "url": f"https://x.test/?{name}={SECRET}"}),
    ):
        mapped = compiled.map(event, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS)
        assert SECRET not in str(mapped) + str(compiled.redact(event))


@pytest.mark.parametrize(
    "value",
    [
        f"https://x.test/?d=%7B%22email%22%3A%22{SECRET}%22%7D",  # JSON in a parameter
        f"plan=pro&email={SECRET}",  # the body of a form
        f"email={SECRET}",
        f"https://x.test/?plan=pro&amp;email={SECRET}",
        f"https://x.test/?plan=pro;email={SECRET}&b=1",
        f"a=1&amp;email={SECRET}",
        f"sid=1; email={SECRET}; theme=dark",
        f"https://x.test/?state=a%3D1%26email%3D{SECRET}",  # a form in a parameter
        f"https://x.test/#/r?state=sid%3D1%3B+email%3D{SECRET}",
        f"data=plan%3Dpro%26email%3D{SECRET}&a=1",
        f"https://x.test/?next=q%3D%252Fp%253Femail%253D{SECRET}",
    ],
)
@pytest.mark.parametrize("rule", ["drop", "hash"])
def test_rule_covers_parameters_in_every_form(rule: str, value: str):
    toml = f'[mapping.attributes]\n{rule} = ["email"]\nhash_salt = "s"\n'
    event = track(properties={"where": value}, context={"page": {"url": value}})
    assert SECRET not in str(body(event, toml)) + str(mapper(toml).redact(event))


@pytest.mark.parametrize(
    "text",
    [
        "a=b",
        "x==",
        "q=a;b&c",
        "https://x.test/?q=a;b&amp;c=d",
        "1 = 2",
        "=",
        "sid=1; theme=dark",
        "a&b=c;",
        "x=a%3D1%26b%3D2",
        "?x=a%3D1",
    ],
)
def test_text_without_a_covered_parameter_stays_byte_for_byte(text: str):
    assert attributes({"text": text}, '[mapping.attributes]\ndrop = ["email"]\n') == {"text": text}


def test_value_of_a_company_is_hashed_once():
    """An account made of a trait had the digest of a digest, so that it never equaled the user's own value."""
    toml = DENY.replace('"phone"', '"phone", "company.plan", "city"')
    traits = {"phone": "123", "company": {"id": "c", "phone": "123", "plan": "123", "address": {"city": "123"}}}
    account, user = map_one(identify(traits), toml).intents
    assert user.fields["phone"] == HASH
    assert (account.fields["customAttributes"]["phone"], account.fields["plan"]) == (HASH, HASH)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "page", "userId": "u", "name": {"a": 1}, "category": "?email=x"},
        {"type": "screen", "userId": "u", "name": ["a"], "category": "email=x"},
        track(context={"groupId": "https://x.test/?email=a&b=1", "sessionId": "email=a"}),
        identify({"company": {"id": "c", "phone": {"deep": "1", "email": "2"}}}),
    ],
)
def test_redacted_event_maps_to_the_same_requests(event: dict):
    compiled = mapper(DENY.replace('"phone"', '"phone", "name"'))
    ours = compiled.map(event, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS)
    redacted, hashed = compiled.export(event)
    theirs = compiled.map(redacted, NOTHING_KNOWN, property_key=KEY, received_ms=RECEIVED_MS, hashed=hashed)
    assert theirs.intents == ours.intents


def test_a_flattened_value_in_a_list_or_url_is_hashed_once():
    toml = DENY + '[mapping]\nnested = "flatten"\n'
    sent = attributes(
        {"o": {"list": [{"phone": "123"}], "url": "https://x.test/?phone=123"}, "list": [{"phone": "123"}]}, toml
    )
    assert sent == {
        "list": f'[{{"phone":"{HASH}"}}]',
        "o.list": f'[{{"phone":"{HASH}"}}]',
        "o.url": f"https://x.test/?phone={HASH}",
    }


def test_a_pages_name_is_shown_as_the_rules_show_it():
    rules = mapper('[mapping.attributes]\ndrop = ["name"]')
    assert rules.shown_name("track", "Feature Used") == "Feature Used"
    assert [rules.shown_name(kind, "Ann's orders") for kind in ("page", "screen")] == ["", ""]
    assert [mapper().shown_name(kind, "Orders") for kind in ("page", "screen")] == ["Orders", "Orders"]
    assert rules.shown_name("page", "") == ""


@pytest.mark.parametrize("nested", ["string", "flatten"])
@pytest.mark.parametrize("name", ["user.email", "user.phone", "phone.work"])
def test_rule_covers_a_part_of_a_name_with_dots(name: str, nested: str):
    """A name that the app itself had dotted escaped the rules."""
    toml = f'[mapping]\nnested = "{nested}"\n{RULES}'
    event = track(properties={name: SECRET, "n": {name: SECRET}}, context={"traits": {name: SECRET}})
    assert SECRET not in str(body(event, toml)) + str(mapper(toml).redact(event))


@pytest.mark.parametrize(
    "more", ['"n":1e400', '"n":NaN', '"n":"\\ud83d"', '"n":' + "[" * 2_000 + "]" * 2_000], ids=range(4)
)
def test_rules_apply_to_json_that_only_the_tolerant_decoder_reads(more: str):
    """Such a text left the host as a whole."""
    for text in (f'{{"email":"{SECRET}",{more}}}', f'\ufeff{{"email":"{SECRET}"}}'):
        parameter = f"https://x.test/?n={quote(text)}"
        event = track(properties={"note": text, "in": {"note": text}, "link": parameter})
        assert SECRET not in str(body(event, RULES)) + str(mapper(RULES).redact(event))


@pytest.mark.parametrize(
    "text",
    [
        f"sid=1; email={SECRET}; HttpOnly",
        f"email={SECRET};",
        f"email={SECRET}&",
        f"flag&email={SECRET}",
        f"a=1&&email={SECRET}",
        f"email={SECRET}\n",
        f"email={SECRET}; color=#fff",
        f"email={SECRET}; back=/a?b=1",
    ],
)
def test_rule_covers_cookies_and_forms_as_they_are_written(text: str):
    """One flag, or a separator at the end, turned the search off."""
    event = track(properties={"cookie": text})
    assert SECRET not in str(body(event, RULES)) + str(mapper(RULES).redact(event))


@pytest.mark.parametrize("url", ["/search?name=Ada Lovelace&b=1", "shop.example/search?name=Ada Lovelace&b=1"])
def test_url_and_referrer_are_urls_whatever_they_look_like(url: str):
    """Without a scheme, or with a blank, half of the value stayed."""
    event = track(context={"page": {"url": url, "referrer": url}})
    for toml, rest in (
        ('[mapping]\nurl_query = "drop"\n', ""),
        ('[mapping.attributes]\ndrop = ["name"]\n', "?b=1"),
    ):
        sent, expected = body(event, toml), url.partition("?")[0] + rest
        assert (sent["url"], sent["referrer"]) == (expected, expected)
        assert mapper(toml).redact(event)["context"]["page"]["url"] == expected


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("/search?q=1", "/search"),
        ("?q=1", ""),
        ("https://x.test/a b?q=1", "https://x.test/a b"),
        ("see /search?q=1 for more", "see /search?q=1 for more"),
    ],
)
def test_url_query_applies_to_texts_that_are_urls(text: str, sent: str):
    assert attributes({"link": text, "n": 1}, '[mapping]\nurl_query = "drop"\n').get("link", "") == sent


def test_urls_in_parameters_of_forms_are_searched_to_the_fourth():
    def nested(levels: int) -> str:
        text = f"email={SECRET}"
        for _ in range(levels):
            text = f"u={quote(f'/x?{text}', safe='')}"
        return text

    found = [SECRET not in attributes({"form": nested(levels)}, RULES)["form"] for levels in range(7)]
    assert found == [True] * 5 + [False] * 2


@pytest.mark.parametrize("times", [1, 2, 3])
def test_rules_apply_to_json_that_was_encoded_several_times(times: int):
    """`JSON.stringify` of a text that is JSON already: the rules saw a text in quotes."""
    text = '{"plan":"pro","email":"' + SECRET + '"}'
    for _ in range(times - 1):
        text = json.dumps(text)
    event = track(properties={"note": text, "in": {"note": text}})
    assert SECRET not in str(body(event, RULES)) + str(mapper(RULES).redact(event))
    assert attributes({"note": '"quoted" text', "q": '"text"'}, RULES) == {"note": '"quoted" text', "q": '"text"'}

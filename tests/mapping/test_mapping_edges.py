"""Mapping at its bounds: the last value that still counts as this, the first that counts as that, and what is said of it."""

import math

import pytest
from mapping_help import RECEIVED_MS, attributes, body, group, identify, map_one, mapper, track, upserts, whats

from sidecar.errors import ConfigError
from sidecar.mapping import Known, explain
from sidecar.mapping.mapper import opted_out
from sidecar.mapping.names import remember
from sidecar.mapping.privacy import Denied
from sidecar.mapping.recipes import RECIPES
from sidecar.mapping.reference import outcome, reference
from sidecar.mapping.values import as_text, is_absurd_ms, json_text, to_epoch_ms, within_64_bits

DAY_MS = 86_400_000
USERS = '[people]\nusers = "upsert"\n'
BOTH = '[people]\nusers = "upsert"\naccounts = "upsert"\n'


def sources(event: dict, toml: str = "") -> dict[str, str]:
    """What the explanation says of each field, and of each property that is not sent."""
    compiled = mapper(toml)
    mapped = map_one(event, toml)
    rows = explain(compiled, event, mapped)
    return {str(row.value) if row.field == "not sent" else row.field: row.source for row in rows}


# --- single values ---


@pytest.mark.parametrize(
    ("sent", "date_ms"),
    [
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        (99_999_999_999_999, 99_999_999_999_999),
        (100_000_000_000_000, 100_000_000_000),
        (99_999_999_999_999_999, 99_999_999_999_999),
        (100_000_000_000_000_000, 100_000_000_000),
        (1_999_999_999_999_999_999, 1_999_999_999_999),
        (1e300, None),
        (math.inf, None),
        ("999999999", 999_999_999_000),
        ("99999999", None),
        ("1717675200.5", 1_717_675_200_500),
        ("1717675200123456789", 1_717_675_200_123),
        ("0" * 30 + "1717675200", 1_717_675_200_000),
        ("0" * 31 + "1717675200", None),
        ("١٧١٧٦٧٥٢٠٠", None),
    ],
)
def test_seconds_milliseconds_microseconds_and_nanoseconds_are_told_by_their_size(sent, date_ms):
    assert to_epoch_ms(sent) == date_ms


def test_a_date_is_absurd_before_2000_and_more_than_a_day_ahead():
    assert is_absurd_ms(946_684_799_999, RECEIVED_MS)
    assert not is_absurd_ms(946_684_800_000, RECEIVED_MS)
    assert not is_absurd_ms(RECEIVED_MS + DAY_MS, RECEIVED_MS)
    assert is_absurd_ms(RECEIVED_MS + DAY_MS + 1, RECEIVED_MS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**1024 - 1, str(2**1024 - 1)),
        (2**1024, None),
        (9_999_999_999_999_998.0, "9999999999999998"),
        (1e16, "1e+16"),
        (-1e16, "-1e+16"),
    ],
)
def test_numbers_are_written_out_up_to_a_bound(value, text):
    assert as_text(value) == text


def test_64_bits_hold_exactly_what_a_signed_reader_holds():
    assert within_64_bits(-(2**63))
    assert within_64_bits(2**63 - 1)
    assert not within_64_bits(-(2**63) - 1)
    assert not within_64_bits(2**63)


def test_what_msgspec_cannot_encode_is_made_fit_value_by_value():
    value = {"b": [None, True, 1.5, math.nan, -math.inf, "\ud800", 2**1024, {"z": 1, "\ud800": 2}], "a": 2**1024 - 1}
    expected = f'{{"a":{2**1024 - 1},"b":[null,true,1.5,null,null,"\ufffd",null,{{"z":1,"\ufffd":2}}]}}'
    assert json_text(value) == expected


# --- traits ---


@pytest.mark.parametrize(
    ("sent", "score"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("00000000000000000007", None),
        ("-12", -12),
        (float(2**53 - 1), 2**53 - 1),
        (float(2**53), None),
        (1e300, None),
        (200.4, 200),
        ([1], None),
    ],
)
def test_a_whole_number_is_one_that_px_can_hold(sent, score):
    mapped = map_one(identify({"score": sent}), USERS)
    (user,) = upserts(mapped)
    assert user.fields.get("score") == score
    assert ("user.score" in whats(mapped)) == (score is None)


@pytest.mark.parametrize(
    ("sent", "nps"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, None),
        (float(2**53), None),
        (True, None),
        ("7.5", 7.5),
        ("seven", None),
        ([1], None),
    ],
)
def test_a_number_is_one_that_a_double_holds_exactly(sent, nps):
    (account,) = upserts(map_one(group(traits={"nps": sent}), '[people]\naccounts = "upsert"\n'))
    assert account.fields.get("nps") == nps


@pytest.mark.parametrize(("sent", "off"), [(True, True), ("false", False), ("TRUE", True), ("no", None)])
def test_a_yes_or_no_is_read_from_text_too(sent, off):
    (user,) = upserts(map_one(identify({"globalUnsubscribe": sent}), USERS))
    assert user.fields.get("globalUnsubscribe") is off


def test_a_company_is_an_account_only_where_accounts_are_written():
    company = {"id": "acct-1", "name": "Acme"}
    (user,) = upserts(map_one(identify({"company": company}), USERS))
    assert user.fields["customAttributes"] == {"company": '{"id":"acct-1","name":"Acme"}'}
    (user,) = upserts(map_one(identify({"company": "Acme"}), BOTH))
    assert user.fields["customAttributes"] == {"company": "Acme"}
    account, user = sorted(upserts(map_one(identify({"company": company}), BOTH)), key=lambda one: type(one).__name__)
    assert "customAttributes" not in user.fields
    assert account.fields["name"] == "Acme"


def test_what_is_remembered_of_what_was_sent_is_24_characters():
    known = map_one(identify({"company": {"id": "acct-1"}}), BOTH).known
    assert known is not None
    assert [len(known.user_digest or ""), len(known.account_digest or "")] == [24, 24]


# --- the global context ---


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
def test_a_value_of_the_global_context_is_a_text_a_number_or_a_truth_value(sent, got, fields):
    made = body(track(properties={"where": {"one": sent}}), f"[mapping.fields]\n{fields}\n")
    assert made.get("globalContext") == (None if got is None else {"one": got})


# --- attributes and names ---


def test_a_name_of_1024_characters_is_sent_whole_and_a_longer_one_cut():
    assert whats(map_one(track(properties={"k" * 1024: 1}))) == {}
    mapped = map_one(track(properties={"k" * 1025: 1}))
    assert list(whats(mapped)) == [f"attributes.{'k' * 40}…"]
    assert list(mapped.intents[0].body["attributes"]) == ["k" * 1024]


def test_fifty_attributes_are_sent_and_of_more_the_first_by_name():
    assert whats(map_one(track(properties={f"k{number:02}": 1 for number in range(50)}))) == {}
    mapped = map_one(track(properties={f"k{number:02}": 1 for number in range(51)}))
    assert whats(mapped) == {"attributes.k50": "left out: over 50 attributes"}


def test_an_integer_beyond_64_bits_is_sent_as_text_and_beyond_1024_left_out():
    mapped = map_one(track(properties={"large": 2**64, "larger": 2**1024}))
    assert mapped.intents[0].body["attributes"] == {"large": str(2**64)}
    assert whats(mapped)["attributes.large"] == "sent as text: beyond 64 bits"
    assert whats(mapped)["attributes.larger"] == "left out: beyond 1,024 bits"


FLATTEN = '[mapping]\nnested = "flatten"\n[mapping.attributes]\n'


def test_flattened_names_have_the_case_of_each_part():
    assert attributes({"_a": {"_b_c": 1}, "my_form": {"first_name": 2}}, FLATTEN) == {
        "_a._bC": 1,
        "myForm.firstName": 2,
    }


@pytest.mark.parametrize("denied", ["email", "form.email"])
def test_flattened_names_are_denied_by_part_and_by_path(denied):
    properties = {"form": {"email": "a@b.test", "step": 2}, "form.email": "a@b.test"}
    assert attributes(properties, f'{FLATTEN}drop = ["{denied}"]\n') == {"form.step": 2}
    hashed = attributes(properties, f'{FLATTEN}hash = ["{denied}"]\nhash_salt = "pepper"\n')
    assert hashed["form.step"] == 2
    assert len(hashed["form.email"]) == 64
    assert set(hashed) == {"form.step", "form.email"}


def test_what_names_become_is_remembered_within_bounds():
    table: dict[str, int] = {}
    remember(table, "n" * 200, 1)
    remember(table, "n" * 201, 2)
    assert table == {"n" * 200: 1}
    for number in range(4_095):
        remember(table, str(number), number)
    assert len(table) == 4_096
    remember(table, "one more", 3)
    assert table == {"one more": 3}


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (track("Exported"), "Exported"),
        (track("Noise"), None),
        (track(""), None),
        ({"type": "page", "userId": "u"}, "Page Viewed"),
        (identify(), None),
        (group(), None),
        ({"type": "alias", "userId": "u"}, None),
    ],
)
def test_only_a_custom_event_that_is_sent_has_a_name_at_px(event, name):
    assert mapper('[mapping.events]\n"Noise" = ""\n').px_name(event) == name


def test_a_call_without_a_name_is_dead_with_advice():
    mapped = mapper().map({"type": "track", "userId": "u"}, Known(), property_key="AP-1", received_ms=RECEIVED_MS)
    assert (mapped.dead, mapped.detail) == ("mapping_error", "The event has no name; send a text as `event`.")


@pytest.mark.parametrize("integrations", [None, [], "All", {}, {"All": True}])
def test_integrations_that_say_nothing_switch_nothing_off(integrations):
    assert opted_out(integrations) is False


def test_a_page_has_its_referrer_and_its_own_url():
    page = {"type": "page", "userId": "u", "properties": {"url": "https://a.test/"}}
    made = body(page | {"context": {"page": {"referrer": "https://b.test/"}}})
    assert (made["url"], made["referrer"]) == ("https://a.test/", "https://b.test/")


# --- privacy ---


def test_a_denied_name_is_denied_by_name_and_by_path():
    denied = Denied.of(["email", "form.phone"], ["card", "form.tax_id"], "")
    assert [denied.drops("email", "a.email"), denied.drops("phone", "form.phone"), denied.drops("a", "a.a")] == [
        *(True, True, False)
    ]
    assert [denied.hashes("card", "a.card"), denied.hashes("tax_id", "form.tax_id"), denied.hashes("a", "a.a")] == [
        *(True, True, False)
    ]


def test_only_a_digest_is_not_hashed_again():
    denied = Denied.of([], ["x"], "")
    once = denied.digest("x" * 64)
    assert once != "x" * 64
    assert denied.digest(once) == once


def test_what_is_denied_is_gone_from_objects_in_lists():
    made = attributes(
        {"rows": [{"email": "a@b.test", "n": 1}, 2, [{"Email": "x"}]]}, '[mapping.attributes]\ndrop = ["email"]\n'
    )
    assert made == {"rows": '[{"n":1},2,[{}]]'}


@pytest.mark.parametrize("denied", ["company", "company.info", "company.info.id", "id"])
def test_a_field_cannot_be_read_from_a_denied_place(denied):
    toml = f'[mapping.fields]\naccountId = ["traits.company.info.id"]\n[mapping.traits]\ndrop = ["{denied}"]\n'
    with pytest.raises(ConfigError, match=r"reads traits\.company\.info\.id, which a `drop` list denies"):
        mapper(toml)


@pytest.mark.parametrize("table", ["mapping.attributes", "mapping.traits", 'mapping.event."Exported".attributes'])
def test_a_denied_name_cannot_come_back_by_rename(table):
    with pytest.raises(ConfigError, match="denies"):
        mapper(f'[{table}]\ndrop = ["email"]\nrename = {{ mail = "email" }}\n')


def test_people_see_no_value_of_a_hashed_key_but_the_calls_own():
    compiled = mapper('[mapping.attributes]\nhash = ["extra", "userId"]\nhash_salt = "pepper"\n')
    seen = compiled.redact(track(extra="secret", other="plain"))
    assert (seen["userId"], seen["other"], len(seen["extra"])) == ("user-123", "plain", 64)


def test_people_see_what_is_the_calls_own_in_the_context():
    compiled = mapper('[mapping.attributes]\ndrop = ["groupId", "id", "url"]\n')
    context = {"groupId": "acct-1", "id": "x", "session": {"id": 7, "x": 1}, "page": {"url": "https://a.test/"}}
    seen = compiled.redact(track(context=context))
    assert seen["context"] == {"groupId": "acct-1", "session": {"x": 1, "id": 7}, "page": {"url": "https://a.test/"}}


@pytest.mark.parametrize(("nested", "seen"), [("flatten", {"address.city": "Bonn"}), ("string", {})])
def test_people_see_dotted_traits_of_a_kept_name_where_traits_are_flattened(nested, seen):
    compiled = mapper(f'[mapping.traits]\nkeep = ["address"]\nnested = "{nested}"\n')
    assert compiled.redact(identify({"address.city": "Bonn"}))["traits"] == seen


# --- the explanation ---


def test_the_explanation_says_why_a_property_is_not_sent():
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
    said = sources(track(properties=properties), toml)
    assert {name: why for name, why in said.items() if name.startswith("properties.")} == {
        "properties.email": "drop",
        "properties.where": "a PX field of its own",
        "properties.rank": "null, or cut by a cap",
        "properties._": "an empty name",
        "properties.other": "not in keep",
        "properties.source": "set",
    }
    assert said["attributes.source"] == "set"
    assert said["globalContext"] == "mapping.fields"


def test_the_explanation_names_the_rules_that_made_a_name():
    toml = '[mapping.attributes]\nhash = ["user_mail"]\nhash_salt = "s"\nrename = { user_mail = "the_mail" }\n'
    said = sources(track(properties={"user_mail": "a@b.test", "plan": 1}), toml)
    assert said["attributes.theMail"] == "properties.user_mail (hash, rename, camel)"
    assert said["attributes.plan"] == "properties.plan"


def test_the_explanation_names_the_property_that_won():
    toml = '[mapping.attributes]\nrename = { "0x" = "plan" }\n'
    assert sources(track(properties={"0x": 1, "plan": 2}), toml)["attributes.plan"] == "properties.plan"
    assert sources(track(properties={"my_plan": 1, "myPlan": 2}))["attributes.myPlan"] == "properties.myPlan"


def test_the_explanation_names_the_path_of_each_field():
    context = {"session": {"id": "s-1"}, "groupId": "acct-1", "page": {"url": "https://a.test/"}}
    said = sources(track(context=context))
    assert said["sessionId"] == "context.session.id"
    assert said["accountId"] == "context.groupId"
    assert said["url"] == "context.page.url"
    page = {"type": "page", "userId": "u", "properties": {"url": "https://a.test/"}}
    assert sources(page)["url"] == "properties.url"


def test_the_explanation_tells_an_account_from_memory():
    event, known = track(), Known(account_id="acct-1")
    mapped = map_one(event, "", known)
    said = {row.field: row.source for row in explain(mapper(), event, mapped)}
    assert said["accountId"] == "memory of the user (identify, group)"


def test_the_explanation_says_what_is_remembered():
    compiled, event = mapper(), group("acct-1")
    rows = {row.field: row.value for row in explain(compiled, event, map_one(event))}
    assert rows["memory"] == {"account_id": "acct-1"}
    assert "memory" not in {row.field for row in explain(compiled, track(), map_one(track()))}


def test_the_explanation_follows_the_rules_of_the_event():
    toml = '[mapping.event."Exported".attributes]\ndrop = ["plan"]\n'
    assert sources(track("Exported", properties={"plan": 1}), toml)["properties.plan"] == "drop"
    assert sources(track("Else", properties={"plan": 1}), toml)["attributes.plan"] == "properties.plan"


def test_the_explanation_says_why_an_event_is_not_sent():
    assert "integrations" in sources(track(integrations={"All": False}))["opted_out"]


# --- the reference ---


@pytest.mark.parametrize(
    "row",
    [
        '| `unmapped` | `pass`, `drop` | `"pass"` |',
        "| `events` | table | empty |",
        "| `keep` | list of texts | empty |",
        "| `hash_salt` | text |",
        '| `users` | `off`, `upsert` | `"off"` |',
        "| `case` | `camel`, `keep` |  |",
    ],
)
def test_the_reference_shows_values_and_defaults(row):
    assert f"\n{row}" in reference()


def test_an_outcome_in_the_reference_is_shown_as_it_is():
    made = outcome(RECIPES[0], track("Größe", properties={"search_term": "é"}))
    assert '"eventName": "Größe"' in made
    assert '"date": 1717689600000' in made
    assert "é" in made


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("Keep all names as they are", '"search_term": "export"'),
        ("Keep personal data here", '"phone": "'),
        ("One event with rules of its own", '"plan": "Pro"'),
        ("The RudderStack way", '"sessionId": "1679967592314"'),
    ],
)
def test_the_recipes_show_what_becomes_of_properties(title, part):
    (recipe,) = (one for one in RECIPES if one.title == title)
    assert any(part in outcome(recipe, event) for event in recipe.events)

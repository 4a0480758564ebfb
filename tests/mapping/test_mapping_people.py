"""identify and group: the memory of a user, PX users and PX accounts, and the conversion of traits."""

from typing import Any

import pytest
from mapping_help import (
    KEY,
    NOTHING_KNOWN,
    RECEIVED_MS,
    body,
    changes_by_field,
    group,
    identify,
    map_one,
    mapper,
    track,
    upserts,
)

from sidecar.mapping import Account, Change, Known, UpsertAccount, UpsertUser

BOTH = '[people]\nusers = "upsert"\naccounts = "upsert"\n'
USERS = '[people]\nusers = "upsert"\n'
ACCOUNTS = '[people]\naccounts = "upsert"\n'


# --- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        identify({"account_id": "acct-1"}),
        identify({"accountId": "acct-1"}),
        identify({"company": {"id": "acct-1"}}),
        identify(context={"traits": {"account_id": "acct-1"}}),
        identify(context={"groupId": "acct-1"}),
        group("acct-1"),
        group(None, context={"groupId": "acct-1"}),
    ],
)
def test_account_of_identify_and_group_reaches_later_events(event: dict):
    mapped = map_one(event)
    assert mapped.dropped == "remembered"
    assert mapped.known == Known(account_id="acct-1")
    assert body(track(), known=mapped.known)["accountId"] == "acct-1"


def test_group_id_wins_over_other_account_paths():
    mapped = map_one(group("acct-1", {"account_id": "other"}, context={"groupId": "third"}))
    assert mapped.known == Known(account_id="acct-1")


def test_memory_changes_only_with_a_new_account():
    known = Known(account_id="acct-1")
    for event in (identify({"plan": "x"}), identify({"account_id": None}), group(None), group("acct-1"), track()):
        assert map_one(event, known=known).known is None
    assert map_one(group("acct-2"), known=known).known == Known(account_id="acct-2")


def test_track_does_not_change_the_memory():
    assert map_one(track(context={"groupId": "g"})).known is None


def test_memory_round_trips_and_tolerates_damage():
    known = Known(account_id="a\u00fc", user_digest="x")
    assert Known.decode(known.encode()) == known
    assert Known().encode() == b"{}"
    assert Known.decode(b'{"account_id":"a","from_the_future":1}') == Known(account_id="a")
    assert Known.decode(b"\x00") == Known()


# --- Users -----------------------------------------------------------------------------------------------------------


def test_identify_writes_all_user_fields():
    traits = {
        "email": "jane@x.test",
        "firstName": "Jane",
        "last_name": "Doe",
        "title": "Dr",
        "phone": 49301,
        "gender": "f",
        "score": "42",
        "role": "admin",
        "subscriptionId": "sub",
        "sfdc_contact_id": "003",
        "globalUnsubscribe": "true",
        "first_visit_date": "2024-01-02",
        "signUpDate": "2024-01-01T00:00:00Z",
        "account_id": "acct-1",
        "countryName": "Germany",
        "time_zone": "Europe/Berlin",
        "latitude": 52.5,
        "longitude": "13.4",
        "plan_name": "Pro",
        "nested": {"b": 1, "a": None},
        "nothing": None,
    }
    (user,) = upserts(map_one(identify(traits), USERS))
    assert user == UpsertUser(
        "user-123",
        {
            "type": "USER",
            "email": "jane@x.test",
            "firstName": "Jane",
            "lastName": "Doe",
            "title": "Dr",
            "phone": "49301",
            "gender": "FEMALE",
            "score": 42,
            "role": "admin",
            "subscriptionId": "sub",
            "sfdcContactId": "003",
            "globalUnsubscribe": True,
            "firstVisitDate": 1704153600000,
            "signUpDate": 1704067200000,
            "accountId": "acct-1",
            "location": {
                "countryName": "Germany",
                "timeZone": "Europe/Berlin",
                "coordinates": {"latitude": 52.5, "longitude": 13.4},
            },
            "customAttributes": {"planName": "Pro", "nested": '{"a":null,"b":1}'},
            "propertyKeys": [KEY],
        },
        {},
    )


def fields_of(traits: dict, rules: str = USERS) -> dict:
    (user,) = upserts(map_one(identify(traits), rules))
    return {name: value for name, value in user.fields.items() if name not in ("type", "propertyKeys")}


@pytest.mark.parametrize(
    ("traits", "fields"),
    [
        ({"name": "Jane van Doe"}, {"firstName": "Jane", "lastName": "van Doe"}),
        ({"name": "Jane"}, {"firstName": "Jane"}),
        ({"name": "Jane Doe", "firstName": "J."}, {"firstName": "J.", "lastName": "Doe"}),
        ({"first_name": "other", "firstName": "own"}, {"firstName": "own"}),
        ({"gender": "Female"}, {"gender": "FEMALE"}),
        ({"gender": "m"}, {"gender": "MALE"}),
        ({"gender": "other"}, {"gender": "OTHER"}),
        ({"address": {"city": "B", "country": "DE", "state": "BE", "postal_code": 10115, "x": 1}},
         {"location": {"countryName": "DE", "stateName": "BE", "city": "B", "postalCode": "10115"}}),
        ({"location": {"latitude": 1, "coordinates": 5}}, {"location": {"coordinates": {"latitude": 1}}}),
        ({"address": "Main Street 1"}, {"customAttributes": {"address": "Main Street 1"}}),
        ({"id": "user-123", "user_id": "user-123"}, {}),
        ({"id": "other"}, {"customAttributes": {"id": "other"}}),
        ({"score": 1.6}, {"score": 2}),
        ({"globalUnsubscribe": False}, {"globalUnsubscribe": False}),
        ({}, {}),
    ],
)  # fmt: skip
def test_traits_are_recognized_in_every_spelling_and_shape(traits: dict, fields: dict):
    assert fields_of(traits) == fields
    assert fields_of(traits, USERS + '[mapping]\nattribute_case = "keep"') == fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("firstVisitDate", "soon"),
        ("score", "high"),
        ("score", "--1"),
        ("score", 2**64),
        ("gender", "x"),
        ("globalUnsubscribe", "perhaps"),
        ("lastSeenDate", "2024-01-01"),
        ("number_of_visits", 3),
    ],
)
def test_unfit_user_traits_are_left_out_and_reported(name: str, value: object):
    mapped = map_one(identify({name: value}), USERS)
    (user,) = upserts(mapped)
    assert set(user.fields) == {"type", "propertyKeys"}
    assert any("left out" in change.what or "64 bits" in change.what for change in mapped.changes)


def test_only_the_default_sign_up_date_is_for_new_users_alone():
    """PX may know a user from an event; the date that the app gives must reach it then, too."""
    (user,) = upserts(map_one(identify({}, timestamp="2024-06-06T12:00:00Z"), USERS))
    assert user.new_only == {"signUpDate": 1717675200000}
    (user,) = upserts(map_one(identify({"createdAt": "2024-01-01"}), USERS))
    assert (user.new_only, user.fields["signUpDate"]) == ({}, 1704067200000)
    (user,) = upserts(map_one(identify({"createdAt": "2024-01-01", "signUpDate": "2023-01-01"}), USERS))
    assert (user.new_only, user.fields["signUpDate"]) == ({}, 1672531200000)
    (user,) = upserts(map_one(identify({"signUpDate": "soon"}), USERS))
    assert user.new_only == {"signUpDate": RECEIVED_MS}


def test_unchanged_traits_are_not_sent_again():
    first = map_one(identify({"plan": "a"}), BOTH)
    assert first.known is not None
    again = map_one(identify({"plan": "a"}, timestamp="2024-06-07T00:00:00Z"), BOTH, first.known)
    assert (again.dropped, again.known) == ("remembered", None)
    changed = map_one(identify({"plan": "b"}), BOTH, first.known)
    assert len(changed.intents) == 1
    moved = map_one(identify({"plan": "a", "account_id": "new"}), BOTH, first.known)
    assert moved.intents[0].fields["accountId"] == "new"


def test_order_of_traits_is_not_a_change():
    first = map_one(identify({"a": 1, "b": {"c": 1, "d": 2}}), USERS)
    assert (
        map_one(identify({"b": {"d": 2, "c": 1}, "a": 1}), USERS, first.known or NOTHING_KNOWN).dropped == "remembered"
    )


def test_traits_of_the_call_win_over_context_traits():
    event = identify({"email": "new"}, context={"traits": {"email": "old", "title": "t"}})
    (user,) = upserts(map_one(event, USERS))
    assert (user.fields["email"], user.fields["title"]) == ("new", "t")


def test_rules_for_traits_apply():
    rules = (
        USERS
        + """
[mapping.traits]
keep = ["mail", "plan_name", "phone", "password"]
drop = ["password"]
hash = ["phone"]
rename = { mail = "email" }
set = { source = "app" }
case = "keep"
"""
    )
    fields = fields_of(
        {"mail": "x", "plan_name": "p", "phone": "1", "password": "s", "other": 1, "address": {"city": "B"}}, rules
    )
    assert fields == {
        "email": "x",
        "phone": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
        "customAttributes": {"plan_name": "p", "source": "app"},
    }


def test_visitor_is_written_with_its_type():
    event = {"type": "identify", "anonymousId": "anon", "traits": {"email": "x"}}
    (user,) = upserts(map_one(event, '[mapping]\nanonymous = "visitor"\n' + USERS))
    assert (user.user_id, user.fields["type"]) == ("anon", "VISITOR")


def test_remembered_account_is_written_with_the_user():
    (user,) = upserts(map_one(identify({"plan": "a"}), USERS, Known(account_id="acct-1")))
    assert user.fields["accountId"] == "acct-1"


# --- Accounts --------------------------------------------------------------------------------------------------------


def test_group_writes_the_account_before_the_user():
    traits = {
        "name": "Acme",
        "industry": "Toys",
        "employees": "120",
        "plan": "enterprise",
        "website": "https://acme.test",
        "renewal_date": "2025-01-01",
        "healthScore": 7.5,
        "nps": "9",
        "dunsNumber": 150483782,
        "parent_group_id": "acme-holding",
        "lastSeenDate": "2024-06-06",
        "numberOfUsers": 3,
        "city": "Berlin",
        "tier_level": 2,
    }
    mapped = map_one(group("acct-1", traits), BOTH)
    assert upserts(mapped) == [
        UpsertAccount(
            "acct-1",
            {
                "name": "Acme",
                "industry": "Toys",
                "numberOfEmployees": 120,
                "plan": "enterprise",
                "website": "https://acme.test",
                "renewalDate": 1735689600000,
                "healthScore": 7.5,
                "nps": 9.0,
                "dunsNumber": "150483782",
                "parentGroupId": "acme-holding",
                "lastSeenDate": 1717632000000,
                "location": {"city": "Berlin"},
                "customAttributes": {"tierLevel": 2},
                "propertyKeys": [KEY],
            },
            {},
        ),
        UpsertUser("user-123", {"type": "USER", "accountId": "acct-1", "propertyKeys": [KEY]}, {}),
    ]
    assert changes_by_field(mapped) == {"account.numberOfUsers": "left out: PX maintains this field itself"}
    again = map_one(group("acct-1", traits), BOTH, mapped.known or NOTHING_KNOWN)
    assert again.dropped == "remembered"


def test_unfit_account_traits_are_left_out_and_reported():
    mapped = map_one(group("g", {"nps": "high", "healthScore": None, "renewalDate": "later", "website": ""}), ACCOUNTS)
    (account,) = upserts(mapped)
    assert isinstance(account, UpsertAccount)
    assert account.fields == {"propertyKeys": [KEY]}
    assert set(changes_by_field(mapped)) == {"account.nps", "account.renewalDate", "account.website"}


def test_other_account_with_equal_traits_is_written():
    first = map_one(group("g1", {"plan": "a"}), ACCOUNTS)
    (account,) = upserts(map_one(group("g2", {"plan": "a"}), ACCOUNTS, first.known or NOTHING_KNOWN))
    assert isinstance(account, UpsertAccount)
    assert account.account_id == "g2"


def test_users_and_accounts_can_be_enabled_alone():
    assert [type(intent) for intent in upserts(map_one(group("g", {"name": "G"}), ACCOUNTS))] == [UpsertAccount]
    assert [type(intent) for intent in upserts(map_one(group("g", {"name": "G"}), USERS))] == [UpsertUser]
    assert map_one(group("g", {"name": "G"})).dropped == "remembered"
    assert map_one(identify({"plan": "x"}), ACCOUNTS).dropped == "remembered"


def test_user_that_changes_the_account_is_written():
    mapped = map_one(group("g2"), BOTH, Known(account_id="g1"))
    assert [type(intent) for intent in upserts(mapped)] == [UpsertAccount, UpsertUser]


@pytest.mark.parametrize("trait", ["company", "account"])
def test_company_trait_writes_the_account(trait: str):
    company = {"id": 7, "name": "Acme", "employee_count": 5}
    account, user = upserts(map_one(identify({trait: company, "email": "x"}), BOTH))
    assert account == UpsertAccount("7", {"name": "Acme", "numberOfEmployees": 5, "propertyKeys": [KEY]}, {})
    assert user.fields == {"type": "USER", "email": "x", "accountId": "7", "propertyKeys": [KEY]}


def test_group_without_an_id_does_nothing():
    mapped = map_one(group(None, {"name": "G"}), BOTH)
    assert (mapped.dropped, mapped.known) == ("remembered", None)


@pytest.mark.parametrize("traits", [None, [], "x", 7])
def test_traits_that_are_not_objects_are_ignored(traits: object):
    for event in (identify(traits, context={"traits": traits}), group("g", traits), identify(context=traits)):
        assert all(intent.fields["propertyKeys"] == [KEY] for intent in map_one(event, BOTH).intents)


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
        ("200.4", 200),
        (200.0, 200),
        ("1_0.0", None),
        ([1], None),
    ],
)
def test_integer_field_takes_integers_within_64_bits(sent, score):
    mapped = map_one(identify({"score": sent}), USERS)
    (user,) = upserts(mapped)
    assert user.fields.get("score") == score
    assert ("user.score" in changes_by_field(mapped)) == (
        score is None or (type(sent) is not str and score != sent) or sent == "200.4"
    )


@pytest.mark.parametrize(
    ("sent", "nps"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, None),
        (float(2**53), None),
        (True, None),
        ("7.5", 7.5),
        ("seven", None),
        ("1_000", None),
        ([1], None),
    ],
)
def test_number_field_takes_exact_doubles_only(sent, nps):
    (account,) = upserts(map_one(group(traits={"nps": sent}), '[people]\naccounts = "upsert"\n'))
    assert account.fields.get("nps") == nps


@pytest.mark.parametrize(("sent", "off"), [(True, True), ("false", False), ("TRUE", True), ("no", None)])
def test_boolean_field_is_read_from_text_too(sent, off):
    (user,) = upserts(map_one(identify({"globalUnsubscribe": sent}), USERS))
    assert user.fields.get("globalUnsubscribe") is off


def test_company_is_an_account_only_if_accounts_are_written():
    company = {"id": "acct-1", "name": "Acme"}
    (user,) = upserts(map_one(identify({"company": company}), USERS))
    assert user.fields["customAttributes"] == {"company": '{"id":"acct-1","name":"Acme"}'}
    (user,) = upserts(map_one(identify({"company": "Acme"}), BOTH))
    assert user.fields["customAttributes"] == {"company": "Acme"}
    account, user = sorted(
        upserts(map_one(identify({"company": company}), BOTH)), key=lambda intent: type(intent).__name__
    )
    assert "customAttributes" not in user.fields
    assert account.fields["name"] == "Acme"


def test_digests_in_memory_have_24_characters():
    known = map_one(identify({"company": {"id": "acct-1"}}), BOTH).known
    assert known is not None
    assert [len(known.user_digest or ""), len(known.account_digest or "")] == [24, 24]


@pytest.mark.parametrize("zero", ["0001-01-01T00:00:00Z", 0, "0", -62135596800, "9999-12-31T23:59:59.999Z", "soon", ""])
def test_dates_of_people_that_stand_for_none_are_left_out(zero: Any):
    mapped = map_one(identify({"created_at": zero}), USERS)
    (user,) = upserts(mapped)
    assert "signUpDate" not in user.fields
    assert "user.signUpDate" in changes_by_field(mapped)
    mapped = map_one(group("g", {"renewalDate": zero}), ACCOUNTS)
    (account,) = upserts(mapped)
    assert "renewalDate" not in account.fields
    assert "account.renewalDate" in changes_by_field(mapped)


def test_renewal_may_be_ahead_and_a_sign_up_not():
    ahead = "2034-06-06"
    (account,) = upserts(map_one(group("g", {"renewalDate": ahead}), ACCOUNTS))
    assert account.fields["renewalDate"] == 2033164800000
    (user,) = upserts(map_one(identify({"createdAt": ahead}), USERS))
    assert "signUpDate" not in user.fields


@pytest.mark.parametrize(
    ("traits", "reported"),
    [
        ({"name": "Jane Doe", "firstName": "Jane", "lastName": "Doe"}, False),
        ({"name": "Jane Doe", "firstName": "Jane"}, False),
        ({"name": "Jane", "lastName": "Doe"}, False),
        ({"name": "Janet Doe", "firstName": "Jane", "lastName": "Doe"}, True),
        ({"name": "Cher", "firstName": "Cherilyn"}, True),
    ],
)
def test_name_that_gives_way_to_its_parts_is_reported(traits: dict[str, str], reported: bool):
    assert ("user.name" in changes_by_field(map_one(identify(traits), USERS))) == reported


@pytest.mark.parametrize(
    ("traits", "field"),
    [
        ({"firstName": "Right", "FirstName": "other"}, "firstName"),
        ({"email": "Right", "Email": "other"}, "email"),
        ({"title": "Right", "TITLE": "other"}, "title"),
        ({"first_name": "Right", "FirstName": "other"}, "firstName"),
        ({"firstname": "Right", "first_name": "other"}, "firstName"),
        ({"FIRSTNAME": "Right", "FirstName": "other"}, "firstName"),
        ({"signUpDate": "2024-01-01", "createdAt": "2020-01-01"}, "signUpDate"),
        ({"numberOfEmployees": 5, "employees": 9}, "numberOfEmployees"),
    ],
)
@pytest.mark.parametrize("case", ["camel", "keep"])
def test_of_two_spellings_the_one_of_px_wins_then_camel_then_snake(traits: dict[str, Any], field: str, case: str):
    rules = f'[mapping]\nattribute_case = "{case}"\n'
    for order in (traits, dict(reversed(traits.items()))):
        event = group("g", order) if field == "numberOfEmployees" else identify(order)
        mapped = map_one(event, rules + (ACCOUNTS if field == "numberOfEmployees" else USERS))
        (record,) = upserts(mapped)
        assert record.fields[field] in ("Right", 1704067200000, 5)
        assert mapped.changes


def test_custom_trait_spelled_in_camel_wins():
    (user,) = upserts(map_one(identify({"PlanName": "other", "plan_name": "other", "planName": "Right"}), USERS))
    assert user.fields["customAttributes"] == {"planName": "Right"}


@pytest.mark.parametrize("name", ["Address", "LOCATION", "Location"])
def test_an_address_is_recognized_in_every_spelling(name: str):
    assert fields_of({name: {"City": "B"}}) == {"location": {"city": "B"}}
    both = map_one(identify({name: {"city": "B", "zip": "1"}, "address": {"city": "A"}}), USERS)
    assert upserts(both)[0].fields["location"] == {"city": "A", "postalCode": "1"}
    assert changes_by_field(both) == {"user.city": "'city' left out: another trait gives this field"}


def test_an_address_has_the_name_that_a_rule_gives_it():
    rules = USERS + '[mapping.traits]\nrename = { home = "address", address = "office" }\n'
    traits = {"home": {"city": "A"}, "address": {"city": "B"}}
    (user,) = upserts(map_one(identify(traits), rules))
    assert (user.fields["location"], user.fields["customAttributes"]) == ({"city": "A"}, {"office": '{"city":"B"}'})


def test_address_parts_without_a_px_field_are_reported():
    mapped = map_one(identify({"address": {"city": "Bonn", "floor": 3}}), USERS)
    assert changes_by_field(mapped) == {"user.location": "'floor' left out: PX has no such field"}


@pytest.mark.parametrize(("traits", "reported"), [("x", True), ([1], True), ([], False), ({}, False), (None, False)])
def test_traits_that_are_not_an_object_are_reported(traits: object, reported: bool):
    """An empty list is how PHP writes an empty object: nothing is lost with it."""
    for field, event in (("user", identify(traits)), ("account", group("g", traits))):
        assert (field in changes_by_field(map_one(event, BOTH))) == reported


def test_empty_list_of_properties_loses_nothing():
    assert map_one(track(properties=[])).changes == ()


@pytest.mark.parametrize("name", ["first-name", "First-Name", "First Name", "first name", "FIRST-NAME", " firstName "])
def test_trait_is_recognized_with_hyphens_and_blanks(name: str):
    (alone,) = upserts(map_one(identify({name: "x"}), USERS))
    assert alone.fields["firstName"] == "x"
    assert "customAttributes" not in alone.fields
    both = map_one(identify({name: "other", "first_name": "Right"}), USERS)
    assert "other" not in str(both.intents)
    assert "left out" in changes_by_field(both)["user.firstName"]


@pytest.mark.parametrize(
    ("traits", "account"),
    [
        ({"AccountID": "other", "accountId": "right"}, "right"),
        ({"account_id": "other", "accountId": "right"}, "right"),
        ({"ACCOUNT_ID": "other", "account_id": "right"}, "right"),
        ({"account-id": "right"}, "right"),
        ({"accountId": None, "account_id": "right"}, "right"),
        ({"accountId": {"a": 1}, "account_id": "right"}, "right"),
        ({"accountId": "null", "account_id": "right"}, "right"),
    ],
)
def test_spellings_of_the_account_have_the_order_of_any_trait(traits: dict[str, Any], account: str):
    for sent in (traits, dict(reversed(traits.items()))):
        mapped = map_one(identify(sent), USERS)
        assert upserts(mapped)[0].fields["accountId"] == account
        assert body(track(), known=mapped.known)["accountId"] == account


def test_a_configured_path_of_the_account_means_that_spelling():
    toml = USERS + '[mapping.fields]\naccountId = ["traits.account_id"]\n'
    (user,) = upserts(map_one(identify({"account_id": "right", "accountId": "other"}), toml))
    assert user.fields["accountId"] == "right"


def test_account_that_is_no_text_is_reported():
    mapped = map_one(identify({"accountId": {"id": 1}}), USERS)
    assert changes_by_field(mapped)["accountId"] == "traits.accountId left out: an object, neither text nor number"


def test_group_without_an_account_is_reported():
    mapped = map_one(group(None, {"name": "Acme"}), BOTH)
    assert mapped.dropped == "remembered"
    assert "no groupId" in changes_by_field(mapped)["account"]


def test_type_of_the_record_is_not_a_custom_attribute():
    (user,) = upserts(map_one(identify({"type": "USER"}), USERS))
    assert user.fields == {"type": "USER", "propertyKeys": [KEY]}
    (other,) = upserts(map_one(identify({"type": "admin"}), USERS))
    assert other.fields["customAttributes"] == {"type": "admin"}


def test_account_trait_that_gives_way_is_reported():
    mapped = map_one(identify({"account_id": "other"}, context={"groupId": "right"}), USERS)
    assert upserts(mapped)[0].fields["accountId"] == "right"
    assert "another path" in changes_by_field(mapped)["user.accountId"]
    assert map_one(identify({"account_id": "same"}, context={"groupId": "same"}), USERS).changes == ()


@pytest.mark.parametrize("name", ["createdAt", "created_at", "Created-At"])
def test_date_of_an_account_that_stands_for_none_is_left_out(name: str):
    for sent in (0, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", -62135596800000):
        mapped = map_one(group("g", {name: sent}), ACCOUNTS)
        assert upserts(mapped)[0].fields == {"propertyKeys": [KEY]}
        assert any("before 2000" in change.what for change in mapped.changes)
    (account,) = upserts(map_one(group("g", {name: "2024-01-01"}), ACCOUNTS))
    assert list(account.fields["customAttributes"].values()) == ["2024-01-01"]


@pytest.mark.parametrize("sent", ["0000-00-00 00:00:00", "", "soon", True, {"$date": 1}])
def test_unreadable_date_of_an_account_is_left_out(sent: object):
    """`0000-00-00 00:00:00` is how MySQL writes that there is no date."""
    mapped = map_one(group("g", {"createdAt": sent}), ACCOUNTS)
    assert upserts(mapped)[0].fields == {"propertyKeys": [KEY]}
    assert changes_by_field(mapped) == {"account.createdAt": "left out: 'createdAt' cannot be read as a time"}


def test_hashed_date_of_an_account_is_sent():
    mapped = map_one(group("g", {"created_at": "2024-01-01"}), ACCOUNTS + '[mapping.traits]\nhash = ["createdAt"]\n')
    (digest,) = upserts(mapped)[0].fields["customAttributes"].values()
    assert (len(digest), mapped.changes) == (64, ())


def test_location_in_the_form_of_px_is_taken():
    place = {"countryName": "Germany", "coordinates": {"latitude": 52.5, "longitude": "13.4", "height": 1}}
    mapped = map_one(identify({"location": place}), USERS)
    assert upserts(mapped)[0].fields["location"] == {
        "countryName": "Germany",
        "coordinates": {"latitude": 52.5, "longitude": 13.4},
    }
    assert "'height' left out" in changes_by_field(mapped)["user.location"]


@pytest.mark.parametrize(
    ("sent", "gender"),
    [
        *(
            ("f", "FEMALE"),
            ("FEMALE", "FEMALE"),
            ("Woman", "FEMALE"),
            ("M", "MALE"),
            ("male", "MALE"),
            ("Others", "OTHER"),
        ),
        *(
            ("empty_gender", "EMPTY_GENDER"),
            ("mujer", None),
            ("mulher", None),
            ("mixed", None),
            ("Frau", None),
            (1, None),
        ),
    ],
)
def test_gender_is_taken_by_its_word(sent: object, gender: str | None):
    """By the first letter, `mujer` became MALE without a report."""
    mapped = map_one(identify({"gender": sent}), USERS)
    assert upserts(mapped)[0].fields.get("gender") == gender
    assert ("user.gender" in changes_by_field(mapped)) == (gender is None)


def test_a_company_is_not_written_into_another_account():
    """It renamed the workspace and wrote the other company's id into it, without a report."""
    event = identify({"company": {"id": "crm-9", "name": "Acme"}}, context={"groupId": "workspace-1"})
    mapped = map_one(event, '[people]\nusers = "upsert"\naccounts = "upsert"\n')
    assert [intent.account_id for intent in upserts(mapped) if hasattr(intent, "account_id")] != ["workspace-1"]
    assert "account" in changes_by_field(mapped)


def test_a_list_is_no_text_of_a_person():
    """PX got the JSON text of the list as an address."""
    mapped = map_one(identify({"email": ["a@x.test", "b@x.test"], "firstName": {"en": "Ada"}}), BOTH)
    (user,) = upserts(mapped)
    assert "email" not in user.fields
    assert "firstName" not in user.fields
    assert {"user.email", "user.firstName"} <= set(changes_by_field(mapped))


def test_a_trait_of_the_context_is_reported_where_it_differs():
    event = identify({"firstName": "Ada", "title": "Dr"}, context={"traits": {"firstName": "Ada", "title": "Prof"}})
    assert list(changes_by_field(map_one(event, BOTH))) == ["user.title"]


@pytest.mark.parametrize("rule", ['drop = ["ssn"]', 'keep = ["title"]'])
def test_a_trait_that_is_not_sent_is_not_reported(rule: str):
    event = identify({"ssn": "1", "title": "Dr"}, context={"traits": {"ssn": "2"}})
    mapped = map_one(event, f"{USERS}[mapping.traits]\n{rule}\n")
    assert (upserts(mapped)[0].fields["title"], mapped.changes) == ("Dr", ())


@pytest.mark.parametrize("toml", ["", ACCOUNTS])
def test_a_user_that_is_not_written_has_no_changes(toml: str):
    traits = {"score": 1.5, "createdAt": 0, "lastSeenDate": 1, "email": "", "account_id": "a", "big": 2**80}
    mapped = map_one(identify(traits, context={"groupId": "g", "traits": {"email": "x"}}), toml)
    assert (mapped.dropped, mapped.changes) == ("remembered", ())
    assert len(map_one(identify(traits), USERS).changes) == 5


@pytest.mark.parametrize("name", ["email", "company"])
def test_null_in_traits_leaves_the_value_of_the_context(name: str):
    value = "a@b.test" if name == "email" else {"id": "c", "name": "Acme"}
    mapped = map_one(identify({name: None}, context={"traits": {name: value}}), BOTH)
    assert mapped == map_one(identify({name: value}), BOTH)


@pytest.mark.parametrize("company", [{"name": "Acme"}, {"id": "undefined", "name": "Acme"}])
def test_a_company_of_no_account_is_left_out_with_a_report(company: dict):
    mapped = map_one(identify({"company": company}), BOTH)
    assert Change("account", "the trait that is an object left out: the user has no account") in mapped.changes


@pytest.mark.parametrize(("name", "other"), [("account", "company"), ("company", "account")])
def test_a_text_beside_a_company_object_stays_an_attribute(name: str, other: str):
    account, user = upserts(map_one(identify({name: {"id": "a", "name": "Acme"}, other: "Text"}), BOTH))
    assert account == UpsertAccount("a", {"name": "Acme", "propertyKeys": [KEY]}, {})
    assert user.fields["customAttributes"] == {other: "Text"}


def test_identify_moves_a_user_back_from_the_account_of_a_group():
    """The group told PX another account, and the digest of the first identify does not know of it."""
    rules = mapper(USERS)

    def told(event: dict[str, Any], account: str, known: Known) -> tuple[list[Any], Known]:
        mapped = rules.map(event, known, property_key=KEY, received_ms=RECEIVED_MS, account=Account(account))
        return [user.fields["accountId"] for user in upserts(mapped)], mapped.known or known

    first, known = told(identify({"account_id": "acme"}), "acme", NOTHING_KNOWN)
    moved, known = told(group("globex"), "globex", known)
    back, known = told(identify({"account_id": "acme"}), "acme", known)
    again, _ = told(identify({"account_id": "acme"}), "acme", known)
    assert (first, moved, back, again) == (["acme"], ["globex"], ["acme"], [])


@pytest.mark.parametrize(
    ("outer", "own", "field"),
    [
        ("firstName", "first_name", "firstName"),
        ("email", "Email", "email"),
        ("signUpDate", "createdAt", "signUpDate"),
        ("planName", "plan_name", "planName"),
    ],
)
def test_a_trait_of_the_call_wins_over_the_context_in_any_spelling(outer: str, own: str, field: str):
    old, new = ("2023-01-01", "2024-01-01") if field == "signUpDate" else ("old", "new")
    mapped = map_one(identify({own: new}, context={"traits": {outer: old}}), USERS)
    (user,) = upserts(mapped)
    sent = user.fields.get(field) or user.fields["customAttributes"][field]
    assert sent == (1704067200000 if field == "signUpDate" else "new")
    assert changes_by_field(mapped) == {f"user.{outer}": "the one in context.traits left out: traits has another"}


@pytest.mark.parametrize("name", ["account_id", "accountId"])
def test_an_account_of_the_context_is_not_reported_as_left_out(name: str):
    mapped = map_one(identify({name: "own"}, context={"traits": {"account_id": "outer"}}), USERS)
    (user,) = upserts(mapped)
    assert user.fields["accountId"] == "outer"
    assert changes_by_field(mapped) == {"user.accountId": "the trait left out: another path gives the account"}

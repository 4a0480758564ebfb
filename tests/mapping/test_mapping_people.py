"""identify and group: the memory of a user, PX users and PX accounts."""

import pytest
from mapping_help import KEY, NOBODY, RECEIVED_MS, body, group, identify, map_one, track, upserts, whats

from sidecar.mapping import Known, UpsertAccount, UpsertUser

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
def test_the_account_of_identify_and_group_is_remembered_for_later_events(event: dict):
    mapped = map_one(event)
    assert mapped.dropped == "remembered"
    assert mapped.known == Known(account_id="acct-1")
    assert body(track(), known=mapped.known)["accountId"] == "acct-1"


def test_the_group_call_says_the_account_whatever_else_it_carries():
    mapped = map_one(group("acct-1", {"account_id": "other"}, context={"groupId": "third"}))
    assert mapped.known == Known(account_id="acct-1")


def test_what_is_known_stays_until_something_new_is_said():
    known = Known(account_id="acct-1")
    for event in (identify({"plan": "x"}), identify({"account_id": None}), group(None), group("acct-1"), track()):
        assert map_one(event, known=known).known is None
    assert map_one(group("acct-2"), known=known).known == Known(account_id="acct-2")


def test_a_track_event_does_not_change_the_memory():
    assert map_one(track(context={"groupId": "g"})).known is None


def test_memory_survives_being_stored():
    known = Known(account_id="a\u00fc", user_digest="x")
    assert Known.decode(known.encode()) == known
    assert Known().encode() == b"{}"
    assert Known.decode(b'{"account_id":"a","from_the_future":1}') == Known(account_id="a")
    assert Known.decode(b"\x00") == Known()


# --- Users -----------------------------------------------------------------------------------------------------------


def test_identify_writes_the_user_with_all_fields_px_has():
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
            "accountId": "acct-1",
            "location": {
                "countryName": "Germany",
                "timeZone": "Europe/Berlin",
                "coordinates": {"latitude": 52.5, "longitude": 13.4},
            },
            "customAttributes": {"planName": "Pro", "nested": '{"a":null,"b":1}'},
            "propertyKeys": [KEY],
        },
        {"signUpDate": 1704067200000},
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
def test_spellings_and_shapes_of_traits(traits: dict, fields: dict):
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
def test_what_px_would_refuse_is_left_out_and_reported(name: str, value: object):
    mapped = map_one(identify({name: value}), USERS)
    (user,) = upserts(mapped)
    assert set(user.fields) == {"type", "propertyKeys"}
    assert any("left out" in change.what or "64 bits" in change.what for change in mapped.changes)


def test_the_sign_up_date_is_for_new_users_only_and_else_the_date_of_the_event():
    (user,) = upserts(map_one(identify({}, timestamp="2024-06-06T12:00:00Z"), USERS))
    assert user.new_only == {"signUpDate": 1717675200000}
    (user,) = upserts(map_one(identify({"createdAt": "2024-01-01"}), USERS))
    assert (user.new_only, "signUpDate" in user.fields) == ({"signUpDate": 1704067200000}, False)
    (user,) = upserts(map_one(identify({"createdAt": "2024-01-01", "signUpDate": "2023-01-01"}), USERS))
    assert user.new_only == {"signUpDate": 1672531200000}
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


def test_the_order_of_traits_is_no_change():
    first = map_one(identify({"a": 1, "b": {"c": 1, "d": 2}}), USERS)
    assert map_one(identify({"b": {"d": 2, "c": 1}, "a": 1}), USERS, first.known or NOBODY).dropped == "remembered"


def test_traits_of_the_call_go_over_those_of_the_context():
    event = identify({"email": "new"}, context={"traits": {"email": "old", "title": "t"}})
    (user,) = upserts(map_one(event, USERS))
    assert (user.fields["email"], user.fields["title"]) == ("new", "t")


def test_the_rules_for_traits_hold():
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


def test_a_visitor_is_written_as_a_visitor():
    event = {"type": "identify", "anonymousId": "anon", "traits": {"email": "x"}}
    (user,) = upserts(map_one(event, '[mapping]\nanonymous = "visitor"\n' + USERS))
    assert (user.user_id, user.fields["type"]) == ("anon", "VISITOR")


def test_an_account_that_is_remembered_goes_with_the_user():
    (user,) = upserts(map_one(identify({"plan": "a"}), USERS, Known(account_id="acct-1")))
    assert user.fields["accountId"] == "acct-1"


# --- Accounts --------------------------------------------------------------------------------------------------------


def test_group_writes_the_account_first_and_then_the_user():
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
    assert whats(mapped) == {"account.numberOfUsers": "left out: PX keeps it itself"}
    again = map_one(group("acct-1", traits), BOTH, mapped.known or NOBODY)
    assert again.dropped == "remembered"


def test_what_px_would_refuse_of_an_account_is_left_out_and_reported():
    mapped = map_one(group("g", {"nps": "high", "healthScore": None, "renewalDate": "later", "website": ""}), ACCOUNTS)
    (account,) = upserts(mapped)
    assert isinstance(account, UpsertAccount)
    assert account.fields == {"propertyKeys": [KEY]}
    assert set(whats(mapped)) == {"account.nps", "account.renewalDate"}


def test_another_account_with_the_same_traits_is_written():
    first = map_one(group("g1", {"plan": "a"}), ACCOUNTS)
    (account,) = upserts(map_one(group("g2", {"plan": "a"}), ACCOUNTS, first.known or NOBODY))
    assert isinstance(account, UpsertAccount)
    assert account.account_id == "g2"


def test_each_of_the_two_can_be_on_alone():
    assert [type(one) for one in upserts(map_one(group("g", {"name": "G"}), ACCOUNTS))] == [UpsertAccount]
    assert [type(one) for one in upserts(map_one(group("g", {"name": "G"}), USERS))] == [UpsertUser]
    assert map_one(group("g", {"name": "G"})).dropped == "remembered"
    assert map_one(identify({"plan": "x"}), ACCOUNTS).dropped == "remembered"


def test_a_user_that_changes_the_account_is_written_even_if_the_account_is_not():
    mapped = map_one(group("g2"), BOTH, Known(account_id="g1"))
    assert [type(one) for one in upserts(mapped)] == [UpsertAccount, UpsertUser]


@pytest.mark.parametrize("trait", ["company", "account"])
def test_the_company_of_a_user_writes_the_account(trait: str):
    company = {"id": 7, "name": "Acme", "employee_count": 5}
    account, user = upserts(map_one(identify({trait: company, "email": "x"}), BOTH))
    assert account == UpsertAccount("7", {"name": "Acme", "numberOfEmployees": 5, "propertyKeys": [KEY]}, {})
    assert user.fields == {"type": "USER", "email": "x", "accountId": "7", "propertyKeys": [KEY]}


def test_a_group_call_without_a_group_does_nothing():
    mapped = map_one(group(None, {"name": "G"}), BOTH)
    assert (mapped.dropped, mapped.known) == ("remembered", None)


@pytest.mark.parametrize("traits", [None, [], "x", 7])
def test_odd_traits_do_not_matter(traits: object):
    for event in (identify(traits, context={"traits": traits}), group("g", traits), identify(context=traits)):
        assert all(intent.fields["propertyKeys"] == [KEY] for intent in map_one(event, BOTH).intents)

"""The behavior of RudderStack and Segment, reproduced by configuration (sidecar/mapping/README.md#peers).

The vectors are those of RudderStack's own tests (rudder-transformer, commit 08dfa3c,
``test/integrations/destinations/gainsight_px/processor/data.ts``), shortened to what decides the result.

Different on purpose: nulls are left out instead of sent as ``"null"``; an event without a name is bad; ``sessionId`` is
a text; JSON in attributes has sorted keys; and no request reads a user before it is written (PUT, on 404 POST, has the
same effect with fewer calls). ``createDate`` is read-only in PX and is not sent.
"""

import pytest
from mapping_help import KEY, RECEIVED_MS, body, group, identify, map_one, mapper, track, upserts

from sidecar.mapping import UpsertAccount, UpsertUser

RUDDERSTACK = """
[mapping]
preset = "none"
attribute_case = "keep"
[mapping.fields]
identifyId = ["userId", "traits.userId", "traits.id", "context.traits.userId", "context.traits.id", "anonymousId"]
accountId = ["traits.groupId", "context.traits.groupId"]
date = ["properties.date", "timestamp", "originalTimestamp"]
sessionId = ["properties.sessionId", "context.sessionId"]
userType = ["traits.type", "context.traits.type"]
globalContext = "properties.globalContext"
"globalContext.plan" = "=pro"
[mapping.events]
page = ""
screen = ""
[mapping.traits]
rename = { hobbyName = "hobby" }
keep = ["email", "name", "firstName", "lastName", "gender", "title", "city", "hobbyName"]
[people]
users = "upsert"
accounts = "upsert"
"""


def test_rudderstack_track_body():
    event = {
        "type": "track",
        "event": "Products Searched",
        "anonymousId": "anon-1",
        "originalTimestamp": "2023-03-28T00:00:00.000Z",
        "traits": {"groupId": 7},
        "context": {"sessionId": 1679967592314, "page": {"url": "https://x.test", "referrer": "https://y.test"}},
        "properties": {"feature_name": "x", "list": [1, {"b": 2}], "sessionId": 99, "globalContext": {"a": 1}},
    }
    assert body(event, RUDDERSTACK) == {
        "identifyId": "anon-1",
        "propertyKey": KEY,
        "userType": "USER",
        "eventName": "Products Searched",
        "date": 1679961600000,
        "sessionId": "99",
        "accountId": "7",
        "url": "https://x.test",
        "referrer": "https://y.test",
        "globalContext": {"a": 1},
        "attributes": {"feature_name": "x", "list": '[1,{"b":2}]', "sessionId": 99},
    }


@pytest.mark.parametrize(
    ("place", "user"),
    [
        ({"userId": "1"}, "1"),
        ({"traits": {"userId": "2", "id": "3"}}, "2"),
        ({"traits": {"id": "3"}, "context": {"traits": {"userId": "4"}}}, "3"),
        ({"context": {"traits": {"userId": "4", "id": "5"}}}, "4"),
        ({"context": {"traits": {"id": "5"}}}, "5"),
        ({}, "6"),
    ],
)
def test_rudderstack_paths_of_identify_id(place: dict, user: str):
    event = {"type": "track", "event": "E", "anonymousId": "6", **place}
    assert body(event, RUDDERSTACK)["identifyId"] == user
    assert mapper(RUDDERSTACK).user_of(event) == user


def test_rudderstack_account_ignores_the_default_paths():
    event = track(context={"groupId": "no", "traits": {"account_id": "no", "groupId": "yes"}})
    assert body(event, RUDDERSTACK)["accountId"] == "yes"


def test_rudderstack_date_property_and_static_global_context():
    sent = body(track(timestamp="2024-01-01", properties={"date": "2024-06-06T12:00:00Z"}), RUDDERSTACK)
    assert (sent["date"], sent["globalContext"]) == (1717675200000, {"plan": "pro"})


@pytest.mark.parametrize("kind", ["page", "screen"])
def test_rudderstack_drops_page_and_screen(kind: str):
    assert map_one({"type": kind, "userId": "u"}, RUDDERSTACK).dropped == "mapped_to_nothing"


def test_rudderstack_identify_sends_known_and_listed_traits():
    traits = {"name": "Jane Doe", "gender": "F", "city": "Berlin", "hobbyName": "chess", "unmapped": 1, "groupId": "g"}
    (user,) = upserts(map_one(identify(traits), RUDDERSTACK))
    assert user == UpsertUser(
        "user-123",
        {
            "type": "USER",
            "firstName": "Jane",
            "gender": "FEMALE",
            "lastName": "Doe",
            "location": {"city": "Berlin"},
            "accountId": "g",
            "customAttributes": {"hobby": "chess"},
            "propertyKeys": [KEY],
        },
        {"signUpDate": RECEIVED_MS},
    )


def test_rudderstack_group_writes_account_and_user():
    account, user = upserts(map_one(group("g-1", {"name": "Acme"}), RUDDERSTACK))
    assert account == UpsertAccount("g-1", {"name": "Acme", "propertyKeys": [KEY]}, {})
    assert user.fields["accountId"] == "g-1"


SEGMENT = """
[mapping]
preset = "none"
attribute_case = "keep"
[mapping.events]
screen = ""
[people]
users = "upsert"
accounts = "upsert"
"""


def test_segment_sends_all_calls_but_screen_and_alias():
    """Segment forwards raw calls to a partner endpoint; this is the nearest equivalent in the documented API."""
    assert body(track("Products Searched", properties={"a_b": 1}), SEGMENT)["attributes"] == {"a_b": 1}
    assert body(track("Products Searched"), SEGMENT)["eventName"] == "Products Searched"
    assert body({"type": "page", "userId": "u"}, SEGMENT)["eventName"] == "Page Viewed"
    assert [type(intent) for intent in upserts(map_one(identify({"a": 1}), SEGMENT))] == [UpsertUser]
    assert [type(intent) for intent in upserts(map_one(group("g"), SEGMENT))] == [UpsertAccount, UpsertUser]
    assert map_one({"type": "screen", "userId": "u"}, SEGMENT).dropped == "mapped_to_nothing"
    assert map_one({"type": "alias", "userId": "u"}, SEGMENT).dropped == "not_supported"


DATE_MS = 1_571_043_797_562
PEOPLE = {
    "type": "USER",
    "gender": "MALE",
    "email": "user@email.com",
    "firstName": "Sample",
    "lastName": "User",
    "title": "engineer",
    "countryName": "USA",
    "countryCode": "US",
    "city": "New York",
    "hobbyCustomField": "Sample Hobby",
}
USER = {
    "type": "USER",
    "gender": "MALE",
    "email": "user@email.com",
    "firstName": "Sample",
    "lastName": "User",
    "title": "engineer",
    "location": {"countryName": "USA", "countryCode": "US", "city": "New York"},
    "customAttributes": {"hobby": "Sample Hobby"},
}
ECORP = {
    "name": "ECorp",
    "industry": "software",
    "numberOfEmployees": 400,
    "website": "www.ecorp.com",
    "plan": "premium",
}
WHO = {"userId": "u", "anonymousId": "a"}
AT = {"originalTimestamp": "2019-10-14T09:03:17.562Z"}
PRODUCT = {"product_id": "123", "category": "Games", "name": "Game", "price": 13.49, "url": "https://www.website.com/p"}
NESTED = {"description": "d", "nested": {"a": [1, 2, 3], "b": {"c": 1}}, "arr": [1, 2, 3]}
NESTED_TEXT = {"description": "d", "nested": '{"a":[1,2,3],"b":{"c":1}}', "arr": "[1,2,3]"}
STATIC = {"plan": "pro"}
PAGE = {"url": "http://127.0.0.1:8887/", "referrer": "$direct"}


def call(kind: str, **more: object) -> dict:
    return {"type": kind, **WHO, **AT, "integrations": {"All": True}, **more}


TRACKS = [
    (0, call("track", event="Product Added", properties=PRODUCT), {"attributes": PRODUCT, "globalContext": STATIC}),
    (
        1,
        call("track", event="Plan Change", context={"page": PAGE, "sessionId": 1679967592314}),
        {"attributes": {}, **PAGE, "sessionId": "1679967592314", "globalContext": STATIC},
    ),
    (
        2,
        call("track", event="Track Me", properties={"description": "d", "globalContext": {"testOverride": "v"}}),
        {"attributes": {"description": "d"}, "globalContext": {"testOverride": "v"}},
    ),
    (8, call("track", event="Stringify Test", properties=NESTED), {"attributes": NESTED_TEXT, "globalContext": STATIC}),
    (
        9,
        call("track", event="Stringify Test", properties=NESTED | {"globalContext": {"someKey": "v"}}),
        {"attributes": NESTED_TEXT, "globalContext": {"someKey": "v"}},
    ),
]


@pytest.mark.parametrize(("number", "event", "sent"), TRACKS, ids=[f"vector {vector[0]}" for vector in TRACKS])
def test_rudderstack_track_vectors(number: int, event: dict, sent: dict):
    always = {"identifyId": "u", "propertyKey": KEY, "userType": "USER", "eventName": event["event"], "date": DATE_MS}
    assert body(event, RUDDERSTACK) == always | sent


IDENTIFIES = [
    (3, call("identify", traits=PEOPLE | {"signUpDate": 1624431528295}), USER | {"signUpDate": 1624431528295}, {}),
    (11, call("identify", traits=PEOPLE | {"signUpDate": 1624431528295}), USER | {"signUpDate": 1624431528295}, {}),
    (
        12,
        call("identify", traits=PEOPLE | {"signUpDate": 1624431528295, "accountId": 1234}),
        USER | {"signUpDate": 1624431528295, "accountId": "1234"},
        {},
    ),
    (
        14,
        call("identify", traits=PEOPLE | {"signUpDate": 1624431528295, "term": None, "campaign": ""}),
        USER | {"signUpDate": 1624431528295},
        {},
    ),
    (15, call("identify", traits=PEOPLE), USER, {"signUpDate": DATE_MS}),
    (
        16,
        call(
            "identify",
            timestamp="2021-06-25T14:29:52.911+05:30",
            context={
                "traits": {
                    "name": "Stanley Kubrick",
                    "email": "s@k.com",
                    "score": 100,
                    "title": "Director/Film Maker",
                    "gender": "Male",
                    "countryCode": "US",
                    "countryName": "USA",
                    "hobbyCustomField": "films",
                }
            },
        ),
        {
            "type": "USER",
            "firstName": "Stanley",
            "lastName": "Kubrick",
            "email": "s@k.com",
            "score": 100,
            "title": "Director/Film Maker",
            "gender": "MALE",
            "location": {"countryCode": "US", "countryName": "USA"},
            "customAttributes": {"hobby": "films"},
        },
        {"signUpDate": 1624611592911},
    ),
]
KEPT = """keep = ["email", "name", "firstName", "lastName", "gender", "title", "city", "countryName", "countryCode",
    "signUpDate", "accountId", "score", "hobbyCustomField"]
rename = { hobbyCustomField = "hobby" }
"""


@pytest.mark.parametrize(
    ("number", "event", "fields", "new_only"), IDENTIFIES, ids=[f"vector {vector[0]}" for vector in IDENTIFIES]
)
def test_rudderstack_identify_vectors(number: int, event: dict, fields: dict, new_only: dict):
    rules = RUDDERSTACK[: RUDDERSTACK.index("rename = {")] + KEPT
    (user,) = upserts(map_one(event, rules + RUDDERSTACK[RUDDERSTACK.index("[people]") :]))
    assert user == UpsertUser("u", fields | {"propertyKeys": [KEY]}, new_only)


@pytest.mark.parametrize("number", [4, 13])
def test_rudderstack_group_vectors(number: int):
    """The account is written first, the user then refers to it; RudderStack does the same through its own network call."""
    more = {"integrations": {"All": True, "GAINSIGHT_PX": {"limitAPIForGroup": True}}} if number == 13 else {}
    rules = RUDDERSTACK.replace(
        'keep = ["email", ', 'keep = ["industry", "numberOfEmployees", "website", "plan", "email", '
    )
    account, user = upserts(map_one(call("group", groupId="ecorp-id", traits=ECORP | {"term": None}, **more), rules))
    assert account == UpsertAccount("ecorp-id", ECORP | {"propertyKeys": [KEY]}, {})
    assert user.fields == {"type": "USER", "accountId": "ecorp-id", "propertyKeys": [KEY]}


def test_rudderstack_vectors_that_it_refuses():
    """Vectors 5 and 6 have no id. 7 and 10 differ on purpose.

    RudderStack answers 400 for a group without an id, and for one whose user PX does not know; here the first has
    nothing to send, and the second writes the user (PUT, on 404 POST).
    """
    assert map_one({"type": "identify", "traits": PEOPLE}, RUDDERSTACK).dropped == "no_user"
    assert map_one({"type": "track", "event": "Product Added"}, RUDDERSTACK).dropped == "no_user"
    assert map_one(call("group", traits=ECORP), RUDDERSTACK).dropped == "remembered"
    assert len(upserts(map_one(call("group", groupId="ecorp-id", traits=ECORP), RUDDERSTACK))) == 2


def test_rudderstack_router_vectors():
    """Those of its router: nested lists in a track, and a group of a warehouse, whose groupId is a trait."""
    nested = {"array": [1, 2, 3], "nested": {"json": "test"}, "deep": [{"a": 1, "b": 2}, {"a": 1, "b": [1, 2, 3]}]}
    times = {"timestamp": "2021-06-26T16:11:22.335+05:30", "originalTimestamp": "2021-06-26T10:41:22.316Z"}
    sent = body({**call("track", event="nested test2", properties=nested), **times}, RUDDERSTACK)
    texts = {"array": "[1,2,3]", "nested": '{"json":"test"}', "deep": '[{"a":1,"b":2},{"a":1,"b":[1,2,3]}]'}
    assert (sent["date"], sent["attributes"]) == (1624704082335, texts)
    account, user = upserts(map_one(call("group", traits={"name": ",sleep(100)", "groupId": "myGId"}), RUDDERSTACK))
    assert account == UpsertAccount("myGId", {"name": ",sleep(100)", "propertyKeys": [KEY]}, {})
    assert user.fields["accountId"] == "myGId"

"""What RudderStack and Segment do with the same events, by configuration (facts: px_and_sdks.md 2.1 and 2.2).

Excluded by the design, and therefore different on purpose: nulls are left out instead of sent as ``"null"``; an event
without a name is bad; ``sessionId`` is a text; JSON in attributes has sorted keys; and no request asks PX for a user
before writing (PUT, on 404 POST, says the same in fewer calls).
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


def test_rudderstack_track():
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
def test_rudderstack_identity(place: dict, user: str):
    event = {"type": "track", "event": "E", "anonymousId": "6", **place}
    assert body(event, RUDDERSTACK)["identifyId"] == user
    assert mapper(RUDDERSTACK).user_of(event) == user


def test_rudderstack_account_is_not_the_segment_one():
    event = track(context={"groupId": "no", "traits": {"account_id": "no", "groupId": "yes"}})
    assert body(event, RUDDERSTACK)["accountId"] == "yes"


def test_rudderstack_date_property_and_static_global_context():
    sent = body(track(timestamp="2024-01-01", properties={"date": "2024-06-06T12:00:00Z"}), RUDDERSTACK)
    assert (sent["date"], sent["globalContext"]) == (1717675200000, {"plan": "pro"})


@pytest.mark.parametrize("kind", ["page", "screen"])
def test_rudderstack_sends_no_page_and_screen_calls(kind: str):
    assert map_one({"type": kind, "userId": "u"}, RUDDERSTACK).dropped == "mapped_to_nothing"


def test_rudderstack_identify_sends_known_traits_and_chosen_custom_ones():
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


def test_segment_forwards_identify_group_track_and_page_but_not_screen_and_alias():
    """Its destination hands PX the raw call; the closest there is by the documented API, with all names as they are."""
    assert body(track("Products Searched", properties={"a_b": 1}), SEGMENT)["attributes"] == {"a_b": 1}
    assert body(track("Products Searched"), SEGMENT)["eventName"] == "Products Searched"
    assert body({"type": "page", "userId": "u"}, SEGMENT)["eventName"] == "Page Viewed"
    assert [type(one) for one in upserts(map_one(identify({"a": 1}), SEGMENT))] == [UpsertUser]
    assert [type(one) for one in upserts(map_one(group("g"), SEGMENT))] == [UpsertAccount, UpsertUser]
    assert map_one({"type": "screen", "userId": "u"}, SEGMENT).dropped == "mapped_to_nothing"
    assert map_one({"type": "alias", "userId": "u"}, SEGMENT).dropped == "not_supported"

"""Every row of the tables of https://docs.dataflysignal.com/integrations/crm/gainsight as an example."""

import pytest

from sidecar.config import MappingConfig, PeopleConfig
from sidecar.mapping import CustomEvent, Known, Mapped, Mapper, compile_mapping

RECEIVED_MS = 1_717_700_000_000
KEY = "AP-XXXXXXXXXX-2"


def mapper(**rules: object) -> Mapper:
    return compile_mapping(MappingConfig(**rules), PeopleConfig())


def map_one(event: dict, known: Known | None = None, **rules: object) -> Mapped:
    return mapper(**rules).map(event, known or Known(), property_key=KEY, received_ms=RECEIVED_MS)


def body_of(mapped: Mapped) -> dict:
    (intent,) = mapped.intents
    assert isinstance(intent, CustomEvent)
    return intent.body


def track(event: str = "Feature Used", **more: object) -> dict:
    return {"type": "track", "event": event, "userId": "user-123", **more}


def test_example_is_reproduced_field_for_field():
    identified = map_one(
        {
            "type": "identify",
            "userId": "user-123",
            "traits": {"account_id": "acct-987", "email": "jane.doe@example.com", "plan": "enterprise"},
        }
    )
    event = track(
        properties={"feature_name": "Bulk Export", "category": "Reporting", "value": 1},
        timestamp="2024-06-06T16:00:00.000Z",
        context={"session": {"id": "sess-abc123"}, "page": {"url": "https://app.example.com/reports"}},
    )
    mapped = map_one(event, identified.known)
    assert body_of(mapped) == {
        "identifyId": "user-123",
        "propertyKey": "AP-XXXXXXXXXX-2",
        "userType": "USER",
        "eventName": "Feature Used",
        "date": 1717689600000,
        "sessionId": "sess-abc123",
        "accountId": "acct-987",
        "url": "https://app.example.com/reports",
        "attributes": {"featureName": "Bulk Export", "category": "Reporting", "value": 1},
    }
    assert mapped.changes == ()
    assert list(body_of(mapped))[:5] == ["identifyId", "propertyKey", "userType", "eventName", "date"]


@pytest.mark.parametrize(
    ("sent", "in_px"),
    [
        ("Signed Up", "Signed Up"),
        ("Logged In", "Logged In"),
        ("Feature Used", "Feature Used"),
        ("Products Searched", "Searched"),
        ("Plan Viewed", "Plan Viewed"),
        ("Trial Started", "Trial Started"),
        ("Subscription Started", "Subscription Started"),
        ("Subscription Cancelled", "Subscription Cancelled"),
    ],
)
def test_preset_renames_events(sent: str, in_px: str):
    assert body_of(map_one(track(sent), unmapped="drop"))["eventName"] == in_px


def test_page_call_becomes_page_viewed():
    event = {"type": "page", "userId": "user-123", "name": "Reports"}
    assert body_of(map_one(event, unmapped="drop"))["eventName"] == "Page Viewed"


def test_required_fields_are_always_sent():
    assert set(body_of(map_one(track()))) >= {"identifyId", "propertyKey", "userType", "eventName"}


def test_user_id_becomes_identify_id_of_type_user():
    body = body_of(map_one(track()))
    assert (body["identifyId"], body["userType"]) == ("user-123", "USER")


def test_events_without_a_user_id_are_dropped():
    assert map_one({"type": "track", "event": "Feature Used"}).dropped == "no_user"
    assert map_one({"type": "track", "event": "Feature Used", "anonymousId": "anon-1"}).dropped == "no_user"


@pytest.mark.parametrize(("choice", "user_type"), [("visitor", "VISITOR"), ("lead", "LEAD")])
def test_anonymous_id_can_be_mapped(choice: str, user_type: str):
    body = body_of(map_one({"type": "track", "event": "Feature Used", "anonymousId": "anon-1"}, anonymous=choice))
    assert (body["identifyId"], body["userType"]) == ("anon-1", user_type)


@pytest.mark.parametrize("place", ["traits", "context"])
def test_account_trait_becomes_account_id(place: str):
    traits = {"account_id": "acct-987"}
    event = track(**({"traits": traits} if place == "traits" else {"context": {"traits": traits}}))
    assert body_of(map_one(event))["accountId"] == "acct-987"


def test_session_and_url_come_from_the_context():
    body = body_of(map_one(track(context={"session": {"id": "s-1"}, "page": {"url": "https://x.test/a"}})))
    assert (body["sessionId"], body["url"]) == ("s-1", "https://x.test/a")


def test_property_key_is_sent_with_every_event():
    assert body_of(map_one(track()))["propertyKey"] == KEY


def test_date_is_the_event_time_in_epoch_milliseconds():
    date = body_of(map_one(track(timestamp="2024-06-06T16:00:00Z")))["date"]
    assert date == 1717689600000
    assert type(date) is int


def test_properties_are_nested_under_attributes():
    assert body_of(map_one(track(properties={"plan_name": "Pro", "seats": 3, "trial": True})))["attributes"] == {
        "planName": "Pro",
        "seats": 3,
        "trial": True,
    }
    assert body_of(map_one(track()))["attributes"] == {}

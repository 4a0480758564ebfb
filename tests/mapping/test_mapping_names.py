"""Event names: the camel rule, presets, globs, and the rules keyed by name."""

import pytest
from mapping_help import RECEIVED_MS, attributes, body, changes_by_field, group, identify, map_one, mapper, track

from sidecar.mapping import Known, Priority
from sidecar.mapping.names import camel, store_bounded


@pytest.mark.parametrize(
    ("sent", "in_px"),
    [
        ("feature_name", "featureName"),
        ("featureName", "featureName"),
        ("Feature_Name", "FeatureName"),
        ("PLAN_TIER", "PLANTIER"),
        ("plan_2", "plan_2"),
        ("a_b_c", "aBC"),
        ("a__b", "a_B"),
        ("a_", "a_"),
        ("_private", "_private"),
        ("_private_key", "_privateKey"),
        ("__typename", "__typename"),
        ("größe_über", "größeÜber"),
        ("naïve_中", "naïve_中"),
        ("with space_and-dash", "with spaceAnd-dash"),
        ("_", "_"),
        ("", ""),
    ],
)
def test_camel_rule(sent: str, in_px: str):
    assert camel(sent) == in_px


PRODUCTS = """
[mapping.events]
"Products *" = "Anything else"
"Products Searched" = "Found"
"debug *" = ""
"Noise" = ""
"[Tt]yped" = "Bracketed"
"""


@pytest.mark.parametrize(
    ("sent", "in_px"),
    [
        ("Products Searched", "Found"),
        ("Products Compared", "Anything else"),
        ("products Compared", "products Compared"),
        ("typed", "Bracketed"),
        ("Trial Started", "Trial Started"),
    ],
)
def test_exact_names_come_before_globs_before_the_preset(sent: str, in_px: str):
    assert body(track(sent), PRODUCTS)["eventName"] == in_px


@pytest.mark.parametrize("sent", ["Noise", "debug me"])
def test_empty_target_name_drops_the_event(sent: str):
    assert map_one(track(sent), PRODUCTS).dropped == "mapped_to_nothing"


def test_globs_apply_in_the_order_of_the_file():
    rules = '[mapping.events]\n"A *" = "first"\n"* B" = "second"\n'
    assert body(track("A B"), rules)["eventName"] == "first"


def test_unmapped_names_pass_or_are_dropped():
    assert body(track("My Own"))["eventName"] == "My Own"
    assert map_one(track("My Own"), '[mapping]\nunmapped = "drop"').dropped == "unmapped"
    assert body(track("Products Searched"), '[mapping]\npreset = "none"')["eventName"] == "Products Searched"


@pytest.mark.parametrize(("kind", "in_px"), [("page", "Page Viewed"), ("screen", "Screen Viewed")])
@pytest.mark.parametrize("key", ["type", "name in PX"])
def test_page_and_screen_are_found_by_type_or_px_name(kind: str, in_px: str, key: str):
    event = {"type": kind, "userId": "u1"}
    assert body(event)["eventName"] == in_px
    written = kind if key == "type" else in_px
    assert body(event, f'[mapping.events]\n"{written}" = "Seen"')["eventName"] == "Seen"
    assert map_one(event, f'[mapping.events]\n"{written}" = ""').dropped == "mapped_to_nothing"
    assert mapper(f'[mapping.event."{written}"]\npriority = "high"').priority_of(event)


def test_unmapped_drop_covers_pages_without_an_entry():
    only_listed = '[mapping]\npreset = "none"\nunmapped = "drop"\n'
    page = {"type": "page", "userId": "u1"}
    assert map_one(page, only_listed).dropped == "unmapped"
    assert body(page, only_listed + '[mapping.events]\npage = "Page Viewed"')["eventName"] == "Page Viewed"


def test_track_event_named_page_is_not_a_page_call():
    assert body(track("page"))["eventName"] == "page"


def test_event_name_over_2000_characters_is_cut_and_reported():
    mapped = map_one(track("n" * 2001))
    assert mapped.intents[0].body["eventName"] == "n" * 2000
    assert "2,000" in changes_by_field(mapped)["eventName"]
    assert map_one(track("n" * 2000)).changes == ()


def test_more_names_than_the_cache_holds_map_correctly():
    compiled = mapper('[mapping.events]\n"7*" = "seven"')
    for _ in range(2):
        for number in range(5000):
            event = track(str(number), properties={f"p_{number}": 1})
            name = compiled.rules.names.resolve(event)
            assert name is not None
            assert name.px == ("seven" if str(number).startswith("7") else str(number))


OWN_RULES = """
[mapping.attributes]
drop = ["secret"]
rename = { a = "general", b = "b_general" }
set = { source = "general", env = "test" }
[mapping.event."Plan Viewed"]
user_type = "LEAD"
priority = "high"
[mapping.event."Plan Viewed".attributes]
drop = ["noise"]
rename = { a = "own" }
set = { source = "own" }
case = "keep"
nested = "flatten"
"""


def test_event_rules_merge_over_general_rules():
    sent = {"a": 1, "b": 2, "c_c": 3, "secret": 4, "noise": 5, "n": {"x": 6}}
    own = body(track("Plan Viewed", properties=sent), OWN_RULES)
    assert own["attributes"] == {"own": 1, "b_general": 2, "c_c": 3, "n.x": 6, "source": "own", "env": "test"}
    assert own["userType"] == "LEAD"
    other = body(track("Other", properties=sent), OWN_RULES)
    assert other["attributes"] == {
        "general": 1,
        "bGeneral": 2,
        "cC": 3,
        "noise": 5,
        "n": '{"x":6}',
        "source": "general",
        "env": "test",
    }
    assert other["userType"] == "USER"


def test_event_rules_are_keyed_by_the_name_as_sent():
    rules = '[mapping.event."Products Searched"]\nattributes.set = { own = true }\n'
    assert body(track("Products Searched"), rules)["attributes"] == {"own": True}
    assert body(track("Searched"), rules)["attributes"] == {}


def test_keep_of_an_event_replaces_the_general_keep():
    rules = '[mapping.attributes]\nkeep = ["a"]\n[mapping.event."Special".attributes]\nkeep = ["b"]\n'
    assert attributes({"a": 1, "b": 2}, rules) == {"a": 1}
    assert body(track("Special", properties={"a": 1, "b": 2}), rules)["attributes"] == {"b": 2}


@pytest.mark.parametrize(
    ("event", "priority"),
    [
        ({"type": "identify"}, Priority.NORMAL),
        ({"type": "group"}, Priority.NORMAL),
        ({"type": "alias"}, Priority.NORMAL),
        ({"type": "track", "event": "Plan Viewed"}, Priority.HIGH),
        ({"type": "track", "event": "Other"}, Priority.NORMAL),
        ({"type": "page"}, Priority.NORMAL),
        ({"type": "track"}, Priority.NORMAL),
        ({}, Priority.NORMAL),
    ],
)
def test_priority_depends_on_type_and_name(event: dict, priority: Priority):
    assert mapper(OWN_RULES).priority_of(event) is priority


def test_caches_by_name_are_bounded():
    table: dict[str, int] = {}
    store_bounded(table, "n" * 200, 1)
    store_bounded(table, "n" * 201, 2)
    assert table == {"n" * 200: 1}
    for number in range(4_095):
        store_bounded(table, str(number), number)
    assert len(table) == 4_096
    store_bounded(table, "one more", 3)
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
def test_px_name_exists_only_for_custom_events_that_are_sent(event, name):
    assert mapper('[mapping.events]\n"Noise" = ""\n').px_name(event) == name


def test_track_without_a_name_is_dead_with_advice():
    mapped = mapper().map({"type": "track", "userId": "u"}, Known(), property_key="AP-1", received_ms=RECEIVED_MS)
    assert (mapped.dead, mapped.detail) == ("mapping_error", "The event has no name; send a text as `event`.")

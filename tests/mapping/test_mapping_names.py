"""Which PX event an app's event becomes, and what is decided by name."""

import pytest
from mapping_help import attributes, body, map_one, mapper, track, whats

from sidecar.mapping.names import camel


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
def test_the_camel_rule(sent: str, in_px: str):
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
def test_configured_names_go_over_the_preset_and_exact_ones_before_globs(sent: str, in_px: str):
    assert body(track(sent), PRODUCTS)["eventName"] == in_px


@pytest.mark.parametrize("sent", ["Noise", "debug me"])
def test_an_empty_name_drops_the_event(sent: str):
    assert map_one(track(sent), PRODUCTS).dropped == "mapped_to_nothing"


def test_globs_are_tried_in_the_order_of_the_file():
    rules = '[mapping.events]\n"A *" = "first"\n"* B" = "second"\n'
    assert body(track("A B"), rules)["eventName"] == "first"


def test_names_outside_the_preset_pass_or_are_dropped():
    assert body(track("My Own"))["eventName"] == "My Own"
    assert map_one(track("My Own"), '[mapping]\nunmapped = "drop"').dropped == "unmapped"
    assert body(track("Products Searched"), '[mapping]\npreset = "none"')["eventName"] == "Products Searched"


@pytest.mark.parametrize(("kind", "in_px"), [("page", "Page Viewed"), ("screen", "Screen Viewed")])
@pytest.mark.parametrize("key", ["type", "name in PX"])
def test_page_and_screen_can_be_renamed_by_type_or_by_their_name_in_px(kind: str, in_px: str, key: str):
    event = {"type": kind, "userId": "u1"}
    assert body(event)["eventName"] == in_px
    written = kind if key == "type" else in_px
    assert body(event, f'[mapping.events]\n"{written}" = "Seen"')["eventName"] == "Seen"
    assert map_one(event, f'[mapping.events]\n"{written}" = ""').dropped == "mapped_to_nothing"
    assert mapper(f'[mapping.event."{written}"]\npriority = "high"').is_high(event)


def test_pages_need_an_entry_where_only_listed_names_pass():
    only_listed = '[mapping]\npreset = "none"\nunmapped = "drop"\n'
    page = {"type": "page", "userId": "u1"}
    assert map_one(page, only_listed).dropped == "unmapped"
    assert body(page, only_listed + '[mapping.events]\npage = "Page Viewed"')["eventName"] == "Page Viewed"


def test_a_track_event_called_page_is_no_page_call():
    assert body(track("page"))["eventName"] == "page"


def test_a_name_over_the_cap_is_cut_and_reported():
    mapped = map_one(track("n" * 2001))
    assert mapped.intents[0].body["eventName"] == "n" * 2000
    assert "2,000" in whats(mapped)["eventName"]
    assert map_one(track("n" * 2000)).changes == ()


def test_more_names_than_are_remembered_map_all_the_same():
    compiled = mapper('[mapping.events]\n"7*" = "seven"')
    for _ in range(2):
        for number in range(5000):
            event = track(str(number), properties={f"p_{number}": 1})
            name = compiled.rules.names.of(event)
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


def test_one_event_can_have_rules_of_its_own_over_the_general_ones():
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


def test_rules_of_one_event_go_by_the_name_that_the_app_sends():
    rules = '[mapping.event."Products Searched"]\nattributes.set = { own = true }\n'
    assert body(track("Products Searched"), rules)["attributes"] == {"own": True}
    assert body(track("Searched"), rules)["attributes"] == {}


def test_the_keep_list_of_one_event_replaces_the_general_one():
    rules = '[mapping.attributes]\nkeep = ["a"]\n[mapping.event."Special".attributes]\nkeep = ["b"]\n'
    assert attributes({"a": 1, "b": 2}, rules) == {"a": 1}
    assert body(track("Special", properties={"a": 1, "b": 2}), rules)["attributes"] == {"b": 2}


@pytest.mark.parametrize(
    ("event", "high"),
    [
        ({"type": "identify"}, True),
        ({"type": "group"}, True),
        ({"type": "alias"}, False),
        ({"type": "track", "event": "Plan Viewed"}, True),
        ({"type": "track", "event": "Other"}, False),
        ({"type": "page"}, False),
        ({"type": "track"}, False),
        ({}, False),
    ],
)
def test_the_class_is_decided_by_type_and_name(event: dict, high: bool):
    assert mapper(OWN_RULES).is_high(event) is high

"""The catalogue of names: findings, merging, comparing."""

import msgspec
import pytest

from sidecar.control.names import NameEntry, differences, findings, kind_of, merged


def entry(name="Clicked", **fields):
    return msgspec.convert({"type": "track", "name": name} | fields, NameEntry)


@pytest.mark.parametrize(("value", "kind"), [(True, "boolean"), (1, "number"), (1.5, "number"), ("x", "string")])
def test_types_are_those_of_px(value, kind):
    assert kind_of(value) == kind


def test_twins_that_become_one_event_are_not_reported():
    assert findings([entry("Feature Used", px="Used"), entry("feature_used", px="Used")]) == []
    (finding,) = findings([entry("Feature Used", px="Feature Used"), entry("feature_used", px="feature_used")])
    assert finding.startswith('"Feature Used", "feature_used" differ only in spelling')


def test_blanks_around_a_name_make_no_other_event():
    """Of names without an event that was sent it was said that they are different events in PX."""
    assert findings([NameEntry("track", "Used"), NameEntry("track", " Used ", px="Used")]) == []
    assert findings([NameEntry("track", "Used"), NameEntry("track", " Used ")]) == []


@pytest.mark.parametrize(
    ("name", "other", "are_twins"),
    [
        ("Feature Used", "feature-used", True),
        ("Caf\u00e9", "cafe\u0301", True),
        ("\U0001f44d", "\U0001f44e", False),  # thumbs up and down
        ("!", "?", False),
        ("\u0e14\u0e35", "\u0e14\u0e39", False),  # "good" and "look" in Thai
        ("\u0915\u093f\u0932", "\u0915\u0941\u0932", False),  # "nail" and "family" in Hindi
    ],
)
def test_names_are_twins_only_if_they_mean_the_same(name, other, are_twins):
    """Names of emoji, and words that differ in their vowels alone, were said to differ only in spelling."""
    assert bool(findings([entry(name, px=name), entry(other, px=other)])) is are_twins
    assert bool(findings([entry(attributes={name: {"string": 1}, other: {"string": 1}})])) is are_twins


def test_what_was_cut_is_reported():
    (finding,) = findings([entry(cut=2, sampled=5)])
    assert "2 of 5 events" in finding


def test_limits_of_px_that_are_near_are_reported():
    many = [entry(f"E{number}x", px=f"E{number}x") for number in range(1_600)]
    assert any("1,600 names" in finding for finding in findings(many))
    wide = entry(attributes={f"a{number}": {"string": 1} for number in range(40)})
    assert any("40 attributes" in finding for finding in findings([wide]))


def test_a_name_that_px_does_not_show_is_reported():
    (finding,) = findings([entry(px="Click", in_px=0)])
    assert "registered" in finding
    assert findings([entry(px="Click", in_px=3)]) == []


def test_catalogues_of_hosts_are_added_up():
    first = entry(events=2, first_ms=10, last_ms=20, day=1, px="Click", attributes={"a": {"string": 1}}, in_px=5)
    second = entry(events=3, first_ms=5, last_ms=15, day=3, not_sent={"no_user": 1}, attributes={"a": {"number": 2}})
    (both,) = merged([[first], [second]])
    assert (both.events, both.first_ms, both.last_ms, both.day, both.share, both.in_px) == (5, 5, 20, 4, 1.0, 5)
    assert both.attributes == {"a": {"string": 1, "number": 2}}
    assert both.not_sent == {"no_user": 1}
    assert first.events == 2, "the input is not changed"


def test_a_comparison_ignores_counts_and_names_what_changed():
    old = [entry(events=1, px="Click", attributes={"a": {"string": 1}, "b": {"string": 1}}), entry("Gone")]
    assert differences(old, [msgspec.structs.replace(each, events=99, last_ms=9) for each in old]) == []
    new = [entry(px="Other", attributes={"a": {"string": 1, "number": 1}, "c": {"string": 1}}), entry("New")]
    assert differences(old, new) == [
        "new: New (track)",
        "gone: Gone (track)",
        "Clicked: becomes Other in PX, was Click",
        "Clicked: new attribute c",
        "Clicked: attribute b is gone",
        "Clicked: attribute a is now also a number",
    ]


def test_nothing_is_said_of_a_name_that_the_sample_has_no_event_of():
    """A busy hour filled the sample with other names, and ``names --diff`` said that this one became nothing in PX."""
    sampled = entry(px="Click", sampled=3, attributes={"a": {"string": 3}})
    assert differences([sampled], [entry(events=9)]) == []
    assert differences([entry(events=9)], [sampled]) == []
    assert differences([sampled], [entry(sampled=1, not_sent={"unmapped": 1})]) == [
        "Clicked: becomes nothing in PX, was Click",
        "Clicked: attribute a is gone",
    ]

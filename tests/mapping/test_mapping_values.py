"""Single values: dates, ids, numbers, nested values."""

import math
import sys
import time

import pytest
from mapping_help import RECEIVED_MS, attributes, body, changes_by_field, group, identify, map_one, track

from sidecar.config import load_text
from sidecar.mapping import LiveSettings, compile_settings
from sidecar.mapping.attributes import BROKEN_TEXT
from sidecar.mapping.dates import is_implausible_ms, to_epoch_ms
from sidecar.mapping.values import as_text, clean_text, json_text, within_64_bits

NOON_MS = 1_717_675_200_000  # 2024-06-06T12:00:00Z
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("sent", "date_ms"),
    [
        ("2024-06-06T12:00:00.555+00:00", NOON_MS + 555),
        ("2024-06-06T17:30:00.000+05:30", NOON_MS),
        ("2024-06-06T17:30:00+0530", NOON_MS),
        ("2024-06-06T12:00:00Z", NOON_MS),
        ("2024-06-06t12:00:00z", NOON_MS),
        (" 2024-06-06T12:00:00Z ", NOON_MS),
        ("2024-06-06 12:00:00", NOON_MS),
        ("2024-06-06T12:00:00.678901", NOON_MS + 678),  # naive, with microseconds (Python)
        ("2024-06-06", NOON_MS - 43_200_000),
        ("2024-06-06T14:00:00.1234567+02:00", NOON_MS + 123),  # .NET "o"
        ("2024-06-06T12:00:00.123456789Z", NOON_MS + 123),  # Go
        ("2024-06-06T12:00Z", NOON_MS),
        (NOON_MS, NOON_MS),
        (NOON_MS // 1000, NOON_MS),
        (NOON_MS / 1000 + 0.25, NOON_MS + 250),
        (NOON_MS * 1000, NOON_MS),
        (NOON_MS * 1_000_000, NOON_MS),
        (str(NOON_MS), NOON_MS),
        (str(NOON_MS // 1000), NOON_MS),
    ],
)
def test_timestamps_become_epoch_milliseconds(sent: object, date_ms: int):
    mapped = map_one(track(timestamp=sent))
    assert mapped.intents[0].body["date"] == date_ms
    assert mapped.changes == ()


@pytest.mark.parametrize(
    "sent",
    [
        "soon",
        "2024-13-01",
        "2024-06-06T25:00:00Z",
        True,
        {"a": 1},
        [1],
        "٢٠٢٤",
        "--1717675200",
        "1.2.345678",
        float("nan"),
    ],
)
def test_unreadable_timestamp_falls_through_and_is_reported(sent: object):
    mapped = map_one(track(timestamp=sent, originalTimestamp="2024-06-06T12:00:00Z"))
    assert mapped.intents[0].body["date"] == NOON_MS
    assert "cannot be read" in changes_by_field(mapped)["date"]
    assert body(track(timestamp=sent))["date"] == RECEIVED_MS


@pytest.mark.parametrize("missing", [None, ""])
def test_missing_timestamp_is_not_reported(missing: object):
    mapped = map_one(track(timestamp=missing))
    assert mapped.intents[0].body["date"] == RECEIVED_MS
    assert mapped.changes == ()


@pytest.mark.parametrize(
    "sent",
    [
        "0001-01-01T00:00:00+14:00",
        "1970-01-01T00:00:00Z",
        0,
        -1,
        "2024-06-08T00:00:00Z",
        "9999-12-31T23:59:59-14:00",
        2**70,
        -1e290,
    ],
)
def test_implausible_date_becomes_the_time_of_receipt(sent: object):
    mapped = map_one(track(timestamp=sent, originalTimestamp="2024-06-06T12:00:00Z"))
    assert mapped.intents[0].body["date"] == RECEIVED_MS
    assert "time of receipt" in changes_by_field(mapped)["date"]


def test_clock_skew_and_old_imports_are_plausible():
    assert body(track(timestamp=RECEIVED_MS + 14 * 3_600_000))["date"] == RECEIVED_MS + 14 * 3_600_000
    assert body(track(timestamp="2001-01-01"))["date"] == 978_307_200_000


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("u1", "u1"),
        (" u1 ", " u1 "),
        (12345, "12345"),
        (12345.0, "12345"),
        (1.5, "1.5"),
        (1e21, "1e+21"),
        (2**70, str(2**70)),
        (0, "0"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        (None, None),
        ("", None),
        ("  ", None),
        (True, None),
        (float("nan"), None),
        (float("inf"), None),
        ([], None),
        ({}, None),
        (10**400, None),
    ],
)
def test_ids_are_texts_or_finite_numbers(sent: object, text: str | None):
    assert as_text(sent) == text


def test_an_id_of_any_character_is_kept_repaired_or_blank():
    for char in map(chr, range(sys.maxunicode + 1)):
        assert as_text(char) == (None if char.isspace() else clean_text(char))


def test_attribute_values_keep_their_types():
    sent = {
        "text": "a",
        "whole": 7,
        "part": 0.5,
        "yes": True,
        "no": False,
        "when": "2024-01-02T03:04:05.678901",
        "empty": "",
    }
    assert attributes(sent) == sent


def test_null_is_left_out():
    assert attributes({"a": None, "b": 1}) == {"b": 1}


def test_nested_values_become_compact_sorted_json_text():
    assert attributes({"n": {"b": [1, {"z": None, "a": "ü"}], "a": True}, "l": [2, 1], "e": {}}) == {
        "n": '{"a":true,"b":[1,{"a":"ü","z":null}]}',
        "l": "[2,1]",
        "e": "{}",
    }


def test_values_beyond_json_are_never_sent():
    sent = {
        "nan": float("nan"),
        "inf": float("-inf"),
        "n": {"nan": float("nan"), "\ud800": ["\udfff", 2**70, 10**400]},
        "s": "a\ud800",
    }
    mapped = map_one(track(properties=sent))
    assert mapped.intents[0].body["attributes"] == {
        "n": '{"nan":null,"\ufffd":["\ufffd",1180591620717411303424,null]}',
        "s": "a\ufffd",
    }
    assert changes_by_field(mapped) == dict.fromkeys(("attributes.n", "attributes.s"), BROKEN_TEXT) | dict.fromkeys(
        ("attributes.nan", "attributes.inf"), "left out: not a finite number"
    )


def test_equal_nested_keys_resolve_alike_in_any_order():
    pairs = [("\ud800", 1), ("\ud801", 2)]
    for nested in (dict(pairs), dict(reversed(pairs))):
        assert attributes({"n": nested}) == {"n": '{"\ufffd":1}'}


def test_integers_beyond_64_bits_are_sent_as_text_and_reported():
    mapped = map_one(track(properties={"big": 2**63, "fits": 2**63 - 1, "low": -(2**63), "huge": 10**400}))
    assert mapped.intents[0].body["attributes"] == {"big": "9223372036854775808", "fits": 2**63 - 1, "low": -(2**63)}
    assert set(changes_by_field(mapped)) == {"attributes.big", "attributes.huge"}


def test_dates_before_the_epoch_round_down():
    assert to_epoch_ms("1969-12-31T23:59:59.9999Z") == -1


def test_time_without_offset_is_utc_in_any_time_zone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert to_epoch_ms("2024-06-06T12:00:00") == NOON_MS
    finally:
        monkeypatch.undo()
        time.tzset()


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
def test_unit_of_an_epoch_is_recognized_by_its_size(sent, date_ms):
    assert to_epoch_ms(sent) == date_ms


def test_date_is_implausible_before_2000_or_a_day_ahead():
    assert is_implausible_ms(946_684_799_999, RECEIVED_MS)
    assert not is_implausible_ms(946_684_800_000, RECEIVED_MS)
    assert not is_implausible_ms(RECEIVED_MS + DAY_MS, RECEIVED_MS)
    assert is_implausible_ms(RECEIVED_MS + DAY_MS + 1, RECEIVED_MS)


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
def test_numbers_become_text_up_to_a_bound(value, text):
    assert as_text(value) == text


def test_64_bit_range_is_that_of_a_signed_reader():
    assert within_64_bits(-(2**63))
    assert within_64_bits(2**63 - 1)
    assert not within_64_bits(-(2**63) - 1)
    assert not within_64_bits(2**63)


def test_json_text_repairs_what_msgspec_cannot_encode():
    value = {"b": [None, True, 1.5, math.nan, -math.inf, "\ud800", 2**1024, {"z": 1, "\ud800": 2}], "a": 2**1024 - 1}
    expected = f'{{"a":{2**1024 - 1},"b":[null,true,1.5,null,null,"\ufffd",null,{{"z":1,"\ufffd":2}}]}}'
    assert json_text(value) == expected


def test_integer_beyond_64_bits_is_text_beyond_1024_left_out():
    mapped = map_one(track(properties={"large": 2**64, "larger": 2**1024}))
    assert mapped.intents[0].body["attributes"] == {"large": str(2**64)}
    assert changes_by_field(mapped)["attributes.large"] == "sent as text: beyond 64 bits"
    assert changes_by_field(mapped)["attributes.larger"] == "left out: beyond 1,024 bits"


@pytest.mark.parametrize("properties", [[1], "text", 7, True])
def test_properties_that_are_not_an_object_are_reported(properties: object):
    mapped = map_one(track(properties=properties))
    assert mapped.intents[0].body["attributes"] == {}
    assert "not an object" in changes_by_field(mapped)["attributes"]


def test_broken_text_is_reported_wherever_it_is_sent():
    toml = '[mapping.fields]\nglobalContext = "properties.where"\n[people]\nusers = "upsert"\naccounts = "upsert"\n'
    person = identify({"address": {"city": "a\ufffd"}, "account_id": "b\ufffd"}) | {"userId": "c\ufffd"}
    assert {"identifyId", "accountId", "user.city"} <= set(changes_by_field(map_one(person, toml)))
    assert "accountId" in changes_by_field(map_one(group("b\ufffd"), toml))
    assert "globalContext" in changes_by_field(map_one(track(properties={"where": {"k": "\ufffd"}}), toml))


def test_a_source_is_named_by_its_position_or_its_product():
    config = load_text('[px]\nproperty_key = "AP-XXXXXXXXXX-2"')
    settings = compile_settings(
        config, {b"a": 3, b"b": 5, b"c": 7}, {3: "AP-YYYYYYYYYY-2", 5: "", 7: "AP-YYYYYYYYYY-2"}
    )
    assert [settings.sources_named(str(position)) for position in range(4)] == [(3,), (5,), (7,), ()]
    assert settings.sources_named("AP-YYYYYYYYYY-2") == (3, 7)
    assert settings.sources_named("AP-XXXXXXXXXX-2") == (0, 5)  # what names no product of its own uses the one of [px]
    assert settings.sources_named("AP-ZZZZZZZZZZ-2") == ()
    live = LiveSettings(settings)
    assert live.now is settings
    live.replace(other := compile_settings(config, {}, {}))
    assert live.now is other

"""Dates, ids and nested values as PX takes them."""

import time

import pytest
from mapping_help import RECEIVED_MS, attributes, body, map_one, track, whats

from sidecar.mapping.values import as_text, to_epoch_ms

NOON_MS = 1_717_675_200_000  # 2024-06-06T12:00:00Z


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
def test_every_form_of_timestamp_becomes_epoch_milliseconds(sent: object, date_ms: int):
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
def test_an_unreadable_timestamp_gives_way_to_the_next_and_is_reported(sent: object):
    mapped = map_one(track(timestamp=sent, originalTimestamp="2024-06-06T12:00:00Z"))
    assert mapped.intents[0].body["date"] == NOON_MS
    assert "cannot be read" in whats(mapped)["date"]
    assert body(track(timestamp=sent))["date"] == RECEIVED_MS


@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_timestamp_gives_way_silently(missing: object):
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
def test_an_absurd_date_becomes_the_time_of_receipt_and_is_reported(sent: object):
    mapped = map_one(track(timestamp=sent, originalTimestamp="2024-06-06T12:00:00Z"))
    assert mapped.intents[0].body["date"] == RECEIVED_MS
    assert "received" in whats(mapped)["date"]


def test_a_clock_that_is_hours_ahead_and_an_import_of_old_events_are_not_absurd():
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
def test_ids_are_texts_and_numbers_written_out(sent: object, text: str | None):
    assert as_text(sent) == text


def test_values_of_attributes_keep_their_types():
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


def test_nested_values_become_compact_json_text_with_sorted_keys():
    assert attributes({"n": {"b": [1, {"z": None, "a": "ü"}], "a": True}, "l": [2, 1], "e": {}}) == {
        "n": '{"a":true,"b":[1,{"a":"ü","z":null}]}',
        "l": "[2,1]",
        "e": "{}",
    }


def test_what_json_cannot_express_never_leaves():
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
    assert whats(mapped) == dict.fromkeys(("attributes.nan", "attributes.inf"), "left out: not a finite number")


def test_nested_keys_that_come_out_the_same_are_settled_alike_in_any_order():
    pairs = [("\ud800", 1), ("\ud801", 2)]
    for nested in (dict(pairs), dict(reversed(pairs))):
        assert attributes({"n": nested}) == {"n": '{"\ufffd":1}'}


def test_integers_beyond_64_bits_are_sent_as_text_and_reported():
    mapped = map_one(track(properties={"big": 2**63, "fits": 2**63 - 1, "low": -(2**63), "huge": 10**400}))
    assert mapped.intents[0].body["attributes"] == {"big": "9223372036854775808", "fits": 2**63 - 1, "low": -(2**63)}
    assert set(whats(mapped)) == {"attributes.big", "attributes.huge"}


def test_dates_before_the_epoch_round_down():
    assert to_epoch_ms("1969-12-31T23:59:59.9999Z") == -1


def test_a_time_without_an_offset_is_utc_wherever_the_host_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert to_epoch_ms("2024-06-06T12:00:00") == NOON_MS
    finally:
        monkeypatch.undo()
        time.tzset()

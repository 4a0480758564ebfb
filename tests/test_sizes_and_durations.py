"""Durations and sizes are read from text, and formatted for display."""

import pytest

from sidecar.units import parse_duration_s, parse_size_bytes, show_duration, show_size


@pytest.mark.parametrize("text", ["10000001d", "9" * 400 + "h"])
def test_a_duration_that_no_stored_time_can_hold_is_refused(text: str):
    assert parse_duration_s("10000000d") == 864e9
    with pytest.raises(ValueError, match='is too long; write at most "10000000d"'):
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["4194305TiB", "9" * 400])
def test_a_size_that_no_stored_number_can_hold_is_refused(text: str):
    assert parse_size_bytes("4194304TiB") == 2**62
    with pytest.raises(ValueError, match='is too much; write at most "4194304TiB"'):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.012, "12ms"), (4.2, "4.2s"), (60, "1m"), (90, "1m 30s"), (3600, "1h"), (4980, "1h 23m"), (180_000, "2d 2h")],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str):
    assert show_duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9997, "1.0s"), (59.97, "1m"), (59.9, "59.9s"), (3599.8, "1h")])
def test_a_duration_rounds_up_to_the_next_unit(seconds: float, text: str):
    """59.97 s was once written as "60.0s"."""
    assert show_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(12, "12 B"), (980 * 1024, "980 KiB"), (3 * 2**29, "1.5 GiB"), (900 * 2**40, "900 TiB")]
)
def test_a_size_has_three_digits(size_bytes: int, text: str):
    assert show_size(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(int(999.7 * 2**10), "0.976 MiB"), (int(999.7 * 2**30), "0.976 TiB"), (2_000 * 2**40, "2,000 TiB")],
)
def test_a_size_rounds_up_to_the_next_unit(size_bytes: int, text: str):
    """999.7 KiB was once written as "1e+03 KiB"."""
    assert show_size(size_bytes) == text

"""What the history for `trace` and `names` costs; the rates are measured by `python -m benchmarks.history`."""

from pathlib import Path

from benchmarks.history import bytes_with_and_without


def test_the_history_costs_at_most_a_tenth_of_the_disk(tmp_path: Path):
    whole, bare = bytes_with_and_without(tmp_path / "outbox.db", 5_000)
    assert bare < whole <= 1.10 * bare

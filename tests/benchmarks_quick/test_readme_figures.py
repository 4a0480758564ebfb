"""The figures that README.md shows are those of the run that lies beside the pictures."""

import re
from pathlib import Path

import msgspec

from benchmarks.results import Results
from benchmarks.targets import alternatives_as_markdown, peers_as_markdown, targets_as_markdown

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = msgspec.json.decode((ROOT / "benchmarks" / "results" / "results.json").read_bytes(), type=Results)


def test_the_tables_are_those_of_the_full_run():
    assert RESULTS.quick is False
    assert targets_as_markdown(RESULTS) in README
    assert alternatives_as_markdown(RESULTS) in README
    assert peers_as_markdown(RESULTS) in README


def test_every_benchmark_is_in_the_run():
    assert {figure.benchmark for figure in RESULTS.figures} == {
        "ceiling",
        "ingest",
        "cost",
        "scale",
        "recovery",
        "alternatives",
    }


def test_the_pictures_are_there_and_small():
    shown = re.findall(r"\]\((benchmarks/results/\w+\.png)\)", README)
    assert len(shown) == 2
    for path in shown:
        assert 5_000 < (ROOT / path).stat().st_size <= 60_000

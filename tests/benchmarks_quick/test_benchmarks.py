"""The benchmarks measure what they say: run for real, in sizes whose timings mean nothing and fail nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Figures that every run has to bring, whatever their values.
EXPECTED = {
    "cost": {
        "CPU per delivered event, whole process, 190/s, PX 100 ms",
        "resident memory, idle",
        "wake-ups per second, idle",
        "CPU per accepted event, alone, 64 connections",
    },
    "fleet": {
        "2 busy hosts: used",
        "2 busy hosts: largest second at the receiver",
        "2 busy hosts: smallest share against the mean",
        "2 busy hosts: calls to the engine",
        "2 idle hosts: added to the latency of one event, median",
    },
    "recovery": {
        "from kill -9 to accepting again",
        "from kill -9 to the next delivery",
        "events lost in 2 kills under load",
    },
    "scale": {
        "3,000 pending: start to ready",
        "3,000 pending: drain rate, default pace",
        "3,000 pending: px-sidecar status",
    },
}


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_benchmark_reports_its_figures_with_targets(name, tmp_path):
    if name == "fleet" and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("neither redis-server nor valkey-server is installed")
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["quick"] is True
    assert found["machine"]["cores"] >= 1
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert EXPECTED[name] <= figures.keys()
    for figure in figures.values():
        assert figure["benchmark"] == name
        assert figure["measured"] >= 0
        assert figure["unit"]
        assert (figure["met"] is None) == (figure.get("target") is None)
        if figure.get("limit"):
            assert figure["ratio"] == pytest.approx(figure["measured"] / figure["limit"])
    assert any(figure["met"] is not None for figure in figures.values())
    lost = [figure["measured"] for figure in figures.values() if "lost" in figure["name"]]
    assert not any(lost)


def test_an_unknown_benchmark_is_a_usage_error():
    command = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ceiling" in done.stderr

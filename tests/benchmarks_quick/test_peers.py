"""The parts of `python -m benchmarks peers` that need neither Go nor a collector."""

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks import collector, peers
from benchmarks.load import Load, request
from benchmarks.peers import Arrival, outcome
from benchmarks.results import Results
from benchmarks.rig import open_rig
from benchmarks.targets import peers_as_markdown


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder with the programs that the benchmark finds; the cache is beside it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return programs


def _install_go(programs: Path, script: str) -> None:
    (programs / "go").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (programs / "go").chmod(0o755)


def _body(load: Load) -> dict:
    return json.loads(request(load, 7).partition(b"\r\n\r\n")[2])


def test_both_forms_carry_the_same_event():
    track = _body(Load(address=""))
    (resource,) = _body(Load(address="", form="otlp", batch=2))["resourceLogs"]
    first, second = resource["scopeLogs"][0]["logRecords"]
    values = {pair["key"]: next(iter(pair["value"].values())) for pair in first["attributes"]}
    expected = track["properties"] | {name: track[name] for name in ("userId", "messageId")}
    assert values == expected | {"groupId": track["context"]["groupId"], "row_count": "1500"}
    assert first["body"]["stringValue"] == track["event"]
    assert first["attributes"] != second["attributes"]


def test_an_outcome_counts_refused_repeated_and_missing_events():
    arrivals = [
        Arrival(0.0, 200, ("a",)),
        Arrival(0.2, 429, ("b",)),
        Arrival(0.9, 429, ("c",)),
        Arrival(12.0, 200, ("b", "c")),
        Arrival(14.0, 200, ("b",)),
    ]
    assert outcome(arrivals, offered=5, error_end_s=10.0) == (2.0, 3, 1, 2)
    assert outcome([], offered=5, error_end_s=10.0).lost == 5


def test_the_stand_in_answers_errors_for_a_while_and_keeps_the_ids():
    with open_rig() as rig:
        peers.start_sink(rig, 429, (0.0, 60.0))
        body = request(Load(address="", form="otlp"), 1).partition(b"\r\n\r\n")[2]
        assert rig.ask(rig.sandbox_port, "/v1/logs", "POST", body)[0] == 429
        assert rig.ask(rig.sandbox_port, "/stored") == (200, b"0")
        (arrival,) = msgspec.json.decode(rig.ask(rig.sandbox_port, "/arrivals")[1], type=list[Arrival])
    assert arrival.status == 429
    assert [message_id.encode() in body for message_id in arrival.ids] == [True]


def test_peers_without_go_is_skipped_with_a_reason(cache):
    lines: list[str] = []
    results = Results(machine={})
    peers.run(results, lines.append, quick=True)
    assert [line.partition(";")[0] for line in lines] == ["skipped: go is not installed"]
    assert results.figures == []
    assert "go is not installed" in results.series["peers"]["skipped"]


def test_a_failed_build_is_skipped_with_what_go_said(cache):
    _install_go(cache, "echo 'module lookup disabled' >&2; exit 1")
    with pytest.raises(collector.Skipped, match="module lookup disabled"):
        collector.build(lambda text: None)


def test_a_built_collector_is_reused_until_its_manifest_changes(cache, monkeypatch):
    lines: list[str] = []
    _install_go(cache, "mkdir out && echo program > out/otelcol")
    program = collector.build(lines.append)
    assert program.read_text() == "program\n"
    assert collector.build(lines.append) == program
    assert len(lines) == 1
    monkeypatch.setattr(collector, "MANIFEST", "another one")
    collector.build(lines.append)
    assert len(lines) == 2


def test_the_table_of_peers_has_both_in_a_row():
    results = Results(machine={})
    assert peers_as_markdown(results) == ""
    values = peers.Values()
    for label, rate in ((peers.SIDECAR, 300.0), (peers.COLLECTOR, 100.0)):
        values.add(peers.SINGLES, "events/s", peers.Peer(label, "", None), rate)
    peers.add_figures(results, values)
    assert (results.figures[0].ratio, results.figures[0].met) == (3.0, True)
    assert peers_as_markdown(results).splitlines()[-1] == f"| {peers.SINGLES} | 300 events/s | 100 events/s |"

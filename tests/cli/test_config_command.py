"""``px-sidecar config``: the effective configuration with secrets masked, and the files for other programs."""

import json
import re
import sys
import tomllib

import pytest
from click.testing import CliRunner

from sidecar.cli import main

FILE = """
[px]
api_key = "MARKED-api-key"
property_key = "AP-ABCDEFGHIJ-2"

[[source]]
write_key = "MARKED-write-key"

[mapping.events]
"Products Searched" = "Searched"

[deliver]
per_second = 50
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    monkeypatch.setenv("PX_SIDECAR_CONFIG", str(path))
    monkeypatch.setenv("PX_SIDECAR_PX_REGION", "eu")

    def runner(*arguments):
        return CliRunner().invoke(main, ["config", *arguments])

    runner.path = path
    return runner


def test_show_is_valid_toml_and_names_the_origin_of_values(run):
    result = run("show")
    assert result.exit_code == 0
    shown = tomllib.loads(result.stdout)
    assert shown["px"]["region"] == "eu"
    assert shown["deliver"]["per_second"] == 50
    assert shown["deliver"]["max_in_flight"] == 128
    assert shown["outbox"]["keep_dead"] == "30d"
    assert shown["mapping"]["events"] == {"Products Searched": "Searched"}
    lines = result.stdout.splitlines()
    assert 'region = "eu"  # PX_SIDECAR_PX_REGION' in lines
    assert f"per_second = 50  # {run.path} line 13" in lines or f"per_second = 50.0  # {run.path} line 13" in lines
    assert f"[mapping.events]  # {run.path} line 9" in lines
    assert "max_in_flight = 128" in lines


def test_show_as_json_has_the_tables_and_their_origins(run):
    result = run("show", "--json")
    shown = json.loads(result.stdout)
    assert set(shown) == {
        *("px", "listen", "source", "outbox", "deliver", "fleet", "mapping", "people", "identity", "log"),
        "origin",
    }
    assert shown["px"]["region"] == "eu"
    assert shown["origin"] == {
        "px.api_key": f"{run.path} line 3",
        "px.property_key": f"{run.path} line 4",
        "px.region": "PX_SIDECAR_PX_REGION",
        "source": f"{run.path} line 6",
        "mapping.events": f"{run.path} line 9",
        "deliver.per_second": f"{run.path} line 13",
    }


@pytest.mark.parametrize("arguments", [("show",), ("show", "--json")])
def test_secrets_are_masked(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert "MARKED" not in result.output
    assert "****" in result.output


def test_without_a_file_the_defaults_are_shown(run, monkeypatch, tmp_path):
    monkeypatch.delenv("PX_SIDECAR_CONFIG")
    monkeypatch.delenv("PX_SIDECAR_PX_REGION")
    monkeypatch.setattr(sys.modules["sidecar.config.file"], "DEFAULT_PATH", str(tmp_path / "none.toml"))
    shown = json.loads(run("show", "--json").stdout)
    assert shown["origin"] == {}
    assert shown["listen"]["http"] == "127.0.0.1:8321"


def test_an_invalid_file_exits_78_with_one_sentence(run):
    run.path.write_text("[deliver]\nper_secnd = 1\n")
    result = run("show")
    assert result.exit_code == 78
    assert result.stdout == ""
    assert "per_second" in result.stderr


def test_a_missing_file_is_named(run, tmp_path):
    result = run("show", "--config", str(tmp_path / "other.toml"))
    assert result.exit_code == 78
    assert "other.toml" in result.stderr


def test_the_schema_has_defaults_and_refuses_unknown_keys(run):
    schema = json.loads(run("schema").stdout)
    assert schema["properties"]["deliver"]["properties"]["per_second"]["default"] == 190
    assert schema["additionalProperties"] is False


def test_the_reference_can_be_limited_to_keys(run):
    shown = run("reference", "deliver.retry")
    assert re.findall(r"^deliver\.\w+", shown.stdout, re.MULTILINE) == ["deliver.retry_initial", "deliver.retry_max"]
    assert [entry["key"] for entry in json.loads(run("reference", "log", "--json").stdout)] == [
        "log.level",
        "log.format",
    ]
    assert "| `api_key_file` |" in run("reference", "--markdown").stdout


def test_an_unknown_key_of_the_reference_names_the_nearest(run):
    result = run("reference", "deliver.per_secnd")
    assert result.exit_code == 2
    assert "the nearest known key is 'deliver.per_second'" in result.stderr


def test_the_dashboard_can_be_imported(run):
    board = json.loads(run("dashboard").stdout)
    assert board["title"] == "px-sidecar"
    assert board["panels"]


def test_the_alerts_are_the_same_as_yaml_and_json(run):
    text = run("alerts").stdout
    rules = [rule for group in json.loads(run("alerts", "--json").stdout)["groups"] for rule in group["rules"]]
    assert re.findall(r"- alert: (\w+)", text) == [rule["alert"] for rule in rules]
    assert next(line for line in text.splitlines() if not line.startswith("#")) == "groups:"


def test_schema_dashboard_and_alerts_need_no_configuration(run):
    run.path.write_text("this is not TOML")
    for verb in ("schema", "dashboard", "alerts"):
        assert run(verb).exit_code == 0


@pytest.mark.parametrize("arguments", [(), ("show",), ("schema",), ("reference",), ("dashboard",), ("alerts",)])
def test_help_has_an_example_and_fits_eighty_columns(run, arguments):
    result = run(*arguments, "--help")
    assert result.exit_code == 0
    assert re.search("Examples?:\n", result.stdout)
    assert f"px-sidecar config {arguments[0] if arguments else 'show'}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80

"""The Grafana dashboard, the Prometheus alert rules and the schema of log lines that ship in this package.

The rules are YAML that operators edit. Every string in them is quoted as in JSON, which is also valid YAML, so that
this module reads them without a YAML library.
"""

import json
import re
from importlib.resources import files
from typing import Any

__all__ = ["alert_rules", "alert_rules_yaml", "dashboard", "log_schema"]

_SETTING = re.compile(r"(\s*)(?:- )?(\w+):(?: (.*))?")


def dashboard() -> dict[str, Any]:
    """Return the dashboard, ready to import into Grafana; data source and instances are variables of it."""
    board: dict[str, Any] = json.loads(_text("dashboard.json"))
    return board


def log_schema() -> dict[str, Any]:
    """Return the JSON Schema of a log line in JSON."""
    schema: dict[str, Any] = json.loads(_text("log.schema.json"))
    return schema


def alert_rules_yaml() -> str:
    """Return the alert rules as YAML, for ``rule_files`` in prometheus.yml."""
    return _text("alerts.yml")


def alert_rules() -> dict[str, Any]:
    """Return the alert rules as data, in the shape of a Prometheus rule file."""
    groups: list[dict[str, Any]] = []
    section: dict[str, Any] = {}
    for line in alert_rules_yaml().splitlines():
        match = _SETTING.fullmatch(line)
        if match is None:
            continue  # a comment or an empty line
        name, value = match[2], match[3]
        if name == "name":
            groups.append({"name": value, "rules": []})
        elif name == "alert":
            section = {"alert": value}
            groups[-1]["rules"].append(section)
        elif name in ("labels", "annotations"):
            section = groups[-1]["rules"][-1][name] = {}
        elif value is not None:
            section[name] = json.loads(value) if value.startswith('"') else value
    return {"groups": groups}


def _text(name: str) -> str:
    return files("sidecar.observe").joinpath(name).read_text(encoding="utf-8")

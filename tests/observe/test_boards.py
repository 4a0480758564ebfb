"""The Grafana dashboard and the alert rules use only metrics that exist, and each alert says what to do."""

import json
import re
import shutil
import subprocess

import pytest

from sidecar.observe import FleetSnapshot, Metrics, Snapshot
from sidecar.observe.boards import alert_rules, alert_rules_yaml, dashboard

NAME = re.compile(r"px_sidecar_\w+")
LABELS = re.compile(r"(px_sidecar_\w+)\{([^}]*)\}|by \(([^)]*)\)")


def known_samples():
    """Map the name of each exported sample to its labels."""
    metrics = Metrics(version="1")
    fleet = FleetSnapshot("sharing", False, 1, 0, 190.0, 11.4, 0, 0, 0, 0, False)
    snapshot = Snapshot(counters={}, destination="open", fleet=fleet)
    known = {}
    for line in metrics.render(snapshot).decode().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels = re.findall(r'(\w+)="', rest) if rest else []
            known.setdefault(name.split(" ")[0], set()).update(labels)
    return known


def targets():
    return [target for panel in dashboard()["panels"] for target in panel["targets"]]


def test_the_dashboard_uses_only_metrics_that_exist():
    known = known_samples()
    used = {name for target in targets() for name in NAME.findall(target["expr"])}
    assert used - known.keys() == set()
    assert len(used) > 20


def test_the_alerts_use_only_metrics_that_exist():
    used = {name for rule in rules() for name in NAME.findall(rule["expr"])}
    assert used - known_samples().keys() == set()


def test_queries_use_only_labels_of_their_metric():
    known = known_samples()
    for expression in [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]:
        available = {"instance"}.union(*(known[name] for name in NAME.findall(expression)))
        for _, inside, grouped in LABELS.findall(expression):
            wanted = set(re.findall(r"(\w+)\s*(?:=|!)", inside)) | set(re.findall(r"\w+", grouped))
            assert wanted <= available, expression


def test_the_brackets_of_every_query_are_balanced():
    for expression in [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]:
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_the_dashboard_shows_pace_backlog_outcomes_and_disk():
    shown = " ".join(target["expr"] for target in targets())
    for name in (
        *("ceiling_requests_per_second", "pending_events", "oldest_pending_by_class_age_seconds", "delivery_seconds"),
        *("delivered_events_total", "events_by_name_total", "events_by_source_total", "accountless_events"),
        *("dropped_events_total", "dead_events", "px_request_seconds", "quota_used_requests", "outbox_bytes"),
    ):
        assert f"px_sidecar_{name}" in shown


def test_panels_have_unique_ids_and_do_not_overlap():
    panels = json.loads(json.dumps(dashboard()))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not cells & taken
        taken |= cells


def rules():
    return [rule for group in alert_rules()["groups"] for rule in group["rules"]]


def test_every_alert_has_a_summary_and_an_instruction():
    for rule in rules():
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 40, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_every_way_in_which_delivery_stops_has_an_alert():
    watched = " ".join(rule["expr"] for rule in rules())
    for name in (
        *("oldest_pending_by_class_age_seconds", "paused", "full", "quota_used_requests", "ambiguous_requests_total"),
        *("delivered_events_total", "dead_events", "outbox_set_aside"),
    ):
        assert re.search(rf"px_sidecar_{name}\b", watched), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package: prometheus)")
def test_promtool_accepts_every_rule(tmp_path):
    path = tmp_path / "alerts.yml"
    path.write_text(alert_rules_yaml())
    checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout + checked.stderr

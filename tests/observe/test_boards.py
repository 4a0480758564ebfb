"""What is made for Grafana and Prometheus speaks only of metrics that exist, and says what to do."""

import json
import re

from sidecar.observe import Metrics, Snapshot
from sidecar.observe.alerts import alerts, alerts_yaml
from sidecar.observe.dashboard import dashboard

NAME = re.compile(r"px_sidecar_\w+")
LABELS = re.compile(r"(px_sidecar_\w+)\{([^}]*)\}|by \(([^)]*)\)")


def known_samples():
    """Names of all samples, with the labels that each has."""
    metrics = Metrics(version="1")
    metrics.snapshot = lambda: Snapshot(counters={}, destination="open")
    known = {}
    for line in metrics.render().decode().splitlines():
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


def test_queries_use_only_labels_that_the_metric_has():
    known = known_samples()
    for expression in [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]:
        available = {"instance"}.union(*(known[name] for name in NAME.findall(expression)))
        for _, inside, grouped in LABELS.findall(expression):
            wanted = set(re.findall(r"(\w+)\s*(?:=|!)", inside)) | set(re.findall(r"\w+", grouped))
            assert wanted <= available, expression


def test_brackets_in_every_query_are_balanced():
    for expression in [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]:
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_the_dashboard_shows_what_an_operator_asks_for_at_night():
    shown = " ".join(target["expr"] for target in targets())
    for name in (
        *("ceiling_requests_per_second", "pending_events", "oldest_pending_age_seconds", "delivered_events_total"),
        *("dropped_events_total", "dead_events", "px_request_seconds", "quota_used_requests", "outbox_bytes"),
    ):
        assert f"px_sidecar_{name}" in shown


def test_panels_are_numbered_and_do_not_overlap():
    panels = json.loads(json.dumps(dashboard()))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def rules():
    return [rule for group in alerts()["groups"] for rule in group["rules"]]


def test_every_alert_says_what_happened_and_what_to_do():
    for rule in rules():
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 40, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_there_is_an_alert_for_each_way_in_which_delivery_ends():
    watched = " ".join(rule["expr"] for rule in rules())
    for name in (
        *("oldest_pending_age_seconds", "paused", "full", "quota_used_requests", "ambiguous_requests_total"),
        *("delivered_events_total", "dead_events", "outbox_set_aside"),
    ):
        assert re.search(rf"px_sidecar_{name}\b", watched), name


def test_the_yaml_holds_the_same_rules():
    """Read with as much of YAML as it uses: mappings by indentation, lists, and texts quoted as in JSON."""
    found = []
    for line in alerts_yaml().splitlines():
        key, _, value = line.strip().removeprefix("- ").partition(": ")
        text = json.loads(value) if value.startswith('"') else value
        if key == "alert":
            found.append({"alert": text})
        elif key in ("expr", "for"):
            found[-1][key] = text
        elif key in ("severity", "summary", "description"):
            found[-1].setdefault("labels" if key == "severity" else "annotations", {})[key] = text
    assert found == rules()

"""The Grafana dashboard that ``px-sidecar config dashboard`` prints, made from one table of panels.

The data source and the instances are variables of the dashboard, so that it can be imported anywhere as it is.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = ["dashboard"]

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24  # Grafana's grid


class Panel(NamedTuple):
    """A panel: its queries with their legends, the unit in Grafana's words, and what it tells."""

    title: str
    unit: str
    about: str
    queries: Sequence[tuple[str, str]]


# "$i" stands for the instances chosen on the dashboard.
STATS: Final = (
    Panel("Delivery", "none", "open, waiting, probing or paused.", [("px_sidecar_destination_state{$i} == 1", "{{state}}")]),
    Panel("Waiting events", "short", "Accepted and not settled.", [("sum(px_sidecar_pending_events{$i})", "pending")]),
    Panel("Oldest waits", "s", "Age of the oldest pending event.", [("max(px_sidecar_oldest_pending_age_seconds{$i})", "oldest")]),
    Panel(
        *("Last delivery", "s", "Time since PX last confirmed an event."),
        [("time() - max(px_sidecar_last_delivery_timestamp_seconds{$i} > 0)", "ago")],
    ),
    Panel(
        *("Day spent", "percentunit", "Share of the day's requests that are used."),
        [("max(px_sidecar_quota_used_requests{$i} / px_sidecar_quota_limit_requests{$i})", "used")],
    ),
    Panel("Dead letters", "short", "Kept until they are replayed or discarded.", [("sum(px_sidecar_dead_events{$i})", "dead")]),
)  # fmt: skip

GRAPHS: Final = (
    Panel(
        *("Rate and ceiling", "reqps", "Requests to PX, the pace it allows at the moment, and the pace never exceeded."),
        [
            ("sum(rate(px_sidecar_px_requests_total{$i}[$__rate_interval]))", "requests"),
            ("sum(rate(px_sidecar_delivered_events_total{$i}[$__rate_interval]))", "delivered"),
            ("sum(px_sidecar_pace_requests_per_second{$i})", "pace"),
            ("sum(px_sidecar_ceiling_requests_per_second{$i})", "ceiling"),
        ],
    ),
    Panel(
        *("Backlog", "short", "Pending events by class; high goes first."),
        [("sum by (class) (px_sidecar_pending_events{$i})", "{{class}}")],
    ),
    Panel(
        *("Outcomes", "eps", "What becomes of events. Dropped means that by a rule there is nothing to send."),
        [
            ("sum(rate(px_sidecar_accepted_events_total{$i}[$__rate_interval]))", "accepted"),
            ("sum(rate(px_sidecar_delivered_events_total{$i}[$__rate_interval]))", "delivered"),
            ("sum by (reason) (rate(px_sidecar_dropped_events_total{$i}[$__rate_interval])) > 0", "dropped: {{reason}}"),
            ("sum(rate(px_sidecar_repeated_events_total{$i}[$__rate_interval]))", "repeated"),
        ],
    ),
    Panel(
        *("Oldest pending event", "s", "Grows while delivery is slower than what comes in."),
        [("max by (instance) (px_sidecar_oldest_pending_age_seconds{$i})", "{{instance}}")],
    ),
    Panel(
        *("Answers of PX", "reqps", "Requests by class of the status; unknown ones may become duplicates."),
        [("sum by (answer) (rate(px_sidecar_px_requests_total{$i}[$__rate_interval])) > 0", "{{answer}}")],
    ),
    Panel(
        *("Latency of PX", "s", "From the begin of sending to the answer."),
        [
            (f"histogram_quantile({share}, sum by (le) (rate(px_sidecar_px_request_seconds_bucket{{$i}}[$__rate_interval])))", name)
            for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
        ],
    ),
    Panel(
        *("Latency of our answers", "s", "From the last byte of a request to its answer, and the commit in it."),
        [
            (f"histogram_quantile({share}, sum by (le) (rate(px_sidecar_{name}_seconds_bucket{{$i}}[$__rate_interval])))", legend)
            for share, name, legend in ((0.5, "answer", "median"), (0.99, "answer", "99 %"), (0.99, "commit", "commit, 99 %"))
        ],
    ),
    Panel(
        *("Refused requests", "reqps", "By code; the app sees the same code in its answer."),
        [("sum by (code) (rate(px_sidecar_refused_requests_total{$i}[$__rate_interval])) > 0", "{{code}}")],
    ),
    Panel(
        *("Quota of the day", "short", "Requests spent, and how many the day has."),
        [("px_sidecar_quota_used_requests{$i}", "used, {{instance}}"), ("px_sidecar_quota_limit_requests{$i}", "limit, {{instance}}")],
    ),
    Panel(
        *("Dead letters", "short", "By reason; `px-sidecar dead list` shows them."),
        [("sum by (reason) (px_sidecar_dead_events{$i}) > 0", "{{reason}}")],
    ),
    Panel(
        *("Disk", "bytes", "Room that the events take, what they may take, and the write-ahead log."),
        [
            ("px_sidecar_outbox_bytes{$i}", "outbox, {{instance}}"),
            ("px_sidecar_outbox_limit_bytes{$i}", "limit, {{instance}}"),
            ("px_sidecar_wal_bytes{$i}", "log, {{instance}}"),
        ],
    ),
    Panel(
        *("Connections to PX", "short", "Open, carrying a request, and events sent but not settled."),
        [
            ("sum(px_sidecar_lanes_open{$i})", "open"),
            ("sum(px_sidecar_lanes_in_use{$i})", "in use"),
            ("sum(px_sidecar_in_flight_events{$i})", "in flight"),
        ],
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    stat_width, graph_width = WIDTH // len(STATS), WIDTH // 2
    panels = [_stat(panel, index * stat_width, stat_width) for index, panel in enumerate(STATS)]
    panels += [
        _graph(panel, x=index % 2 * graph_width, y=4 + index // 2 * 8, width=graph_width)
        for index, panel in enumerate(GRAPHS)
    ]
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "px-sidecar",
        "uid": "px-sidecar",
        "tags": ["px-sidecar"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source_variable(), _instance_variable()]},
        "panels": panels,
    }


def _stat(panel: Panel, x: int, width: int) -> dict[str, Any]:
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "none"}
    if panel.unit == "none":  # the series' name is the answer, its value is always 1
        options["textMode"] = "name"
    return _panel(panel, "stat", {"x": x, "y": 0, "w": width, "h": 4}) | {"options": options}


def _graph(panel: Panel, *, x: int, y: int, width: int) -> dict[str, Any]:
    options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return _panel(panel, "timeseries", {"x": x, "y": y, "w": width, "h": 8}) | {"options": options}


def _panel(panel: Panel, kind: str, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.replace("$i", 'instance=~"$instance"'),
                "legendFormat": legend,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def _instance_variable() -> dict[str, Any]:
    query = "label_values(px_sidecar_build_info, instance)"
    return {
        "type": "query",
        "name": "instance",
        "label": "Instance",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "refresh": 2,  # with the time range, so that new hosts appear
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }

"""The Prometheus alert rules that ``px-sidecar config alerts`` prints, made from one table.

Each rule says what has happened and what to do; a rule nobody can act upon is not here. Thresholds are meant to be
changed by whoever knows how much delay matters.
"""

import json
from typing import Any, Final, NamedTuple

__all__ = ["alerts", "alerts_yaml"]


class Alert(NamedTuple):
    """A rule: when it fires, after how long, how bad it is, what it says, and what to do."""

    name: str
    expression: str
    after: str
    severity: str
    summary: str
    what_to_do: str


ALERTS: Final = (
    Alert(
        *("PxSidecarNotScraped", "absent(px_sidecar_build_info)", "5m", "critical"),
        "No px-sidecar is scraped.",
        "See `systemctl status px-sidecar`, and whether Prometheus reaches /metrics. While the sockets are open, apps wait and lose nothing.",
    ),
    Alert(
        *("PxSidecarRefusesEvents", "px_sidecar_full == 1", "1m", "critical"),
        "Events are refused on {{ $labels.instance }}: {{ $labels.code }}.",
        "disk_full: make room on the disk of the outbox. outbox_full: find out with `px-sidecar status` why delivery is behind, or raise outbox.max_bytes. Apps get 503 and should send again.",
    ),
    Alert(
        "PxSidecarOutboxFillsUp",
        "px_sidecar_outbox_bytes / (px_sidecar_outbox_limit_bytes > 0) > 0.8",
        *("10m", "warning"),
        "The outbox of {{ $labels.instance }} holds {{ $value | humanizePercentage }} of what it may.",
        "See with `px-sidecar status` whether delivery keeps up; raise outbox.max_bytes if the disk has room, before events are refused.",
    ),
    Alert(
        *("PxSidecarPaused", "px_sidecar_paused == 1", "5m", "critical"),
        "Delivery is paused on {{ $labels.instance }}.",
        "`px-sidecar status` says who paused it. After a wrong key or region correct it and restart the service; `px-sidecar resume` ends a pause of an operator. Nothing is lost meanwhile.",
    ),
    Alert(
        "PxSidecarDeliversNothing",
        "(sum without (class) (px_sidecar_pending_events) > 0)"
        " and rate(px_sidecar_delivered_events_total[15m]) == 0 and px_sidecar_paused == 0"
        " and px_sidecar_quota_used_requests < px_sidecar_quota_limit_requests - px_sidecar_quota_reserve_requests",
        *("15m", "critical"),
        "{{ $value }} events wait on {{ $labels.instance }} and none is delivered.",
        "`px-sidecar status` tells the last problem; `px-sidecar check --live` tests network, proxy, region and key.",
    ),
    Alert(
        *("PxSidecarEventsWaitLong", "px_sidecar_oldest_pending_age_seconds > 3600", "10m", "warning"),
        "The oldest event on {{ $labels.instance }} has waited for {{ $value | humanizeDuration }}.",
        "`px-sidecar status` tells how long the backlog takes to drain. If it only grows, more comes in than the pace or the day allows: have events dropped by the mapping, or ask PX for a higher limit.",
    ),
    Alert(
        "PxSidecarQuotaSpent",
        "(px_sidecar_quota_used_requests >= px_sidecar_quota_limit_requests - px_sidecar_quota_reserve_requests)"
        " and (sum without (class) (px_sidecar_pending_events) > 0)",
        *("5m", "warning"),
        "The day's requests are spent on {{ $labels.instance }}; events wait.",
        "Delivery goes on by itself as the day frees requests. If this returns, drop events that nobody needs in mapping.events, or set deliver.per_day to a higher limit that PX has granted.",
    ),
    Alert(
        "PxSidecarUnclearAnswers",
        "rate(px_sidecar_ambiguous_requests_total[15m])"
        " / (sum without (answer) (rate(px_sidecar_px_requests_total[15m])) > 0) > 0.01",
        *("15m", "warning"),
        "{{ $value | humanizePercentage }} of the requests on {{ $labels.instance }} got no readable answer.",
        "Each may be in PX twice. Look for a proxy or firewall that cuts connections, and compare the latency of PX with deliver.timeout.",
    ),
    Alert(
        "PxSidecarDeadLetters",
        "sum without (reason) (px_sidecar_dead_events)"
        " - sum without (reason) (px_sidecar_dead_events offset 1h) > 0",
        *("0m", "warning"),
        "{{ $value }} events became dead letters within an hour on {{ $labels.instance }}.",
        "`px-sidecar dead list` says why; correct the cause, then `px-sidecar dead retry`. They are kept for outbox.keep_dead.",
    ),
    Alert(
        "PxSidecarRefusesRequests",
        'rate(px_sidecar_refused_requests_total{code!~"outbox_full|disk_full|busy"}[15m]) > 0',
        *("15m", "warning"),
        "Requests are refused on {{ $labels.instance }}: {{ $labels.code }}.",
        "An app sends what cannot be taken and will not succeed by trying again. The log names the error; unknown_write_key means that the key has no [[source]] in the configuration.",
    ),
    Alert(
        *("PxSidecarLogGrows", "px_sidecar_wal_bytes > 268435456", "15m", "warning"),
        "The write-ahead log on {{ $labels.instance }} has grown to {{ $value | humanize1024 }}B.",
        "Something else has the outbox file open, such as a backup or a forgotten shell: find it with `fuser`, and close it.",
    ),
    Alert(
        *("PxSidecarOutboxSetAside", "px_sidecar_outbox_set_aside == 1", "0m", "critical"),
        "A damaged outbox was set aside on {{ $labels.instance }}.",
        "Events that could be read go on as usual. `px-sidecar status` names the file; test the disk, and keep the file until you know what was lost.",
    ),
)  # fmt: skip


def alerts() -> dict[str, Any]:
    """The rules as data, in the shape of a Prometheus rule file."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.after,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.what_to_do},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "px-sidecar", "rules": rules}]}


def alerts_yaml() -> str:
    """``alerts`` as YAML for people to edit. Texts are quoted as in JSON, which YAML reads alike."""
    lines = ["# Alert rules of px-sidecar, for rule_files in prometheus.yml. Change thresholds to what matters to you."]
    for group in alerts()["groups"]:
        lines += ["groups:", f"  - name: {group['name']}", "    rules:"]
        for rule in group["rules"]:
            lines += [
                "",
                f"      - alert: {rule['alert']}",
                f"        expr: {_quoted(rule['expr'])}",
                f"        for: {rule['for']}",
            ]
            for section in ("labels", "annotations"):
                lines.append(f"        {section}:")
                lines += [f"          {name}: {_quoted(text)}" for name, text in rule[section].items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

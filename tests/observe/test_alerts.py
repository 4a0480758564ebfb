"""Each alert fires when its cause is there, not before its time, and clears when the cause is gone (`promtool test rules`)."""

import json
import shutil
import subprocess
from typing import NamedTuple

import pytest

from sidecar.observe.boards import alert_rules, alert_rules_yaml

WHERE = 'instance="a:8321",job="px-sidecar"'
RULES = {rule["alert"]: rule for group in alert_rules()["groups"] for rule in group["rules"]}


class Case(NamedTuple):
    """Series, and the minutes at which the alert is quiet, fires, and is quiet again.

    A series is ``NAME`` or ``NAME{LABELS}``, without instance and job unless it names them; its values are in promtool's
    notation, one a minute: ``0x9`` is 0 ten times, ``0+60x9`` grows by 60, ``_x9`` are ten missing values.
    """

    series: dict[str, str]
    quiet: int
    fires: int
    clears: int


CASES = {
    "PxSidecarNotScraped": Case({"build_info": "1x9 _x19 1x30"}, 9, 25, 40),
    "PxSidecarRefusesEvents": Case({'full{code="disk_full"}': "0x9 1x9 0x20"}, 9, 15, 25),
    "PxSidecarDiskFails": Case({'refused_requests_total{code="disk_error"}': "0x9 0+60x29 1740x40"}, 9, 25, 60),
    "PxSidecarOutboxFillsUp": Case({"outbox_bytes": "70x9 90x19 70x20", "outbox_limit_bytes": "100x60"}, 12, 25, 35),
    "PxSidecarPaused": Case({"paused": "0x9 1x19 0x20"}, 12, 20, 35),
    "PxSidecarDeliversNothing": Case(
        {
            'pending_events{class="normal"}': "0x4 5x59 0x40",
            "delivered_events_total": "0x100",
            "paused": "0x100",
            "quota_used_requests": "5x100",
            "quota_limit_requests": "100x100",
            "quota_reserve_requests": "10x100",
        },
        19,
        45,
        70,
    ),
    "PxSidecarEventsWaitLong": Case(
        {
            'oldest_pending_by_class_age_seconds{class="normal"}': "10x9 4000x29 10x30",
            'oldest_pending_by_class_age_seconds{class="low"}': "90000x70",
        },
        18,
        30,
        45,
    ),
    "PxSidecarHighEventsWait": Case(
        {
            'oldest_pending_by_class_age_seconds{class="high"}': "10x9 1000x29 10x30",
            'oldest_pending_by_class_age_seconds{class="normal"}': "5000x70",
        },
        18,
        30,
        45,
    ),
    "PxSidecarQuotaSpent": Case(
        {
            "quota_used_requests": "10x9 90x29 10x30",
            "quota_limit_requests": "100x70",
            "quota_reserve_requests": "10x70",
            'pending_events{class="normal"}': "5x70",
        },
        13,
        30,
        45,
    ),
    "PxSidecarUnclearAnswers": Case(
        {"ambiguous_requests_total": "0x9 0+30x59 1800x60", 'px_requests_total{answer="2xx"}': "0+600x130"}, 15, 50, 100
    ),
    "PxSidecarDeadLetters": Case({'dead_events{reason="refused"}': "0x9 3x120"}, 9, 30, 80),
    "PxSidecarRefusesRequests": Case(
        {'refused_requests_total{code="unknown_write_key"}': "0x9 0+60x59 3600x60"}, 15, 50, 100
    ),
    "PxSidecarLogGrows": Case({"wal_bytes": "0x9 300000000x29 0x30"}, 20, 35, 50),
    "PxSidecarOutboxSetAside": Case({"outbox_set_aside": "0x9 1x29 0x30"}, 9, 20, 50),
    "PxSidecarFleetAlone": Case({'fleet_state{state="alone"}': "0x9 1x29 0x30"}, 13, 30, 50),
    "PxSidecarFleetProblem": Case({"fleet_problem": "0x9 1x29 0x30"}, 13, 30, 50),
    "PxSidecarFleetMembersDiffer": Case(
        # Split into halves of one size: each host sees as many members as any other.
        {
            'fleet_members{instance="a"}': "2x9 1x29 2x30",
            'fleet_members{instance="b"}': "2x9 1x29 2x30",
            'fleet_state{instance="a",state="sharing"}': "1x70",
            'fleet_state{instance="b",state="sharing"}': "1x70",
        },
        13,
        30,
        50,
    ),
    "PxSidecarFleetEngineAway": Case({'fleet_state{state="sharing"}': "1x9 0x29 1x30"}, 11, 30, 45),
    "PxSidecarFleetClone": Case({"fleet_clone": "0x9 1x29 0x30"}, 10, 30, 45),
    "PxSidecarFleetShareUneven": Case(
        {
            'fleet_slots_total{instance="a"}': "0+600x100",
            'fleet_slots_total{instance="b"}': "0+600x9 6000+60x39 8400+600x60",
            'oldest_pending_age_seconds{instance="a"}': "100x100",
            'oldest_pending_age_seconds{instance="b"}': "100x100",
        },
        15,
        48,
        90,
    ),
    "PxSidecarFleetSlotsLate": Case(
        {"fleet_slots_late_total": "0x9 0+600x49 30000x60", "fleet_slots_total": "0+600x130"}, 15, 45, 100
    ),
}
# What is like the cause and must not fire, over two hours.
HARMLESS = {
    "PxSidecarRefusesRequests": {
        f'refused_requests_total{{code="{code}"}}': "0+60x120"
        for code in ("outbox_full", "disk_full", "disk_error", "busy")
    },
    "PxSidecarQuotaSpent": {
        "quota_used_requests": "95x120",
        "quota_limit_requests": "100x120",
        "quota_reserve_requests": "10x120",
        'pending_events{class="low"}': "5000x120",
        'pending_events{class="normal"}': "0x120",
    },
    "PxSidecarDeliversNothing": {
        'pending_events{class="normal"}': "5x120",
        "delivered_events_total": "0x120",
        "paused": "1x120",
        "quota_used_requests": "5x120",
        "quota_limit_requests": "100x120",
        "quota_reserve_requests": "10x120",
    },
    "PxSidecarEventsWaitLong": {
        'oldest_pending_by_class_age_seconds{class="low"}': "90000x120",
        'oldest_pending_by_class_age_seconds{class="normal"}': "5x120",
    },
    "PxSidecarDeadLetters": {'dead_events{reason="refused"}': "7x120"},
    "PxSidecarUnclearAnswers": {
        "ambiguous_requests_total": "0+1x120",
        'px_requests_total{answer="2xx"}': "0+600x120",
    },
    # A host that the engine refuses since its start sees no members, and one that is alone the last ones it knew.
    "PxSidecarFleetMembersDiffer": {
        'fleet_members{instance="a"}': "1x120",
        'fleet_members{instance="b"}': "0x120",
        'fleet_members{instance="c"}': "8x120",
        'fleet_state{instance="a",state="sharing"}': "1x120",
        'fleet_state{instance="b",state="sharing"}': "0x120",
        'fleet_state{instance="c",state="sharing"}': "0x120",
    },
}


def test_every_alert_has_a_case():
    assert CASES.keys() == RULES.keys()


def promtool(folder, tests: list[dict]) -> None:
    """Run the tests of a rule file. JSON is valid YAML."""
    (folder / "alerts.yml").write_text(alert_rules_yaml())
    path = folder / "rules_test.yml"
    path.write_text(json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def series_of(series: dict[str, str]) -> list[dict[str, str]]:
    given = []
    for name, values in series.items():
        metric, _, labels = name.partition("{")
        labels = labels.removesuffix("}")
        own = labels if "instance=" in labels else ",".join(filter(None, [labels, WHERE]))
        given.append({"series": f"px_sidecar_{metric}{{{own}}}", "values": values})
    return given


def firing(alert: str, minute: int, count: int) -> dict:
    return {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": count}],
    }


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package: prometheus)"
)


@needs_promtool
def test_each_alert_fires_in_time_and_clears(tmp_path):
    tests = [
        {
            "name": alert,
            "interval": "1m",
            "input_series": series_of(case.series),
            "promql_expr_test": [
                firing(alert, case.quiet, 0),
                firing(alert, case.fires, 1),
                firing(alert, case.clears, 0),
            ],
        }
        for alert, case in CASES.items()
    ]
    promtool(tmp_path, tests)


@needs_promtool
def test_what_is_only_like_the_cause_fires_nothing(tmp_path):
    tests = [
        {
            "name": alert,
            "interval": "1m",
            "input_series": series_of(series),
            "promql_expr_test": [firing(alert, minute, 0) for minute in (30, 60, 90, 119)],
        }
        for alert, series in HARMLESS.items()
    ]
    promtool(tmp_path, tests)


@needs_promtool
def test_the_texts_of_an_alert_name_the_instance_and_the_value(tmp_path):
    series = {"outbox_bytes": "90x30", "outbox_limit_bytes": "100x30"}
    rule = RULES["PxSidecarOutboxFillsUp"]
    expected = {
        "exp_labels": {"severity": "warning", "instance": "a:8321", "job": "px-sidecar"},
        "exp_annotations": {
            "summary": "The outbox of a:8321 is 90% full.",
            "description": rule["annotations"]["description"],
        },
    }
    alert = {"eval_time": "20m", "alertname": "PxSidecarOutboxFillsUp", "exp_alerts": [expected]}
    promtool(tmp_path, [{"interval": "1m", "input_series": series_of(series), "alert_rule_test": [alert]}])

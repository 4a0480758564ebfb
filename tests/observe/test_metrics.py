"""The metrics: named with units, bounded in labels, true to the outbox's own counters."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.observe import CONTENT_TYPE, DEAD_REASONS, DESTINATION_STATES, DROPPED_REASONS, Metrics, Snapshot

UNITS = ("_total", "_seconds", "_bytes", "_events", "_requests", "_requests_per_second", "_info")
UNITLESS = {"px_sidecar_" + name for name in ("lanes_open", "lanes_in_use", "paused", "full", "destination_state")}
UNITLESS |= {"px_sidecar_outbox_set_aside"}


def metrics_with(**changed):
    metrics = Metrics(version="1.2.3")
    metrics.snapshot = lambda: Snapshot(**({"counters": {}, "destination": "open"} | changed))
    return metrics


def samples_of(metrics):
    """Value by name and labels, as a Prometheus would read them."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_name_carries_its_unit_or_counts_things():
    families = list(text_string_to_metric_families(metrics_with().render().decode()))
    names = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    ours = {name for name in names if not name.startswith("process_")}
    assert len(ours) > 30
    assert all(name.startswith("px_sidecar_") for name in ours)
    assert {name for name in ours if not name.endswith(UNITS)} == UNITLESS


def test_every_family_is_described():
    text = metrics_with().render().decode()
    described = re.findall(r"^# HELP (\S+) \S.*$", text, re.MULTILINE)
    assert set(described) == set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def test_counters_of_the_outbox_are_shown_as_they_are():
    counters = {"accepted": 100, "repeated": 3, "delivered": 60, "dropped:no_user": 5, "dropped:moved": 2}
    counters |= {"dead:refused": 4, "pending_high": 9, "pending_normal": 20, "next_id": 100, "users": 7}
    samples = samples_of(metrics_with(counters=counters))
    assert samples[("px_sidecar_accepted_events_total",)] == 100
    assert samples[("px_sidecar_repeated_events_total",)] == 3
    assert samples[("px_sidecar_delivered_events_total",)] == 60
    assert samples["px_sidecar_dropped_events_total", ("reason", "no_user")] == 5
    assert samples["px_sidecar_dropped_events_total", ("reason", "moved")] == 2
    assert samples["px_sidecar_dead_events", ("reason", "refused")] == 4
    assert samples["px_sidecar_pending_events", ("class", "high")] == 9
    assert samples["px_sidecar_pending_events", ("class", "normal")] == 20


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("px_sidecar_dropped_events_total", "reason", {*DROPPED_REASONS, "other"}),
        ("px_sidecar_dead_events", "reason", {*DEAD_REASONS, "other"}),
        ("px_sidecar_destination_state", "state", set(DESTINATION_STATES)),
        ("px_sidecar_pending_events", "class", {"high", "normal"}),
        ("px_sidecar_full", "code", {"outbox_full", "disk_full"}),
    ],
)
def test_all_values_of_a_label_are_there_before_anything_happens(name, label, values):
    keys = [key for key in samples_of(metrics_with()) if key[0] == name]
    assert {dict(key[1:])[label] for key in keys} == values


def test_labels_stay_bounded_whatever_is_counted():
    metrics = metrics_with(counters={f"dropped:reason {index}": 2 for index in range(50)}, destination="unheard of")
    before = set(samples_of(metrics_with()))
    for index in range(50):
        metrics.refused(f"code {index}")
        metrics.px_answered(index * 100, 0.1)
    samples = samples_of(metrics)
    assert set(samples) == before
    assert samples["px_sidecar_dropped_events_total", ("reason", "other")] == 100
    assert samples["px_sidecar_refused_requests_total", ("code", "other")] == 50
    assert samples["px_sidecar_px_requests_total", ("answer", "other")] == 45


def test_answers_of_px_are_counted_by_class_and_429_apart():
    metrics = metrics_with()
    for status in (200, 201, 404, 429, 503):
        metrics.px_answered(status, 0.12)
    metrics.px_not_sent()
    metrics.px_unknown()
    samples = samples_of(metrics)
    counted = {key[1][1]: value for key, value in samples.items() if key[0] == "px_sidecar_px_requests_total" and value}
    assert counted == {"2xx": 2, "4xx": 1, "429": 1, "5xx": 1, "not_sent": 1, "unknown": 1}
    assert samples[("px_sidecar_px_request_seconds_count",)] == 5
    assert samples["px_sidecar_px_request_seconds_bucket", ("le", "0.1")] == 0
    assert samples["px_sidecar_px_request_seconds_bucket", ("le", "0.15")] == 5


def test_a_duration_counts_in_its_bucket_and_all_above():
    metrics = metrics_with()
    for seconds in (0.001, 0.0011, 60.0):
        metrics.answer_seconds.observe(seconds)
    samples = samples_of(metrics)
    buckets = {
        dict(key[1:])["le"]: value for key, value in samples.items() if key[0] == "px_sidecar_answer_seconds_bucket"
    }
    assert (buckets["0.0005"], buckets["0.001"], buckets["0.0025"], buckets["5.0"], buckets["+Inf"]) == (0, 1, 2, 2, 3)
    assert samples[("px_sidecar_answer_seconds_count",)] == 3
    assert samples[("px_sidecar_answer_seconds_sum",)] == pytest.approx(60.0021)


def test_a_trip_that_wrote_nothing_is_no_commit():
    metrics = metrics_with()
    metrics.committed(0.002, 3)
    metrics.committed(0.0001, 0)
    samples = samples_of(metrics)
    assert samples[("px_sidecar_commits_total",)] == samples[("px_sidecar_commit_seconds_count",)] == 1


def test_the_state_of_delivery_is_one_of_four():
    samples = samples_of(metrics_with(destination="paused"))
    states = {key[1][1]: value for key, value in samples.items() if key[0] == "px_sidecar_destination_state"}
    assert states == {"open": 0, "waiting": 0, "probing": 0, "paused": 1}
    assert samples[("px_sidecar_paused",)] == 1
    assert samples_of(metrics_with(destination="waiting"))[("px_sidecar_paused",)] == 0


def test_one_snapshot_is_taken_for_one_answer():
    asked = []
    metrics = Metrics(version="1")
    metrics.snapshot = lambda: asked.append(1) or Snapshot(counters={}, destination="open")
    metrics.render()
    assert asked == [1]


def test_without_a_daemon_only_what_is_counted_here_is_shown():
    metrics = Metrics(version="1.2.3")
    metrics.refused("bad_json")
    samples = samples_of(metrics)
    assert samples["px_sidecar_refused_requests_total", ("code", "bad_json")] == 1
    assert samples["px_sidecar_build_info", ("version", "1.2.3")] == 1
    assert ("px_sidecar_accepted_events_total",) not in samples


def test_two_daemons_in_one_process_share_nothing():
    first, second = metrics_with(), metrics_with()
    first.px_unknown()
    assert samples_of(first)["px_sidecar_px_requests_total", ("answer", "unknown")] == 1
    assert samples_of(second)["px_sidecar_px_requests_total", ("answer", "unknown")] == 0


def test_ambiguous_requests_and_retries_are_the_outboxs_own_counts():
    samples = samples_of(metrics_with(counters={"ambiguous": 3, "retries": 5}, changed=7))
    assert samples[("px_sidecar_ambiguous_requests_total",)] == 3
    assert samples[("px_sidecar_retries_total",)] == 5
    assert samples[("px_sidecar_changed_events",)] == 7


def test_the_content_type_is_the_text_format():
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")

"""Metrics: names carry units, labels are bounded, and the outbox's counters are exported unchanged."""

import re
from typing import NamedTuple

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.observe import (
    CONTENT_TYPE,
    DEAD_REASONS,
    DESTINATION_STATES,
    DROPPED_REASONS,
    EventOutcome,
    Metrics,
    Snapshot,
)

UNITS = ("_total", "_seconds", "_bytes", "_events", "_requests", "_requests_per_second", "_info")
UNITLESS = {"px_sidecar_" + name for name in ("lanes_open", "lanes_in_use", "paused", "full", "destination_state")}
UNITLESS |= {"px_sidecar_outbox_set_aside"}


def made(**changed):
    return Metrics(version="1.2.3"), Snapshot(**({"counters": {}, "destination": "open"} | changed))


def rendered():
    metrics, snapshot = made()
    return metrics.render(snapshot)


def samples_of(metrics, snapshot=None):
    """Map name and labels to the value, as Prometheus parses them."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render(snapshot).decode())
        for sample in family.samples
    }


def test_every_name_ends_with_its_unit():
    families = list(text_string_to_metric_families(rendered().decode()))
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    ours = {name for name in names if not name.startswith("process_")}
    assert len(ours) > 30
    assert all(name.startswith("px_sidecar_") for name in ours)
    assert {name for name in ours if not name.endswith(UNITS)} == UNITLESS


def test_every_family_has_a_help_text():
    text = rendered().decode()
    described = re.findall(r"^# HELP (\S+) \S.*$", text, re.MULTILINE)
    assert set(described) == set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def test_the_counters_of_the_outbox_are_exported_unchanged():
    counters = {"accepted": 100, "repeated": 3, "delivered": 60, "dropped:no_user": 5, "dropped:moved": 2}
    counters |= {
        "dead:refused": 4,
        "pending_high": 9,
        "pending_normal": 20,
        "pending_low": 30,
        "next_id": 100,
        "users": 7,
    }
    samples = samples_of(*made(counters=counters))
    assert samples[("px_sidecar_accepted_events_total",)] == 100
    assert samples[("px_sidecar_repeated_events_total",)] == 3
    assert samples[("px_sidecar_delivered_events_total",)] == 60
    assert samples["px_sidecar_dropped_events_total", ("reason", "no_user")] == 5
    assert samples["px_sidecar_dropped_events_total", ("reason", "moved")] == 2
    assert samples["px_sidecar_dead_events", ("reason", "refused")] == 4
    assert samples["px_sidecar_pending_events", ("class", "high")] == 9
    assert samples["px_sidecar_pending_events", ("class", "normal")] == 20
    assert samples["px_sidecar_pending_events", ("class", "low")] == 30


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("px_sidecar_dropped_events_total", "reason", {*DROPPED_REASONS, "other"}),
        ("px_sidecar_dead_events", "reason", {*DEAD_REASONS, "other"}),
        ("px_sidecar_destination_state", "state", set(DESTINATION_STATES)),
        ("px_sidecar_pending_events", "class", {"high", "normal", "low"}),
        ("px_sidecar_oldest_pending_by_class_age_seconds", "class", {"high", "normal", "low"}),
        ("px_sidecar_delivery_seconds_count", "class", {"high", "normal", "low"}),
        ("px_sidecar_events_by_name_total", "event", {"other"}),
        ("px_sidecar_events_by_source_total", "source", {"other"}),
        ("px_sidecar_full", "code", {"outbox_full", "disk_full"}),
    ],
)
def test_every_label_value_is_exported_from_the_start(name, label, values):
    keys = [key for key in samples_of(*made()) if key[0] == name]
    assert {dict(key[1:])[label] for key in keys} == values


def test_unknown_label_values_are_counted_as_other():
    metrics, snapshot = made(counters={f"dropped:reason {index}": 2 for index in range(50)}, destination="unheard of")
    before = set(samples_of(*made()))
    for index in range(50):
        metrics.refused(f"code {index}")
        metrics.px_answered(index * 100, 0.1)
    samples = samples_of(metrics, snapshot)
    assert set(samples) == before
    assert samples["px_sidecar_dropped_events_total", ("reason", "other")] == 100
    assert samples["px_sidecar_refused_requests_total", ("code", "other")] == 50
    assert samples["px_sidecar_px_requests_total", ("answer", "other")] == 45


def test_answers_of_px_are_counted_by_class_and_429_alone():
    metrics, _ = made()
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


def test_histogram_buckets_are_cumulative():
    metrics, _ = made()
    for seconds in (0.001, 0.0011, 60.0):
        metrics.answer_seconds.observe(seconds)
    samples = samples_of(metrics)
    buckets = {
        dict(key[1:])["le"]: value for key, value in samples.items() if key[0] == "px_sidecar_answer_seconds_bucket"
    }
    assert (buckets["0.0005"], buckets["0.001"], buckets["0.0025"], buckets["5.0"], buckets["+Inf"]) == (0, 1, 2, 2, 3)
    assert samples[("px_sidecar_answer_seconds_count",)] == 3
    assert samples[("px_sidecar_answer_seconds_sum",)] == pytest.approx(60.0021)


def test_a_transaction_without_rows_is_not_counted():
    metrics, _ = made()
    metrics.committed(0.002, 3)
    metrics.committed(0.0001, 0)
    samples = samples_of(metrics)
    assert samples[("px_sidecar_commits_total",)] == samples[("px_sidecar_commit_seconds_count",)] == 1


def test_exactly_one_destination_state_is_1():
    samples = samples_of(*made(destination="paused"))
    states = {key[1][1]: value for key, value in samples.items() if key[0] == "px_sidecar_destination_state"}
    assert states == {"open": 0, "waiting": 0, "probing": 0, "paused": 1}
    assert samples[("px_sidecar_paused",)] == 1
    assert samples_of(*made(destination="waiting"))[("px_sidecar_paused",)] == 0


def test_without_a_snapshot_only_own_numbers_are_exported():
    metrics = Metrics(version="1.2.3")
    metrics.refused("bad_json")
    samples = samples_of(metrics)
    assert samples["px_sidecar_refused_requests_total", ("code", "bad_json")] == 1
    assert samples["px_sidecar_build_info", ("version", "1.2.3")] == 1
    assert ("px_sidecar_accepted_events_total",) not in samples


def test_two_daemons_in_one_process_count_separately():
    (first, _), (second, _) = made(), made()
    first.px_unknown()
    assert samples_of(first)["px_sidecar_px_requests_total", ("answer", "unknown")] == 1
    assert samples_of(second)["px_sidecar_px_requests_total", ("answer", "unknown")] == 0


def test_ambiguous_requests_and_retries_come_from_the_outbox():
    samples = samples_of(*made(counters={"ambiguous": 3, "retries": 5}, changed=7))
    assert samples[("px_sidecar_ambiguous_requests_total",)] == 3
    assert samples[("px_sidecar_retries_total",)] == 5
    assert samples[("px_sidecar_changed_events",)] == 7


class Accepted(NamedTuple):
    source: int
    name: str
    bad: str | None = None
    kind: str = "track"


def settled(name: str, **changed) -> EventOutcome:
    given = {"what": "delivered", "received_ms": 1_000, "priority": "high", "source": 0} | changed
    body = msgspec.json.encode({"type": "track", "event": name})
    return EventOutcome(event_id=1, user="u", body=body, attempts=1, **given)


def test_events_are_counted_by_name_source_and_outcome():
    metrics, _ = made()
    metrics.accepted([Accepted(0, "A"), Accepted(0, "A"), Accepted(2, "B", "no type")])
    metrics.settled(settled("A"), 2_000)
    metrics.settled(settled("A", what="dropped"), 2_000)
    metrics.settled(settled("A", what="retry"), 2_000)
    samples = samples_of(metrics)
    named = {key[1:]: value for key, value in samples.items() if key[0] == "px_sidecar_events_by_name_total" and value}
    assert named == {
        (("event", "A"), ("outcome", "accepted")): 2,
        (("event", "A"), ("outcome", "delivered")): 1,
        (("event", "A"), ("outcome", "dropped")): 1,
        (("event", "B"), ("outcome", "accepted")): 1,
        (("event", "B"), ("outcome", "dead")): 1,
    }
    assert samples["px_sidecar_events_by_source_total", ("outcome", "accepted"), ("source", "2")] == 1


def test_calls_without_an_event_are_counted_by_type():
    """The name of a page may be hidden by a rule, and its outcome was counted under another label."""
    metrics, _ = made()
    metrics.accepted([Accepted(0, "/?email=jane", kind="page"), Accepted(0, "", kind="identify")])
    body = msgspec.json.encode({"type": "page", "name": "/?email=jane"})
    metrics.settled(msgspec.structs.replace(settled("A"), body=body), 2_000)
    samples = samples_of(metrics)
    named = {key[1:] for key, value in samples.items() if key[0] == "px_sidecar_events_by_name_total" and value}
    assert named == {
        (("event", "page"), ("outcome", "accepted")),
        (("event", "page"), ("outcome", "delivered")),
        (("event", "identify"), ("outcome", "accepted")),
    }


def test_names_and_sources_are_bounded_and_the_rest_is_other():
    metrics, _ = made()
    metrics.accepted(Accepted(number, f"name {number}") for number in range(10_000))
    metrics.accepted([Accepted(0, "name 0"), Accepted(0, "x" * 5_000)])
    samples = samples_of(metrics)
    names = {dict(key[1:])["event"] for key in samples if key[0] == "px_sidecar_events_by_name_total"}
    assert len(names) == 101
    assert samples["px_sidecar_events_by_name_total", ("event", "other"), ("outcome", "accepted")] == 9_901
    assert samples["px_sidecar_events_by_name_total", ("event", "name 0"), ("outcome", "accepted")] == 2
    sources = {dict(key[1:])["source"] for key in samples if key[0] == "px_sidecar_events_by_source_total"}
    assert len(sources) == 21


def test_a_name_of_odd_characters_is_one_label_of_bounded_length():
    metrics, _ = made()
    odd = 'a"b\\c\nd' + "é" * 200
    metrics.accepted([Accepted(0, odd)])
    assert samples_of(metrics)["px_sidecar_events_by_name_total", ("event", odd[:100]), ("outcome", "accepted")] == 1


def test_the_time_to_delivery_is_a_histogram_by_class():
    metrics, _ = made()
    metrics.settled(settled("A", received_ms=10_000), 12_000)
    metrics.settled(settled("A", received_ms=10_000, priority="low"), 10_000 + 86_400_000)
    metrics.settled(settled("A", received_ms=10_000), 5_000)  # the clock was set back
    metrics.settled(settled("A", what="dead"), 12_000)
    samples = samples_of(metrics)
    assert samples["px_sidecar_delivery_seconds_count", ("class", "high")] == 2
    assert samples["px_sidecar_delivery_seconds_sum", ("class", "high")] == 2
    assert samples["px_sidecar_delivery_seconds_bucket", ("class", "high"), ("le", "1.0")] == 1
    assert samples["px_sidecar_delivery_seconds_bucket", ("class", "low"), ("le", "86400.0")] == 1
    assert samples["px_sidecar_delivery_seconds_bucket", ("class", "low"), ("le", "43200.0")] == 0
    assert samples["px_sidecar_delivery_seconds_count", ("class", "normal")] == 0


def test_the_oldest_pending_event_is_shown_for_each_class():
    samples = samples_of(*made(oldest_age_s_by_class={"low": 90.0}))
    assert samples["px_sidecar_oldest_pending_by_class_age_seconds", ("class", "low")] == 90
    assert samples["px_sidecar_oldest_pending_by_class_age_seconds", ("class", "high")] == 0


def test_the_content_type_is_the_text_format():
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")

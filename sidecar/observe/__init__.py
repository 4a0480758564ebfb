"""Telemetry: metrics, heartbeats, logs and the event feed. Other packages push into it; it asks none of them."""

from typing import TYPE_CHECKING

from sidecar import lazy_exports

if TYPE_CHECKING:
    from sidecar.observe.feed import EventOutcome, Feed, Redact, What
    from sidecar.observe.heartbeats import DISPATCHER, WRITER, Heartbeats, feed_watchdog, log_standstill, probe
    from sidecar.observe.log_queue import QueuedStream
    from sidecar.observe.logs import LogLines, LogMasks, configure, secrets_of, write_keys_of
    from sidecar.observe.metrics import (
        CONTENT_TYPE,
        DEAD_REASONS,
        DESTINATION_STATES,
        DROPPED_REASONS,
        Durations,
        FleetSnapshot,
        Metrics,
        Snapshot,
    )
    from sidecar.observe.sample import LiveFilter, LiveSample
    from sidecar.observe.series import Series
    from sidecar.observe.telemetry import DaemonTelemetry, NullTelemetry, Problem, Rate, RecordingTelemetry, Telemetry

__all__ = [
    "CONTENT_TYPE",
    "DEAD_REASONS",
    "DESTINATION_STATES",
    "DISPATCHER",
    "DROPPED_REASONS",
    "WRITER",
    "DaemonTelemetry",
    "Durations",
    "EventOutcome",
    "Feed",
    "FleetSnapshot",
    "Heartbeats",
    "LiveFilter",
    "LiveSample",
    "LogLines",
    "LogMasks",
    "Metrics",
    "NullTelemetry",
    "Problem",
    "QueuedStream",
    "Rate",
    "RecordingTelemetry",
    "Redact",
    "Series",
    "Snapshot",
    "Telemetry",
    "What",
    "configure",
    "feed_watchdog",
    "log_standstill",
    "probe",
    "secrets_of",
    "write_keys_of",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "feed": ("EventOutcome", "Feed", "Redact", "What"),
        "heartbeats": ("DISPATCHER", "WRITER", "Heartbeats", "feed_watchdog", "log_standstill", "probe"),
        "log_queue": ("QueuedStream",),
        "logs": ("LogLines", "LogMasks", "configure", "secrets_of", "write_keys_of"),
        "metrics": (
            "CONTENT_TYPE",
            "DEAD_REASONS",
            "DESTINATION_STATES",
            "DROPPED_REASONS",
            "Durations",
            "FleetSnapshot",
            "Metrics",
            "Snapshot",
        ),
        "sample": ("LiveFilter", "LiveSample"),
        "series": ("Series",),
        "telemetry": ("DaemonTelemetry", "NullTelemetry", "Problem", "Rate", "RecordingTelemetry", "Telemetry"),
    },
)

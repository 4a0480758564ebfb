"""Boards that rooms write to and whoever is curious reads: metrics, marks of progress, logs, the live feed.

It asks nobody: what is not told to it, it does not know.
"""

from sidecar.observe.feed import Feed
from sidecar.observe.health import DISPATCHER, WRITER, Marks, feed_watchdog, prove
from sidecar.observe.logs import configure, secrets_of
from sidecar.observe.metrics import (
    CONTENT_TYPE,
    DEAD_REASONS,
    DESTINATION_STATES,
    DROPPED_REASONS,
    Durations,
    Metrics,
    Snapshot,
)

__all__ = [
    "CONTENT_TYPE",
    "DEAD_REASONS",
    "DESTINATION_STATES",
    "DISPATCHER",
    "DROPPED_REASONS",
    "WRITER",
    "Durations",
    "Feed",
    "Marks",
    "Metrics",
    "Snapshot",
    "configure",
    "feed_watchdog",
    "prove",
    "secrets_of",
]

"""The configuration: one strict tree of msgspec Structs, and the one place that reads files and variables for it."""

from sidecar.config.load import config_path, load, load_text
from sidecar.config.schema import (
    AttributeRules,
    Config,
    Deliver,
    Duration,
    EventRules,
    Identity,
    Listen,
    Log,
    Mapping,
    Outbox,
    People,
    Px,
    Secret,
    Size,
    Source,
)

__all__ = [
    "AttributeRules",
    "Config",
    "Deliver",
    "Duration",
    "EventRules",
    "Identity",
    "Listen",
    "Log",
    "Mapping",
    "Outbox",
    "People",
    "Px",
    "Secret",
    "Size",
    "Source",
    "config_path",
    "load",
    "load_text",
]

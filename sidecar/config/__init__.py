"""The configuration: one strict tree of msgspec Structs, and the one place that reads files and variables for it."""

from sidecar.config.json_schema import json_schema
from sidecar.config.keys import api_key, odd_property_key, property_key
from sidecar.config.load import config_path, load, load_text
from sidecar.config.reload import reloaded
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
from sidecar.config.show import as_toml, effective

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
    "api_key",
    "as_toml",
    "config_path",
    "effective",
    "json_schema",
    "load",
    "load_text",
    "odd_property_key",
    "property_key",
    "reloaded",
]

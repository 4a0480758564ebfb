"""The configuration: a strict tree of msgspec Structs, and the code that loads it from file and environment."""

from typing import TYPE_CHECKING

from sidecar import lazy_exports

if TYPE_CHECKING:
    from sidecar.config.credentials import api_key, fleet_password, property_key, property_key_warning
    from sidecar.config.file import ConfigFile, config_path, load, load_text, reloaded
    from sidecar.config.schema import (
        AttributeRules,
        Config,
        DeliverConfig,
        DropRule,
        Duration,
        EventRules,
        FleetConfig,
        IdentityConfig,
        ListenConfig,
        LogConfig,
        MappingConfig,
        OutboxConfig,
        PeopleConfig,
        PxConfig,
        Secret,
        Size,
        SourceConfig,
    )
    from sidecar.config.schema_document import json_schema
    from sidecar.config.show import as_toml, effective, mask_secrets, restore_secrets, without_secrets
    from sidecar.config.text_file import load_toml, read_text

__all__ = [
    "AttributeRules",
    "Config",
    "ConfigFile",
    "DeliverConfig",
    "DropRule",
    "Duration",
    "EventRules",
    "FleetConfig",
    "IdentityConfig",
    "ListenConfig",
    "LogConfig",
    "MappingConfig",
    "OutboxConfig",
    "PeopleConfig",
    "PxConfig",
    "Secret",
    "Size",
    "SourceConfig",
    "api_key",
    "as_toml",
    "config_path",
    "effective",
    "fleet_password",
    "json_schema",
    "load",
    "load_text",
    "load_toml",
    "mask_secrets",
    "property_key",
    "property_key_warning",
    "read_text",
    "reloaded",
    "restore_secrets",
    "without_secrets",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "credentials": ("api_key", "fleet_password", "property_key", "property_key_warning"),
        "schema_document": ("json_schema",),
        "file": ("ConfigFile", "config_path", "load", "load_text", "reloaded"),
        "schema": (
            "AttributeRules",
            "Config",
            "DeliverConfig",
            "DropRule",
            "Duration",
            "EventRules",
            "FleetConfig",
            "IdentityConfig",
            "ListenConfig",
            "LogConfig",
            "MappingConfig",
            "OutboxConfig",
            "PeopleConfig",
            "PxConfig",
            "Secret",
            "Size",
            "SourceConfig",
        ),
        "show": ("as_toml", "effective", "mask_secrets", "restore_secrets", "without_secrets"),
        "text_file": ("load_toml", "read_text"),
    },
)

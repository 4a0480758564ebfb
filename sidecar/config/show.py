"""The configuration as people and tools may see it: the effective values with secrets masked.

Rules
-----
* A duration or size is shown in the form in which the file takes it, exactly: what is shown, loaded again, is the same.
* A secret is shown as ``****`` if there is one, as ``""`` if not; user names and passwords in addresses are masked.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.config.schema import Config, Duration, Limit, Secret, Size, Table
from sidecar.config.wording import mask_userinfo

__all__ = ["as_toml", "effective", "shown"]

MASK = "****"

_DURATION_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_SIZE_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def effective(config: Config) -> dict[str, Any]:
    """All keys of all tables with the values in force, ready for TOML or JSON: plain types, no secrets, no None."""
    tables: dict[str, Any] = shown(config)
    return tables


def as_toml(config: Config) -> str:
    """``effective`` as a TOML file that the daemon would take, apart from the masked secrets."""
    return "\n".join(_toml_table(effective(config), ())).strip() + "\n"


def shown(value: Any) -> Any:
    """One value of the configuration, of any type, as ``effective`` has it."""
    if isinstance(value, Table):
        fields = {name: shown(getattr(value, name)) for name in value.__struct_fields__}
        return {name: text for name, text in fields.items() if text is not None}
    if isinstance(value, dict):
        return {name: shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, Secret):
        return MASK if value else ""
    if isinstance(value, Limit) and not value:
        return ""
    if isinstance(value, Duration):
        return _duration_text(value)
    if isinstance(value, Size):
        return _size_text(value)
    return mask_userinfo(value) if isinstance(value, str) else value


def _duration_text(seconds: float) -> str:
    """``"24h"``, ``"30d"``, ``"250ms"``: days from two on, since nobody says 1d for 24h."""
    count_ms = round(seconds * 1000)
    if count_ms != seconds * 1000:
        return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
    for unit, unit_ms in _DURATION_UNITS:
        if count_ms % unit_ms == 0 and count_ms >= (2 if unit == "d" else 1) * unit_ms:
            return f"{count_ms // unit_ms}{unit}"
    return "0s"


def _size_text(size_bytes: int) -> str:
    return next(
        f"{size_bytes // count}{unit}"
        for unit, count in _SIZE_UNITS
        if size_bytes % count == 0 and (size_bytes >= count or count == 1)
    )


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table: its own settings first, since TOML takes what follows a header as that header's."""
    for key, value in table.items():
        if not _is_section(value):
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in table.items():
        inner = (*path, key)
        header = ".".join(map(_toml_key, inner))
        for entry in value if isinstance(value, list) and _is_section(value) else ():
            yield from ("", f"[[{header}]]", *_toml_table(entry, inner))
        if isinstance(value, dict) and value:
            yield from ("", f"[{header}]", *_toml_table(value, inner))


def _is_section(value: Any) -> bool:
    return (isinstance(value, dict) and bool(value)) or (
        isinstance(value, list) and any(isinstance(one, dict) for one in value)
    )


def _toml_key(key: str) -> str:
    return key if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum() else _toml_value(key)


def _toml_value(value: Any) -> str:
    """JSON is TOML for scalars and lists of them, but for the one control character that JSON lets stand."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

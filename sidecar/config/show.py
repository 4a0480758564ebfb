"""The effective configuration as text, TOML or JSON, with secrets masked.

Rules
-----
* A duration or size is written exactly and in the form that the file accepts: loading the output gives equal values.
* A secret is written as ``****`` if it is set, as ``""`` if not. User names and passwords in URLs are masked.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sidecar.config.error_messages import dotted, mask_userinfo
from sidecar.config.problems import parse_toml
from sidecar.config.schema import Config, Duration, Limit, Secret, Size, Table
from sidecar.config.text_file import load_toml
from sidecar.errors import ConfigError

__all__ = [
    "PLACEHOLDER",
    "SECRET_KEYS",
    "as_toml",
    "effective",
    "mask_secrets",
    "restore_secrets",
    "shown",
    "without_secrets",
]

MASK = "****"

_DURATION_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_SIZE_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def effective(config: Config) -> dict[str, Any]:
    """Return every key of every table with its effective value, as plain types without secrets and without None."""
    tables: dict[str, Any] = shown(config)
    return tables


def as_toml(config: Config | Mapping[str, Any]) -> str:
    """Return ``effective``, or tables that it returned, as a TOML file that the daemon accepts, apart from the masked secrets."""
    tables = effective(config) if isinstance(config, Config) else config
    return "\n".join(_toml_table(tables, ())).strip() + "\n"


def shown(value: Any, key: str = "") -> Any:
    """Return one configuration value of any type as plain data, as in ``effective``; ``key`` is its name in its table."""
    if isinstance(value, Table):
        fields = {name: shown(getattr(value, name), name) for name in value.__struct_fields__}
        return {name: text for name, text in fields.items() if text is not None}
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, Secret):
        return MASK if value else ""
    if key == "proxy" and re.fullmatch(_BARE_USERINFO, value):
        return MASK
    if isinstance(value, Limit) and not value:
        return ""
    if isinstance(value, Duration):
        return _duration_text(value)
    if isinstance(value, Size):
        return _size_text(value)
    return mask_userinfo(value) if isinstance(value, str) else value


def _duration_text(seconds: float) -> str:
    """Return ``"24h"``, ``"30d"`` or ``"250ms"``: the largest unit that divides it, with days from two days on."""
    count_ms = round(seconds * 1000)
    if count_ms != seconds * 1000:  # finer than milliseconds: decimal seconds, so that loading gives the same value
        return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
    for unit, unit_ms in _DURATION_UNITS:
        if count_ms % unit_ms == 0 and count_ms >= (2 if unit == "d" else 1) * unit_ms:
            return f"{count_ms // unit_ms}{unit}"
    return "0s"


def _size_text(size_bytes: int) -> str:
    """Return ``"4GiB"`` or ``"1000B"``: the largest binary unit that divides it."""
    return next(
        f"{size_bytes // count}{unit}"
        for unit, count in _SIZE_UNITS
        if size_bytes % count == 0 and (size_bytes >= count or count == 1)
    )


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table. Scalars come first: TOML assigns every key below a header to that header."""
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
    """Return whether the value needs a header of its own: a table with keys, or a list of tables."""
    return (isinstance(value, dict) and bool(value)) or (
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
    )


def _toml_key(key: str) -> str:
    return key if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum() else _toml_value(key)


def _toml_value(value: Any) -> str:
    """Return a scalar or a list of scalars in TOML. JSON is valid TOML here, except that it leaves U+007F unescaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


SECRET_KEYS: Final = ("api_key", "write_key", "hash_salt", "password")
# An address without its scheme: name:password@host, which a start refuses, and which is in the file until then.
_BARE_USERINFO: Final = r"""(?:(?!//)[^"'\n])*@[^"'\n]*"""
_KEYS: Final = "|".join(SECRET_KEYS).replace("_", "[_-]?")  # also misspelled
_PROXY: Final = rf"""proxy(?=["']?\s*=\s*["']{_BARE_USERINFO}["'])"""


def _key(proxy: str) -> str:
    return rf"""((?<![\w-])["']?(?i:{_KEYS}|{proxy})["']?\s*=\s*)"""


_END_OF_VALUE: Final = r"(?=[ \t]*(?:\Z|[#\r\n,}]))"
_SECRET: Final = re.compile(
    rf"""{_key(_PROXY)}(\"{{3}}[\s\S]*?\"{{3}}|'{{3}}[\s\S]*?'{{3}}|(?:"(?:[^"\\\n]|\\.)+"|'[^'\n]+'){_END_OF_VALUE}"""
    # A value that is not TOML, or of a wrong type: to the end of its line.
    rf"""|\[?\s*["']?[^\s"'\[\]#][^\n]*|(?!(?:""|''|\[\s*\]){_END_OF_VALUE})[^\s#][^\n]*)"""
)
_MASKED: Final = re.compile(_key("proxy") + r'"\*{4}(\d+)"')
# A string, also one without its closing quote, or what is between strings.
_LITERAL: Final = re.compile(r"""\"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^"'\n]+""")
_USERINFO: Final = re.compile(r"(?<=//)[^\n]+(?=@)")  # as in mask_userinfo
_MASKED_USERINFO: Final = re.compile(r"(?<=//)\*{4}(\d+)(?=@)")
PLACEHOLDER: Final = re.compile(r"\*{4}(\d+)")


def mask_secrets(text: str) -> tuple[str, list[str]]:
    """Return the text with placeholders, and what they stand for, as it is written in the text, by number.

    Masked are the values of secret keys, and user names and passwords in URLs.
    """
    secrets: list[str] = []

    def value(match: re.Match[str]) -> str:
        secrets.append(match[2])
        return f'{match[1]}"****{len(secrets)}"'

    def userinfo(match: re.Match[str]) -> str:
        secrets.append(match[0])
        return f"****{len(secrets)}"

    masked = _SECRET.sub(value, text)
    return _LITERAL.sub(lambda literal: _USERINFO.sub(userinfo, literal[0]), masked), secrets


def restore_secrets(text: str, original: str) -> str:
    """Return an edited text with the placeholders of ``original``, which was shown masked, replaced by its secrets.

    A placeholder is replaced where it was, or where a secret belongs. Raises ConfigError for one in another place: what
    stands there is shown, by a preview of the mapping or in an error. An unknown placeholder, and a text that is not TOML,
    stay as they are.
    """
    masked, secrets = mask_secrets(original)
    try:
        edited = set(_placeholders(load_toml(text)))
    except tomllib.TOMLDecodeError:
        return text
    tree, _, _ = parse_toml(masked, "")  # without the lines that are not TOML, which the edit may correct
    for path, number in edited - set(_placeholders(tree)):
        if 0 < number <= len(secrets) and not _is_secret(path):
            raise ConfigError(
                f"{dotted(path)} holds the placeholder ****{number} of a secret of another place; write its value here."
            )

    def original_of(match: re.Match[str]) -> str:
        number = int(match[match.re.groups])
        before = match[1] if match.re is _MASKED else ""
        return before + secrets[number - 1] if 0 < number <= len(secrets) else match[0]

    # In the opposite order of masking: a secret is not searched for placeholders.
    return _MASKED.sub(original_of, _MASKED_USERINFO.sub(original_of, text))


def _placeholders(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each placeholder in keys and values, with its path; entries of a list share the path of the list."""
    if isinstance(value, str):
        yield from ((path, int(found[1])) for found in PLACEHOLDER.finditer(value))
    elif isinstance(value, list):
        for item in value:
            yield from _placeholders(item, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _placeholders(key, path)
            yield from _placeholders(item, (*path, key))


def _is_secret(path: tuple[str, ...]) -> bool:
    """Return whether the key is a ``Secret``, which is never shown."""
    match path:
        case ("px", "api_key") | ("source", "write_key") | ("mapping", "attributes" | "traits", "hash_salt"):
            return True
        case ("mapping", "event", _, "attributes", "hash_salt"):
            return True
    return False


def without_secrets(text: str) -> str:
    """Return the text for display: secrets and the credentials in URLs are masked."""
    return "\n".join(mask_userinfo(line) for line in mask_secrets(text)[0].split("\n"))

"""Every key of the configuration with its type, default, meaning, example, and whether a reload is enough.

It is put together from the types in ``schema`` and the texts in ``key_texts``, so that neither can be forgotten or contradict the other.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final, get_args, get_origin

import msgspec

from sidecar.config.error_messages import allowed_words, field_type
from sidecar.config.file import PREFIX, is_reloadable
from sidecar.config.key_texts import KEY_TEXTS
from sidecar.config.schema import AttributeRules, Config, DropRule, EventRules, SourceConfig, Table
from sidecar.config.show import shown

__all__ = ["KeyReference", "as_listed", "key_references", "reference_markdown", "reference_text"]

WIDTH: Final = 80
# Tables that are not direct fields of Config: the name that stands in keys, and the header in the file.
_NESTED: Final = (
    (EventRules, "mapping.event.NAME", '[mapping.event."NAME"]'),
    (DropRule, "mapping.drop", "[[mapping.drop]]"),
    (AttributeRules, "mapping.attributes", "[mapping.attributes]"),
)
_NAME: Final = r"""("[^"]*"|'[^']*'|[^.]+)"""  # of an event, in a key
_SAME_KEYS: Final = MappingProxyType(
    {"mapping.attributes": 'Also [mapping.traits] and [mapping.event."NAME".attributes], with the same keys.'}
)


class KeyReference(msgspec.Struct, frozen=True):
    """One key. ``default`` is TOML; None if the key is required or has no default. ``variable`` sets it, or is empty."""

    key: str
    default: str | None
    allowed: str
    meaning: str
    example: str
    reload: bool
    variable: str

    @property
    def name(self) -> str:
        """The key without its table."""
        return self.key.rpartition(".")[2]


def key_references() -> list[KeyReference]:
    """Return all keys in the order of the schema."""
    return [reference for _, _, references in _sections() for reference in references]


def as_listed(key: str) -> str:
    """Return the name under which the reference has a key of the file: rules that several tables share are listed once."""
    key = re.sub(rf"^mapping\.(traits|event\.{_NAME}\.attributes)(?=\.)", "mapping.attributes", key)
    return re.sub(rf"^mapping\.event\.{_NAME}(?=\.)", "mapping.event.NAME", key)


def reference_text(prefix: str = "") -> str:
    """Return the reference for a terminal, of the keys that begin with ``prefix``; empty if there is none."""
    lines: list[str] = []
    for header, about, references in _sections():
        chosen = [reference for reference in references if reference.key.startswith(prefix)]
        if chosen:
            lines += [header, *textwrap.wrap(about, WIDTH), ""]
        for reference in chosen:
            lines += [*_entry(reference), ""]
    return "\n".join(lines)


def reference_markdown(prefix: str = "") -> str:
    """Return the reference as Markdown, one table for each table of the file."""
    lines: list[str] = []
    for header, about, references in _sections():
        chosen = [reference for reference in references if reference.key.startswith(prefix)]
        if not chosen:
            continue
        lines += [f"## `{header}`", "", about, "", "| key | default | allowed | meaning | example | takes effect |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for reference in chosen:
            cells = (
                f"`{reference.name}`",
                _default_words(reference, code="`"),
                reference.allowed,
                reference.meaning,
                f"`{reference.name} = {reference.example}`",
                "reload" if reference.reload else "restart",
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _entry(reference: KeyReference) -> Iterator[str]:
    takes_effect = "with a reload" if reference.reload else "with a restart"
    pairs = [
        ("default", _default_words(reference)),
        ("allowed", reference.allowed),
        ("example", f"{reference.name} = {reference.example}"),
        ("change", takes_effect + (f"; also the variable {reference.variable}" if reference.variable else "")),
    ]
    yield reference.key
    indent = "    "
    yield from textwrap.wrap(
        reference.meaning, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    for name, text in pairs:
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=f"    {name}: ", subsequent_indent=" " * 13, break_on_hyphens=False
        )


def _default_words(reference: KeyReference, code: str = "") -> str:
    return (
        "required" if reference.default is None else f"{code}{reference.default}{code}" if reference.default else "none"
    )


def _sections() -> Iterator[tuple[str, str, list[KeyReference]]]:
    """Yield header, description and keys of each table."""
    for name in Config.__struct_fields__:
        kind = field_type(Config, name)
        table = SourceConfig if name == "source" else kind
        header = f"[[{name}]]" if name == "source" else f"[{name}]"
        yield _section(table, name, header)
        if name == "mapping":
            yield from (_section(*nested) for nested in _NESTED)


def _section(table: type[Table], name: str, header: str) -> tuple[str, str, list[KeyReference]]:
    about = (table.__doc__ or "").partition(": ")[2].replace("``", "").partition(" (sidecar/")[0].rstrip(".") + "."
    about = about[:1].upper() + about[1:]
    references = [_reference(table, field, name) for field in msgspec.structs.fields(table)]
    return header, f"{about} {_SAME_KEYS.get(name, '')}".strip(), references


def _reference(table: type[Table], field: msgspec.structs.FieldInfo, name: str) -> KeyReference:
    text = KEY_TEXTS[table][field.name]
    kind = field_type(table, field.name)
    in_file = hasattr(Config, name) or name == "mapping.attributes"  # [mapping.event.NAME] has a free name in it
    scalar = in_file and name != "source" and not _is_container(kind)
    return KeyReference(
        key=f"{name}.{field.name}",
        default=_default(field),
        allowed=text.allowed or allowed_words(kind).removeprefix("must be "),
        meaning=text.meaning,
        example=text.example,
        reload=is_reloadable(table, field.name),
        variable=f"{PREFIX}{name}_{field.name}".upper().replace(".", "_") if scalar else "",
    )


def _default(field: msgspec.structs.FieldInfo) -> str | None:
    if field.required:
        return None
    value: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return ""
    if isinstance(value, Table):
        return "{}"
    return json.dumps(shown(value), ensure_ascii=False)


def _is_container(kind: Any) -> bool:
    return (
        get_origin(kind) in (dict, list)
        or any(get_origin(choice) is list for choice in get_args(kind))
        or (isinstance(kind, type) and issubclass(kind, Table))
    )

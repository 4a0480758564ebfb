"""Edit and save the configuration file, in the console's own process, with its caller's rights.

An edit is made on the text, with tomlkit, so that comments and order stay. What it gives is read again with tomllib and
compared with what was meant, because a TOML writer can err (https://github.com/python-poetry/tomlkit/issues/476).

A save replaces the file as a whole or not at all::

    is the file ours? ─► text is valid? ─► unchanged meanwhile? ─► write and sync a new file, owner and mode kept
        ─► keep the old one as NAME.old.1 (of five) ─► rename ─► reload ─► refused: the old file is put back

Secrets never leave this process: the page gets the text with placeholders (``config.mask_secrets``), and the secrets are
put back before anything else happens.
"""

import copy
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from sidecar.config import Config, ConfigFile, load_toml, mask_secrets, read_text, restore_secrets
from sidecar.errors import ConfigError, Failed

__all__ = [
    "OLD_VERSIONS",
    "Edit",
    "Rule",
    "SavedFile",
    "edit",
    "full_text",
    "managed_elsewhere",
    "read",
    "restore",
    "rules_of",
    "save",
]

OLD_VERSIONS: Final = 5
MAX_BYTES: Final = 1_000_000
# As Ansible, Puppet, Chef, Salt, cloud-init and others mark their files; "managed elsewhere" is for those without a word.
_MARK: Final = re.compile(
    r"^#.*\b(?:managed[ _](?:by|elsewhere)|(?:generated|maintained|deployed|provisioned) by|do not edit|ansible[ _-]managed)\b.*",
    re.IGNORECASE | re.MULTILINE,
)
# What a list of rules calls a rule, and where in [mapping] such rules are.
_RULES: Final = {
    "events": ("events",),
    "event": ("event",),
    "drop events": ("drop",),
    "fields": ("fields",),
    **{kind: ("attributes", kind) for kind in ("keep", "drop", "hash", "rename", "set")},
}

_LISTS: Final = frozenset({"source", "keep", "drop", "hash"})  # in a table "-" is a name


class Edit(msgspec.Struct, forbid_unknown_fields=True):
    """One edit: the value at ``path``; None removes it. A list is addressed by position, ``-`` appends.

    A text in place of a number or a boolean is read as such, if it can be: forms know texts only.
    """

    path: list[str | int]
    value: Any = None


class Rule(msgspec.Struct, frozen=True):
    """One mapping rule of the file, for a list of rules. ``path`` is what an ``Edit`` takes to remove it."""

    kind: str
    name: str
    value: str
    path: list[str | int]


class SavedFile(msgspec.Struct, frozen=True):
    """The file as it is: its masked text, its digest, why it cannot be saved here (empty if it can), and the daemon's
    variables by the keys that they set."""

    path: str
    toml: str
    sha256: str
    managed: str
    variables: dict[str, str] = {}


def read(file: ConfigFile, variables: Mapping[str, str] = MappingProxyType({})) -> SavedFile:
    """Return the file for the page. A file that does not exist is empty, and can be created where its folder is ours."""
    path = Path(file.path).absolute()
    text = _text(path)
    masked, _ = mask_secrets(text)
    return SavedFile(str(path), masked, _digest(text), managed_elsewhere(path), dict(variables))


def managed_elsewhere(path: Path) -> str:
    """Return why this process must not replace the file, or an empty text.

    A link leads to a file that something else writes, such as a ConfigMap of Kubernetes. Someone else's file or folder
    could be exchanged while it is written. Configuration management writes a comment at the head of its files, and
    would undo a change at its next run.
    """
    folder = path.parent
    try:
        about = path.lstat()
    except FileNotFoundError:
        about = None
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})."
    # A path with ".." in it is not a link; what it leads to is one if the system and the text of the path disagree.
    if str(folder.resolve()) != os.path.normpath(folder) or (about is not None and stat.S_ISLNK(about.st_mode)):
        return f"{path} is a symbolic link: something else manages this file."
    if about is not None and not stat.S_ISREG(about.st_mode):
        return f"{path} is not a regular file."
    ours = {os.geteuid(), 0}
    try:
        owners = [folder.stat().st_uid] + ([] if about is None else [about.st_uid])
    except OSError as error:
        return f"{folder} cannot be looked at ({error.strerror})."
    if not set(owners) <= ours:
        return f"{path} or its folder belongs to another user."
    if not os.access(folder, os.W_OK) or (about is not None and not os.access(path, os.W_OK)):
        return f"{path} or its folder cannot be written by this user; use sudo."
    if folder.stat().st_mode & stat.S_IWOTH:
        return f"{folder} can be written by every user of this host."
    if about is not None and (comment := _MARK.search(_head(_text(path)))):
        return f"{path} says {comment[0].strip('# ')!r}."
    return ""


def _head(text: str) -> str:
    """Return the comments before the first setting."""
    return "\n".join(takewhile(lambda line: line.startswith("#") or not line.strip(), text.splitlines()))


def edit(toml: str, changes: Sequence[Edit]) -> str:
    """Return the masked text with the changes made. Raises Failed if it is not TOML, or a change does not fit."""
    meant = _loads(toml)
    try:
        document: Any = tomlkit.parse(toml)
        for change in changes:
            _apply(document, change.path, change.value)
            _apply(meant, change.path, copy.deepcopy(change.value))
        text = tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise Failed(f"The change does not fit the file ({error}); edit the text instead.") from None
    if _without_empty_tables(_loads(text)) != _without_empty_tables(meant):
        raise Failed("The change cannot be made without changing something else; edit the text instead.")
    return text


def _without_empty_tables(tree: Any) -> Any:
    """Return the tree without its empty tables: tomlkit writes a table or not, and both mean the same."""
    if not isinstance(tree, dict):
        return tree
    pruned = {key: _without_empty_tables(value) for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value != {}}


def rules_of(toml: str) -> list[Rule]:
    """Return the mapping rules that the masked text has, in its order. Raises ConfigError if it is not TOML."""
    mapping = _loads(toml).get("mapping")
    rules: list[Rule] = []
    for kind, path in _RULES.items():
        section: Any = mapping
        for key in path:
            section = section.get(key) if isinstance(section, dict) else None
        where = ["mapping", *path]
        if isinstance(section, dict):
            rules += [Rule(kind, name, _shown(value), [*where, name]) for name, value in section.items()]
        elif isinstance(section, list):
            entries = [entry if isinstance(entry, dict) else {"event": entry} for entry in section]
            rules += [
                Rule(kind, str(entry.pop("event", "")), _shown(entry) if entry else "", [*where, index])
                for index, entry in enumerate(entries)
            ]
    return rules


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def _apply(tree: Any, path: Sequence[str | int], value: Any) -> None:
    """Set or remove one value in a plain or tomlkit tree; missing tables are made."""
    *parents, last = path
    above = tree
    for index, key in enumerate(parents):
        following = path[index + 1]
        if isinstance(tree, dict) and key not in tree:
            if value is None:
                return
            tree[key] = [] if following == "-" and key in _LISTS else {}
        above, tree = tree, tree[key]
    if last == "-" and not isinstance(tree, dict):
        _append(tree, value)
    elif value is None and isinstance(tree, dict):
        tree.pop(last, None)
    elif value is None:
        was_table = isinstance(tree[last], dict)
        del tree[last]
        if was_table and not tree:  # TOML has no empty array of tables: without its last table it is absent
            del above[parents[-1]]
    else:
        tree[last] = _like(tree.get(last) if isinstance(tree, dict) else None, value)


def _like(before: Any, value: Any) -> Any:
    """Return the value, a text with the type of the number or boolean that it replaces."""
    if not isinstance(value, str) or not isinstance(before, bool | int | float):
        return value
    try:
        typed = msgspec.json.decode(value, type=bool if isinstance(before, bool) else int | float)
    except msgspec.DecodeError:
        return value
    return typed


def _append(tree: Any, value: Any) -> None:
    if isinstance(tree, tomlkit.items.AoT):
        table = tomlkit.table()
        table.update(value)
        tree.append(table)
    else:
        tree.append(value)


def full_text(file: ConfigFile, toml: str) -> str:
    """Return the masked text with the file's own secrets put back. Raises Failed or ConfigError."""
    return restore_secrets(toml, _text(Path(file.path)))


def save(file: ConfigFile, toml: str, sha256: str) -> Config:
    """Replace the file by the masked text, and return the configuration that it gives. Raises Failed or ConfigError.

    ``sha256`` is the digest that ``read`` gave: another file in its place means that another save came between.
    """
    path = Path(file.path).absolute()
    if len(toml) > MAX_BYTES:
        raise Failed("The text is longer than 1 MB; it is not a configuration.")
    if reason := managed_elsewhere(path):
        raise Failed(f"Not saved: {reason} Copy the text to where the file comes from.")
    text = full_text(file, toml)
    _loads(text)
    config = file.parse(text)
    _ensure_unchanged(path, sha256)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write(new, text, path)
        _ensure_unchanged(path, sha256)
        _keep_old(path)
        os.replace(new, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise Failed(f"Not saved: {path} cannot be written ({error.strerror}); the old file is as it was.") from None
    finally:
        new.unlink(missing_ok=True)
    return config


def restore(file: ConfigFile, sha256: str) -> None:
    """Put the newest old version back in place, after the daemon refused the new one. Raises Failed.

    ``sha256`` is what ``save`` got. Where there was no file, the new one is removed: an old version is older than that.
    """
    path = Path(file.path).absolute()
    old = _old(path, 1)
    try:
        if sha256 == _digest("") and not (old.exists() and _text(old) == ""):
            path.unlink()
        else:
            os.replace(old, path)
            for number in range(2, OLD_VERSIONS + 1):
                if _old(path, number).exists():
                    os.replace(_old(path, number), _old(path, number - 1))
        _sync_folder(path.parent)
    except OSError as error:
        raise Failed(f"The old file could not be put back ({error.strerror}); it is {old}.") from None


def _text(path: Path) -> str:
    """Return the text of the file; empty if it does not exist. Raises ConfigError with the sentence of the daemon."""
    try:
        return read_text("The configuration file", path)
    except FileNotFoundError:
        return ""


def _loads(text: str) -> dict[str, Any]:
    try:
        return load_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The text is not valid TOML ({error}); correct its syntax.") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ensure_unchanged(path: Path, sha256: str) -> None:
    if _digest(_text(path)) != sha256:
        raise Failed("Not saved: the file was changed meanwhile; load it again.")


def _write(new: Path, text: str, path: Path) -> None:
    """Write and sync a file that no other user can open, and then give it the owner and mode of ``path``.

    Its lines end as those of ``path`` do: the text has ``\\n`` alone, and a difference of all lines would not be shown.
    """
    newline = "\r\n" if path.exists() and b"\r\n" in path.read_bytes() else "\n"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline=newline) as written:
        written.write(text)
        written.flush()
        if path.exists():
            about = path.stat()
            if (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, about.st_uid, about.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(about.st_mode))
        os.fsync(descriptor)


def _keep_old(path: Path) -> None:
    """Give the file a second name, ``NAME.old.1``; what had it becomes ``.old.2``, and the oldest goes."""
    if not path.exists():
        return
    for number in range(OLD_VERSIONS - 1, 0, -1):
        if _old(path, number).exists():
            os.replace(_old(path, number), _old(path, number + 1))
    os.link(path, _old(path, 1), follow_symlinks=False)


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old.{number}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

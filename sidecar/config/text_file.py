"""Read a configuration or key file as text, and TOML from it; where it is not plain UTF-8, say in one sentence what to write."""

import tomllib
from pathlib import Path
from typing import Any, Final

from sidecar.errors import ConfigError

__all__ = ["MAX_FILE_BYTES", "decode_text", "load_toml", "read_text"]

# A configuration has some kilobytes. The limit keeps a wrong path (a log, a device) from being read into memory.
MAX_FILE_BYTES: Final = 4 * 2**20

MAX_DEPTH: Final = 100  # of tables and lists; the deepest setting has five

_UTF8_MARK: Final = b"\xef\xbb\xbf"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


def read_text(what: str, path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Return the text of a file, with ``\\n`` for every line end.

    ``what`` begins the sentence of an error: "The configuration file". Raises FileNotFoundError, and ConfigError for
    every other reason.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise ConfigError(f"{what} {path} is a directory; name the file in it.") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read ({error.strerror}); check its owner and mode.") from None
    except ValueError:  # open() refuses NUL in a path
        raise ConfigError(f"{what} {str(path)!r} is not a path; write it without NUL characters.") from None
    if len(data) > max_bytes:
        raise ConfigError(f"{what} {path} is longer than {max_bytes:,} bytes; check that the path is the right one.")
    try:
        return decode_text(data)
    except ValueError as error:
        raise ConfigError(f"{what} {path} {error}.") from None


def decode_text(data: bytes) -> str:
    """Return the text of UTF-8 bytes, with ``\\n`` for every line end. Raises ValueError: "is …; save it …"."""
    # Without a mark, ASCII text in UTF-16 has a NUL in every second byte.
    if data.startswith(_UTF16_MARKS) or (len(data) > 1 and (not any(data[0::2]) or not any(data[1::2]))):
        raise ValueError("is UTF-16 text; save it as UTF-8")
    if data.startswith(_UTF8_MARK):
        raise ValueError("begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 text (line {line}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_toml(text: str) -> dict[str, Any]:
    """Return the tree of a TOML text. Raises tomllib.TOMLDecodeError, also for values that are nested too deeply."""
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("Values are nested too deeply") from None
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        inner = (value for item in level for value in (item.values() if isinstance(item, dict) else item))
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return tree
    raise tomllib.TOMLDecodeError("Values are nested too deeply")  # what looks at the tree is recursive

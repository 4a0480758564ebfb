"""Logs on stderr: text on a terminal, JSON lines otherwise, with syslog priorities under journald.

Rules
-----
* Modules use ``logging.getLogger(__name__)`` with a constant message and arguments, and add structured data as
  ``extra={"status": 503}``. Loggers of this package log from ``log.level`` on. Libraries log from WARNING on, whatever
  the level: some write headers at DEBUG, and with them the API key.
* One record is one line; a traceback in text format adds lines. Control characters in a message are escaped, so that an
  event's name cannot forge a line or control a terminal.
* A warning or error that repeats within ``REPEAT_EVERY_S`` is suppressed. The next record of its kind, or the last
  suppressed one when the time is over and anything else is logged, says how many were left out. Records are of the same
  kind if logger, level and message before formatting are equal; of a message that is nothing but ``%s``, the value.
* A record with ``extra={"always": True}`` is never suppressed: its writer limits itself.
* Records must not contain secrets. A secret that gets into one is masked before it is written: API keys and passwords
  wherever they stand, write keys only in values that come from a client or the configuration, and only as a whole word. A
  write key may be any word; masked everywhere, the key "time" would remove a field of every line.
"""

import base64
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import unquote

import msgspec

from sidecar.config import Config, LogConfig, Secret
from sidecar.errors import with_instance
from sidecar.observe.log_queue import MISSING
from sidecar.units import show_duration

__all__ = [
    "LogLines",
    "LogMasks",
    "configure",
    "is_text",
    "missing_note",
    "secrets_of",
    "write_keys_of",
    "write_suppressed",
]

REPEAT_EVERY_S: Final = 60.0
REPEAT_KEYS_MAX: Final = 200
MIN_MASKED_CHARS: Final = 4  # masking a secret like "a" would make every line unreadable

ROOT_LOGGER: Final = "sidecar"
MASK: Final = "****"

_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog(3)
# Attributes that are not data from ``extra``: those of every record, "more", which this module adds, and
# "always", which speaks to it.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "more", "always"}
_URL_PASSWORD = re.compile(r"//[^:@]*:(.+)@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


LINES: Final = 500
MAX_CHARS: Final = 2_000


class LogLines(logging.Handler):
    """Keeps the newest ``LINES`` records as ``{"id", "time_ms", "level", "logger", "message"}``.

    ``masks`` removes secrets and write keys, as in what is written to stderr.
    """

    def __init__(self) -> None:
        super().__init__()
        self.instance = ""
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES)
        self._last_id = 0
        self.masks = LogMasks()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.masks.line(_with_masked_values(record, self.masks.value).getMessage())
        except Exception:  # as in logging.StreamHandler: arguments that do not fit must not end what logs them
            self.handleError(record)
            return
        self._last_id += 1
        line = {"id": self._last_id, "time_ms": round(record.created * 1000), "level": record.levelname.lower()}
        message = with_instance(message, self.instance)[:MAX_CHARS]
        self._lines.append(line | {"logger": record.name, "message": message})

    def after(self, last_id: int) -> list[dict[str, Any]]:
        """Return the lines that came after the line ``last_id``, oldest first."""
        # Of a copy, which is made in one step: other threads write lines meanwhile.
        return [line for line in list(self._lines) if line["id"] > last_id]


class LogStream(Protocol):
    """The destination of lines: a text file, or a ``QueuedStream`` around one."""

    def write(self, text: str, /) -> int:
        """Write a text."""
        ...

    def flush(self) -> None:
        """Hand on what is buffered."""
        ...

    def isatty(self) -> bool:
        """Return True if a person reads it on a terminal."""
        ...

    def fileno(self) -> int:
        """The descriptor. Raises OSError if there is none."""
        ...


class LogMasks:
    """The secrets that no line shows. A reload adds those of the new configuration; the old ones stay."""

    def __init__(self, secrets: Iterable[Secret] = (), write_keys: Iterable[Secret] = ()) -> None:
        self._secrets: set[Secret] = set()
        self._write_keys: set[Secret] = set()
        self.add(secrets, write_keys)

    def add(self, secrets: Iterable[Secret] = (), write_keys: Iterable[Secret] = ()) -> None:
        """Mask these, too."""
        self._secrets |= set(secrets)
        self._write_keys |= set(write_keys)
        self._line, self._value = _masker(self._secrets), _word_masker(self._write_keys)

    def line(self, text: str) -> str:
        """Return a line without secrets."""
        return self._line(text)

    def value(self, text: str) -> str:
        """Return a value without write keys."""
        return self._value(text)


def configure(
    log: LogConfig,
    stream: LogStream,
    environ: Mapping[str, str],
    secrets: Iterable[Secret] = (),
    lines: LogLines | None = None,
    write_keys: Iterable[Secret] = (),
    instance: str = "",
) -> LogMasks:
    """Send all log records of the process to ``stream``; replaces what an earlier call set up.

    ``format = "auto"`` means text on a terminal, else JSON. If ``stream`` is connected to journald
    (``$JOURNAL_STREAM``, systemd.exec(5)), each line begins with its priority, as in ``<4>``, which journald removes
    (sd-daemon(3)). ``secrets`` are masked, and what is added to the result later. ``lines`` keeps the newest records in
    memory as well. Commands in lines name ``instance``.
    """
    as_text = is_text(log, stream)
    masks = LogMasks(secrets, write_keys)
    handler = _Handler(stream, masks, prefixed=_is_journal(stream, environ), instance=instance)
    handler.setFormatter(_TextFormatter() if as_text else _JsonFormatter())
    root = logging.getLogger()
    for previous in [handler for handler in root.handlers if isinstance(handler, _Handler | LogLines)]:
        root.removeHandler(previous)
        previous.close()
    root.addHandler(handler)
    if lines is not None:
        lines.masks, lines.instance = masks, instance
        root.addHandler(lines)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT_LOGGER).setLevel(log.level.upper())
    return masks


def write_suppressed() -> None:
    """Write the last record of each kind that is suppressed at this moment, because the process ends."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.write_suppressed()


def is_text(log: LogConfig, stream: LogStream) -> bool:
    """Return whether the lines are text, not JSON."""
    return log.format == "text" or (log.format == "auto" and stream.isatty())


def missing_note(log: LogConfig, stream: LogStream, environ: Mapping[str, str]) -> Callable[[int], str]:
    """Return the function that makes the line about a number of lines that are missing, in the format of this log."""
    formatter = _TextFormatter() if is_text(log, stream) else _JsonFormatter()
    prefix = f"<{_PRIORITY['WARNING']}>" if _is_journal(stream, environ) else ""

    def note(count: int) -> str:
        facts = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": MISSING, "args": (count,)}
        return f"{prefix}{formatter.format(logging.makeLogRecord(facts))}\n"

    return note


def secrets_of(config: Config) -> list[Secret]:
    """Return the secrets of the configuration, except write keys: also the password in the address of the proxy.

    An API key in ``px.api_key_file`` is not among them.
    """
    password = _URL_PASSWORD.search(config.px.proxy)
    in_proxy = [] if password is None else [Secret(password[1]), Secret(unquote(password[1]))]
    return [*_secrets_in(msgspec.structs.replace(config, source=[])), *in_proxy]


def write_keys_of(config: Config) -> list[Secret]:
    """Return the write keys of all sources."""
    return list(_secrets_in(config.source))


def _secrets_in(value: Any) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _secrets_in(item)


def _masker(secrets: Iterable[Secret]) -> Callable[[str], str]:
    """Return a function that masks secrets in a line, in each form in which one could appear.

    The forms are the plain text, its Python and JSON escapes, and the credentials of HTTP Basic (RFC 7617).
    """
    forms: set[str] = set()
    for secret in secrets:
        text = secret.reveal()
        if len(text) >= MIN_MASKED_CHARS:
            forms |= {text, repr(text)[1:-1], base64.b64encode(f"{text}:".encode()).decode()}
    forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (False, True)}
    if not forms:
        return lambda line: line
    # Longest first: where one secret begins with another, no rest of the longer one stays visible.
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    return lambda line: pattern.sub(MASK, line)


def _word_masker(secrets: Iterable[Secret]) -> Callable[[str], str]:
    """Return a function that masks secrets in a value where they stand as whole words."""
    words = sorted({secret.reveal() for secret in secrets if secret.reveal()}, key=len, reverse=True)
    if not words:
        return lambda value: value
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])")
    return lambda value: pattern.sub(MASK, value)


def _with_masked_values(record: logging.LogRecord, mask: Callable[[str], str]) -> logging.LogRecord:
    """Return a copy of the record with the values in its message and its data masked, and nothing else."""

    def masked(value: Any) -> Any:
        if isinstance(value, BaseException):
            return _MaskedError(mask(str(value)), mask(repr(value)))
        return mask(value) if isinstance(value, str) else value

    copy = logging.makeLogRecord(vars(record) | {name: masked(value) for name, value in _data(record).items()})
    if isinstance(record.args, tuple):
        copy.args = tuple(map(masked, record.args))
    elif isinstance(record.args, Mapping):
        copy.args = {name: masked(value) for name, value in record.args.items()}
    return copy


class _MaskedError:
    """The texts of an exception. Its ``%r`` names its type, and the members of a group, which ``%s`` does not."""

    def __init__(self, text: str, representation: str) -> None:
        self._text = text
        self._representation = representation

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._representation


def _is_journal(stream: LogStream, environ: Mapping[str, str]) -> bool:
    """Return whether the stream is the one that systemd connected to the journal, by device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # not a file, as in tests
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Handler(logging.StreamHandler[LogStream]):
    """Write records as lines: repeats suppressed, secrets masked, with a priority prefix if ``prefixed``."""

    def __init__(self, stream: LogStream, masks: LogMasks, *, prefixed: bool, instance: str) -> None:
        super().__init__(stream)
        self._instance = instance
        self._masks = masks
        self._prefixed = prefixed
        self._repeats = RepeatFilter(time.monotonic)

    def emit(self, record: logging.LogRecord) -> None:
        for admitted in self._repeats.admit(record):
            super().emit(admitted)

    def format(self, record: logging.LogRecord) -> str:
        lines = self._masks.line(super().format(_with_masked_values(record, self._masks.value)))
        lines = with_instance(lines, self._instance)
        if self._prefixed:
            prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
            lines = prefix + lines.replace("\n", f"\n{prefix}")
        return lines

    def write_suppressed(self) -> None:
        """Write the last record of each suppressed kind."""
        for suppressed in self._repeats.flush():
            super().emit(suppressed)

    def close(self) -> None:
        """Write the last record of each suppressed kind, and close."""
        self.write_suppressed()
        super().close()


class _Repeated:
    """One kind of record: when it was last written, and how many were suppressed since."""

    __slots__ = ("count", "last", "written_s")

    def __init__(self, written_s: float) -> None:
        self.written_s = written_s
        self.count = 0
        self.last: logging.LogRecord | None = None


class RepeatFilter:
    """Decide which records are written. Remembers ``REPEAT_KEYS_MAX`` kinds at most; the oldest are dropped first."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        # Invariant: ordered by written_s. A kind that is written again moves to the end.
        self._repeated: dict[tuple[str, int, str], _Repeated] = {}

    @property
    def remembered(self) -> int:
        """The number of kinds that are remembered."""
        return len(self._repeated)

    def admit(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """Yield the records to write after this one: none, itself, and the last of each kind whose time is over."""
        if getattr(record, "always", False):
            yield record
            return
        now_s = self._monotonic_s()
        # "%s" alone stands for whole sentences, which have nothing in common.
        key = (record.name, record.levelno, repr(record.args) if record.msg == "%s" else str(record.msg))
        repeated = self._repeated.get(key)
        if repeated is not None and now_s - repeated.written_s < REPEAT_EVERY_S:
            repeated.count += 1
            repeated.last = _without_traceback(record)
            return
        if repeated is not None:
            del self._repeated[key]
            yield from self._expired(now_s)
            yield _with_count(record, repeated.count, now_s - repeated.written_s)
        else:
            yield from self._expired(now_s)
            yield record
        # INFO and DEBUG are never suppressed: they are rare by design, and an operator asked for that level.
        if record.levelno >= logging.WARNING:
            self._repeated[key] = _Repeated(now_s)

    def flush(self) -> Iterator[logging.LogRecord]:
        """Yield the last suppressed record of every kind, and forget all kinds."""
        return self._expired(float("inf"))

    def _expired(self, now_s: float) -> Iterator[logging.LogRecord]:
        """Forget kinds whose time is over, or that exceed the limit, and yield the last suppressed record of each."""
        while self._repeated:
            key, repeated = next(iter(self._repeated.items()))
            if now_s - repeated.written_s < REPEAT_EVERY_S and len(self._repeated) < REPEAT_KEYS_MAX:
                return
            del self._repeated[key]
            if repeated.last is not None:
                yield _with_count(repeated.last, repeated.count - 1, min(now_s - repeated.written_s, REPEAT_EVERY_S))


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    """Return the record without its traceback, which would keep every object of its frames alive.

    The first record of the kind was written with its traceback.
    """
    return logging.makeLogRecord(vars(record) | {"exc_info": None, "exc_text": None}) if record.exc_info else record


def _with_count(record: logging.LogRecord, count: int, within_s: float) -> logging.LogRecord:
    """Return a copy of the record that says how many of its kind were suppressed; itself if none was."""
    if not count:
        return record
    counted = logging.makeLogRecord(vars(record))  # a copy: other handlers get the same record
    counted.more = f"and {count} more like it in {show_duration(within_s)}"
    return counted


def _message(record: logging.LogRecord) -> str:
    more = getattr(record, "more", "")
    return f"{record.getMessage()} ({more})" if more else record.getMessage()


def _data(record: logging.LogRecord) -> dict[str, Any]:
    """The structured data that the caller gave as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _when(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(sep="T", timespec="milliseconds").replace("+00:00", "Z")
    )


def _escaped(text: str) -> str:
    """Return the text with control characters and Unicode line separators as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z WARNING deliver.delivery_loop: message  key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        data = "".join(f"  {name}={value}" for name, value in _data(record).items())
        logger = record.name.removeprefix(f"{ROOT_LOGGER}.")
        line = _escaped(f"{_when(record)} {record.levelname} {logger}: {_message(record)}{data}")
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the data, ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _when(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": _message(record)} | {
            name: value for name, value in _data(record).items() if name not in line
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        # JSON leaves DEL, the C1 controls and Unicode's line separators as they are.
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(line, ensure_ascii=False, default=str))

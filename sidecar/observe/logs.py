"""Logs on stderr: text for a person, JSON lines for machines, with priorities under journald.

Rules
-----
* Rooms use ``logging.getLogger(__name__)`` with a constant message and its arguments, and add data for machines as
  ``extra={"status": 503}``. Modules of ours speak from ``log.level`` on; libraries from warnings on, whatever the level:
  some of them show headers, and so the key, when they debug.
* One record is one line (a traceback in text format is several). Control characters in a message are escaped, so that
  an event's name can neither forge a line nor steer a terminal.
* A warning or error that repeats within ``REPEAT_EVERY_S`` is held back; the next one, or the last one when its time is
  over and anything else is logged, says how many more there were. What repeats is the message before its arguments.
* Secrets have no business in a record. Should one get there all the same, it is masked on its way out.
"""

import base64
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

from sidecar.config import Config, Log, Secret
from sidecar.units import show_duration

__all__ = ["configure", "secrets_of"]

REPEAT_EVERY_S: Final = 60.0
REPEAT_KEYS_MAX: Final = 200
SHORTEST_MASKED_CHARS: Final = 4  # masking "a" would leave no readable line

OURS: Final = "sidecar"
MASK: Final = "****"

_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog(3)
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "more"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(log: Log, stream: TextIO, environ: Mapping[str, str], secrets: Iterable[Secret] = ()) -> None:
    """Let all log records of the process go to ``stream``, and nowhere else that this function set up before.

    ``format = "auto"`` is text on a terminal, else JSON. If ``stream`` is journald's (systemd.exec(5), $JOURNAL_STREAM)
    each line begins with its priority as ``<4>``, which journald takes off. ``secrets`` are masked.
    """
    as_text = log.format == "text" or (log.format == "auto" and stream.isatty())
    handler = _Handler(stream, _masker(secrets), prefixed=_is_journal(stream, environ))
    handler.setFormatter(_Text() if as_text else _Json())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(log.level.upper())


def secrets_of(config: Config) -> list[Secret]:
    """All secrets that the configuration holds itself; an API key in a file of its own is not among them."""
    return list(_secrets_in(config))


def _secrets_in(value: Any) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _secrets_in(one)


def _masker(secrets: Iterable[Secret]) -> Callable[[str], str]:
    """A function that masks the secrets in a line: as they are, as Python and JSON quote them, as Basic sends them."""
    forms: set[str] = set()
    for secret in secrets:
        text = secret.reveal()
        if len(text) >= SHORTEST_MASKED_CHARS:
            forms |= {text, repr(text)[1:-1], base64.b64encode(f"{text}:".encode()).decode()}
    forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (False, True)}
    if not forms:
        return lambda line: line
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    return lambda line: pattern.sub(MASK, line)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # no file at all, as in tests
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines: without repeats, masked, with priorities if asked."""

    def __init__(self, stream: TextIO, mask: Callable[[str], str], *, prefixed: bool) -> None:
        super().__init__(stream)
        self._mask = mask
        self._prefixed = prefixed
        self._repeats = Repeats(time.monotonic)

    def emit(self, record: logging.LogRecord) -> None:
        for one in self._repeats.let_through(record):
            super().emit(one)

    def format(self, record: logging.LogRecord) -> str:
        lines = self._mask(super().format(record))
        if self._prefixed:
            prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
            lines = prefix + lines.replace("\n", f"\n{prefix}")
        return lines

    def close(self) -> None:
        """Say what was held back, and no more."""
        for one in self._repeats.rest():
            super().emit(one)
        super().close()


class _Held:
    """A message that repeats: when it was last let through, and what came since."""

    __slots__ = ("count", "last", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.count = 0
        self.last: logging.LogRecord | None = None


class Repeats:
    """Decides which records are let through. It keeps ``REPEAT_KEYS_MAX`` messages at most; the oldest leave first."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._held: dict[tuple[str, int, str], _Held] = {}  # in the order of since_s

    def let_through(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """The records to write now that this one has come: none, itself, and others whose time is over."""
        now_s = self._monotonic_s()
        key = (record.name, record.levelno, str(record.msg))
        held = self._held.get(key)
        if held is not None and now_s - held.since_s < REPEAT_EVERY_S:
            held.count += 1
            held.last = _without_traceback(record)
            return
        if held is not None:
            del self._held[key]
            yield from self._over(now_s)
            yield _with_more(record, held.count, now_s - held.since_s)
        else:
            yield from self._over(now_s)
            yield record
        if record.levelno >= logging.WARNING:
            self._held[key] = _Held(now_s)

    def rest(self) -> Iterator[logging.LogRecord]:
        """All that was held back, at the end."""
        return self._over(float("inf"))

    def _over(self, now_s: float) -> Iterator[logging.LogRecord]:
        """The last of each message whose time is over, or that has to make room."""
        while self._held:
            key, held = next(iter(self._held.items()))
            if now_s - held.since_s < REPEAT_EVERY_S and len(self._held) < REPEAT_KEYS_MAX:
                return
            del self._held[key]
            if held.last is not None:
                yield _with_more(held.last, held.count - 1, min(now_s - held.since_s, REPEAT_EVERY_S))


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    """The record to keep: a traceback would hold everything alive that its frames knew, and the first one told it."""
    return logging.makeLogRecord(vars(record) | {"exc_info": None, "exc_text": None}) if record.exc_info else record


def _with_more(record: logging.LogRecord, count: int, within_s: float) -> logging.LogRecord:
    if not count:
        return record
    told = logging.makeLogRecord(vars(record))
    told.more = f"and {count} more like it in {show_duration(within_s)}"
    return told


def _message(record: logging.LogRecord) -> str:
    more = getattr(record, "more", "")
    return f"{record.getMessage()} ({more})" if more else record.getMessage()


def _data(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _USUAL}


def _when(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(sep="T", timespec="milliseconds").replace("+00:00", "Z")
    )


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Text(logging.Formatter):
    """``2026-01-31T12:00:00.123Z WARNING deliver.shell: what happened  key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        data = "".join(f"  {name}={value}" for name, value in _data(record).items())
        logger = record.name.removeprefix(f"{OURS}.")
        line = _escaped(f"{_when(record)} {record.levelname} {logger}: {_message(record)}{data}")
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """One object: ``time``, ``level``, ``logger``, ``message``, then the data, then ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _when(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": _message(record)} | {
            name: value for name, value in _data(record).items() if name not in line
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)

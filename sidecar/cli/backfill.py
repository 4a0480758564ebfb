"""``px-sidecar backfill``: accept events of the past from a file, in class low."""

import csv
import sys
from collections.abc import Iterator
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import click
import msgspec

from sidecar.cli.backend import control_option, open_backend
from sidecar.cli.bulk import (
    batches,
    bulk_options,
    days_needed,
    events_of,
    goes_ahead,
    report_accepted,
    show_need,
    when_space_is_free,
)
from sidecar.cli.common import json_option
from sidecar.cli.screen import local_time_ms, printable, progress_bar
from sidecar.control.client import ControlApi
from sidecar.errors import Failed
from sidecar.events import BadJson, decode, encode_repaired
from sidecar.units import counted, show_count

__all__ = ["backfill"]

REFUSED_SHOWN: Final = 5
REFUSED_KEPT: Final = 1_000
# Columns of a CSV file that are not properties of the event, by their spelling in lower case.
_FIELDS: Final = {
    "event": "event",
    "event_name": "event",
    "user": "userId",
    "userid": "userId",
    "user_id": "userId",
    "anonymousid": "anonymousId",
    "anonymous_id": "anonymousId",
    "timestamp": "timestamp",
    "date": "timestamp",
    "messageid": "messageId",
    "message_id": "messageId",
    "type": "type",
}


class HistoryLine(NamedTuple):
    """A line of the file: its number, and the event as JSON or why it is not one."""

    number: int
    event: bytes
    error: str = ""


class Survey(msgspec.Struct):
    """The result of the first reading of the file."""

    job: str
    lines: int = 0
    usable: int = 0
    refused_count: int = 0
    refused: list[dict[str, Any]] = []

    def refuse(self, number: int, message: str) -> None:
        """Count a line that cannot be used, and keep why."""
        self.refused_count += 1
        if len(self.refused) < REFUSED_KEPT:
            self.refused.append({"line": number, "message": message})


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", help="The source that they belong to: its position in the file, from 0, or a property key.")
@bulk_options
@control_option
@json_option
def backfill(
    file: Path,
    source: str | None,
    yes: bool,
    dry_run: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Send events of the past from FILE (NDJSON, or CSV with a header).

    They are accepted in class low: what apps send goes first. FILE is read
    once to count them, to name the lines that cannot be used, and to say how
    many days they need; on a terminal the verb then asks.

    A line of NDJSON is an event as apps send it. A column of a CSV file is
    event, userId, anonymousId, timestamp, messageId, type, a path such as
    context.groupId, or else a property. Each event needs a timestamp. An
    event without messageId gets one from its text: equal lines count once.

    A second run repeats nothing, and after Ctrl-C the same command continues.
    The memory of accounts stays as it is.

    \b
    Examples:
      px-sidecar backfill history.ndjson --dry-run
      px-sidecar backfill exports/2025.csv --yes
    """
    if not file.is_file():
        raise Failed(f"{file} is a pipe or a device, which cannot be read twice; write its events to a file first.")
    with open_backend(control_flag, config_flag) as backend:
        survey = _survey(backend, file, source)
        job = next((job for job in backend.get("/v1/jobs")["jobs"] if job["spec"] == survey.job), None)
        status = backend.get("/v1/status")
        result: dict[str, Any] = {
            "lines": survey.lines,
            "usable": survey.usable,
            "refused": survey.refused,
            "days": round(days_needed(status, survey.usable), 3),
            "accepted": 0,
            "repeated": 0,
        }
        begin, goes, cancelled = 0, False, False
        if job is not None and job["state"] == "done":
            click.echo(
                f"This file was completed at {local_time_ms(job['changed_ms'])}; nothing is left to accept.", err=True
            )
        else:
            begin = 0 if job is None else int(job["position"])
            goes = goes_ahead(_what(survey, status, begin), yes=yes or not survey.usable, dry_run=dry_run)
        if goes:
            cancelled = _accept(backend, file, source, survey, begin, result)
    repeated = f"; {show_count(result['repeated'])} were already stored" if result["repeated"] else ""
    accepted = f"{events_of(result['accepted'])} accepted in class low{repeated}." if goes else ""
    result |= {"dry_run": dry_run, "cancelled": cancelled}
    report_accepted(result, accepted, nothing="Nothing is accepted", as_json=as_json)
    if cancelled or survey.refused_count:
        sys.exit(1)


def _what(survey: Survey, status: dict[str, Any], begin: int) -> str:
    text = f"{events_of(survey.usable)} in {counted(survey.lines, 'line')}."
    if survey.usable:
        text += f" {show_need(status, survey.usable)}"
    if begin:
        text += f" An earlier run ended after line {show_count(begin)}; this one continues there."
    if survey.refused_count:
        text += f"\n{counted(survey.refused_count, 'line')} left out, which cannot be used:"
        for refused in survey.refused[:REFUSED_SHOWN]:
            text += f"\n  line {refused['line']}: {printable(refused['message'])}"
    return text


def _survey(backend: ControlApi, file: Path, source: str | None) -> Survey:
    """Read the whole file, and let the daemon judge its events without storing them."""
    survey = Survey(_digest(file, source))
    progress, task = progress_bar("reading", total=file.stat().st_size)

    def usable(opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for line in _lines(opened, file):
            survey.lines = max(survey.lines, line.number)
            progress.update(task, completed=opened.tell())
            if line.error:
                survey.refuse(line.number, line.error)
            else:
                yield line.number, line.event

    with file.open("rb") as opened, progress:
        for numbers, batch in batches(usable(opened)):
            judged = backend.post("/v1/backfill/check", {"events": batch, "source": source})
            survey.usable += judged["usable"]
            for refused in judged["refused"]:
                survey.refuse(numbers[refused["index"]], refused["message"])
    survey.refused.sort(key=lambda refused: refused["line"])
    return survey


def _accept(
    backend: ControlApi, file: Path, source: str | None, survey: Survey, begin: int, result: dict[str, Any]
) -> bool:
    """Accept the events after line ``begin`` batch by batch, and count in ``result``. True if Ctrl-C ended it."""
    progress, task = progress_bar("accepting", total=survey.lines)
    job = {"source": source, "job": survey.job, "total": survey.lines}
    try:
        with file.open("rb") as opened, progress:
            lines = (
                (line.number, line.event) for line in _lines(opened, file) if line.number > begin and not line.error
            )
            after = begin
            for numbers, batch in batches(lines):
                answer = when_space_is_free(
                    backend,
                    "/v1/backfill",
                    job | {"events": batch, "after": after, "next": numbers[-1]},
                    waiting=lambda: progress.update(task, description="waiting for space"),
                )
                after = numbers[-1]
                result["accepted"] += answer["accepted"]
                result["repeated"] += answer["repeated"]
                progress.update(task, description="accepting", completed=after)
            # Without a next line: the job is done.
            when_space_is_free(backend, "/v1/backfill", job | {"events": [], "after": after}, waiting=lambda: None)
    except KeyboardInterrupt:
        return True
    return False


def _digest(file: Path, source: str | None) -> str:
    """Return what stands for the text of the file and the source: a changed file is another job."""
    digest = sha256((source or "").encode() + b"\0")
    with file.open("rb") as opened:
        for block in iter(lambda: opened.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _lines(opened: BinaryIO, file: Path) -> Iterator[HistoryLine]:
    return _csv_lines(opened) if file.suffix.lower() == ".csv" else _json_lines(opened)


def _json_lines(opened: BinaryIO) -> Iterator[HistoryLine]:
    for number, line in enumerate(opened, 1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if not text:
            continue
        try:
            event = decode(text)
        except BadJson as error:
            yield HistoryLine(number, b"", f"it is not JSON ({error})")
            continue
        if isinstance(event, dict) and "receivedMs" in event and "propertyKey" in event:
            raise Failed("The file was written by `outbox export`; use `px-sidecar outbox import` for it.")
        try:
            yield HistoryLine(number, _encoded(event))
        except UnicodeEncodeError:  # half a character, as an app leaves it that cuts texts
            yield HistoryLine(number, _encoded(decode(encode_repaired(event))))


def _csv_lines(opened: BinaryIO) -> Iterator[HistoryLine]:
    text = (line.decode("utf-8-sig", "replace") for line in opened)
    reader = csv.reader(text)
    try:
        header = next(reader, [])
        paths = [_path(name.strip()) for name in header]
        _ensure_columns(header, paths)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(paths):
                yield HistoryLine(reader.line_num, b"", f"it has {len(cells)} cells, and the header {len(paths)}")
                continue
            event: dict[str, Any] = {}
            for path, cell in zip(paths, cells, strict=True):
                if cell != "":
                    _set(event, path, _value(cell) if path[0] == "properties" else cell)
            yield HistoryLine(reader.line_num, _with_id(event))
    except csv.Error as error:
        raise Failed(f"Line {reader.line_num} is not CSV ({error}); correct the file.") from None


def _ensure_columns(header: list[str], paths: list[tuple[str, ...]]) -> None:
    """Raise Failed without a column of names, and for two columns of which one would silently replace the other."""
    if ("event",) not in paths:
        raise Failed("The CSV file has no column `event`; its first line must name the columns.")
    first: dict[tuple[str, ...], str] = {}
    for name, path in zip(header, paths, strict=True):
        if path in first:
            meant = ".".join(path)
            raise Failed(
                f"The columns `{first[path]}` and `{name}` of the CSV file both are {meant}; remove or rename one of them."
            )
        first[path] = name


def _path(name: str) -> tuple[str, ...]:
    if field := _FIELDS.get(name.lower()):
        return (field,)
    parts = tuple(name.split("."))
    return parts if parts[0] in ("context", "properties") and len(parts) > 1 else ("properties", name)


def _set(event: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        inner = event.setdefault(part, {})
        if not isinstance(inner, dict):  # two columns, `a` and `a.b`: the first one stays
            return
        event = inner
    event[path[-1]] = value


def _value(cell: str) -> object:
    """Return a number or a truth value as that, as JSON writes them; `007` and everything else stays a text."""
    try:
        value = msgspec.json.decode(cell.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return cell
    return value if isinstance(value, bool | int | float) else cell


def _encoded(event: Any) -> bytes:
    return _with_id(event) if isinstance(event, dict) else msgspec.json.encode(event)


def _with_id(event: dict[str, Any]) -> bytes:
    """Return the event as JSON, with type and messageId."""
    event.setdefault("type", "track")
    if not event.get("messageId"):
        text = msgspec.json.encode(event, order="deterministic")
        event["messageId"] = f"backfill:{blake2b(text, digest_size=16).hexdigest()}"
    return msgspec.json.encode(event)

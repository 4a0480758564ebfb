"""Shared parts of verbs that act on many events: the selection, the count first, the question, and pages with progress."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import click
import msgspec

from sidecar.cli.backend import TIMESTAMP, ensure_order
from sidecar.cli.common import print_json
from sidecar.control.client import ControlApi, DaemonClient
from sidecar.errors import Failed
from sidecar.units import counted, show_count, show_duration

__all__ = [
    "batches",
    "bulk_options",
    "count_events",
    "days_needed",
    "event_options",
    "events_of",
    "goes_ahead",
    "near_names",
    "report_accepted",
    "selection_of",
    "show_need",
    "when_space_is_free",
]

# Half of the largest request that the control API reads (sidecar/control/README.md#api).
BATCH_BYTES: Final = 2 * 2**20
BATCH_EVENTS: Final = 500
SPACE_POLL_S: Final = 2.0

F = TypeVar("F", bound=Callable[..., Any])


def event_options(function: F) -> F:
    """Add the options that select events: name, source, user and time."""
    options = (
        click.option("--name", help="Only events of this name."),
        click.option("--source", help="Only events of a source: its position in the file, from 0, or a property key."),
        click.option("--user", help="Only events of this user."),
        click.option(
            "--since",
            "since_ms",
            type=TIMESTAMP,
            callback=ensure_order,
            help="At or after: 24h (ago), or 2026-11-24T08:00.",
        ),
        click.option("--until", "until_ms", type=TIMESTAMP, callback=ensure_order, help="Before."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def bulk_options(function: F) -> F:
    """Add ``--yes`` and ``--dry-run``, for every verb that acts on many events."""
    function = click.option("--dry-run", is_flag=True, help="Stop after the count.")(function)
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def selection_of(selection: dict[str, Any], *, all_: bool, options: str) -> dict[str, Any]:
    """Return the selection as the calls take it; what comes after this moment is not selected.

    Raises UsageError, which names ``options``, unless there is either a filter or ``--all``.
    """
    if all_ == any(value is not None for value in selection.values()):
        raise click.UsageError(f"Select by {options}; or use --all alone.")
    until_ms = selection["until_ms"]
    return selection | {"all": all_, "until_ms": int(time.time() * 1000) + 1 if until_ms is None else until_ms}


def goes_ahead(what: str, *, yes: bool, dry_run: bool) -> bool:
    """Print the sentence ``what`` on stderr; ask on a terminal. False after ``--dry-run`` or the answer no.

    Without a terminal it goes ahead, as with ``--yes``.
    """
    click.echo(what, err=True)
    if dry_run:
        return False
    if yes or not on_terminal():
        return True
    return click.confirm("Go ahead?", err=True)


def on_terminal() -> bool:
    """Return whether the verb can ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def count_events(backend: ControlApi, path: str, selection: dict[str, Any]) -> int:
    """Return how many events a selection holds. ``path`` is that of the call that counts them."""
    counted = 0
    after: int | None = 0
    while after is not None:
        page = backend.post(path, {**selection, "after": after})
        counted, after = counted + page["count"], page["next"]
    return counted


def near_names(backend: ControlApi, name: str | None) -> str:
    """Return a hint with received names that are spelled like ``name``; empty if there are none."""
    if name is None:
        return ""
    known = {entry["name"] for entry in backend.get("/v1/names", {"sample": 0})["names"] if entry["name"]}
    by_folded = {known_name.casefold(): known_name for known_name in known - {name}}
    near = [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded, 3, 0.75)]
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def show_need(status: dict[str, Any], count: int) -> str:
    """Return the sentence that says how much of the day's quota ``count`` more events need."""
    quota, requests = status["quota"], count + status["pending"]
    pending = f", after the {show_count(status['pending'])} pending" if status["pending"] else ""
    if (usual := quota["limit"] - quota["reserve"]) <= 0:
        return "Class low may use nothing of the day: deliver.reserve_for_high keeps all of it."
    left = max(0, quota["left"] - quota["reserve"])
    if requests <= left:
        need = "It needs" if count == 1 else "They need"
        # The pace in force, which spreads the day with deliver.pace = "spread"; there is none while nothing is delivered.
        per_s = (status["delivering"] and status["pace"]) or status["ceiling"]
        return f"{need} about {show_duration(requests / per_s)}{pending}, if nothing else is sent."
    return (
        f"They need about {days_needed(status, count):.1f} days{pending}, at {show_count(usual)} requests a day without the "
        "reserve. They use up each day: what apps send after that waits for the next day, unless its class is high."
    )


def days_needed(status: dict[str, Any], count: int) -> float:
    """Return the days that what is pending and ``count`` more events need, if nothing else is accepted."""
    quota = status["quota"]
    return float((count + status["pending"]) / max(1, quota["limit"] - quota["reserve"]))


def batches(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[list[int], list[msgspec.Raw]]]:
    """Yield numbered JSON texts in batches that the control API takes: their numbers, and the texts."""
    numbers: list[int] = []
    batch: list[msgspec.Raw] = []
    size_bytes = 0
    for number, line in lines:
        if batch and (len(batch) == BATCH_EVENTS or size_bytes + len(line) > BATCH_BYTES):
            yield numbers, batch
            numbers, batch, size_bytes = [], [], 0
        numbers.append(number)
        batch.append(msgspec.Raw(line))
        size_bytes += len(line)
    if batch:
        yield numbers, batch


def when_space_is_free(backend: ControlApi, path: str, body: dict[str, Any], *, waiting: Callable[[], None]) -> Any:
    """Return the answer to a call that accepts events again, once half of the outbox is free.

    Calls ``waiting`` before each new attempt. Raises Failed without a daemon, since nothing is delivered meanwhile.
    """
    while (answer := backend.post(path, body))["full"]:
        if not isinstance(backend, DaemonClient):
            raise Failed(
                "Half of the outbox is in use; start the daemon, and run this again: it continues where it ended."
            )
        waiting()
        time.sleep(SPACE_POLL_S)
    return answer


def report_accepted(result: dict[str, Any], accepted: str, *, nothing: str, as_json: bool) -> None:
    """Print what a verb did that accepts many events: ``result`` as JSON, or a sentence; then what to do after Ctrl-C.

    ``accepted`` is that sentence, empty if the verb did not go ahead; ``nothing`` begins the one for that.
    """
    if as_json:
        print_json(result)
    else:
        click.echo(accepted or (f"{nothing} (--dry-run)." if result["dry_run"] else f"{nothing}."))
    if result["cancelled"]:
        click.echo("Cancelled; run the same command again to continue; it repeats nothing.", err=True)


def events_of(count: int) -> str:
    """Return ``1 event`` or ``1,234 events``."""
    return counted(count, "event")

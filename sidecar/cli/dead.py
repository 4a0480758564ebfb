"""``px-sidecar dead``: list, show, retry, discard and export dead letters."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import msgspec
from rich.text import Text

from sidecar.cli.backend import TIMESTAMP, control_option, ensure_order, open_backend
from sidecar.cli.bulk import bulk_options, goes_ahead
from sidecar.cli.common import hint, json_for, json_option, print_json
from sidecar.cli.screen import console, fields, json_text, local_time_ms, progress_bar, table_lines
from sidecar.control.client import ControlApi
from sidecar.errors import Failed
from sidecar.units import counted, show_count

__all__ = ["dead"]

# A copy of sidecar.observe.DEAD_REASONS (a test compares them): importing that package loads prometheus_client.
REASONS = ("bad_event", "refused", "firewall", "too_old", "failing", "mapping_error")
# Ids are at most 19 digits long, and a request line at most 32 KiB (``Limits`` in sidecar/http/message.py).
IDS_A_CALL = 1_000
F = TypeVar("F", bound=Callable[..., Any])
Selection = dict[str, Any]


def _selection_options(function: F) -> F:
    """Add the arguments that select letters: id, name, reason and time."""
    options = (
        click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1)),
        click.option("--name", "--event", "name", help="Only events of this name."),
        click.option("--user", help="Only events of this user."),
        click.option("--reason", type=click.Choice(REASONS), help="Only letters with this reason."),
        click.option(
            "--since",
            type=TIMESTAMP,
            callback=ensure_order,
            help="Last attempt at or after: 24h (ago), or 2026-11-24T08:00.",
        ),
        click.option("--until", type=TIMESTAMP, callback=ensure_order, help="Last attempt before."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _selection(
    ids: tuple[int, ...], name: str | None, user: str | None, reason: str | None, since: int | None, until: int | None
) -> Selection:
    """Return the selection as the control API expects it."""
    selection = {"ids": list(ids) or None, "name": name, "reason": reason, "since_ms": since, "until_ms": until}
    return selection | ({"user": user} if user is not None else {})


def _letter_pages(backend: ControlApi, selection: Selection) -> Iterator[dict[str, Any]]:
    """Yield all pages of the selected letters."""
    ids = sorted(set(selection["ids"] or ()))  # pages are in the order of the ids
    parts: list[list[int] | None] = [ids[at : at + IDS_A_CALL] for at in range(0, len(ids), IDS_A_CALL)] or [None]
    for part in parts:
        params = selection | {"ids": ",".join(map(str, part)) if part else None}
        after: int | None = 0
        while after is not None:
            page = backend.get("/v1/dead", params | {"after": after})
            after = page["next"]
            yield page


@click.group()
def dead() -> None:
    """List, show, retry, discard or export dead letters.

    A dead letter is an event that PX refused permanently, or that is invalid.
    It is kept for outbox.keep_dead. Works with and without a running daemon.

    \b
    Examples:
      px-sidecar dead list --reason refused --since 24h
      px-sidecar dead retry --name "Feature Used"
    """


@dead.command("list")
@_selection_options
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number.")
@control_option
@json_option
def list_(limit: int, control_flag: str | None, config_flag: str | None, as_json: bool, **options: Any) -> None:
    """List dead letters, oldest first.

    \b
    Example:
      px-sidecar dead list --reason refused --since 24h
      px-sidecar dead list --user u1 --event "Feature Used"
    """
    letters: list[dict[str, Any]] = []
    total = 0
    with open_backend(control_flag, config_flag) as backend:
        for page in _letter_pages(backend, _selection(**options)):
            total = page["dead"]
            letters += page["letters"]
            if len(letters) >= limit:
                break
    letters = letters[:limit]
    if as_json:
        print_json({"dead": total, "letters": letters})
        return
    rows = [
        (
            letter["id"],
            letter["reason"],
            letter["status"],
            local_time_ms(letter["last_ms"]),
            letter["name"],
            letter["user"],
            letter["detail"],
        )
        for letter in letters
    ]
    headings = ("id", "reason", "PX", "last", "name", "user")
    for line in table_lines(headings, [rows] if rows else [], wide=("name", "user"), width=console().width, below=True):
        click.echo(line)
    click.echo(f"{show_count(len(letters))} of {show_count(total)} dead letters are shown.", err=True)


@dead.command("show")
@click.argument("event_id", metavar="ID", type=click.IntRange(1))
@control_option
@json_option
def show(event_id: int, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show one dead letter: the reason, PX's answer and the event.

    \b
    Example:
      px-sidecar dead show 4711
    """
    with open_backend(control_flag, config_flag) as backend:
        letter = backend.get(f"/v1/dead/{event_id}")
    if as_json:
        print_json(letter)
        return
    pairs = [
        ("id", letter["id"]),
        ("reason", letter["reason"]),
        ("why", letter["detail"]),
        ("PX answered", letter["status"]),
        ("attempts", letter["attempts"]),
        ("first", local_time_ms(letter["first_ms"])),
        ("last", local_time_ms(letter["last_ms"])),
        ("name", letter["name"]),
        ("user", letter["user"]),
        ("received", local_time_ms(letter["received_ms"])),
    ]
    console().print(fields(pairs))
    click.echo("event:")
    console().print(Text(json_text(letter["event"])), soft_wrap=True)
    if letter["payload"] is not None:
        click.echo("payload as sent:")
        console().print(Text(json_text(letter["payload"])), soft_wrap=True)
    click.echo(_next_step(letter), err=True)


def _next_step(letter: dict[str, Any]) -> str:
    """Return what an operator can do about a letter; a retry cannot help one that is not an event."""
    if letter["reason"] == "bad_event":
        return hint(
            "What the app sent is not an event, and a retry cannot help. Correct the app; "
            f"`px-sidecar dead discard {letter['id']}` removes the letter."
        )
    return hint(f"`px-sidecar dead retry {letter['id']}` maps and sends it again.")


@dead.command("retry")
@_selection_options
@click.option("--all", "all_", is_flag=True, help="All dead letters.")
@bulk_options
@control_option
@json_option
def retry(all_: bool, as_json: bool, **options: Any) -> None:
    """Make dead letters pending again.

    The current mapping applies to them. They keep their messageId. Select by
    id, name, user, reason or time, or use --all. The number is shown first; on
    a terminal the verb asks. A retry cannot help a bad_event: if all
    selected letters are that, only --yes retries them.

    \b
    Examples:
      px-sidecar dead retry 4711 4712
      px-sidecar dead retry --reason refused --since 24h
    """
    moved, selected = _move("retry", all_, **options)
    if as_json:
        print_json(_result("retried", moved, selected, dry_run=options["dry_run"]))
    else:
        click.echo("Nothing is retried." if moved is None else f"{counted(moved, 'dead letter', 'is')} pending again.")


@dead.command("discard")
@_selection_options
@click.option("--all", "all_", is_flag=True, help="All dead letters.")
@bulk_options
@control_option
@json_option
def discard(all_: bool, as_json: bool, **options: Any) -> None:
    """Discard dead letters permanently.

    They count as dropped (discarded). Select by id, name, user, reason or
    time, or use --all. The number is shown first; on a terminal the verb asks.
    Export them first if in doubt.

    \b
    Example:
      px-sidecar dead discard --reason bad_event --until 7d
    """
    moved, selected = _move("discard", all_, **options)
    if as_json:
        print_json(_result("discarded", moved, selected, dry_run=options["dry_run"]))
    else:
        click.echo("Nothing is discarded." if moved is None else f"{counted(moved, 'dead letter', 'is')} discarded.")


@dead.command("export")
@_selection_options
@control_option
@click.option("--json", "_as_json", is_flag=True, help="Accepted as in other verbs; the output is always JSON.")
def export(control_flag: str | None, config_flag: str | None, _as_json: bool, **options: Any) -> None:
    """Print dead letters as NDJSON, one per line.

    Without a selection it prints all. Events pass through the current privacy
    rules.

    \b
    Example:
      px-sidecar dead export --reason refused > refused.ndjson
    """
    count = 0
    with open_backend(control_flag, config_flag) as backend:
        for page in _letter_pages(backend, _selection(**options)):
            for letter in page["letters"]:
                sys.stdout.write(json_for(sys.stdout, msgspec.json.encode(letter)) + "\n")
            count += len(page["letters"])
    click.echo(f"{counted(count, 'dead letter', 'is')} exported.", err=True)


def _result(what: str, moved: int | None, selected: int, *, dry_run: bool) -> dict[str, Any]:
    """Return the JSON of a verb that moves letters; the count is in it if the verb stopped there."""
    return {what: moved or 0} | ({"selected": selected, "dry_run": dry_run} if moved is None else {})


def _move(
    what: str,
    all_: bool,
    *,
    yes: bool,
    dry_run: bool,
    control_flag: str | None,
    config_flag: str | None,
    **options: Any,
) -> tuple[int | None, int]:
    """Retry or discard page by page; return the numbers of letters moved and selected.

    The first is None after ``--dry-run`` or the answer no. Raises Failed if an id is not a dead letter.
    """
    selection = _selection(**options)
    if all_ == any(value is not None for value in selection.values()):
        raise click.UsageError("Select by id, --name, --user, --reason, --since or --until; or use --all alone.")
    if selection["ids"] is None and selection["until_ms"] is None:
        # A retried letter that dies again during the loop would be selected again and again: fix the end now.
        selection = selection | {"until_ms": int(time.time() * 1000) + 1}
    selection = selection | {"all": all_}
    moved = 0
    with open_backend(control_flag, config_flag) as backend:
        counted = backend.post("/v1/dead/count", selection)
        at_least = "" if counted["complete"] else "At least "
        one = counted["count"] == 1
        sentence = f"{at_least}{show_count(counted['count'])} dead letter{' is' if one else 's are'} selected."
        if what == "retry":
            sentence += _note_on_bad_events(backend, selection, sentence, counted["count"], yes=yes or dry_run)
        if not goes_ahead(sentence, yes=yes or not counted["count"], dry_run=dry_run):
            return None, counted["count"]
        progress, task = progress_bar(f"dead {what}", total=counted["count"])
        after: int | None = 0
        with progress:
            while after is not None:
                page = backend.post(f"/v1/dead/{what}", {**selection, "after": after})
                after = page["next"]
                moved += page["moved"]
                progress.update(task, completed=moved)
    if selection["ids"] is not None and moved < len(set(selection["ids"])):
        raise Failed(
            f"{show_count(moved)} of {show_count(len(set(selection['ids'])))} were {'retried' if what == 'retry' else 'discarded'}; the others are not dead letters: "
            "`px-sidecar events show ID` shows their state."
        )
    return moved, counted["count"]


def _note_on_bad_events(backend: ControlApi, selection: Selection, counted: str, count: int, *, yes: bool) -> str:
    """Return a line on the letters that a retry cannot help; empty if there are none.

    If it helps none of them, print the sentence ``counted`` and raise Failed, unless ``yes``.
    """
    if selection["reason"] not in (None, "bad_event"):
        return ""
    bad = backend.post("/v1/dead/count", selection | {"reason": "bad_event"})["count"]
    if not bad:
        return ""
    text = hint(
        f"{show_count(bad)} of them {'is' if bad == 1 else 'are'} bad_event: what the app sent is not an event, and a retry "
        "cannot help. Correct the app; `px-sidecar dead discard --reason bad_event` removes them"
    )
    if bad == count and not yes:
        click.echo(counted, err=True)
        raise Failed(f"{text}. Nothing is retried without --yes.")
    return f"\n{text}."

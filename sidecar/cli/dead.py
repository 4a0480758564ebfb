"""``px-sidecar dead``: list, show, retry, discard and export dead letters."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import msgspec
from rich.text import Text

from sidecar.cli.asking import MOMENT, control_option, reach
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import bar, console, fields, json_text, moment_ms, table
from sidecar.control.client import Asked
from sidecar.errors import Failed
from sidecar.units import show_count

__all__ = ["dead"]

# As sidecar.observe.DEAD_REASONS, which a test compares; importing it would bring prometheus along.
REASONS = ("bad_event", "refused", "firewall", "too_old", "failing", "mapping_error")
F = TypeVar("F", bound=Callable[..., Any])
Chosen = dict[str, Any]


def _chosen_options(function: F) -> F:
    """Which letters: by id, name, reason or time."""
    options = (
        click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1)),
        click.option("--name", help="Only events of this name."),
        click.option("--reason", type=click.Choice(REASONS), help="Only those with this reason."),
        click.option("--since", type=MOMENT, help="Last attempt not before: 24h (ago), or 2026-11-24T08:00."),
        click.option("--until", type=MOMENT, help="Last attempt before."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _chosen(ids: tuple[int, ...], name: str | None, reason: str | None, since: int | None, until: int | None) -> Chosen:
    """As the API takes it."""
    return {"ids": list(ids) or None, "name": name, "reason": reason, "since_ms": since, "until_ms": until}


def _pages(asked: Asked, chosen: Chosen) -> Iterator[dict[str, Any]]:
    """All pages of letters that are chosen."""
    ids = chosen["ids"]
    params = chosen | {"ids": ",".join(map(str, ids)) if ids else None}
    after: int | None = 0
    while after is not None:
        page = asked.get("/v1/dead", params | {"after": after})
        after = page["next"]
        yield page


@click.group()
def dead() -> None:
    """List, show, retry, discard or export dead letters.

    A dead letter is an event that PX refused for good, or that is none. It is
    kept for outbox.keep_dead. Works with and without a running daemon.

    \b
    Examples:
      px-sidecar dead list --reason refused --since 24h
      px-sidecar dead retry --name "Feature Used"
    """


@dead.command("list")
@_chosen_options
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")
@control_option
@json_option
def list_(limit: int, control_flag: str | None, config_flag: str | None, as_json: bool, **choice: Any) -> None:
    """List dead letters, oldest first.

    \b
    Example:
      px-sidecar dead list --reason refused --since 24h
    """
    found: list[dict[str, Any]] = []
    total = 0
    with reach(control_flag, config_flag) as asked:
        for page in _pages(asked, _chosen(**choice)):
            total = page["dead"]
            found += page["letters"]
            if len(found) >= limit:
                break
    found = found[:limit]
    if as_json:
        print_json({"dead": total, "letters": found})
        return
    if found:
        rows = [
            (one["id"], one["reason"], one["status"], moment_ms(one["last_ms"]), one["name"], one["detail"])
            for one in found
        ]
        console().print(table(("id", "reason", "PX", "last", "name", "why"), rows, wide="why", cut={"name": 18}))
    click.echo(f"{show_count(len(found))} shown; there are {show_count(total)} dead letters in all.", err=True)


@dead.command("show")
@click.argument("event_id", metavar="ID", type=click.IntRange(1))
@control_option
@json_option
def show(event_id: int, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show one dead letter: why, what PX said, and the event.

    \b
    Example:
      px-sidecar dead show 4711
    """
    with reach(control_flag, config_flag) as asked:
        one = asked.get(f"/v1/dead/{event_id}")
    if as_json:
        print_json(one)
        return
    pairs = [
        ("id", one["id"]),
        ("reason", one["reason"]),
        ("why", one["detail"]),
        ("PX answered", one["status"]),
        ("attempts", one["attempts"]),
        ("first", moment_ms(one["first_ms"])),
        ("last", moment_ms(one["last_ms"])),
        ("name", one["name"]),
        ("user", one["user"]),
        ("received", moment_ms(one["received_ms"])),
    ]
    console().print(fields(pairs))
    click.echo("event:")
    console().print(Text(json_text(one["event"])), soft_wrap=True)
    if one["payload"] is not None:
        click.echo("the payload as sent:")
        console().print(Text(json_text(one["payload"])), soft_wrap=True)
    click.echo(f"`px-sidecar dead retry {event_id}` sends it again, mapped anew.", err=True)


@dead.command("retry")
@_chosen_options
@click.option("--all", "all_", is_flag=True, help="Really all of them.")
@control_option
@json_option
def retry(all_: bool, control_flag: str | None, config_flag: str | None, as_json: bool, **choice: Any) -> None:
    """Make dead letters pending again; they are mapped anew by today's rules.

    They keep their messageId. Choose by id, name, reason or time, or say --all.

    \b
    Examples:
      px-sidecar dead retry 4711 4712
      px-sidecar dead retry --reason refused --since 24h
    """
    moved = _move("retry", _chosen(**choice), all_, control_flag, config_flag)
    if as_json:
        print_json({"retried": moved})
    else:
        click.echo(f"{show_count(moved)} dead letters are pending again.")


@dead.command("discard")
@_chosen_options
@click.option("--all", "all_", is_flag=True, help="Really all of them.")
@control_option
@json_option
def discard(all_: bool, control_flag: str | None, config_flag: str | None, as_json: bool, **choice: Any) -> None:
    """Give dead letters up for good; they count as dropped (discarded).

    Choose by id, name, reason or time, or say --all. Export them first if in
    doubt.

    \b
    Example:
      px-sidecar dead discard --reason bad_event --until 7d
    """
    moved = _move("discard", _chosen(**choice), all_, control_flag, config_flag)
    if as_json:
        print_json({"discarded": moved})
    else:
        click.echo(f"{show_count(moved)} dead letters are discarded.")


@dead.command("export")
@_chosen_options
@control_option
@click.option("--json", "_as_json", is_flag=True, help="Accepted for likeness with other verbs: the output is JSON.")
def export(control_flag: str | None, config_flag: str | None, _as_json: bool, **choice: Any) -> None:
    """Print dead letters as NDJSON, a line for each; all if none are chosen.

    The events are as today's privacy rules let people see them.

    \b
    Example:
      px-sidecar dead export --reason refused > refused.ndjson
    """
    count = 0
    with reach(control_flag, config_flag) as asked:
        for page in _pages(asked, _chosen(**choice)):
            for letter in page["letters"]:
                sys.stdout.write(msgspec.json.encode(letter).decode() + "\n")
            count += len(page["letters"])
    click.echo(f"{show_count(count)} dead letters were exported.", err=True)


def _move(what: str, chosen: Chosen, all_: bool, control_flag: str | None, config_flag: str | None) -> int:
    """Retry or discard page by page; how many were moved. The end is fixed at the begin: what dies anew meanwhile stays."""
    if all_ == any(value is not None for value in chosen.values()):
        raise click.UsageError("Choose by id, --name, --reason, --since or --until; or say --all and nothing else.")
    if chosen["ids"] is None and chosen["until_ms"] is None:
        chosen = chosen | {"until_ms": int(time.time() * 1000) + 1}
    moved = 0
    with reach(control_flag, config_flag) as asked:
        progress, task = bar(f"dead {what}", total=asked.get("/v1/dead", {"limit": 1})["dead"])
        after: int | None = 0
        with progress:
            while after is not None:
                page = asked.post(f"/v1/dead/{what}", {**chosen, "all": all_, "after": after})
                after = page["next"]
                moved += page["moved"]
                progress.update(task, completed=moved)
    if chosen["ids"] is not None and moved < len(set(chosen["ids"])):
        raise Failed(
            f"{show_count(moved)} of {show_count(len(set(chosen['ids'])))} were moved; the others are no dead letters: "
            "`px-sidecar events show ID` tells what they are."
        )
    return moved

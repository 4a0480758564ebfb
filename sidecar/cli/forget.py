"""``px-sidecar forget``: remove all data of users from this host."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

import click

from sidecar.cli.backend import control_option, open_backend
from sidecar.cli.common import json_option, load_config, print_json
from sidecar.cli.px_queries import ask_px
from sidecar.cli.screen import printable, progress_bar
from sidecar.clock import SystemClock
from sidecar.control.client import ControlApi, DaemonClient
from sidecar.errors import Failed
from sidecar.px import delete_user
from sidecar.units import counted as how_many
from sidecar.units import show_count

__all__ = ["forget"]

# Each pass reads the whole outbox; the time of one grows with the number of users.
USERS_AT_ONCE: Final = 200
PX_USERS_AT_ONCE: Final = 20
LINKED_SHOWN: Final = 10
PX_USERS: Final = "the users in PX (--px deletes them)"
NOT_REACHED: Final = (
    "events that PX has (it has no way to delete one; its denylist ignores further ones)",
    "files that were exported (outbox export, dead export, events --json), backups and snapshots of the outbox",
    "outbox files that were set aside beside it (outbox.db.damaged-…, outbox.db.rescued-…): remove them",
    "logs of apps, and of this host before this release",
    "other hosts with px-sidecar: run the command there, too",
    "texts of other users' events, such as a property that names this user",
)


@click.command()
@click.argument("users", metavar="[USER]...", nargs=-1)
@click.option(
    "--from",
    "file",
    metavar="FILE",
    type=click.File("r", encoding="utf-8-sig"),
    help="Also the users in FILE, one per line.",
)
@click.option("--suppress", is_flag=True, help="Keep a salted hash of each, and drop what they send from now on.")
@click.option("--px", "in_px", is_flag=True, help="Delete the users in PX, too.")
@control_option
@json_option
def forget(
    users: tuple[str, ...],
    file: TextIO | None,
    suppress: bool,
    in_px: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Remove all data of the USERs from this host.

    Pending and dead events become dropped (forgotten) and lose their body.
    History and remembered traits are deleted, and deleted text is overwritten
    on disk. An event belongs to a user by its userId, anonymousId or
    previousId. With --px the running daemon deletes the users in PX at its
    pace and within its day, so it waits as events do while delivery is paused
    or PX is away. At the end the command names what it cannot reach.

    \b
    Examples:
      px-sidecar forget u-4711
      px-sidecar forget --suppress --px --from erasure-requests.txt
    """
    names = list(dict.fromkeys([*users, *_lines(file)]))
    if not names:
        raise click.UsageError("No user is named; give a USER, or --from FILE.")
    counted: Counter[str] = Counter()
    linked: set[str] = set()
    with open_backend(control_flag, config_flag) as backend:
        daemon_runs = isinstance(backend, DaemonClient)
        total = backend.get("/v1/status")["accepted"]
        progress, task = progress_bar("searching the outbox", total=total)
        with progress:
            for start in range(0, len(names), USERS_AT_ONCE):
                part = names[start : start + USERS_AT_ONCE]
                after: int | None = 0
                while after is not None:
                    page = backend.post("/v1/forget", {"users": part, "suppress": suppress, "after": after})
                    after = page.pop("next")
                    linked.update(page.pop("linked"))
                    counted.update(page)
                    progress.update(task, completed=after or total)
    linked -= set(names)
    result: dict[str, Any] = dict(counted) | {"linked": sorted(linked), "not_reached": _not_reached(in_px=in_px)}
    if in_px:
        result |= _delete_by_daemon(backend, names) if daemon_runs else _delete_in_px(config_flag, names)
    if as_json:
        print_json(result)
    else:
        _print(result, suppress=suppress)
    if counted["left"]:
        raise Failed(
            f"Of the events of these users, {show_count(counted['left'])} in flight could not be removed; run the command again "
            "in a moment, or stop the daemon first."
        )
    if result.get("px_failed"):
        raise Failed(
            f"{how_many(len(result['px_failed']), 'user', 'was')} not deleted in PX: {result['px_failed'][0]} "
            "Run the command again: it repeats nothing."
        )


def _not_reached(*, in_px: bool) -> list[str]:
    return [*NOT_REACHED] if in_px else [PX_USERS, *NOT_REACHED]


def _lines(file: TextIO | None) -> Iterator[str]:
    try:
        yield from (line.strip() for line in file or () if line.strip())
    except UnicodeDecodeError:
        raise Failed("The file given with --from is not UTF-8; convert it, or its users would not be found.") from None


def _delete_by_daemon(daemon: ControlApi, names: Sequence[str]) -> dict[str, Any]:
    """Have the daemon delete the users in PX, at its pace and within its day, until PX may not be asked any more."""
    total: Counter[str] = Counter()
    failed: list[str] = []
    left = list(names)
    progress, task = progress_bar("deleting in PX", total=len(names))
    with progress:
        while left:
            part = left[:PX_USERS_AT_ONCE]
            answer = daemon.post("/v1/forget/px", {"users": part})
            total.update({name: answer[name] for name in ("deleted", "absent")})
            failed += answer["failed"]
            left = answer["left"] + left[len(part) :]
            progress.update(task, completed=len(names) - len(left))
            if answer["left"] == part:
                failed += [f"{user}: {answer['why']}" for user in left]
                break
    return _in_px(total, failed)


def _delete_in_px(config_flag: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Delete the users in PX without a daemon, whose pace and day nothing else spends meanwhile."""
    from sidecar.control.px_calls import deletions  # loads the daemon's parts, which no other path of this verb needs

    replies = ask_px(load_config(config_flag), [delete_user(name) for name in names])
    done = deletions(names, replies, SystemClock().wall_ms())
    return _in_px(done, done["failed"])


def _in_px(counts: Mapping[str, int], failed: list[str]) -> dict[str, Any]:
    return {"px_deleted": counts["deleted"], "px_absent": counts["absent"], "px_failed": failed}


def _print(result: dict[str, Any], *, suppress: bool) -> None:
    click.echo(
        f"Forgotten: {show_count(result['pending'])} pending, {show_count(result['dead'])} dead and "
        f"{show_count(result['history'])} settled events, {show_count(result['memory'])} user records."
    )
    if suppress:
        click.echo("What these users send from now on is dropped (suppressed).")
    if "px_deleted" in result:
        click.echo(
            f"PX: {show_count(result['px_deleted'])} users deleted, {show_count(result['px_absent'])} not there."
        )
    if result["linked"]:
        shown = ", ".join(result["linked"][:LINKED_SHOWN])
        text = f"Their events also named these ids, whose own events are kept; forget them, too: {shown}"
        click.echo(printable(text), err=True)
    click.echo("Not reached:", err=True)
    for what in result["not_reached"]:
        click.echo(f"  - {what}", err=True)

"""``px-sidecar reconcile``: what PX says it has against what was delivered.

PX answers 201 and drops some events silently (facts: ``px_and_sdks.md`` 1.2), so that only counting tells.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, Final

import click
import msgspec

from sidecar.cli.asking import MOMENT, control_option, reach
from sidecar.cli.common import json_option, load_config, print_json
from sidecar.cli.px_asking import ask_px, found_events
from sidecar.cli.screen import bar, console, moment_ms, table
from sidecar.config import Config
from sidecar.control.client import Asked
from sidecar.errors import Failed
from sidecar.px import read_events
from sidecar.units import show_count

__all__ = ["Account", "reconcile"]

# PX shows an event some minutes after it took it.
TOO_NEW_MS: Final = 15 * 60_000
MINUTE_MS: Final = 60_000
MAX_RANGE_MS: Final = 190 * 86_400_000  # facts: px_and_sdks.md 1.6
NAMES_A_TIME: Final = 20


class Name(msgspec.Struct):
    """One event name: how often it was delivered, and how often PX has it (None: not asked, or it cannot be)."""

    name: str
    delivered: int
    px: int | None = None

    @property
    def missing(self) -> int:
        """How many of them PX does not have."""
        return 0 if self.px is None else max(0, self.delivered - self.px)


class Account(msgspec.Struct):
    """What ``--json`` prints, and ``--add`` reads.

    Events are counted by their date, in [since, until]. ``complete_since_ms`` is later than ``since_ms`` if the history
    of this host does not reach back so far: then PX rightly has more.
    """

    since_ms: int
    until_ms: int
    complete_since_ms: int
    names: list[Name]
    delivered: int = 0
    px: int | None = None
    missing: int = 0


@click.command()
@click.option("--since", "since_ms", type=MOMENT, default="24h", show_default=True, help="As 24h (ago), or a date.")
@click.option("--until", "until_ms", type=MOMENT, help="Likewise  [default: 15 minutes ago].")
@click.option("--add", "others", type=click.File("rb"), multiple=True, help="Another host's figures (--local --json).")
@click.option("--local", is_flag=True, help="Only count what this host has delivered; do not ask PX.")
@control_option
@json_option
def reconcile(
    since_ms: int,
    until_ms: int | None,
    others: tuple[BinaryIO, ...],
    local: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Compare what PX has with what was delivered, per event name.

    Events are counted by their date; the newest 15 minutes are left out, since
    PX shows events late. If several hosts deliver to the PX subscription, add
    the figures of the others with --add; the time is then that of the files.
    Exits with 1 if PX has fewer than were delivered. The key needs Read.

    \b
    Examples:
      px-sidecar reconcile --since 24h
      ssh host2 px-sidecar reconcile --local --json > host2.json
      px-sidecar reconcile --add host2.json
    """
    added = [_read(file) for file in others]
    since_ms, until_ms = _window(since_ms, until_ms, added)
    with reach(control_flag, config_flag) as asked:
        account = _delivered(asked, since_ms, until_ms)
    account.complete_since_ms = max([account.complete_since_ms, *(one.complete_since_ms for one in added)])
    account.names = _together([account, *added])
    if not local:
        _ask_px(load_config(config_flag), account)
    account.delivered = sum(one.delivered for one in account.names)
    if as_json:
        print_json(account)
    else:
        _show(account)
    if account.missing:
        sys.exit(1)


def _window(since_ms: int, until_ms: int | None, added: list[Account]) -> tuple[int, int]:
    """The time that is looked at. Raises Failed if there is none, or if the files do not agree about it."""
    windows = {(one.since_ms, one.until_ms) for one in added}
    if len(windows) > 1:
        raise Failed(
            "The files given with --add are about different times; make them with the same --since and --until."
        )
    if windows:
        return windows.pop()
    newest_ms = int(time.time() * 1000) - TOO_NEW_MS
    until_ms = min(newest_ms, newest_ms if until_ms is None else until_ms) // MINUTE_MS * MINUTE_MS
    since_ms = since_ms // MINUTE_MS * MINUTE_MS
    if since_ms >= until_ms:
        raise Failed("The time ends before it begins: the newest 15 minutes are left out; give an earlier --since.")
    if until_ms - since_ms > MAX_RANGE_MS:
        raise Failed("PX looks back over 190 days at most; give a later --since.")
    return since_ms, until_ms


def _read(file: BinaryIO) -> Account:
    try:
        return msgspec.json.decode(file.read(), type=Account)
    except msgspec.DecodeError as error:
        raise Failed(f"{file.name} holds no figures of `px-sidecar reconcile --local --json` ({error}).") from None


def _delivered(asked: Asked, since_ms: int, until_ms: int) -> Account:
    """What this host has delivered, counted page by page, newest first."""
    names: Counter[str] = Counter()
    rows = ever = 0
    oldest_ms: int | None = None
    before: str | None = None
    progress, task = bar("looking through the history", total=None)
    with progress:
        while True:
            page = asked.get("/v1/delivered", {"since_ms": since_ms, "until_ms": until_ms, "before": before})
            names.update(page["names"])
            rows, ever = rows + page["rows"], page["ever"]
            oldest_ms = page["oldest_ms"] or oldest_ms
            progress.update(task, completed=rows)
            if (before := page["next"]) is None:
                break
    complete_since_ms = since_ms
    if rows < ever and (oldest_ms is None or oldest_ms > since_ms):
        # The history goes oldest first: what was delivered after the oldest that is kept is there.
        complete_since_ms = until_ms if oldest_ms is None else min(oldest_ms, until_ms)
    return Account(since_ms, until_ms, complete_since_ms, [Name(name, count) for name, count in names.items()])


def _together(accounts: Iterable[Account]) -> list[Name]:
    """The names of all accounts. PX's filters do not tell cases apart (facts: ``px_and_sdks.md`` 1.2), so nor do we."""
    found: dict[str, Name] = {}
    for account in accounts:
        for one in account.names:
            together = found.setdefault(one.name.casefold(), Name(one.name, 0))
            together.delivered += one.delivered
    return sorted(found.values(), key=lambda one: (-one.delivered, one.name))


def _ask_px(config: Config, account: Account) -> None:
    progress, task = bar("asking PX", total=len(account.names))
    askable = [one for one in account.names if ";" not in one.name]  # PX's filter reads it as its "and"
    with progress:
        for start in range(0, len(askable), NAMES_A_TIME):
            part = askable[start : start + NAMES_A_TIME]
            requests = [
                read_events(event_name=one.name, from_ms=account.since_ms, until_ms=account.until_ms, page_size=1)
                for one in part
            ]
            for one, reply in zip(part, ask_px(config, requests), strict=True):
                one.px = found_events(reply)["totalHits"]
            progress.update(task, completed=start + len(part))
    account.px = sum(one.px or 0 for one in account.names)
    account.missing = sum(one.missing for one in account.names)


def _show(account: Account) -> None:
    out = console()
    out.print(f"Events dated {moment_ms(account.since_ms)} to {moment_ms(account.until_ms)}:")
    rows = [
        (one.name, show_count(one.delivered), *_compared(one), _verdict(one, asked=account.px is not None))
        for one in account.names
    ]
    out.print(table(("name", "delivered", "in PX", "verdict"), rows, wide="name"))
    if account.complete_since_ms > account.since_ms:
        out.print(
            f"Note: the history reaches back to {moment_ms(account.complete_since_ms)} only (outbox.keep_delivered), so that "
            "what was delivered before is not counted."
        )
    if account.px is None:
        out.print(f"{show_count(account.delivered)} events were delivered.")
    elif account.missing:
        out.print(
            f"PX has {show_count(account.missing)} events fewer than were delivered. It drops silently beyond 1,000 "
            "events of a user a day, 500 of a session and 2,000 event names; some plans want names registered under "
            "Administration > Events."
        )
    else:
        out.print("PX has everything that was delivered.")


def _compared(one: Name) -> tuple[str]:
    return ("-" if one.px is None else show_count(one.px),)


def _verdict(one: Name, *, asked: bool) -> str:
    if one.px is None:
        return "cannot be asked (;)" if asked else ""
    if one.missing:
        return f"{show_count(one.missing)} MISSING"
    more = one.px - one.delivered
    return f"{show_count(more)} more" if more else "ok"

"""``px-sidecar reconcile``: compare the number of events in PX with the number delivered, for each event name.

PX answers 201 to events above its own limits and stores none of them (sidecar/px/README.md#limits), so only counting
shows such a loss. One read of ``totalHits`` counts one name (sidecar/px/README.md#reading-back).
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, Final

import click
import msgspec

from sidecar.cli.backend import TIMESTAMP, control_option, open_backend
from sidecar.cli.common import json_option, print_json
from sidecar.cli.px_queries import totals_in_px
from sidecar.cli.screen import console, local_time_ms, progress_bar, table
from sidecar.control.client import ControlApi
from sidecar.errors import Failed
from sidecar.px import add_up_names
from sidecar.units import counted, show_count

__all__ = ["Reconciliation", "reconcile"]

# PX shows an event some minutes after it accepted it; counted earlier, it would be reported as missing.
TOO_NEW_MS: Final = 15 * 60_000
MINUTE_MS: Final = 60_000
# PX refuses a longer range with 400: sidecar/px/README.md#reading-back.
MAX_RANGE_MS: Final = 190 * 86_400_000


class NameCount(msgspec.Struct):
    """One event name: its delivered events, and those in PX (None: PX was not asked, or cannot be asked)."""

    name: str
    delivered: int
    px: int | None = None

    @property
    def missing(self) -> int:
        """The number of delivered events that PX does not have."""
        return 0 if self.px is None else max(0, self.delivered - self.px)


class Reconciliation(msgspec.Struct):
    """The figures that ``--json`` prints and ``--add`` reads.

    Events are counted by their date, from ``since_ms`` to ``until_ms`` inclusive. ``complete_since_ms`` is later than
    ``since_ms`` if the history of this host starts later; PX then has more events than were counted here.
    """

    since_ms: int
    until_ms: int
    complete_since_ms: int
    names: list[NameCount]
    delivered: int = 0
    px: int | None = None
    missing: int = 0


@click.command()
@click.option(
    "--since", "since_ms", type=TIMESTAMP, default="24h", show_default=True, help="Start: 24h (ago), or a date."
)
@click.option("--until", "until_ms", type=TIMESTAMP, help="End  [default: 15 minutes ago].")
@click.option("--add", "others", type=click.File("rb"), multiple=True, help="Another host's figures (--local --json).")
@click.option("--local", is_flag=True, help="Only count what this host delivered; do not ask PX.")
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
    """Compare the events in PX with those delivered, per event name.

    Events are counted by their date. The newest 15 minutes are left out,
    because PX shows events late. If several hosts deliver to the subscription,
    add their figures with --add; start and end then come from the files. Exits
    with 1 if PX has fewer events than were delivered, or if none of them could
    be compared. The API key needs Read.

    \b
    Examples:
      px-sidecar reconcile --since 24h
      ssh host2 px-sidecar reconcile --local --json > host2.json
      px-sidecar reconcile --add host2.json
    """
    added = [_read_figures(file) for file in others]
    since_ms, until_ms = _window(since_ms, until_ms, added)
    with open_backend(control_flag, config_flag) as backend:
        result = _count_delivered(backend, since_ms, until_ms)
    result.complete_since_ms = max([result.complete_since_ms, *(host.complete_since_ms for host in added)])
    result.names = _merge_names([result, *added])
    if not local:
        _ask_px(backend, config_flag, result)
    result.delivered = sum(name.delivered for name in result.names)
    if as_json:
        print_json(result)
    else:
        _show(result, asked=not local)
    if result.missing or (result.px is None and result.delivered and not local):
        sys.exit(1)  # events are missing, or none could be compared


def _window(since_ms: int, until_ms: int | None, added: list[Reconciliation]) -> tuple[int, int]:
    """Return start and end, in whole minutes. Raises Failed if the window is empty or too long, or if files differ."""
    windows = {(host.since_ms, host.until_ms) for host in added}
    if len(windows) > 1:
        raise Failed("The files given with --add cover different times; create them with the same --since and --until.")
    if windows:
        return windows.pop()
    newest_ms = int(time.time() * 1000) - TOO_NEW_MS
    is_reversed = until_ms is not None and until_ms // MINUTE_MS <= since_ms // MINUTE_MS
    until_ms = min(newest_ms, newest_ms if until_ms is None else until_ms) // MINUTE_MS * MINUTE_MS
    since_ms = since_ms // MINUTE_MS * MINUTE_MS
    if since_ms >= until_ms:
        why = "--until is not after --since" if is_reversed else "the newest 15 minutes are left out"
        raise Failed(f"The time window is empty: {why}; give an earlier --since.")
    if until_ms - since_ms > MAX_RANGE_MS:
        raise Failed("PX reads back at most 190 days; give a later --since.")
    return since_ms, until_ms


def _read_figures(file: BinaryIO) -> Reconciliation:
    try:
        return msgspec.json.decode(file.read(), type=Reconciliation)
    except msgspec.DecodeError as error:
        raise Failed(
            f"{file.name} is not output of `px-sidecar reconcile --local --json` ({error}); create it again."
        ) from None


def _count_delivered(backend: ControlApi, since_ms: int, until_ms: int) -> Reconciliation:
    """Count the events that this host delivered, page by page, newest first."""
    names: Counter[str] = Counter()
    rows = ever = 0
    oldest_ms: int | None = None
    before: str | None = None
    progress, task = progress_bar("reading the history", total=None)
    with progress:
        while True:
            page = backend.get("/v1/delivered", {"since_ms": since_ms, "until_ms": until_ms, "before": before})
            names.update(page["names"])
            rows, ever = rows + page["rows"], page["ever"]
            oldest_ms = page["oldest_ms"] or oldest_ms
            progress.update(task, completed=rows)
            if (before := page["next"]) is None:
                break
    complete_since_ms = since_ms
    if rows < ever and (oldest_ms is None or oldest_ms > since_ms):
        # Retention deletes the oldest rows first: from the oldest row that is left, the history is complete.
        complete_since_ms = until_ms if oldest_ms is None else min(oldest_ms, until_ms)
    counts = [NameCount(name, count) for name, count in names.items()]
    return Reconciliation(since_ms, until_ms, complete_since_ms, counts)


def _merge_names(hosts: Iterable[Reconciliation]) -> list[NameCount]:
    """Add up the names of all hosts, most events first."""
    added = add_up_names((name.name, name.delivered) for host in hosts for name in host.names)
    return [NameCount(name, count) for name, count in sorted(added.items(), key=lambda item: (-item[1], item[0]))]


def _ask_px(backend: ControlApi, config_flag: str | None, result: Reconciliation) -> None:
    """Fill in what PX has, some names at a time. Raises Failed or ConfigError."""
    progress, task = progress_bar("asking PX", total=len(result.names))
    # PX's filter language reads ";" as "and" and has no way to quote it: such a name cannot be asked for.
    left = [name for name in result.names if ";" not in name.name]
    with progress:
        while left:
            names = [name.name for name in left]
            totals = totals_in_px(backend, config_flag, names, result.since_ms, result.until_ms)
            for name, total in zip(left, totals, strict=False):
                name.px = total
            left = left[len(totals) :]
            progress.advance(task, len(totals))
    if any(name.px is not None for name in result.names):  # else nothing was compared, and 0 would be a claim
        result.px = sum(name.px or 0 for name in result.names)
    result.missing = sum(name.missing for name in result.names)


def _show(result: Reconciliation, *, asked: bool) -> None:
    out = console()
    out.print(f"Events dated {local_time_ms(result.since_ms)} to {local_time_ms(result.until_ms)}:")
    rows = [(name.name, show_count(name.delivered), _in_px(name), _verdict(name, asked=asked)) for name in result.names]
    out.print(table(("name", "delivered", "in PX", "verdict"), rows, wide="name"))
    if result.complete_since_ms > result.since_ms:
        out.print(
            f"Note: the history starts at {local_time_ms(result.complete_since_ms)} (outbox.keep_delivered); events "
            "delivered before are not counted."
        )
    if not asked:
        out.print(f"{counted(result.delivered, 'event', 'was')} delivered.")
    elif result.missing:
        out.print(
            f"PX has {counted(result.missing, 'event')} fewer than were delivered. It discards events above 1,000 per "
            "user and day, 500 per session and 2,000 event names without an error; some plans require each name to be "
            "registered under Administration > Events."
        )
    elif not result.names:
        out.print("No event was delivered in this time, so nothing was compared.")
    elif result.px is None:
        out.print("Nothing was compared: none of the names that were delivered is one that PX can be asked for.")
    else:
        unasked = sum(name.px is None for name in result.names)
        but = f", except {counted(unasked, 'name')} with a semicolon, which PX cannot be asked for" if unasked else ""
        out.print(f"PX has all events that were delivered{but}.")


def _in_px(name: NameCount) -> str:
    return "-" if name.px is None else show_count(name.px)


def _verdict(name: NameCount, *, asked: bool) -> str:
    if name.px is None:
        return "cannot ask (;)" if asked else ""
    if name.missing:
        return f"{show_count(name.missing)} MISSING"
    more = name.px - name.delivered
    return f"{show_count(more)} more" if more else "ok"

"""``px-sidecar resend``: accept delivered events again, in class low."""

import sys
from typing import Any

import click

from sidecar.cli.backend import control_option, open_backend
from sidecar.cli.bulk import (
    bulk_options,
    count_events,
    days_needed,
    event_options,
    events_of,
    goes_ahead,
    near_names,
    report_accepted,
    selection_of,
    show_need,
    when_space_is_free,
)
from sidecar.cli.common import json_option
from sidecar.cli.screen import progress_bar
from sidecar.control.client import ControlApi
from sidecar.units import show_count

__all__ = ["resend"]


@click.command()
@event_options
@click.option("--all", "all_", is_flag=True, help="All delivered events of the history.")
@bulk_options
@control_option
@json_option
def resend(
    all_: bool,
    yes: bool,
    dry_run: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
    **selection: Any,
) -> None:
    """Send delivered events to PX again.

    They are accepted again in class low: what apps send goes first. Select by
    name, source, user or time of delivery, or use --all; the history reaches
    back for outbox.keep_delivered. Their number and the days that they need
    are shown first; on a terminal the verb asks.

    Each event is resent once: a second run repeats nothing, and after Ctrl-C
    the same command continues. PX gets the original date and account, and a
    messageId with "resend:" before it. Calls that write people are left out.

    \b
    Examples:
      px-sidecar resend --since 2026-11-24T08:00 --until 2026-11-24T09:30
      px-sidecar resend --name "Feature Used" --since 6h --yes
    """
    selection = selection_of(selection, all_=all_, options="--name, --source, --user, --since or --until")
    with open_backend(control_flag, config_flag) as backend:
        count = count_events(backend, "/v1/resend/count", selection)
        status = backend.get("/v1/status")
        result: dict[str, Any] = {
            "selected": count,
            "days": round(days_needed(status, count), 3),
            "accepted": 0,
            "repeated": 0,
        }
        what = f"{events_of(count)} {'was' if count == 1 else 'were'} delivered, and not resent before."
        what += f" {show_need(status, count)}" if count else near_names(backend, selection["name"])
        cancelled = False
        goes = goes_ahead(what, yes=yes or not count, dry_run=dry_run)
        if goes:
            cancelled = _resend(backend, selection, result)
    repeated = f"; {show_count(result['repeated'])} were already accepted again" if result["repeated"] else ""
    accepted = f"{events_of(result['accepted'])} accepted again in class low{repeated}." if goes else ""
    result |= {"dry_run": dry_run, "cancelled": cancelled}
    report_accepted(result, accepted, nothing="Nothing is resent", as_json=as_json)
    if cancelled:
        sys.exit(1)


def _resend(backend: ControlApi, selection: dict[str, Any], result: dict[str, Any]) -> bool:
    """Resend page by page, and count in ``result``. True if Ctrl-C ended it."""
    progress, task = progress_bar("resending", total=result["selected"])
    after: int | None = 0
    try:
        with progress:
            while after is not None:
                page = when_space_is_free(
                    backend,
                    "/v1/resend",
                    {**selection, "after": after},
                    waiting=lambda: progress.update(task, description="waiting for space"),
                )
                after = page["next"]
                result["accepted"] += page["accepted"]
                result["repeated"] += page["repeated"]
                done = result["accepted"] + result["repeated"]
                progress.update(task, description="resending", completed=done)
    except KeyboardInterrupt:
        return True
    return False

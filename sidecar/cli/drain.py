"""``px-sidecar drain``: wait until nothing is pending."""

import time
from typing import Any

import click

from sidecar.cli.backend import DURATION, connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.screen import printable, progress_bar
from sidecar.errors import Failed
from sidecar.units import counted, show_count

__all__ = ["drain"]

POLL_S = 0.25


@click.command()
@click.option("--timeout", "timeout_s", type=DURATION, help="Give up after this time, as in 10m; exit 1.")
@control_option
@json_option
def drain(timeout_s: float | None, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Wait until nothing is pending, with a progress bar.

    Exits with 1 at once if delivery is paused, because it would wait
    forever. While PX is away, or the day is spent, it says so and waits.

    \b
    Example:
      px-sidecar drain --timeout 10m && systemctl stop px-sidecar
    """
    daemon = connect_daemon(control_flag, config_flag)
    started_s = time.monotonic()
    status = daemon.get("/v1/status")
    before, said = status, ""
    progress, task = progress_bar("draining", total=status["pending"])
    with progress:
        while status["pending"]:
            _raise_if_pointless(status, None if timeout_s is None else started_s + timeout_s - time.monotonic())
            if not status["delivering"] and status["reasons"] and status["reasons"][0] != said:
                said = status["reasons"][0]
                progress.console.print(f"Waiting, nothing is delivered: {printable(hint(said))}", soft_wrap=True)
            time.sleep(POLL_S)
            status = daemon.get("/v1/status")
            done = status["delivered"] - before["delivered"]
            progress.update(task, completed=done, total=done + status["pending"])
    if as_json:
        print_json(status)
    else:
        click.echo(_summary(before, status))


def _summary(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what became of the events meanwhile: those that were dropped or are dead were not delivered."""
    text = f"Nothing is pending; {counted(after['delivered'] - before['delivered'], 'event', 'was')} delivered"
    if dropped := after["dropped"] - before["dropped"]:
        text += f", {show_count(dropped)} dropped"
    if (dead := after["dead"] - before["dead"]) > 0:
        text += f", and {show_count(dead)} {'is' if dead == 1 else 'are'} dead ({hint('`px-sidecar dead list`')})"
    return text + " in the meantime."


def _raise_if_pointless(status: dict[str, Any], left_s: float | None) -> None:
    """Raise Failed if delivery is paused or no time is left."""
    if status["state"] == "paused":
        raise Failed(f"{counted(status['pending'], 'event', 'is')} pending. {status['reasons'][0]}")
    if left_s is not None and left_s <= 0:
        why = f" {status['reasons'][0]}" if status["reasons"] else ""
        raise Failed(f"{counted(status['pending'], 'event', 'is')} still pending.{why}")

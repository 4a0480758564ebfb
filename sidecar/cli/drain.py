"""``px-sidecar drain``: wait until nothing is pending."""

import time
from typing import Any

import click

from sidecar.cli.asking import DURATION, control_option, the_daemon
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import bar
from sidecar.errors import Failed
from sidecar.units import show_count

__all__ = ["drain"]

LOOK_S = 0.25


@click.command()
@click.option("--timeout", "timeout_s", type=DURATION, help="Give up after this long, as in 10m; exit 1.")
@control_option
@json_option
def drain(timeout_s: float | None, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Wait until nothing is pending, with a progress bar.

    Exits with 1 at once while delivery is paused, since that can take for ever.

    \b
    Example:
      px-sidecar drain --timeout 10m && systemctl stop px-sidecar
    """
    daemon = the_daemon(control_flag, config_flag)
    started_s = time.monotonic()
    status = daemon.get("/v1/status")
    before = status["delivered"]
    progress, task = bar("draining", total=status["pending"])
    with progress:
        while status["pending"]:
            _judge(status, None if timeout_s is None else started_s + timeout_s - time.monotonic())
            time.sleep(LOOK_S)
            status = daemon.get("/v1/status")
            done = status["delivered"] - before
            progress.update(task, completed=done, total=done + status["pending"])
    if as_json:
        print_json(status)
    else:
        click.echo(f"Nothing is pending; {show_count(status['delivered'] - before)} events were delivered meanwhile.")


def _judge(status: dict[str, Any], left_s: float | None) -> None:
    """Raise Failed where waiting has no sense."""
    if status["state"] == "paused":
        raise Failed(f"{show_count(status['pending'])} events are pending. {status['reasons'][0]}")
    if left_s is not None and left_s <= 0:
        why = f" {status['reasons'][0]}" if status["reasons"] else ""
        raise Failed(f"{show_count(status['pending'])} events are still pending.{why}")

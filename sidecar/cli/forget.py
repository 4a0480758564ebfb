"""``px-sidecar forget``: remove a user from the outbox and its memory."""

from collections import Counter

import click

from sidecar.cli.asking import control_option, reach
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import bar
from sidecar.errors import Failed
from sidecar.units import show_count

__all__ = ["forget"]


@click.command()
@click.argument("user")
@control_option
@json_option
def forget(user: str, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Remove USER from pending, dead, history and memory of this host.

    Pending and dead events become dropped (forgotten) and lose their body,
    history is deleted, and deleted text is overwritten on disk. What PX has
    already is PX's to delete.

    \b
    Example:
      px-sidecar forget u-4711
    """
    counted: Counter[str] = Counter()
    with reach(control_flag, config_flag) as asked:
        total = asked.get("/v1/status")["accepted"]
        progress, task = bar("looking through the outbox", total=total)
        after: int | None = 0
        with progress:
            while after is not None:
                page = asked.post("/v1/forget", {"user": user, "after": after})
                after = page.pop("next")
                counted.update(page)
                progress.update(task, completed=after or total)
    if as_json:
        print_json(counted)
    else:
        click.echo(
            f"Forgotten: {show_count(counted['pending'])} pending, {show_count(counted['dead'])} dead and "
            f"{show_count(counted['history'])} settled events, {show_count(counted['memory'])} memories of the user."
        )
    if counted["left"]:
        raise Failed(
            f"{show_count(counted['left'])} events of this user are just being delivered; run it again in a moment, or "
            "stop the daemon first."
        )

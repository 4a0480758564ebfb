"""``px-sidecar reload``: have the daemon read its configuration again, and say what that did."""

import json
import sys
from typing import Any

import click

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.screen import printable
from sidecar.control.client import CallRefused, ControlApi
from sidecar.errors import ConfigError

__all__ = ["note_credential", "reload"]


@click.command()
@control_option
@json_option
def reload(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Have the daemon read its configuration again.

    Prints each setting that was taken, and each that waits for a restart. The
    key in px.api_key_file and the TLS certificate are read again, too; a key
    that is a systemd credential needs a restart. A configuration that cannot be
    used changes nothing: every problem is printed with its line, and the exit
    code is 78.

    \b
    Example:
      px-sidecar reload
    """
    daemon = connect_daemon(control_flag, config_flag)
    try:
        answer = daemon.post("/v1/reload")
    except CallRefused as refused:
        _fail(refused, as_json=as_json)
        raise
    if as_json:
        print_json(answer)
        return
    for line in _lines(answer):
        click.echo(line)
    note_credential(daemon)


def note_credential(daemon: ControlApi) -> None:
    """Say if a new key waits for a restart: its author expects it to be used now."""
    from sidecar.cli.px_queries import (
        changed_credential,  # here: what asks PX loads much that these verbs need for nothing else
    )

    if note := changed_credential(daemon):
        click.echo(hint(f"Note: {note}"), err=True)


def _fail(refused: CallRefused, *, as_json: bool) -> None:
    """Print what is wrong with the file and exit; return if the reload failed for another reason."""
    problems = refused.answer.get("problems") or []
    if not problems:
        return
    if as_json:
        print_json({"error": str(refused), "exit_code": ConfigError.exit_code, "problems": problems})
    elif len(problems) == 1:
        click.echo(f"px-sidecar: {hint(str(refused))}", err=True)
    else:
        click.echo("px-sidecar: The configuration was not reloaded, the old one stays in force:", err=True)
        for problem in problems:
            click.echo(f"  {printable(problem['error'])}", err=True)
    sys.exit(ConfigError.exit_code)


def _lines(answer: dict[str, Any]) -> list[str]:
    # A daemon of an earlier version answers without `changed`.
    changed = answer.get("changed", [])
    taken = [change for change in changed if not change["restart"]]
    lines = [
        "The configuration was reloaded" + ("." if changed or answer["waiting"] else "; nothing in it has changed.")
    ]
    lines += [f"  in force now: {_change(change)}" for change in taken]
    lines += [f"  after a restart: {_change(change)}" for change in changed if change["restart"]]
    if not changed and answer["waiting"]:
        lines.append(f"  after a restart: {', '.join(answer['waiting'])}")
    if answer.get("new_key"):
        lines.append("Another API key is in use now.")
    return lines


def _change(change: dict[str, Any]) -> str:
    now, then = (json.dumps(change[side], ensure_ascii=False) for side in ("now", "then"))
    if max(len(now), len(then)) > 40:
        return str(change["key"])  # a table or a long list: `config show` has it
    return printable(f"{change['key']}  {now} → {then}")

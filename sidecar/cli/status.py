"""``px-sidecar status``: one screen that says how things are, what is wrong and what to do."""

import sys
import time
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from sidecar.cli.asking import control_option, reach, the_daemon
from sidecar.cli.common import json_option, print_json
from sidecar.cli.screen import console, fields, moment, printable
from sidecar.errors import NotRunning, SidecarError
from sidecar.units import show_count, show_duration, show_size

__all__ = ["screen", "status"]

WATCH_S = 1.0
MOST_REASONS = 4


@click.command()
@click.option("--watch", is_flag=True, help="Draw again every second, until Ctrl-C.")
@control_option
@json_option
def status(watch: bool, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show state, rate, quota, backlog, and what is wrong and what to do.

    Without a running daemon it shows what the outbox file tells, and exits
    with 69.

    \b
    Examples:
      px-sidecar status
      px-sidecar status --watch
      px-sidecar status --json | jq .pending
    """
    if watch:
        _watch(control_flag, config_flag, as_json)
        return
    with reach(control_flag, config_flag) as asked:
        found = asked.get("/v1/status")
    if as_json:
        print_json(found)
    else:
        console().print(screen(found))
    if found["state"] == "stopped":
        sys.exit(NotRunning.exit_code)


def _watch(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    daemon = the_daemon(control_flag, config_flag)
    found = daemon.get("/v1/status")
    try:
        if as_json:
            while True:
                print_json(found)
                time.sleep(WATCH_S)
                found = daemon.get("/v1/status")
        _live(console(), daemon.get, found)
    except KeyboardInterrupt:
        pass  # the way out


def _live(out: Console, get: Any, found: dict[str, Any]) -> None:
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        while True:
            live.update(screen(found), refresh=True)
            time.sleep(WATCH_S)
            try:
                found = get("/v1/status")
            except NotRunning as error:  # a restart is a thing one watches
                live.update(Text(str(error), style="red"), refresh=True)
                time.sleep(WATCH_S)
                found = found | {"state": "stopped", "reasons": [str(error)]}
            except SidecarError as error:
                found = found | {"reasons": [str(error)]}


def screen(found: dict[str, Any]) -> RenderableType:
    """The status as one screen: the verdict first."""
    parts: list[RenderableType] = [_verdict(found)]
    for reason in found["reasons"][:MOST_REASONS]:
        parts.append(Padding.indent(Text(printable(reason), style="bold"), 2))
    for warning in found["warnings"]:
        parts.append(Padding.indent(Text(f"Note: {printable(warning)}", style="yellow"), 2))
    return Group(*parts, Text(""), fields(_lines(found)))


def _verdict(found: dict[str, Any]) -> Text:
    """The line that is read at 3 a.m."""
    version = Text(f"px-sidecar {found['version']}: ")
    since = f" since {moment(found['since'])}" if found["since"] else ""
    again = ""
    if found["next_try_in_s"] is not None:
        again = f", tries again in {show_duration(found['next_try_in_s'])}"
    match found["state"]:
        case "stopped":
            return version + Text("not running", style="bold red")
        case "open" if found["delivering"] and not found["reasons"]:
            what = "delivering" if found["pending"] or found["in_flight"] else "idle, everything is delivered"
            return version + Text(what, style="bold green") + Text(since)
        case "open" if found["delivering"]:
            return version + Text("delivering, but look:", style="bold yellow")
        case "open":
            return version + Text("not delivering: the day's quota is spent", style="bold yellow")
        case "paused":
            return version + Text("not delivering: paused", style="bold red") + Text(since + again)
        case state:
            return version + Text(f"not delivering: {state}", style="bold yellow") + Text(since + again)


def _lines(found: dict[str, Any]) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("pending", _pending(found)), ("delivered", _delivered(found))]
    lines.append(("dropped", _reasons(found["dropped"], found["dropped_by_reason"])))
    dead = _reasons(found["dead"], found["dead_by_reason"])
    lines.append(("dead", f"{dead}; `px-sidecar dead list`" if found["dead"] else dead))
    repeated = f", {show_count(found['repeated'])} repeats recognised" if found["repeated"] else ""
    lines.append(("accepted", f"{show_count(found['accepted'])}{repeated}"))
    lines.append(("pace", _pace(found)))
    lines.append(("quota", _quota(found["quota"])))
    lines.append(("outbox", _outbox(found)))
    if slow := found["slowest_user"]:
        waits = show_duration(slow["waiting_for_s"])
        who = printable(slow["user"]) if slow["user"] is not None else "an event without a user"
        lines.append(("slowest", f"{who} waits for {waits}, {slow['attempts']} attempts: {printable(slow['detail'])}"))
    problem = found["last_problem"]
    if problem and problem["message"] not in found["reasons"][:MOST_REASONS]:  # else it was just read
        lines.append(("last problem", f"{moment(problem['when'])}  {printable(problem['message'])}"))
    return lines


def _pending(found: dict[str, Any]) -> str:
    text = show_count(found["pending"])
    if not found["pending"]:
        return text
    if found["pending_high"]:
        text += f" ({show_count(found['pending_high'])} high)"
    if found["oldest_pending_age_s"] is not None:
        text += f", oldest {show_duration(found['oldest_pending_age_s'])}"
    return text + (f", drained in {show_duration(found['drain_s'])}" if found["drain_s"] is not None else "")


def _delivered(found: dict[str, Any]) -> str:
    text = f"{show_count(found['delivered'])}, {found['rate']:g}/s"
    if found["last_delivered"]:
        text += f", last {moment(found['last_delivered'])}"
    if found["retries"]:
        text += f"; {show_count(found['retries'])} retries"
    return text + (f", {show_count(found['ambiguous'])} of unknown outcome" if found["ambiguous"] else "")


def _reasons(count: int, reasons: dict[str, int]) -> str:
    if not count:
        return "0"
    named = ", ".join(f"{reason} {show_count(number)}" for reason, number in reasons.items())
    return f"{show_count(count)} ({named})"


def _pace(found: dict[str, Any]) -> str:
    text = f"{found['pace']:g} of {found['ceiling']:g} requests/s"
    return f"{text}, {found['in_flight']} in flight, {found['lanes']} connections"


def _quota(quota: dict[str, Any]) -> str:
    text = f"{show_count(quota['used'])} of {show_count(quota['limit'])} requests of the day"
    if quota["reserve"]:
        text += f", {show_count(quota['reserve'])} kept for high priority"
    return text


def _outbox(found: dict[str, Any]) -> str:
    outbox = found["outbox"]
    used = "?" if outbox["bytes"] is None else show_size(outbox["bytes"])
    full = f", FULL ({found['full']})" if found["full"] else ""
    return f"{used} of {show_size(outbox['max_bytes'])}{full}  {printable(outbox['path'])}"

"""``px-sidecar status``: one screen with the state, the problems and what to do about them."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from sidecar.cli.backend import connect_daemon, control_option, open_backend
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.screen import console, fields, local_time, printable
from sidecar.errors import NotRunning, SidecarError
from sidecar.units import counted, show_count, show_duration, show_size

__all__ = ["render_status", "status"]

WATCH_S = 1.0
MAX_PROBLEMS = 8
STYLES = {
    "accepting": ("bold red", ""),
    "delivery": ("bold", ""),
    "loss": ("bold yellow", ""),
    "limit": ("yellow", "Near a limit: "),
    "note": ("yellow", "Note: "),
}


@click.command()
@click.option("--watch", is_flag=True, help="Redraw every second until Ctrl-C.")
@control_option
@json_option
def status(watch: bool, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show state, rate, quota, backlog, problems and what to do about them.

    Without a running daemon it reads the outbox file and exits with 69.

    \b
    Examples:
      px-sidecar status
      px-sidecar status --watch
      px-sidecar status --json | jq .pending
    """
    if watch:
        _watch(control_flag, config_flag, as_json)
        return
    with open_backend(control_flag, config_flag) as backend:
        snapshot = backend.get("/v1/status")
    if as_json:
        print_json(snapshot)
    else:
        console().print(render_status(snapshot))
    if snapshot["state"] == "stopped":
        sys.exit(NotRunning.exit_code)


def _watch(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    daemon = connect_daemon(control_flag, config_flag)
    snapshot = daemon.get("/v1/status")
    try:
        if as_json:
            while True:
                print_json(snapshot)
                time.sleep(WATCH_S)
                snapshot = daemon.get("/v1/status")
        out = console()
        (_redraw if out.is_terminal else _print_each)(out, daemon.get, snapshot)
    except KeyboardInterrupt:
        pass  # the normal way to stop


def _redraw(out: Console, get: Any, snapshot: dict[str, Any]) -> None:
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        for screen in _screens(get, snapshot):
            live.update(screen, refresh=True)


def _print_each(out: Console, get: Any, snapshot: dict[str, Any]) -> None:
    """Print one screen after another: in a pipe there is nothing to redraw, and rich shows the last one alone."""
    for screen in _screens(get, snapshot):
        out.print(screen, Text(""))
        out.file.flush()


def _screens(get: Any, snapshot: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield the screen of each second, without an end."""
    while True:
        yield render_status(snapshot)
        time.sleep(WATCH_S)
        try:
            snapshot = get("/v1/status")
        except NotRunning as error:  # keep watching: an operator restarts the daemon in another terminal
            yield Text(hint(str(error)), style="red")
            time.sleep(WATCH_S)
            snapshot = snapshot | {"state": "stopped", "problems": [], "reasons": [str(error)]}
        except SidecarError as error:
            snapshot = snapshot | {"problems": [], "reasons": [str(error)]}


def render_status(snapshot: dict[str, Any]) -> RenderableType:
    """Return the status as one screen: the headline, what is wrong, the worst first, then the figures."""
    parts: list[RenderableType] = [_headline(snapshot)]
    found = _problems(snapshot)
    for severity, message in found[:MAX_PROBLEMS]:
        style, prefix = STYLES.get(severity, ("yellow", ""))
        parts.append(Padding.indent(Text(prefix + printable(hint(message)), style=style), 2))
    if len(found) > MAX_PROBLEMS:
        parts.append(
            Padding.indent(Text(hint(f"… and {len(found) - MAX_PROBLEMS} more: `px-sidecar status --json`")), 2)
        )
    return Group(*parts, Text(""), fields(_lines(snapshot)))


def _problems(snapshot: dict[str, Any]) -> list[tuple[str, str]]:
    """Return severities and sentences; a daemon of an earlier version gives reasons and warnings alone."""
    found = [(problem["severity"], problem["message"]) for problem in snapshot.get("problems", [])]
    known = {message for _, message in found}
    found += [("delivery", reason) for reason in snapshot["reasons"] if reason not in known]
    return found + [("note", warning) for warning in snapshot["warnings"] if warning not in known]


def _headline(snapshot: dict[str, Any]) -> Text:
    """Return the first line: whether the daemon delivers, and when it tries next."""
    version = Text(f"px-sidecar {snapshot['version']}: ")
    since = f" since {local_time(snapshot['since'])}" if snapshot["since"] else ""
    last = f", last delivery {local_time(snapshot['last_delivered'])}" if snapshot["last_delivered"] else ""
    next_try = ""
    if snapshot["next_try_in_s"] is not None:
        next_try = f", next try in {show_duration(snapshot['next_try_in_s'])}"
    match snapshot["state"]:
        case "stopped":
            return version + Text("not running", style="bold red")
        case "open" if snapshot["delivering"] and not snapshot["reasons"]:
            if snapshot["pending"] or snapshot["in_flight"]:
                return version + Text("delivering", style="bold green") + Text(since)
            if snapshot["dead"]:
                return version + Text("idle, but not everything is delivered", style="bold yellow") + Text(last)
            return version + Text("idle, everything is delivered", style="bold green") + Text(last)
        case "open" if snapshot["delivering"]:
            return version + Text("delivering, with a problem:", style="bold yellow")
        case "open" if snapshot["quota"]["free_in_s"] > 0:
            return version + Text("not delivering: the day's quota is spent", style="bold yellow")
        case "open":
            return version + Text("not delivering:", style="bold yellow")
        case "paused":
            return version + Text("not delivering: paused", style="bold red") + Text(since + next_try)
        case state:
            return version + Text(f"not delivering: {state}", style="bold yellow") + Text(since + next_try)


def _lines(snapshot: dict[str, Any]) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("pending", _pending(snapshot)), ("delivered", _delivered(snapshot))]
    lines.append(("dropped", _counted_reasons(snapshot["dropped"], snapshot["dropped_by_reason"])))
    dead = _counted_reasons(snapshot["dead"], snapshot["dead_by_reason"])
    lines.append(("dead", hint(f"{dead}; `px-sidecar dead list`") if snapshot["dead"] else dead))
    repeated = f", {counted(snapshot['repeated'], 'duplicate')} not stored" if snapshot["repeated"] else ""
    lines.append(("accepted", f"{show_count(snapshot['accepted'])}{repeated}"))
    if count := snapshot.get("without_account"):
        lines.append(
            ("no account", f"{counted(count, 'event')} since the start; behind a load balancer send context.groupId")
        )
    lines.append(("pace", _pace(snapshot)))
    lines.append(("quota", _quota(snapshot["quota"])))
    lines.append(("outbox", _outbox(snapshot)))
    if slowest := snapshot["slowest_user"]:
        waits = show_duration(slowest["waiting_for_s"])
        user = printable(slowest["user"]) if slowest["user"] is not None else "an event without a user"
        lines.append(
            (
                "slowest",
                f"{user} waiting for {waits}, {counted(slowest['attempts'], 'attempt')}: {printable(slowest['detail'])}",
            )
        )
    problem = snapshot["last_problem"]
    if problem and problem["message"] not in snapshot["reasons"]:  # shown above as a problem otherwise
        lines.append(("last problem", f"{local_time(problem['when'])}  {printable(hint(problem['message']))}"))
    return lines


def _pending(snapshot: dict[str, Any]) -> str:
    text = show_count(snapshot["pending"])
    if not snapshot["pending"]:
        return text
    if snapshot["pending_high"]:
        text += f" ({show_count(snapshot['pending_high'])} high)"
    if snapshot["oldest_pending_age_s"] is not None:
        text += f", oldest {show_duration(snapshot['oldest_pending_age_s'])}"
    if snapshot["drain_s"] is None:
        return text
    takes = show_duration(snapshot["drain_s"])
    return f"{text}, drained in {takes}" if snapshot["state"] == "open" else f"{text}, {takes} to drain"


def _delivered(snapshot: dict[str, Any]) -> str:
    text = f"{show_count(snapshot['delivered'])}, {snapshot['rate']:g}/s"
    if snapshot["last_delivered"]:
        text += f", last {local_time(snapshot['last_delivered'])}"
    if snapshot["retries"]:
        text += f"; {show_count(snapshot['retries'])} retries"
    return text + (f", {show_count(snapshot['ambiguous'])} of unknown outcome" if snapshot["ambiguous"] else "")


def _counted_reasons(count: int, reasons: dict[str, int]) -> str:
    if not count:
        return "0"
    named = ", ".join(f"{reason} {show_count(number)}" for reason, number in reasons.items())
    return f"{show_count(count)} ({named})"


def _pace(snapshot: dict[str, Any]) -> str:
    text = f"{snapshot['pace']:g} of {snapshot['ceiling']:g} requests/s"
    if snapshot["state"] == "open" and not (snapshot["pending"] or snapshot["in_flight"]):
        return f"idle; up to {text} once events come"
    if not snapshot["delivering"] and not snapshot["in_flight"]:
        return f"nothing is sent now; up to {text} once delivery continues"
    return f"{text}, {snapshot['in_flight']} in flight, {counted(snapshot['lanes'], 'connection')}"


def _quota(quota: dict[str, Any]) -> str:
    text = f"{show_count(quota['used'])} of {show_count(quota['limit'])} requests of the day"
    if quota["reserve"]:
        text += f", {show_count(quota['reserve'])} kept for high priority"
    return text


def _outbox(snapshot: dict[str, Any]) -> str:
    outbox = snapshot["outbox"]
    used = "?" if outbox["bytes"] is None else show_size(outbox["bytes"])
    full = f", FULL ({snapshot['full']})" if snapshot["full"] else ""
    return f"{used} of {show_size(outbox['max_bytes'])}{full}  {printable(outbox['path'])}"

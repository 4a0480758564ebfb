"""``px-sidecar fleet``: the hosts that share the limits of one PX subscription."""

from typing import Any

import click
from rich.text import Text

from sidecar.cli.backend import connect_daemon, control_option
from sidecar.cli.common import hint, json_option, print_json
from sidecar.cli.screen import console, grid, printable
from sidecar.units import counted, show_count

__all__ = ["fleet"]

# Why a host is not connected is the problem's to say: the engine is away, or it answers and refuses.
MEANING = {
    "joining": "not connected since the start, and nothing is promised; nothing is sent",
    "sharing": "connected",
    "quiet": "not connected; nothing is sent for some seconds",
    "alone": "not connected; only what is set aside is sent",
    "rejoining": "returning",
}


@click.group()
def fleet() -> None:
    """Show the hosts that share the limits of one PX subscription.

    \b
    Example:
      px-sidecar fleet status
    """


@fleet.command("status")
@control_option
@json_option
def status(control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Show members, shares, the engine's state and what this host may send alone.

    Needs a running daemon with fleet.url. The list of members comes from the
    engine; while it is away only this host's own state is shown.

    \b
    Examples:
      px-sidecar fleet status
      px-sidecar fleet status --json | jq .fleet.state
    """
    answer = connect_daemon(control_flag, config_flag).get("/v1/fleet")
    if as_json:
        print_json(answer)
        return
    _show(answer)


def _show(answer: dict[str, Any]) -> None:
    own, members = answer["fleet"], answer["members"]
    out, connected = console(), counted(own["members"], "connected host")
    rows = [
        ("fleet", own["name"]),
        ("this host", f"{own['state']}: {MEANING[own['state']]}"),
        ("rate", f"{own['rate']:.1f} requests per second for {connected}, {own['absent']} absent"),
        ("alone", f"{own['alone']:.2f} requests per second while the engine is away"),
        ("day", f"{counted(own['used'], 'request')} of all hosts, and set aside for absent ones"),
        ("slots", f"{show_count(own['slots_granted'])} since the start, {show_count(own['slots_late'])} not used"),
    ]
    if own["clock_uncertainty_s"] is not None:
        rows.append(("clock", f"known to {1000 * own['clock_uncertainty_s']:.1f} ms"))
    if own["problem"]:
        rows.append(("problem", hint(own["problem"])))
    out.print(grid([(Text(name, style="dim"), Text(printable(text))) for name, text in rows]))
    if members is None:
        out.print(Text(printable(hint(answer["error"] or "")), style="yellow"))
        return
    total = sum(member["granted"] for member in members) or 1
    out.print()
    out.print(grid([_row(member, total) for member in sorted(members, key=lambda member: -member["granted"])]))


def _row(member: dict[str, Any], total: int) -> tuple[Text, ...]:
    """Return host, state, share of the ``total`` of slots, and promise, with a mark for the host that was asked."""
    return (
        Text(f"  {printable(member['host'])}"),
        Text("connected" if member["connected"] else "absent"),
        Text(f"{100 * member['granted'] / total:5.1f} % of slots"),
        Text(f"alone {member['alone_per_second']:.2f}/s{', this host' if member['this'] else ''}"),
    )

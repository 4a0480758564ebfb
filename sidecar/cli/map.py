"""``px-sidecar map``: what PX would get for some events, without a daemon, a configuration or a network."""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.cli.common import config_option, json_option, load_config
from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.errors import Failed
from sidecar.events import BadJson, decode, merge_batch, seal
from sidecar.mapping import Known, Mapped, compile_mapping, explain
from sidecar.mapping.reference import reference
from sidecar.px import preview

__all__ = ["map"]

PLACEHOLDER_KEY = "AP-XXXXXXXXXX-2"


@click.command("map")
@click.argument("file", type=click.File("rb"), default="-")
@config_option
@click.option("--received", metavar="MS", type=int, help="When the events were received, epoch milliseconds; else now.")
@click.option("--explain", "explained", is_flag=True, help="Show which rule and path gave each PX field.")
@click.option(
    "--expect", metavar="FILE", type=click.File("rb"), help="Compare with these lines; exit 1 on a difference."
)
@click.option("--reference", "reference_asked", is_flag=True, help="Print the mapping reference, as Markdown.")
@json_option
def map(
    file: BinaryIO,
    config_flag: str | None,
    received: int | None,
    explained: bool,
    expect: BinaryIO | None,
    reference_asked: bool,
    as_json: bool,
) -> None:
    """Show what PX would get for the events in FILE, or on standard input.

    FILE holds a JSON object, a JSON array, the body of a batch call, or one of
    them per line. For each event one line of JSON comes out: {"requests": [...]}, {"dropped": "reason"}
    or {"dead": "reason"}, with "changes" where a value was cut or replaced. What
    identify and group say of a user is remembered for the events behind them.
    No daemon and no configuration are needed.

    \b
    Examples:
      echo '{"type":"page","userId":"u1"}' | px-sidecar map
      px-sidecar map --explain events.ndjson
      px-sidecar map --received 1717689600000 events.ndjson > golden.ndjson
      px-sidecar map --received 1717689600000 events.ndjson --expect golden.ndjson
    """
    if reference_asked:
        click.echo(reference(), nl=False)
        return
    config = load_config(config_flag)
    received_ms = SystemClock().wall_ms() if received is None else received
    outcomes = outcomes_of(events_in(file.read()), config, received_ms, explained=explained and expect is None)
    if expect is not None:
        compare(outcomes, expect)
    elif explained and not as_json:
        show_explained(outcomes)
    else:
        for outcome in outcomes:
            click.echo(_line(outcome))


def outcomes_of(
    events: Iterable[Any], config: Config, received_ms: int, *, explained: bool = False
) -> Iterator[dict[str, Any]]:
    """What becomes of each event, as ``map`` prints it; memory is carried from one to the next."""
    mapper = compile_mapping(config.mapping, config.people)
    property_key = config.px.property_key or PLACEHOLDER_KEY
    known: dict[str | None, Known] = {}
    for event in events:
        sealed = None if isinstance(event, BadJson) else seal(event, config.outbox.max_event_bytes)
        if sealed is None or sealed.bad or sealed.event is None:
            yield {"dead": "bad_event", "detail": sealed.bad if sealed else f"not JSON: {event}"}
            continue
        user = mapper.user_of(sealed.event)
        memory = known.get(user, Known())
        mapped = mapper.map(sealed.event, memory, property_key=property_key, received_ms=received_ms)
        known[user] = mapped.known or memory
        reasons = explain(mapper, sealed.event, mapped) if explained else []
        yield _outcome(mapped) | ({"explain": [msgspec.to_builtins(reason) for reason in reasons]} if explained else {})


def _outcome(mapped: Mapped) -> dict[str, Any]:
    if mapped.dead:
        outcome: dict[str, Any] = {"dead": mapped.dead, "detail": mapped.detail}
    elif mapped.dropped:
        outcome = {"dropped": mapped.dropped}
    else:
        outcome = {"requests": preview(mapped.intents)}
    if mapped.changes:
        outcome["changes"] = [msgspec.to_builtins(change) for change in mapped.changes]
    return outcome


def events_in(data: bytes) -> Iterator[Any]:
    """The events in a file: JSON, an array, the body of a batch call, or one of them per line; BadJson for what is none."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        return
    if len(lines) > 1 and isinstance(_decoded(lines[0]), BadJson) and not isinstance(_decoded(data), BadJson):
        lines = [data]
    for line in lines:
        value = _decoded(line)
        if isinstance(value, dict) and isinstance(value.get("batch"), list):  # the body of /v1/batch, as SDKs send it
            for event in value["batch"]:
                merge_batch(value, event)
            value = value["batch"]
        yield from value if isinstance(value, list) else [value]


def _decoded(data: bytes) -> Any:
    try:
        return decode(data)
    except BadJson as error:
        return error


def compare(outcomes: Iterable[dict[str, Any]], expect: BinaryIO) -> None:
    """Compare with the lines of a file that ``map`` printed earlier. Raises Failed after showing each difference."""
    expected = list(events_in(expect.read()))
    got = list(outcomes)
    different = 0
    for index in range(max(len(expected), len(got))):
        want, have = (_shown(side[index] if index < len(side) else None) for side in (expected, got))
        if want != have:
            different += 1
            click.echo(f"event {index + 1}:")
            for line in difflib.unified_diff(want, have, "expected", "got", lineterm=""):
                click.echo(f"  {line}")
    if different:
        raise Failed(f"{different} of {len(got)} events map differently than expected; the differences are above.")
    click.echo(f"{len(got)} events map as expected.", file=sys.stderr)


def _shown(outcome: Any) -> list[str]:
    if outcome is None:
        return ["nothing"]
    return json.dumps(outcome, indent=2, sort_keys=True, ensure_ascii=False, default=str).splitlines()


def _line(outcome: Any) -> str:
    return json.dumps(outcome, separators=(",", ":"), ensure_ascii=False)


def show_explained(outcomes: Iterable[dict[str, Any]]) -> None:
    """Print one table for each event, at most as wide as the terminal (80 columns in a pipe)."""
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    for number, outcome in enumerate(outcomes, 1):
        table = Table(title=f"event {number}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, ratio in (("PX field", 3), ("value", 4), ("from", 4)):
            table.add_column(heading, overflow="fold", ratio=ratio)
        rows = outcome.get("explain") or [{"field": "not sent", "value": outcome["dead"], "source": outcome["detail"]}]
        for row in rows:
            value = row["value"] if isinstance(row["value"], str) else _line(row["value"])
            table.add_row(*(Text(cell) for cell in (row["field"], value, row["source"])))
        for change in outcome.get("changes", ()):
            table.add_row(Text(change["field"], style="yellow"), Text("changed", style="yellow"), Text(change["what"]))
        console.print(table)

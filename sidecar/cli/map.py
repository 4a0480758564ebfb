"""``px-sidecar map``: show the requests that events would become, without a daemon, a configuration or a network."""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.cli.common import config_option, json_for, json_option, load_config
from sidecar.cli.screen import columns, printable
from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.deliver.quota import DailyCaps
from sidecar.errors import Failed
from sidecar.events import BadJson, decode, judge, shared_error, shared_of
from sidecar.mapping import NO_ACCOUNT, Account, Known, Mapped, compile_mapping, explain
from sidecar.mapping.reference import reference
from sidecar.px import preview
from sidecar.receive.split import sent_sizes
from sidecar.units import counted

__all__ = ["map"]

PLACEHOLDER_KEY = "AP-XXXXXXXXXX-2"


class ParsedEvent(NamedTuple):
    """One event of a file, or why it is not JSON; what its batch adds to it; and the sizes of both as they are in the file."""

    value: Any
    shared: Mapping[str, Any] = MappingProxyType({})
    sent_bytes: int | None = None
    shared_bytes: int | None = None


@click.command("map")
@click.argument("file", type=click.File("rb"), default="-")
@config_option
@click.option(
    "--received", metavar="MS", type=int, help="Time of receipt of the events, epoch milliseconds; default: now."
)
@click.option("--explain", "explained", is_flag=True, help="Show which rule and path set each PX field.")
@click.option(
    "--expect", metavar="FILE", type=click.File("rb"), help="Compare with earlier output; exit 1 on a difference."
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
    """Show the requests that PX would get for the events in FILE.

    FILE (or standard input) holds a JSON object, a JSON array, the body of a
    batch call, or one of them per line. Each event gives one line of JSON:
    {"requests": [...]}, {"dropped": "reason"} or {"dead": "reason"}, with
    "changes" if a value was cut or replaced. Traits of identify and group apply
    to later events of the same user. No daemon or configuration is needed.

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
    if file is sys.stdin.buffer and sys.stdin.isatty():
        click.echo("Reading events from the terminal; Ctrl-D ends them.", err=True)
    config = load_config(config_flag)
    received_ms = SystemClock().wall_ms() if received is None else received
    outcomes = map_events(parse_events(file.read()), config, received_ms, explained=explained and expect is None)
    if expect is not None:
        compare_outcomes(outcomes, expect)
    elif explained and not as_json:
        print_explanations(outcomes)
    else:
        for outcome in outcomes:
            click.echo(_line(outcome))


def map_events(
    events: Iterable[ParsedEvent], config: Config, received_ms: int, *, explained: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each event as ``map`` prints it; what is known of a user is carried from event to event."""
    mapper = compile_mapping(config.mapping, config.people, config.identity)
    property_key = config.px.property_key or PLACEHOLDER_KEY
    known: dict[str | None, Known] = {}
    accounts: dict[str | None, Account] = {}
    caps = DailyCaps()
    limit = config.outbox.max_event_bytes
    for event, shared, sent_bytes, shared_bytes in events:
        if error := shared_error(shared, limit, shared_bytes):
            yield {"dead": "bad_event", "detail": error}
            continue
        checked = None
        if not isinstance(event, BadJson):
            checked = judge(event, limit, None, shared, config.identity.reject, sent_bytes)
        if checked is None or checked.bad or checked.event is None:
            yield {"dead": "bad_event", "detail": checked.bad if checked else f"not JSON: {event}"}
            continue
        user = mapper.user_of(checked.event)
        remembered = known.get(user, Known())
        if said := mapper.account_said(checked.event):
            accounts[user] = Account(*said)
        account = accounts.get(user, NO_ACCOUNT)
        mapped = mapper.map(
            checked.event, remembered, account=account, property_key=property_key, received_ms=received_ms
        )
        known[user] = mapped.known or remembered
        if mapped.cap is not None and caps.take(mapped.cap, received_ms) is None:
            detail = f'mapping.event "{mapped.cap.name}", per_day = {mapped.cap.per_day}'
            mapped = Mapped(dropped="capped", detail=detail)
        reasons = explain(mapper, checked.event, mapped) if explained else []
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


def parse_events(data: bytes) -> Iterator[ParsedEvent]:
    """Yield the events of a file: JSON, an array, a batch body, or one of these per line; BadJson for an invalid part."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        return
    # Several lines that are not JSON by themselves, but together: one pretty-printed document.
    if (
        len(lines) > 1
        and isinstance(_decode_or_error(lines[0]), BadJson)
        and not isinstance(_decode_or_error(data), BadJson)
    ):
        lines = [data]
    for line in lines:
        value = _decode_or_error(line)
        shared: Mapping[str, Any] = {}
        # A body of /v1/batch, as the SDKs send it: its context applies to each of its events.
        if isinstance(value, dict) and isinstance(value.get("batch"), list) and "type" not in value:
            shared, value = shared_of(value), value["batch"]
        if isinstance(value, list):
            sizes = sent_sizes(line)
            yield from (
                ParsedEvent(event, shared, size_bytes, sizes.shared)
                for event, size_bytes in zip(value, sizes.events, strict=True)
            )
        else:
            yield ParsedEvent(value, shared, len(line))


def _decode_or_error(data: bytes) -> Any:
    try:
        return decode(data)
    except BadJson as error:
        return error


def compare_outcomes(outcomes: Iterable[dict[str, Any]], expect: BinaryIO) -> None:
    """Compare with earlier output of ``map`` and print each difference. Raises Failed if there is one."""
    expected = [parsed.value for parsed in parse_events(expect.read())]
    if bad := next((value for value in expected if isinstance(value, BadJson)), None):
        raise Failed(f"{expect.name} is not output of `px-sidecar map` ({bad}); create it again.")
    actual = list(outcomes)
    different = 0
    for index in range(max(len(expected), len(actual))):
        expected_lines, actual_lines = (
            _pretty_lines(side[index] if index < len(side) else None) for side in (expected, actual)
        )
        if expected_lines != actual_lines:
            different += 1
            click.echo(f"event {index + 1}:")
            for line in difflib.unified_diff(expected_lines, actual_lines, "expected", "got", lineterm=""):
                click.echo(f"  {printable(line)}")
    if different:
        raise Failed(f"{different} of {len(actual)} events map differently than expected; see the differences above.")
    click.echo(f"{counted(len(actual), 'event')} mapped as expected.", file=sys.stderr)


def _pretty_lines(outcome: Any) -> list[str]:
    if outcome is None:  # one side has fewer events
        return ["nothing"]
    return json.dumps(outcome, indent=2, sort_keys=True, ensure_ascii=False, default=str).splitlines()


def _line(outcome: Any) -> str:
    return json_for(sys.stdout, json.dumps(outcome, separators=(",", ":"), ensure_ascii=False).encode())


def print_explanations(outcomes: Iterable[dict[str, Any]]) -> None:
    """Print one table per event, as wide as the terminal (80 columns in a pipe)."""
    console = Console(width=columns(sys.stdout), highlight=False)
    for number, outcome in enumerate(outcomes, 1):
        table = Table(title=f"event {number}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading, ratio in (("PX field", 3), ("value", 4), ("from", 4)):
            table.add_column(heading, overflow="fold", ratio=ratio)
        rows = outcome.get("explain") or [{"field": "not sent", "value": outcome["dead"], "source": outcome["detail"]}]
        for row in rows:
            value = row["value"] if isinstance(row["value"], str) else _line(row["value"])
            table.add_row(*(Text(printable(cell)) for cell in (row["field"], value, row["source"])))
        for change in outcome.get("changes", ()):
            field, what = printable(change["field"]), printable(change["what"])
            table.add_row(Text(field, style="yellow"), Text("changed", style="yellow"), Text(what))
        console.print(table)

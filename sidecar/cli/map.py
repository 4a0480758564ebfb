"""``px-sidecar map``: what PX would get for some events, without a daemon, a configuration or a network."""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import click

from sidecar.clock import SystemClock
from sidecar.config import Config, load
from sidecar.errors import Failed
from sidecar.events import BadJson, decode, seal
from sidecar.mapping import Known, Mapped, Mapper, compile_mapping
from sidecar.px import preview

__all__ = ["map_events"]

PLACEHOLDER_KEY = "AP-XXXXXXXXXX-2"


@click.command("map")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--config", "config_path", metavar="PATH", help="The configuration; without one the defaults apply.")
@click.option("--received", metavar="MS", type=int, help="When the events were received, epoch milliseconds; else now.")
@click.option(
    "--expect", metavar="FILE", type=click.File("rb"), help="Compare with these lines; exit 1 on a difference."
)
@click.option("--json", "_as_json", is_flag=True, help="Accepted for likeness with other verbs: the output is JSON.")
def map_events(
    file: BinaryIO, config_path: str | None, received: int | None, expect: BinaryIO | None, _as_json: bool
) -> None:
    """Show what PX would get for the events in FILE, or on standard input.

    FILE holds one JSON object, a JSON array, or one of them per line. For each event one line comes out:
    {"requests": [...]}, {"dropped": "reason"} or {"dead": "reason"}, with "changes" where a value was cut or replaced.
    What identify and group say of a user is remembered for the events behind them in the file.

    \b
    Example:
      echo '{"type":"track","event":"Feature Used","userId":"u1"}' | px-sidecar map
    """
    config = load(config_path)
    outcomes = outcomes_of(events_in(file.read()), config, SystemClock().wall_ms() if received is None else received)
    if expect is not None:
        compare(outcomes, expect)
        return
    for outcome in outcomes:
        click.echo(_line(outcome))


def outcomes_of(events: Iterable[Any], config: Config, received_ms: int) -> Iterator[dict[str, Any]]:
    """What becomes of each event, as ``map`` prints it; memory is carried from one to the next."""
    mapper = compile_mapping(config.mapping, config.people)
    property_key = config.px.property_key or PLACEHOLDER_KEY
    known: dict[str, Known] = {}
    for event in events:
        if isinstance(event, BadJson):
            yield {"dead": "bad_event", "detail": f"not JSON: {event}"}
            continue
        sealed = seal(event, config.outbox.max_event_bytes)
        if sealed.bad or sealed.event is None:
            yield {"dead": "bad_event", "detail": sealed.bad}
            continue
        yield _outcome(_map_one(mapper, sealed.event, known, property_key, received_ms))


def _map_one(
    mapper: Mapper, event: dict[str, Any], known: dict[str, Known], property_key: str, received_ms: int
) -> Mapped:
    user = mapper.user_of(event) or ""
    mapped = mapper.map(event, known.get(user, Known()), property_key=property_key, received_ms=received_ms)
    if mapped.known is not None:
        known[user] = mapped.known
    return mapped


def _outcome(mapped: Mapped) -> dict[str, Any]:
    if mapped.dead:
        outcome: dict[str, Any] = {"dead": mapped.dead, "detail": mapped.detail}
    elif mapped.dropped:
        outcome = {"dropped": mapped.dropped}
    else:
        outcome = {"requests": preview(mapped.intents)}
    if mapped.changes:
        outcome["changes"] = [{"field": change.field, "what": change.what} for change in mapped.changes]
    return outcome


def events_in(data: bytes) -> Iterator[Any]:
    """The events in a file: JSON, a JSON array, or one of them per line; a BadJson stands for a line that is neither."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        return
    if len(lines) > 1 and isinstance(_decoded(lines[0]), BadJson) and not isinstance(_decoded(data), BadJson):
        lines = [data]
    for line in lines:
        value = _decoded(line)
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


def _line(outcome: dict[str, Any]) -> str:
    return json.dumps(outcome, separators=(",", ":"), ensure_ascii=False)

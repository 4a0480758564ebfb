"""``px-sidecar outbox``: move pending events between hosts."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from sidecar.cli.asking import control_option, reach, the_daemon
from sidecar.cli.common import config_option, json_option, load_config, print_json
from sidecar.cli.screen import bar
from sidecar.config import property_key
from sidecar.errors import Failed, NotRunning
from sidecar.units import show_count

__all__ = ["outbox"]

# Half of what the daemon reads as one request.
IMPORT_BYTES: Final = 2 * 2**20
IMPORT_EVENTS: Final = 500


@click.group()
def outbox() -> None:
    """Move pending events between hosts.

    \b
    Example, on the old host and on the new one:
      systemctl stop px-sidecar && px-sidecar outbox export moved.ndjson
      px-sidecar outbox import moved.ndjson
    """


@outbox.command("export")
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@config_option
@json_option
def export(file: Path, config_flag: str | None, as_json: bool) -> None:
    """Move all pending events into FILE, which must not exist.

    What is safely in FILE counts here as dropped (moved). The daemon has to be
    stopped: it has events in memory that would be sent all the same. The
    events are written as today's privacy rules let people see them, with
    their messageId and the time they were received. What is remembered of
    users (their account) stays on this host.

    \b
    Example:
      systemctl stop px-sidecar && px-sidecar outbox export moved.ndjson
    """
    from sidecar.control.carrying import carried, moved, pending_pages
    from sidecar.control.offline import open_file

    _refuse_while_running(config_flag)
    config = load_config(config_flag)
    property_key(config.px)
    count = 0
    with open_file(config) as source, _new_file(file) as target:
        progress, task = bar("exporting", total=source.store.pending())
        with progress:
            for rows in pending_pages(source.store):
                lines = [(row, carried(row, source.product_of(row.source), source.mapper.redact)) for row in rows]
                whole = [(row, line) for row, line in lines if line is not None]
                target.write(b"".join(msgspec.json.encode(line) + b"\n" for _, line in whole))
                _make_durable(target)
                moved(source.store, [row for row, _ in whole], source.clock.wall_ms())
                count += len(whole)
                progress.update(task, completed=count)
    if as_json:
        print_json({"moved": count, "file": str(file)})
    else:
        click.echo(f"{show_count(count)} events were moved to {file}; `px-sidecar outbox import` takes them in.")


def _refuse_while_running(config_flag: str | None) -> None:
    try:
        the_daemon(None, config_flag).get("/v1/config")
    except NotRunning:
        return
    raise Failed("The daemon is running and sends what would be exported; stop it first (`systemctl stop px-sidecar`).")


def _new_file(file: Path) -> BinaryIO:
    try:
        made = file.open("xb")
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise Failed(f"{file} exists and may hold events that were moved before; name a new file.") from None
    except OSError as error:
        raise Failed(f"{file} cannot be written ({error.strerror}); name a file in a folder that can.") from None
    return made


def _make_durable(target: BinaryIO) -> None:
    try:
        target.flush()
        os.fsync(target.fileno())
    except OSError as error:
        raise Failed(
            f"{target.name} could not be written ({error.strerror}); what it holds whole was moved, the rest is still "
            "pending here. Make room, and export into a new file."
        ) from None


@outbox.command("import")
@click.argument("file", type=click.File("rb"))
@control_option
@json_option
def import_(file: BinaryIO, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Take in the events of FILE, which `outbox export` wrote.

    They are accepted as if they came from an app, with their messageId: an
    event that is known here is not stored again, so it can be repeated.

    \b
    Example:
      px-sidecar outbox import moved.ndjson
    """
    accepted = repeated = 0
    with reach(control_flag, config_flag) as asked:
        progress, task = bar("importing", total=None)
        with progress:
            for first_line, events in _batches(file):
                try:
                    answer = asked.post("/v1/import", {"events": events})
                except Failed as error:
                    raise Failed(
                        f"The events from line {first_line} on were not taken in: {error} Correct that and repeat it; "
                        "what was taken in before is recognised."
                    ) from None
                accepted += answer["accepted"]
                repeated += answer["repeated"]
                progress.update(task, completed=accepted + repeated)
    if as_json:
        print_json({"accepted": accepted, "repeated": repeated})
    else:
        click.echo(f"{show_count(accepted)} events were taken in; {show_count(repeated)} were known already.")


def _batches(file: BinaryIO) -> Iterator[tuple[int, list[msgspec.Raw]]]:
    """Lines of the file in requests of a fitting size, each with the number of its first line. Raises Failed."""
    batch: list[msgspec.Raw] = []
    size_bytes, first = 0, 1
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise Failed(f"Line {number} is no JSON ({error}); is it a file of `outbox export`, and whole?") from None
        if batch and (len(batch) == IMPORT_EVENTS or size_bytes + len(line) > IMPORT_BYTES):
            yield first, batch
            batch, size_bytes = [], 0
        first = number if not batch else first
        batch.append(msgspec.Raw(line.strip()))
        size_bytes += len(line)
    if batch:
        yield first, batch

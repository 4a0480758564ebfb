"""``px-sidecar outbox``: move pending events between hosts."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from sidecar.cli.backend import connect_daemon, control_option, open_backend
from sidecar.cli.bulk import batches, bulk_options, events_of, goes_ahead
from sidecar.cli.common import config_option, hint, json_option, load_config, print_json
from sidecar.cli.outbox_file import import_outbox
from sidecar.cli.screen import progress_bar
from sidecar.cli.socket_units import restart_sockets, stop_units
from sidecar.config import property_key
from sidecar.control.client import ControlApi
from sidecar.control.outbox_file import is_outbox_file
from sidecar.errors import Failed, NotRunning
from sidecar.units import counted, show_count

if TYPE_CHECKING:  # it loads SQLite and the mapping
    from sidecar.control.offline import OfflineBackend

__all__ = ["outbox"]


@click.group()
def outbox() -> None:
    """Move pending events between hosts.

    \b
    Example, on the old host and on the new one:
      px-sidecar outbox export moved.ndjson
      px-sidecar outbox import moved.ndjson
    """


@outbox.command("export")
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@config_option
@json_option
def export(file: Path, config_flag: str | None, as_json: bool) -> None:
    """Move all pending events into FILE, which must not exist.

    Events that are synced to FILE count here as dropped (moved). No daemon may
    run, because it would still send events that it has in memory: run as root
    under systemd, the verb stops the daemon and its sockets. They stay stopped
    until `outbox import`, `outbox import --back` or a start of the daemon.

    The events pass through the current privacy rules and keep their messageId,
    time of receipt, class and account, and carry the account of their user.
    What was sent to PX about users stays on this host.
    FILE is readable for its owner alone.

    \b
    Example:
      px-sidecar outbox export moved.ndjson
    """
    from sidecar.control.offline import open_file

    config = load_config(config_flag)
    property_key(config.px)
    # Before the outbox is opened, which root does with the rights of the outbox's owner.
    with _create_file(file) as target:
        units = stop_units(config_flag)
        try:
            _ensure_not_running(config_flag)
            with open_file(config) as source:
                count, left_out = _move(source, target, units)
                kept = source.store.pending()
        except BaseException:
            if not target.tell():  # nothing was moved
                file.unlink()
                restart_sockets(units)
            raise
    _report_export(file, count, left_out, kept, units, as_json=as_json)


def _report_export(file: Path, count: int, left_out: int, kept: int, units: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"moved": count, "file": str(file)})
    else:
        there = hint(f"run `px-sidecar outbox import {shlex.quote(file.name)}` on the other host")
        click.echo(
            f"{events_of(count)} moved to {file}; {there}."
            if count
            else f"No event was {'left to move' if left_out or kept else 'pending'}, so {file} is empty."
        )
    if left_out:
        click.echo(f"{events_of(left_out)} that the rules in force exclude were dropped here instead.", err=True)
    if kept:
        click.echo(
            f"{events_of(kept)} cannot be moved: bad or damaged. They stay pending here until a start of the daemon, which "
            "settles them as dead.",
            err=True,
        )
    if units:
        click.echo(
            hint(
                f"{' and '.join(['The daemon', *units])} are stopped. They stay so until `px-sidecar outbox import`, "
                f"`px-sidecar outbox import --back {shlex.quote(str(file))}` here, or a start of the daemon."
            ),
            err=True,
        )


def _move(source: "OfflineBackend", target: FileIO, units: list[str]) -> tuple[int, int]:
    """Write, sync and mark all pending events page by page; return how many were moved, and dropped by the rules."""
    from sidecar.control.export import (
        ExportNote,
        excluded_rows,
        exported_events,
        lift_export,
        mark_exported,
        note_export,
        pending_pages,
    )

    settings, count, left_out = source.settings.now, 0, 0
    note = ExportNote(source.clock.wall_ms(), os.path.abspath(target.name), 0, units)
    note_export(source.store, note)
    progress, task = progress_bar("exporting", total=source.store.pending())
    try:
        with progress:
            for rows in pending_pages(source.store):
                exportable = exported_events(source.store, rows, settings)
                start = target.tell()
                _write_durably(target, b"".join(msgspec.json.encode(line) + b"\n" for _, line in exportable), count)
                # Only now mark the rows: a crash before this line leaves them pending in both places, and none is lost.
                moved, excluded = [row for row, _ in exportable], excluded_rows(rows, settings)
                try:
                    mark_exported(source.store, moved, source.clock.wall_ms(), excluded)
                except BaseException:
                    # A commit that was interrupted, or that reported an error, may be on disk: only the outbox knows.
                    source.store.reopen()
                    if not moved or source.store.rows([moved[0].id]):
                        _cut(target, start)
                    else:
                        count += len(exportable)
                    raise
                count, left_out = count + len(exportable), left_out + len(excluded)
                progress.update(task, completed=count)
    except BaseException:
        if not count:
            lift_export(source.store)
        raise
    finally:
        if count:
            note_export(source.store, msgspec.structs.replace(note, moved=count))
    if not count and not units:
        lift_export(source.store)  # nothing to take back, and nothing to start again
    return count, left_out


def _ensure_not_running(config_flag: str | None) -> None:
    try:
        connect_daemon(None, config_flag).get("/v1/config")
    except NotRunning:
        return
    raise Failed("The daemon is running and would send exported events; stop it first (`systemctl stop px-sidecar`).")


def _create_file(file: Path) -> FileIO:
    """Create the file for its owner alone, durably. It has no buffer: what it holds is what was written."""
    try:
        created = FileIO(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise Failed(f"{file} exists and may hold events of an earlier export; name a new file.") from None
    except OSError as error:
        raise Failed(f"{file} cannot be written ({error.strerror}); name a file in a writable folder.") from None
    return created


def _cut(target: FileIO, start: int) -> None:
    """Remove what was written from ``start`` on, as it is still pending here."""
    with suppress(OSError):
        target.seek(start)
        target.truncate()


def _write_durably(target: FileIO, lines: bytes, moved: int) -> None:
    """Append lines and sync them; if that fails, remove what was written of them: they are still pending. Raises Failed."""
    start, rest = target.tell(), memoryview(lines)
    try:
        while rest:
            rest = rest[target.write(rest) :]
        os.fsync(target.fileno())
    except OSError as error:
        _cut(target, start)
        name = target.name
        if not moved:
            raise Failed(
                f"{name} cannot be written ({error.strerror}), and nothing was moved; make room there."
            ) from None
        raise Failed(
            f"{name} cannot be written any more ({error.strerror}): {counted(moved, 'event', 'was')} moved to it, and the "
            "others are still pending here. Export them into a new file where there is room, or take back what was moved "
            f"with `px-sidecar outbox import --back {shlex.quote(str(name))}`."
        ) from None


@outbox.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--back", is_flag=True, help="Make events that were moved away from this host pending here again.")
@click.option("--dead", is_flag=True, help="For an outbox file: import its dead letters, too, as pending events.")
@bulk_options
@control_option
@json_option
def import_(
    file: BinaryIO,
    back: bool,
    dead: bool,
    yes: bool,
    dry_run: bool,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Import the events of FILE.

    FILE was written by `outbox export`, or is an outbox file that the daemon
    rescued (outbox.db.rescued-…) or that comes from a backup. The events are
    accepted as from an app, with their messageId. An event that is already
    stored is not stored again, so the import can be repeated. On the host that
    exported them, --back makes pending what is still moved away. Events that
    were delivered from an outbox file are not imported.

    \b
    Examples:
      px-sidecar outbox import moved.ndjson
      px-sidecar outbox import --back moved.ndjson
      px-sidecar outbox import outbox.db.rescued-20260102T030405Z
    """
    if _is_outbox(Path(file.name), dead=dead, lines_only=back or dry_run):
        import_outbox(Path(file.name), dead=dead, control_flag=control_flag, config_flag=config_flag, as_json=as_json)
        return
    count = sum(1 for line in file if line.strip()) if file.seekable() else None
    if file.seekable():
        file.seek(0)
    with open_backend(control_flag, config_flag) as backend:
        selected = _count_importable(backend, file, count) if back and count is not None else count
        if (back or dry_run) and not _goes_ahead(selected, back=back, yes=yes, dry_run=dry_run, as_json=as_json):
            return
        total = {"accepted": 0, "repeated": 0, "moved": 0, "pruned": 0}
        progress, task = progress_bar("importing", total=count)
        with progress:
            for numbers, events in batches(_lines(file)):
                try:
                    result = backend.post("/v1/import", {"events": events} | ({"back": True} if back else {}))
                except Failed as error:
                    raise _not_imported(numbers[0], error) from None
                for name, number in result.items():
                    total[name] += number
                progress.update(task, completed=total["accepted"] + total["repeated"])
        units = _lift(backend)
    restart_sockets(units)  # outside of the block, in which root has the rights of the outbox's owner
    _report(total, units, as_json=as_json)
    _say_what_is_missing(total, file.name)


def _report(total: dict[str, int], units: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({name: number for name, number in total.items() if number or name in ("accepted", "repeated")})
    else:
        click.echo(
            f"{counted(total['accepted'], 'event', 'was')} imported; {show_count(total['repeated'])} {'was' if total['repeated'] == 1 else 'were'} already stored."
        )
    if units:
        click.echo(
            hint(
                f"The export of this host is over: {' and '.join(units)} may start the daemon again, and "
                "`systemctl start px-sidecar` does."
            ),
            err=True,
        )


def _is_outbox(path: Path, *, dead: bool, lines_only: bool) -> bool:
    """Return whether the file is an outbox, not exported lines. Raises UsageError for options of the other kind."""
    if path.is_file() and is_outbox_file(path):
        if lines_only:
            raise click.UsageError(
                "--back and --dry-run are for a file of `outbox export`; import an outbox file without them."
            )
        return True
    if dead:
        raise click.UsageError("--dead is for an outbox file; a file of `outbox export` holds no dead letters.")
    return False


def _count_importable(backend: ControlApi, file: BinaryIO, lines: int) -> int:
    """Return how many events of the file an import with ``--back`` makes pending, and rewind it."""
    count = 0
    progress, task = progress_bar("counting", total=lines)
    with progress:
        for numbers, events in batches(_lines(file, quiet=True)):
            try:
                count += backend.post("/v1/import/count", {"events": events})["count"]
            except Failed as error:
                raise _not_imported(numbers[0], error) from None
            progress.update(task, advance=len(events))
    file.seek(0)
    return count


def _not_imported(line: int, error: Failed) -> Failed:
    return Failed(
        f"The events from line {line} on were not imported: {error} Correct the file and import it again; events that are "
        "already stored are skipped."
    )


def _goes_ahead(count: int | None, *, back: bool, yes: bool, dry_run: bool, as_json: bool) -> bool:
    """Say how many events are selected, and ask; print the result if the answer is no."""
    what = "The file" if count is None else events_of(count)
    if goes_ahead(f"{what} to import{' back' if back else ''}.", yes=yes, dry_run=dry_run):
        return True
    if as_json:
        print_json({"accepted": 0, "repeated": 0, "selected": count, "dry_run": dry_run})
    else:
        click.echo("Nothing is imported (--dry-run)." if dry_run else "Nothing is imported.")
    return False


def _say_what_is_missing(total: dict[str, int], name: str) -> None:
    """Exit with 1 if events of the file are neither here nor delivered from here."""
    if total["moved"]:
        click.echo(
            hint(
                f"{show_count(total['moved'])} of them were moved away from this host and are not pending; "
                f"`px-sidecar outbox import --back {shlex.quote(name)}` makes them pending here again."
            ),
            err=True,
        )
    if total["pruned"]:
        click.echo(
            f"{show_count(total['pruned'])} of them are known here, but their rows are pruned (outbox.keep_delivered), so "
            "that it is not known what became of them; once outbox.keep_ids has passed, `outbox import` takes them.",
            err=True,
        )
    if total["moved"] or total["pruned"]:
        sys.exit(1)


def _lift(backend: object) -> list[str]:
    """Lift an export of this host; return the units that it has stopped. With a daemon its start has done so."""
    store = getattr(backend, "store", None)
    if store is None:
        return []
    from sidecar.control.export import lift_export

    note = lift_export(store)
    return [] if note is None else note.units


def _lines(file: BinaryIO, *, quiet: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines that are not empty. Raises Failed for one that is not JSON, but not for a cut last line."""
    for number, line in enumerate(file, 1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip()  # an editor's byte order mark
        if not text:
            continue
        try:
            msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            # An export marks events as moved once their lines are complete and synced: this event was not moved.
            if number > 1 and not line.endswith(b"\n"):
                if not quiet:
                    click.echo(f"Line {number}, the last, is cut off and left out: its event was not moved.", err=True)
                return
            raise Failed(
                f"Line {number} is not JSON ({error}); use a complete file written by `outbox export`."
            ) from None
        yield number, text

"""``px-sidecar outbox import FILE.db``: import a rescued outbox, or one from a backup."""

from collections.abc import Iterator
from pathlib import Path

import click

from sidecar.cli.backend import open_backend
from sidecar.cli.bulk import batches
from sidecar.cli.common import load_config, print_json
from sidecar.cli.screen import progress_bar
from sidecar.clock import SystemClock
from sidecar.control.client import ControlApi
from sidecar.control.outbox_file import exported_lines, opened_copy
from sidecar.outbox import Store, real_path
from sidecar.outbox.rescue import mark_imported, rescued_files
from sidecar.units import counted, show_count

__all__ = ["import_outbox"]


def import_outbox(path: Path, *, dead: bool, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Import the pending events of an outbox file, with ``dead`` its dead letters as well. Raises SidecarError.

    A rescued file beside the outbox is renamed once everything in it that can be imported is.
    """
    config = load_config(config_flag)
    with open_backend(control_flag, config_flag) as backend, opened_copy(config, path) as copy:
        letters = sum(count for name, count in copy.counters.items() if name.startswith("dead:"))
        accepted, repeated = _import(backend, copy, exported_lines(config, copy, SystemClock().wall_ms(), dead=dead))
    left = 0 if dead else letters
    done = path
    if not left and path.resolve() in rescued_files(real_path(config)):
        done = mark_imported(path.resolve())
    if as_json:
        print_json({"accepted": accepted, "repeated": repeated, "dead": left, "file": str(done)})
        return
    click.echo(
        f"{counted(accepted, 'event', 'was')} imported; {show_count(repeated)} {'was' if repeated == 1 else 'were'} already stored."
    )
    if left:
        click.echo(
            f"{counted(left, 'dead letter', 'is')} left in {path}; import it again with --dead to try them once more."
        )
    if done != path:
        click.echo(f"The file is now {done}; remove it when you no longer need it.")


def _import(backend: ControlApi, copy: Store, lines: Iterator[bytes]) -> tuple[int, int]:
    """Import exported lines; return how many events were accepted and how many were stored already. Raises Failed."""
    accepted = repeated = 0
    progress, task = progress_bar("importing", total=copy.pending())
    with progress:
        for _, events in batches(enumerate(lines)):
            result = backend.post("/v1/import", {"events": events})
            accepted += result["accepted"]
            repeated += result["repeated"]
            progress.update(task, completed=accepted + repeated)
    return accepted, repeated

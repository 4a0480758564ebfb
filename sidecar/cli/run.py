"""``px-sidecar run``: run the daemon in the foreground."""

import gc
import os
import threading
from contextlib import suppress
from typing import Final

import click

from sidecar.cli.common import config_option, global_option, hint, load_config
from sidecar.config.credentials import api_key, property_key, property_key_warning, remote_warning
from sidecar.config.file import ConfigFile
from sidecar.errors import SidecarError
from sidecar.receive.claim import claim

__all__ = ["run"]

FINAL_ERROR_S: Final = 1.0


@click.command()
@config_option
def run(config_flag: str | None) -> None:
    """Run the daemon in the foreground.

    Accepts events over HTTP and the Unix socket, stores them in the outbox and
    delivers them to PX. SIGTERM and SIGINT stop it gracefully, a second signal
    stops it at once; SIGHUP reloads the configuration (so does `px-sidecar
    reload`), and stops a daemon whose terminal was closed.

    Exits with 78 if the configuration must change before the next start, and
    with 1 if a later start may succeed.

    \b
    Example:
        PX_SIDECAR_PX_API_KEY=… px-sidecar run --config ./config.toml
    """
    # Nothing that a start creates becomes garbage before the end; the daemon collects once it is ready.
    gc.disable()
    try:
        _run(config_flag)
    except SidecarError as error:
        if not error.is_logged:
            _write_final_error(f"px-sidecar: {hint(str(error))}")
            error.is_logged = True
        raise


def _run(config_flag: str | None) -> None:
    config = load_config(config_flag)
    key = api_key(config.px, os.environ)
    product = property_key(config.px)
    with claim(config) as claimed:
        region = ConfigFile(config_flag, instance=global_option("instance")).region_warning(config)
        warnings = [text for text in (property_key_warning(product), region, remote_warning(config)) if text]
        from sidecar.cli.run_daemon import run_daemon  # here: clients are waiting already while it is loaded

        run_daemon(config, key, config_flag, claimed, warnings)


def _write_final_error(text: str) -> None:
    """Write to standard error, which may be closed or take nothing: the process ends with its exit code in any case."""

    def write() -> None:
        with suppress(OSError, ValueError):
            click.echo(text, err=True)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(FINAL_ERROR_S)

"""The second half of ``px-sidecar run``: everything that is loaded once the sockets are open."""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

import trio

from sidecar.cli.common import expected_error, global_option
from sidecar.clock import FreezeClock
from sidecar.config.file import ConfigFile
from sidecar.config.schema import Config, Secret
from sidecar.daemon import serve_daemon
from sidecar.errors import SidecarError
from sidecar.observe.log_queue import QueuedStream
from sidecar.observe.logs import (
    LogLines,
    configure,
    is_text,
    missing_note,
    secrets_of,
    write_keys_of,
    write_suppressed,
)
from sidecar.receive.claim import Claimed

__all__ = ["run_daemon"]

log = logging.getLogger(__name__)

# How long a thread waits for the interpreter while another computes. The event loop returns from the kernel hundreds of times a
# second while the store's thread may hold it: with Python's 5 ms the slowest hundredth of calls took a quarter longer.
SWITCH_S: Final = 0.0005


def run_daemon(config: Config, key: Secret, config_flag: str | None, claimed: Claimed, warnings: Sequence[str]) -> None:
    """Run the daemon until a signal ends it. Raises Failed or ConfigError if it cannot start, StoreFailed.

    ``warnings`` are written first, at any log level, and as the log is: standard error that takes nothing stops no start.
    """
    sys.setswitchinterval(SWITCH_S)
    lines = LogLines()
    stream = QueuedStream(sys.stderr, note=missing_note(config.log, sys.stderr, os.environ))
    for warning in warnings:
        stream.write(f"px-sidecar: {warning}\n")
    instance = global_option("instance")
    masks = configure(
        *(config.log, stream, os.environ, [key, *secrets_of(config)], lines, write_keys_of(config)), instance=instance
    )
    file = ConfigFile(config_flag, instance=instance)
    try:
        try:
            trio.run(serve_daemon, config, key, file, claimed, lines, masks, clock=FreezeClock())
        finally:
            write_suppressed()
    except BaseExceptionGroup as group:
        raise _logged(expected_error(group), config) from None
    except SidecarError as error:
        raise _logged(error, config) from None
    finally:
        stream.close()
        # The process ends, and nothing needs to be collected: a restart waits for the end.
        gc.disable()
        gc.freeze()


def _logged(error: BaseException, config: Config) -> BaseException:
    """Write why the daemon ends as the last line of a log in JSON, where another text would not be one of its lines."""
    if isinstance(error, SidecarError) and not is_text(config.log, sys.stderr):
        log.critical("The daemon ends: %s", error)
        error.is_logged = True
    return error

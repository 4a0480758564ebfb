"""The second half of ``px-sidecar run``: everything that is loaded once the sockets are open."""

import gc
import os
import sys

import trio

from sidecar.cli.common import expected_error, global_option
from sidecar.clock import FreezeClock
from sidecar.config.file import ConfigFile
from sidecar.config.schema import Config, Secret
from sidecar.daemon import serve_daemon
from sidecar.observe.log_queue import QueuedStream
from sidecar.observe.logs import LogLines, configure, secrets_of, write_keys_of
from sidecar.startup import Claimed

__all__ = ["run_daemon"]


def run_daemon(config: Config, key: Secret, config_flag: str | None, claimed: Claimed) -> None:
    """Run the daemon until a signal ends it. Raises Failed or ConfigError if it cannot start, StoreFailed."""
    lines = LogLines()
    stream = QueuedStream(sys.stderr)
    instance = global_option("instance")
    masks = configure(
        *(config.log, stream, os.environ, [key, *secrets_of(config)], lines, write_keys_of(config)), instance=instance
    )
    file = ConfigFile(config_flag, instance=instance)
    try:
        trio.run(serve_daemon, config, key, file, claimed, lines, masks, clock=FreezeClock())
    except BaseExceptionGroup as group:
        raise expected_error(group) from None
    finally:
        stream.close()
        # The process ends, and nothing needs to be collected: a restart waits for the end.
        gc.disable()
        gc.freeze()

"""What a running daemon takes over from a configuration that is read again, and what waits for its next start.

Mapping, people, sources and most of ``[deliver]`` are asked for anew with every event or request. The rest is built into
sockets, files and connections, or would make what was promised under the old value untrue (``order``, ``day``).
"""

from typing import Final

import msgspec

from sidecar.config.schema import Config

__all__ = ["reloaded"]

_LIVE: Final = ("deliver", "mapping", "people", "source")
_DELIVER_AT_START: Final = ("day", "order", "timeout", "stop_timeout")


def reloaded(running: Config, read: Config) -> tuple[Config, list[str]]:
    """What is in force after a reload, and the keys that differ in ``read`` and wait for the next start."""
    at_start = [table for table in Config.__struct_fields__ if table not in _LIVE]
    keys = [(table, key) for table in at_start for key in getattr(read, table).__struct_fields__]
    keys += [("deliver", key) for key in _DELIVER_AT_START]
    waiting = [
        f"{table}.{key}"
        for table, key in keys
        if getattr(getattr(read, table), key) != getattr(getattr(running, table), key)
    ]
    kept = {key: getattr(running.deliver, key) for key in _DELIVER_AT_START}
    live = {table: getattr(read, table) for table in _LIVE}
    live["deliver"] = msgspec.structs.replace(read.deliver, **kept)
    return msgspec.structs.replace(running, **live), waiting

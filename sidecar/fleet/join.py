"""Put together the fleet part of one daemon: identity from the outbox, limits from the configuration in force."""

import secrets
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.config import Config, Secret
from sidecar.fleet.connection import EngineConnection
from sidecar.fleet.host import FleetHost, FleetLimits
from sidecar.fleet.record import FleetRecord, Restored, decode_record, encode_record, restore
from sidecar.fleet.runner import Fleet, limits_of, new_process
from sidecar.outbox import Store

__all__ = ["join_fleet"]

MEMBER, START, RECORD = "fleet_member", "fleet_start", "fleet_record"


def join_fleet(
    store: Store, clock: Clock, *, key: Callable[[], Secret], password: Secret, random: Callable[[], float]
) -> Callable[[Callable[[], Config]], Fleet]:
    """Return a function that builds this host's part of the fleet from the configuration and the PX key in force."""

    def build(config: Callable[[], Config]) -> Fleet:
        member, start, restored = _next_start(store, clock)
        fleet, known = config().fleet, (config(), key(), limits_of(config(), key()))

        def limits() -> FleetLimits:
            nonlocal known
            # Computed once for each configuration and key: it is asked for with every call. The key of the start would be
            # another than that of a host that starts later.
            if config() is not known[0] or key() is not known[1]:
                known = (config(), key(), limits_of(config(), key()))
            return known[2]

        machine = FleetHost(new_process(member, start), limits, restored)
        connection = EngineConnection(fleet, password)
        return Fleet(
            *(machine, connection, clock, save_record), name=fleet.name, replicas=fleet.replicas, random=random
        )

    return build


def save_record(store: Store, record: FleetRecord) -> None:
    """Write the record, inside a transaction."""
    store.set_meta(RECORD, encode_record(record))


def _next_start(store: Store, clock: Clock) -> tuple[str, int, Restored]:
    """Return the identity of the outbox, the number of this start, and what an earlier process has recorded.

    Numbers rise, so that the newest process is known. What the outbox has sent in the day counts for the fleet, also
    what it sent before it joined.
    """
    with store.transaction():
        member = store.get_meta(MEMBER) or secrets.token_hex(8)
        start = int(store.get_meta(START) or 0) + 1
        record = decode_record(store.get_meta(RECORD))
        restored = restore(record, store.quota_rows(), boot_id=clock.boot_id(), now_s=clock.boot_s())
        store.set_meta(MEMBER, member)
        store.set_meta(START, str(start))
        # The rows that are taken as sent alone may get another boot's date; from here on they are counted by themselves.
        save_record(store, restored.record)
    return member, start, restored

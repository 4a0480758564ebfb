"""The outbox's memory of the fleet, so that a process that starts while the engine is away may use its promise. Pure.

The engine's ledger belongs to the outbox, not to the process. A promise may therefore be used by the next process, if

* **it is still set aside**: what a host reports to the engine is never below what is recorded here, so the ledger does not
  shrink before the record has. An orderly stop empties the record before it gives the promise back. The promise ends
  ``forget_after`` after the last answer, as for a process that runs on;
* **the lease of the last call is over**: that call was issued before this process started, so the process is quiet for
  as long as after a call of its own;
* **the turns are known**: lone hosts take turns by the engine's clock. Its bounds are recorded by ``CLOCK_BOOTTIME``,
  which restarts at each boot: after a reboot the promise is not used.

The day: requests that were sent alone and not yet reported must not be lost with their process. Before the first of them
the record says since when they may exist; the next process takes the outbox's own counts since then as sent alone, but no
more than the promise allowed in that time. So a crash can only count too many.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

__all__ = ["FleetRecord", "Restored", "decode_record", "encode_record", "restore"]

MICRO: Final = 1_000_000


class FleetRecord(msgspec.Struct, frozen=True):
    """The promise and what belongs to it. ``answered_s`` and ``bounds`` (of the engine's clock) count by the boot's clock.
    ``used`` is what the fleet had sent of its day at ``answered_s``.

    ``lone`` is what earlier processes sent alone and did not report, by minute; ``lone_since`` since when this process may
    have; None if it has not.
    """

    boot_id: str = ""
    epoch: str = ""
    total: int = 0
    number: int = 0
    promise: int = 0
    answered_s: float = 0.0
    used: int = 0
    bounds: tuple[float, float, float] | None = None
    lone: dict[int, int] = {}
    lone_since: float | None = None


class Restored(NamedTuple):
    """The knowledge that a process starts with: its record, its own counts by minute without those of ``record.lone``, and the time."""

    record: FleetRecord
    own: dict[int, int]
    now_s: float


def encode_record(record: FleetRecord) -> str:
    """Return the text that the outbox stores."""
    return msgspec.json.encode(record).decode()


def decode_record(text: str | None) -> FleetRecord:
    """Return the stored record; an empty one if it is missing or corrupt: then nothing is sent before the first answer."""
    try:
        return msgspec.json.decode(text or "{}", type=FleetRecord)
    except msgspec.DecodeError:
        return FleetRecord()


def restore(record: FleetRecord, rows: Sequence[tuple[int, str, int, int]], *, boot_id: str, now_s: float) -> Restored:
    """Return what a process starts with. ``rows`` are the minutes of the outbox's quota, as the store returns them."""
    own = dict[int, int]()
    for minute, _, _, sent in rows:
        own[minute] = own.get(minute, 0) + sent
    lone = _merged(record.lone, _sent_alone(record, rows, boot_id=boot_id, now_s=now_s))
    own = {minute: sent - lone.get(minute, 0) for minute, sent in own.items() if sent > lone.get(minute, 0)}
    if record.boot_id != boot_id:
        record = FleetRecord()
    return Restored(msgspec.structs.replace(record, lone=lone, lone_since=None), own, now_s)


def _sent_alone(
    record: FleetRecord, rows: Sequence[tuple[int, str, int, int]], *, boot_id: str, now_s: float
) -> dict[int, int]:
    """Return the most that the process which wrote ``record`` can have sent alone, in the newest of its minutes."""
    if record.lone_since is None:
        return {}
    most = math.inf
    if record.boot_id == boot_id:
        most = math.ceil(record.promise * (now_s - record.lone_since) / MICRO) + 1
    lone = dict[int, int]()
    for minute, row_boot_id, boot_minute, sent in sorted(rows, key=lambda row: -row[2]):
        if row_boot_id == record.boot_id and boot_minute >= record.lone_since // 60:
            lone[minute] = lone.get(minute, 0) + int(min(sent, most))
            most -= min(sent, most)
    return lone


def _merged(counts: Mapping[int, int], more: Mapping[int, int]) -> dict[int, int]:
    """Return the sums of two counts by minute."""
    return {minute: counts.get(minute, 0) + more.get(minute, 0) for minute in {*counts, *more}}

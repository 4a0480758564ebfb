"""``ClockTrust``: whether the wall clock can be believed by what discards by age, and what stored times are worth.

Theory
------
Dead letters, message ids, history and ``max_age`` discard by age, and ages come from stored wall-clock times. A clock
that is wrong for seconds (no battery, a bad NTP server, a restored VM) would discard what is minutes old, for good.

* **Belief.** The wall clock is not believed before the program's own release, in the first hour of a boot, and in the
  hour after a jump. Nothing discards by age meanwhile. What is kept an hour too long costs some disk.
* **Jumps** are differences of wall clock and CLOCK_BOOTTIME, which nothing sets (clock_gettime(2)). A slewed clock
  changes the difference slowly and is followed.
* **Segments.** Each jump ends a segment: the stored times that the clock gave before it, and its difference to
  CLOCK_BOOTTIME. So the age of a time from this boot comes from CLOCK_BOOTTIME, whatever the wall clock showed. Stored
  times are not rewritten: ``AgeScale`` counts them with a correction.
* **A boot that never could be believed** says nothing about when it was. Its times count as late as they can be: its
  last one as of the start of the next boot.
* **A time that fits two segments** counts as the younger one. Every doubt keeps a row longer, never shorter.
* **The record** of all this is written in the first transaction after a change, and in others at most once a minute: no
  row is stored with a time whose segment a crash would forget, and idle costs no writes.

See sidecar/outbox/README.md#clock.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.clock import Clock
from sidecar.units import iso_utc, show_duration

if TYPE_CHECKING:
    from sidecar.outbox.store import Store

__all__ = ["CLOCK_RECORD", "AgeScale", "ClockSpan", "ClockTrust", "ReceiptFix", "load_clock_record"]

CLOCK_RECORD: Final = "clock"  # the outbox's meta key of the record
HOUR_MS: Final = 3_600_000
JUMP_MS: Final = 1000  # NTP slews what is smaller than 128 ms, and steps the rest
# A clock that is slewed changes by at most 500 ppm (adjtimex(2)); twice that between two processes is not a jump.
SLEW: Final = 0.001
RECORD_EVERY_MS: Final = 60_000
UNSET_WAIT_MS: Final = 600_000
SPANS_MAX: Final = 64
NAMED_JUMP_MS: Final = 60_000  # only larger jumps are reported to operators
FIX_ROWS: Final = 500
READING_MS: Final = 50  # two clocks that are read further apart say nothing about their difference


class ClockSpan(msgspec.Struct, frozen=True):
    """Stored times from ``first_ms`` to ``last_ms`` may need a correction: true time = stored time + ``correction_ms``."""

    first_ms: int
    last_ms: int
    correction_ms: int


class Segment(msgspec.Struct, frozen=True):
    """Times that the wall clock gave while it was ``offset_ms`` ahead of CLOCK_BOOTTIME of the present boot.

    ``exact`` is false for one of an earlier boot, whose distance to this boot is not known.
    """

    first_ms: int
    last_ms: int
    offset_ms: int
    exact: bool = True


class ClockRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process's knowledge of the clocks; the next one continues from it. ``…_boot_ms`` are CLOCK_BOOTTIME.

    ``offset_ms`` holds since ``since_boot_ms``, 0 if no jump was seen in this boot; ``believed_ms`` is the last one
    that was believed. ``first_ms`` is the first wall-clock time of the present segment. ``receipts_after`` is the event
    id after which receipts of this boot may need a correction.
    """

    boot_id: str
    boot_ms: int
    offset_ms: int
    since_boot_ms: int
    first_ms: int
    believed_ms: int | None = None
    segments: tuple[Segment, ...] = ()
    spans: tuple[ClockSpan, ...] = ()
    receipts_after: int | None = None


class AgeScale(msgspec.Struct, frozen=True):
    """The ages of stored times at one moment. Nothing may be discarded by age unless ``believed``."""

    now_ms: int
    believed: bool = True
    spans: tuple[ClockSpan, ...] = ()

    def age_ms(self, stored_ms: int, *, earlier_ms: int = 0, later_ms: int = 0) -> int:
        """Return the least age that a stored time can have; below 0 if it lies in the future.

        When it was stored the clock showed a time from ``earlier_ms`` before it to ``later_ms`` after it.
        """
        fitting = [
            stored_ms + span.correction_ms
            for span in self.spans
            if span.first_ms <= stored_ms + later_ms and stored_ms - earlier_ms <= span.last_ms
        ]
        # Another process, in a time that was right, may have stored the same: that is possible up to now.
        possible = [*fitting, stored_ms] if stored_ms <= self.now_ms or not fitting else fitting
        return self.now_ms - max(possible)

    def older_than(self, column: str, keep_ms: int, *, unit_ms: int = 1) -> tuple[str, list[int]]:
        """Return an SQL condition for ``age_ms`` above ``keep_ms``, and its parameters.

        ``unit_ms`` is the unit of the column. Each alternative is a range of the column, so that an index serves it.
        """
        if not self.believed:
            return "0", []
        before_ms = self.now_ms - keep_ms
        young = [span for span in self.spans if span.last_ms + span.correction_ms >= before_ms]
        condition = f"({column} < ?" + f" AND {column} NOT BETWEEN ? AND ?" * len(young)
        parameters = [before_ms // unit_ms]
        for span in young:
            parameters += [span.first_ms // unit_ms, span.last_ms // unit_ms]
        for span in self.spans:
            # Times in the future, from a clock that was ahead: they are as old as their segment.
            last_ms = min(span.last_ms, before_ms - span.correction_ms - 1)
            if last_ms > self.now_ms:
                condition += f" OR {column} BETWEEN ? AND ?"
                parameters += [max(span.first_ms, self.now_ms + 1) // unit_ms, last_ms // unit_ms]
        return condition + ")", parameters


class ReceiptFix(msgspec.Struct, frozen=True):
    """Receipts to correct: those of events after ``after_id`` whose time lies in one of ``spans``."""

    after_id: int
    spans: tuple[ClockSpan, ...]

    def step(self, store: "Store") -> int | None:
        """Correct some receipts, inside a transaction; return the id to continue after, None if there are no more."""
        query = "SELECT id, received_ms FROM events WHERE id > ? ORDER BY id LIMIT ?"
        rows = store.connection.execute(query, (self.after_id, FIX_ROWS)).fetchall()
        for event_id, received_ms in rows:
            for span in self.spans:
                if span.first_ms <= received_ms <= span.last_ms:
                    changed = (received_ms + span.correction_ms, event_id)
                    store.connection.execute("UPDATE events SET received_ms = ? WHERE id = ?", changed)
                    break
        return rows[-1][0] if len(rows) == FIX_ROWS else None


def load_clock_record(store: "Store") -> ClockRecord | None:
    """Return the record of the previous process; None if there is none or it is corrupt."""
    try:
        return msgspec.json.decode(store.get_meta(CLOCK_RECORD) or "null", type=ClockRecord | None)
    except msgspec.MsgspecError:
        return None


class ClockTrust:
    """Watches ``clock``; see the module. ``record`` is that of the previous process.

    Pure but for reading the clock. Each question reads it again, so that a jump is noticed with the first question
    after it. Not for several threads.
    """

    def __init__(self, clock: Clock, record: ClockRecord | None = None) -> None:
        self._clock = clock
        self._released_ms = clock.released_ms
        self._boot_id = clock.boot_id()
        self._boot_ms, self._offset_ms = self._read() or (round(clock.boot_s() * 1000), 0)
        self._since_boot_ms = 0
        self._first_ms = self._boot_ms + self._offset_ms
        self._believed_ms: int | None = None
        self._segments: list[Segment] = []
        self._spans: list[ClockSpan] = []
        self._receipts_after: int | None = None
        self._jump_ms = 0
        self._recorded_boot_ms = self._recording_boot_ms = -RECORD_EVERY_MS
        self._urgent = record is None or record.boot_id != self._boot_id
        if record is not None:
            self._continue_from(record)
        self._observe()

    # Questions ------------------------------------------------------------------------------------------------------

    @property
    def believed(self) -> bool:
        """True if the wall clock may decide what is discarded by age."""
        self._observe()
        return self._is_believed()

    @property
    def is_unset(self) -> bool:
        """True while the wall clock shows a time before this program was released."""
        self._observe()
        return self._wall_ms < self._released_ms

    def steady_ms(self) -> int:
        """Return the time for ages that are compared with each other: it does not jump with the wall clock.

        Within a boot it is CLOCK_BOOTTIME, dated by the last wall clock that was believed.
        """
        self._observe()
        anchor_ms = self._offset_ms if self._believed_ms is None else self._believed_ms
        return self._boot_ms + anchor_ms

    def scale(self) -> AgeScale:
        """Return what ages are measured by at this moment."""
        self._observe()
        relative = [
            ClockSpan(segment.first_ms, segment.last_ms, self._offset_ms - segment.offset_ms)
            for segment in self._segments
            if abs(self._offset_ms - segment.offset_ms) >= JUMP_MS
        ]
        return AgeScale(self._wall_ms, self._is_believed(), (*relative, *self._spans))

    def receipt_ms(self, received_ms: int) -> int:
        """Return a time of receipt, corrected if the clock was set after it; 0 if it is wrong and cannot be corrected."""
        if received_ms >= self._released_ms:
            return received_ms
        if not self.is_unset:
            for segment in reversed(self._segments):
                if segment.exact and segment.first_ms <= received_ms <= segment.last_ms:
                    return received_ms - segment.offset_ms + self._offset_ms
        return 0

    def delivery_waits_s(self) -> float:
        """Return how long delivery still waits for the clock to be set; 0 if it does not."""
        if not self.is_unset:
            return 0.0
        unset_for_ms = self._wall_ms - self._first_ms
        return max(0.0, (UNSET_WAIT_MS - unset_for_ms) / 1000)

    def problem(self) -> str:
        """Return one sentence for operators: what is wrong with the clock and what to do; empty if nothing is."""
        self._observe()
        shown = iso_utc(self._wall_ms)
        if self._wall_ms < self._released_ms:
            wait_s = self.delivery_waits_s()
            waits = (
                f"delivery waits {show_duration(wait_s)} for it at most" if wait_s else "delivery does not wait longer"
            )
            return (
                f"The clock of this host shows {shown}, which is before this version was released; set it "
                f"(`timedatectl set-ntp true`). Events are accepted, {waits}, and nothing is discarded by age."
            )
        if self._since_boot_ms and not self._is_believed() and abs(self._jump_ms) >= NAMED_JUMP_MS:
            left_s = (HOUR_MS - (self._boot_ms - self._since_boot_ms)) / 1000
            by = f"{show_duration(abs(self._jump_ms) / 1000)} {'ahead' if self._jump_ms > 0 else 'back'}"
            return (
                f"The clock of this host jumped {by} and shows {shown}; check its time service (`timedatectl`). Nothing "
                f"is discarded by age until it has held for another {show_duration(left_s)}."
            )
        return ""

    # The record -----------------------------------------------------------------------------------------------------

    def record_due(self, next_id: int, *, with_rows: bool) -> str | None:
        """Return the record if it must be written with the next transaction, else None.

        ``next_id`` is the newest event id. ``with_rows`` is true if the transaction writes something anyway.
        """
        self._observe()
        if self._wall_ms < self._released_ms and self._receipts_after is None:
            self._receipts_after, self._urgent = next_id, True
        stale = self._boot_ms - self._recorded_boot_ms >= RECORD_EVERY_MS
        if not self._urgent and not (with_rows and stale):
            return None
        self._recording_boot_ms = self._boot_ms
        record = ClockRecord(
            boot_id=self._boot_id,
            boot_ms=self._boot_ms,
            offset_ms=self._offset_ms,
            since_boot_ms=self._since_boot_ms,
            first_ms=self._first_ms,
            believed_ms=self._believed_ms,
            segments=tuple(self._segments),
            spans=tuple(self._spans),
            receipts_after=self._receipts_after,
        )
        return msgspec.json.encode(record).decode()

    def recorded(self) -> None:
        """Note that the record which ``record_due`` returned last is committed."""
        self._urgent = False
        self._recorded_boot_ms = self._recording_boot_ms

    def receipts_to_fix(self) -> ReceiptFix | None:
        """Return the receipts of this boot to correct, now that the clock is set; None if there are none."""
        if self._receipts_after is None or self.is_unset:
            return None
        spans = tuple(
            ClockSpan(segment.first_ms, segment.last_ms, self._offset_ms - segment.offset_ms)
            for segment in self._segments
            if segment.exact and segment.first_ms < self._released_ms
        )
        return ReceiptFix(self._receipts_after, spans)

    def receipts_fixed(self, after_id: int | None) -> None:
        """Take what ``ReceiptFix.step`` returned, after its commit."""
        self._receipts_after, self._urgent = after_id, True

    def forget_spans(self, keep_ms: int) -> None:
        """Forget the spans whose times are all older than ``keep_ms``: their rows have been discarded."""
        if not self.believed:
            return
        before_ms = self._wall_ms - keep_ms - 24 * HOUR_MS
        self._spans = [span for span in self._spans if span.last_ms + span.correction_ms >= before_ms]
        since_ms = before_ms - self._offset_ms
        self._segments = [segment for segment in self._segments if segment.last_ms - segment.offset_ms >= since_ms]

    # Watching -------------------------------------------------------------------------------------------------------

    @property
    def _wall_ms(self) -> int:
        return self._boot_ms + self._offset_ms

    def _is_believed(self) -> bool:
        # Without a jump the clock has held since the boot: the first hour of a boot is the same rule.
        return self._wall_ms >= self._released_ms and self._boot_ms - self._since_boot_ms >= HOUR_MS

    def _read(self) -> tuple[int, int] | None:
        """Return CLOCK_BOOTTIME and the wall clock's offset to it, both in ms; None if they were not read together."""
        for _ in range(3):
            before_s, wall_ms, after_s = self._clock.boot_s(), self._clock.wall_ms(), self._clock.boot_s()
            if (after_s - before_s) * 1000 < READING_MS:
                boot_ms = round(after_s * 1000)
                return boot_ms, wall_ms - boot_ms
        return None

    def _observe(self) -> None:
        reading = self._read()
        if reading is None:
            return
        self._boot_ms, offset_ms = reading
        if abs(offset_ms - self._offset_ms) >= JUMP_MS:
            self._jumped(offset_ms)
        self._offset_ms = offset_ms
        if self._is_believed():
            self._believed_ms = offset_ms

    def _jumped(self, offset_ms: int) -> None:
        """End the present segment; the next one begins now."""
        began_boot_ms = self._first_ms - self._offset_ms
        was_unset = self._wall_ms < self._released_ms
        self._add_segment(Segment(self._first_ms, self._wall_ms, self._offset_ms))
        # Receipts of a clock that was not set are corrected to this segment's times, from before its beginning.
        self._first_ms = offset_ms + (began_boot_ms if was_unset else self._boot_ms)
        self._jump_ms = 0 if was_unset else offset_ms - self._offset_ms
        self._since_boot_ms = self._boot_ms
        self._urgent = True

    def _add_segment(self, segment: Segment) -> None:
        self._segments.append(segment)
        if len(self._segments) > SPANS_MAX:
            # One for both, with the younger reading of either.
            first, second = self._segments[:2]
            merged = Segment(
                min(first.first_ms, second.first_ms),
                max(first.last_ms, second.last_ms),
                min(first.offset_ms, second.offset_ms),
                exact=False,
            )
            self._segments[:2] = [merged]

    def _add_span(self, span: ClockSpan) -> None:
        self._spans.append(span)
        if len(self._spans) > SPANS_MAX:
            first, second = self._spans[:2]
            merged = ClockSpan(
                min(first.first_ms, second.first_ms),
                max(first.last_ms, second.last_ms),
                max(first.correction_ms, second.correction_ms),
            )
            self._spans[:2] = [merged]

    def _continue_from(self, record: ClockRecord) -> None:
        self._spans = list(record.spans)
        # Rows were stored after the record was written, for a minute and the length of a commit.
        last_ms = record.boot_ms + record.offset_ms + 2 * RECORD_EVERY_MS
        same_boot = record.boot_id == self._boot_id and record.boot_ms <= self._boot_ms
        if same_boot:
            self._segments = list(record.segments)
            self._since_boot_ms, self._first_ms = record.since_boot_ms, record.first_ms
            self._believed_ms, self._receipts_after = record.believed_ms, record.receipts_after
            offset_ms = self._offset_ms
            elapsed_ms = self._boot_ms - record.boot_ms
            if abs(offset_ms - record.offset_ms) >= JUMP_MS + elapsed_ms * SLEW:
                self._offset_ms = record.offset_ms
                self._jumped(offset_ms)
                self._offset_ms = offset_ms
            return
        earlier = [*record.segments, Segment(record.first_ms, last_ms, record.offset_ms)]
        if record.believed_ms is None:
            # Nothing is known of when that boot was, but that what the record knew of was before now.
            shift_ms = record.boot_ms - self._boot_ms
            for segment in earlier:
                moved_ms = segment.offset_ms + shift_ms
                self._add_segment(Segment(segment.first_ms, segment.last_ms, moved_ms, exact=False))
            return
        for segment in earlier:
            if abs(correction_ms := record.believed_ms - segment.offset_ms) >= JUMP_MS:
                self._add_span(ClockSpan(segment.first_ms, segment.last_ms, correction_ms))

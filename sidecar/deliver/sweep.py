"""Events that a rule drops need no permission to send: the judgment of a row, and the sweep over what is not loaded.

Loading stops once enough users are ready. While the day is spent or PX is away, rows that a rule drops would then stay
pending for as long as that lasts; parked rows wait for a head of their user that may not be dropped.
The sweep reads small pages from the read position on, then of the parked rows, keeps nothing of them, and goes over
each once per configuration. It goes over the parked ones again if others were parked without a judgment.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from sidecar.deliver.actions import SweepPage, SweepParked
from sidecar.deliver.order import LoadedEvent
from sidecar.events import decode_stored
from sidecar.mapping import PRIORITIES, LiveSettings, Priority, Settings
from sidecar.outbox import Page, Row, hashed_values

__all__ = ["RuleJudge", "RuleSweep"]

SWEEP_ROWS = 64  # about 1 ms of judging


class RuleJudge:
    """Says which rule in force drops an event, by the event alone."""

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings

    def reason(self, row: Row) -> str | None:
        """Return why a rule drops the row; None if none does, or if that depends on the events before it."""
        try:
            call, hashed = decode_stored(row.body), hashed_values(row.hashed)
        except msgspec.DecodeError:
            return None  # it is reported when it is its turn
        return self._settings.now.mapper.dropped_by_rule(call, hashed)

    def drops(self, event: LoadedEvent) -> str | None:
        """Return the reason for a loaded event, and note that it was judged under these settings."""
        event.judged_by = self._settings.now
        return self.reason(event.row)

    def unjudged(self, events: Sequence[LoadedEvent]) -> list[LoadedEvent]:
        """Return those of the events that were not judged under the settings in force."""
        return [event for event in events if event.judged_by is not self._settings.now]


class RuleSweep:
    """The progress of the sweep through each class under the settings in force. Pure."""

    def __init__(self, judge: RuleJudge) -> None:
        self._judge = judge
        self._settings: Settings | None = None
        self._accepted_meanwhile = self._unjudged = False
        self._start_again()

    def _start_again(self) -> None:
        self._swept_to = dict.fromkeys(PRIORITIES, 0)
        self._at_end = dict.fromkeys(PRIORITIES, False)
        self._sweep_parked()

    def _sweep_parked(self) -> None:
        self._unjudged = False
        self._classes_left = list(PRIORITIES)  # of which parked rows are to be swept
        self._parked_after = ("", 0)

    def accepted(self) -> None:
        """Continue the sweep: there are new events after the end that was reached."""
        self._at_end = dict.fromkeys(PRIORITIES, False)
        self._accepted_meanwhile = True

    def parked_unjudged(self) -> None:
        """Rows were parked without a judgment: they are swept once nothing may be sent."""
        self._unjudged = True

    def wants(
        self,
        settings: Settings,
        loaded_to: Mapping[Priority, int],
        exhausted: Mapping[Priority, bool],
        *,
        stalled: bool,
        parked: bool,
    ) -> SweepPage | SweepParked | None:
        """Return the next page to look at; None if there is none.

        ``stalled``: nothing may be sent now. ``parked``: there are parked rows, behind heads that are stalled or wait.
        """
        if settings is not self._settings:
            self._settings = settings
            self._start_again()
        for priority in PRIORITIES if stalled else ():
            if not (exhausted[priority] or self._at_end[priority]):
                self._accepted_meanwhile = False
                return SweepPage(priority, max(self._swept_to[priority], loaded_to[priority]), SWEEP_ROWS)
        if stalled and self._unjudged and not self._classes_left:
            self._sweep_parked()
        return (
            SweepParked(self._classes_left[0], self._parked_after, SWEEP_ROWS)
            if parked and self._classes_left
            else None
        )

    def dropped(self, wanted: SweepPage | SweepParked, page: Page) -> Iterator[tuple[Row, str]]:
        """Yield the rows of a page that a rule drops, each with the reason."""
        if isinstance(wanted, SweepPage):
            if page.rows:
                self._swept_to[wanted.priority] = page.rows[-1].id
            self._at_end[wanted.priority] = not (page.more or self._accepted_meanwhile)
        elif page.more:
            self._parked_after = (page.rows[-1].user or "", page.rows[-1].id)
        else:
            self._classes_left.remove(wanted.priority)
            self._parked_after = ("", 0)
        for row in page.rows:
            if (reason := self._judge.reason(row)) is not None:
                yield row, reason

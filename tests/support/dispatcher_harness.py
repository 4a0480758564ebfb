"""A dispatcher without a loop: its outbox is a list of rows, its clock stands still unless moved."""

import json
from typing import Any

from deliver_parts import live_settings, settings_of

from sidecar.deliver.actions import (
    LoadPage,
    LoadParked,
    Park,
    Send,
    Settle,
    SettleRows,
    SweepPage,
    SweepParked,
    WaitUntil,
)
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.destination import Destination
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.limiter import LocalLimiter
from sidecar.deliver.quota import Lease, Quota
from sidecar.mapping import Priority
from sidecar.observe import RecordingTelemetry
from sidecar.outbox import Failure, Page, Remembered, Row, Settlement
from sidecar.px import PxAnswer, Reply

CREATED = PxAnswer(201, b"{}")


class StillClock:
    """Wall, boot and monotonic clock that stand still unless moved."""

    released_ms = 1_600_000_000_000

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.now_s * 1000)

    def boot_s(self) -> float:
        return self.now_s + 100_000

    def boot_id(self) -> str:
        return "boot"


class DispatcherHarness:
    """A dispatcher whose requests for leases and pages are granted at once."""

    def __init__(
        self,
        config: str = "",
        rows: list[Row] | None = None,
        known: list[Remembered] | None = None,
        clock: Any = None,
    ) -> None:
        self.clock = clock or StillClock()
        self.settings = live_settings(config)
        self.telemetry = RecordingTelemetry()
        deliver = lambda: self.settings.now.config.deliver  # noqa: E731
        self.rows = rows or []
        self.known = known or []
        self.parked: list[int] = []
        self.swept: list[Settlement] = []
        self.dispatcher = Dispatcher(
            settings=self.settings,
            telemetry=self.telemetry,
            limiter=LocalLimiter(
                Bucket(deliver().per_second, self.clock.now_s - 10), Quota(deliver, clock=self.clock), deliver
            ),
            destination=Destination(now_s=self.clock.now_s, config=deliver, random=lambda: 0.5),
            clock=self.clock,
            random=lambda: 0.5,
        )

    def reload(self, text: str) -> None:
        """Replace the configuration as the daemon does."""
        self.settings.replace(settings_of(text))

    def feed(self) -> bool:
        """Grant everything that the dispatcher asks for; return whether it asked for something."""
        fed = False
        while (wanted := self.dispatcher.wants()) is not None:
            fed = True
            match wanted:
                case Lease():
                    self.dispatcher.limiter.granted(wanted)
                case LoadPage(priority, after_id, limit):
                    page = [row for row in self.unparked(priority) if row.id > after_id][:limit]
                    self.dispatcher.loaded(priority, Page(page, self.known, len(page) == limit))
                case SweepPage(priority, after_id, limit):
                    behind = [row for row in self.unparked(priority) if row.id > after_id]
                    self._settle(self.dispatcher.swept(wanted, Page(behind[:limit], self.known, len(behind) > limit)))
                case SweepParked(priority, after, limit):
                    behind = [row for row in self.rows if row.priority == priority and row.id in self.parked]
                    behind = sorted((row.user, row.id, row) for row in behind if (row.user, row.id) > after)
                    page = Page([row for _, _, row in behind[:limit]], self.known, len(behind) > limit)
                    self._settle(self.dispatcher.swept(wanted, page))
                case SettleRows(settlements):
                    self._settle(settlements)
                case Park(ids):
                    self.parked += ids
                case LoadParked(key, after_id, limit):
                    page = [row for row in self.rows if row.id in self.parked and row.id > after_id][:limit]
                    self.dispatcher.loaded_parked(key, Page(page, self.known, len(page) == limit))
        return fed

    def unparked(self, priority: Priority) -> list[Row]:
        """Return the rows of a class in the outbox that are not parked."""
        return [row for row in self.rows if row.priority == priority and row.id not in self.parked]

    def _settle(self, settlements: list[Settlement]) -> None:
        """Commit settlements that need no permission to send."""
        self.swept += settlements
        gone = {settlement.id for settlement in settlements}
        self.rows = [row for row in self.rows if row.id not in gone]
        self.dispatcher.settled(settlements)

    def next(self) -> Send | Settle | WaitUntil:
        """Return the next decision that is not a wait for a page, a lease or the pace."""
        for _ in range(100):
            action = self.dispatcher.decide(self.clock.now_s)
            if not isinstance(action, WaitUntil):
                return action
            if self.feed():
                continue
            if action.until_s > self.clock.now_s + 0.2:
                return action
            self.clock.now_s = action.until_s
        raise AssertionError("no decision")

    def send(self) -> Send:
        """Return the next decision, which must be to send."""
        action = self.next()
        assert isinstance(action, Send), action
        return action

    def wait_and_send(self) -> Send:
        """Return the next request, however long it has to wait."""
        for _ in range(100):
            action = self.next()
            if isinstance(action, Send):
                return action
            assert isinstance(action, WaitUntil)
            self.clock.now_s = action.until_s
        raise AssertionError("nothing is sent")

    def reply(self, sent: Send, reply: Reply) -> list[Settle | Failure]:
        return self.dispatcher.replied(sent.event, reply, self.clock.now_s)


def track(number: int, user: str = "u", *, failure: Failure | None = None, **fields: object) -> Row:
    """Return a row with a track event; ``fields`` replace its fields, so that it may become another call."""
    event = {"type": "track", "event": "Logged In", "userId": user, "messageId": f"m{number}"} | fields
    return Row(number, Priority.NORMAL, 0, user, 1_700_000_000_000, json.dumps(event).encode(), failure)


def settlement(written: list[Settle | Failure]) -> Settlement:
    """Return the one settlement that was written."""
    (settle,) = written
    assert isinstance(settle, Settle), settle
    return settle.settlement

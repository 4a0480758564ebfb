"""A destination on a time line of its own, and the replies that PX may give."""

from typing import Any

from deliver_parts import make_destination

from sidecar.deliver.destination import DestinationStatus, Outcome, Permission, Probe
from sidecar.px import NotSent, PxAnswer, Reply, Unknown, classify

CREATED = PxAnswer(201)
BAD = PxAnswer(400, b'{"externalapierror":{"message":"eventName is missing"}}')
BUSY = PxAnswer(503)
AWAY = NotSent("connection refused")
LOST = Unknown("no answer within 30 s")
NO_KEY = PxAnswer(401, b"Authentication failed in loginAwareAuthentication")
READ_ONLY = PxAnswer(403, b"{}", None, "application/json")
BLOCKED = PxAnswer(403, b"<!doctype html><title>403</title>", None, "text/html")
ELSEWHERE = PxAnswer(404)
SLOW_DOWN = PxAnswer(429)


class DestinationHarness:
    """A destination whose back-off always draws its whole ceiling; each reply is for a new event unless one is given."""

    def __init__(self, saved: dict[str, Any] | None = None, per_second: float = 190) -> None:
        self.now_s, self.event = 1000.0, 0
        self.destination = make_destination(self.now_s, lambda: 1.0, saved=saved, per_second=per_second)

    def reply(
        self, reply: Reply, user: str | None = "user", *, event: int | None = None, probe: bool = False
    ) -> Outcome:
        self.event += 1
        verdict = classify(reply, wall_ms=0)
        event_id = self.event if event is None else event
        return self.destination.on_verdict(verdict, event=event_id, user=user, now_s=self.now_s, probe=probe)

    def permission(self) -> Permission:
        return self.destination.may_send(self.now_s)

    def later(self, seconds: float) -> "DestinationHarness":
        self.now_s += seconds
        return self

    def probe(self, reply: Reply, user: str | None = "user", *, event: int | None = None) -> Outcome:
        assert self.permission() == Probe()
        self.destination.probe_started(self.now_s)
        assert not isinstance(self.permission(), Probe), "one probe at a time"
        return self.reply(reply, user, event=event, probe=True)

    def status(self) -> DestinationStatus:
        return self.destination.describe(self.now_s)

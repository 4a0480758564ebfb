"""What goes wrong on purpose: the settings, and which fault a request meets. Pure but for the dice it is handed."""

import fnmatch
from email.utils import formatdate
from random import Random
from typing import Literal

import msgspec

from sidecar.sandbox.judge import Answer, error

__all__ = ["Fault", "Faults", "Outage", "choose", "retry_after_header"]

FIREWALL_PAGE = (
    b"<!doctype html><html><head><meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">"
    b"<title>403</title></head><body>403 Forbidden</body></html>"
)  # fmt: skip


class Outage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PX is away for a while. Times are seconds since these faults were set; no ``to_s``: until they are changed."""

    from_s: float = 0.0
    to_s: float | None = None
    how: Literal["refuse", "503", "hang"] = "refuse"
    """``refuse``: every request is answered with a reset. (A connection cannot be refused outright without losing the
    control path too; to have that, kill the sandbox and start it again with its state file.)"""


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All faults; the defaults are a good day. Rates are shares of the requests, from 0 to 1."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Each answer takes ``latency_s`` and a random part of ``jitter_s``; what it answers is decided on arrival."""
    outages: tuple[Outage, ...] = ()
    error_rate: float = 0.0
    error_status: int = 503
    error_body: str = ""
    """Empty: PX's envelope. Otherwise this text, as ``error_type``."""
    error_type: str = "application/json"
    error_bytes: int = 0
    """Blanks are added until the body of an error is that long."""
    dropped_answers: float = 0.0
    """Processed and stored, then the connection is reset instead of an answer."""
    hang: float = 0.0
    """Not processed, never answered; the connection stays open."""
    garbage: float = 0.0
    """Processed; the answer is not HTTP."""
    drip_s: float = 0.0
    """Every answer's body comes byte by byte, with this much time between."""
    firewall_names: tuple[str, ...] = ()
    """Event names or globs that a web firewall refuses with a 403 page of HTML."""
    fail_users: tuple[str, ...] = ()
    """``identifyId``s or globs whose events are answered with ``fail_status``."""
    fail_status: int = 503
    retry_after: str = ""
    """With each 429 and 503: ``seconds:N``, ``date:N`` (N seconds from now), or any other text as it is."""

    def __post_init__(self) -> None:
        for name in ("error_rate", "dropped_answers", "hang", "garbage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the requests, from 0 to 1")
        for name in ("error_status", "fail_status"):
            if not 200 <= getattr(self, name) <= 599:
                raise ValueError(f"{name} is an HTTP status, from 200 to 599")

    def outage(self, since_set_s: float) -> Outage | None:
        """The outage that is on, ``since_set_s`` seconds after the faults were set."""
        for outage in self.outages:
            if outage.from_s <= since_set_s and (outage.to_s is None or since_set_s < outage.to_s):
                return outage
        return None

    def error_answer(self, status: int) -> Answer:
        """The answer of an error that was asked for."""
        if self.error_body:
            answer = Answer(status, self.error_body.encode(), self.error_type)
        else:
            answer = error(status, "This error was asked for (sandbox)")
        return Answer(status, answer.body.ljust(self.error_bytes), answer.content_type)

    def delay_s(self, dice: Random) -> float:
        """How long this answer takes."""
        return self.latency_s + (dice.uniform(0, self.jitter_s) if self.jitter_s else 0.0)


Fault = Literal["", "refuse", "hang", "error", "503"]


def choose(faults: Faults, since_set_s: float, dice: Random) -> Fault:
    """The fault that keeps a request from being processed; empty for none."""
    outage = faults.outage(since_set_s) if faults.outages else None
    if outage is not None:
        return outage.how
    if faults.hang and dice.random() < faults.hang:
        return "hang"
    if faults.error_rate and dice.random() < faults.error_rate:
        return "error"
    return ""


def fault_of_event(faults: Faults, name: object, user: object) -> Answer | None:
    """The answer to an event that a rule of the faults names, or None."""
    if any(fnmatch.fnmatchcase(str(name), glob) for glob in faults.firewall_names):
        return Answer(403, FIREWALL_PAGE, "text/html; charset=utf-8")
    if any(fnmatch.fnmatchcase(str(user), glob) for glob in faults.fail_users):
        return faults.error_answer(faults.fail_status)
    return None


def retry_after_header(faults: Faults, status: int, now_ms: int) -> tuple[tuple[str, str], ...]:
    """The Retry-After header of an answer, if the faults ask for one."""
    if not faults.retry_after or status not in (429, 503):
        return ()
    form, _, number = faults.retry_after.partition(":")
    value = faults.retry_after
    if number.isdecimal() and form in ("seconds", "date"):
        value = number if form == "seconds" else formatdate(now_ms / 1000 + int(number), usegmt=True)
    return (("Retry-After", value),)

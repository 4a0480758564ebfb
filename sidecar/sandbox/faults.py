"""Injected faults: their settings, and the choice of a fault for a request. Pure; randomness is an argument."""

import fnmatch
from email.utils import formatdate
from random import Random
from typing import Literal

import msgspec

from sidecar.sandbox.judge import JudgeAnswer, px_error

__all__ = ["Fault", "Faults", "Outage", "choose_fault", "retry_after_header"]

# The block page of a real cloud edge, as captured in RudderStack's tests (sidecar/px/README.md#answers).
FIREWALL_PAGE = (
    b"<!doctype html><html><head><meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">"
    b"<title>403</title></head><body>403 Forbidden</body></html>"
)  # fmt: skip


class Outage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which PX is away. Times are seconds since the faults were set; without ``to_s`` it has no end."""

    from_s: float = 0.0
    to_s: float | None = None
    how: Literal["refuse", "503", "hang"] = "refuse"
    """``refuse`` resets the connection of every request. (Refusing connections would also cut off the control paths; to
    get that, kill the sandbox and start it again with its state file.)"""


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All fault settings; the defaults inject nothing. Rates are shares of the requests, from 0 to 1."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Each answer takes ``latency_s`` plus a random part of ``jitter_s``; its content is decided on arrival."""
    outages: tuple[Outage, ...] = ()
    error_rate: float = 0.0
    error_status: int = 503
    error_body: str = ""
    """PX's error envelope if empty; otherwise this text, with the content type ``error_type``."""
    error_type: str = "application/json"
    error_bytes: int = 0
    """Blanks are appended until the body of an error has this length."""
    dropped_answers: float = 0.0
    """The request is processed and stored, then the connection is reset instead of an answer."""
    hang: float = 0.0
    """The request is not processed and never answered; the connection stays open."""
    garbage: float = 0.0
    """The request is processed; the answer is not HTTP."""
    drip_s: float = 0.0
    """The body of every answer is sent byte by byte, with this pause before each byte."""
    firewall_names: tuple[str, ...] = ()
    """Event names or globs that a web firewall refuses with status 403 and an HTML page."""
    fail_users: tuple[str, ...] = ()
    """Values or globs of ``identifyId`` whose events are answered with ``fail_status``."""
    fail_status: int = 503
    retry_after: str = ""
    """Sent with each 429 and 503: ``seconds:N``, ``date:N`` (N seconds from now), or any other text unchanged."""

    def __post_init__(self) -> None:
        for name in ("error_rate", "dropped_answers", "hang", "garbage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the requests, from 0 to 1")
        for name in ("error_status", "fail_status"):
            if not 200 <= getattr(self, name) <= 599:
                raise ValueError(f"{name} is an HTTP status, from 200 to 599")

    def outage(self, since_set_s: float) -> Outage | None:
        """Return the outage in force ``since_set_s`` seconds after the faults were set, or None."""
        for outage in self.outages:
            if outage.from_s <= since_set_s and (outage.to_s is None or since_set_s < outage.to_s):
                return outage
        return None

    def error_answer(self, status: int) -> JudgeAnswer:
        """Return the answer of an injected error."""
        if self.error_body:
            answer = JudgeAnswer(status, self.error_body.encode(), self.error_type)
        else:
            answer = px_error(status, "Injected error (sandbox)")
        return JudgeAnswer(status, answer.body.ljust(self.error_bytes), answer.content_type)

    def delay_s(self, rng: Random) -> float:
        """Draw the seconds before this answer is sent."""
        return self.latency_s + (rng.uniform(0, self.jitter_s) if self.jitter_s else 0.0)


Fault = Literal["", "refuse", "hang", "error", "503"]


def choose_fault(faults: Faults, since_set_s: float, rng: Random) -> Fault:
    """Choose the fault that keeps a request from being processed; empty for none."""
    outage = faults.outage(since_set_s) if faults.outages else None
    if outage is not None:
        return outage.how
    if faults.hang and rng.random() < faults.hang:
        return "hang"
    if faults.error_rate and rng.random() < faults.error_rate:
        return "error"
    return ""


def fault_of_event(faults: Faults, name: object, user: object) -> JudgeAnswer | None:
    """Return the answer to an event that ``firewall_names`` or ``fail_users`` match, or None."""
    if any(fnmatch.fnmatchcase(str(name), glob) for glob in faults.firewall_names):
        return JudgeAnswer(403, FIREWALL_PAGE, "text/html; charset=utf-8")
    if any(fnmatch.fnmatchcase(str(user), glob) for glob in faults.fail_users):
        return faults.error_answer(faults.fail_status)
    return None


def retry_after_header(faults: Faults, status: int, now_ms: int) -> tuple[tuple[str, str], ...]:
    """Return the Retry-After header of an answer, if the faults demand one for its status."""
    if not faults.retry_after or status not in (429, 503):
        return ()
    form, _, number = faults.retry_after.partition(":")
    value = faults.retry_after
    if number.isdecimal() and form in ("seconds", "date"):
        value = number if form == "seconds" else formatdate(now_ms / 1000 + int(number), usegmt=True)
    return (("Retry-After", value),)

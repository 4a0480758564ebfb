"""``check --live --contract``: what PX's documents leave open, tried on a test product and read back.

About a dozen marked events of one marked user are sent, and the user is deleted at the end; events cannot be deleted in PX.
The table is for sidecar/px/README.md#open-questions: it says what was answered and what PX shows, and draws no conclusion
that it has not seen.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.cli.px_queries import ask_px
from sidecar.config import Config
from sidecar.errors import Failed
from sidecar.px import PxAnswer, PxRequest, Reply, decode_events, read_events
from sidecar.px.requests import EVENTS, delete_user

__all__ = ["ContractProbe", "ProbeResult", "probes", "run_contract"]

DAY_MS: Final = 86_400_000
POLL_S: Final = 10.0
EXCERPT: Final = 160


class ContractProbe(NamedTuple):
    """One question: the requests that ask it, and the date (epoch milliseconds) by which its events are read back.

    ``wanted`` is how many events PX shows if it keeps them all; 0 if nothing is read back.
    """

    question: str
    requests: list[PxRequest]
    user: str
    date_ms: int = 0
    wanted: int = 0


class ProbeResult(msgspec.Struct):
    """The behavior of PX: ``answers`` are status and excerpt of each request, ``read_back`` events of ``sent`` that it shows."""

    question: str
    answers: list[str]
    sent: int
    read_back: int | None = None
    attributes: int | None = None
    """The attributes that the newest event was shown with."""
    unread: str = ""
    """The reason why its events could not be read back; then ``read_back`` is None."""


def probes(product: str, run: str, now_ms: int) -> list[ContractProbe]:
    """Return the questions. ``run`` marks user, name and ids; each event has a date of its own, by which it is found."""
    user, name = f"px-sidecar-contract-{run}", f"px-sidecar contract {run}"
    create = {"identifyId": user, "propertyKeys": [product], "customAttributes": {f"pxSidecar{run}": "undeclared"}}
    plain = {"identifyId": user, "propertyKeys": [product]}

    def event(offset_ms: int, **fields: Any) -> PxRequest:
        body = {"eventName": name, "identifyId": user, "propertyKey": product, "userType": "USER"}
        return PxRequest("POST", EVENTS, _json(body | {"date": now_ms - offset_ms} | fields))

    def asked(question: str, offset_ms: int, *requests: PxRequest, of: str = user) -> ContractProbe:
        return ContractProbe(question, list(requests), of, now_ms - offset_ms, len(requests))

    ghost = f"{user}-unknown"
    return [
        ContractProbe("a user with an undeclared trait", [PxRequest("POST", "/v1/users", _json(create))], user),
        ContractProbe("the same user without it", [PxRequest("POST", "/v1/users", _json(plain))], user),
        asked("a known user, an unregistered name, now", 1_000, event(1_000)),
        asked("an unknown user", 2_000, event(2_000, identifyId=ghost), of=ghost),
        asked("dated 1 day ago", DAY_MS, event(DAY_MS)),
        asked("dated 30 days ago", 30 * DAY_MS, event(30 * DAY_MS)),
        asked("dated 400 days ago", 400 * DAY_MS, event(400 * DAY_MS)),
        asked("50 attributes", 3_000, event(3_000, attributes={f"a{number:02}": number for number in range(50)})),
        asked("51 attributes", 4_000, event(4_000, attributes={f"a{number:02}": number for number in range(51)})),
        asked("one eventId twice", 5_000, event(5_000, eventId=f"{run}-1"), event(5_000, eventId=f"{run}-1")),
    ]


def run_contract(config: Config, product: str, *, wait_s: float, progress: Callable[[str], None]) -> list[ProbeResult]:
    """Ask all questions, and read back until PX shows every event or ``wait_s`` has passed. Raises Failed or ConfigError.

    The marked users are deleted at the end, even after Ctrl-C: PX may make one of the user that it does not know.
    """
    asked = probes(product, uuid.uuid4().hex[:8], int(time.time() * 1000))
    try:
        return _ask_all(config, asked, wait_s, progress)
    finally:
        ask_px(config, [delete_user(user) for user in dict.fromkeys(probe.user for probe in asked)])


def _ask_all(
    config: Config, asked: Sequence[ContractProbe], wait_s: float, progress: Callable[[str], None]
) -> list[ProbeResult]:
    results = []
    for probe in asked:
        progress(probe.question)
        replies = ask_px(config, probe.requests)
        results.append(ProbeResult(probe.question, [_answer(reply) for reply in replies], len(probe.requests)))
    if all(_is_refused_key(result) for result in results):
        raise Failed(
            f"PX refuses every request ({results[0].answers[0]}); check key and region with `px-sidecar check --live`."
        )
    deadline_s = time.monotonic() + wait_s
    while True:
        progress("reading back")
        missing = _read_back(config, asked, results)
        if not missing or time.monotonic() >= deadline_s:
            break
        time.sleep(min(POLL_S, max(0.0, deadline_s - time.monotonic())))
    return results


def _read_back(config: Config, asked: Sequence[ContractProbe], results: Sequence[ProbeResult]) -> int:
    """Fill in what PX shows of each question's events; return how many it does not show.

    A refusal to read, such as a 429 as the subscription's hosts deliver meanwhile, must not cost the other answers.
    """
    missing = 0
    for probe, result in zip(asked, results, strict=True):
        if not probe.wanted:
            continue
        request = read_events(user_id=probe.user, from_ms=probe.date_ms - 1, until_ms=probe.date_ms + 1, page_size=25)
        try:
            events = decode_events(ask_px(config, [request])[0])["customEvents"]
        except Failed as error:
            result.unread = "" if result.read_back is not None else str(error)
            missing += probe.wanted
            continue
        shown = [event for event in events if isinstance(event, dict) and event.get("date") == probe.date_ms]
        result.read_back, result.unread = len(shown), ""
        attributes = shown[0].get("attributes") if shown else None
        result.attributes = len(attributes) if isinstance(attributes, dict) else None
        missing += probe.wanted - len(shown)
    return missing


def _answer(reply: Reply) -> str:
    if not isinstance(reply, PxAnswer):
        return str(getattr(reply, "why", "no answer"))
    after = f", Retry-After: {reply.retry_after}" if reply.retry_after is not None else ""
    body = " ".join(reply.body[:EXCERPT].decode("utf-8", "replace").split()) if reply.status >= 300 else ""
    return f"{reply.status}{after}{f' {body}' if body else ''}"


def _is_refused_key(result: ProbeResult) -> bool:
    return all(answer.startswith(("401", "403")) for answer in result.answers)


def _json(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)

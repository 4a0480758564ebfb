"""What an answer from PX means: one pure function from a reply to a verdict, and the words people read.

Rules
-----
=====================================================  ==============  ==============================================
reply                                                  kind            why
=====================================================  ==============  ==============================================
2xx                                                    delivered       201 is what PX declares
could not be sent                                      away            nothing left the host
error or time-out after sending began, 1xx, nonsense   ambiguous       PX may or may not have it
429; 408, 425 or 5xx with a Retry-After                too_fast        PX asks to wait
408, 425, 5xx                                          later           the same request may work later
401; 403 that is not a web page                        wrong_key       invalid or read-only key
403 with a web page                                    firewall        the edge before PX dislikes this content
404 (not on a people update); 402, 405, 407, 3xx       wrong_region    not the API we meant to talk to
404 on a people update, 400 "duplicate" on a create    next_step       absent, exists: the sequence goes on
400 on a create, cut off before it says so             later           what is missing may have said "duplicate"
any other 4xx                                          refused         this request is wrong
=====================================================  ==============  ==============================================

A Retry-After is carried in the verdict whatever its kind, so that the destination can obey it; it alone does not turn
a refusal into something to repeat.

PX declares no schema for errors; the envelopes read here are those of facts/px_and_sdks.md 1.3. The words follow the
troubleshooting table of the seed (facts/seed_gainsight_px.txt).
"""

import enum
import html
import json
import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

__all__ = [
    "EXCERPT_CHARS",
    "RETRY_AFTER_MAX_S",
    "Answer",
    "Call",
    "Kind",
    "NotSent",
    "Reply",
    "Unknown",
    "Verdict",
    "classify",
    "retry_after_s",
]

EXCERPT_CHARS = 500
RETRY_AFTER_MAX_S = 3600.0  # a server that says more has made a mistake; the next answer can say it again
PX_FIELDS = (
    *("identifyId", "propertyKeys", "propertyKey", "userType", "eventName", "date", "sessionId", "accountId"),
    *("attributes", "customAttributes", "globalContext", "url", "referrer", "remoteHost", "eventId", "name", "id"),
)


class Answer(msgspec.Struct, frozen=True):
    """A status line and headers came back. ``body`` is what could be read of it; ``cut`` says that there was more."""

    status: int
    body: bytes = b""
    retry_after: str | None = None
    content_type: str = ""
    cut: bool = False


class NotSent(msgspec.Struct, frozen=True):
    """PX cannot have seen the request: no address, no connection, no TLS."""

    why: str


class Unknown(msgspec.Struct, frozen=True):
    """Sending began and no answer could be read: PX may have processed the request."""

    why: str


Reply = Answer | NotSent | Unknown


class Call(enum.Enum):
    """What a request does, as far as it changes what its answer means."""

    EVENT = "event"
    UPDATE = "update"
    CREATE = "create"


class Kind(enum.StrEnum):
    """What a reply means for the event and for the destination."""

    DELIVERED = "delivered"
    AWAY = "away"
    AMBIGUOUS = "ambiguous"
    LATER = "later"
    TOO_FAST = "too_fast"
    WRONG_KEY = "wrong_key"
    FIREWALL = "firewall"
    WRONG_REGION = "wrong_region"
    NEXT_STEP = "next_step"
    REFUSED = "refused"


class Verdict(msgspec.Struct, frozen=True):
    """What a reply means.

    ``excerpt`` is what PX said, as plain text of at most 500 characters, and empty for a delivery, where nobody asks;
    ``field`` the PX field it complains about, if it names one; ``retry_after_s`` seconds to wait, at most an hour;
    ``message`` one sentence for people.
    """

    kind: Kind
    status: int | None = None
    excerpt: str = ""
    field: str | None = None
    retry_after_s: float | None = None
    message: str = ""


def classify(reply: Reply, *, call: Call = Call.EVENT, wall_ms: int) -> Verdict:
    """The verdict on a reply; ``wall_ms`` is now, for a Retry-After that is a date."""
    if isinstance(reply, NotSent):
        return Verdict(Kind.AWAY, message=f"PX cannot be reached ({reply.why}); events are kept and tried again.")
    if isinstance(reply, Unknown):
        message = f"The answer of PX was lost ({reply.why}); the event is sent again and may then be there twice."
        return Verdict(Kind.AMBIGUOUS, message=message)
    delivered = 200 <= reply.status < 300
    said = "" if delivered else _excerpt(reply)
    kind = Kind.DELIVERED if delivered else _kind(reply, call, said)
    return Verdict(
        kind,
        reply.status,
        said,
        _field(reply, said) if kind is Kind.REFUSED else None,
        retry_after_s(reply.retry_after, wall_ms),
        _message(kind, reply.status, said),
    )


def _kind(answer: Answer, call: Call, said: str) -> Kind:
    """Of an answer that is no delivery."""
    status = answer.status
    if not 300 <= status < 600:
        return Kind.AMBIGUOUS
    if status in (408, 425) or status >= 500:
        return Kind.LATER if answer.retry_after is None else Kind.TOO_FAST
    if status == 429:
        return Kind.TOO_FAST
    if status == 401 or (status == 403 and not _is_web_page(answer)):
        return Kind.WRONG_KEY
    if status == 403:
        return Kind.FIREWALL
    if status == 400 and call is Call.CREATE and (answer.cut or "duplicate" in said.lower()):
        return Kind.NEXT_STEP if "duplicate" in said.lower() else Kind.LATER
    if status == 404 and call is Call.UPDATE:
        return Kind.NEXT_STEP
    if status in (402, 404, 405, 407) or status < 400:
        return Kind.WRONG_REGION
    return Kind.REFUSED


def _is_web_page(answer: Answer) -> bool:
    """The shape of an edge's block page (facts/px_and_sdks.md 1.3); the API itself answers JSON."""
    return "html" in answer.content_type.lower() or answer.body.lstrip()[:1] == b"<"


def retry_after_s(header: str | None, wall_ms: int) -> float | None:
    """Seconds of a Retry-After, from 0 to an hour: a number or an HTTP date; None if there is none or it is garbage."""
    if header is None:
        return None
    text = header.strip()
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - wall_ms / 1000
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


# --- what PX said ---

_SECRETS = re.compile(
    r"(?i)((?:x-aptrinsic-api-key|authorization|api[_-]?key)\W{1,5}(?:basic |bearer )?)[^\s\"',;<>&]+"
)


def _excerpt(answer: Answer) -> str:
    """The body as one line of plain text: no markup, no control characters, nothing that looks like a credential."""
    text = answer.body[: 16 * 1024].decode("utf-8", "replace")
    if _is_web_page(answer):
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<!--.*?(-->|$)|<[^>]*>?", " ", text)
        text = html.unescape(text)
    else:
        text = "; ".join(message for message, _ in _complaints(text)) or text
    text = "".join(char if char.isprintable() else " " for char in text)
    text = _SECRETS.sub(r"\1****", " ".join(text.split()))
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


def _field(answer: Answer, said: str) -> str | None:
    """The PX field that the body names: in an error's own ``field``, else as a word in its message."""
    text = answer.body[: 16 * 1024].decode("utf-8", "replace")
    for _, field in _complaints(text):
        if field:
            return field[:100]
    named = re.search(rf"(?<![\w.])(attributes\.\w+|{'|'.join(PX_FIELDS[:-2])})\b", said)
    return named[1] if named else None


def _complaints(text: str) -> Iterator[tuple[str, str | None]]:
    """Message and field of each error in PX's envelopes; nothing for any other text."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(body, dict):
        return
    envelope = body.get("externalapierror")
    errors: list[Any] = [body, envelope]
    if isinstance(envelope, dict) and isinstance(envelope.get("subErrors"), list):
        errors += envelope["subErrors"]
    for error in errors:
        if isinstance(error, dict):
            message = next((error[key] for key in ("errorMessage", "message") if isinstance(error.get(key), str)), None)
            field = error.get("field")
            if message:
                yield message, field if isinstance(field, str) else None


# --- what people read ---

_ADVICE = {
    Kind.DELIVERED: "delivered.",
    Kind.AMBIGUOUS: "which is no answer of the API; the event is sent again and may then be there twice.",
    Kind.LATER: "PX has a problem of its own; the event is tried again.",
    Kind.TOO_FAST: "PX asks to slow down; delivery waits and goes on at a lower pace.",
    Kind.WRONG_KEY: "the API key is invalid or read-only; regenerate a key with Write access under Administration > "
    "Integrations > REST API, put it where [px] api_key_file points, and restart the daemon.",
    Kind.FIREWALL: "a web firewall in front of PX blocks the content of this event; look at its texts and addresses "
    "with `px-sidecar events show`, and drop or rename what offends in [mapping.attributes].",
    Kind.NEXT_STEP: "the next step of the upsert follows.",
    Kind.REFUSED: "PX refuses this request; every event needs identifyId, propertyKey, userType and eventName, and the "
    "property_key has to match your PX product.",
}
_NOT_THE_API = (
    "that is not the API of your subscription; set [px] region to us, eu or us2 (it is on the data residency page of "
    "your contract), and look at base_url and proxy."
)
_WRONG_REGION = {
    402: "the PX subscription may not use the API; ask Gainsight about your plan, then `px-sidecar resume`.",
    407: "the proxy wants credentials; write them into [px] proxy as http://name:password@host:port.",
}


def _message(kind: Kind, status: int, said: str) -> str:
    advice = _WRONG_REGION.get(status, _NOT_THE_API) if kind is Kind.WRONG_REGION else _ADVICE[kind]
    quoted = f" ({said[:120].rstrip('.')})" if said and kind is not Kind.DELIVERED else ""
    return f"PX answered {status}{quoted}: {advice}"

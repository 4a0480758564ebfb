"""Classify PX's answers: one pure function from a reply to a verdict, with a message for the operator.

Rules
-----
=====================================================  ==============  ==============================================
reply                                                  kind            reason
=====================================================  ==============  ==============================================
201, 204                                               delivered       PX declares them; the status line decides
any other 2xx, not with a web page                     delivered
any other 2xx with a web page                          firewall        something before PX answered; PX has nothing
could not be sent                                      away            nothing left the host
had no permission to leave in time                     held            nothing left the host, and PX is not at fault
error or timeout after sending began, 1xx, nonsense    ambiguous       PX may or may not have processed it
429                                                    too_fast        PX asks to slow down
408, 425 or 5xx with a Retry-After                     wait            PX asks to wait
408, 425, 5xx                                          later           the same request may succeed later
401; 403 that is not a web page                        wrong_key       invalid or read-only key
403 with a web page                                    firewall        a proxy before PX rejects this content
404 (not on a people update); 402, 405, 407, 3xx       wrong_region    the host is not the intended API
404 on a people update, 400 "duplicate" on a create    next_step       absent, exists: continue the sequence
400 on a create, cut off before "duplicate" appears    later           the missing part may contain it
any other 4xx                                          refused         this request is invalid
=====================================================  ==============  ==============================================

Every verdict carries the Retry-After, whatever its kind, so that the destination can obey it. A Retry-After alone does
not turn a refusal into something to retry.

PX declares no schema for errors. The envelopes that this module reads, and the sources of the rules, are in
sidecar/px/README.md#answers.
"""

import enum
import html
import json
import re
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from sidecar.errors import Failed

__all__ = [
    "EXCERPT_CHARS",
    "RETRY_AFTER_MAX_S",
    "Kind",
    "NotSent",
    "PxAnswer",
    "PxCall",
    "Reply",
    "Unknown",
    "Verdict",
    "classify",
    "decode_events",
    "retry_after_s",
]

EXCERPT_CHARS = 500
RETRY_AFTER_MAX_S = 3600.0  # a longer wait is treated as a server mistake; the next answer can ask again

_READ_BYTES = 16 * 1024  # of a body; regular expressions over megabytes would stall the event loop
_PAGE_BYTES = 4096  # a web page shows itself within them
_PAGE = re.compile(rb"(?i)<(?:!doctype\s+html|html|head|body)\b")
_QUOTED_CHARS = 120  # of the excerpt inside a message
_FIELD_CHARS = 100
# ``name`` and ``id`` are left out: in an error message they are usually ordinary words.
_FIELDS_IN_TEXT = (
    *("identifyId", "propertyKeys", "propertyKey", "userType", "eventName", "date", "sessionId", "accountId"),
    *("attributes", "customAttributes", "globalContext", "url", "referrer", "remoteHost", "eventId"),
)


class PxAnswer(msgspec.Struct, frozen=True):
    """An answer whose status line and headers were read.

    ``body`` is the part of the body that was read; ``cut`` is true if there was more of it.
    """

    status: int
    body: bytes = b""
    retry_after: str | None = None
    content_type: str = ""
    cut: bool = False


class NotSent(msgspec.Struct, frozen=True):
    """PX cannot have seen the request: name resolution, connection or TLS failed.

    ``why`` is one line for people, ``advice`` the half-sentence that says what to do about it. ``held``: there was a
    connection, and no permission to send within the time of the attempt (``Departure.due_s``).
    """

    why: str
    advice: str = "check this host's network and firewall, and px.proxy if the way out leads through one"
    held: bool = False


class Unknown(msgspec.Struct, frozen=True):
    """Sending began and no answer could be read: PX may have processed the request. ``why`` is one line for people."""

    why: str


Reply = PxAnswer | NotSent | Unknown


class PxCall(enum.Enum):
    """The kind of request, as far as the meaning of an answer depends on it."""

    EVENT = "event"
    UPDATE = "update"
    CREATE = "create"


class Kind(enum.StrEnum):
    """The meaning of a reply for the event and for the destination."""

    DELIVERED = "delivered"
    AWAY = "away"
    HELD = "held"
    AMBIGUOUS = "ambiguous"
    LATER = "later"
    TOO_FAST = "too_fast"
    WAIT = "wait"
    WRONG_KEY = "wrong_key"
    FIREWALL = "firewall"
    WRONG_REGION = "wrong_region"
    NEXT_STEP = "next_step"
    REFUSED = "refused"


class Verdict(msgspec.Struct, frozen=True):
    """The classification of a reply.

    ``excerpt`` is PX's answer as one line of plain text, at most 500 characters, empty for a delivery. ``field`` is the
    PX field that a refusal names, if any. ``retry_after_s`` is in seconds, at most an hour. ``message`` is one sentence
    for people and says what to do.
    """

    kind: Kind
    status: int | None = None
    excerpt: str = ""
    field: str | None = None
    retry_after_s: float | None = None
    message: str = ""


def classify(reply: Reply, *, call: PxCall = PxCall.EVENT, wall_ms: int) -> Verdict:
    """Return the verdict on a reply. ``wall_ms`` is the current time, for a Retry-After that is a date."""
    if isinstance(reply, NotSent):
        if reply.held:
            return Verdict(
                Kind.HELD, message=f"The request was not sent ({reply.why}); it is sent when the limits allow it."
            )
        return Verdict(Kind.AWAY, message=f"PX cannot be reached ({reply.why}); {reply.advice}.")
    if isinstance(reply, Unknown):
        message = f"The answer of PX was lost ({reply.why}); the event is sent again and may be duplicated in PX."
        return Verdict(Kind.AMBIGUOUS, message=message)
    # A firewall's page or a captive portal answers 200 as well, and PX has never seen the event.
    delivered = reply.status in (201, 204) or (200 <= reply.status < 300 and not _is_web_page(reply))
    excerpt = "" if delivered else _excerpt(reply)
    kind = Kind.DELIVERED if delivered else _classify_failure(reply, call, excerpt)
    return Verdict(
        kind,
        reply.status,
        excerpt,
        _refused_field(reply, excerpt) if kind is Kind.REFUSED else None,
        retry_after_s(reply.retry_after, wall_ms),
        _message(kind, reply.status, excerpt),
    )


def decode_events(reply: Reply) -> dict[str, Any]:
    """Return PX's answer to ``read_events``: ``customEvents``, ``totalHits``, ``scrollId``. Raises Failed."""
    verdict = classify(reply, wall_ms=0)  # the time is for a Retry-After, which is not used here
    if not isinstance(reply, PxAnswer) or verdict.kind is not Kind.DELIVERED:
        if verdict.kind is Kind.WRONG_KEY:
            raise Failed(
                f"The API key may not read events (PX answered {verdict.status}); give it the Read permission "
                "under Administration > Integrations > REST API."
            )
        raise Failed(f"The events could not be read back from PX: {verdict.message}")
    try:
        answer = msgspec.json.decode(reply.body)
        if isinstance(answer["customEvents"], list) and isinstance(answer["totalHits"], int):
            return dict(answer)
    except (msgspec.DecodeError, KeyError, TypeError):
        pass  # an answer of another shape: reported below
    raise Failed("PX's answer about events is not understood; check px.base_url and px.region.")


def _classify_failure(answer: PxAnswer, call: PxCall, excerpt: str) -> Kind:
    """Classify an answer that is not a delivery."""
    status = answer.status
    if 200 <= status < 300:
        return Kind.FIREWALL
    # 1xx as a final status, or above 599: not HTTP as we know it, so nothing follows about the event.
    if not 300 <= status < 600:
        return Kind.AMBIGUOUS
    if status in (408, 425) or status >= 500:
        return Kind.LATER if answer.retry_after is None else Kind.WAIT
    if status == 429:
        return Kind.TOO_FAST
    # A 403 has two causes that need opposite reactions: a read-only key stops everything, while a web firewall's block
    # page concerns one event. Only the form of the body distinguishes them.
    if status == 401 or (status == 403 and not _is_web_page(answer)):
        return Kind.WRONG_KEY
    if status == 403:
        return Kind.FIREWALL
    # A body that was cut before "duplicate" decides nothing: as a refusal it would kill an event of an existing user.
    if status == 400 and call is PxCall.CREATE and (answer.cut or "duplicate" in excerpt.lower()):
        return Kind.NEXT_STEP if "duplicate" in excerpt.lower() else Kind.LATER
    if status == 404 and call is PxCall.UPDATE:
        return Kind.NEXT_STEP
    # Redirects are not followed: another host would receive the key.
    if status in (402, 404, 405, 407) or status < 400:
        return Kind.WRONG_REGION
    return Kind.REFUSED


def _is_web_page(answer: PxAnswer) -> bool:
    """Return whether the answer is HTML, as a firewall's block page is; the API itself answers JSON.

    The start of the body decides; the content type only for a body that does not look like JSON, since gateways label
    JSON as HTML.
    """
    start = answer.body[:_PAGE_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"{", b"["):
        return False
    return "html" in answer.content_type.lower() or start[:1] == b"<" or _PAGE.search(start) is not None


def retry_after_s(header: str | None, wall_ms: int) -> float | None:
    """Parse a Retry-After (RFC 9110 section 10.2.3), a number or an HTTP date, into seconds from 0 to an hour.

    Return None if the header is absent or unreadable.
    """
    if header is None:
        return None
    text = header.strip()
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", text):
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)  # without a zone in asctime's form, which is UTC (RFC 9110 5.6.7)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - wall_ms / 1000
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


# --- the text of an answer ---

_SECRETS = re.compile(
    r"(?i)((?:x-aptrinsic-api-key|authorization|api[_-]?key)\W{1,5}(?:basic |bearer )?)[^\s\"',;<>&]+"
)


def _excerpt(answer: PxAnswer) -> str:
    """Return the body as one line of plain text, without markup, control characters or anything like a credential."""
    text = answer.body[:_READ_BYTES].decode("utf-8", "replace")
    if _is_web_page(answer):
        # An unclosed script, comment or tag extends to the end: a cut page must not leak its scripts as text.
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<!--.*?(-->|$)|<[^>]*>?", " ", text)
        text = html.unescape(text)
    else:
        text = "; ".join(message for message, _ in _envelope_errors(text)) or text
    text = "".join(char if char.isprintable() else " " for char in text)
    # Masking comes after the blanks are joined, so that a line break between name and value does not hide a secret.
    text = _SECRETS.sub(r"\1****", " ".join(text.split()))
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


def _refused_field(answer: PxAnswer, excerpt: str) -> str | None:
    """Return the PX field that the body names: an error's own ``field``, else a field name within its message."""
    text = answer.body[:_READ_BYTES].decode("utf-8", "replace")
    for _, field in _envelope_errors(text):
        if field:
            return field[:_FIELD_CHARS]
    named = re.search(rf"(?<![\w.])(attributes\.\w+|{'|'.join(_FIELDS_IN_TEXT)})\b", excerpt)
    return named[1] if named else None


def _envelope_errors(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield message and field of each error in PX's error envelopes; nothing for any other text."""
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


# --- messages for people ---

_ADVICE = {
    Kind.DELIVERED: "delivered.",
    Kind.AMBIGUOUS: "which is not an answer of the API; the event is sent again and may be duplicated in PX.",
    Kind.LATER: "PX has an internal problem; the event is retried.",
    Kind.TOO_FAST: "PX asks to slow down; delivery waits and resumes at a lower pace.",
    Kind.WAIT: "PX asks to wait; delivery waits for that time and then resumes.",
    Kind.WRONG_KEY: "the API key is invalid or read-only; regenerate a key with Write access under Administration > "
    "Integrations > REST API and store it where [px] api_key_file points, which is read again before each probe; with a "
    "systemd credential restart the daemon.",
    Kind.FIREWALL: "a web firewall in front of PX blocks the content of this event; inspect its texts and addresses "
    "with `px-sidecar events show`, and drop or rename the cause in [mapping.attributes].",
    Kind.NEXT_STEP: "the next step of the upsert follows.",
    Kind.REFUSED: "PX refuses this request; every event needs identifyId, propertyKey, userType and eventName, and the "
    "property_key has to match your PX product.",
}
_NOT_THE_API = (
    "this is not the API of your subscription; set [px] region to us, eu or us2 (it is on the data residency page of "
    "your contract), check base_url and proxy, and restart the daemon."
)
_WRONG_REGION = {
    402: "the PX subscription of this region does not include the API; ask Gainsight about your plan, then run `px-sidecar "
    "resume`, or set [px] region to us, eu or us2 and restart the daemon.",
    407: "the proxy requires credentials; set [px] proxy to http://name:password@host:port and restart the daemon.",
}


_PAGE_AS_SUCCESS = (
    "a web page, which does not come from PX: a firewall, a proxy or a sign-in page stands in front of it, and PX did not "
    "get the event; look at what the page says, and check base_url, proxy and the network's rules for this host."
)


def _message(kind: Kind, status: int, excerpt: str) -> str:
    advice = _WRONG_REGION.get(status, _NOT_THE_API) if kind is Kind.WRONG_REGION else _ADVICE[kind]
    if kind is Kind.FIREWALL and status < 300:
        advice = _PAGE_AS_SUCCESS
    quoted = f" ({excerpt[:_QUOTED_CHARS].rstrip('.')})" if excerpt and kind is not Kind.DELIVERED else ""
    # 407 can only come from a proxy (RFC 9110 section 15.5.8).
    return f"{'The proxy' if status == 407 else 'PX'} answered {status}{quoted}: {advice}"

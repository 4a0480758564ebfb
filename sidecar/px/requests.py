"""What is asked of PX: the bytes for each intent, and the walk from one request of an event to the next.

Theory
------
A custom event is one request. A user or an account is written by the cheapest correct sequence (facts/px_and_sdks.md
1.5 and 5.10; PX has no upsert)::

    PUT ──204──► done        PUT ──404──► POST ──201──► done
                                          POST ──400 "duplicate"──► PUT ──204──► done

The requests of one event follow each other, people first; each waits for the one before. A repeated attempt begins
with the first again, which the sequence allows: a user that was created is then updated.

``PUT /v1/users/{id}`` carries the id in the path. Ids that a path, a proxy or a web firewall could change on the way
go into the body of ``PUT /v1/users/update`` instead, which PX offers for exactly them: anything but ASCII letters,
digits and ``. _ ~ @ + : -``, dots alone, over 200 characters, and the words that are paths themselves.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from sidecar.mapping.model import CustomEvent, Intent, UpsertUser
from sidecar.px.answers import Call, Kind, Reply, Verdict, classify

__all__ = ["CHECK_KEY", "EVENTS", "Request", "Walk", "preview", "read_events"]

EVENTS = "/v1/events/custom"
_FITS_A_PATH = re.compile(r"(?!\.+$|update$|denylist$)[A-Za-z0-9._~@+:-]{1,200}")
_encode = msgspec.json.Encoder().encode


class Request(msgspec.Struct, frozen=True):
    """One HTTP request to PX; ``path`` begins with /v1/ and may hold a query. Headers are the transport's."""

    method: str
    path: str
    body: bytes = b""


# A key that may write gets 400 for it, any other 401 or 403, and no event comes of it (DESIGN, `check --live`).
CHECK_KEY = Request("POST", EVENTS, b"{}")


class Step(msgspec.Struct, frozen=True):
    """A request, what it does, and the step that follows if PX answers absent or exists."""

    call: Call
    request: Request
    otherwise: "Step | None" = None


def first_step(intent: Intent) -> Step:
    """The first step of an intent."""
    if isinstance(intent, CustomEvent):
        return Step(Call.EVENT, Request("POST", EVENTS, _encode(intent.body)))
    if isinstance(intent, UpsertUser):
        return _upsert("/v1/users", "identifyId", intent.user_id, intent.fields, intent.new_only)
    # PX wants a name for a new account (facts 1.5); one that exists keeps the name it has.
    return _upsert(
        "/v1/accounts", "id", intent.account_id, intent.fields, {"name": intent.account_id} | intent.new_only
    )


def _upsert(path: str, key: str, value: str, fields: dict[str, Any], new_only: dict[str, Any]) -> Step:
    if _FITS_A_PATH.fullmatch(value):
        update = Request("PUT", f"{path}/{quote(value, safe='')}", _encode(fields))
    else:
        update = Request("PUT", f"{path}/update", _encode({key: value} | fields))
    create = Request("POST", path, _encode({key: value} | new_only | fields))
    return Step(Call.UPDATE, update, Step(Call.CREATE, create, Step(Call.UPDATE, update)))


class Walk:
    """Walks through the requests of one attempt at one event. Pure: the caller sends and tells what came back.

    ``current`` is the request to send now, and after the end the last one sent; ``sent`` counts those before it.
    """

    def __init__(self, intents: Sequence[Intent]) -> None:
        assert intents, "an event without intents is settled without a request"
        self._left: Iterator[Intent] = iter(intents)
        self._step = first_step(next(self._left))

    @property
    def current(self) -> Request:
        """The request to send now; after a verdict, the one it is about."""
        return self._step.request

    def first(self) -> Request:
        """The first request."""
        return self._step.request

    def after(self, reply: Reply, *, wall_ms: int) -> Request | Verdict:
        """The next request, or the verdict that ends the attempt: ``delivered`` after the last one only."""
        verdict = classify(reply, call=self._step.call, wall_ms=wall_ms)
        if verdict.kind is Kind.NEXT_STEP:
            if self._step.otherwise is None:  # it was there a moment ago; the next attempt starts over
                return msgspec.structs.replace(verdict, kind=Kind.LATER)
            self._step = self._step.otherwise
            return self._step.request
        following = next(self._left, None) if verdict.kind is Kind.DELIVERED else None
        if following is None:
            return verdict
        self._step = first_step(following)
        return self._step.request


def preview(intents: Iterable[Intent]) -> list[dict[str, Any]]:
    """The first request of each intent as people read it: method, path and body (`px-sidecar map`)."""
    requests = [first_step(intent).request for intent in intents]
    return [{"method": one.method, "path": one.path, "body": msgspec.json.decode(one.body)} for one in requests]


def read_events(
    *,
    event_name: str | None = None,
    user_id: str | None = None,
    from_ms: int,
    until_ms: int,
    page_size: int = 25,
    scroll_id: str | None = None,
) -> Request:
    """Read custom events back (facts/px_and_sdks.md 1.6): ``{customEvents, totalHits, scrollId}``; needs a Read key.

    ``from_ms`` and ``until_ms`` bound the events' dates, epoch milliseconds, at most 190 days apart; ``page_size`` is at
    most 1,000. Raises ValueError for a name or id with a ``;``, which PX's filter reads as its "and".
    """
    filters = [f"eventName=={event_name}"] if event_name is not None else []
    filters += [f"identifyId=={user_id}"] if user_id is not None else []
    if any(";" in one for one in filters):
        raise ValueError("PX cannot filter by a text that contains a semicolon")
    query: dict[str, Any] = {"filter": ";".join(filters)} if filters else {}
    query |= {"dateRangeStart": from_ms, "dateRangeEnd": until_ms, "pageSize": page_size}
    query |= {"scrollId": scroll_id} if scroll_id else {}
    return Request("GET", f"{EVENTS}?{urlencode(query, quote_via=quote)}")

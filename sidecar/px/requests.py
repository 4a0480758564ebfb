"""Build PX's requests from intents, and sequence the requests of one event.

Theory
------
A custom event is one request. PX has no upsert, so a user or an account is written by the shortest correct sequence
(sidecar/px/README.md#users-and-accounts)::

    PUT ──204──► done        PUT ──404──► POST ──201──► done
                                          POST ──400 "duplicate"──► PUT ──204──► done

The requests of one event run one after the other, users and accounts first. A retry starts with the first request
again, which the sequence allows: a user that the failed attempt created is then updated.

``PUT /v1/users/{id}`` carries the id in the path. Ids that a path, a proxy or a web firewall could change in transit
are sent in the body of ``PUT /v1/users/update``, which PX provides for them: ids with anything but ASCII letters, digits
and ``. _ ~ @ + : -``, ids of dots alone, ids over 200 characters, and ids that are path words themselves.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

import msgspec

from sidecar.errors import Failed
from sidecar.mapping.model import CustomEvent, Intent, UpsertUser
from sidecar.px.answers import Kind, PxAnswer, PxCall, Reply, Verdict, classify

__all__ = [
    "CHECK_KEY",
    "EVENTS",
    "CallSequence",
    "PxRequest",
    "add_up_names",
    "declared_attributes",
    "delete_user",
    "holds_event",
    "preview",
    "read_attributes",
    "read_event",
    "read_events",
]

EVENTS = "/v1/events/custom"
DATE_WINDOW_MS: Final = 60_000
_PATH_SAFE_ID = re.compile(r"(?!\.+$|update$|denylist$)[A-Za-z0-9._~@+:-]{1,200}")
_encode = msgspec.json.Encoder().encode


class PxRequest(msgspec.Struct, frozen=True):
    """One HTTP request to PX. ``path`` begins with /v1/ and may hold a query. The transport adds the headers."""

    method: str
    path: str
    body: bytes = b""


# Tests a key without creating an event: a key that may write gets 400 for the empty body, any other 401 or 403.
CHECK_KEY = PxRequest("POST", EVENTS, b"{}")


class Step(msgspec.Struct, frozen=True):
    """A request, its kind, and the step that follows if PX answers "absent" or "exists"."""

    call: PxCall
    request: PxRequest
    fallback: "Step | None" = None


def first_step(intent: Intent) -> Step:
    """Return the first step of an intent."""
    if isinstance(intent, CustomEvent):
        return Step(PxCall.EVENT, PxRequest("POST", EVENTS, _encode(intent.body)))
    if isinstance(intent, UpsertUser):
        return _upsert("/v1/users", "identifyId", intent.user_id, intent.fields, intent.new_only)
    # PX requires a name for a new account. The update does not send it, so an existing account keeps its name.
    return _upsert(
        "/v1/accounts", "id", intent.account_id, intent.fields, {"name": intent.account_id} | intent.new_only
    )


def _upsert(path: str, key: str, value: str, fields: dict[str, Any], new_only: dict[str, Any]) -> Step:
    if _PATH_SAFE_ID.fullmatch(value):
        update = PxRequest("PUT", f"{path}/{quote(value, safe='')}", _encode(fields))
    else:
        update = PxRequest("PUT", f"{path}/update", _encode({key: value} | fields))
    create = PxRequest("POST", path, _encode({key: value} | new_only | fields))
    # The last update has no fallback: an id that is absent, exists and is absent again changes outside of our control.
    return Step(PxCall.UPDATE, update, Step(PxCall.CREATE, create, Step(PxCall.UPDATE, update)))


class CallSequence:
    """The requests of one attempt at one event. Pure: the caller sends ``current`` and gives the reply to ``after``."""

    def __init__(self, intents: Sequence[Intent]) -> None:
        assert intents, "an event without intents is settled without a request"
        self._remaining: Iterator[Intent] = iter(intents)
        self._step = first_step(next(self._remaining))

    @property
    def current(self) -> PxRequest:
        """The request to send now; once ``after`` has returned a verdict, the request that the verdict is about."""
        return self._step.request

    def after(self, reply: Reply, *, wall_ms: int) -> PxRequest | Verdict:
        """Return the next request, or the verdict that ends the attempt: ``delivered`` only after the last request."""
        verdict = classify(reply, call=self._step.call, wall_ms=wall_ms)
        if verdict.kind is Kind.NEXT_STEP:
            if self._step.fallback is None:  # deleted since the create reported it; the next attempt starts over
                return msgspec.structs.replace(verdict, kind=Kind.LATER)
            self._step = self._step.fallback
            return self._step.request
        following = next(self._remaining, None) if verdict.kind is Kind.DELIVERED else None
        if following is None:
            return verdict
        self._step = first_step(following)
        return self._step.request


def preview(intents: Iterable[Intent]) -> list[dict[str, Any]]:
    """Return the first request of each intent for display: method, path and decoded body (`px-sidecar map`)."""
    requests = [first_step(intent).request for intent in intents]
    return [
        {"method": request.method, "path": request.path, "body": msgspec.json.decode(request.body)}
        for request in requests
    ]


def delete_user(user_id: str) -> PxRequest:
    """Build the request that deletes a PX user (sidecar/px/README.md#users-and-accounts)."""
    return PxRequest("DELETE", f"/v1/users/{quote(user_id, safe='')}", b"")


def read_attributes(kind: Literal["user", "account"]) -> PxRequest:
    """Build the request that reads the declared custom attributes of users or accounts (sidecar/px/README.md)."""
    return PxRequest("GET", f"/v1/admin/model/{kind}/attributes")


def read_events(
    *,
    event_name: str | None = None,
    user_id: str | None = None,
    from_ms: int,
    until_ms: int,
    page_size: int = 25,
    scroll_id: str | None = None,
) -> PxRequest:
    """Build the request that reads custom events back (sidecar/px/README.md#reading-back); it needs a Read key.

    ``from_ms`` and ``until_ms`` bound the events' dates in epoch milliseconds, at most 190 days apart. ``page_size`` is
    at most 1,000. Raises ValueError for a name or id with a ``;``, which PX's filter reads as "and".
    """
    filters = [f"eventName=={event_name}"] if event_name is not None else []
    filters += [f"identifyId=={user_id}"] if user_id is not None else []
    if any(";" in condition for condition in filters):
        raise ValueError("PX cannot filter by a text that contains a semicolon")
    query: dict[str, Any] = {"filter": ";".join(filters)} if filters else {}
    query |= {"dateRangeStart": from_ms, "dateRangeEnd": until_ms, "pageSize": page_size}
    query |= {"scrollId": scroll_id} if scroll_id else {}
    return PxRequest("GET", f"{EVENTS}?{urlencode(query, quote_via=quote)}")


def add_up_names(counts: Iterable[tuple[str, int]]) -> Counter[str]:
    """Add up the counts of names that differ in case alone, under the first spelling: PX's filters ignore it."""
    spelled: dict[str, str] = {}
    added: Counter[str] = Counter()
    for name, count in counts:
        added[spelled.setdefault(name.casefold(), name)] += count
    return added


def read_event(name: str, user: str, date_ms: int) -> PxRequest:
    """Build the request that reads one event back, for ``holds_event``; texts that PX cannot filter by are left out."""
    return read_events(
        event_name=None if ";" in name else name,
        user_id=None if ";" in user else user,
        from_ms=date_ms - DATE_WINDOW_MS,
        until_ms=date_ms + DATE_WINDOW_MS,
        page_size=1_000,
    )


def declared_attributes(reply: Reply, kind: Literal["user", "account"]) -> list[str]:
    """Return the names in PX's answer to ``read_attributes``: every ``name`` of an object that is in use. Raises Failed.

    No document shows the shape of that answer (sidecar/px/README.md), so names are taken wherever they are.
    """
    if not isinstance(reply, PxAnswer) or reply.status != 200:
        raise Failed(f"The declared attributes of {kind}s could not be read from PX; does the key have Read?")
    found: list[str] = []
    try:
        open_values = [msgspec.json.decode(reply.body)]
    except msgspec.DecodeError:
        raise Failed(f"PX's answer about the declared attributes of {kind}s is not JSON; check px.base_url.") from None
    while open_values:
        value = open_values.pop()
        if isinstance(value, list):
            open_values += value
        elif isinstance(value, dict):
            open_values += [part for part in value.values() if isinstance(part, list | dict)]
            if value.get("state") not in ("DELETED", "DISABLED"):
                found += [value[key] for key in ("name", "attributeName", "apiName") if isinstance(value.get(key), str)]
    return found


def holds_event(answer: Mapping[str, Any], name: str, user: str, date_ms: int) -> bool:
    """Return whether PX's decoded answer to ``read_event`` holds the event."""
    return any(
        event.get("date") == date_ms and event.get("eventName", name) == name and event.get("identifyId", user) == user
        for event in answer["customEvents"]
        if isinstance(event, dict)
    )

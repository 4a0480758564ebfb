"""The OpenAPI 3.1 description of both HTTP interfaces: what apps send to, and the control API.

The parameters come from the types that decode them, so that the description cannot differ from the program in what it
accepts; the answers are described here, and a test compares them with a running daemon (https://spec.openapis.org/oas/v3.1.0).
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sidecar import __version__
from sidecar.config import Config
from sidecar.control import audit, backlog, config_calls, mapping_preview, px_calls, server, trace, watch
from sidecar.control.selection import DeadCommand, DeadQuery, EventCommand, EventsQuery
from sidecar.control.status import Status

__all__ = ["CALLS", "Call", "openapi"]

NDJSON: Final = "application/x-ndjson"
INGEST_SERVER: Final = {"url": "http://127.0.0.1:8321", "description": "listen.http; the same on the Unix socket"}
CONTROL_SERVER: Final = {"url": "http://px-sidecar", "description": "over the Unix socket listen.control"}
INGEST_CALLS: Final = ("track", "identify", "page", "screen", "group", "alias", "batch", "import", "b")


class Call(NamedTuple):
    """One call of the control API: what it does, its parameters, and the fields of its answer.

    The fields are JSON Schema types; ``?`` marks one that may be null, ``*`` one that may be absent. None means a type of
    its own.
    """

    method: str
    about: str
    parameters: type[msgspec.Struct] | None = None
    answer: Mapping[str, str] | type[msgspec.Struct] | None = None
    stream: bool = False


_PAGE: Final = {"events": "array", "next": "string?"}
_MOVED: Final = {"moved": "integer", "next": "integer?"}
_AGAIN: Final = {"accepted": "integer", "repeated": "integer", "full": "boolean"}
_JUDGED: Final = {
    "ok": "boolean",
    "error": "string?",
    "line": "integer?",
    "changes": "array*",
    "problems": "array*",
}
_BACK: Final = {"moved": "integer*", "pruned": "integer*"}
_CONFIG: Final = {name: "array" if name == "source" else "object" for name in Config.__struct_fields__}
_LETTER: Final = {
    "id": "integer",
    "reason": "string",
    "status": "integer?",
    "detail": "string",
    "name": "string",
    "user": "string?",
    "attempts": "integer",
    "first_ms": "integer",
    "last_ms": "integer",
    "received_ms": "integer",
    "event": "object",
    "payload": "object?",
}

CALLS: Final[Mapping[str, Call]] = {
    "/v1/status": Call("GET", "The state of the daemon", None, Status),
    "/v1/series": Call(
        "GET",
        "Counts of ten minutes per second and 24 hours per minute",
        None,
        dict.fromkeys(("seconds", "minutes"), "object"),
    ),
    "/v1/tail": Call("GET", "Every event and outcome as it happens, without end", server.TailQuery, stream=True),
    "/v1/live": Call(
        "GET", "A sample of events and outcomes, at most ten a second, without end", watch.LiveQuery, stream=True
    ),
    "/v1/log": Call("GET", "The newest log lines", watch.LogQuery, {"lines": "array"}),
    "/v1/fleet": Call(
        "GET",
        "This host in its fleet, and all members",
        None,
        {"fleet": "object", "members": "array?", "error": "string?"},
    ),
    "/v1/events": Call("GET", "Events, newest first", EventsQuery, _PAGE),
    "/v1/events/{id}": Call(
        "GET",
        "Everything about one event",
        None,
        {
            "id": "integer",
            "state": "string",
            "event": "object",
            "mapped": "object",
            **dict.fromkeys(("messageId", "name", "user", "reason", "class", "detail"), "string?*"),
            **dict.fromkeys(("received_ms", "settled_ms", "status", "attempts"), "integer?*"),
            **dict.fromkeys(("first_failed_ms", "last_failed_ms"), "integer?*"),
        },
    ),
    "/v1/events/count": Call(
        "POST", "How many pending events a filter selects", EventCommand, {"count": "integer", "next": "integer?"}
    ),
    "/v1/events/discard": Call(
        "POST", "Drop a page of pending events", EventCommand, _MOVED | {"in_flight": "integer"}
    ),
    "/v1/resend/count": Call(
        "POST", "How many delivered events a filter selects", EventCommand, {"count": "integer", "next": "integer?"}
    ),
    "/v1/resend": Call(
        "POST", "Accept a page of delivered events again, in class low", EventCommand, _AGAIN | {"next": "integer?"}
    ),
    "/v1/backfill/check": Call(
        "POST", "Judge events of the past", backlog.BackfillCommand, {"usable": "integer", "refused": "array"}
    ),
    "/v1/backfill": Call(
        "POST", "Accept events of the past, in class low", backlog.BackfillCommand, _AGAIN | {"refused": "array"}
    ),
    "/v1/jobs": Call("GET", "How far backfills have come", None, {"jobs": "array"}),
    "/v1/dead": Call(
        "GET",
        "Dead letters in the order of ids",
        DeadQuery,
        {"letters": "array", "next": "integer?", "dead": "integer"},
    ),
    "/v1/dead/{id}": Call("GET", "One dead letter", None, _LETTER),
    "/v1/dead/groups": Call(
        "GET",
        "Dead letters counted by reason, name and status",
        None,
        {"groups": "array", "dead": "integer", "complete": "boolean"},
    ),
    "/v1/dead/count": Call(
        "POST", "How many dead letters a filter selects", DeadCommand, {"count": "integer", "complete": "boolean"}
    ),
    "/v1/dead/export": Call("GET", "Every selected dead letter", DeadQuery, stream=True),
    "/v1/dead/retry": Call("POST", "Make a page of dead letters pending again", DeadCommand, _MOVED),
    "/v1/dead/discard": Call("POST", "Drop a page of dead letters", DeadCommand, _MOVED),
    "/v1/pause": Call("POST", "Stop delivery", None, Status),
    "/v1/resume": Call("POST", "Start delivery", None, Status),
    "/v1/forget": Call(
        "POST",
        "Forget users, one page",
        server.ForgetCommand,
        {
            "pending": "integer",
            "dead": "integer",
            "history": "integer",
            "memory": "integer",
            "left": "integer",
            "linked": "array",
            "next": "integer?",
        },
    ),
    "/v1/forget/px": Call(
        "POST",
        "Delete up to 20 users in PX, at the pace of delivery",
        px_calls.ForgetInPxCommand,
        {"deleted": "integer", "absent": "integer", "failed": "array", "left": "array", "why": "string"},
    ),
    "/v1/delivered": Call(
        "GET",
        "Deliveries counted by PX event name, one page",
        server.DeliveredQuery,
        {"names": "object", "rows": "integer", "ever": "integer", "oldest_ms": "integer?", "next": "string?"},
    ),
    "/v1/import": Call(
        "POST", "Accept exported events", server.ImportCommand, {"accepted": "integer", "repeated": "integer", **_BACK}
    ),
    "/v1/import/count": Call(
        "POST",
        "How many exported events an import with `back` would make pending",
        server.ImportCountCommand,
        {"count": "integer"},
    ),
    "/v1/map": Call(
        "POST", "Map events without sending them", mapping_preview.MapCommand, _JUDGED | {"results": "array*"}
    ),
    "/v1/mapping/preview": Call(
        "POST",
        "What recent real events give now, and under a changed configuration",
        mapping_preview.PreviewCommand,
        _JUDGED | dict.fromkeys(("rows", "names", "unmatched"), "array*"),
    ),
    "/v1/mapping/idle": Call("GET", "Rules that matched none of the newest events", None, {"rules": "array"}),
    "/v1/checks": Call(
        "GET",
        "What is wrong with file, keys, daemon and host, as the daemon sees it",
        None,
        {"path": "string", "findings": "array"},
    ),
    "/v1/config": Call("GET", "The configuration in force, secrets masked", None, _CONFIG),
    "/v1/config/file": Call(
        "GET",
        "The text of the configuration file, secrets masked",
        None,
        {"path": "string", "exists": "boolean", "toml": "string", "sha256": "string", "variables": "object"},
    ),
    "/v1/config/changes": Call(
        "GET",
        "What the configuration file says that is not in force yet",
        None,
        {"path": "string", "changes": "array", "error": "string?", "problems": "array"},
    ),
    "/v1/config/check": Call(
        "POST",
        "Judge a configuration file and say what it would change",
        config_calls.ConfigText,
        _JUDGED | {"changes": "array", "problems": "array"},
    ),
    "/v1/reload": Call(
        "POST",
        "Read the configuration file again",
        None,
        {"reloaded": "boolean", "waiting": "array", "changed": "array", "new_key": "boolean"},
    ),
    "/v1/reconcile": Call(
        "GET",
        "Delivered events beside what PX says it has, by name",
        px_calls.ReconcileQuery,
        {
            "names": "array",
            "problem": "string?",
            "since_ms": "integer",
            "until_ms": "integer",
            "complete_since_ms": "integer",
            "left_out": "integer",
        },
    ),
    "/v1/reconcile/px": Call(
        "POST",
        "How many events PX has of up to 20 names; changes nothing",
        px_calls.TotalsCommand,
        {"totals": "array", "problem": "string?"},
    ),
    "/v1/verify": Call(
        "GET", "Whether PX shows one event", px_calls.VerifyQuery, {"found": "boolean", "events": "integer"}
    ),
    "/v1/attributes": Call(
        "GET",
        "The custom attributes that PX declares for users or accounts",
        px_calls.AttributesQuery,
        {"names": "array"},
    ),
    "/v1/send": Call("POST", "Accept one event", px_calls.SendCommand, {"messageId": "string", "accepted": "integer"}),
    "/v1/trace": Call(
        "GET",
        "What became of an event, or what was received instead",
        trace.TraceQuery,
        {"stories": "array", "pruned": "array", "next": "string?", "instead": "object*"},
    ),
    "/v1/names": Call(
        "GET",
        "Every event name, what it becomes in PX, its attributes, and what is suspicious",
        trace.NamesQuery,
        {"names": "array", "sampled": "integer", "traits": "object", "findings": "array", "now_ms": "integer"},
    ),
    "/v1/audit": Call(
        "GET", "Who changed what, newest first", audit.AuditQuery, {"changes": "array", "next": "integer?"}
    ),
    "/v1/audit/note": Call(
        "POST", "Record a change that was made outside the daemon", audit.Note, {"recorded": "boolean"}
    ),
}


def openapi() -> dict[str, Any]:
    """Return the description of both interfaces in one document; operations name the server that they belong to."""
    kinds = {call.parameters for call in CALLS.values() if call.parameters is not None} | {Status}
    _, schemas = msgspec.json.schema_components(sorted(kinds, key=lambda kind: kind.__name__), ref_template=_REF)
    schemas["Error"] = _object({"error": "string"})
    schemas["Refusal"] = _object({"success": "boolean", "code": "string", "message": "string", "error": "string"})
    schemas["Accepted"] = _object({"success": "boolean", "accepted": "integer"})
    paths: dict[str, Any] = {
        path: {call.method.lower(): _operation(path, call, schemas)} for path, call in CALLS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "px-sidecar",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "The ingest interface for apps (tag ingest) and the control API for operators (tag control).",
        },
        "servers": [INGEST_SERVER, CONTROL_SERVER],
        "tags": [{"name": "ingest"}, {"name": "control"}],
        "paths": _ingest_paths() | paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"writeKey": {"type": "http", "scheme": "basic", "description": "user name: write key"}},
        },
    }


_REF: Final = "#/components/schemas/{name}"
_TYPE: Final = re.compile(r"(\w+)(\??)(\*?)")


def _object(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema of an object that has at least these fields."""
    properties: dict[str, Any] = {}
    required = []
    for name, text in fields.items():
        kind, nullable, optional = _TYPE.fullmatch(text).groups()  # type: ignore[union-attr]  # the tables above
        properties[name] = {"type": [kind, "null"] if nullable else kind}
        if not optional:
            required.append(name)
    return {"type": "object", "required": required, "properties": properties}


def _operation(path: str, call: Call, schemas: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": call.about, "tags": ["control"], "servers": [CONTROL_SERVER]}
    operation["operationId"] = re.sub(r"\W+", "_", path.removeprefix("/v1/")).strip("_")
    parameters = []
    if "{id}" in path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}})
    if call.parameters is not None and call.method == "GET":
        schema = schemas[call.parameters.__name__]
        for name, kind in schema["properties"].items():
            required = name in schema.get("required", ())
            parameters.append({"name": name, "in": "query", "required": required, "schema": _without_null(kind)})
    elif call.parameters is not None:
        reference = {"$ref": _REF.format(name=call.parameters.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if parameters:
        operation["parameters"] = parameters
    operation["responses"] = {"200": {"description": call.about, "content": _content(call)}}
    for status, meaning in _ERRORS.items():
        operation["responses"][status] = {"description": meaning, "content": _json_content("Error")}
    return operation


_ERRORS: Final = {
    "400": "The request is invalid; nothing was changed",
    "403": "The socket is listen.control_read, and the call changes something",
    "404": "There is no such path or event",
    "405": "The path allows another method only",
    "409": "The call needs a running daemon, or is not possible in this state",
    "413": "The body is too large",
    "503": "The outbox cannot be read or written",
}


def _content(call: Call) -> dict[str, Any]:
    if call.stream:
        return {NDJSON: {"schema": {"type": "string", "description": "one JSON object a line"}}}
    if isinstance(call.answer, Mapping):
        return {"application/json": {"schema": _object(call.answer)}}
    assert call.answer is not None
    return _json_content(call.answer.__name__)


def _json_content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a query parameter, which is left out instead of null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return dict(kinds[0]) if len(kinds) == 1 else {key: value for key, value in schema.items() if key != "default"}


def _ingest_paths() -> dict[str, Any]:
    """Return what apps use. One template for all calls, because the control API has an ``/v1/import`` of its own."""
    call = {"name": "call", "in": "path", "required": True, "schema": {"type": "string", "enum": list(INGEST_CALLS)}}
    event = {"application/json": {"schema": {"type": "object"}}}
    responses = {
        "200": {"description": "On disk; a repeated messageId is a success", "content": _json_content("Accepted")},
        "400": {
            "description": "bad_json, bad_event, too_large, unknown_write_key or bad_request",
            "content": _json_content("Refusal"),
        },
        "403": {
            "description": "The request comes from a web page, or names another host",
            "content": _json_content("Refusal"),
        },
        "503": {
            "description": "The event cannot be made durable; send it again",
            "content": _json_content("Refusal"),
            "headers": {"Retry-After": {"schema": {"type": "integer"}}},
        },
    }
    post = {
        "summary": "Accept events as the Segment and RudderStack SDKs send them",
        "operationId": "ingest",
        "parameters": [call],
        "requestBody": {"required": True, "content": event},
        "responses": responses,
        "security": [{}, {"writeKey": []}],
    }
    paths: dict[str, Any] = {"/v1/{call}": {"post": post}}
    for path, about, kind in (
        ("/health", "Whether events are accepted; 503 if not", "application/json"),
        ("/metrics", "Metrics for Prometheus", "text/plain"),
        ("/status", "The state of the daemon", "application/json"),
        ("/cluster-info", "The number of servers, for RudderStack's SDKs", "application/json"),
    ):
        answer: dict[str, Any] = {"200": {"description": about, "content": {kind: {}}}}
        answer |= {"503": {"description": about, "content": {kind: {}}}} if path == "/health" else {}
        paths[path] = {"get": {"summary": about, "operationId": path[1:].replace("-", "_"), "responses": answer}}
    for item in paths.values():
        for operation in item.values():
            operation |= {"tags": ["ingest"], "servers": [INGEST_SERVER]}
    return paths

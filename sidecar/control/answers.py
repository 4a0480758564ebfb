"""Shared parts of all routes of the control API: decoding parameters, encoding answers, and the error of a bad request."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import msgspec

from sidecar.control.client import READING_POSTS
from sidecar.http import Request, Response

__all__ = [
    "READING_POSTS",
    "Endpoint",
    "Int64",
    "Params",
    "RequestError",
    "RouteTable",
    "call_path",
    "decode_body",
    "decode_query",
    "json_response",
]

T = TypeVar("T")
Params = dict[str, str]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""The integers that SQLite stores; a larger number is a bad request, not an error of the store."""
Endpoint = Callable[[Request, Params], Awaitable[Response]]
RouteTable = dict[str, tuple[str, Endpoint]]
"""Method and endpoint of each path."""


class RequestError(Exception):
    """An invalid request: the status of the answer, and its sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def call_path(request: Request) -> str:
    """Return the path of the call that a request is for: decoded, without a slash at its end."""
    return unquote(request.path).rstrip("/")


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer: a success, unless ``status`` says otherwise."""
    return Response(status, msgspec.json.encode(value))


def decode_query(params: Params, kind: type[T]) -> T:
    """Return the parameters of a GET. Raises msgspec.ValidationError."""
    return msgspec.convert(params, kind, strict=False)


def decode_body(request: Request, kind: type[T]) -> T:
    """Return the parameters of a POST; an empty body has none. Raises msgspec.DecodeError or RequestError."""
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except RecursionError:
        raise RequestError(400, "The request is invalid: it is nested too deeply.") from None

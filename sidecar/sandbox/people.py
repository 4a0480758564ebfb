"""Users and accounts as PX keeps them (``facts/px_and_sdks.md`` 1.5)."""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from sidecar.sandbox.judge import Answer, Rules, decode, error, filled_text, int64, judge_property_keys, one_of, text

__all__ = ["People"]

Rule = Callable[[Any], str | None]


def _number(value: Any) -> str | None:
    return None if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be a boolean"


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    return None if good else "must be a list of strings that is not empty"


def _fields(**kinds: str) -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "text": text,
        "filled": filled_text,
        "int64": int64,
        "number": _number,
        "boolean": _boolean,
    }
    rules |= {"object": _object, "texts": _texts, "gender": one_of("MALE", "FEMALE", "OTHER", "EMPTY_GENDER")}
    rules |= {"user_type": one_of("LEAD", "USER", "VISITOR", "EMPTY_USER_TYPE")}
    return {name: rules[kind] for kind, names in kinds.items() for name in names.split()}


class _Kind(NamedTuple):
    noun: str
    id_field: str
    required: tuple[str, ...]
    fields: dict[str, Rule]


_USER = _Kind(
    "User",
    "identifyId",
    ("identifyId", "propertyKeys"),
    _fields(
        filled="identifyId",
        user_type="type",
        gender="gender",
        text="aptrinsicId email firstName lastName title phone role subscriptionId accountId sfdcContactId globalId",
        int64="lastSeenDate signUpDate firstVisitDate score numberOfVisits createDate lastModifiedDate",
        object="location customAttributes",
        texts="propertyKeys",
        boolean="globalUnsubscribe",
    ),
)
_ACCOUNT = _Kind(
    "Account",
    "id",
    ("id", "name", "propertyKeys"),
    _fields(
        filled="id name",
        text="trackedSubscriptionId sfdcId dunsNumber industry sicCode website naicsCode plan parentGroupId gsId csm",
        int64="lastSeenDate numberOfEmployees numberOfUsers createDate lastModifiedDate renewalDate",
        number="healthScore nps",
        object="location customAttributes",
        texts="propertyKeys",
    ),
)
_KINDS = {"users": _USER, "accounts": _ACCOUNT}


class People:
    """The users and accounts of one subscription."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.users: dict[str, dict[str, Any]] = {}
        self.accounts: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, body: bytes) -> Answer | None:
        """What PX answers to a call below ``/v1/users`` or ``/v1/accounts``; None for any other path."""
        collection, _, identifier = path.removeprefix("/v1/").partition("/")
        kind = _KINDS.get(collection)
        if kind is None or not path.startswith("/v1/") or "/" in identifier:
            return None
        kept = self.users if kind is _USER else self.accounts
        if method == "POST" and not identifier:
            return self._create(kind, kept, body)
        if method == "PUT" and identifier:
            return self._update(kind, kept, None if identifier == "update" else unquote(identifier), body)
        if method in ("GET", "DELETE") and identifier:
            return self._one(kind, kept, method, unquote(identifier))
        return error(405, f"Request method '{method}' is not supported")

    def _create(self, kind: _Kind, kept: dict[str, dict[str, Any]], body: bytes) -> Answer:
        given = decode(body)
        if isinstance(given, Answer):
            return given
        missing = [f"{name}: must not be empty" for name in kind.required if name not in given]
        wrong = missing + self._wrong(kind, given)
        if wrong:
            return error(400, "Validation error", wrong)
        if given[kind.id_field] in kept:
            return error(400, "Bad request, possible duplicate")
        kept[given[kind.id_field]] = given
        return Answer(201, b"{}")

    def _update(self, kind: _Kind, kept: dict[str, dict[str, Any]], identifier: str | None, body: bytes) -> Answer:
        given = decode(body)
        if isinstance(given, Answer):
            return given
        named = given.get(kind.id_field)
        wrong = self._wrong(kind, given)
        if identifier is None and named is None:
            wrong.append(f"{kind.id_field}: must not be empty")
        if identifier is not None and named not in (None, identifier):
            wrong.append(f"{kind.id_field}: is not the one in the path")
        if wrong:
            return error(400, "Validation error", wrong)
        identifier = identifier if identifier is not None else str(named)
        if identifier not in kept:
            return _not_found(kind, identifier)
        kept[identifier] |= given
        return Answer(204)

    def _one(self, kind: _Kind, kept: dict[str, dict[str, Any]], method: str, identifier: str) -> Answer:
        if identifier not in kept:
            return _not_found(kind, identifier)
        if method == "DELETE":
            del kept[identifier]
            return Answer(204)
        return Answer(200, msgspec.json.encode(kept[identifier]))

    def _wrong(self, kind: _Kind, given: dict[str, Any]) -> list[str]:
        wrong = []
        for name, value in given.items():
            rule = kind.fields.get(name)
            problem = rule(value) if rule is not None else f"is not a field of a {kind.noun.lower()}"
            if problem is not None:
                wrong.append(f"{name}: {problem}")
        if not wrong and "propertyKeys" in given:
            wrong = judge_property_keys(given["propertyKeys"], self._rules, "propertyKeys")
        return wrong


def _not_found(kind: _Kind, identifier: str) -> Answer:
    return error(404, f"{kind.noun} was not found for parameters {{id={identifier}}}")

"""The users and accounts of the sandbox, by PX's contract (sidecar/px/README.md#users-and-accounts)."""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from sidecar.sandbox.judge import (
    JudgeAnswer,
    JudgeRules,
    check_filled_text,
    check_int64,
    check_one_of,
    check_text,
    decode,
    judge_property_keys,
    px_error,
)
from sidecar.sandbox.open_answers import OpenAnswers, judge_traits

__all__ = ["PeopleStore"]

Rule = Callable[[Any], str | None]


def _check_number(value: Any) -> str | None:
    return None if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"


def _check_boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be a boolean"


def _check_object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _check_texts(value: Any) -> str | None:
    valid = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return None if valid else "must be a list of strings that is not empty"


def _fields(**kinds: str) -> dict[str, Rule]:
    """Return the rule of each field; ``kinds`` gives the names of the fields, separated by blanks, by their rule."""
    rules: dict[str, Rule] = {
        "text": check_text,
        "filled": check_filled_text,
        "int64": check_int64,
        "number": _check_number,
        "boolean": _check_boolean,
    }
    rules |= {
        "object": _check_object,
        "texts": _check_texts,
        "gender": check_one_of("MALE", "FEMALE", "OTHER", "EMPTY_GENDER"),
    }
    rules |= {"user_type": check_one_of("LEAD", "USER", "VISITOR", "EMPTY_USER_TYPE")}
    return {name: rules[kind] for kind, names in kinds.items() for name in names.split()}


class _EntityType(NamedTuple):
    """The contract of users, or of accounts."""

    noun: str
    id_field: str
    required: tuple[str, ...]
    fields: dict[str, Rule]


_USER = _EntityType(
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
_ACCOUNT = _EntityType(
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
_ENTITY_TYPES = {"users": _USER, "accounts": _ACCOUNT}


class PeopleStore:
    """The users and accounts of one subscription."""

    def __init__(self, rules: JudgeRules, open_answers: OpenAnswers | None = None) -> None:
        self._rules = rules
        self._open_answers = open_answers or OpenAnswers()
        self.users: dict[str, dict[str, Any]] = {}
        self.accounts: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, body: bytes) -> JudgeAnswer | None:
        """Answer a call below ``/v1/users`` or ``/v1/accounts``; return None for any other path."""
        collection, _, entity_id = path.removeprefix("/v1/").partition("/")
        entity = _ENTITY_TYPES.get(collection)
        if entity is None or not path.startswith("/v1/") or "/" in entity_id:
            return None
        stored = self.users if entity is _USER else self.accounts
        if method == "POST" and not entity_id:
            return self._create(entity, stored, body)
        if method == "PUT" and entity_id:
            return self._update(entity, stored, None if entity_id == "update" else unquote(entity_id), body)
        if method in ("GET", "DELETE") and entity_id:
            return self._read_or_delete(entity, stored, method, unquote(entity_id))
        return px_error(405, f"Request method '{method}' is not supported")

    def _create(self, entity: _EntityType, stored: dict[str, dict[str, Any]], body: bytes) -> JudgeAnswer:
        given = decode(body)
        if isinstance(given, JudgeAnswer):
            return given
        missing = [f"{name}: must not be empty" for name in entity.required if name not in given]
        problems = missing + self._problems(entity, given)
        if problems:
            return px_error(400, "Validation error", problems)
        if given[entity.id_field] in stored:
            return px_error(400, "Bad request, possible duplicate")
        if refusal := judge_traits(self._open_answers, given):
            return refusal
        stored[given[entity.id_field]] = given
        return JudgeAnswer(201, b"{}")

    def _update(
        self, entity: _EntityType, stored: dict[str, dict[str, Any]], entity_id: str | None, body: bytes
    ) -> JudgeAnswer:
        given = decode(body)
        if isinstance(given, JudgeAnswer):
            return given
        named = given.get(entity.id_field)
        problems = self._problems(entity, given)
        if entity_id is None and named is None:
            problems.append(f"{entity.id_field}: must not be empty")
        if entity_id is not None and named not in (None, entity_id):
            problems.append(f"{entity.id_field}: is not the one in the path")
        if problems:
            return px_error(400, "Validation error", problems)
        entity_id = entity_id if entity_id is not None else str(named)
        if entity_id not in stored:
            return _not_found(entity, entity_id)
        if refusal := judge_traits(self._open_answers, given):
            return refusal
        stored[entity_id] |= given
        return JudgeAnswer(204)

    def _read_or_delete(
        self, entity: _EntityType, stored: dict[str, dict[str, Any]], method: str, entity_id: str
    ) -> JudgeAnswer:
        if entity_id not in stored:
            return _not_found(entity, entity_id)
        if method == "DELETE":
            del stored[entity_id]
            return JudgeAnswer(204)
        return JudgeAnswer(200, msgspec.json.encode(stored[entity_id]))

    def _problems(self, entity: _EntityType, given: dict[str, Any]) -> list[str]:
        problems = []
        for name, value in given.items():
            rule = entity.fields.get(name)
            problem = rule(value) if rule is not None else f"is not a field of a {entity.noun.lower()}"
            if problem is not None:
                problems.append(f"{name}: {problem}")
        if not problems and "propertyKeys" in given:
            problems = judge_property_keys(given["propertyKeys"], self._rules, "propertyKeys")
        return problems


def _not_found(entity: _EntityType, entity_id: str) -> JudgeAnswer:
    return px_error(404, f"{entity.noun} was not found for parameters {{id={entity_id}}}")

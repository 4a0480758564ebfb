"""``identify`` and ``group``: what is remembered of the user, and the PX users and accounts written from traits.

Theory
------
Both change the user's account, which later events without one are enriched with. With ``[people]`` on they also ask for
upserts: the account first, since the user refers to it. What was sent last is remembered as a digest, so that an app
that identifies its users on every request costs PX requests only where something is new.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from sidecar.config import People as PeopleConfig
from sidecar.mapping.model import Change, Intent, Known, Mapped, UpsertAccount, UpsertUser
from sidecar.mapping.rules import Rules
from sidecar.mapping.traits import ACCOUNT, USER, Split, Splitter
from sidecar.mapping.values import as_text

__all__ = ["People"]

_COMPANY: Final = ("account", "company")  # traits of a user that hold an account, as Segment's reserved `company`
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


class People:
    """The compiled rules for ``identify`` and ``group``."""

    def __init__(self, config: PeopleConfig, rules: Rules) -> None:
        self._users = config.users == "upsert"
        self._accounts = config.accounts == "upsert"
        self._account_id = rules.account_id
        self._date = rules.date
        self._user = Splitter(USER, rules.traits, rules.traits_denied, "user")
        self._account = Splitter(ACCOUNT, rules.traits, rules.traits_denied, "account")

    def map(
        self, event: dict[str, Any], known: Known, user: str, user_type: str, property_key: str, received_ms: int
    ) -> Mapped:
        """What PX is asked to do about an ``identify`` or ``group``, and the user's new memory."""
        changes: list[Change] = []
        draft = _Draft(known, property_key)
        if event.get("type") == "group":
            self._group(event, draft, user, user_type, changes)
        else:
            self._identify(event, draft, user, user_type, received_ms, changes)
        return Mapped(
            intents=tuple(draft.intents),
            dropped=None if draft.intents else "remembered",
            changes=tuple(changes),
            known=draft.known if draft.known != known else None,
        )

    def _group(self, event: dict[str, Any], draft: "_Draft", user: str, user_type: str, changes: list[Change]) -> None:
        account = as_text(event.get("groupId")) or self._account_id.text(event)
        if account is None:
            return
        if self._accounts:
            draft.upsert_account(account, self._account(_object(event.get("traits")), account, changes))
        if self._users and account != draft.known.account_id:
            draft.intents.append(UpsertUser(user, {"type": user_type, "accountId": account, **draft.keys}, {}))
        draft.remember(account_id=account)

    def _identify(
        self, event: dict[str, Any], draft: "_Draft", user: str, user_type: str, received_ms: int, changes: list[Change]
    ) -> None:
        traits = {**_object(_object(event.get("context")).get("traits")), **_object(event.get("traits"))}
        company = next((found for name in _COMPANY if (found := self._user.taken(traits, name)) is not None), None)
        if self._accounts and company is not None:
            traits = {name: value for name, value in traits.items() if name not in _COMPANY}
        split = self._user(traits, user, changes)
        account = self._account_id.text(event) or split.fields.pop("accountId", None)
        account = account or (as_text(company.get("id")) if company is not None else None)
        if account is not None:
            draft.remember(account_id=account)
        if self._accounts and company and draft.known.account_id is not None:
            draft.upsert_account(draft.known.account_id, self._account(company, draft.known.account_id, changes))
        if self._users:
            new_only = {"signUpDate": self._date.ms(event, received_ms, changes)} | split.new_only
            draft.upsert_user(user, user_type, msgspec.structs.replace(split, new_only=new_only))


class _Draft:
    """The intents and the memory of one event while they come about."""

    def __init__(self, known: Known, property_key: str) -> None:
        self.known = known
        self.keys = {"propertyKeys": [property_key]}
        self.intents: list[Intent] = []

    def remember(self, **what: str) -> None:
        self.known = msgspec.structs.replace(self.known, **what)

    def upsert_user(self, user: str, user_type: str, split: Split) -> None:
        account = {"accountId": self.known.account_id} if self.known.account_id is not None else {}
        fields = {"type": user_type, **split.fields, **account, **_custom(split), **self.keys}
        digest = _digest(fields)
        if digest != self.known.user_digest:
            self.intents.append(UpsertUser(user, fields, split.new_only))
            self.remember(user_digest=digest)

    def upsert_account(self, account: str, split: Split) -> None:
        fields = {**split.fields, **_custom(split), **self.keys}
        digest = _digest({"id": account, **fields})
        if digest != self.known.account_digest:
            self.intents.append(UpsertAccount(account, fields, split.new_only))
            self.remember(account_digest=digest)


def _custom(split: Split) -> dict[str, Any]:
    return {"customAttributes": split.custom} if split.custom else {}


def _digest(fields: Mapping[str, Any]) -> str:
    return blake2b(_encode_sorted(fields), digest_size=12).hexdigest()


def _object(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}

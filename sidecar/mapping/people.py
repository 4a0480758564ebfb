"""``identify`` and ``group``: the memory of a user, and the PX users and accounts written from traits.

Theory
------
Both calls change the user's account, which is added to later events that name none. With ``[people]`` enabled they also
ask for upserts: the account first, since the user refers to it. A digest of the fields sent last is part of the memory,
so an app that identifies its users on every request costs PX requests only when something has changed.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from sidecar.config import PeopleConfig
from sidecar.mapping.attributes import report_broken, report_no_object
from sidecar.mapping.model import Change, Intent, Known, Mapped, UpsertAccount, UpsertUser
from sidecar.mapping.paths import DEFAULT_PATHS, report_no_text
from sidecar.mapping.privacy import forms
from sidecar.mapping.rules import MappingRules
from sidecar.mapping.traits import ACCOUNT, USER, SplitTraits, TraitSplitter, spelling_rank
from sidecar.mapping.values import as_text

__all__ = ["ACCOUNT_TRAITS", "PeopleMapper"]

_TRAITS: Final = ("traits", "context.traits")
_FIRST_OF_ACCOUNT_ID: Final = frozenset("aA_- ")
ACCOUNT_TRAITS: Final = ("account", "company")  # traits of a user that hold an account; `company` is Segment's name
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


class PeopleMapper:
    """The compiled rules for ``identify`` and ``group``."""

    def __init__(self, config: PeopleConfig, rules: MappingRules) -> None:
        self._users = config.users == "upsert"
        self._accounts = config.accounts == "upsert"
        self._reveal_account = rules.reveal_account
        self._account_paths = rules.account_paths
        self._default_paths = tuple(path for path, _ in rules.account_paths) == DEFAULT_PATHS["accountId"]
        # A default path names one spelling of a trait; of several in a call the order of all traits decides.
        prefixes = [path.rpartition(".")[0] if self._default_paths else "" for path, _ in rules.account_paths]
        self._identify_paths = tuple(
            (path, read, prefix if prefix in _TRAITS else None)
            for (path, read), prefix in zip(rules.account_paths, prefixes, strict=True)
        )
        self._rename = rules.trait_rename
        self._reject = rules.reject
        self._hashed_blanks = rules.hashed_blanks
        self._no_ids = rules.reject | rules.hashed_blanks
        self._hashed = rules.hashed
        self._date = rules.date
        self._split_user = TraitSplitter(USER, rules.traits, rules.traits_privacy, "user")
        self._split_account = TraitSplitter(ACCOUNT, rules.traits, rules.traits_privacy, "account")

    def account_said(self, event: dict[str, Any], changes: list[Change] | None = None) -> tuple[str, str] | None:
        """Return the account that the call gives its user as the app wrote it, and its path; None if it gives none.

        What ``identity.reject`` lists is not an account, and is reported in ``changes``, unless a rule drops its name.
        """
        for path, value in self._account_candidates(event):
            if value is None or (type(value) is str and value in self._hashed_blanks):
                continue
            told = changes if changes is not None and self._reveal_account(path, "?") is not None else []
            if (account := as_text(value)) is None:
                report_no_text("accountId", path, value, told)
            elif account in self._reject:
                told.append(Change("accountId", f"{path} is not an id by identity.reject"))
            else:
                report_broken("accountId", account, told)
                return account, path
        return None

    def _account_candidates(self, event: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the paths at which the call may name its user's account, the first that counts first."""
        if event.get("type") == "group":
            yield "groupId", event.get("groupId")
            for path, read in self._account_paths:
                yield path, read(event)
            return
        for path, read, trait_of in self._identify_paths:
            if trait_of is None:
                yield path, read(event)
            elif traits := _traits_at(trait_of, event):
                yield from self._spelled(trait_of, traits)
        for prefix in _TRAITS:
            traits = _traits_at(prefix, event)
            if traits and not self._default_paths:
                yield from self._spelled(prefix, traits)
            for name in ACCOUNT_TRAITS:
                yield f"{prefix}.{name}.id", _as_object(traits.get(name)).get("id")

    def _spelled(self, prefix: str, traits: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the traits that name the account, by the order of spellings."""
        rename = self._rename
        # By cheap signs first: apps send many traits, and few can be this one.
        found = [
            (final, name)
            for name in traits
            if (final := rename.get(name, name) if rename else name)[:1] in _FIRST_OF_ACCOUNT_ID
            and 9 <= len(final) <= 20
            and forms(final)[-1] == "accountid"
        ]
        if len(found) > 1:
            found.sort(key=lambda pair: (spelling_rank(pair[0]), pair[0] != pair[1], pair[1]))
        for _, name in found:
            yield f"{prefix}.{name}", traits[name]

    def map(
        self,
        event: dict[str, Any],
        known: Known,
        decide: bool,
        account: str | None,
        user: str,
        user_type: str,
        property_key: str,
        received_ms: int,
        changes: list[Change],
    ) -> Mapped:
        """Return the upserts for an ``identify`` or ``group``, and what PX will know of the user after them.

        ``account`` is the user's from this call on, None if it has none. With ``decide`` the event is of the first
        outbox format, which did not store it: then the call itself says it, or what was sent to PX.
        """
        draft = _Draft(known, property_key)
        said = self.account_said(event, changes)
        if decide:
            account = self._reveal_account(said[1], said[0]) if said else known.account_id
        if account is not None and (decide or self._users):
            draft.update_known(account_id=account)
        if event.get("type") == "group":
            if said is not None and account is not None:
                self._map_group(event, draft, account, known.account_id, user, user_type, received_ms, changes)
            elif said is None:
                changes.append(Change("account", "the group call has no groupId: nothing is written or kept"))
        else:
            self._map_identify(event, draft, account, user, user_type, received_ms, changes)
        return Mapped(
            intents=tuple(draft.intents),
            dropped=None if draft.intents else "remembered",
            changes=tuple(changes),
            known=draft.known if draft.known != known else None,
        )

    def _map_group(
        self,
        event: dict[str, Any],
        draft: "_Draft",
        account: str,
        told: str | None,
        user: str,
        user_type: str,
        received_ms: int,
        changes: list[Change],
    ) -> None:
        if self._accounts:
            traits = _as_object(event.get("traits"))
            report_no_object("account", "traits", event.get("traits"), changes)
            draft.upsert_account(account, self._split_account(traits, account, received_ms, changes))
        if self._users and account != told:
            draft.intents.append(UpsertUser(user, {"type": user_type, "accountId": account, **draft.keys}, {}))

    def _map_identify(
        self,
        event: dict[str, Any],
        draft: "_Draft",
        account: str | None,
        user: str,
        user_type: str,
        received_ms: int,
        changes: list[Change],
    ) -> None:
        # Segment SDKs send `traits`, RudderStack SDKs `context.traits`; the call's own entries win, null is not one.
        outer = _traits_at("context.traits", event)
        own = {name: value for name, value in _traits_at("traits", event).items() if value is not None}
        of_user = changes if self._users else []  # of a user that is not written nothing is changed
        report_no_object("user", "traits", event.get("traits"), of_user)
        twins = self._split_user.twins(outer, own) if outer and own else {}
        for name, twin in twins.items():
            is_account = forms(name)[-1] == "accountid"  # its order is that of the paths, and reported as such
            if not is_account and outer[name] not in (None, own[twin]) and self._split_user.sends(name):
                of_user.append(Change(f"user.{name}", "the one in context.traits left out: traits has another"))
        traits = {**{name: value for name, value in outer.items() if name not in twins}, **own}
        companies = {name: self._split_user.object_trait(traits, name) for name in ACCOUNT_TRAITS}
        company = next((value for value in companies.values() if value is not None), None)
        if self._accounts and company is not None:
            if None not in companies.values():
                changes.append(Change("account", "trait 'company' left out: trait 'account' is an object, too"))
            # It is written as an account below; without accounts, or as a text, it stays a custom attribute of the user.
            traits = {name: value for name, value in traits.items() if companies.get(name) is None}
        split = self._split_user(traits, user, received_ms, of_user, user_type)
        named = split.fields.pop("accountId", None)
        if named is not None and named != account and named not in self._no_ids:
            of_user.append(Change("user.accountId", "the trait left out: another path gives the account"))
        own_id = as_text(company.get("id")) if self._accounts and company else None
        if own_id is not None and account is not None and own_id != account and own_id not in self._no_ids:
            changes.append(Change("account", "the trait that is an object left out: its id is of another account"))
        elif self._accounts and company and account is not None:
            self._hashed.keep_made()  # the rules have run over the company as a part of the user's traits
            draft.upsert_account(account, self._split_account(company, account, received_ms, changes))
        elif self._accounts and company:
            changes.append(Change("account", "the trait that is an object left out: the user has no account"))
        if self._users:
            # Only the default is for new users alone: a date that the app gives also holds for a user that PX knows.
            given = "signUpDate" in split.fields
            new_only = {} if given else {"signUpDate": self._date.ms(event, received_ms, changes)}
            draft.upsert_user(user, user_type, account, split, new_only)


class _Draft:
    """The intents and the memory of one event under construction."""

    def __init__(self, known: Known, property_key: str) -> None:
        self.known = known
        self._told_account = known.account_id
        self.keys = {"propertyKeys": [property_key]}
        self.intents: list[Intent] = []

    def update_known(self, **values: str) -> None:
        self.known = msgspec.structs.replace(self.known, **values)

    def upsert_user(
        self, user: str, user_type: str, account: str | None, split: SplitTraits, new_only: dict[str, Any]
    ) -> None:
        belongs = {"accountId": account} if account is not None else {}
        fields = {"type": user_type, **split.fields, **belongs, **_custom_attributes(split), **self.keys}
        # `new_only` is not part of the digest: its date differs in every call, and PX ignores it for an old record.
        digest = _digest(fields)
        # A group writes the account, too, and leaves the digest as it is.
        is_told = account is None or account == self._told_account
        if digest != self.known.user_digest or not is_told:
            self.intents.append(UpsertUser(user, fields, new_only))
            self.update_known(user_digest=digest)

    def upsert_account(self, account: str, split: SplitTraits) -> None:
        fields = {**split.fields, **_custom_attributes(split), **self.keys}
        # The id is part of the digest: another account with equal traits must be written, too.
        digest = _digest({"id": account, **fields})
        if digest != self.known.account_digest:
            self.intents.append(UpsertAccount(account, fields, {}))
            self.update_known(account_digest=digest)


def _custom_attributes(split: SplitTraits) -> dict[str, Any]:
    return {"customAttributes": split.custom} if split.custom else {}


def _digest(fields: Mapping[str, Any]) -> str:
    return blake2b(_encode_sorted(fields), digest_size=12).hexdigest()


def _traits_at(prefix: str, event: dict[str, Any]) -> dict[str, Any]:
    return _as_object((event if prefix == "traits" else _as_object(event.get("context"))).get("traits"))


def _as_object(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}

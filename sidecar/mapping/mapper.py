"""Map one event: from a decoded Segment call to requests for PX, or to the reason why there are none.

Theory
------
``compile_mapping`` compiles the configuration into tables and readers once. ``Mapper.map`` then applies them to one
event, in the order of the methods below: opt-out, filters, identity, name, fields, attributes. It is pure: the same event, memory
and time give the same bytes. Between events it keeps only bounded caches by name.

``identify`` and ``group`` give no custom event. They change the memory of the user, from which later events take their
account, and write PX users and accounts if ``[people]`` enables it.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

from sidecar.config import IdentityConfig, MappingConfig, PeopleConfig
from sidecar.mapping.attributes import AttributeMapper, report_broken, report_no_object
from sidecar.mapping.filters import is_sampled
from sidecar.mapping.model import Account, Change, CustomEvent, Known, Mapped, Priority
from sidecar.mapping.names import MappedName
from sidecar.mapping.people import PeopleMapper
from sidecar.mapping.rules import MappingRules
from sidecar.mapping.values import as_text

__all__ = ["Mapper", "attribute_values", "call_values", "compile_mapping"]

# The enumeration of PX: sidecar/px/README.md#the-custom-event
USER_TYPES: Final = frozenset({"USER", "VISITOR", "LEAD", "EMPTY_USER_TYPE"})
# The names of this destination in `integrations`, as Segment, RudderStack and people write them, in lower case and
# without punctuation.
_OUR_NAMES: Final = frozenset({"gainsightpx", "gainsightpxcloud", "gainsightpxcloudactions", "gainsightpxactions"})
_IDENTITY: Final = IdentityConfig()
_ALL_DESTINATIONS: Final = frozenset({"All", "all"})


def compile_mapping(
    mapping: MappingConfig,
    people: PeopleConfig,
    identity: IdentityConfig = _IDENTITY,
    *,
    is_suppressed: Callable[[str], bool] | None = None,
) -> "Mapper":
    """Return the mapper for this configuration. Raises ConfigError if rules contradict each other.

    ``is_suppressed`` says of an id whether its events are dropped because the user was forgotten for good; None: no id is.
    """
    return Mapper(MappingRules.compile(mapping, identity), people, is_suppressed)


class Mapper:
    """One compiled configuration. Not safe for concurrent use by threads: it caches names."""

    def __init__(self, rules: MappingRules, people: PeopleConfig, is_suppressed: Callable[[str], bool] | None) -> None:
        self.rules = rules
        self._is_suppressed = is_suppressed
        self._names = rules.names
        self._people = PeopleMapper(people, rules)
        self._writes_users = people.users == "upsert"
        self._has_classes = any(plan.priority is not Priority.NORMAL for plan in rules.plans.values())

    def map(
        self,
        event: dict[str, Any],
        known: Known,
        *,
        property_key: str,
        received_ms: int,
        account: Account | None = None,
        hashed: Collection[str] = (),
    ) -> Mapped:
        """Return the requests for ``event``, given what was sent to PX about its user.

        ``account`` is the one that held when the event was accepted, its own included (``account_said``). None is for
        events of the first outbox format, which did not store it: then the account last sent to PX holds.
        ``property_key`` is the product of the event's source; ``received_ms`` (epoch milliseconds) is the date of events
        without a usable one; ``hashed`` are the values in the event that another host has hashed. Never raises: an event on which the rules fail is dead (``mapping_error``).
        """
        self._expect_hashed(hashed)
        try:
            return self._map(event, known, account, property_key, received_ms)
        except Exception as error:  # the last resort: one event must not block the events queued behind it
            return Mapped(
                dead="mapping_error",
                detail=f"The mapping failed with {type(error).__name__}; this is a bug, please report it.",
            )

    def priority_of(self, event: dict[str, Any]) -> Priority:
        """Return the class of the event: that of its name in ``mapping.event``, else normal.

        ``identify`` and ``group`` are normal: they keep their place among their user's events.
        """
        kind = event.get("type")
        if self._has_classes and kind in ("track", "page", "screen"):
            name = self._names.resolve(event)
            return Priority.NORMAL if name is None else self.rules.plans[name.override].priority
        return Priority.NORMAL

    def account_said(self, event: dict[str, Any], hashed: Collection[str] = ()) -> tuple[str, str] | None:
        """Return the account that an ``identify`` or ``group`` gives its user, and the path where it stands, or None.

        It is what the app wrote, whatever privacy rules hold now: they apply when the account is sent or shown. ``hashed`` are
        the values in the event that another host has hashed.
        """
        if event.get("type") not in ("identify", "group"):
            return None
        self._expect_hashed(hashed)
        identity = self._identity(event)
        if identity is None or self._excluded(event, identity[0]) is not None:
            return None
        return self._people.account_said(event)

    def user_of(self, event: dict[str, Any], hashed: Collection[str] = ()) -> str | None:
        """Return the key of ordering and memory: the future ``identifyId``; None for an event without one.

        ``hashed`` are the values in the event that another host has hashed.
        """
        self._expect_hashed(hashed)
        identity = self._identity(event)
        return identity[0] if identity is not None else None

    def px_name(self, event: dict[str, Any]) -> str | None:
        """Return the event's name in PX; None for an event that is dropped or does not become a custom event."""
        if event.get("type") in ("identify", "group", "alias"):
            return None
        name = self._names.resolve(event)
        return None if name is None or name.dropped is not None else name.px

    def shown_name(self, kind: str, name: str) -> str:
        """Return a name of the catalogue as the privacy rules show it: that of a page or screen is data of the app."""
        if kind not in ("page", "screen") or not name:
            return name
        return str(self.redact({"type": kind, "name": name}).get("name") or "")

    def redact(self, event: dict[str, Any], hashed: Collection[str] = ()) -> dict[str, Any]:
        """Return a copy of the event without what the current privacy rules hide.

        It maps to the same requests, given that its ``hashed`` values are those of ``export``.
        """
        self._expect_hashed(hashed)
        name = self._names.resolve(event)
        return self.rules.plans[name.override if name else None].view.redact(event)

    def export(self, event: dict[str, Any], hashed: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
        """Return the redacted event, and all values in it that are hashed."""
        redacted = self.redact(event, hashed)
        return redacted, sorted({*self.rules.hashed.made, *hashed})

    def excluded(self, event: dict[str, Any], hashed: Collection[str] = ()) -> tuple[str, str] | None:
        """Return why an opt-out, a forgotten user or a filter keeps the event from PX, and the rule; None if none does."""
        self._expect_hashed(hashed)
        identity = self._identity(event)
        return self._excluded(event, identity[0] if identity else None)

    def dropped_by_rule(self, event: dict[str, Any], hashed: Collection[str] = ()) -> str | None:
        """Return why ``map`` drops the event whatever came before it; None if it does not, or the rules fail on it."""
        self._expect_hashed(hashed)
        try:
            kept_away = self._kept_away(event, self._identity(event), [])
        except Exception:  # as in `map`, which says so when it is the event's turn
            return None
        return None if kept_away is None else kept_away.dropped

    def has_own_date(self, event: dict[str, Any], received_ms: int) -> bool:
        """Return True if PX gets the event's own date, and not the time of receipt."""
        return self.rules.date.has_own_date(event, received_ms)

    def keep_date(self, event: dict[str, Any], received_ms: int) -> dict[str, Any]:
        """Return the event with the date that it has when it was received at ``received_ms``, whenever it is mapped again."""
        return self.rules.date.pinned(event, received_ms)

    def _expect_hashed(self, hashed: Collection[str]) -> None:
        values = self.rules.hashed
        values.made.clear()
        if hashed or values.already:
            values.already = frozenset(hashed)

    def reveal_account(self, account: Account) -> str | None:
        """Return the account of the moment of acceptance under the privacy rules of the path where it stood."""
        return self.rules.reveal_account(account.path, account.id) if account.id else None

    # --- Mapping one event ------------------------------------------------------------------------------------------

    def _map(
        self, event: dict[str, Any], known: Known, account: Account | None, property_key: str, received_ms: int
    ) -> Mapped:
        kind = event.get("type")
        changes: list[Change] = []
        identity = self._identity(event, changes)
        if (kept_away := self._kept_away(event, identity, changes)) is not None:
            return kept_away
        assert identity is not None, "an event without a user is kept away"
        user, default_type = identity
        if kind == "identify" or kind == "group":
            user_type = self._user_type(event, default_type, changes if self._writes_users else [])
            report_broken("identifyId", user, changes)
            held = self.reveal_account(account) if account is not None else None
            return self._people.map(
                *(event, known, account is None, held, user, user_type, property_key, received_ms, changes)
            )
        name = self._names.resolve(event)
        assert name is not None, "an event without a name is kept away"
        held = None
        if self.rules.account_from_memory:
            held = known.account_id if account is None else self.reveal_account(account)
        return self._custom_event(event, name, identity, held, property_key, received_ms, changes)

    def _kept_away(
        self, event: dict[str, Any], identity: tuple[str, str] | None, changes: list[Change]
    ) -> Mapped | None:
        """Return the outcome of an event that gives PX nothing whatever came before it; None for any other."""
        if excluded := self._excluded(event, identity[0] if identity else None):
            return Mapped(dropped=excluded[0], detail=excluded[1])
        kind = event.get("type")
        if kind == "alias":
            return _NOT_SUPPORTED
        if identity is None:
            return Mapped(dropped="no_user", changes=tuple(changes)) if changes else _NO_USER
        if kind == "identify" or kind == "group":
            return None
        name = self._names.resolve(event)
        if name is None:
            return _NO_NAME
        if name.dropped is not None:
            return _DROPPED[name.dropped]
        share = self.rules.plans[name.override].sample
        if share < 1 and not is_sampled(identity[0], share):
            return Mapped(dropped="sampled", detail=f'mapping.event "{name.override}", sample = {share:g}')
        return None

    def _excluded(self, event: dict[str, Any], user: str | None) -> tuple[str, str] | None:
        """Return why the event is not for PX whatever it says, and the rule; None if it may be."""
        if event.get("integrations") and opted_out(event["integrations"]):
            return "opted_out", ""
        if self._has_suppressed_id(event, user):
            return "suppressed", ""
        return self.rules.filters.reason(event) if self.rules.filters else None

    def _has_suppressed_id(self, event: dict[str, Any], user: str | None) -> bool:
        if self._is_suppressed is None:
            return False
        ids = {user, *(as_text(event.get(key)) for key in ("userId", "anonymousId", "previousId"))}
        return any(map(self._is_suppressed, filter(None, ids)))

    def _identity(self, event: dict[str, Any], changes: list[Change] | None = None) -> tuple[str, str] | None:
        """Return ``identifyId`` and the default ``userType`` that goes with it; None if there is no id."""
        rules = self.rules
        user = rules.identify_id.text(event, changes)
        if user is not None:
            return user, "USER"
        if rules.anonymous_type is not None and (anonymous := as_text(event.get("anonymousId"))) is not None:
            if anonymous not in rules.reject:
                return anonymous, rules.anonymous_type
            if changes is not None:
                changes.append(Change("identifyId", "anonymousId is not an id by identity.reject"))
        return None

    def _user_type(self, event: dict[str, Any], default: str, changes: list[Change]) -> str:
        return self.rules.user_type.one_of(event, USER_TYPES, changes) or default

    def _custom_event(
        self,
        event: dict[str, Any],
        name: MappedName,
        identity: tuple[str, str],
        held: str | None,
        property_key: str,
        received_ms: int,
        changes: list[Change],
    ) -> Mapped:
        """Build the body of ``POST /v1/events/custom``, its keys in the order of sidecar/mapping/README.md#fields."""
        rules = self.rules
        plan = rules.plans[name.override]
        changes.extend(name.changes)
        user, default_type = identity
        # The five fields that are always sent; an optional field without a value is left out, never sent as null.
        body: dict[str, Any] = {
            "identifyId": user,
            "propertyKey": property_key,
            "userType": plan.user_type or self._user_type(event, default_type, changes),
            "eventName": name.px,
            "date": rules.date.ms(event, received_ms, changes),
        }
        if session := rules.session_id.text(event, changes):
            body["sessionId"] = session
        if account := rules.account_id.text(event, changes) or held:
            body["accountId"] = account
        for field in rules.page_texts if event.get("type") == "page" else rules.texts:
            if text := field.text(event, changes):
                body[field.name] = text
        if rules.global_context is not None and (context := rules.global_context(event, changes)):
            body["globalContext"] = context
        for key, value in body.items():
            if type(value) is str and not value.isascii():
                report_broken(key, value, changes)
        if rules.global_context is not None:
            for name_in_context, value in body.get("globalContext", {}).items():
                report_broken("globalContext", f"{name_in_context}{value}", changes)
        report_no_object("attributes", "properties", event.get("properties"), changes)
        if event.get("type") != "track":
            for key in ("name", "category"):
                if type(event.get(key)) in _NO_TEXT and plan.attributes.plan_for(key).final is not None:
                    changes.append(Change(f"attributes.{key}", f"left out: {type(event[key]).__name__}, not a text"))
        body["attributes"] = plan.attributes(attribute_values(event, plan.attributes, changes), changes)
        return Mapped((CustomEvent(body),), changes=tuple(changes), cap=plan.cap)


def attribute_values(event: dict[str, Any], attributes: AttributeMapper, changes: list[Change] | None = None) -> Any:
    """Return what attributes are made from: the properties; for a page or screen also its name and category.

    SDKs put these two at the top level of the call. A property of the same name in PX wins; ``changes`` says so if it
    differs.
    """
    properties = event.get("properties")
    call = call_values(event)
    return attributes.with_defaults(properties, call, changes) if call else properties


def call_values(event: dict[str, Any]) -> dict[str, str]:
    """Return the name and category of a page or screen call; empty for other calls."""
    if event.get("type") not in ("page", "screen"):
        return {}
    return {key: text for key in ("name", "category") if (text := as_text(event.get(key))) is not None}


def opted_out(integrations: Any) -> bool:
    """Return True if the ``integrations`` of a call switch Gainsight PX off: by name, or all without naming it.

    An object of options enables the destination, as RudderStack's ``{"GAINSIGHT_PX": {"limitAPIForGroup": true}}`` does.
    """
    if type(integrations) is not dict:
        return False
    ours = [value for name, value in integrations.items() if "".join(filter(str.isalnum, name)).lower() in _OUR_NAMES]
    if any(value is not None for value in ours):  # null is not a value
        return any(value is False for value in ours)
    return any(integrations.get(name) is False for name in _ALL_DESTINATIONS)


_NO_TEXT: Final = (dict, list, bool)
_NOT_SUPPORTED: Final = Mapped(dropped="not_supported")
_NO_USER: Final = Mapped(dropped="no_user")
_NO_NAME: Final = Mapped(dead="mapping_error", detail="The event has no name; send a text as `event`.")
_DROPPED: Final = {reason: Mapped(dropped=reason) for reason in ("unmapped", "mapped_to_nothing")}

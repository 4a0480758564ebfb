"""The whole way of one event: from a decoded Segment call to what PX gets, or to the reason why it gets nothing.

Theory
------
``compile_mapping`` turns the configuration into tables and readers once; ``Mapper.map`` walks one event through them,
in the order in which the methods stand here: opted out? who? which name? which fields? which attributes? It is pure:
the same event, memory and time give the same bytes. What it remembers between events are only tables of names.

``identify`` and ``group`` make no custom event. They change what is known of the user, which later events are enriched
with, and write PX users and accounts where ``[people]`` says so.
"""

from typing import Any, Final

from sidecar.config import Mapping as MappingConfig
from sidecar.config import People as PeopleConfig
from sidecar.mapping.model import CustomEvent, Known, Mapped
from sidecar.mapping.names import Name
from sidecar.mapping.people import People
from sidecar.mapping.rules import Rules
from sidecar.mapping.values import as_text

__all__ = ["Mapper", "compile_mapping"]

USER_TYPES: Final = frozenset({"USER", "VISITOR", "LEAD", "EMPTY_USER_TYPE"})  # facts: px_and_sdks.md 1.2
# What Segment, RudderStack and people call this destination in `integrations`, in lower case without punctuation.
_OUR_NAMES: Final = frozenset({"gainsightpx", "gainsightpxcloud", "gainsightpxcloudactions", "gainsightpxactions"})
_EVERYONE: Final = frozenset({"All", "all"})


def compile_mapping(mapping: MappingConfig, people: PeopleConfig) -> "Mapper":
    """The mapper for this configuration. Raises ConfigError where rules contradict each other."""
    return Mapper(Rules.compile(mapping), people)


class Mapper:
    """One compiled configuration. Not safe for concurrent use by threads (it remembers names as it meets them)."""

    def __init__(self, rules: Rules, people: PeopleConfig) -> None:
        self.rules = rules
        self._names = rules.names
        self._people = People(people, rules)

    def map(self, event: dict[str, Any], known: Known, *, property_key: str, received_ms: int) -> Mapped:
        """What PX is asked to do for ``event``, given what is ``known`` of its user.

        ``property_key`` is the product of the event's source; ``received_ms`` (epoch milliseconds) dates events that
        have no usable date. Never raises: an event that the rules fail on is dead (``mapping_error``).
        """
        try:
            return self._map(event, known, property_key, received_ms)
        except Exception as error:  # the last resort: one event must not stop the ones behind it
            return Mapped(
                dead="mapping_error",
                detail=f"The mapping failed with {type(error).__name__}; this is a bug, please report it.",
            )

    def is_high(self, event: dict[str, Any]) -> bool:
        """Whether the event goes before normal ones: ``identify`` and ``group``, and names that ``priority`` says so of."""
        kind = event.get("type")
        if kind == "track" or kind == "page" or kind == "screen":
            name = self._names.of(event)
            return name is not None and self.rules.plans[name.override].high
        return kind == "identify" or kind == "group"

    def user_of(self, event: dict[str, Any]) -> str | None:
        """The key that events are ordered and remembered by: what ``identifyId`` will be, None for events without."""
        who = self._who(event)
        return who[0] if who is not None else None

    def px_name(self, event: dict[str, Any]) -> str | None:
        """The name under which PX gets the event; None for one that is no custom event, or is dropped."""
        if event.get("type") in ("identify", "group", "alias"):
            return None
        name = self._names.of(event)
        return None if name is None or name.dropped is not None else name.px

    def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        """A copy of the event as today's privacy rules let people see it; mapping it gives what the event gives."""
        name = self._names.of(event)
        return self.rules.plans[name.override if name else None].view.seen(event)

    # --- The way of one event --------------------------------------------------------------------------------------

    def _map(self, event: dict[str, Any], known: Known, property_key: str, received_ms: int) -> Mapped:
        kind = event.get("type")
        if event.get("integrations") and opted_out(event["integrations"]):
            return _OPTED_OUT
        if kind == "alias":
            return _NOT_SUPPORTED
        who = self._who(event)
        if who is None:
            return _NO_USER
        if kind == "identify" or kind == "group":
            return self._people.map(event, known, who[0], self._user_type(event, who[1]), property_key, received_ms)
        name = self._names.of(event)
        if name is None:
            return _NO_NAME
        if name.dropped is not None:
            return _DROPPED[name.dropped]
        return self._custom_event(event, name, who, known, property_key, received_ms)

    def _who(self, event: dict[str, Any]) -> tuple[str, str] | None:
        """``identifyId`` and the ``userType`` that goes with it, as long as nothing else says one."""
        rules = self.rules
        user = rules.identify_id.text(event)
        if user is not None:
            return user, "USER"
        if rules.anonymous_type is not None and (anonymous := as_text(event.get("anonymousId"))) is not None:
            return anonymous, rules.anonymous_type
        return None

    def _user_type(self, event: dict[str, Any], otherwise: str) -> str:
        return self.rules.user_type.one_of(event, USER_TYPES) or otherwise

    def _custom_event(
        self,
        event: dict[str, Any],
        name: Name,
        who: tuple[str, str],
        known: Known,
        property_key: str,
        received_ms: int,
    ) -> Mapped:
        """``POST /v1/events/custom``, the keys of its body in the order of the seed's example."""
        rules = self.rules
        plan = rules.plans[name.override]
        changes = list(name.changes)
        body: dict[str, Any] = {
            "identifyId": who[0],
            "propertyKey": property_key,
            "userType": plan.user_type or self._user_type(event, who[1]),
            "eventName": name.px,
            "date": rules.date.ms(event, received_ms, changes),
        }
        if session := rules.session_id.text(event):
            body["sessionId"] = session
        if account := rules.account_id.text(event) or (known.account_id if rules.account_from_memory else None):
            body["accountId"] = account
        for field in rules.page_texts if event.get("type") == "page" else rules.texts:
            if text := field.text(event):
                body[field.name] = text
        if rules.global_context is not None and (context := rules.global_context(event)):
            body["globalContext"] = context
        body["attributes"] = plan.attributes(event.get("properties"), changes)
        return Mapped((CustomEvent(body),), changes=tuple(changes))


def opted_out(integrations: Any) -> bool:
    """Whether a call's ``integrations`` switch Gainsight PX off: by name, or all without naming it.

    An object of options for it means on, as in RudderStack's ``{"GAINSIGHT_PX": {"limitAPIForGroup": true}}``.
    """
    if type(integrations) is not dict:
        return False
    ours = [value for name, value in integrations.items() if "".join(filter(str.isalnum, name)).lower() in _OUR_NAMES]
    if ours:
        return any(value is False for value in ours)
    return any(integrations.get(name) is False for name in _EVERYONE)


_OPTED_OUT: Final = Mapped(dropped="opted_out")
_NOT_SUPPORTED: Final = Mapped(dropped="not_supported")
_NO_USER: Final = Mapped(dropped="no_user")
_NO_NAME: Final = Mapped(dead="mapping_error", detail="The event has no name; send a text as `event`.")
_DROPPED: Final = {reason: Mapped(dropped=reason) for reason in ("unmapped", "mapped_to_nothing")}

"""Privacy: which data must not leave this host, and the redacted event that people may see.

Rules
-----
* A denied name (``drop``) is removed with everything below it, at any depth, wherever apps put data: ``properties``,
  ``traits``, ``context`` and every key that is not part of the call itself. Nothing sent or shown is made from it.
* A name to be hashed (``hash``) is replaced in the same places by the SHA-256 of salt + value, in hexadecimal. Every value
  is hashed, even one that looks like a digest. Only what another host hashed before it exported the event stays
  (``HashedValues.already``), so that the event maps to the same request here.
* Both apply to the parameters of URLs as well (``urls.py``).
* Names are compared without case and underscores: PX does not distinguish names by case, and the camel rule makes
  ``first_name`` and ``firstName`` equal. An entry also covers a name that the app writes with hyphens or blanks
  (``First-Name``), since traits are recognized in the same way. An entry with dots names one nested value: ``address.street``.
* ``drop`` and ``hash`` of ``[mapping.attributes]`` apply everywhere; those of ``[mapping.traits]`` in traits in addition.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, Final

import msgspec

from sidecar.events import BadJson, decode
from sidecar.mapping.urls import is_url, parameter_names, rewrite_form, rewrite_parameters
from sidecar.mapping.values import as_text, clean_text, json_text, repeats_a_name

__all__ = [
    "CALL_KEYS",
    "CONTAINER_CALL_KEYS",
    "CONTEXT_CALL_KEYS",
    "PLAIN_CALL_KEYS",
    "HashedValues",
    "PrivacyRules",
    "RedactionView",
    "Scope",
    "fold",
    "forms",
    "hide_in",
    "json_in",
]


def fold(name: str) -> str:
    """Return the form in which rules compare names: without case and underscores."""
    return name.replace("_", "").casefold()


def forms(name: str) -> tuple[str, ...]:
    """Return the forms in which a name that an app sends may match a rule: folded, and also without hyphens and blanks."""
    folded = fold(name)
    if "-" in folded or " " in folded:
        return folded, folded.replace("-", "").replace(" ", "")
    return (folded,)


_SHORTEST_HIDDEN: Final = 3


def _matches(names: frozenset[str], name: str, path: str) -> bool:
    parts = (name, *name.split(".")) if "." in name else (name,)  # `user.email`, as the app itself dots it
    return any(form in names for part in (*parts, *((path,) if path != name else ())) for form in forms(part))


class HashedValues:
    """The digests of the event at hand: those that another host has made ``already``, and those ``made`` here.

    One object for all rules of a mapper, which maps one event at a time.
    """

    __slots__ = ("already", "made")

    def __init__(self) -> None:
        self.already: frozenset[str] = frozenset()
        self.made: set[str] = set()

    def keep_made(self) -> None:
        """Leave the digests of this event as they are from here on: a redacted part of it passes the rules again."""
        self.already = self.already | self.made


_JSON_STARTS: Final = ("{", "[", '"')  # an object, a list, or either of them written as JSON twice
_BEFORE_JSON: Final = "\ufeff \t\r\n"


def json_in(text: str) -> Any:
    """Return the value of a text that is JSON, an object, a list or a text; None if it is another text."""
    if text.lstrip(_BEFORE_JSON)[:1] not in _JSON_STARTS:
        return None
    try:
        return decode(text.encode("utf-8", "replace"))  # also what only the tolerant decoder reads
    except BadJson:
        return None


class PrivacyRules(msgspec.Struct, frozen=True):
    """The names to drop and to hash, folded, and the salt; False if there is nothing to do.

    ``parameters`` are the only parameters of URLs that stay; None: all.
    """

    drop: frozenset[str]
    hash: frozenset[str]
    salt: str
    hashed: HashedValues
    parameters: frozenset[str] | None = None

    @classmethod
    def compile(
        cls,
        drop: Iterable[str],
        hashed: Iterable[str],
        salt: str,
        values: HashedValues | None = None,
        parameters: Iterable[str] | None = None,
    ) -> "PrivacyRules":
        """Compile names as the configuration spells them."""
        kept = None if parameters is None else frozenset(map(fold, parameters))
        return cls(frozenset(map(fold, drop)), frozenset(map(fold, hashed)), salt, values or HashedValues(), kept)

    def __bool__(self) -> bool:
        return bool(self.drop or self.hash) or self.parameters is not None

    def drops(self, name: str, path: str) -> bool:
        """Return True if a value with this name at this dotted path is removed."""
        return _matches(self.drop, name, path)

    def hashes(self, name: str, path: str) -> bool:
        """Return True if a value with this name at this dotted path is hashed."""
        return _matches(self.hash, name, path)

    def covers(self, name: str) -> bool:
        """Return True if a value on the first level is removed or hashed as a whole."""
        return bool(self) and (self.drops(name, name) or self.hashes(name, name))

    def digest(self, value: Any) -> str | None:
        """Return the SHA-256 of salt + value in hexadecimal; None for null.

        A number is hashed by its digits, an object or list by its JSON text, a blank text as the empty one.
        """
        if value is None:
            return None
        text = value if type(value) is str else as_text(value) or json_text(self.prune(value))
        seen = self.hashed
        text = "" if text.isspace() else text
        digest = text if text in seen.already else sha256((self.salt + clean_text(text)).encode()).hexdigest()
        seen.made.add(digest)
        return digest

    def clean(self, text: str, *, url: bool = False) -> str:
        """Return a text with the rules applied to the parameters of the URL that it is, or that is in it, and to JSON."""
        names = self.drop or self.hash
        if names and (pruned := self._clean_json(text)) is not None:
            return pruned
        if names and "=" in text:
            text = rewrite_form(text, self._parameter)
        if "?" not in text and "#" not in text:
            return text
        if names:
            text = rewrite_parameters(text, self._parameter, whole=url)
        if self.parameters is not None and (url or is_url(text)):
            text = rewrite_parameters(text, self._kept_parameter, bare=True, whole=url)
        return text

    def _clean_json(self, text: str) -> str | None:
        """Return a text that is JSON without what the rules cover; None if it is another text.

        Apps write objects as texts, since many destinations take no nested ones. One without a covered name stays as it is.
        """
        if (value := json_in(text)) is None:
            return None
        try:
            pruned = self._prune(value, "")
        except RecursionError:
            return "null"  # nested too deep to be searched: nothing of it leaves the host
        # The text also holds what the decoder left out: only what was searched may leave.
        return text if pruned == value and not repeats_a_name(text.lstrip(_BEFORE_JSON)) else json_text(pruned)

    def _parameter(self, name: str, value: str) -> str | None:
        folded = {form for part in parameter_names(name) for form in forms(part)}
        if folded & self.drop:
            return None
        if folded & self.hash:
            return self.digest(value)
        if (pruned := self._clean_json(value)) is not None:
            return pruned
        return value

    def _kept_parameter(self, name: str, value: str) -> str | None:
        return value if self.parameters is not None and fold(name) in self.parameters else None

    def prune(self, value: Any, path: str = "") -> Any:
        """Return a copy of a nested value without dropped names and with hashes.

        ``path`` is the dotted path of the value in its object.
        """
        return self._prune(value, f"{fold(path)}." if path else "") if self else value

    def _prune(self, value: Any, prefix: str) -> Any:
        if type(value) is list:
            return [self._prune(item, prefix) for item in value]  # items of a list have the path of the list
        if type(value) is str:
            return self.clean(value)
        if type(value) is not dict:
            return value
        kept = {}
        for key, inner in value.items():
            name = fold(key)
            path = prefix + name
            dropped = name in self.drop or path in self.drop
            hashed = name in self.hash or path in self.hash
            if "-" in name or " " in name:
                other = name.replace("-", "").replace(" ", "")
                dropped = dropped or other in self.drop or prefix + other in self.drop
                hashed = hashed or other in self.hash or prefix + other in self.hash
            if "." in key:
                dropped = dropped or _matches(self.drop, key, key)
                hashed = hashed or _matches(self.hash, key, key)
            if not dropped:
                kept[key] = self.digest(inner) if hashed else self._prune(inner, f"{path}.")
        return kept

    def guard(self, path: str, read: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any] | None:
        """Wrap the reader of a value at ``path`` in its object (``""`` is the object); None if the value is denied."""
        if not self:
            return read
        steps = path.split(".")
        # Each step by its name, and each prefix by its path: a denied parent denies everything below it.
        prefixes = (".".join(steps[: last + 1]) for last in range(len(steps)))
        names = {form for part in (*steps, *prefixes) for form in forms(part)}
        if names & self.drop:
            return None
        if names & self.hash:
            return lambda event: self.digest(read(event))
        return lambda event: self.prune(read(event), path)


# The keys of a Segment call itself. They are not data that an app may have put there, so no rule removes them. `name`
# and `category` are not among them: they are sent as attributes.
PLAIN_CALL_KEYS: Final = frozenset(
    {
        *("type", "event", "userId", "anonymousId", "groupId", "previousId", "messageId", "timestamp"),
        *("originalTimestamp", "sentAt", "receivedAt", "channel", "version"),
    }
)
CONTAINER_CALL_KEYS: Final = frozenset({"properties", "traits", "context", "integrations", "_metadata"})
CALL_KEYS: Final = PLAIN_CALL_KEYS | CONTAINER_CALL_KEYS
# The values in `context`, outside traits, that PX fields are made from by default. They belong to the call as well:
# dropping an attribute `id` must leave `context.session.id`. `mapping.fields` can switch those fields off.
CONTEXT_CALL_KEYS: Final = (("groupId",), ("sessionId",), ("session", "id"), ("page", "url"), ("page", "referrer"))


class Scope(msgspec.Struct, frozen=True):
    """The visible part of one object of data: only the dotted paths in ``keep`` (None: all), without denied names.

    With ``flatten``, a name that the app itself dotted is kept together with the name it appears to be below, as the
    attributes do.
    """

    privacy: PrivacyRules
    keep: frozenset[str] | None = None
    flatten: bool = False

    def redact(self, values: Any) -> Any:
        """Return the visible part of an object."""
        if type(values) is dict and self.keep is not None:
            values = self._keep_paths(values, self.keep, "")
        return self.privacy.prune(values)

    def _keep_paths(self, values: dict[str, Any], keep: frozenset[str], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in values.items():
            path = prefix + key
            if path in keep or (self.flatten and any(path.startswith(f"{parent}.") for parent in keep)):
                kept[key] = value
            elif type(value) is dict and (below := self._keep_paths(value, keep, f"{path}.")):
                kept[key] = below
        return kept


class RedactionView(msgspec.Struct, frozen=True):
    """The visible part of an event: one scope for each object in which apps put data."""

    properties: Scope
    traits: Scope
    rest: PrivacyRules

    def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return a redacted copy of the event."""
        return {
            key: self._redact_value(key, value)
            for key, value in event.items()
            if key in CALL_KEYS or not (self.rest.drops(key, key) or self._is_hidden_attribute(key, value))
        }

    def _is_hidden_attribute(self, key: str, value: Any) -> bool:
        """Return True for the name or category of a page that is not sent, and that a rule hides.

        They are attributes like properties, but only as text: the digest of an object would become one.
        """
        if key not in ("name", "category"):
            return False
        is_sent = self.properties.keep is None or key in self.properties.keep
        return not is_sent or (self.rest.hashes(key, key) and as_text(value) is None)

    def _redact_value(self, key: str, value: Any) -> Any:
        if key in PLAIN_CALL_KEYS and type(value) is str:
            return value
        if key == "properties":
            return self.properties.redact(value)
        if key == "traits":
            return self.traits.redact(value)
        if key == "context" and type(value) is dict:
            # Traits in the context obey the rules for traits, which are stricter than those for the rest of it.
            traits = {"traits": self.traits.redact(value["traits"])} if "traits" in value else {}
            return {**_restore_call_keys(self.rest.prune(value), value, self.rest), **traits}
        if key not in CALL_KEYS and self.rest.hashes(key, key):
            return self.rest.digest(value)
        return self.rest.prune(value)


def hide_in(text: str, event: Any, redacted: Any) -> str:
    """Return a text, such as an answer of PX, without values of the event that its redacted form does not show."""
    if event == redacted:  # nothing is hidden: the usual case, and lists ask for each of their rows
        return text
    for hidden in sorted(_texts(event) - _texts(redacted), key=len, reverse=True):
        text = text.replace(hidden, "…")
    return text


def _texts(value: Any) -> set[str]:
    """Return all values in it as text; short ones could be parts of other words."""
    if isinstance(value, dict):
        return set().union(*map(_texts, value.values()))
    if isinstance(value, list):
        return set().union(*map(_texts, value))
    text = as_text(value) if not isinstance(value, str) else value
    return {text} if text is not None and len(text) >= _SHORTEST_HIDDEN else set()


def _restore_call_keys(pruned: dict[str, Any], context: dict[str, Any], rules: PrivacyRules) -> dict[str, Any]:
    """Return a copy of the pruned context in which the values of ``CONTEXT_CALL_KEYS`` are back.

    Only texts and numbers: an object under such a key is not the call's own value, and may hold denied names. The digest of
    one is left out: it is a text, and would be sent.
    """
    restored = dict(pruned)
    for *outer, key in CONTEXT_CALL_KEYS:
        parent = context.get(outer[0]) if outer else context
        value = parent.get(key) if type(parent) is dict else None
        if type(value) not in (str, int, float):
            holder = restored.get(outer[0]) if outer else restored
            if type(holder) is dict and type(holder.get(key)) is str:
                rest = {name: inner for name, inner in holder.items() if name != key}
                restored = {**restored, outer[0]: rest} if outer else rest
            continue
        if type(value) is str and outer == ["page"]:  # an id is sent as it is, also one that looks like a URL
            value = rules.clean(value, url=True)
        if outer:
            inner = restored.get(outer[0])
            restored[outer[0]] = {**(inner if type(inner) is dict else {}), key: value}
        else:
            restored[key] = value
    return restored

"""The catalogue of event names as people read it: one entry per name, what is suspicious, merging, comparing. Pure.

Entries of several hosts are merged by type and name. Two catalogues are compared by what a release of an app may change
by mistake: names, what they become in PX, attributes and their types; counts and times are not compared.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

__all__ = ["NameEntry", "differences", "findings", "kind_of", "merged"]

# Limits of PX above which it accepts an event and drops it, or a part of it (sidecar/px/README.md#limits).
MAX_NAMES: Final = 2_000
MAX_ATTRIBUTES: Final = 50
NEAR_SHARE: Final = 0.8


class NameEntry(msgspec.Struct, kw_only=False):
    """One name as it was sent.

    ``events`` is the number since the outbox was made. The rest is of a sample of the newest events: ``day`` those of
    the last 24 hours and ``share`` their share of all names', ``px`` the name in PX (None if no event was sent),
    ``not_sent`` the reasons of those that were not, ``delivered_ms`` when the first of them was delivered (0: none),
    ``cut`` the events of which the mapping changed a value, and ``attributes`` how often each attribute had which type.
    """

    type: str
    name: str
    events: int = 0
    first_ms: int = 0
    last_ms: int = 0
    day: int = 0
    share: float = 0.0
    px: str | None = None
    rule: str = ""
    sampled: int = 0
    cut: int = 0
    not_sent: dict[str, int] = {}
    attributes: dict[str, dict[str, int]] = {}
    in_px: int | None = None
    """The count that PX has of the name, if it was asked; None also if it shows none and may not have to yet."""
    delivered_ms: int = 0

    @property
    def label(self) -> str:
        """The name, or the type of a call without one."""
        return self.name or self.type

    @property
    def is_sampled(self) -> bool:
        """True if an event of the name was among the newest; otherwise the sample says nothing about it."""
        return bool(self.sampled or self.px or self.not_sent or self.attributes)


def kind_of(value: Any) -> str:
    """Return the type of an attribute's value in PX's words."""
    return "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "string"


def findings(names: Sequence[NameEntry]) -> list[str]:
    """Return what is suspicious, one sentence each."""
    found: list[str] = []
    by_word: defaultdict[str, list[NameEntry]] = defaultdict(list)
    for entry in names:
        if entry.name:
            by_word[_bare(entry.name)].append(entry)
    for twins in by_word.values():
        spellings = sorted({entry.name for entry in twins})
        # The mapping cuts the blanks around a name, also one of which no event was sent yet.
        if len(spellings) > 1 and len({entry.px or entry.name.strip() for entry in twins}) > 1:
            found.append(f"{_quoted(spellings)} differ only in spelling and are different events in PX.")
    for entry in names:
        found += _of_entry(entry)
    distinct = len({entry.px for entry in names if entry.px})
    if distinct >= NEAR_SHARE * MAX_NAMES:
        found.append(
            f"{distinct:,} names are sent to PX, which takes {MAX_NAMES:,}; further ones are dropped silently."
        )
    return found


def _of_entry(entry: NameEntry) -> list[str]:
    found = []
    for attribute, types in sorted(entry.attributes.items()):
        if len(types) > 1:
            kinds = " and ".join(f"{kind} ({count:,})" for kind, count in sorted(types.items()))
            found.append(f"{entry.label}: attribute {attribute} is {kinds}; PX keeps one type per attribute.")
    words: defaultdict[str, list[str]] = defaultdict(list)
    for attribute in entry.attributes:
        words[_bare(attribute)].append(attribute)
    for twins in words.values():
        if len(twins) > 1:
            found.append(f"{entry.label}: attributes {_quoted(sorted(twins))} differ only in spelling.")
    if entry.cut:
        found.append(
            f"{entry.label}: a value was cut, replaced or left out in {entry.cut:,} of {entry.sampled:,} events; "
            "`px-sidecar trace` shows which."
        )
    if len(entry.attributes) >= NEAR_SHARE * MAX_ATTRIBUTES:
        found.append(f"{entry.label}: {len(entry.attributes)} attributes came; PX takes {MAX_ATTRIBUTES} in one event.")
    if entry.in_px == 0 and entry.px:
        found.append(
            f"{entry.px}: PX answered 201 and shows none; some plans want the name registered under Administration > Events."
        )
    return found


def _bare(name: str) -> str:
    """Return a name without what only spells it: case, blanks, punctuation.

    Vowel signs of many scripts (category M), and symbols such as emoji (So), tell names apart.
    """
    kept = [char for char in unicodedata.normalize("NFKC", name) if _tells(unicodedata.category(char))]
    return "".join(kept).casefold() or name


def _tells(category: str) -> bool:
    return category[0] in "LMN" or category == "So"


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def merged(hosts: Iterable[Sequence[NameEntry]]) -> list[NameEntry]:
    """Add up the catalogues of several hosts."""
    by_key: dict[tuple[str, str], NameEntry] = {}
    for names in hosts:
        for entry in names:
            known = by_key.get((entry.type, entry.name))
            if known is None:
                by_key[entry.type, entry.name] = msgspec.convert(msgspec.to_builtins(entry), NameEntry)
            else:
                _add(known, entry)
    total = sum(entry.day for entry in by_key.values())
    for entry in by_key.values():
        entry.share = round(entry.day / total, 6) if total else 0.0
    return list(by_key.values())


def _add(known: NameEntry, entry: NameEntry) -> None:
    known.events += entry.events
    known.first_ms = min(known.first_ms or entry.first_ms, entry.first_ms or known.first_ms)
    known.last_ms = max(known.last_ms, entry.last_ms)
    known.day, known.sampled, known.cut = known.day + entry.day, known.sampled + entry.sampled, known.cut + entry.cut
    known.px, known.rule = known.px or entry.px, known.rule or entry.rule
    known.delivered_ms = min(known.delivered_ms or entry.delivered_ms, entry.delivered_ms or known.delivered_ms)
    # Each host asked PX about the same subscription.
    known.in_px = entry.in_px if known.in_px is None else max(known.in_px, entry.in_px or 0)
    for reason, count in entry.not_sent.items():
        known.not_sent[reason] = known.not_sent.get(reason, 0) + count
    for attribute, types in entry.attributes.items():
        counts = known.attributes.setdefault(attribute, {})
        for kind, count in types.items():
            counts[kind] = counts.get(kind, 0) + count


def differences(before: Sequence[NameEntry], now: Sequence[NameEntry]) -> list[str]:
    """Return what differs between a saved catalogue and this one, one sentence each.

    Counts and times do not count. Of a name that one of the two has no event of in its sample, only that it exists counts.
    """
    old = {(entry.type, entry.name): entry for entry in before}
    new = {(entry.type, entry.name): entry for entry in now}
    found = [f"new: {new[key].label} ({key[0]})" for key in sorted(new.keys() - old.keys())]
    found += [f"gone: {old[key].label} ({key[0]})" for key in sorted(old.keys() - new.keys())]
    for key in sorted(old.keys() & new.keys()):
        was, is_now = old[key], new[key]
        if not (was.is_sampled and is_now.is_sampled):
            continue  # other names filled the sample: what this one becomes is not known, and nothing is said of it
        if was.px != is_now.px:
            found.append(f"{is_now.label}: becomes {is_now.px or 'nothing'} in PX, was {was.px or 'nothing'}")
        for attribute in sorted(is_now.attributes.keys() - was.attributes.keys()):
            found.append(f"{is_now.label}: new attribute {attribute}")
        for attribute in sorted(was.attributes.keys() - is_now.attributes.keys()):
            found.append(f"{is_now.label}: attribute {attribute} is gone")
        for attribute in sorted(was.attributes.keys() & is_now.attributes.keys()):
            types = set(is_now.attributes[attribute]) - set(was.attributes[attribute])
            found += [f"{is_now.label}: attribute {attribute} is now also a {kind}" for kind in sorted(types)]
    return found

"""Switches for what PX's documents leave open, so that each answer can be tested. Pure.

The defaults are the sandbox's choices (sidecar/sandbox/README.md#contract). ``px-sidecar check --live --contract`` asks the
real PX the same questions; operators of a test product set the switches to its answers.
"""

from collections.abc import Collection
from typing import Any, Literal

import msgspec

from sidecar.sandbox.judge import MAX_ATTRIBUTES, JudgeAnswer, px_error

__all__ = ["OpenAnswers", "decide", "judge_traits"]

DAY_MS = 86_400_000

Kept = Literal["store", "drop", "refuse"]


class OpenAnswers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``store`` keeps the event, ``drop`` answers 201 and keeps nothing, ``refuse`` answers 400."""

    unknown_user: Kept = "store"
    """An event of an ``identifyId`` that no user has."""
    old_event: Kept = "store"
    """An event dated more than ``old_days`` ago."""
    old_days: int = 30
    unregistered_name: Literal["store", "drop"] = "store"
    """An event whose name is not one of ``registered_names``."""
    registered_names: tuple[str, ...] = ()
    many_attributes: Literal["refuse", "drop", "cut", "store"] = "refuse"
    """An event with more than 50 attributes; ``cut`` keeps the first 50."""
    repeated_event_id: Literal["store", "drop"] = "store"
    """An event with an ``eventId`` that occurred before."""
    undeclared_trait: Literal["store", "refuse", "ignore"] = "store"
    """A custom attribute of a user or account that is not one of ``declared_traits``."""
    declared_traits: tuple[str, ...] = ()


def decide(
    answers: OpenAnswers,
    event: dict[str, Any],
    *,
    now_ms: int,
    users: Collection[str],
    event_ids: Collection[str],
) -> JudgeAnswer | Literal["store", "drop"]:
    """Return what happens to an event that the contract accepts. ``event`` is changed if its attributes are cut."""
    attributes: dict[str, Any] = event.get("attributes") or {}
    questions: list[tuple[bool, str, str]] = [
        (event["identifyId"] not in users, answers.unknown_user, "identifyId: is not a user of this subscription"),
        (now_ms - event.get("date", now_ms) > answers.old_days * DAY_MS, answers.old_event, "date: is too old"),
        (event["eventName"] not in answers.registered_names, answers.unregistered_name, ""),
        (event.get("eventId") in event_ids, answers.repeated_event_id, ""),
        (len(attributes) > MAX_ATTRIBUTES, answers.many_attributes, "attributes: too many"),
    ]
    chosen = [(answer, problem) for applies, answer, problem in questions if applies]
    if refused := [problem for answer, problem in chosen if answer == "refuse"]:
        return px_error(400, "Validation error", refused)
    if any(answer == "cut" for answer, _ in chosen):
        event["attributes"] = dict(list(attributes.items())[:MAX_ATTRIBUTES])
    return "drop" if any(answer == "drop" for answer, _ in chosen) else "store"


def judge_traits(answers: OpenAnswers, entity: dict[str, Any]) -> JudgeAnswer | None:
    """Return the refusal of undeclared custom attributes, or None; ``ignore`` removes them from ``entity``."""
    traits = entity.get("customAttributes")
    if not isinstance(traits, dict):
        return None
    undeclared = [name for name in traits if name not in answers.declared_traits]
    if not undeclared or answers.undeclared_trait == "store":
        return None
    if answers.undeclared_trait == "refuse":
        return px_error(400, "Validation error", [f"customAttributes: {name} is not declared" for name in undeclared])
    entity["customAttributes"] = {name: value for name, value in traits.items() if name not in undeclared}
    return None

"""The problems of a daemon, the worst first: one pure function over the record of the state.

A problem is a sentence that says what happened, to what, and what to do next. The screen of ``status``, its JSON and the
console show them in this order. To add one, append it in ``problems_of`` under the severity that it has for the operator.
"""

from typing import Final

from sidecar.control.status import DaemonState, Severity, StatusProblem
from sidecar.units import counted, show_count, show_duration, show_size

__all__ = ["problems_of"]

NEAR: Final = 0.9  # of the day or of the outbox
REFUSED_S: Final = 3_600.0  # refused calls are shown for this long after the last one
# Codes of 503: the call was right, and could not be stored just then.
_NOT_STORABLE: Final = frozenset({"outbox_full", "disk_full", "disk_error", "busy"})
_ORDER: Final[tuple[Severity, ...]] = ("accepting", "delivery", "loss", "limit", "note")


def problems_of(state: DaemonState) -> list[StatusProblem]:
    """Return the problems of a state, in the order in which an operator should look at them."""
    found: list[StatusProblem] = []

    def add(severity: Severity, *messages: str) -> None:
        found.extend(StatusProblem(severity, message) for message in messages if message)

    add("accepting", *state.not_stored)
    add("delivery", *state.not_delivered)
    add("loss", *state.damage, _dead(state), _refused(state))
    add("limit", _quota_near(state), _outbox_near(state), _busiest_name(state), *state.limits)
    add("note", *state.notes)
    return sorted(found, key=lambda problem: _ORDER.index(problem.severity))  # stable: the order above within each


def _dead(state: DaemonState) -> str:
    if not state.dead:
        return ""
    reasons = ", ".join(f"{reason} {show_count(count)}" for reason, count in state.dead_by_reason.items())
    one = state.dead == 1
    text = f"{show_count(state.dead)} event{' is' if one else 's are'} dead ({reasons}) and will not be sent; "
    if set(state.dead_by_reason) == {"bad_event"}:
        return f"{text}`px-sidecar dead list` shows what the app has to change, `px-sidecar dead discard` removes them."
    return f"{text}`px-sidecar dead list` shows why, then `px-sidecar dead retry` or `px-sidecar dead discard`."


def _refused(state: DaemonState) -> str:
    refused = state.refused
    if refused is None or refused.last_s > REFUSED_S:
        return ""
    ours = {code: count for code, count in refused.by_code.items() if code in _NOT_STORABLE}
    theirs = {code: count for code, count in refused.by_code.items() if code not in _NOT_STORABLE}
    parts = []
    if theirs:
        parts.append(f"{_calls(theirs, 'refused')}, and the app has to change")
    if ours:
        parts.append(f"{_calls(ours, 'answered 503')}, and the app has to send them again")
    # With its age: what it says may be over.
    known = not refused.last_message or refused.last_message in state.not_stored  # shown above then
    newest = "" if known else f" The last, {show_duration(refused.last_s)} ago: {refused.last_message}"
    return f"{'; '.join(parts)}; `px-sidecar tail` shows each as it comes.{newest}"


def _calls(by_code: dict[str, int], what: str) -> str:
    """Return how many calls were answered so since the start, with their codes."""
    codes = ", ".join(f"{code} {show_count(count)}" for code, count in sorted(by_code.items()))
    return f"{counted(sum(by_code.values()), 'call', 'was')} {what} since the start ({codes})"


def _quota_near(state: DaemonState) -> str:
    quota = state.quota
    usual = quota.limit - quota.reserve
    if quota.free_in_s > 0 or usual <= 0 or quota.used < NEAR * usual:
        return ""
    return (
        f"{quota.used / usual:.0%} of the day's quota is used ({show_count(quota.used)} of {show_count(usual)} requests, "
        "the reserve apart); what is left over waits and is not lost. `px-sidecar names` shows which names take it."
    )


def _outbox_near(state: DaemonState) -> str:
    used, limit = state.outbox.bytes, state.outbox.max_bytes
    if state.full or used is None or used < NEAR * limit:
        return ""
    return (
        f"The outbox is {used / limit:.0%} full ({show_size(used)} of {show_size(limit)}); at its limit events are refused "
        "or dropped (outbox.when_full). Raise outbox.max_bytes and restart the daemon, or "
        "drop what need not be sent with `px-sidecar events discard`."
    )


def _busiest_name(state: DaemonState) -> str:
    busiest, limit = state.busiest_name, state.quota.limit
    if busiest is None or busiest.events * 2 <= limit:
        return ""
    return (
        f"{busiest.name!r} takes {busiest.events / limit:.0%} of the day ({show_count(busiest.events)} of "
        f"{show_count(limit)} requests); `per_day` or `sample` in [mapping.event.{_toml_key(busiest.name)}] limits it, "
        "what is pending included."
    )


def _toml_key(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

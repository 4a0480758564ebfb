"""Draw a scenario from a seed.

A seed first draws which kinds of trouble occur at all (swarm testing, https://doi.org/10.1145/2338965.2336763): with all
kinds at once, the effect of a single one would be hidden.

The order of the draws is fixed. A new kind of trouble gets a generator of its own (``Random(seed ^ CONSTANT)``), so that
every seed keeps drawing the scenario it always drew.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
from sim_scenario import APPS, KEPT_WITH_WRONG_CLOCKS, PRODUCT, SECRET_NAME, Event, Scenario, Step, StorageLimits

__all__ = ["FAULTS", "KINDS", "LOOKS", "ODD", "WAYS", "draw"]

DAY_MS = 86_400_000
KINDS = ("track", "track", "track", "track", "track", "high", "page", "identify", "group")
ODD = ("alias", "no_user", "opted_out", "bad", "refused", "firewall")
FAULTS = (
    *("later", "lost", "reset", "too_fast", "busy", "wrong_key", "firewall", "wrong_region", "refused", "away"),
    *("garbage", "hang", "late", "drip"),
)
LOOKS = ("status", "events", "event", "letters", "delivered", "tail")
WAYS = ("routed", "http", "singles", "array", "lines", "direct")
# Many small scenarios find more than few large ones; some must exceed the limits of what is kept in memory.
TOTALS = (1, 2, 3, 5, 8, 8, 12, 12, 20, 20, 30, 90)
TROUBLES = (
    *(
        "px",
        "px",
        "crash",
        "restart",
        "slow_disk",
        "disk_error",
        "clock",
        "reload",
        "pause",
        "dead",
        "forget",
        "repeat",
    ),
    *("odd", "people", "quota", "small", "no_order", "reboot", "aged", "clients_give_up"),
)
SHARES = {"small": 0.6, "quota": 0.2, "px": 0.4}
# Added later, with a generator of their own, so that a seed still draws the same of the troubles above.
MORE_TROUBLES = ("full", "short_keep", "few_users", "look", "other_day", "other_people", "carry")
MORE_SHARE = 0.25
# Seconds, hours, days both ways; 1970 and 2098 as seen from the start of a run.
WRONG_MS = (
    1_000,
    -1_000,
    3_600_000,
    -3_600_000,
    2 * DAY_MS,
    -2 * DAY_MS,
    40 * DAY_MS,
    -40 * DAY_MS,
    -19_675 * DAY_MS,
    27_000 * DAY_MS,
)
MOVES_SHARE = 0.1  # of seeds with a file that is taken away, and of those with a freeze
PAGE_BYTES, EMPTY_PAGES = 4096, 30  # the size of an empty outbox
ROW_BYTES = 600  # an event without its padding, with the row of a refusal


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed: always the same."""
    rng = Random(seed)
    troubles = {trouble for trouble in TROUBLES if rng.random() < SHARES.get(trouble, 0.3)}
    length_s = rng.choice((2.0, 10.0, 60.0, 600.0))
    per_second = rng.choice((0.5, 2.5, 7, 19, 190)) if rng.random() < 0.6 else 190
    per_day = rng.choice((12, 25, 60)) if "quota" in troubles else 990_000
    steps = [*_traffic(rng, troubles, length_s)]
    for trouble in sorted(troubles):
        steps += _STEPS.get(trouble, _no_steps)(rng, length_s)
    if "quota" in troubles:
        steps += _crashes_at_leases(Random(seed ^ 0x1EA5E), length_s)
    kept, steps = _added_later(Random(seed ^ 0xF0FF), steps, length_s)
    steps += _file_faults(Random(seed ^ 0xF11E), length_s)
    steps += _freezes(Random(seed ^ 0xF0EE2E), length_s)
    steps = _replays(Random(seed ^ 0xDEAD), [*steps, *_rule_reloads(Random(seed ^ 0x4E5), length_s)], length_s)
    kept, steps = _wrong_clocks(Random(seed ^ 0xC10C), kept, steps, length_s)
    config = _config(rng, troubles, per_second, per_day, kept)
    apps_rng = Random(seed ^ 0xA99)
    if apps_rng.random() < MORE_SHARE:
        steps = _with_apps(apps_rng, steps)
        config += "".join(f'[[source]]\nwrite_key = "{key}"\nproperty_key = "{APPS[key]}"\n' for key in APPS)
    steps.sort(key=lambda step: step.at_s)
    knobs = _knobs(rng, troubles) | _shares_and_scans(Random(seed ^ 0x5CA1E))
    return Scenario(seed, config, knobs, per_second, per_day, tuple(steps), kept)


def _traffic(rng: Random, troubles: set[str], length_s: float) -> Iterator[Step]:
    users = [f"u{number}" for number in range(rng.choice((1, 2, 5, 20)))]
    number, total = 0, rng.choice(TOTALS)
    drawn: list[Event] = []
    while number < total:
        events = []
        for _ in range(min(rng.choice((1, 1, 3, 10, 40)), total - number)):
            if drawn and "repeat" in troubles and rng.random() < 0.15:
                events.append(rng.choice(drawn))
                continue
            kind = rng.choice(KINDS)
            user = rng.choice(users)
            if "odd" in troubles and rng.random() < 0.15:
                kind = rng.choice(ODD)
                user = (
                    None if kind == "no_user" else f"odd{rng.randrange(2)}" if kind in ("refused", "firewall") else user
                )
            events.append(Event(number, kind, user))
            number += 1
        drawn += events
        gives_up = "clients_give_up" in troubles and rng.random() < 0.3
        at_s = rng.random() * length_s if rng.random() < 0.8 else 0.0
        yield _send(at_s, rng.choice(WAYS), events, rng.random() * 0.2 if gives_up else None)


def _send(at_s: float, way: str, events: list[Event], patience_s: float | None = None) -> Step:
    drawn = [msgspec.to_builtins(event) for event in events]
    return Step(at_s, "send", {"way": way, "events": drawn, "patience_s": patience_s})


def _no_steps(_rng: Random, _length_s: float) -> Iterator[Step]:
    return iter(())


def _up_to(rng: Random, maximum: int) -> range:
    return range(rng.randint(1, maximum))


def _px(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 3):
        faults = rng.sample(FAULTS, rng.choice((1, 1, 2, 4)))
        yield Step(
            rng.random() * length_s if rng.random() < 0.6 else 0.0,
            "px",
            {
                "faults": sorted(faults),
                "share": rng.choice((0.05, 0.3, 0.6, 1.0)),
                "for_s": rng.random() * length_s,
                "waits": rng.random() < 0.7,
            },
        )


def _crashes(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 3):
        yield Step(
            rng.random() * length_s * 1.2,
            "crash",
            {
                "commits": rng.choice((None, None, 0, 0, 1, 3)),
                "rounds": rng.choice((0, 1, 2, 5, 20)),
                "down_s": rng.choice((0, 0.001, 0.5, 30)),
            },
        )


def _reboots(rng: Random, length_s: float) -> Iterator[Step]:
    yield Step(rng.random() * length_s, "reboot", {"down_s": rng.choice((10, 3_600, 80_000))})


def _restarts(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 3):
        yield Step(
            rng.random() * length_s * 1.2,
            "restart",
            {"down_s": rng.choice((0, 0, 0.3, 5, 3_600)), "twice_s": rng.choice((None, None, None, 0.0, 0.1, 2.0))},
        )


def _slow_disk(rng: Random, length_s: float) -> Iterator[Step]:
    yield Step(
        rng.random() * length_s,
        "slow_disk",
        {"up_to_s": rng.choice((0.003, 0.1, 2)), "for_s": rng.random() * length_s},
    )


def _disk_errors(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 3):
        error = rng.choice(("ioerr", "ioerr_after", "full", "busy"))
        count = rng.choice((1, 1, 2, 5, 12))
        skip, anywhere = rng.choice((0, 1, 3)), rng.random() < 0.3
        yield Step(
            rng.random() * length_s,
            "disk_error",
            {"error": error, "count": count, "skip": skip + anywhere * rng.randrange(20), "anywhere": anywhere},
        )


def _clock(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 2):
        yield Step(
            rng.random() * length_s, "clock", {"step_ms": rng.choice((-DAY_MS, DAY_MS, -5_000, 5_000, 3_600_000))}
        )


def _reloads(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 4):
        yield Step(
            rng.random() * length_s,
            "reload",
            {
                "bad": rng.random() < 0.2,
                "per_second": rng.choice((0.5, 3, 11, 47.5, 190)),
                "max_in_flight": rng.choice((1, 2, 8, 128)),
                "retry_initial": rng.choice((0.1, 1.0)),
                "retry_max": rng.choice((2.0, 20.0, 300.0)),
            },
        )


def _pauses(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 2):
        at_s = rng.random() * length_s
        yield Step(at_s, "pause")
        if rng.random() < 0.8:
            yield Step(at_s + rng.random() * length_s, "resume")


def _dead(rng: Random, length_s: float) -> Iterator[Step]:
    for _ in _up_to(rng, 3):
        yield Step(rng.random() * length_s * 1.5, "discard" if rng.random() < 0.2 else "retry_dead")


def _forget(rng: Random, length_s: float) -> Iterator[Step]:
    yield Step(rng.random() * length_s, "forget", {"user": f"u{rng.randrange(3)}"})


_STEPS = {
    "px": _px,
    "crash": _crashes,
    "reboot": _reboots,
    "restart": _restarts,
    "slow_disk": _slow_disk,
    "disk_error": _disk_errors,
    "clock": _clock,
    "reload": _reloads,
    "pause": _pauses,
    "dead": _dead,
    "forget": _forget,
}


def _added_later(rng: Random, steps: list[Step], length_s: float) -> tuple[StorageLimits, list[Step]]:
    """Return storage limits and steps with a full disk, short retention, few users, reads, other quotas and exports."""
    troubles = {trouble for trouble in MORE_TROUBLES if rng.random() < MORE_SHARE}
    kept = StorageLimits()
    if "full" in troubles:
        steps, max_bytes = _padded(rng, steps)
        kept = msgspec.structs.replace(kept, max_bytes=max_bytes, when_full=rng.choice(("refuse", "drop_oldest")))
        if rng.random() < 0.5:
            away = {"faults": ["away"], "share": 1.0, "for_s": rng.random() * length_s, "waits": False}
            steps.append(Step(0.0, "px", away))
    if "short_keep" in troubles:
        times = {name: rng.choice(("1s", "5s", "1m")) for name in ("keep_delivered", "keep_ids", "keep_dead")}
        kept = msgspec.structs.replace(kept, **times)
    if "few_users" in troubles:
        kept = msgspec.structs.replace(kept, max_users=rng.choice((0, 1, 2)))
    if "look" in troubles:
        at_s = sorted(rng.random() * length_s for _ in _up_to(rng, 4))
        reads = [{"at": rng.choice(LOOKS), "which": rng.randrange(30)} for _ in at_s]
        steps += [Step(when, "look", read) for when, read in zip(at_s, reads, strict=True)]
    if "other_day" in troubles:
        steps += [Step(rng.random() * length_s, "reload", {"bad": False, **_day(rng)}) for _ in _up_to(rng, 3)]
    if "other_people" in troubles:
        changes = [{"bad": False, "people": rng.choice(("off", "upsert"))} for _ in _up_to(rng, 3)]
        steps += [Step(rng.random() * length_s, "reload", change) for change in changes]
    if "carry" in troubles:
        steps += [Step(rng.random() * length_s, "carry", {"rows": rng.choice((1, 5, 100))}) for _ in _up_to(rng, 2)]
    return kept, steps


def _rule_reloads(rng: Random, length_s: float) -> Iterator[Step]:
    """Yield reloads that forbid or allow a field and change max_age; some within a pause."""
    if rng.random() >= MORE_SHARE:
        return
    for _ in _up_to(rng, 3):
        at_s = rng.random() * length_s
        rules = {"drop": rng.choice(([], [SECRET_NAME])), "max_age": rng.choice((0.0, 3.0, 120.0))}
        yield Step(at_s, "reload", {"bad": False, **rules})
        if rng.random() < 0.3:
            yield Step(rng.random() * at_s, "pause")
            yield Step(at_s + rng.random() * 5, "resume")


def _wrong_clocks(
    rng: Random, kept: StorageLimits, steps: list[Step], length_s: float
) -> tuple[StorageLimits, list[Step]]:
    """Add times in which the wall clock is wrong, also from a boot on: for less than an hour each.

    With them comes what a wrong clock could make too old: dead letters, ids and pending events that are kept for minutes.
    """
    if rng.random() >= MORE_SHARE:
        return kept, steps
    for _ in _up_to(rng, 2):
        wrong = {"wrong_ms": rng.choice(WRONG_MS), "for_s": rng.choice((1.0, 20.0, 1_000.0))}
        at_s = rng.random() * length_s
        if rng.random() < 0.4:
            steps = [*steps, Step(at_s, "wrong_clock", wrong)]
        else:
            steps = [*steps, Step(at_s, "reboot", {"down_s": rng.choice((0.1, 10, 600)), **wrong})]
    if rng.random() < 0.7:
        kept = msgspec.structs.replace(kept, keep_dead=KEPT_WITH_WRONG_CLOCKS, keep_ids=KEPT_WITH_WRONG_CLOCKS)
        changes: defaultdict[int, dict[str, Any]] = defaultdict(lambda: _change_of(rng))
        steps = _change_events(steps, lambda event: event | changes[event["number"]])
    if rng.random() < 0.7:
        steps.append(Step(0.0, "reload", {"bad": False, "max_age": 1_200.0}))
        away = {"faults": ["away"], "share": 1.0, "for_s": length_s, "waits": False}
        steps.append(Step(rng.random() * length_s, "px", away))
    return kept, steps


def _file_faults(rng: Random, length_s: float) -> Iterator[Step]:
    """Yield files of the outbox that are removed or replaced under the process, some just before it ends."""
    if rng.random() >= MOVES_SHARE:
        return
    for _ in _up_to(rng, 3):
        at_s = rng.random() * length_s
        yield Step(at_s, "file_fault", {"fault": rng.choice(("removed", "removed", "log_removed", "replaced"))})
        end, after_s = rng.choice(("crash", "restart", None)), rng.choice((0.0, 0.01, 0.3, 5.0))
        if end == "crash":
            yield Step(at_s + after_s, "crash", {"commits": rng.choice((None, 0, 1)), "rounds": 0, "down_s": 0.5})
        elif end == "restart":
            yield Step(at_s + after_s, "restart", {"down_s": 0.3, "twice_s": None})


def _freezes(rng: Random, length_s: float) -> Iterator[Step]:
    """Yield times in which the process does not run, as after SIGSTOP or in a VM that sleeps."""
    if rng.random() >= MOVES_SHARE:
        return
    for _ in _up_to(rng, 3):
        yield Step(rng.random() * length_s, "freeze", {"for_s": rng.choice((2.5, 60.0, 3_600.0, 90_000.0))})


def _crashes_at_leases(rng: Random, length_s: float) -> Iterator[Step]:
    """Yield more events than the day's quota, and crashes aimed at a lease that a slow disk is writing."""
    if rng.random() < 0.5:
        return
    number = 1000
    for _ in _up_to(rng, 3):
        events = [Event(number + at, "track", f"u{rng.randrange(20)}") for at in range(30)]
        number += 30
        yield _send(rng.random() * 0.2, "routed", events)
    yield Step(0.0, "slow_disk", {"up_to_s": rng.choice((0.1, 2)), "for_s": length_s})
    for at_s in (0.0, rng.random() * length_s):
        when = {"leases": rng.choice((1, 1, 1, 2, 3)), "decisions": rng.choice((2, 3, 5, 9)), "down_s": rng.random()}
        yield Step(at_s, "crash_at_lease", when)


def _replays(rng: Random, steps: list[Step], length_s: float) -> list[Step]:
    """Return the steps with more refused events, and with retries and discards of dead letters."""
    if rng.random() >= MORE_SHARE:
        return steps
    changes: defaultdict[int, dict[str, Any]] = defaultdict(lambda: _change_of(rng))
    steps = _change_events(steps, lambda event: event | changes[event["number"]])
    for _ in _up_to(rng, 3):
        by_id = {"by_id": rng.random() < 0.5}
        steps.append(Step(rng.random() * length_s * 1.5, "retry_dead", by_id))
    if rng.random() < 0.3:
        steps.append(Step(rng.random() * length_s * 1.5, "discard"))
    return steps


def _change_of(rng: Random) -> dict[str, Any]:
    kind = rng.choice(("bad", "refused", "firewall"))
    return {"kind": kind, "user": f"odd{rng.randrange(2)}"} if rng.random() < 0.3 else {}


def _with_apps(rng: Random, steps: list[Step]) -> list[Step]:
    """Return the steps with each event assigned to one of the apps, which share their users."""
    app: defaultdict[int, str] = defaultdict(lambda: rng.choice([*APPS]))
    return _change_events(steps, lambda event: event | {"app": app[event["number"]]})


def _change_events(steps: list[Step], change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Step]:
    """Return the steps with ``change`` applied to every event they send."""
    return [
        msgspec.structs.replace(step, args=step.args | {"events": [change(event) for event in step.args["events"]]})
        if step.what == "send"
        else step
        for step in steps
    ]


def _day(rng: Random) -> dict[str, Any]:
    return {
        "per_day": rng.choice((5, 12, 60, 990_000)),
        "pace": rng.choice(("burst", "burst", "spread")),
        "reserve_for_high": rng.choice((0, 0.1, 0.5)),
    }


def _padded(rng: Random, steps: list[Step]) -> tuple[list[Step], int]:
    """Return the steps with longer events, and a max_bytes that fits the largest request into an empty outbox."""
    pad = rng.choice((100, 1_000, 3_000))
    maximum = max(len(step.args["events"]) for step in steps if step.what == "send")
    pages = EMPTY_PAGES + rng.choice((1, 3, 8)) + maximum * (pad + ROW_BYTES) * 3 // 2 // PAGE_BYTES
    return _change_events(steps, lambda event: event | {"pad": pad}), pages * PAGE_BYTES


def _config(rng: Random, troubles: set[str], per_second: float, per_day: int, kept: StorageLimits) -> str:
    people = '[people]\nusers = "upsert"\naccounts = "upsert"\n' if "people" in troubles else ""
    lines = [
        f"per_second = {per_second}",
        f"per_day = {per_day}",
        'order = "none"' if "no_order" in troubles else 'order = "user"',
        f"max_in_flight = {rng.choice((1, 2, 8, 128))}",
        f"retry_initial = {_quoted(rng, '100ms', '1s')}",
        f"retry_max = {_quoted(rng, '2s', '20s', '5m')}",
        f"stop_timeout = {_quoted(rng, '500ms', '10s')}",
        f"pace = {_quoted(rng, 'burst', 'burst', 'burst', 'spread')}",
        f"day = {_quoted(rng, 'rolling', 'rolling', 'utc')}",
        'max_age = "2m"' if "aged" in troubles else 'max_age = ""',
        f"reserve_for_high = {rng.choice((0, 0.1, 0.5))}",
    ]
    return (
        f'[px]\nproperty_key = "{PRODUCT}"\n'
        f"[outbox]\ndurability = {_quoted(rng, 'disk', 'process')}\n"
        f'max_bytes = {kept.max_bytes}\nwhen_full = "{kept.when_full}"\nkeep_delivered = "{kept.keep_delivered}"\n'
        f'keep_ids = "{kept.keep_ids}"\nkeep_dead = "{kept.keep_dead}"\n'
        f"[identity]\nmax_users = {kept.max_users}\n"
        '[mapping.event.Paid]\npriority = "high"\n' + people + "[deliver]\n" + "\n".join(lines) + "\n"
    )


def _quoted(rng: Random, *choices: str) -> str:
    return f'"{rng.choice(choices)}"'


def _knobs(rng: Random, troubles: set[str]) -> dict[str, int]:
    """Draw the sizes of pages, windows and batches: with small ones, a few dozen events are a deep backlog."""
    if "small" not in troubles:
        return {}
    return {
        "page_rows": rng.choice((1, 3, 10)),
        "ready_low": rng.choice((1, 3, 20)),
        "queue_max": rng.choice((1, 2, 4)),
        "waiting_max": rng.choice((11, 30, 20_000)),
        "commit_rows": rng.choice((1, 5, 5_000)),
        "newest_ids": rng.choice((1, 10, 20_000)),
        "wal_pages": rng.choice((2, 8, 64)),
    }


def _shares_and_scans(rng: Random) -> dict[str, int]:
    """Draw the share of the day's quota in one lease, and the number of dead letters read per scan."""
    return {"lease_share": rng.choice((1, 2, 4, 100)), "scan_rows": rng.choice((1, 3, 5_000))}

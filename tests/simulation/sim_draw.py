"""Draws a scenario from a seed.

Every seed draws first which kinds of trouble it has at all (swarm testing): a run that has everything at once hides what
happens when one thing goes wrong alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
from sim_scenario import APPS, PRODUCT, SECRET_NAME, Event, Keeping, Scenario, Step

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
# Many small worlds find more than few large ones; some must be large enough for what is kept to be less than all.
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
# These have dice of their own, as all that was added later, so that a seed goes on bringing what it brought of the others.
MORE_TROUBLES = ("full", "short_keep", "few_users", "look", "other_day", "other_people", "carry")
MORE_SHARE = 0.25
PAGE_BYTES, EMPTY_PAGES = 4096, 21  # what an outbox takes in which nothing is
ROW_BYTES = 600  # an event without its padding, and what stands beside it if it is refused


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    dice = Random(seed)
    troubles = {one for one in TROUBLES if dice.random() < SHARES.get(one, 0.3)}
    length_s = dice.choice((2.0, 10.0, 60.0, 600.0))
    per_second = dice.choice((0.5, 2.5, 7, 19, 190)) if dice.random() < 0.6 else 190
    per_day = dice.choice((12, 25, 60)) if "quota" in troubles else 990_000
    steps = [*_traffic(dice, troubles, length_s)]
    for trouble in sorted(troubles):
        steps += _STEPS.get(trouble, _nothing)(dice, length_s)
    if "quota" in troubles:
        steps += _crashes_at_leases(Random(seed ^ 0x1EA5E), length_s)
    kept, steps = _more(Random(seed ^ 0xF0FF), steps, length_s)
    steps = _replays(Random(seed ^ 0xDEAD), [*steps, *_other_rules(Random(seed ^ 0x4E5), length_s)], length_s)
    config = _config(dice, troubles, per_second, per_day, kept)
    dice_of_apps = Random(seed ^ 0xA99)
    if dice_of_apps.random() < MORE_SHARE:
        steps = _of_apps(dice_of_apps, steps)
        config += "".join(f'[[source]]\nwrite_key = "{key}"\nproperty_key = "{APPS[key]}"\n' for key in APPS)
    steps.sort(key=lambda step: step.at_s)
    knobs = _knobs(dice, troubles) | _portions(Random(seed ^ 0x5CA1E))
    return Scenario(seed, config, knobs, per_second, per_day, tuple(steps), kept)


def _traffic(dice: Random, troubles: set[str], length_s: float) -> Iterator[Step]:
    users = [f"u{number}" for number in range(dice.choice((1, 2, 5, 20)))]
    number, total = 0, dice.choice(TOTALS)
    made: list[Event] = []
    while number < total:
        events = []
        for _ in range(min(dice.choice((1, 1, 3, 10, 40)), total - number)):
            if made and "repeat" in troubles and dice.random() < 0.15:
                events.append(dice.choice(made))
                continue
            kind = dice.choice(KINDS)
            user = dice.choice(users)
            if "odd" in troubles and dice.random() < 0.15:
                kind = dice.choice(ODD)
                user = (
                    None
                    if kind == "no_user"
                    else f"odd{dice.randrange(2)}"
                    if kind in ("refused", "firewall")
                    else user
                )
            events.append(Event(number, kind, user))
            number += 1
        made += events
        gives_up = "clients_give_up" in troubles and dice.random() < 0.3
        at_s = dice.random() * length_s if dice.random() < 0.8 else 0.0
        yield _send(at_s, dice.choice(WAYS), events, dice.random() * 0.2 if gives_up else None)


def _send(at_s: float, way: str, events: list[Event], patience_s: float | None = None) -> Step:
    made = [msgspec.to_builtins(event) for event in events]
    return Step(at_s, "send", {"way": way, "events": made, "patience_s": patience_s})


def _nothing(_dice: Random, _length_s: float) -> Iterator[Step]:
    return iter(())


def _some(dice: Random, most: int) -> range:
    return range(dice.randint(1, most))


def _px(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 3):
        faults = dice.sample(FAULTS, dice.choice((1, 1, 2, 4)))
        yield Step(
            dice.random() * length_s if dice.random() < 0.6 else 0.0,
            "px",
            {
                "faults": sorted(faults),
                "share": dice.choice((0.05, 0.3, 0.6, 1.0)),
                "for_s": dice.random() * length_s,
                "waits": dice.random() < 0.7,
            },
        )


def _crashes(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 3):
        yield Step(
            dice.random() * length_s * 1.2,
            "crash",
            {
                "commits": dice.choice((None, None, 0, 0, 1, 3)),
                "rounds": dice.choice((0, 1, 2, 5, 20)),
                "down_s": dice.choice((0, 0.001, 0.5, 30)),
            },
        )


def _reboots(dice: Random, length_s: float) -> Iterator[Step]:
    yield Step(dice.random() * length_s, "reboot", {"down_s": dice.choice((10, 3_600, 80_000))})


def _restarts(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 3):
        yield Step(
            dice.random() * length_s * 1.2,
            "restart",
            {"down_s": dice.choice((0, 0, 0.3, 5, 3_600)), "twice_s": dice.choice((None, None, None, 0.0, 0.1, 2.0))},
        )


def _slow_disk(dice: Random, length_s: float) -> Iterator[Step]:
    yield Step(
        dice.random() * length_s,
        "slow_disk",
        {"up_to_s": dice.choice((0.003, 0.1, 2)), "for_s": dice.random() * length_s},
    )


def _disk_errors(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 3):
        error = dice.choice(("ioerr", "ioerr_after", "full", "busy"))
        count = dice.choice((1, 1, 2, 5, 12))
        skip, anywhere = dice.choice((0, 1, 3)), dice.random() < 0.3
        yield Step(
            dice.random() * length_s,
            "disk_error",
            {"error": error, "count": count, "skip": skip + anywhere * dice.randrange(20), "anywhere": anywhere},
        )


def _clock(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 2):
        yield Step(
            dice.random() * length_s, "clock", {"step_ms": dice.choice((-DAY_MS, DAY_MS, -5_000, 5_000, 3_600_000))}
        )


def _reloads(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 4):
        yield Step(
            dice.random() * length_s,
            "reload",
            {
                "bad": dice.random() < 0.2,
                "per_second": dice.choice((0.5, 3, 11, 47.5, 190)),
                "max_in_flight": dice.choice((1, 2, 8, 128)),
                "retry_initial": dice.choice((0.1, 1.0)),
                "retry_max": dice.choice((2.0, 20.0, 300.0)),
            },
        )


def _pauses(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 2):
        at_s = dice.random() * length_s
        yield Step(at_s, "pause")
        if dice.random() < 0.8:
            yield Step(at_s + dice.random() * length_s, "resume")


def _dead(dice: Random, length_s: float) -> Iterator[Step]:
    for _ in _some(dice, 3):
        yield Step(dice.random() * length_s * 1.5, "discard" if dice.random() < 0.2 else "retry_dead")


def _forget(dice: Random, length_s: float) -> Iterator[Step]:
    yield Step(dice.random() * length_s, "forget", {"user": f"u{dice.randrange(3)}"})


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


def _more(dice: Random, steps: list[Step], length_s: float) -> tuple[Keeping, list[Step]]:
    """Too little room, short times, few users, people who look, another quota; and all steps that there are then."""
    troubles = {one for one in MORE_TROUBLES if dice.random() < MORE_SHARE}
    kept = Keeping()
    if "full" in troubles:
        steps, max_bytes = _padded(dice, steps)
        kept = msgspec.structs.replace(kept, max_bytes=max_bytes, when_full=dice.choice(("refuse", "drop_oldest")))
        if dice.random() < 0.5:
            away = {"faults": ["away"], "share": 1.0, "for_s": dice.random() * length_s, "waits": False}
            steps.append(Step(0.0, "px", away))
    if "short_keep" in troubles:
        times = {name: dice.choice(("1s", "5s", "1m")) for name in ("keep_delivered", "keep_ids", "keep_dead")}
        kept = msgspec.structs.replace(kept, **times)
    if "few_users" in troubles:
        kept = msgspec.structs.replace(kept, max_users=dice.choice((0, 1, 2)))
    if "look" in troubles:
        at_s = sorted(dice.random() * length_s for _ in _some(dice, 4))
        looks = [{"at": dice.choice(LOOKS), "which": dice.randrange(30)} for _ in at_s]
        steps += [Step(when, "look", look) for when, look in zip(at_s, looks, strict=True)]
    if "other_day" in troubles:
        steps += [Step(dice.random() * length_s, "reload", {"bad": False, **_day(dice)}) for _ in _some(dice, 3)]
    if "other_people" in troubles:
        changes = [{"bad": False, "people": dice.choice(("off", "upsert"))} for _ in _some(dice, 3)]
        steps += [Step(dice.random() * length_s, "reload", change) for change in changes]
    if "carry" in troubles:
        steps += [Step(dice.random() * length_s, "carry", {"rows": dice.choice((1, 5, 100))}) for _ in _some(dice, 2)]
    return kept, steps


def _other_rules(dice: Random, length_s: float) -> Iterator[Step]:
    """Reloads that forbid a field, or allow it again, and that change how old an event may get; some in a pause."""
    if dice.random() >= MORE_SHARE:
        return
    for _ in _some(dice, 3):
        at_s = dice.random() * length_s
        rules = {"drop": dice.choice(([], [SECRET_NAME])), "max_age": dice.choice((0.0, 3.0, 120.0))}
        yield Step(at_s, "reload", {"bad": False, **rules})
        if dice.random() < 0.3:
            yield Step(dice.random() * at_s, "pause")
            yield Step(at_s + dice.random() * 5, "resume")


def _crashes_at_leases(dice: Random, length_s: float) -> Iterator[Step]:
    """More events than the day has, and crashes aimed at a lease that is on its way to a slow disk."""
    if dice.random() < 0.5:
        return
    number = 1000
    for _ in _some(dice, 3):
        events = [Event(number + at, "track", f"u{dice.randrange(20)}") for at in range(30)]
        number += 30
        yield _send(dice.random() * 0.2, "routed", events)
    yield Step(0.0, "slow_disk", {"up_to_s": dice.choice((0.1, 2)), "for_s": length_s})
    for at_s in (0.0, dice.random() * length_s):
        when = {"leases": dice.choice((1, 1, 1, 2, 3)), "decisions": dice.choice((2, 3, 5, 9)), "down_s": dice.random()}
        yield Step(at_s, "crash_at_lease", when)


def _replays(dice: Random, steps: list[Step], length_s: float) -> list[Step]:
    """The steps with more events that nobody takes, and with an operator who tries them again or gives them up."""
    if dice.random() >= MORE_SHARE:
        return steps
    fate: defaultdict[int, dict[str, Any]] = defaultdict(lambda: _fate(dice))
    steps = _each_event(steps, lambda event: event | fate[event["number"]])
    for _ in _some(dice, 3):
        by_id = {"by_id": dice.random() < 0.5}
        steps.append(Step(dice.random() * length_s * 1.5, "retry_dead", by_id))
    if dice.random() < 0.3:
        steps.append(Step(dice.random() * length_s * 1.5, "discard"))
    return steps


def _fate(dice: Random) -> dict[str, Any]:
    kind = dice.choice(("bad", "refused", "firewall"))
    return {"kind": kind, "user": f"odd{dice.randrange(2)}"} if dice.random() < 0.3 else {}


def _of_apps(dice: Random, steps: list[Step]) -> list[Step]:
    """The steps with each event from one of the apps, which have the same users."""
    app: defaultdict[int, str] = defaultdict(lambda: dice.choice([*APPS]))
    return _each_event(steps, lambda event: event | {"app": app[event["number"]]})


def _each_event(steps: list[Step], change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Step]:
    """The steps with every event that they send changed."""
    return [
        msgspec.structs.replace(step, args=step.args | {"events": [change(event) for event in step.args["events"]]})
        if step.what == "send"
        else step
        for step in steps
    ]


def _day(dice: Random) -> dict[str, Any]:
    return {
        "per_day": dice.choice((5, 12, 60, 990_000)),
        "pace": dice.choice(("burst", "burst", "spread")),
        "reserve_for_high": dice.choice((0, 0.1, 0.5)),
    }


def _padded(dice: Random, steps: list[Step]) -> tuple[list[Step], int]:
    """The steps with longer events, and so much room that the longest request fits if nothing else is there."""
    pad = dice.choice((100, 1_000, 3_000))
    most = max(len(step.args["events"]) for step in steps if step.what == "send")
    pages = EMPTY_PAGES + dice.choice((1, 3, 8)) + most * (pad + ROW_BYTES) * 3 // 2 // PAGE_BYTES
    return _each_event(steps, lambda event: event | {"pad": pad}), pages * PAGE_BYTES


def _config(dice: Random, troubles: set[str], per_second: float, per_day: int, kept: Keeping) -> str:
    people = '[people]\nusers = "upsert"\naccounts = "upsert"\n' if "people" in troubles else ""
    lines = [
        f"per_second = {per_second}",
        f"per_day = {per_day}",
        'order = "none"' if "no_order" in troubles else 'order = "user"',
        f"max_in_flight = {dice.choice((1, 2, 8, 128))}",
        f"retry_initial = {_text(dice, '100ms', '1s')}",
        f"retry_max = {_text(dice, '2s', '20s', '5m')}",
        f"stop_timeout = {_text(dice, '500ms', '10s')}",
        f"pace = {_text(dice, 'burst', 'burst', 'burst', 'spread')}",
        f"day = {_text(dice, 'rolling', 'rolling', 'utc')}",
        'max_age = "2m"' if "aged" in troubles else 'max_age = ""',
        f"reserve_for_high = {dice.choice((0, 0.1, 0.5))}",
    ]
    return (
        f'[px]\nproperty_key = "{PRODUCT}"\n'
        f"[outbox]\ndurability = {_text(dice, 'disk', 'process')}\n"
        f'max_bytes = {kept.max_bytes}\nwhen_full = "{kept.when_full}"\nkeep_delivered = "{kept.keep_delivered}"\n'
        f'keep_ids = "{kept.keep_ids}"\nkeep_dead = "{kept.keep_dead}"\n'
        f"[identity]\nmax_users = {kept.max_users}\n"
        '[mapping.event.Paid]\npriority = "high"\n' + people + "[deliver]\n" + "\n".join(lines) + "\n"
    )


def _text(dice: Random, *choices: str) -> str:
    return f'"{dice.choice(choices)}"'


def _knobs(dice: Random, troubles: set[str]) -> dict[str, int]:
    """Sizes of pages, windows and batches: with small ones a few dozen events are a deep backlog."""
    if "small" not in troubles:
        return {}
    return {
        "page_rows": dice.choice((1, 3, 10)),
        "ready_low": dice.choice((1, 3, 20)),
        "queue_max": dice.choice((1, 2, 4)),
        "waiting_max": dice.choice((11, 30, 20_000)),
        "commit_rows": dice.choice((1, 5, 5_000)),
        "newest_ids": dice.choice((1, 10, 20_000)),
        "wal_pages": dice.choice((2, 8, 64)),
    }


def _portions(dice: Random) -> dict[str, int]:
    """What share of the day's quota is leased at a time, and how many dead letters are looked at."""
    return {"lease_share": dice.choice((1, 2, 4, 100)), "scan_rows": dice.choice((1, 3, 5_000))}

"""Seeds of chaos: draws a fleet and its troubles, runs it, and returns every limit that was broken.

    .venv/bin/python tests/machines/fleet/fleet_chaos.py --seeds 3000 [--from 0] [--hosts 200]

prints one line for each seed that broke a limit, and a summary.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple

from fleet_engine import SIMULATED, EngineClient, EngineServer
from fleet_world import LIMITS, FleetWorld, SimEngine, SimHost

from sidecar.fleet.host import Demand

MOST_SENT, MOST_RECEIVED = 195, 199
TROUBLES = (
    *("dead", "wiped", "frozen", "failover", "split"),
    *("cut off", "hosts frozen", "hosts restarted", "all restarted", "clock", "slow network", "429"),
)
PROGRESS_EVERY = 100
LARGE_EVERY = 250
CALM_S = 14.0  # at the end of a run, without troubles


class Result(NamedTuple):
    """What a seed drew, what it broke, and the rate in its last seconds."""

    seed: int
    hosts: int
    troubles: tuple[str, ...]
    broken: tuple[str, ...]
    largest: int
    last_rate: float


def run_seed(client: EngineClient, seed: int, *, hosts: int = 0, script: str = SIMULATED) -> Result:
    """Run one seed; ``hosts`` fixes their number. A few seeds have 200 hosts, as each takes as long as ten others."""
    dice = Random(seed)
    drawn = dice.choice((2, 3, 5, 8, 8, 13, 20, 40, 60))
    hosts = hosts or (200 if seed % LARGE_EVERY == LARGE_EVERY - 1 else drawn)
    limits = LIMITS
    if dice.random() < 0.25:
        limits = limits._replace(per_day=dice.choice((2_000, 4_000, 6_000)), day=dice.choice(("rolling", "utc")))
    world = FleetWorld(client, hosts, seed=seed, limits=limits, script=script, start_within_s=dice.choice((0.5, 6.0)))
    for host in world.hosts:
        host.want = _draw_demand(dice)
    troubles = tuple(dice.choice(TROUBLES) for _ in range(dice.randint(1, 3)))
    begin_s, end_s = 15.0, 15.0
    for trouble in troubles:
        at_s = begin_s + dice.uniform(0, 12)
        world.at(at_s, lambda trouble=trouble: _begin(world, dice, trouble))
        end_s = max(end_s, at_s + 12)
    world.run(end_s + CALM_S)
    try:
        return _judge(world, seed, hosts, troubles, end_s)
    finally:
        world.engine.wipe()


def _draw_demand(dice: Random) -> Demand:
    kind = dice.random()
    if kind < 0.6:
        return Demand(normal=256)
    if kind < 0.75:
        return Demand(dice.randint(1, 50), 256)
    return Demand(normal=dice.randint(1, 5), low=dice.randint(0, 5))


def _some(world: FleetWorld, dice: Random) -> list[SimHost]:
    return dice.sample(world.hosts, max(1, int(len(world.hosts) * dice.choice((0.1, 0.5, 0.9)))))


def _begin(world: FleetWorld, dice: Random, trouble: str) -> None:
    engine, for_s = world.engine, dice.choice((0.3, 1.0, 3.0, 9.0, 11.5))
    match trouble:
        case "dead" | "wiped":
            engine.alive = False
            if trouble == "wiped":
                engine.wipe()
            world.at(world.now_s + for_s, engine.restart)
        case "frozen":
            engine.frozen_until_s = world.now_s + for_s
        case "failover":
            engine.save()
            lost_s, skew_s = dice.uniform(0, 3), dice.choice((0.0, 0.01, 120.0, -120.0))
            world.at(world.now_s + lost_s, lambda: _fail_over(world, for_s, skew_s))
        case "split":
            _split(world, dice, for_s)
        case "cut off":
            for host in _some(world, dice):
                host.cut_off = True
                world.at(world.now_s + for_s, lambda host=host: setattr(host, "cut_off", False))
        case "hosts frozen":
            for host in _some(world, dice):
                world.freeze(host, for_s)
        case "hosts restarted" | "all restarted":
            for host in world.hosts if trouble == "all restarted" else _some(world, dice):
                if not host.down:
                    world.restart(host, dice.uniform(0.1, 1.0))
        case "clock":
            engine.skew_s += dice.choice((-60.0, -1.0, -0.03, 0.03, 1.0, 60.0))
        case "slow network":
            for host in _some(world, dice):
                host.delay_s = (0.003, dice.choice((0.008, 0.03, 0.4)))
                world.at(world.now_s + for_s, lambda host=host: setattr(host, "delay_s", world.delay_s))
        case "429":
            for host in _some(world, dice):
                host.pace = dice.choice((0.9, 0.5, 0.0625))
                world.at(world.now_s + for_s, lambda host=host: setattr(host, "pace", 1.0))


def _fail_over(world: FleetWorld, for_s: float, skew_s: float) -> None:
    engine = world.engine
    engine.alive = False

    def back() -> None:
        engine.restore()
        engine.skew_s += skew_s
        engine.restart()

    world.at(world.now_s + for_s, back)


def _split(world: FleetWorld, dice: Random, for_s: float) -> None:
    """A replica becomes primary for some hosts; the old primary lives on, and nothing acknowledges its writes."""
    old = world.engine
    new = SimEngine(old.client, world.script)
    old.save()
    new.saved = [(key.replace(old.name, new.name), dump) for key, dump in old.saved]
    new.restore()
    new.skew_s = old.skew_s + dice.choice((0.0, 0.005))
    old.acknowledges = not world.waits_for_replicas
    moved = _some(world, dice)
    world.engine = new
    for host in moved:
        host.engine = new

    def heal() -> None:
        old.alive = False
        old.wipe()
        old.successor = new
        for host in world.hosts:
            host.engine = host.engine.latest()

    world.at(world.now_s + for_s, heal)


def _judge(world: FleetWorld, seed: int, hosts: int, troubles: tuple[str, ...], end_s: float) -> Result:
    broken = []
    largest = world.largest_second()
    if largest > MOST_SENT:
        broken.append(f"{largest} in a second as sent")
    if (received := world.largest_second(0.010)) > MOST_RECEIVED:
        broken.append(f"{received} in a second as received")
    if len(world.sent) > world.limits.per_day:
        broken.append(f"{len(world.sent)} of a day of {world.limits.per_day}")
    last = world.rate(world.now_s - 4, world.now_s)
    wanting = any(host.want.normal > 100 for host in world.hosts)
    if world.limits.per_day > 100_000 and wanting and last < 0.93 * world.limits.per_second:
        broken.append(f"only {last:.0f}/s at the end")
    return Result(seed, hosts, troubles, tuple(broken), largest, last)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--hosts", type=int, default=0)
    arguments = parser.parse_args()
    bad = largest = 0
    with tempfile.TemporaryDirectory() as folder, EngineServer(Path(folder)) as server:
        client = EngineClient(server.path)
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            result = run_seed(client, seed, hosts=arguments.hosts)
            largest = max(largest, result.largest)
            if result.broken:
                bad += 1
                print(result, flush=True)
            if (done := seed - arguments.first + 1) % PROGRESS_EVERY == 0:
                print(f"{done} seeds, {bad} broken", file=sys.stderr, flush=True)
    print(f"seeds={arguments.seeds} from={arguments.first} broken={bad} largest={largest}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

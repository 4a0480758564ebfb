"""Real daemons, real engines, the sandbox: one ceiling while engines and hosts are killed, frozen, replaced and split.

Each story runs in short form with one server; ``-m slow`` runs it with eight hosts and with both.
"""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fleet_engine import EngineServer, path_of
from fleet_processes import PX_SIDECAR, DelayingProxy, FleetProcesses, Replicated, until

pytestmark = pytest.mark.timeout(400)
MOST_RECEIVED = 199
CEILING = 190


def cases(short: str, hosts: int = 3) -> pytest.MarkDecorator:
    """One short case, and long ones with each server."""
    long = [pytest.param(name, 8, marks=pytest.mark.slow) for name in ("redis", "valkey")]
    return pytest.mark.parametrize(("name", "hosts"), [(short, hosts), *long])


class Scene:
    """An engine behind a proxy, and hosts that share."""

    def __init__(self, engine: EngineServer, proxy: DelayingProxy, fleet: FleetProcesses) -> None:
        self.engine, self.proxy, self.fleet = engine, proxy, fleet

    def wait_for_promises(self) -> None:
        """Wait until each host may send alone; an engine that knows nothing sets everything aside for ten seconds."""
        wait_for_promises(self.fleet)


def wait_for_promises(fleet: FleetProcesses) -> None:
    until(lambda: fleet.promised() >= 0.9 * 11.4 / fleet.hosts, 60, "each host has its promise")


def judge(fleet: FleetProcesses, within_s: float, *, duplicates: int = 0) -> None:
    """Wait until all events have arrived; the ceiling held, and none was lost or sent without need."""
    fleet.all_arrived(within_s)
    report = fleet.report()
    assert report["largest_second"] <= MOST_RECEIVED
    assert report["duplicates"] <= duplicates
    assert report["stored"] == fleet.sent + report["duplicates"]


@contextmanager
def staged(folder: Path, name: str, hosts: int, *options: str) -> Iterator[Scene]:
    with ExitStack() as stack:
        engine = stack.enter_context(EngineServer(folder, path_of(name), options))
        proxy = DelayingProxy(engine.path)
        stack.callback(proxy.close)
        fleet = FleetProcesses(folder, hosts, lambda _host: f'url = "{proxy.url}"')
        stack.callback(fleet.close)
        fleet.share()
        yield Scene(engine, proxy, fleet)


def members(fleet: FleetProcesses) -> list[dict[str, object]]:
    control = fleet.home(0) / "control.sock"
    shown = subprocess.run(
        [*PX_SIDECAR, "fleet", "status", "--json", "--control", str(control)], capture_output=True, check=True
    )
    found: list[dict[str, object]] = json.loads(shown.stdout)["members"]
    return found


@cases("redis", 8)
def test_the_ceiling_holds_through_the_loss_of_an_engine_and_its_data(tmp_path, name, hosts):
    with staged(tmp_path, name, hosts) as scene:
        fleet = scene.fleet
        fleet.send(0, 600)
        until(lambda: fleet.report()["distinct"] >= 600, 60, "one busy host uses the rate of all")
        scene.wait_for_promises()
        assert len(members(fleet)) == hosts
        fleet.send_all(2400 // hosts)
        scene.engine.kill()
        until(lambda: fleet.states() == {"alone"}, 60, "all hosts are alone")
        assert 5 <= fleet.rate(5) <= 15
        scene.engine.start()
        until(lambda: fleet.states() == {"sharing"}, 60, "all hosts share again")
        judge(fleet, 120)


@cases("valkey")
def test_the_ceiling_holds_through_the_death_of_an_engine_with_a_disk(tmp_path, name, hosts):
    """The engine comes back with its memory: the hosts continue at once."""
    with staged(tmp_path, name, hosts, "--appendonly", "yes", "--appendfsync", "always") as scene:
        fleet = scene.fleet
        scene.wait_for_promises()
        granted = sum(int(str(member["granted"])) for member in members(fleet))
        fleet.send_all(1500 // hosts)
        until(lambda: fleet.report()["distinct"] >= 300, 60, "they send")
        scene.engine.kill()
        scene.engine.start()
        fleet.share()
        judge(fleet, 60)
        assert sum(int(str(member["granted"])) for member in members(fleet)) >= granted + 900


@cases("redis")
def test_a_start_while_the_engine_is_away_sends_the_promise(tmp_path, name, hosts):
    with staged(tmp_path, name, hosts) as scene:
        fleet = scene.fleet
        scene.wait_for_promises()
        time.sleep(1.5)  # the record is written once a second
        scene.engine.kill()
        fleet.restart(0, signal.SIGKILL)
        fleet.restart(1, signal.SIGTERM)
        until(lambda: fleet.states() == {"alone"}, 60, "all hosts are alone, the new processes, too")
        fleet.send(0, 30)
        fleet.send(1, 30)
        judge(fleet, 60)
        scene.engine.start()
        fleet.share()
        fleet.send_all(200)
        judge(fleet, 60)


@cases("valkey")
def test_the_ceiling_holds_through_frozen_hosts_and_a_frozen_engine(tmp_path, name, hosts):
    with staged(tmp_path, name, hosts) as scene:
        fleet = scene.fleet
        scene.wait_for_promises()
        fleet.send_all(3600 // hosts)
        with fleet.frozen(range(hosts // 2)):
            time.sleep(9)  # longer than the lease
        scene.engine.process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        scene.engine.process.send_signal(signal.SIGCONT)
        judge(fleet, 120, duplicates=hosts * 128)


@cases("redis")
def test_the_ceiling_holds_through_a_rolling_restart_of_all_hosts(tmp_path, name, hosts):
    with staged(tmp_path, name, hosts) as scene:
        fleet = scene.fleet
        fleet.send_all(4000 // hosts)
        for host in range(hosts):
            fleet.restart(host, signal.SIGTERM)
            until(lambda host=host: fleet.fleet_facts(host)["state"] == "sharing", 60, f"host {host} shares again")
        judge(fleet, 60)


@cases("valkey")
def test_the_ceiling_holds_through_a_failover(tmp_path, name, hosts):
    """The primary dies; a replica with a follower of its own takes over."""
    with ExitStack() as stack:
        engines = Replicated(tmp_path, path_of(name), 2)
        stack.callback(engines.close)
        proxy = DelayingProxy(engines.servers[0].path)
        stack.callback(proxy.close)
        fleet = FleetProcesses(tmp_path, hosts, lambda _host: f'url = "{proxy.url}"\nreplicas = 1')
        stack.callback(fleet.close)
        fleet.share()
        wait_for_promises(fleet)
        fleet.send_all(3000 // hosts)
        until(lambda: fleet.report()["distinct"] >= 400, 60, "they send")
        engines.servers[0].kill()
        engines.promote(1, (2,))
        proxy.point_at(engines.servers[1].path)
        fleet.share()
        judge(fleet, 60)


@cases("redis", 4)
def test_the_ceiling_holds_while_a_stale_primary_lives_on(tmp_path, name, hosts):
    """A replica is promoted and takes the other replica along; half of the hosts still reach the old primary only."""
    with ExitStack() as stack:
        engines = Replicated(tmp_path, path_of(name), 2)
        stack.callback(engines.close)
        proxies = [DelayingProxy(engines.servers[0].path) for _ in range(2)]
        for proxy in proxies:
            stack.callback(proxy.close)
        fleet = FleetProcesses(tmp_path, hosts, lambda host: f'url = "{proxies[host % 2].url}"\nreplicas = 1')
        stack.callback(fleet.close)
        fleet.share()
        wait_for_promises(fleet)
        fleet.send_all(4000 // hosts)
        until(lambda: fleet.report()["distinct"] >= 400, 60, "they send")
        engines.promote(1, (2,))
        proxies[1].point_at(engines.servers[1].path)
        until(lambda: fleet.fleet_facts(0)["state"] == "alone", 60, "a host of the old primary is alone")
        assert "Only 0 of 1 replicas" in str(fleet.fleet_facts(0)["problem"])
        others = range(1, hosts, 2)
        until(lambda: {fleet.fleet_facts(host)["state"] for host in others} == {"sharing"}, 30, "the others share")
        assert fleet.rate(4) <= CEILING + 5
        proxies[0].point_at(engines.servers[1].path)
        fleet.share()
        judge(fleet, 60)

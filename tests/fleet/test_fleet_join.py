"""What a host joins its fleet with: the configuration and the PX key that are in force."""

from contextlib import closing

import msgspec

from sidecar.clock import SystemClock
from sidecar.config import Secret, load_text
from sidecar.fleet.join import join_fleet
from sidecar.outbox import Store

CONFIG = load_text('[fleet]\nurl = "unix:///run/none.sock"\nname = "f"\n')


def test_the_limits_are_those_of_configuration_and_key_in_force(tmp_path):
    """The fingerprint was that of the key at the start: after a new key had been read, a host that started later was refused."""
    in_force = {"key": Secret("first-key"), "config": CONFIG}
    with closing(Store(tmp_path / "outbox.db")) as store:
        build = join_fleet(store, SystemClock(), key=lambda: in_force["key"], password=Secret(""), random=lambda: 0.5)
        limits = build(lambda: in_force["config"]).machine._limits
        first = limits()
        assert limits() is first, "computed once"
        in_force["key"] = Secret("second-key")
        second = limits()
        in_force["config"] = msgspec.structs.replace(CONFIG, deliver=load_text("[deliver]\nper_second = 100\n").deliver)
        third = limits()
    assert second.identity != first.identity
    assert (second.per_second, third.per_second) == (190, 100)
    assert third.identity == second.identity

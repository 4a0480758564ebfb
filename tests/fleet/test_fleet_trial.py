"""What `check` says about the engine's distance and set-up."""

import pytest

from sidecar.config import FleetConfig
from sidecar.fleet.connection import EngineInfo
from sidecar.fleet.trial import judge


@pytest.mark.parametrize(
    ("fields", "took_s", "replicas", "level", "words"),
    [
        ({}, 0.001, 0, "ok", "an answer takes 1.0 ms"),
        ({}, 0.040, 0, "error", "takes 40 ms"),
        ({"connected_slaves": "1"}, 0.001, 0, "error", "set fleet.replicas = 1"),
        ({}, 0.001, 1, "error", "no answer would count"),
        ({"connected_slaves": "2"}, 0.001, 1, "ok", "the ceiling holds through a failover"),
        ({}, 0.001, 0, "ok", "there is no failover"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "1000"}, 0.001, 0, "warning", "set noeviction"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, 0.001, 0, "ok", "it forgets nothing"),
        ({"maxmemory_policy": "noeviction", "maxmemory": "1000"}, 0.001, 0, "ok", "if it is full it refuses calls"),
        ({"aof_enabled": "1"}, 0.001, 0, "ok", "still knows promises"),
        ({"aof_enabled": "0"}, 0.001, 0, "ok", "nothing is sent for 2 s"),
    ],
)
def test_check_says_what_the_set_up_means(fields, took_s, replicas, level, words):
    config = FleetConfig(url="redis://h", name="t", replicas=replicas)
    trials = list(judge(EngineInfo("run", "7.0", fields), took_s, config))
    assert [trial.level for trial in trials if words in trial.message] == [level]
    assert len(trials) == 4

"""Try the engine without joining the fleet, for ``px-sidecar check``: reach, distance, rights, memory, replicas."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from sidecar.config import FleetConfig, Secret
from sidecar.errors import SidecarError
from sidecar.fleet.connection import EngineConnection, EngineInfo
from sidecar.fleet.host import MOST_UNCERTAIN_S, TIMEOUT_S

__all__ = ["Trial", "judge", "try_engine"]

READINGS: Final = 9
# Every command of the script that writes or reads, on a key of its own that is deleted again.
RIGHTS: Final = """
local key = KEYS[1]
redis.call('DEL', key)
redis.call('HSET', key, 'a', '1')
redis.call('HINCRBY', key, 'a', '1')
redis.call('HMGET', key, 'a')
redis.call('HGET', key, 'a')
redis.call('HGETALL', key)
redis.call('HLEN', key)
redis.call('HDEL', key, 'a')
redis.call('ZADD', key, '1', 'a')
redis.call('ZCARD', key)
redis.call('ZSCORE', key, 'a')
redis.call('ZRANGEBYSCORE', key, '-inf', '+inf')
redis.call('ZREMRANGEBYSCORE', key, '5', '6')
redis.call('PEXPIRE', key, '1000')
redis.call('ZREM', key, 'a')
return redis.call('TIME')
"""


class Trial(NamedTuple):
    """The result of one check, as ``px-sidecar check`` shows it."""

    level: Literal["ok", "warning", "error"]
    message: str


async def try_engine(config: FleetConfig, password: Secret) -> list[Trial]:
    """Connect, read the clock, use every right, and judge how the engine is set up."""
    connection = EngineConnection(config, password)
    try:
        info = await connection.connect()
        took_s = []
        for _ in range(READINGS):
            began_s = time.monotonic()
            await connection.time_us(TIMEOUT_S)
            took_s.append(time.monotonic() - began_s)
        digest = hashlib.sha1(RIGHTS.encode(), usedforsecurity=False).hexdigest()
        await connection.run_script(
            digest,
            RIGHTS,
            [f"{{px:{config.name}}}:check"],
            [],
            replicas=config.replicas,
            timeout_s=TIMEOUT_S,
        )
    except SidecarError as error:
        return [Trial("error", str(error))]
    finally:
        await connection.aclose()
    return list(judge(info, min(took_s), config))


def judge(info: EngineInfo, took_s: float, config: FleetConfig) -> Iterator[Trial]:
    """Yield what the engine's distance and set-up mean here; ``took_s`` is the shortest round trip."""
    if took_s > MOST_UNCERTAIN_S:
        yield Trial(
            "error",
            f"An answer of the engine takes {1000 * took_s:.0f} ms, at most 25 ms can be used; use an engine in this region.",
        )
    else:
        yield Trial("ok", f"Version {info.version}, an answer takes {1000 * took_s:.1f} ms; all rights are there.")
    yield _judge_memory(info.fields)
    if info.fields.get("aof_enabled") == "1":
        yield Trial("ok", "It appends to a file: after a restart it still knows promises and the day.")
    else:
        yield Trial(
            "ok",
            "It does not append to a file: after a restart the hosts bring back what matters, and nothing is sent for 2 s.",
        )
    yield _judge_replicas(int(info.fields.get("connected_slaves", "0") or 0), config.replicas)


def _judge_memory(fields: Mapping[str, str]) -> Trial:
    policy, limit = fields.get("maxmemory_policy", "noeviction"), fields.get("maxmemory", "0")
    if limit == "0":
        return Trial("ok", "Its memory has no limit (maxmemory is 0): it forgets nothing.")
    if policy == "noeviction":
        return Trial(
            "ok", "maxmemory-policy is noeviction: if it is full it refuses calls, and the hosts send their promises."
        )
    return Trial(
        "warning",
        f"maxmemory-policy is {policy}: when memory is short the engine forgets promises and the day; set noeviction.",
    )


def _judge_replicas(there: int, wanted: int) -> Trial:
    if there and not wanted:
        return Trial(
            "error",
            f"The engine has {there} replicas and fleet.replicas is 0: after a failover a stale primary could hand out "
            "the rate a second time; set fleet.replicas = 1.",
        )
    if wanted > there:
        return Trial(
            "error",
            f"fleet.replicas is {wanted} and the engine has {there}: no answer would count; lower it or add replicas.",
        )
    if wanted:
        return Trial(
            "ok", f"It has {there} replicas, and answers wait for {wanted}: the ceiling holds through a failover."
        )
    return Trial("ok", "It has no replicas: while it is away each host sends its promise; there is no failover.")

"""Recording: some lives of one outbox, one after the other, and everything that happened to its files.

Lives end by themselves, by a kill in the middle of a write, or by a power cut whose remains the next life begins with.
After each life the model of the disk is held against the real files: a recording that does not explain them to the
last byte is refused.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import msgspec
from pl_account import Account, Broken
from pl_disk import Disk
from pl_events import Life
from pl_trace import NOT_KEPT, Op, parse, strace_command

__all__ = ["LIVES", "Recording", "cannot_record", "dice_of", "in_memory", "record"]

PROGRAM = Path(__file__).with_name("pl_scenario.py")
ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 9  # of each client, in one life
LIVES = 6


class Recording(NamedTuple):
    """What was recorded, and what it was recorded with."""

    ops: list[Op]
    seed: int
    lives: int
    durability: str


def cannot_record() -> str | None:
    """Why nothing can be recorded here, or None."""
    if shutil.which("strace") is None:
        return "recording needs strace"
    tried = subprocess.run([*strace_command(Path(os.devnull)), "true"], capture_output=True, text=True, timeout=30)
    return f"strace cannot trace here: {tried.stderr.strip()}" if tried.returncode else None


def in_memory() -> str | None:
    """Where files are cheap to write again and again."""
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


def dice_of(seed: int, at: int, turn: int) -> Random:
    """What decides what a cut leaves: the same for the same seed, place and turn."""
    return Random(f"{seed}/{at}/{turn}")


def record(seed: int, *, lives: int = LIVES, durability: Literal["disk", "process"] = "disk") -> Recording:
    """Play and record; ``lives`` says how long it is."""
    dice, disk, account = Random(seed), Disk(), Account()
    ops: list[Op] = []
    with TemporaryDirectory(prefix="pxs-", dir=in_memory()) as parent:
        folder = Path(parent) / "o"
        folder.mkdir()
        for number in range(lives):
            life = _life(dice, seed, number, account, durability)
            for op in _play(life, folder, disk):
                account.hear(op)
                ops.append(op)
            if life.power_cut:
                ops.append(Op("cut", text=str(len(ops))))
                left = disk.cut(dice_of(seed, len(ops) - 1, 0))
                left.write_to(folder)
                disk.load(left.files)
    return Recording(ops, seed, lives, durability)


def _life(dice: Random, seed: int, number: int, account: Account, durability: Literal["disk", "process"]) -> Life:
    kind = ("close", "kill", "drain", "cut", "kill", "cut")[number % 6]
    if kind == "cut" and durability == "process":
        kind = "kill"  # what is lost then was promised, and the next life would be told of holes
    kill = dice.randint(100, 700) if kind in ("kill", "cut") else 0
    return Life(
        seed=seed,
        number=number,
        rounds=ROUNDS,
        durability=durability,
        wal_bytes=dice.choice((2**18, 2**18, 2**19, 2**24)),
        drain=kind == "drain",
        kill_at_write=kill,
        power_cut=kind == "cut",
        first=max(account.possible, default=0) + 1,
        again=tuple(account.unanswered()),
        note=account.asked_note,
    )


def _play(life: Life, folder: Path, disk: Disk) -> list[Op]:
    """One life; what happened. Raises Broken if it failed, as after a crash that is taken for damage."""
    log = folder.with_name("strace.log")
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    command = [*strace_command(log, kill_at_write=life.kill_at_write), sys.executable, "-B", str(PROGRAM), str(folder)]
    ended = subprocess.run(
        [*command, json.dumps(msgspec.to_builtins(life))], capture_output=True, text=True, env=environ, timeout=600
    )
    if ended.returncode not in (0, *((-9, 137) if life.kill_at_write else ())):
        where = f"life {life.number} of seed {life.seed} failed ({ended.returncode})"
        raise Broken(f"{where}: {ended.stderr.strip().splitlines()[-1:]}\n{ended.stderr[-2000:]}")
    ops = [Op("begin", text=str(life.number)), *parse(log, folder)]
    log.unlink()
    real = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(NOT_KEPT)}
    sure = [op for op in ops if op.sure]
    for op in sure:
        disk.do(op)
    if len(sure) < len(ops) and disk.now() != real:  # the write at which it was killed has been done
        disk.do(ops[-1])
        sure = ops
    if disk.now() != real:
        raise AssertionError(f"the recording of life {life.number} of seed {life.seed} does not explain the files")
    return sure

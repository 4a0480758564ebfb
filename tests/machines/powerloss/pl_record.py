"""Record several processes on one outbox, one after another, and every change of its files.

A process ends by itself, by a kill within a write, or by a power cut; the next process starts with the remains. After each
process the model of the disk is compared with the real files: a recording that does not explain every byte is refused.
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
from pl_disk import Disk
from pl_events import ProcessPlan
from pl_promises import Broken, Promises
from pl_trace import NOT_KEPT, Op, parse, strace_command

__all__ = ["PROCESSES", "Recording", "cut_rng", "in_memory", "record", "why_not_recordable"]

PROGRAM = Path(__file__).with_name("pl_scenario.py")
ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 9  # per client and process
PROCESSES = 6


class Recording(NamedTuple):
    """The recorded operations, and the parameters of the recording."""

    ops: list[Op]
    seed: int
    processes: int
    durability: str


def why_not_recordable() -> str | None:
    """Return why recording is not possible here, or None."""
    if shutil.which("strace") is None:
        return "recording needs strace"
    probe = subprocess.run([*strace_command(Path(os.devnull)), "true"], capture_output=True, text=True, timeout=30)
    return f"strace cannot trace here: {probe.stderr.strip()}" if probe.returncode else None


def in_memory() -> str | None:
    """Return a folder in memory for files that are rewritten often, or None."""
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


def cut_rng(seed: int, at: int, repetition: int) -> Random:
    """Return the generator that decides the remains of a cut: the same for the same seed, position and repetition."""
    return Random(f"{seed}/{at}/{repetition}")


def record(seed: int, *, processes: int = PROCESSES, durability: Literal["disk", "process"] = "disk") -> Recording:
    """Run and record ``processes`` processes. Raises Broken if one of them fails."""
    rng, disk, promises = Random(seed), Disk(), Promises()
    ops: list[Op] = []
    with TemporaryDirectory(prefix="pxs-", dir=in_memory()) as parent:
        folder = Path(parent) / "o"
        folder.mkdir()
        for number in range(processes):
            plan = _plan(rng, seed, number, promises, durability)
            for op in _run_process(plan, folder, disk):
                promises.record(op)
                ops.append(op)
            if plan.power_cut:
                ops.append(Op("cut", text=str(len(ops))))
                remains = disk.cut(cut_rng(seed, len(ops) - 1, 0))
                remains.write_to(folder)
                disk.load(remains.files)
    return Recording(ops, seed, processes, durability)


def _plan(
    rng: Random, seed: int, number: int, promises: Promises, durability: Literal["disk", "process"]
) -> ProcessPlan:
    kind = ("close", "kill", "drain", "cut", "kill", "cut")[number % 6]
    if kind == "cut" and durability == "process":
        kind = "kill"  # a cut may lose answered events then, and the next process would report gaps
    kill = rng.randint(100, 700) if kind in ("kill", "cut") else 0
    return ProcessPlan(
        seed=seed,
        number=number,
        rounds=ROUNDS,
        durability=durability,
        wal_bytes=rng.choice((2**18, 2**18, 2**19, 2**24)),
        drain=kind == "drain",
        kill_at_write=kill,
        power_cut=kind == "cut",
        first=max(promises.possible, default=0) + 1,
        again=tuple(promises.unanswered()),
        note=promises.requested_note,
    )


def _run_process(plan: ProcessPlan, folder: Path, disk: Disk) -> list[Op]:
    """Run one process and return its operations. Raises Broken if it fails, as if a crash is reported as damage."""
    log = folder.with_name("strace.log")
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    command = [*strace_command(log, kill_at_write=plan.kill_at_write), sys.executable, "-B", str(PROGRAM), str(folder)]
    ended = subprocess.run(
        [*command, json.dumps(msgspec.to_builtins(plan))], capture_output=True, text=True, env=environ, timeout=600
    )
    if ended.returncode not in (0, *((-9, 137) if plan.kill_at_write else ())):
        where = f"process {plan.number} of seed {plan.seed} failed ({ended.returncode})"
        raise Broken(f"{where}: {ended.stderr.strip().splitlines()[-1:]}\n{ended.stderr[-2000:]}")
    ops = [Op("begin", text=str(plan.number)), *parse(log, folder)]
    log.unlink()
    real = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(NOT_KEPT)}
    certain = [op for op in ops if op.certain]
    for op in certain:
        disk.apply(op)
    if len(certain) < len(ops) and disk.now() != real:  # the write at which it was killed did happen
        disk.apply(ops[-1])
        certain = ops
    if disk.now() != real:
        raise AssertionError(f"the recording of process {plan.number} of seed {plan.seed} does not explain the files")
    return certain

"""The results of a run: figures for the table, series for the plots, and a description of the machine."""

import os
import platform
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec

__all__ = ["Figure", "Results", "machine", "percentile", "rounded", "spread"]


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured number: a row of the table.

    ``limit`` is the number it is compared with, measured in the same run, ``of`` describes it, and ``ratio`` is measured
    divided by limit. ``target`` bounds the ratio (without a limit: the number) on the side that ``bound`` names.
    """

    benchmark: str
    name: str
    measured: float
    unit: str
    limit: float | None = None
    of: str = ""
    target: float | None = None
    bound: Literal["least", "most"] = "least"
    note: str = ""
    repeats: list[float] = []

    @property
    def ratio(self) -> float | None:
        """Measured divided by limit; None without a limit."""
        return None if not self.limit else self.measured / self.limit

    @property
    def bound_text(self) -> str:
        """The target as text, as in ``≥ 0.8``; empty without one."""
        return "" if self.target is None else f"{'≥' if self.bound == 'least' else '≤'} {self.target:g}"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        value = self.measured if self.limit is None else self.measured / self.limit
        return value >= self.target if self.bound == "least" else value <= self.target


class Results(msgspec.Struct, kw_only=True):
    """All results of one run: figures, series for the plots by name, and the machine."""

    machine: dict[str, Any]
    quick: bool = False
    figures: list[Figure] = []
    series: dict[str, Any] = {}

    def add(self, benchmark: str, name: str, values: float | Sequence[float], unit: str, **more: Any) -> Figure:
        """Add a figure: the median of the values; all values are kept in ``repeats``."""
        repeats = [values] if isinstance(values, int | float) else list(values)
        figure = Figure(
            benchmark=benchmark,
            name=name,
            measured=median(repeats),
            unit=unit,
            repeats=repeats if len(repeats) > 1 else [],
            **more,
        )
        self.figures.append(figure)
        return figure

    def as_json(self) -> bytes:
        """Return everything as JSON, with ``ratio`` and ``met`` computed."""
        rows = [msgspec.to_builtins(figure) | {"ratio": figure.ratio, "met": figure.met} for figure in self.figures]
        document = {"machine": self.machine, "quick": self.quick, "figures": rows, "series": self.series}
        return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a ``share`` (0 to 1) of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float], points: int = 200) -> list[float]:
    """Return the distribution as evenly spaced percentiles, for a plot."""
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, round(at / points * (len(ordered) - 1)))] for at in range(points + 1)]


def rounded(value: float) -> str:
    """Return a number as text: four digits, or a whole number from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def machine() -> dict[str, Any]:
    """Describe the machine, without its host name."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "load_before": round(os.getloadavg()[0], 2),
    }

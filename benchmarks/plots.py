"""The plots: rate against the ceiling, latency distributions, cost by size of the backlog."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.results import Results

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from PIL import Image

__all__ = ["draw"]

# Distinguishable with every kind of color vision, on white (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY = "#777777"
LATENCIES_MS = (5, 100, 500)
DPI = 110
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def draw(results: Results, folder: Path) -> None:
    """Draw a plot for each series in the results into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, tuple[str, Callable[[dict[str, Any]], Plot]]] = {
        "ceiling": ("rate_100", _ceiling),
        "latency": ("answer_latency_ms", _latency),
        "scale": ("scale", _scale),
        "fleet": ("fleet", _fleet),
    }
    with plt.rc_context(STYLE):
        for name, (needs, plot) in plots.items():
            if needs in results.series:
                image = plot(results.series)
                _save(image, folder / f"{name}.png")
                plt.close(image)


def _save(plot: Plot, path: Path) -> None:
    """Save as a PNG with 64 colors, which halves its size without a visible difference."""
    plot.savefig(path, dpi=DPI)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def _ceiling(series: dict[str, Any]) -> Plot:
    """Plot arrivals at PX per second; one panel per latency, because the lines would overlap."""
    plot, axes = plt.subplots(3, 1, figsize=(7.2, 3.9), sharex=True, sharey=True, layout="constrained")
    for at, latency_ms in enumerate(LATENCIES_MS):
        rates, panel = series[f"rate_{latency_ms}"], axes[at]
        panel.stairs(rates, color=COLORS[at], fill=True, alpha=0.25)
        panel.stairs(rates, color=COLORS[at], linewidth=1.6)
        for height, color, style, text in ((190, "black", "-", "per_second"), (200, GREY, (0, (4, 3)), "PX allows")):
            panel.axhline(height, color=color, linewidth=0.8, linestyle=style)
            up = {190: "top", 200: "bottom"}[height]
            panel.annotate(
                f"{text} {height}", (1.01, height), xycoords=("axes fraction", "data"), color=color, va=up, fontsize=8
            )
        panel.set_title(f"PX answers in {latency_ms} ms")
        panel.set_ylim(0, 225)
        panel.set_yticks([0, 100])
        panel.grid(axis="x", visible=False)
    axes[0].set_xlim(0, len(series["rate_100"]))
    axes[1].set_ylabel("events arriving at PX per second")
    axes[2].set_xlabel("seconds since the first arrival")
    return plot


def _latency(series: dict[str, Any]) -> Plot:
    plot, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    for at, (transport, spread) in enumerate(series["answer_latency_ms"].items()):
        _distribution(left, spread, transport, COLORS[at])
    left.set_title("one event at a time: answer, on disk")
    left.set_ylabel("share of events")
    for at, latency_ms in enumerate(LATENCIES_MS):
        if spread := series.get(f"acceptance_to_px_ms_{latency_ms}"):
            _distribution(right, spread, f"PX answers in {latency_ms} ms", COLORS[at])
    right.set_title("from the answer to the arrival at PX, 100/s")
    for panel in (left, right):
        panel.set_xlabel("ms (logarithmic)")
        panel.legend(loc="lower right")
    return plot


def _distribution(panel: Axes, spread: list[float], label: str, color: str) -> None:
    """Plot a cumulative distribution; values below 0.1 ms are drawn there (PX may be faster than the answer)."""
    shares = [at / (len(spread) - 1) for at in range(len(spread))]
    panel.plot([max(value, 0.1) for value in spread], shares, color=color, label=label, linewidth=1.6)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _at: f"{value:g}")
    panel.set_ylim(0, 1.02)


def _scale(series: dict[str, Any]) -> Plot:
    """Plot four figures over the number of pending events; the dashed line is the target."""
    figures_by_size = {int(size): figures for size, figures in series["scale"].items() if int(size)}
    empty = series["scale"]["0"]
    sizes = sorted(figures_by_size)
    allowed = 1.2 * empty["ready"]
    panels: tuple[tuple[str, str, list[tuple[str, str]], float | None], ...] = (
        ("start to ready, s", "s", [("ready", "")], allowed),
        ("resident memory, MB", "MB", [("rss", "waiting"), ("open drain rss", "draining flat out")], 70.0),
        ("delivered, events/s", "/s", [("drain", "default pace"), ("open drain", "bucket opened wide")], None),
        ("status, ms", "ms", [("status", "GET /status")], None),
    )
    plot, axes = plt.subplots(1, 4, figsize=(9.2, 2.5), layout="constrained")
    for panel, (title, _unit, lines, bound) in zip(axes, panels, strict=True):
        for at, (key, label) in enumerate(lines):
            points = [(size, figures_by_size[size][key]) for size in sizes if key in figures_by_size[size]]
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=COLORS[at], label=label, markersize=4)
        if bound is not None:
            panel.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            panel.annotate("target", (sizes[0], bound), color=GREY, va="bottom", fontsize=8)
        panel.set_title(title)
        panel.set_xscale("log")
        highest = max(figures_by_size[size][key] for size in sizes for key, _ in lines if key in figures_by_size[size])
        panel.set_ylim(0, 1.3 * max(highest, bound or 0))
        panel.set_xticks([10**3, 10**5, 10**7], ["1,000", "100,000", "10 M"])
        panel.minorticks_off()
        if len(lines) > 1:
            panel.legend(fontsize=8, loc="lower left" if bound else "center left")
    plot.supxlabel("events pending", fontsize=9)
    return plot


def _fleet(series: dict[str, Any]) -> Plot:
    """Plot four figures over the number of busy hosts: real daemons, and the simulation beside them."""
    panels: tuple[tuple[str, tuple[str, ...], tuple[float, ...], tuple[float, float]], ...] = (
        ("used, % of 190/s", ("used",), (99,), (90, 101)),
        ("largest second received", ("largest",), (199,), (180, 205)),
        ("share of a host / mean", ("least", "most"), (0.9, 1.1), (0.8, 1.2)),
        ("calls per second", ("calls",), (), (0, 250)),
    )
    plot, axes = plt.subplots(1, 4, figsize=(9.2, 2.5), layout="constrained")
    for panel, (title, keys, bounds, limits) in zip(axes, panels, strict=True):
        for color, style, source in ((COLORS[1], "--", "simulated"), (COLORS[0], "o-", "real")):
            label = {"simulated": "simulated", "real": "real daemons"}[source]
            for key in keys:
                points = sorted((int(hosts), figures[key]) for hosts, figures in series["fleet"][source].items())
                panel.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4)
                label = ""
        for bound in bounds:
            panel.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        panel.set_title(title)
        panel.set_xscale("log")
        # Wider than usual rather than without a point: a run on a busy machine must look like one.
        shown = [figures[key] for curve in series["fleet"].values() for figures in curve.values() for key in keys]
        panel.set_ylim(min(limits[0], *shown), max(limits[1], *shown))
        panel.set_xticks([1, 8, 60, 200], ["1", "8", "60", "200"])
        panel.minorticks_off()
    axes[-1].legend(fontsize=8, loc="upper left")
    plot.supxlabel("busy hosts; dashed lines are targets", fontsize=9)
    return plot

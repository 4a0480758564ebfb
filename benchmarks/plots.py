"""The pictures: rate against the ceiling, latency distributions, cost against the size of the backlog."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.results import Results

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from PIL import Image

__all__ = ["draw"]

# Told apart with every kind of colour vision, on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
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
    """Draw what the results hold the series of, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[str, Callable[[dict[str, Any]], Picture]]] = {
        "ceiling": ("rate_100", _ceiling),
        "latency": ("answer_latency_ms", _latency),
        "scale": ("scale", _scale),
    }
    with plt.rc_context(STYLE):
        for name, (needs, picture) in pictures.items():
            if needs in results.series:
                drawn = picture(results.series)
                _save(drawn, folder / f"{name}.png")
                plt.close(drawn)


def _save(picture: Picture, path: Path) -> None:
    """As a PNG of 64 colours: half the size, and nobody sees it."""
    picture.savefig(path, dpi=DPI)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def _ceiling(series: dict[str, Any]) -> Picture:
    """Arrivals at PX in each second, for each latency: one panel each, since the lines would lie on each other."""
    picture, axes = plt.subplots(3, 1, figsize=(7.2, 3.9), sharex=True, sharey=True, layout="constrained")
    for at, latency_ms in enumerate(LATENCIES_MS):
        rates, panel = series[f"rate_{latency_ms}"], axes[at]
        panel.stairs(rates, color=COLOURS[at], fill=True, alpha=0.25)
        panel.stairs(rates, color=COLOURS[at], linewidth=1.6)
        for height, colour, style, text in ((190, "black", "-", "per_second"), (200, GREY, (0, (4, 3)), "PX allows")):
            panel.axhline(height, color=colour, linewidth=0.8, linestyle=style)
            up = {190: "top", 200: "bottom"}[height]
            panel.annotate(
                f"{text} {height}", (1.01, height), xycoords=("axes fraction", "data"), color=colour, va=up, fontsize=8
            )
        panel.set_title(f"PX answers in {latency_ms} ms")
        panel.set_ylim(0, 225)
        panel.set_yticks([0, 100])
        panel.grid(axis="x", visible=False)
    axes[0].set_xlim(0, len(series["rate_100"]))
    axes[1].set_ylabel("events arriving at PX per second")
    axes[2].set_xlabel("seconds since the first arrival")
    return picture


def _latency(series: dict[str, Any]) -> Picture:
    picture, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    for at, (way, spread) in enumerate(series["answer_latency_ms"].items()):
        _distribution(left, spread, way, COLOURS[at])
    left.set_title("one event at a time: answer, on disk")
    left.set_ylabel("share of events")
    for at, latency_ms in enumerate(LATENCIES_MS):
        if spread := series.get(f"acceptance_to_px_ms_{latency_ms}"):
            _distribution(right, spread, f"PX answers in {latency_ms} ms", COLOURS[at])
    right.set_title("from the answer to the arrival at PX, 100/s")
    for panel in (left, right):
        panel.set_xlabel("ms (logarithmic)")
        panel.legend(loc="lower right")
    return picture


def _distribution(panel: Axes, spread: list[float], label: str, colour: str) -> None:
    """The share of values up to each; what is below 0.1 ms is drawn there (PX may be faster than the answer)."""
    shares = [at / (len(spread) - 1) for at in range(len(spread))]
    panel.plot([max(value, 0.1) for value in spread], shares, color=colour, label=label, linewidth=1.6)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _at: f"{value:g}")
    panel.set_ylim(0, 1.02)


def _scale(series: dict[str, Any]) -> Picture:
    """Four panels over the number of pending events; the dashed line is what the target allows."""
    found = {int(size): figures for size, figures in series["scale"].items() if int(size)}
    empty = series["scale"]["0"]
    sizes = sorted(found)
    allowed = 1.2 * empty["ready"]
    panels: tuple[tuple[str, str, list[tuple[str, str]], float | None], ...] = (
        ("start to ready, s", "s", [("ready", "")], allowed),
        ("resident memory, MB", "MB", [("rss", "waiting"), ("open drain rss", "draining flat out")], 70.0),
        ("delivered, events/s", "/s", [("drain", "default pace"), ("open drain", "bucket opened wide")], None),
        ("status, ms", "ms", [("status", "GET /status")], None),
    )
    picture, axes = plt.subplots(1, 4, figsize=(9.2, 2.5), layout="constrained")
    for panel, (title, _unit, lines, bound) in zip(axes, panels, strict=True):
        for at, (key, label) in enumerate(lines):
            points = [(size, found[size][key]) for size in sizes if key in found[size]]
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=COLOURS[at], label=label, markersize=4)
        if bound is not None:
            panel.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            panel.annotate("target", (sizes[0], bound), color=GREY, va="bottom", fontsize=8)
        panel.set_title(title)
        panel.set_xscale("log")
        highest = max(found[size][key] for size in sizes for key, _ in lines if key in found[size])
        panel.set_ylim(0, 1.3 * max(highest, bound or 0))
        panel.set_xticks([10**3, 10**5, 10**7], ["1,000", "100,000", "10 M"])
        panel.minorticks_off()
        if len(lines) > 1:
            panel.legend(fontsize=8, loc="lower left" if bound else "center left")
    picture.supxlabel("events pending", fontsize=9)
    return picture

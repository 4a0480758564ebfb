"""The plot of a soak: one small panel per figure over the whole run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

COLOR = "#0072B2"
PANELS = (
    ("rss_mb", "resident memory, MB"),
    ("file_mb", "outbox.db, MB"),
    ("wal_mb", "WAL, MB"),
    ("descriptors", "open descriptors"),
    ("p50_ms", "time to accept, median, ms"),
    ("p99_ms", "time to accept, 99th percentile, ms"),
    ("delivered_per_s", "delivered per second"),
    ("pending", "pending events"),
)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}


def draw(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the samples as a PNG with few colors, which keeps it small."""
    in_minutes = samples[-1]["t_s"] < 3 * 3600
    times = [sample["t_s"] / (60 if in_minutes else 3600) for sample in samples]
    with plt.rc_context(STYLE):
        plot, axes = plt.subplots(4, 2, figsize=(8.0, 6.4), sharex=True, layout="constrained")
        for (name, title), panel in zip(PANELS, axes.flat, strict=True):
            panel.plot(times, [sample[name] for sample in samples], color=COLOR, linewidth=0.8)
            panel.set_title(title)
            panel.set_ylim(bottom=0)
        for panel in axes[-1]:
            panel.set_xlabel("minutes" if in_minutes else "hours")
        plot.savefig(path, dpi=100)
        plt.close(plot)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(24)
    small.save(path, optimize=True)

"""The live picture of the demo, and its last line."""

import time
from collections import deque

import msgspec
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sidecar.units import show_count, show_duration

__all__ = ["Progress"]

BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"
BAR_EVERY_S = 0.5
WIDTH = 80


class Progress(msgspec.Struct):
    """The current figures of the demo, and their rendering."""

    ceiling_per_s: int
    events: int
    ascii_only: bool = False
    started_s: float = 0.0
    accepted: int = 0
    delivered: int = 0
    dropped: int = 0
    dead: int = 0
    duplicates: int = 0
    lost: int = 0
    largest_second: int = 0
    finished: bool = False
    phase: str = ""
    log_lines: list[tuple[float, str]] = []
    _rates: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=58))
    _last: tuple[float, int] = (0.0, 0)

    def start(self) -> None:
        """Start the clock of the demo."""
        self.started_s = time.monotonic()
        self._last = (self.started_s, 0)

    def log(self, text: str) -> None:
        """Add a line with the elapsed time under the figures."""
        self.log_lines.append((time.monotonic() - self.started_s, text))

    def record_delivered(self, delivered: int) -> None:
        """Record the number of events in the sandbox now; the rate is the difference since the last bar."""
        now_s = time.monotonic()
        since_s, before = self._last
        if now_s - since_s >= BAR_EVERY_S:
            self._rates.append((delivered - before) / (now_s - since_s))
            self._last = (now_s, delivered)
        self.delivered = delivered

    def outcome_line(self) -> str:
        """Return the last line: the outcomes of all accepted events."""
        return (
            f"accepted={self.accepted} delivered={self.delivered} dropped={self.dropped} dead={self.dead} "
            f"duplicates={self.duplicates} lost={self.lost}"
        )

    def __rich__(self) -> RenderableType:
        figures = Table.grid(expand=True)
        for _ in range(4):
            figures.add_column(justify="center", ratio=1)
        figures.add_row(*(Text(label, "dim") for label in ("accepted", "pending", "delivered", "rate now")))
        pending = max(0, self.accepted - self.delivered)
        rate = self._rates[-1] if self._rates else 0.0
        figures.add_row(
            Text(show_count(self.accepted), "bold cyan"),
            Text(show_count(pending), "bold yellow" if pending else "bold"),
            Text(show_count(self.delivered), "bold green"),
            Text(f"{rate:.0f}/s of {self.ceiling_per_s}", "bold"),
        )
        return Panel(
            Group(figures, Text(""), self._rate_bars(), Text(""), self._log_table()),
            title="px-sidecar demo",
            width=WIDTH,
        )

    def _log_table(self) -> RenderableType:
        """Return the newest log lines and the current phase."""
        lines = Table.grid(padding=(0, 2))
        lines.add_column(justify="right", width=6)
        lines.add_column()
        for at_s, text in self.log_lines[-6:]:
            lines.add_row(f"{at_s:.1f}s", text)
        if self.phase:
            lines.add_row(Text(f"{time.monotonic() - self.started_s:.1f}s", "dim"), Text(self.phase, "dim"))
        return lines

    def _rate_bars(self) -> RenderableType:
        """Return deliveries per second, one bar per half second; a full block is the ceiling."""
        heights = ASCII_BARS if self.ascii_only else BARS
        bars = "".join(heights[min(8, round(rate / self.ceiling_per_s * 8))] for rate in self._rates)
        return Text("delivered/s  ", "dim").append(bars, "green")

    def summary(self) -> list[str]:
        """Return the sentences printed under the picture."""
        took = show_duration(time.monotonic() - self.started_s)
        return [
            f"{show_count(self.accepted)} events accepted and {show_count(self.delivered)} delivered in {took}, with one kill -9.",
            f"At most {self.ceiling_per_s} requests leave in one second. PX, which dates them as it reads them, counted at most "
            f"{self.largest_second}; its limit is about 200.",
        ]

"""What the demo shows while it runs, and its account at the end."""

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
BAR_EVERY_S = 0.5
WIDTH = 80


class Progress(msgspec.Struct):
    """The figures of the demo as they change, and the picture of them."""

    ceiling_per_s: int
    events: int
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
    said: list[tuple[float, str]] = []
    _rates: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=58))
    _last: tuple[float, int] = (0.0, 0)

    def begin(self) -> None:
        """The clock of the demo starts."""
        self.started_s = time.monotonic()
        self._last = (self.started_s, 0)

    def say(self, text: str) -> None:
        """A line under the figures, with the time at which it happened."""
        self.said.append((time.monotonic() - self.started_s, text))

    def seen(self, delivered: int) -> None:
        """The stand-in for PX has this many events now."""
        now_s = time.monotonic()
        since_s, before = self._last
        if now_s - since_s >= BAR_EVERY_S:
            self._rates.append((delivered - before) / (now_s - since_s))
            self._last = (now_s, delivered)
        self.delivered = delivered

    def account(self) -> str:
        """The last line: what became of everything that was accepted."""
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
            Group(figures, Text(""), self._curve(), Text(""), self._story()),
            title="px-sidecar demo",
            width=WIDTH,
        )

    def _story(self) -> RenderableType:
        """What happened when, and what is going on."""
        story = Table.grid(padding=(0, 2))
        story.add_column(justify="right", width=6)
        story.add_column()
        for at_s, text in self.said[-6:]:
            story.add_row(f"{at_s:.1f}s", text)
        if self.phase:
            story.add_row(Text(f"{time.monotonic() - self.started_s:.1f}s", "dim"), Text(self.phase, "dim"))
        return story

    def _curve(self) -> RenderableType:
        """Deliveries per second, half a second a bar; a full block is the ceiling."""
        bars = "".join(BARS[min(8, round(rate / self.ceiling_per_s * 8))] for rate in self._rates)
        return Text("delivered/s  ", "dim").append(bars, "green")

    def summary(self) -> list[str]:
        """A few sentences on what was seen, for under the picture."""
        took = show_duration(time.monotonic() - self.started_s)
        return [
            f"{show_count(self.accepted)} events accepted and {show_count(self.delivered)} delivered in {took}, through one kill -9.",
            f"The busiest second at PX held {self.largest_second} requests; the ceiling here is {self.ceiling_per_s}, PX's is about 200.",
        ]

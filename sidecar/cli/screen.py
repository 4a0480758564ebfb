"""What people look at: tables of at most 80 columns, moments, colours only on a terminal."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = ["WIDTH", "bar", "console", "fields", "fields_of", "json_text", "moment", "moment_ms", "printable", "table"]

WIDTH = 80


def console(*, stderr: bool = False) -> Console:
    """A console that writes plain text of 80 columns into a pipe, and at most that on a terminal.

    It follows NO_COLOR, as rich does.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = WIDTH if not stream.isatty() else min(WIDTH, Console(file=stream).width)
    return Console(file=stream, width=width, highlight=False)


def printable(text: object) -> str:
    """Text of others (event names, users, what PX said) without what a terminal would obey."""
    return "".join(char if char.isprintable() else "·" for char in str(text))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    wide: str = "",
    cut: Mapping[str, int] = MappingProxyType({}),
) -> Table:
    """A plain table. The column ``wide`` takes what is left and folds; ``cut`` bounds the width of others."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        folds = heading == wide
        made.add_column(
            heading,
            overflow="fold" if folds else "ellipsis",
            no_wrap=not folds,
            ratio=1 if folds else None,
            max_width=cut.get(heading),
        )
    for row in rows:
        made.add_row(*(Text("" if cell is None else printable(cell)) for cell in row))
    return made


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one a line; what is None is left out."""
    return fields_of((Text(name, style="dim"), Text(printable(value))) for name, value in pairs if value is not None)


def fields_of(rows: Iterable[Sequence[Text]]) -> Table:
    """Rows without headings or lines; the last column folds."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        if not grid.columns:
            for _ in row[:-1]:
                grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold", ratio=1)
        grid.add_row(*row)
    return grid


def json_text(value: Any) -> str:
    """JSON, indented for people, safe for a terminal."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return "\n".join(printable(line) for line in text.splitlines())


def moment_ms(wall_ms: int | None) -> str:
    """A moment in local time: the time alone if it is of today."""
    if wall_ms is None:
        return "-"
    return _shown(datetime.fromtimestamp(wall_ms / 1000).astimezone())


def moment(text: str | None) -> str:
    """A moment of the API (ISO 8601) in local time."""
    return "-" if text is None else _shown(datetime.fromisoformat(text).astimezone())


def _shown(when: datetime) -> str:
    today = datetime.now().astimezone().date()
    return f"{when:%H:%M:%S}" if when.date() == today else f"{when:%Y-%m-%d %H:%M}"


def bar(what: str, *, total: int | None) -> tuple[Progress, TaskID]:
    """A progress bar on stderr, and its task; silent where stderr is no terminal."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    return progress, progress.add_task(what, total=total)

"""Output for terminals: tables of at most 80 columns, local times, colors only on a terminal."""

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, TextIO

import msgspec
from rich import box
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "WIDTH",
    "columns",
    "console",
    "fields",
    "grid",
    "json_text",
    "local_time",
    "local_time_ms",
    "printable",
    "progress_bar",
    "table",
    "table_lines",
]

WIDTH = 80


def console(*, stderr: bool = False) -> Console:
    """Return a console: plain text of 80 columns in a pipe, at most 80 columns on a terminal.

    The environment variable NO_COLOR turns colors off (rich reads it).
    """
    stream = sys.stderr if stderr else sys.stdout
    # Without markup: rich would take "[px]" in a sentence for a style and leave it out, and end at a "[/…]" of PX's answer.
    made = Console(file=stream, width=min(WIDTH, columns(stream)), highlight=False, markup=False)
    if made.is_dumb_terminal:
        made.height = made.size.height  # with a width alone rich takes 80 columns there
    return made


def columns(stream: TextIO) -> int:
    """Return the columns of the terminal that ``stream`` writes to, ``WIDTH`` for a pipe. ``$COLUMNS`` goes first.

    rich takes every terminal without escape sequences (TERM=dumb) for one of 80 columns, and then tables wrap.
    """
    if not stream.isatty():
        return WIDTH
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (OSError, ValueError):
        return WIDTH


def printable(text: object) -> str:
    """Replace control characters in foreign text (event names, users, PX's answers), which a terminal would execute."""
    return "".join(char if char.isprintable() else "·" for char in str(text))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    wide: str | tuple[str, ...] = (),
    cut: Mapping[str, int] = MappingProxyType({}),
) -> Table:
    """Return a plain table. The columns ``wide`` share the remaining width and wrap; ``cut`` limits other columns."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        folds = heading in ((wide,) if isinstance(wide, str) else wide)
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


def table_lines(
    headings: Sequence[str],
    pages: Iterable[Sequence[Sequence[object]]],
    *,
    wide: Sequence[str],
    width: int = WIDTH,
    below: bool = False,
) -> Iterator[str]:
    """Yield the lines of a table as its rows come, for tables too long for ``table`` (0.7 ms a row).

    The first page decides the widths: what does not fit into a column later is cut. The columns ``wide`` share what the
    others leave and wrap. With ``below`` the last cell of a row, which has no heading, stands below it, indented.
    """
    widths: list[int] = []
    for page in pages:
        texts = [["" if cell is None else printable(cell) for cell in row] for row in page]
        last = [row.pop() for row in texts] if below else []
        if not widths:
            widths = _widths(headings, texts, wide, width)
            yield "  ".join(map(set_cell_size, headings, widths)).rstrip()
            yield "─" * (sum(widths) + 2 * len(widths) - 2)
        for number, row in enumerate(texts):
            yield from _row_lines(row, widths, [heading in wide for heading in headings])
            if below:
                yield from textwrap.wrap(last[number], width, initial_indent="    ", subsequent_indent="    ")


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]], wide: Sequence[str], width: int) -> list[int]:
    """Return the width of each column."""
    longest = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    left = width - 2 * (len(headings) - 1)
    left -= sum(longest[at] for at, heading in enumerate(headings) if heading not in wide)
    columns = [at for at, heading in enumerate(headings) if heading in wide]
    for place, at in enumerate(sorted(columns, key=lambda at: longest[at])):  # a short one leaves more to the others
        longest[at] = min(longest[at], max(4, left // (len(columns) - place)))
        left -= longest[at]
    return longest


def _row_lines(row: Sequence[str], widths: Sequence[int], folds: Sequence[bool]) -> Iterator[str]:
    """Yield a row; cells of columns that fold continue on further lines, others are cut."""
    if all(len(cell) <= width and cell.isascii() for cell, width in zip(row, widths, strict=True)):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        return
    cells = [
        chop_cells(cell, width) if fold else [cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"]
        for cell, width, fold in zip(row, widths, folds, strict=True)
    ]
    for parts in zip_longest(*(cell or [""] for cell in cells), fillvalue=""):
        yield "  ".join(map(set_cell_size, parts, widths)).rstrip()


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return names and values, one pair a line; pairs with the value None are left out."""
    return grid((Text(name, style="dim"), Text(printable(value))) for name, value in pairs if value is not None)


def grid(rows: Iterable[Sequence[Text]]) -> Table:
    """Return rows without headings and lines; the last column wraps."""
    made = Table.grid(padding=(0, 2))
    for row in rows:
        if not made.columns:
            for _ in row[:-1]:
                made.add_column(no_wrap=True)
            made.add_column(overflow="fold", ratio=1)
        made.add_row(*row)
    return made


def json_text(value: Any) -> str:
    """Return indented JSON without control characters."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return "\n".join(printable(line) for line in text.splitlines())


def local_time_ms(wall_ms: int | None) -> str:
    """Return a wall-clock time (epoch milliseconds) in local time with its zone; without the date if it is today."""
    if wall_ms is None:
        return "-"
    return _format_time(datetime.fromtimestamp(wall_ms / 1000).astimezone())


def local_time(text: str | None) -> str:
    """Return a time of the control API (ISO 8601) in local time; ``-`` for None."""
    return "-" if text is None else _format_time(datetime.fromisoformat(text).astimezone())


def _format_time(when: datetime) -> str:
    today = datetime.now().astimezone().date()
    zone = when.isoformat()[-6:]  # "+01:00"; %z has no colon before Python 3.12
    return f"{when:%H:%M:%S}{zone}" if when.date() == today else f"{when:%Y-%m-%d %H:%M}{zone}"


def progress_bar(label: str, *, total: int | None) -> tuple[Progress, TaskID]:
    """Return a progress bar on stderr and its task; it draws nothing if stderr is not a terminal."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    return progress, progress.add_task(label, total=total)

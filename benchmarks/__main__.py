"""``python -m benchmarks [NAME …]``: run, print the table, write JSON, draw."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.results import Figure, Results, machine, rounded

NAMES = ("ceiling", "ingest", "cost", "scale", "recovery", "alternatives")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option(
    "--quick", is_flag=True, help="Sizes that only prove that the benchmarks work; their figures mean nothing."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw into this folder.")
def main(names: tuple[str, ...], quick: bool, json_path: Path | None, plots: Path | None) -> None:
    """Measure px-sidecar on this machine, beside what is physically possible on it.

    Without NAMES all of them, about half an hour. Needs 12 GB of disk below $TMPDIR for `scale`, which has to be a
    real disk. The plots need matplotlib: pip install 'px-sidecar[bench]'.
    """
    if plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plots draws with matplotlib, which is missing: pip install 'px-sidecar[bench]'.")
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results(machine=machine(), quick=quick)
    began_s = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began_s:6.0f}s  {text}", highlight=False)

    for name in names or NAMES:
        say(f"[bold]{name}")
        importlib.import_module(f"benchmarks.{name}").run(results, say, quick)
    console.print(table(results))
    if json_path is not None:
        json_path.write_bytes(results.as_json())
    if plots is not None:
        importlib.import_module("benchmarks.plots").draw(results, plots)


def table(results: Results) -> Table:
    """All figures for people."""
    facts = results.machine
    caption = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
    caption += f"Python {facts['python']}, SQLite {facts['sqlite']}; load before: {facts['load_before']}"
    if results.quick:
        caption += "\n--quick: these figures mean nothing"
    shown = Table(caption=caption, caption_justify="left")
    for name in ("what", "measured", "limit", "ratio", "target", "met"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    before = ""
    for figure in results.figures:
        if figure.benchmark != before:
            shown.add_section()
            shown.add_row(f"[bold]{figure.benchmark}")
            before = figure.benchmark
        shown.add_row(*_row(figure))
    return shown


def _row(figure: Figure) -> tuple[str, ...]:
    what = figure.name + (f"\n  [dim]limit: {figure.of}" if figure.of else "")
    what += f"\n  [dim]{figure.note}" if figure.note else ""
    met = {None: "", True: "[green]yes", False: "[red]no"}[figure.met]
    return (
        what,
        f"{rounded(figure.measured)} {figure.unit}",
        "" if figure.limit is None else rounded(figure.limit),
        "" if figure.ratio is None else f"{figure.ratio:.3f}",
        figure.bound_text,
        met,
    )


if __name__ == "__main__":
    main()

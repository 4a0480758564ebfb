"""``python -m benchmarks [NAME …]``: run benchmarks, print a table, write JSON, draw plots."""

import importlib
import importlib.util
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.results import Figure, Results, machine, rounded

NAMES = ("day", "ceiling", "ingest", "cost", "scale", "recovery", "alternatives", "fleet", "peers")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="Small sizes that only test the benchmarks; the figures are meaningless.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all results to this file."
)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Draw plots into this folder.")
def main(names: tuple[str, ...], quick: bool, json_path: Path | None, plots: Path | None) -> None:
    """Measure px-sidecar on this machine, next to its physical limits.

    Without NAMES all benchmarks run, in about 45 minutes. `scale` needs 12 GB below $TMPDIR on a real disk. Plots need
    matplotlib: pip install 'px-sidecar[bench]'.
    """
    if plots is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError(
            "--plots needs matplotlib, which is not installed; run `pip install 'px-sidecar[bench]'`."
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results(machine=machine(), quick=quick)
    started_s = time.monotonic()

    def report_progress(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started_s:6.0f}s  {text}", highlight=False)

    for name in names or NAMES:
        report_progress(f"[bold]{name}")
        importlib.import_module(f"benchmarks.{name}").run(results, report_progress, quick)
    console.print(table(results))
    if json_path is not None:
        json_path.write_bytes(results.as_json())
    if plots is not None:
        importlib.import_module("benchmarks.plots").draw(results, plots)


def table(results: Results) -> Table:
    """Return all figures as a table."""
    facts = results.machine
    caption = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
    caption += f"Python {facts['python']}, SQLite {facts['sqlite']}; load before: {facts['load_before']}"
    if results.quick:
        caption += "\n--quick: these figures are meaningless"
    made = Table(caption=caption, caption_justify="left")
    for name in ("what", "measured", "limit", "ratio", "target", "met"):
        made.add_column(name, justify="left" if name == "what" else "right")
    previous = ""
    for figure in results.figures:
        if figure.benchmark != previous:
            made.add_section()
            made.add_row(f"[bold]{figure.benchmark}")
            previous = figure.benchmark
        made.add_row(*_row(figure))
    return made


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

"""The tables of README.md from the results of a full run: ``python -m benchmarks.targets RESULTS.json``."""

import sys
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.results import Results, rounded

__all__ = ["alternatives_as_markdown", "peers_as_markdown", "targets_as_markdown"]

# The figures of each alternative in the table, and their column headings.
COMPARED: Final = {
    "lost in an outage of 60 s": "lost, PX away for 60 s",
    "lost in a crash": "lost, `kill -9`",
    "arrived twice, crash": "twice, `kill -9`",
    "the app's exit during the outage waits": "the app's exit waits",
    "a call of the app, median": "a call of the app",
    "reached PX while the app made 50 calls/s": "of 50 calls/s reached PX",
}


def targets_as_markdown(results: Results) -> str:
    """Return a table with one row for each figure that has a target."""
    rows = [
        "| | measured | beside it, in the same run | ratio | target | met |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for figure in results.figures:
        if figure.target is None:
            continue
        measured = f"{rounded(figure.measured)} {figure.unit}"
        beside = f"{rounded(figure.limit)} {figure.unit}: {figure.of}" if figure.limit else ""
        ratio = f"{figure.ratio:.4g}" if figure.ratio is not None else ""
        met = "yes" if figure.met else "**no**"
        rows.append(f"| {figure.name} | {measured} | {beside} | {ratio} | {figure.bound_text} | {met} |")
    facts = results.machine
    rows += [
        "",
        f"Measured on {facts['cores']} cores of “{facts['processor']}” with {facts['memory_gib']:.0f} GiB, Linux "
        f"{facts['kernel']}, Python {facts['python']}, SQLite {facts['sqlite']}.",
    ]
    return "\n".join(rows) + "\n"


def alternatives_as_markdown(results: Results) -> str:
    """Return a table with one row for each alternative."""
    rows: dict[str, dict[str, str]] = {}
    for figure in results.figures:
        label, _, name = figure.name.partition(": ")
        if figure.benchmark == "alternatives" and name in COMPARED:
            rows.setdefault(label, {})[name] = f"{rounded(figure.measured)} {figure.unit}"
    lines = [f"| | {' | '.join(COMPARED.values())} |", "| --- |" + " --: |" * len(COMPARED)]
    lines += [f"| {label} | {' | '.join(found[name] for name in COMPARED)} |" for label, found in rows.items()]
    return "\n".join(lines) + "\n"


def peers_as_markdown(results: Results) -> str:
    """Return a table with px-sidecar and the collector in a row for each figure; empty if `peers` was not run."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for figure in results.figures:
        label, _, what = figure.name.partition(": ")
        if figure.benchmark == "peers":
            rows.setdefault((what, figure.unit), {})[label] = figure.measured
    if not rows:
        return ""
    labels = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(labels)} |", "| --- |" + " --: |" * len(labels)]
    for (what, unit), measured in rows.items():
        lines.append(f"| {what} | {' | '.join(f'{rounded(measured[label])} {unit}' for label in labels)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Results)
    for as_markdown in (targets_as_markdown, alternatives_as_markdown, peers_as_markdown):
        print(as_markdown(found))

"""What a run says to the targets, as the table of README.md: ``python -m benchmarks.targets RESULTS.json``."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import rounded

__all__ = ["as_markdown"]


def as_markdown(results: dict[str, Any]) -> str:
    """One row for each figure that has a target, of what ``python -m benchmarks --json`` has written."""
    rows = [
        "| | measured | beside it, in the same run | ratio | target | met |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for figure in results["figures"]:
        if "target" not in figure:
            continue
        name, unit, limit = figure["name"], figure["unit"], figure.get("limit")
        beside = f"{rounded(limit)} {unit}: {figure['of']}" if limit else ""
        ratio = f"{figure['ratio']:.3g}" if limit else ""
        target = f"{'≥' if figure.get('bound', 'least') == 'least' else '≤'} {figure['target']:g}"
        met = "yes" if figure["met"] else "**no**"
        rows.append(f"| {name} | {rounded(figure['measured'])} {unit} | {beside} | {ratio} | {target} | {met} |")
    facts = results["machine"]
    rows += [
        "",
        f"Measured on {facts['cores']} cores of “{facts['processor']}” with {facts['memory_gib']:.0f} GiB, Linux "
        f"{facts['kernel']}, Python {facts['python']}, SQLite {facts['sqlite']}.",
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(as_markdown(json.loads(Path(sys.argv[1]).read_text())), end="")

"""The page of reasons names every reason and code, and promise 3 is one statement wherever it stands."""

import re
from pathlib import Path

from benchmarks.ceiling import SEEN_BY_RECEIVER
from sidecar.cli.sandbox import sandbox
from sidecar.observe import DEAD_REASONS, DROPPED_REASONS
from sidecar.observe.metrics import REFUSAL_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "sidecar/observe/README.md").read_text(encoding="utf-8").partition("## Reasons")[2].partition("\n## ")[0]


def first_cells(heading: str) -> list[str]:
    """Return the names in the first column of the table whose heading begins so."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_every_reason_and_code_is_explained_once():
    assert sorted(first_cells("dropped")) == sorted(DROPPED_REASONS)
    assert sorted(first_cells("dead")) == sorted(DEAD_REASONS)
    assert sorted(first_cells("code of a refused call")) == sorted(REFUSAL_CODES)


def test_what_a_receiver_may_count_is_the_same_everywhere():
    assert SEEN_BY_RECEIVER == 1.05
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    deliver = (ROOT / "sidecar/deliver/README.md").read_text(encoding="utf-8")
    for text in (readme, deliver, sandbox.help or ""):
        said = " ".join(text.split())
        assert "up to 5 % more" in said
        assert "more on a loaded one" in said or "more while it has not" in said

"""Every citation in code, tests and pages can be followed inside the repository, or is a URL or an RFC."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_TEXT = (".png", ".gz", ".lock", "package-lock.json", "axe.min.js", "results.json")
# A file of this repository, a page with or without a heading: `sidecar/px/README.md#limits`, `tests/px/test_answers.py`.
CITED = re.compile(
    r"(?<![\w/.:@-])((?:sidecar|tests|systemd|benchmarks|\.github|\.ci)/[\w./@-]*"
    r"\.(?:md|py|lua|toml|ya?ml|json|js|txt|sh|conf|service|socket|container))(?![\w*])(?:#([\w-]+))?"
)
# A Markdown link to another file or heading.
LINKED = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
# Where a page says in which file a name is: `UserQueues.head` in `order.py`, `order.py`, `UserQueues.head`.
FILE, NAME = r"`([\w./-]+\.(?:py|lua))`", r"`([A-Za-z_]\w*(?:\.(?!py`|lua`)\w+)*)`"
PLACED = re.compile(rf"{NAME} in {FILE}|{FILE},? {NAME}(?! in `)")
ELSEWHERE = re.compile(r"\bfacts/\w|\bDESIGN(?: \d|\.md|,)|models\.md|STYLE\.md|\.\./shared|\bfacts: ``")


def tracked() -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: what belongs to the repository cannot be told from what was built in it")
    return [ROOT / name for name in listed if not name.endswith(NOT_TEXT) and (ROOT / name).is_file()]


@cache
def headings(page: Path) -> frozenset[str]:
    """The anchors of a page as GitHub makes them: lower case, words joined by dashes, punctuation left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles)


def broken(source: Path, line: int, target: Path, anchor: str | None) -> str | None:
    where = f"{source.relative_to(ROOT)}:{line}"
    if not target.exists():
        return f"{where}: there is no {target}"
    if anchor and target.suffix == ".md" and anchor not in headings(target):
        return f"{where}: {target.relative_to(ROOT)} has no heading #{anchor}"
    return None


def test_every_cited_file_and_heading_exists():
    here, wrong = Path(__file__).resolve(), []
    for path in tracked():
        if path == here:
            continue
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            cited = [(ROOT / page, anchor) for page, anchor in CITED.findall(text)]
            if path.suffix == ".md":
                cited += [
                    ((path.parent / page) if page else path, anchor)
                    for page, anchor in LINKED.findall(re.sub(r"`[^`]*`", "", text))
                ]
            wrong += [found for target, anchor in cited if (found := broken(path, number, target, anchor))]
    assert not wrong, "\n".join(wrong)


def test_nothing_cites_a_page_that_is_not_in_the_repository():
    here = Path(__file__).resolve()
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {text.strip()[:80]}"
        for path in tracked()
        if path != here
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if ELSEWHERE.search(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_name_is_in_the_file_that_a_page_gives_for_it():
    """A page named a function that a refactoring had removed."""
    wrong = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        for name, file, first_file, second_name in PLACED.findall(page.read_text(encoding="utf-8")):
            wanted = (name or second_name).rsplit(".", 1)[-1]
            folders = (page.parent, ROOT, ROOT / "sidecar")
            found = [folder / (file or first_file) for folder in folders if (folder / (file or first_file)).is_file()]
            if not any(re.search(rf"\b{wanted}\b", path.read_text(encoding="utf-8")) for path in found[:1]):
                wrong.append(f"{page.relative_to(ROOT)}: {name or second_name} is not in {file or first_file}")
    assert not wrong, "\n".join(wrong)

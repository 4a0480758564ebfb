"""The structure of the code: the import ladder, the seams, and bounds on the size of files and functions."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sidecar.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "sidecar").rglob("*.py"))

# From the bottom up: a package imports only from packages below its own rung.
LADDER = (
    ("clock", "errors", "units", "client"),
    ("events",),
    ("config",),
    ("systemd",),
    ("observe",),
    ("http",),
    ("mapping",),
    ("outbox",),
    ("px",),
    ("fleet",),
    ("deliver",),
    ("receive",),
    ("control",),
    ("daemon",),
    ("sandbox",),
    ("console",),
    ("cli",),
)
RUNG = {package: rung for rung, packages in enumerate(LADDER) for package in packages}
SANDBOX_MAY_IMPORT = {"http", "clock"}  # the judge shares no code with the judged
ENTRY_FILES = {"__init__", "__main__"}  # the package's own, and `python -m sidecar`
OF_THE_PACKAGE = {"__version__", "lazy_exports"}  # what `__init__` holds

CLIENT = "sidecar/client/px_sidecar_client.py"
LONGEST_FILE_LINES = 600
LONGER_FILES = {CLIENT}  # apps copy it as one file
LONGEST_FUNCTION_LINES = 60
NOT_AT_THE_BEGINNING = {"How", "If", "Is", "Of", "What", "When", "Where", "Whether", "Who", "Why"}  # of a docstring
PRIVATE_WORDS = re.compile(
    r"\b(?:in vain|for ever|all the same|so many|anew|thrice|upon|whoever|nobody|somebody|everybody|anybody)\b",
    re.IGNORECASE,
)
LONGEST_TEST_NAME = 65  # the rule in 60 characters, after "test_"

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "sidecar", "tests", "systemd", "benchmarks"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions_of(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "sidecar").parts[0].removesuffix(".py")


@cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full dotted name of everything the file imports, inside functions too."""
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[int, str]]:
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def our_packages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and package of everything of ours that the file imports."""
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "sidecar" and len(parts) > 1 and parts[1] not in OF_THE_PACKAGE:
            yield line, parts[1]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_package_has_a_rung():
    unknown = {package_of(path) for path in SOURCES} - RUNG.keys() - ENTRY_FILES
    assert not unknown, f"packages without a rung in the ladder: {unknown}"


def test_imports_go_down_the_ladder():
    wrong = []
    for path in SOURCES:
        package = package_of(path)
        for line, other in our_packages(path):
            if other not in RUNG:
                wrong.append(f"{place(path, line)} imports {other}, which has no rung")
            elif package in RUNG and other != package and RUNG[other] >= RUNG[package]:
                wrong.append(f"{place(path, line)}: {package} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_the_lowest_rung_imports_nothing_of_ours():
    wrong = [
        place(path, line)
        for path in SOURCES
        if package_of(path) in LADDER[0]
        for line, other in our_packages(path)
        if other != package_of(path)
    ]
    assert not wrong


def test_the_sandbox_shares_no_code_with_what_it_judges():
    wrong = [
        f"{place(path, line)} imports {other}"
        for path in SOURCES
        if package_of(path) == "sandbox"
        for line, other in our_packages(path)
        if other not in SANDBOX_MAY_IMPORT | {"sandbox"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_client_needs_only_the_standard_library():
    path = ROOT / CLIENT
    foreign = [name for _, name in imports_of(path) if name.split(".")[0] not in sys.stdlib_module_names]
    assert not foreign


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("httpx", ("sidecar/px/proxy_lane.py",)),
        ("httpcore", ("sidecar/px/transport.py", "sidecar/px/connection.py", "sidecar/px/proxy_lane.py")),
        ("sqlite3", ("sidecar/outbox/",)),
        ("sqlite_utils", ("sidecar/outbox/",)),
        ("httptools", ("sidecar/http/",)),
        ("hiredis", ("sidecar/fleet/connection.py",)),
        ("click", ("sidecar/cli/", "sidecar/__main__.py")),
    ],
)
def test_a_library_with_a_seam_is_imported_nowhere_else(library, homes):
    wrong = [
        place(path, line)
        for path in SOURCES
        for line, name in imports_of(path)
        if name.split(".")[0] == library and not str(path.relative_to(ROOT)).startswith(homes)
    ]
    assert not wrong, "\n".join(wrong)


def test_one_place_opens_the_outbox_for_writing():
    writers = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for function in functions_of(tree_of(path)) if "sqlite3.connect(" in text else ():
            source = ast.get_source_segment(text, function) or ""
            if "sqlite3.connect(" in source and "mode=ro" not in source and ".backup(" not in source:
                writers.append(place(path, function.lineno))
    assert len(writers) <= 1, writers


def test_every_package_and_machine_has_a_page():
    packages = [path.parent for path in (ROOT / "sidecar").rglob("__init__.py")]
    machines = [path for path in (ROOT / "tests" / "machines").iterdir() if any(path.glob("*.py"))]
    folders = [*packages, *machines, *(ROOT / name for name in ("systemd", "benchmarks", "tests"))]
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "README.md").is_file()]


def test_the_page_of_a_package_names_its_modules():
    """Verbs apart: their page has a rule for them, and a table of all is in ``sidecar/cli/__init__.py``."""
    missing = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.stem not in ENTRY_FILES and not (path.parent.name == "cli" and path.stem.rstrip("_") in VERBS)
        if not re.search(rf"`[^`\n]*\b{path.name}\b[^`\n]*`", (path.parent / "README.md").read_text(encoding="utf-8"))
    ]
    assert not missing


def test_a_class_name_is_unique():
    """One name, one meaning: a reader who meets a class knows which one it is."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(place(path, node.lineno))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_a_test_has_a_short_name():
    long = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
        if len(name) > LONGEST_TEST_NAME
    ]
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is_for():
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(tree_of(path))]
    assert not silent


def test_a_docstring_begins_with_a_verb_or_a_noun():
    """A docstring that hangs on its neighbor ("What …", "Whether …", "Of …") is a riddle by itself."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                first = node.value.value.split(maxsplit=1)[:1]
                wrong += [f"{place(path, node.lineno)}: {first[0]} …" for word in first if word in NOT_AT_THE_BEGINNING]
    assert not wrong, "\n".join(wrong)


def test_every_planted_bug_fits_the_source():
    """A bug is a replacement of text that occurs once; the machine that plants it takes too long to find out here."""
    spec = importlib.util.spec_from_file_location("plant", ROOT / "tests" / "machines" / "planted" / "plant.py")
    assert spec is not None
    assert spec.loader is not None
    plant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plant)
    assert not [bug.name for bug in plant.BUGS if (ROOT / bug.path).read_text(encoding="utf-8").count(bug.before) != 1]


def test_private_words_do_not_return():
    """Things are things, and English is plain: the words that readers stumbled over, in code and pages."""
    pages = [
        *(ROOT / "sidecar").rglob("README.md"),
        *(ROOT / "systemd").rglob("README.md"),
        ROOT / "benchmarks" / "README.md",
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found[0]}"
        for path in [*SOURCES, *pages]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := PRIVATE_WORDS.search(line))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_stay_small():
    large = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST_FILE_LINES and str(path.relative_to(ROOT)) not in LONGER_FILES:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for function in functions_of(tree_of(path)):
            if (size := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION_LINES:
                large.append(f"{place(path, function.lineno)} {function.name}: {size} lines")
    assert not large, "\n".join(large)


def test_the_top_level_holds_what_the_design_names():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository cannot be told from what was built in it")
    command = [git, "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {name.split("/")[0] for name in listed if name and not name.startswith(".")}
    assert top <= TOP_LEVEL

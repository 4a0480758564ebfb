"""The page's files: small, as published, and without anything from elsewhere."""

import hashlib
import re
from pathlib import Path

STATIC = Path(__file__).parents[2] / "sidecar" / "console" / "static"
README = (STATIC.parent / "README.md").read_text(encoding="utf-8")
SERVED = [path for path in sorted(STATIC.rglob("*")) if path.suffix in (".html", ".js", ".css", ".svg")]
OWN = [path for path in SERVED if path.parent == STATIC]


def test_every_attack_of_the_page_has_its_tests():
    table = README.partition("## Attacks")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    tests = Path(__file__).parent
    sources = [*tests.glob("test_*.py"), tests.parent / "process" / "test_console_attacks.py"]
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(path.read_text(encoding="utf-8") for path in sources), re.M))
    assert len(rows) >= 18
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= defined, named - defined


def test_the_pictures_in_readme_are_small():
    pictures = sorted((Path(__file__).parent / "pictures").iterdir())
    readme = (STATIC.parents[2] / "README.md").read_text(encoding="utf-8")
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size <= 120_000, picture
        assert f"(tests/console/pictures/{picture.name})" in readme


def test_the_whole_page_fits_into_110_000_bytes():
    assert sum(path.stat().st_size for path in SERVED) <= 110_000


def test_vendored_files_are_as_published():
    recorded = dict(re.findall(r"`(vendor/\S+\.js)`.*`([0-9a-f]{64})`", README))
    vendored = {f"vendor/{path.name}": path for path in SERVED if path.parent != STATIC}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in vendored.items()} == recorded


def test_no_markup_is_built_from_strings():
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        assert "https://" not in text, path


def test_no_script_or_style_is_inline():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", page)

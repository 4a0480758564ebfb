"""Find everything that is wrong with a configuration, not only the first thing.

Theory
------
Neither ``tomllib`` nor msgspec continues after an error. So each problem is recorded, what caused it is taken out of the
text or the tree, and the rest is tried again, until nothing is refused. What was taken out can cause no second problem; a
problem that only follows from another one is therefore not reported where the cause can be recognized:

* A line that is not TOML is blanked, and with a header the lines below it, whose keys would land in another table. An error in
  the very next line may be the same one, such as a bracket that is not closed: there the search ends.
* A refused value is taken out, and an entry of a list replaced by a valid one, so that the others keep their numbers.
* A setting that is missed beside an unknown key which is nearest to it is that key, misspelled.
"""

import re
import tomllib
from typing import Any, Final

import msgspec

from sidecar.config.error_messages import describe, value_at
from sidecar.config.schema import Config, decode_text_type
from sidecar.config.text_file import load_toml
from sidecar.config.toml_positions import Path
from sidecar.errors import ConfigError

__all__ = ["ConfigProblem", "ConfigProblems", "convert_all", "parse_toml"]

MAX_PROBLEMS: Final = 50

_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)")
_BARE_VALUE: Final = re.compile(r"""\s*([\w."'-]+)\s*=\s*([^\s"'\[{#][^#]*?)\s*(#.*)?$""")
# Entries that take the place of refused ones; the number keeps write keys different.
_ENTRIES: Final = {"source": ("write_key", "\0"), "drop": ("event", "\0")}


class ConfigProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong: a whole sentence, the line of the file if there is one, and the path of the setting."""

    sentence: str
    line: int | None
    path: tuple[str | int, ...] = ()


class ConfigProblems(ConfigError):
    """A configuration that cannot be used. The message is the first problem; ``problems`` are all of them."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        more = f" (and {len(problems) - 1} more: `px-sidecar check` shows all)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0].sentence.removesuffix('.')}{more}.")
        self.problems = problems


def parse_toml(text: str, name: str) -> tuple[dict[str, Any] | None, str, list[ConfigProblem]]:
    """Return the tree, the text that gave it, and the problems; the tree is None where the rest cannot be read."""
    lines = text.split("\n")
    problems: list[ConfigProblem] = []
    while len(problems) < MAX_PROBLEMS:
        try:
            return load_toml("\n".join(lines)), "\n".join(lines), problems
        except tomllib.TOMLDecodeError as error:
            found = _LINE.search(str(error))
            number = int(found[1]) if found else None
            if number is None and problems:
                break  # the end of a text of which lines are missing
            last = problems[-1].line if problems else None
            if number is not None and number - 1 == last:
                break
            problems.append(_not_toml(str(error), number, lines, name))
            if number is None:
                break
            _blank(lines, number - 1)
    return None, "\n".join(lines), problems


def _not_toml(reason: str, number: int | None, lines: list[str], name: str) -> ConfigProblem:
    place = f"{name} line {number}" if number else name
    advice = "correct its syntax"
    if number and (bare := _BARE_VALUE.match(lines[number - 1])):
        key, value = bare[1], bare[2].strip("“”„‘’ ")
        is_word = value.lower() in ("true", "false")
        advice = f"write {key} = {value.lower()}" if is_word else f'write text in straight quotes: {key} = "…"'
    return ConfigProblem(f"{place} is not valid TOML ({_LINE.sub('', reason)}); {advice}.", number)


def _blank(lines: list[str], index: int) -> None:
    """Blank a line, and for a header the lines of its table."""
    is_header = lines[index].lstrip().startswith("[")
    lines[index] = ""
    for below in range(index + 1, len(lines) if is_header else 0):
        if lines[below].lstrip().startswith("["):
            return
        lines[below] = ""


def convert_all(tree: dict[str, Any]) -> tuple[Config | None, list[tuple[Path, str]]]:
    """Return the configuration without what is wrong, and path and sentence of each problem, without full stop.

    ``tree`` is changed. The configuration is None if a problem could not be taken out.
    """
    found: list[tuple[Path, str]] = []
    misspelled: list[Path] = []
    for _ in range(MAX_PROBLEMS):
        try:
            return msgspec.convert(tree, Config, dec_hook=decode_text_type), found
        except msgspec.ValidationError as error:
            problem = describe(error, tree, Config)
            # A second one of the same setting only says that the first was taken out.
            is_missed = value_at(tree, problem.path) is None and problem.path in misspelled
            if problem.path not in [path for path, _ in found] and not is_missed:
                found.append((problem.path, problem.sentence))
            if problem.meant is not None:
                misspelled.append(problem.meant)
            if not _take_out(tree, list(problem.path)):
                break
    return None, found


def _take_out(tree: dict[str, Any], path: list[str | int]) -> bool:
    """Take a setting out of the tree, or the nearest thing around it; return False if nothing is left to take out."""
    while path:
        key = path[-1]
        parent = value_at(tree, path[:-1])
        if isinstance(key, int) and isinstance(parent, list):
            entry = _ENTRIES.get(str(path[-2]))
            parent[key] = {entry[0]: f"{entry[1]}{key}"} if entry else ""
            return True
        if isinstance(parent, dict) and key in parent and key != "write_key":
            del parent[key]
            return True
        path = path[:-1]
    return False

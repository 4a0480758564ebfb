"""The part of ``check`` that judges the file: everything that is wrong with it at once, each with its line."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sidecar.cli.common import global_option
from sidecar.cli.host_checks import CheckResult
from sidecar.config import Config, config_path
from sidecar.config.credentials import write_key_warnings
from sidecar.config.file import PREFIX, examine, user_path
from sidecar.config.problems import ConfigProblem
from sidecar.config.text_file import decode_text
from sidecar.config.toml_positions import exact_line_of, parts_of
from sidecar.errors import ConfigError
from sidecar.mapping.rules import MappingRules

__all__ = ["check_broken_file", "check_file", "check_mapping", "check_write_keys", "with_lines"]

# A sentence about a setting begins with it: mapping.event."Plan Changed".attributes.hash names …
_SETTING: Final = re.compile(r"""(?:[a-z_]+)(?:\.(?:[A-Za-z0-9_-]+|"[^"\n]+"))+""")


def check_broken_file(
    config_flag: str | None, rest: Callable[[Config], Iterable[CheckResult]]
) -> Iterator[CheckResult]:
    """Yield everything that is wrong with a configuration that cannot be loaded, as one error each.

    ``rest`` gets the configuration without what is wrong, and yields the checks of what is left in it; only its errors count,
    and not those about sections in which something is wrong already.
    """
    try:
        config, problems = examine(config_flag, instance=global_option("instance"))
    except ConfigError as error:
        yield CheckResult("error", "configuration", str(error))
        return
    yield from (CheckResult("error", "configuration", problem.sentence) for problem in problems)
    if config is not None and problems:
        affected = _affected(problems)
        more = (result for result in rest(config) if result.level == "error" and result.what not in affected)
        yield from with_lines(more, config_flag)


def _affected(problems: Iterable[ConfigProblem]) -> set[str]:
    """Return the names of checks that would judge a value which was taken out because it is wrong."""
    sections = {problem.path[0] for problem in problems if problem.path}
    by_section: dict[str | int, set[str]] = {
        "px": {"API key", "property key", "way to PX"},
        "mapping": {"mapping"},
        "people": {"mapping"},
        "identity": {"mapping"},
        "listen": {"https", "listeners"},
        "source": {"listeners"},
    }
    return set().union(*(by_section.get(section, set()) for section in sections))


def check_file(path: Path) -> CheckResult:
    """Check the mode of a configuration file that was loaded, and whether it exists."""
    if not path.exists():
        own = user_path()
        missing, written = (
            (f"{path} does not exist", "it") if own is None else (f"Neither {path} nor {own} exists", own)
        )
        message = f"{missing}; defaults and variables apply. `px-sidecar init` writes {written}."
        return CheckResult("warning", "configuration", message)
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
        message = f"Every user of this host can write {path}; run `chmod o-w {path}`."
        return CheckResult("error", "configuration", message)
    ends = ", with Windows line ends, which do no harm" if b"\r\n" in path.read_bytes() else ""
    return CheckResult("ok", "configuration", f"{path} is valid{ends}.")


def check_mapping(config: Config) -> Iterator[CheckResult]:
    """Check that the rules of the mapping do not contradict each other."""
    problems = MappingRules.contradictions(config.mapping, config.identity)
    yield from (CheckResult("error", "mapping", problem) for problem in problems)
    if not problems:
        names = len(config.mapping.events)
        yield CheckResult("ok", "mapping", f"Preset {config.mapping.preset}, {names} names in mapping.events.")


def check_write_keys(config: Config) -> Iterator[CheckResult]:
    """Check that SDKs can send the write keys."""
    yield from (CheckResult("warning", "write keys", sentence) for sentence in write_key_warnings(config))


def with_lines(
    results: Iterable[CheckResult], config_flag: str | None, environ: Mapping[str, str] = os.environ
) -> Iterator[CheckResult]:
    """Put file and line before each sentence that begins with a setting of the file; the variable, if one sets it."""
    path, _ = config_path(config_flag, environ, global_option("instance"))
    try:
        text = decode_text(path.read_bytes())
    except (OSError, ValueError):
        text = ""  # no file: the sentences name their settings
    for result in results:
        place = None if result.level == "ok" else _place(result.message, path, text, environ)
        yield result._replace(message=f"{place}: {result.message}") if place else result


def _place(message: str, path: Path, text: str, environ: Mapping[str, str]) -> str | None:
    if numbered := re.match(r"write_key of \[\[source\]\] number (\d+)", message):
        setting: tuple[str | int, ...] = ("source", int(numbered[1]) - 1, "write_key")
    elif match := _SETTING.match(message):
        setting = parts_of(match[0])
    else:
        return None
    variable = f"{PREFIX}{'_'.join(map(str, setting[:2]))}".upper()
    if len(setting) == 2 and variable in environ:
        return f"The variable {variable}"
    line = exact_line_of(setting, text)
    return f"{path} line {line}" if line else None

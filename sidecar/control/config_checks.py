"""The checks of the configuration: everything that is wrong with the file at once, each with its line; keys, listeners."""

import re
import shlex
import ssl
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sidecar.config import Config, ConfigFile, Secret, property_key, property_key_warning
from sidecar.config.credentials import KeyUnreadable, remote_warning, write_key_warnings
from sidecar.config.file import PREFIX, user_path
from sidecar.config.problems import ConfigProblem
from sidecar.config.text_file import decode_text
from sidecar.config.toml_positions import exact_line_of, parts_of
from sidecar.control.host_checks import CheckResult
from sidecar.errors import ConfigError
from sidecar.mapping.rules import MappingRules
from sidecar.px.transport import HttpxNetwork
from sidecar.units import counted

__all__ = ["check_broken_file", "check_config", "check_file", "check_settings"]

# PX answers an event with 201 whatever product it names: sidecar/px/README.md#answers.
NOT_VERIFIED: Final = (
    "not verified, as PX accepts any: `px-sidecar send NAME --user U --verify` shows if events arrive."
)

# A sentence about a setting begins with it: mapping.event."Plan Changed".attributes.hash names …
_SETTING: Final = re.compile(r"""(?:[a-z_]+)(?:\.(?:[A-Za-z0-9_-]+|"[^"\n]+"))+""")


def check_config(file: ConfigFile, config: Config, find_key: Callable[[Config], Secret]) -> Iterator[CheckResult]:
    """Check a file that was loaded, and what it says; ``find_key`` returns the API key, or raises ConfigError."""
    yield check_file(file.path)
    if warning := file.region_warning(config):
        yield CheckResult("warning", "region", warning)
    yield from with_lines(check_settings(config, find_key), file)


def check_broken_file(file: ConfigFile, find_key: Callable[[Config], Secret]) -> Iterator[CheckResult]:
    """Yield everything that is wrong with a configuration that cannot be loaded, as one error each.

    What is left without it is checked as well; only errors count there, and not those about sections in which something is
    wrong already.
    """
    try:
        config, problems = file.examine()
    except ConfigError as error:
        yield CheckResult("error", "configuration", str(error))
        return
    yield from (CheckResult("error", "configuration", problem.sentence) for problem in problems)
    if config is not None and problems:
        affected = _affected(problems)
        rest = check_settings(config, find_key)
        more = (result for result in rest if result.level == "error" and result.what not in affected)
        yield from with_lines(more, file)


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
        message = f"Every user of this host can write {path}; run `chmod o-w {shlex.quote(str(path))}`."
        return CheckResult("error", "configuration", message)
    ends = ", with Windows line ends, which do no harm" if b"\r\n" in path.read_bytes() else ""
    return CheckResult("ok", "configuration", f"{path} is valid{ends}.")


def check_mapping(config: Config) -> Iterator[CheckResult]:
    """Check that the rules of the mapping do not contradict each other."""
    problems = MappingRules.contradictions(config.mapping, config.identity)
    yield from (CheckResult("error", "mapping", problem) for problem in problems)
    if not problems:
        names = counted(len(config.mapping.events), "name")
        yield CheckResult("ok", "mapping", f"Preset {config.mapping.preset}, {names} in mapping.events.")


def check_write_keys(config: Config) -> Iterator[CheckResult]:
    """Check that SDKs can send the write keys."""
    yield from (CheckResult("warning", "write keys", sentence) for sentence in write_key_warnings(config))


def with_lines(results: Iterable[CheckResult], file: ConfigFile) -> Iterator[CheckResult]:
    """Put file and line before each sentence that begins with a setting of the file; the variable, if one sets it."""
    try:
        text = decode_text(file.path.read_bytes())
    except (OSError, ValueError):
        text = ""  # no file: the sentences name their settings
    for result in results:
        place = None if result.level == "ok" else _place(result.message, file.path, text, file.environ)
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


def check_settings(config: Config, find_key: Callable[[Config], Secret]) -> Iterator[CheckResult]:
    """Check what the configuration says, without the host."""
    yield from check_keys(config, find_key)
    yield from check_mapping(config)
    yield from check_write_keys(config)
    yield from _check_listeners_and_proxy(config, find_key)


def check_keys(config: Config, find_key: Callable[[Config], Secret]) -> Iterator[CheckResult]:
    """Check both keys: the shape of each, that they are not swapped, and the mode of the API key's file."""
    try:
        key = find_key(config)
    except KeyUnreadable as error:  # the daemon may well have it
        yield CheckResult("warning", "API key", f"{error.path} is open to root only and was not looked at; use sudo.")
    except ConfigError as error:
        yield CheckResult("error", "API key", str(error))
    else:
        yield from _check_key_file_mode(config)
        yield CheckResult("ok", "API key", "Present and well-formed; --live tests it against PX.")
        if config.px.property_key.strip() == key.reveal():
            yield CheckResult(
                "error",
                "property key",
                "px.property_key holds the API key; set it to the product's key, AP-XXXXXXXXXX-2.",
            )
            return
    try:
        odd = property_key_warning(property_key(config.px))
    except ConfigError as error:
        yield CheckResult("error", "property key", str(error))
        return
    yield (
        CheckResult("warning", "property key", odd)
        if odd
        else CheckResult("ok", "property key", f"{config.px.property_key.strip()} is well-formed; {NOT_VERIFIED}")
    )


def _check_key_file_mode(config: Config) -> Iterator[CheckResult]:
    if not config.px.api_key_file:
        return
    path = Path(config.px.api_key_file)
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        yield CheckResult(
            "warning",
            "API key",
            f"Other users of this host can read {path}; run `chmod 0600 {shlex.quote(str(path))}`.",
        )


def _check_listeners_and_proxy(config: Config, find_key: Callable[[Config], Secret]) -> Iterator[CheckResult]:
    """Check what cannot be validated key by key: certificates, open listeners, the proxy to PX."""
    if config.listen.https:
        yield _check_certificate(config)
    if error_sentence := remote_warning(config):
        yield CheckResult("error", "listeners", error_sentence)
    if config.px.proxy or config.px.ca_file:
        try:
            HttpxNetwork(config.px, find_key(config), config.deliver.timeout)
            yield CheckResult("ok", "way to PX", "Proxy and certificates are usable.")
        except KeyUnreadable:
            pass  # reported where the key is checked
        except ConfigError as error:
            yield CheckResult("error", "way to PX", str(error))


def _check_certificate(config: Config) -> CheckResult:
    listen = config.listen
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(listen.tls_cert, listen.tls_key)
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return CheckResult(
            "error", "https", f"{listen.tls_cert} with listen.tls_key cannot be loaded ({why}); set both to PEM files."
        )
    return CheckResult("ok", "https", f"{listen.tls_cert} is usable.")

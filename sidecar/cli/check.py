"""``px-sidecar check``: judge configuration, outbox, disk, sockets and system, before somebody is woken by them."""

import os
import ssl
import stat
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import click
from rich.text import Text

from sidecar.cli.asking import control_option, the_daemon
from sidecar.cli.common import before_the_verb, json_option, load_config, print_json
from sidecar.cli.findings import Finding, on_this_host
from sidecar.cli.px_asking import ask_px, key_of
from sidecar.cli.screen import console, fields_of, printable
from sidecar.clock import SystemClock
from sidecar.config import Config, config_path, odd_property_key, property_key
from sidecar.control.client import Daemon
from sidecar.control.offline import open_file
from sidecar.errors import ConfigError, Failed, NotRunning, SidecarError
from sidecar.mapping import compile_mapping
from sidecar.px import CHECK_KEY, Kind, Verdict, classify
from sidecar.px.transport import HttpxNetwork
from sidecar.units import show_count

__all__ = ["check"]

MARKS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "error": ("WRONG", "bold red")}


@click.command()
@click.option("--live", is_flag=True, help="Ask PX about key and region, too; no event is created.")
@control_option
@json_option
def check(live: bool, control_flag: str | None, config_flag: str | None, as_json: bool) -> None:
    """Judge configuration, keys, outbox, disk, sockets and limits.

    Every finding says what to do. Exits with 1 if something is wrong, with 0 if
    there are only things to look at. Run it as the daemon's user or as root.

    \b
    Examples:
      px-sidecar check
      px-sidecar check --live --json | jq '.findings[] | select(.level != "ok")'
    """
    findings = list(_findings(control_flag, config_flag, live=live))
    good = all(one.level != "error" for one in findings)
    if as_json:
        print_json({"ok": good, "findings": [one._asdict() for one in findings]})
    else:
        _show(findings)
    if not good:
        sys.exit(1)


def _show(findings: list[Finding]) -> None:
    rows = []
    for one in findings:
        mark, colour = MARKS[one.level]
        rows.append((Text(mark, style=colour), Text(one.what), Text(printable(one.message))))
    out = console()
    out.print(fields_of(rows))
    wrong = sum(one.level == "error" for one in findings)
    look = sum(one.level == "warning" for one in findings)
    out.print(f"{wrong} wrong, {look} to look at, {len(findings) - wrong - look} ok.")


def _findings(control_flag: str | None, config_flag: str | None, *, live: bool) -> Iterator[Finding]:
    instance = before_the_verb("instance")
    path, _ = config_path(config_flag, os.environ, instance)
    try:
        config = load_config(config_flag)
    except ConfigError as error:
        yield Finding("error", "configuration", str(error))
        return
    yield (
        _file_mode("configuration", path)
        if path.exists()
        else Finding(
            "warning",
            "configuration",
            f"There is no {path}; defaults and variables apply. `px-sidecar init` writes one.",
        )
    )
    yield from keys(config, os.environ)
    yield from _rules(config)
    daemon = the_daemon(control_flag, config_flag)
    running = yield from _daemon(daemon, config)
    yield from on_this_host(config, running=running)
    if live:
        yield from _live(config)


def _file_mode(what: str, path: Path) -> Finding:
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
        return Finding("error", what, f"{path} can be written by everybody on this host; chmod o-w it.")
    return Finding("ok", what, f"{path} is valid.")


def keys(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The API key and the property key, which people mix up, and who can read the former."""
    try:
        key = key_of(config, environ)
    except ConfigError as error:
        yield Finding("error", "API key", str(error))
    else:
        yield from _exposed(config)
        yield Finding("ok", "API key", "There is one, of a possible shape; --live asks PX about it.")
        if config.px.property_key.strip() == key.reveal():
            yield Finding(
                "error", "property key", "px.property_key is the API key; give the product's, AP-XXXXXXXXXX-2."
            )
            return
    try:
        odd = odd_property_key(property_key(config.px))
    except ConfigError as error:
        yield Finding("error", "property key", str(error))
        return
    yield (
        Finding("warning", "property key", odd)
        if odd
        else Finding("ok", "property key", config.px.property_key.strip())
    )


def _exposed(config: Config) -> Iterator[Finding]:
    if not config.px.api_key_file:
        return
    path = Path(config.px.api_key_file)
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        yield Finding("warning", "API key", f"{path} can be read by others on this host; chmod 0600 it.")


def _rules(config: Config) -> Iterator[Finding]:
    """Mapping, certificates and the way to PX: what only fails when it is put together."""
    try:
        compile_mapping(config.mapping, config.people)
        yield Finding(
            "ok", "mapping", f"Preset {config.mapping.preset}, {len(config.mapping.events)} names of your own."
        )
    except ConfigError as error:
        yield Finding("error", "mapping", str(error))
    if config.listen.https:
        yield _certificate(config)
    if config.px.proxy or config.px.ca_file:
        try:
            HttpxNetwork(config.px, key_of(config), config.deliver.timeout)
            yield Finding("ok", "way to PX", "Proxy and certificates can be used.")
        except ConfigError as error:
            yield Finding("error", "way to PX", str(error))


def _certificate(config: Config) -> Finding:
    listen = config.listen
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(listen.tls_cert, listen.tls_key)
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return Finding(
            "error", "https", f"{listen.tls_cert} with its key cannot be used ({why}); give a PEM certificate."
        )
    return Finding("ok", "https", f"{listen.tls_cert} can be used.")


def _daemon(daemon: Daemon, config: Config) -> Generator[Finding, None, bool]:
    """Whether a daemon runs, and the right one; with none, whether the outbox can be used. Returns if one runs."""
    try:
        status = daemon.get("/v1/status")
    except NotRunning:
        yield _closed_outbox(config)
        return False
    except SidecarError as error:
        yield Finding("error", "daemon", str(error))
        return True
    path = status["outbox"]["path"]
    if Path(path).resolve() != Path(config.outbox.path).resolve():
        yield Finding(
            "error",
            "daemon",
            f"The daemon at {daemon.path} has another outbox ({path}); give each daemon a control socket of its own.",
        )
    elif status["reasons"]:
        yield from (Finding("warning", "daemon", reason) for reason in status["reasons"])
    else:
        yield Finding("ok", "daemon", f"It runs, with {show_count(status['pending'])} events pending.")
    return True


def _closed_outbox(config: Config) -> Finding:
    try:
        with open_file(config) as file:
            status = file.get("/v1/status")
    except NotRunning:
        return Finding("ok", "daemon", "It is not running, and there is no outbox yet.")
    except (Failed, ConfigError) as error:
        return Finding("error", "daemon", str(error))
    return Finding("ok", "daemon", f"It is not running; {show_count(status['pending'])} events wait in the outbox.")


# PX ------------------------------------------------------------------------------------------------------------------


def _live(config: Config) -> Iterator[Finding]:
    try:
        reply = ask_px(config, [CHECK_KEY])[0]
    except ConfigError as error:
        yield Finding("error", "PX", str(error))
        return
    yield judged(classify(reply, wall_ms=SystemClock().wall_ms()), config.px.url())


def judged(verdict: Verdict, url: str) -> Finding:
    """What PX's answer to an empty event says about the key: a refusal (400) is the good one."""
    if verdict.kind is Kind.REFUSED:
        return Finding("ok", "PX", f"{url} knows the key, and it may write (an empty event was refused, as it should).")
    if verdict.kind is Kind.DELIVERED:
        return Finding("warning", "PX", f"{url} took an event without content; is that PX? Look at px.base_url.")
    if verdict.kind in (Kind.TOO_FAST, Kind.LATER, Kind.AMBIGUOUS):
        return Finding("warning", "PX", f"{url} gave no verdict: {verdict.message}")
    return Finding("error", "PX", f"{url}: {verdict.message}")

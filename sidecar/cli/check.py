"""``px-sidecar check``: test configuration, keys, outbox, disk, sockets and host before they cause an incident.

Every result is one sentence that says what was found and, unless it is ``ok``, what to do. The JSON levels ``ok``,
``warning`` and ``error`` are public; on the screen they read ``ok``, ``warn`` and ``FAIL``.
"""

import os
import ssl
import stat
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import msgspec
import trio
from rich.text import Text

from sidecar.cli.backend import DURATION, connect_daemon, control_option
from sidecar.cli.common import global_option, hint, json_option, load_config, print_json
from sidecar.cli.config_checks import check_broken_file, check_file, check_mapping, check_write_keys, with_lines
from sidecar.cli.host_checks import CheckResult, check_host
from sidecar.cli.px_queries import KeyUnreadable, ask_px, effective_key
from sidecar.cli.screen import console, grid, printable, table
from sidecar.clock import SystemClock
from sidecar.config import Config, config_path, fleet_password, property_key, property_key_warning
from sidecar.config.credentials import remote_warning
from sidecar.config.file import region_warning
from sidecar.config.schema import REGIONS
from sidecar.control.client import DaemonClient
from sidecar.control.offline import OfflineBackend, open_file
from sidecar.errors import ConfigError, Failed, NotRunning, SidecarError
from sidecar.px import CHECK_KEY, Kind, Verdict, classify
from sidecar.px.transport import HttpxNetwork
from sidecar.units import counted

__all__ = ["check"]

# How levels and names read on the screen; JSON keeps the values of CheckResult.
LABELS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "bold red")}
NAMES = {"room": "free space"}


@click.command()
@click.option("--live", is_flag=True, help="Also test the key against PX, in all regions; creates no event.")
@click.option("--contract", is_flag=True, help="With --live: try on a test product what PX's documents leave open.")
@click.option("--product", metavar="KEY", help="The test product for --contract; a dozen events stay in it.")
@click.option(
    "--read-back", "wait_s", type=DURATION, default="15m", show_default=True, help="How long PX may take to show them."
)
@control_option
@json_option
def check(
    live: bool,
    contract: bool,
    product: str | None,
    wait_s: float,
    control_flag: str | None,
    config_flag: str | None,
    as_json: bool,
) -> None:
    """Check configuration, keys, outbox, disk, sockets and limits.

    Each line says what was found and what to do. Exits with 1 if a check fails,
    with 0 if there are only warnings. Run it as the daemon's user or as root.

    \b
    Examples:
      px-sidecar check
      px-sidecar check --live --json | jq '.findings[] | select(.level != "ok")'
      px-sidecar check --live --contract --product AP-TESTTESTTE-2
    """
    if product is not None and not contract:
        raise click.UsageError("--product is the test product of --live --contract; without these it does nothing.")
    if contract:
        _contract(product, live=live, wait_s=wait_s, config_flag=config_flag, as_json=as_json)
        return
    found = _check_all(control_flag, config_flag, live=live)
    findings = [result._replace(message=hint(result.message)) for result in found]
    passed = all(result.level != "error" for result in findings)
    if as_json:
        print_json({"ok": passed, "findings": [result._asdict() for result in findings]})
    else:
        _show(findings)
    if not passed:
        sys.exit(1)


def _contract(product: str | None, *, live: bool, wait_s: float, config_flag: str | None, as_json: bool) -> None:
    from sidecar.cli.contract import run_contract  # here: other checks need none of it

    if not live or product is None:
        raise click.UsageError(
            "--contract sends events to PX: give --live, and the key of a test product with --product."
        )
    if not product.startswith("AP-"):
        raise click.BadParameter("a product key begins with AP-, as in AP-XXXXXXXXXX-2", param_hint="--product")
    config = load_config(config_flag)

    def progress(text: str) -> None:
        click.echo(f"{text} …", err=True)

    answers = run_contract(config, product, wait_s=wait_s, progress=progress)
    if as_json:
        print_json({"product": product, "url": config.px.url(), "answers": answers})
        return
    rows = [
        (
            answer.question,
            "; ".join(answer.answers),
            "-" if answer.read_back is None else f"{answer.read_back} of {answer.sent}",
            "" if answer.attributes is None else answer.attributes,
        )
        for answer in answers
    ]
    console().print(table(("question", "PX answered", "shown", "attributes"), rows, wide=("question", "PX answered")))
    for unread in sorted({answer.unread for answer in answers if answer.unread}):
        click.echo(f"Not read back: {unread}")
    click.echo(f"Product {product} at {config.px.url()}; the user was deleted again, the events stay.")


def _show(findings: list[CheckResult]) -> None:
    rows = []
    for result in findings:
        label, color = LABELS[result.level]
        rows.append(
            (Text(label, style=color), Text(NAMES.get(result.what, result.what)), Text(printable(result.message)))
        )
    out = console()
    out.print(grid(rows))
    failed = sum(result.level == "error" for result in findings)
    warnings = sum(result.level == "warning" for result in findings)
    out.print(f"{failed} failed, {counted(warnings, 'warning')}, {len(findings) - failed - warnings} ok.")


def _check_all(control_flag: str | None, config_flag: str | None, *, live: bool) -> Iterator[CheckResult]:
    try:
        config = load_config(config_flag)
    except ConfigError:
        yield from check_broken_file(config_flag, _check_settings)
        return
    yield check_file(config_path(config_flag, os.environ, global_option("instance"))[0])
    if warning := region_warning(config, config_flag, os.environ, global_option("instance")):
        yield CheckResult("warning", "region", warning)
    yield from with_lines(_check_settings(config), config_flag)
    daemon = connect_daemon(control_flag, config_flag)
    running = yield from _check_daemon(daemon, config)
    yield from check_host(config, running=running)
    if config.fleet.url:
        yield from check_fleet(config, os.environ)
    if live:
        yield from _check_px(config)


def check_fleet(config: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Try the fleet's engine, without joining the fleet."""
    from sidecar.fleet.trial import try_engine

    try:
        password = fleet_password(config.fleet, environ)
    except ConfigError as error:
        yield CheckResult("error", "fleet", str(error))
        return
    for trial in trio.run(try_engine, config.fleet, password):
        yield CheckResult(trial.level, "fleet", trial.message)


def _check_settings(config: Config) -> Iterator[CheckResult]:
    """Check what the file says, without the host."""
    yield from check_keys(config, os.environ)
    yield from check_mapping(config)
    yield from check_write_keys(config)
    yield from _check_listeners_and_proxy(config)


def check_keys(config: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check both keys: the shape of each, that they are not swapped, and the mode of the API key's file."""
    try:
        key = effective_key(config, environ)
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
        yield CheckResult("warning", "API key", f"Other users of this host can read {path}; run `chmod 0600 {path}`.")


def _check_listeners_and_proxy(config: Config) -> Iterator[CheckResult]:
    """Check what cannot be validated key by key: certificates, open listeners, the proxy to PX."""
    if config.listen.https:
        yield _check_certificate(config)
    if error_sentence := remote_warning(config):
        yield CheckResult("error", "listeners", error_sentence)
    if config.px.proxy or config.px.ca_file:
        try:
            HttpxNetwork(config.px, effective_key(config), config.deliver.timeout)
            yield CheckResult("ok", "way to PX", "Proxy and certificates are usable.")
        except KeyUnreadable:
            pass  # said where the key is checked
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


def _check_daemon(daemon: DaemonClient, config: Config) -> Generator[CheckResult, None, bool]:
    """Check that the running daemon uses this outbox, or that the outbox opens if none runs; return whether one runs."""
    try:
        status = daemon.get("/v1/status")
    except NotRunning:
        yield from _check_stopped_outbox(config)
        return False
    except SidecarError as error:
        yield CheckResult("error", "daemon", str(error))
        return True
    path = status["outbox"]["path"]
    if Path(path).resolve() != Path(config.outbox.path).resolve():
        yield CheckResult(
            "error",
            "daemon",
            f"The daemon at {daemon.path} uses another outbox ({path}); give each daemon its own listen.control.",
        )
    elif status["reasons"]:
        refused = {problem["message"] for problem in status.get("problems", ()) if problem["severity"] == "accepting"}
        for reason in status["reasons"]:
            yield CheckResult("error" if reason in refused else "warning", "daemon", reason)
    else:
        yield CheckResult("ok", "daemon", f"Running, with {counted(status['pending'], 'event')} pending.")
    yield from _idle_rules(daemon)
    return True


def _check_stopped_outbox(config: Config) -> Iterator[CheckResult]:
    try:
        with open_file(config) as file:
            status = file.get("/v1/status")
            idle = list(_idle_rules(file))
    except NotRunning:
        yield CheckResult("ok", "daemon", "Not running; the outbox does not exist yet.")
        return
    except (Failed, ConfigError) as error:
        yield CheckResult("error", "daemon", str(error))
        return
    yield CheckResult(
        "ok", "daemon", f"Not running; {counted(status['pending'], 'event', 'is')} pending in the outbox."
    )
    yield from idle


def _idle_rules(backend: DaemonClient | OfflineBackend) -> Iterator[CheckResult]:
    """Name the mapping rules that did nothing with the newest events."""
    try:
        rules = backend.get("/v1/mapping/idle")["rules"]
    except SidecarError as error:  # the outbox cannot be read, or the daemon is an older one
        rules = [f"The rules were not compared with events: {error}"]
    return (CheckResult("warning", "mapping", sentence) for sentence in rules)


# PX ------------------------------------------------------------------------------------------------------------------


# PX answers an event with 201 whatever product it names: sidecar/px/README.md#answers.
NOT_VERIFIED: Final = (
    "not verified, as PX accepts any: `px-sidecar send NAME --user U --verify` shows if events arrive."
)


def _check_px(config: Config) -> Iterator[CheckResult]:
    """Ask PX about the key; where the region does not know it, ask the others, which tells a wrong key from a wrong region."""
    try:
        verdict = _ask_about_key(config)
    except ConfigError as error:
        yield CheckResult("error", "PX", str(error))
        return
    result = classify_key_check(verdict, config.px.url())
    # A 407 is the proxy's: it would let no question to another region through either.
    if verdict.kind not in (Kind.WRONG_KEY, Kind.WRONG_REGION) or config.px.base_url or verdict.status == 407:
        yield result
        return
    others = {region: _ask_about_key(_in_region(config, region)) for region in REGIONS if region != config.px.region}
    knowing = next((region for region, asked in others.items() if asked.kind is Kind.REFUSED), None)
    if knowing is None:
        unasked = [region for region, asked in others.items() if asked.kind not in (Kind.WRONG_KEY, Kind.WRONG_REGION)]
        but = f" ({' and '.join(unasked)} could not be asked)" if unasked else ""
        yield result._replace(message=f"{result.message} No other region accepts the key either{but}.")
        return
    yield CheckResult(
        "error",
        "PX",
        f'The key belongs to another region: {REGIONS[knowing]} accepts it, {config.px.url()} does not; set px.region = "{knowing}" '
        "and restart the daemon.",
    )


def _in_region(config: Config, region: str) -> Config:
    return msgspec.structs.replace(config, px=msgspec.structs.replace(config.px, region=region))


def _ask_about_key(config: Config) -> Verdict:
    """Send an empty event, which PX refuses with 400 if the key may write. Raises ConfigError without a key."""
    return classify(ask_px(config, [CHECK_KEY])[0], wall_ms=SystemClock().wall_ms())


def classify_key_check(verdict: Verdict, url: str) -> CheckResult:
    """Derive the state of the key from PX's answer to an empty event: a refusal (400) means that the key may write."""
    if verdict.kind is Kind.REFUSED:
        return CheckResult("ok", "PX", f"{url} accepts the key for writing (it refused an empty event, as expected).")
    if verdict.kind is Kind.DELIVERED:
        return CheckResult("warning", "PX", f"{url} accepted an empty event, which PX refuses; check px.base_url.")
    if verdict.kind in (Kind.TOO_FAST, Kind.LATER, Kind.AMBIGUOUS):
        return CheckResult("warning", "PX", f"{url} did not answer about the key: {verdict.message}")
    return CheckResult("error", "PX", f"{url}: {verdict.message}")

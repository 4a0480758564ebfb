"""``px-sidecar check``: test configuration, keys, outbox, disk, sockets and host before they cause an incident.

Every result is one sentence that says what was found and, unless it is ``ok``, what to do. The JSON levels ``ok``,
``warning`` and ``error`` are public; on the screen they read ``ok``, ``warn`` and ``FAIL``.
"""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import click
import msgspec
import trio
from rich.text import Text

from sidecar.cli.backend import DURATION, connect_daemon, control_option
from sidecar.cli.common import global_option, hint, json_option, load_config, print_json
from sidecar.cli.px_queries import ask_px, effective_key
from sidecar.cli.screen import console, grid, printable, table
from sidecar.clock import SystemClock
from sidecar.config import Config, ConfigFile
from sidecar.config.schema import REGIONS
from sidecar.control.checks import check_fleet, check_idle_rules, check_state, rules_not_compared
from sidecar.control.client import DaemonClient
from sidecar.control.config_checks import check_broken_file, check_config
from sidecar.control.host_checks import CheckResult, check_host
from sidecar.control.offline import OfflineBackend, open_file
from sidecar.errors import ConfigError, Failed, NotRunning, SidecarError
from sidecar.px import CHECK_KEY, Kind, Verdict, classify
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
    file = ConfigFile(config_flag, os.environ, global_option("instance"))
    try:
        config = load_config(config_flag)
    except ConfigError:
        try:
            found = _found_by_daemon(connect_daemon(control_flag, config_flag), file)
        except ConfigError:  # a file so broken, or missing, that it names no socket either
            found = None
        yield from found or check_broken_file(file, effective_key)
        if live:  # the daemon may have found nothing wrong: it can read what this user cannot
            sentence = "PX was not asked: this user cannot load the configuration; correct what is wrong, or use sudo."
            yield CheckResult("error", "PX", sentence)
        return
    daemon = connect_daemon(control_flag, config_flag)
    found = _found_by_daemon(daemon, file)
    yield from _check_here(config, file, daemon) if found is None else found
    if live:
        yield from _check_px(config)


def _found_by_daemon(daemon: DaemonClient, file: ConfigFile) -> list[CheckResult] | None:
    """Return what the daemon of this file finds with its own rights; None if none runs, or one of another file."""
    try:
        answer = daemon.get("/v1/checks")
    except SidecarError:  # no daemon, an older one, or one that cannot check: this process checks
        return None
    if answer["path"] != str(file.path.absolute()):
        return None
    return [CheckResult(**finding) for finding in answer["findings"]]


def _check_here(config: Config, file: ConfigFile, daemon: DaemonClient) -> Iterator[CheckResult]:
    """Check file, daemon and host with the rights of this user."""
    yield from check_config(file, config, effective_key)
    running = yield from _check_daemon(daemon, config)
    yield from check_host(config, running=running)
    if config.fleet.url:
        yield from trio.run(check_fleet, config, os.environ)


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
    else:
        yield from check_state(status)
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
        rules = [rules_not_compared(error)]
    return check_idle_rules(rules)


# PX ------------------------------------------------------------------------------------------------------------------


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

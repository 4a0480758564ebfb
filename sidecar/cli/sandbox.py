"""``px-sidecar sandbox``: run a stand-in for PX on loopback, with faults on demand."""

import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import msgspec
import trio
from rich.console import Console
from rich.live import Live

from sidecar.cli.common import json_option, no_temporary_place, print_json
from sidecar.config.schema import LABEL_RULE, can_be_looked_up
from sidecar.errors import Failed
from sidecar.http import Shutdown
from sidecar.sandbox import DEFAULT_KEY, READ_ONLY_KEY, Faults, OpenAnswers, Outage, Report, Sandbox, serve_sandbox
from sidecar.units import parse_duration_s, show_count

__all__ = ["sandbox"]

F = TypeVar("F", bound=Callable[..., Any])


RATE = click.FloatRange(0, 1)


def _duration_s(_ctx: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _windows_s(_ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[tuple[float, float]]:
    return [_window_s(text) for text in texts]


def _window_s(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    try:
        window_s = (parse_duration_s(start), parse_duration_s(end))
    except ValueError:
        raise click.BadParameter(f'{text!r} is not a window; write from-to, as in "10s-40s"') from None
    if window_s[0] >= window_s[1]:
        raise click.BadParameter(f"{text!r} ends before it begins")
    return window_s


def _host(_ctx: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not can_be_looked_up(text):
        raise click.BadParameter(f"{text!r} is not a host {LABEL_RULE}")
    return text


def _open_answers(_ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> OpenAnswers:
    given: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        lists = name in ("registered_names", "declared_traits")
        given[name] = [*given.get(name, []), value] if lists else int(value) if value.isdecimal() else value
    try:
        return msgspec.convert(given, OpenAnswers)
    except msgspec.ValidationError as error:
        names = ", ".join(OpenAnswers.__struct_fields__)
        raise click.BadParameter(f"{error}; the names are {names}") from None


def _fault_options(function: F) -> F:
    options = (
        click.option("--latency", metavar="TIME", callback=_duration_s, default="0s", help="Delay of each answer, as in 100ms."),
        click.option("--jitter", metavar="TIME", callback=_duration_s, default="0s", help="Upper bound of a random extra delay."),
        click.option("--error-rate", type=RATE, default=0.0, help="Share of requests answered with an error, 0 to 1."),
        click.option("--error-status", type=click.IntRange(200, 599), default=503, show_default=True, help="The status of that error."),
        click.option("--outage", "outages", metavar="FROM-TO", callback=_windows_s, multiple=True, help="PX is unavailable, as in 10s-40s; repeatable."),
        click.option(
            "--outage-how", type=click.Choice(["refuse", "503", "hang"]), default="refuse", show_default=True,
            help="Behavior in an outage: reset connections, answer 503, or do not answer.",
        ),
        click.option("--drop-answers", type=RATE, default=0.0, help="Share of events stored without an answer."),
        click.option("--hang", type=RATE, default=0.0, help="Share of requests that are never answered."),
        click.option("--garbage", type=RATE, default=0.0, help="Share of answers that are not HTTP."),
        click.option("--drip", metavar="TIME", callback=_duration_s, default="0s", help="Time between the bytes of an answer's body."),
        click.option("--firewall", "firewall_names", multiple=True, help="Event name or glob that is answered with an HTML 403."),
        click.option("--fail-user", "fail_users", multiple=True, help="User or glob whose events are answered with an error."),
        click.option("--fail-status", type=click.IntRange(200, 599), default=503, show_default=True, help="Status for --fail-user."),
        click.option("--retry-after", default="", help="With 429 and 503: seconds:N, date:N, or any text."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command("sandbox")
@click.option("--host", default="127.0.0.1", show_default=True, callback=_host, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8399, show_default=True, help="0 takes a free port.")
@click.option("--key", "keys", multiple=True, help=f"Accepted REST API key [default: {DEFAULT_KEY}].")
@click.option(
    "--read-only-key", "read_only_keys", multiple=True, help=f"Read-only key, answered 403 [default: {READ_ONLY_KEY}]."
)
@click.option("--property-key", "property_keys", multiple=True, help="Accepted product key [default: any AP-…].")
@click.option("--per-second", type=click.IntRange(0), default=200, show_default=True, help="429 above it; 0: never.")
@click.option("--per-day", type=click.IntRange(0), default=1_000_000, show_default=True, help="429 above it; 0: never.")
@click.option(
    "--state", type=click.Path(dir_okay=False, path_type=Path), help="Keep the log in this file across restarts."
)
@click.option("--seed", type=int, default=0, help="Seed of the random faults.")
@click.option(
    "--report-key", metavar="FIELD", help="The field that identifies an event, as attributes.seq; default: the body."
)
@click.option(
    "--open",
    "switches",
    metavar="NAME=ANSWER",
    multiple=True,
    callback=_open_answers,
    help="What PX's documents leave open, as unknown_user=drop; repeatable.",
)
@_fault_options
@json_option
def sandbox(
    host: str, port: int, report_key: str | None, as_json: bool, latency: float, jitter: float, drip: float,
    outages: list[tuple[float, float]], outage_how: Any, drop_answers: float, switches: OpenAnswers, **options: Any,
) -> None:  # fmt: skip
    """Run a stand-in for PX on loopback, as strict as PX is known to be.

    It checks keys, permissions and events, keeps an exact log and answers 429
    above the limits. The options inject faults; POST /sandbox/faults changes
    them while it runs, and GET /sandbox/report returns the figures. On SIGINT
    or SIGTERM it prints a report on stdout.

    Seconds are counted when a request has been read here. The sidecar keeps
    its ceiling at the moment when a request leaves it; what delays requests
    on the way moves some into the next second: up to 5 % more on a host with
    processor time to spare, more on a loaded one.

    \b
    Example: answer in 100 ms, be unavailable from second 10 to second 40:
      px-sidecar sandbox --latency 100ms --outage 10s-40s
    and in another terminal the daemon:
      PX_SIDECAR_PX_BASE_URL=http://127.0.0.1:8399 \\
      PX_SIDECAR_PX_API_KEY=sandbox-key \\
      PX_SIDECAR_PX_PROPERTY_KEY=AP-SANDBOX-2 px-sidecar run
    """
    fault_names = {field for field in Faults.__struct_fields__ if field in options}
    faults = Faults(
        latency_s=latency,
        jitter_s=jitter,
        drip_s=drip,
        dropped_answers=drop_answers,
        outages=tuple(Outage(from_s=start, to_s=end, how=outage_how) for start, end in outages),
        **{name: options.pop(name) for name in fault_names},
    )
    options["keys"] = options["keys"] or (DEFAULT_KEY,)
    options["read_only_keys"] = options["read_only_keys"] or (READ_ONLY_KEY,)
    try:
        box = Sandbox(faults=faults, open_answers=switches, **options)
    except OSError as error:
        if options["state"] is None:
            raise no_temporary_place(error) from None
        raise Failed(
            f"The state file {options['state']} cannot be opened ({error.strerror}); check its folder, or name another file."
        ) from None
    try:
        _serve_until_signal(box, host, port)
        report = box.report(report_key)
    finally:
        box.close()
    if as_json:
        print_json(report)
    else:
        click.echo(report_text(report))
    for raised in box.errors[:3]:
        click.echo(f"px-sidecar: the sandbox failed while it handled a request: {raised!r}", err=True)


def _serve_until_signal(box: Sandbox, host: str, port: int) -> None:
    failed: OSError | None = None
    try:
        trio.run(_serve, box, host, port)
    except* OSError as errors:
        failed = next(error for error in _leaves(errors) if isinstance(error, OSError))
    if failed is not None:  # raised here: Python 3.11.2 wraps an error raised inside `except*` in a group
        in_use = failed.errno == errno.EADDRINUSE
        advice = "stop what uses it, or set another --port" if in_use else "set another --host and --port"
        raise Failed(f"The sandbox cannot listen on {host}:{port} ({failed.strerror}); {advice}.")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


async def _serve(box: Sandbox, host: str, port: int) -> None:
    stopping = Shutdown()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
                await serve_sandbox(box, host=host, port=port, shutdown=stopping, task_status=task_status)

            url = await nursery.start(serve)
            click.echo(_greeting(box, url), err=True)
            if sys.stderr.isatty():
                nursery.start_soon(_show_live, box)
            async for _ in signals:
                break
            stopping.set()
            nursery.cancel_scope.deadline = trio.current_time() + 1  # answers that are being sent get one second


def _greeting(box: Sandbox, url: str) -> str:
    keys, products = sorted(box.rules.keys), sorted(box.rules.property_keys)
    at = urlsplit(url)
    # The API key goes to https or to a loopback address alone, so a daemon on another host cannot use this one.
    own = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(at.hostname or "")  # noqa: S104 - compared, not bound
    base = f"http://{own}:{at.port}" if own else url
    return "\n".join(
        [
            f"PX sandbox on {url}; Ctrl-C stops it and prints a report.",
            "Start a daemon that delivers to it:",
            f"  PX_SIDECAR_PX_BASE_URL={base} PX_SIDECAR_PX_API_KEY={keys[0]} \\",
            f"  PX_SIDECAR_PX_PROPERTY_KEY={products[0] if products else 'AP-SANDBOX-2'} px-sidecar run",
            f"Keys: {', '.join(keys)}; read-only: {', '.join(sorted(box.rules.read_only_keys)) or 'none'}; "
            f"product keys: {', '.join(products) or 'any AP-…'}.",
        ]
    )


async def _show_live(box: Sandbox) -> None:
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        before = len(box.journal)
        while True:
            await trio.sleep(1)
            now = len(box.journal)
            stored = box.journal.stored_count
            live.update(
                f"{show_count(now)} requests, {show_count(stored)} events stored, {now - before}/s", refresh=True
            )
            before = now


def report_text(report: Report) -> str:
    """Return the report as text, one figure a line."""
    by_status = ", ".join(f"{status}: {show_count(count)}" for status, count in report.by_status.items())
    lines = {
        "requests": show_count(report.requests) + (f"  ({by_status})" if by_status else ""),
        "events stored": show_count(report.stored),
        "distinct": show_count(report.distinct),
        "duplicates": show_count(report.duplicates),
        "largest second": f"{show_count(report.largest_second)} requests",
        "rate": f"{report.rate_per_s:.1f}/s" if report.rate_per_s is not None else "-",
        "users, accounts": f"{show_count(report.users)}, {show_count(report.accounts)}",
    }
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())

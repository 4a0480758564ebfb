"""The command ``px-sidecar``: one file per verb, imported only when the verb is called.

Rules (the page is sidecar/cli/README.md)
-----------------------------------------
* A verb is ``sidecar/cli/<verb>.py`` with a click command of the same name; verb names contain no dashes.
* An expected failure raises a ``SidecarError``: one sentence on stderr, and the exit code of its class. Any other
  exception is a bug and shows its traceback.
* Data goes to stdout; progress, hints and errors go to stderr, so that the output of a verb can be piped.
"""

import errno
import io
import os
import sys
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from sidecar import __version__
from sidecar.errors import Failed, SidecarError

__all__ = ["VERBS", "main"]

VERBS = {
    "init": "Write a first configuration, asking a few questions.",
    "check": "Check configuration, outbox, disk, sockets and host.",
    "run": "Run the daemon in the foreground.",
    "dev": "See your app's events arrive; needs no setup.",
    "demo": "Show a delivery through a crash; needs no setup.",
    "sandbox": "Run a stand-in for PX on loopback.",
    "map": "Show what would be sent to PX, without sending.",
    "send": "Send one event through the running daemon.",
    "console": "Serve a page that shows and controls the daemon.",
    "status": "Show state, rate, quota, backlog and problems.",
    "trace": "Show what became of an event, and why.",
    "names": "List event names and what they become in PX.",
    "tail": "Print events and their outcomes as they happen.",
    "events": "List, show and discard events.",
    "resend": "Send delivered events to PX again.",
    "backfill": "Send events of the past from a file.",
    "dead": "List, show, retry, discard or export dead letters.",
    "drain": "Wait until nothing is pending.",
    "pause": "Stop delivery; events are still accepted.",
    "resume": "Start delivery again.",
    "reload": "Have the daemon read its configuration again.",
    "reconcile": "Compare the events in PX with those delivered.",
    "forget": "Remove all data of a user from this host.",
    "outbox": "Move pending events between hosts.",
    "fleet": "Show the hosts that share the limits with this one.",
    "client": "Print the client for Python apps as one file.",
    "config": "Print configuration, its reference, dashboard, alerts.",
}


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 on /dev/null where a supervisor has closed them.

    Otherwise the next file that is opened, perhaps the outbox, gets such a number and whatever is printed is written into
    it; and Python has no ``sys.stderr`` to write errors to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - to the end of the process, as below
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class _Verbs(click.Group):
    """The click group: lists verbs in the order of ``VERBS`` and imports the file of a verb when it is called."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_standard_streams()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # What verbs write themselves is reported with its path; without one it is what they, or click for --help, print.
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            click.echo("px-sidecar: The output cannot be written: no space is left there; free some space.", err=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes at exit
            sys.exit(Failed.exit_code)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            command: click.Command = getattr(import_module(f"sidecar.cli.{cmd_name}"), cmd_name)
        except ModuleNotFoundError as error:
            if error.name != "sidecar.client.px_sidecar_client":
                raise
            # pip removes a file with the first of the two distributions that have it.
            raise Failed(
                "px_sidecar_client.py is missing, probably because px-sidecar-client was uninstalled beside px-sidecar; "
                "put it back with: pip install --force-reinstall --no-deps px-sidecar"
            ) from None
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete verb names from ``VERBS`` alone: importing every verb would make each Tab take a second."""
        verbs = [CompletionItem(verb, help=about) for verb, about in VERBS.items() if verb.startswith(incomplete)]
        return verbs or click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(verb, VERBS, 1)
            raise click.UsageError(
                f"Unknown verb {verb!r}; "
                + (f"did you mean {near[0]!r}?" if near else "`px-sidecar --help` lists the verbs."),
                ctx,
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        as_json = "--json" in ctx.args  # the verb's own arguments, which may be wrong: no verb has parsed them yet
        try:
            return super().invoke(ctx)
        except SidecarError as error:
            message = _hint(str(error))
            if as_json:
                _print_json_error(message, error.exit_code)
            if not error.is_logged:
                click.echo(f"px-sidecar: {message}", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            if as_json:
                _print_json_error(error.format_message(), error.exit_code)
            raise
        except click.Abort:  # Ctrl-C or the end of input at a question
            if as_json:
                _print_json_error("Aborted at a question; give --yes, or the answers as options.", Failed.exit_code)
            raise
        except UnicodeEncodeError as error:
            if not isinstance(error.object, str) or not any("\udc80" <= char <= "\udcff" for char in error.object):
                raise
            # Python's form of bytes that are not UTF-8, which reach no JSON and no file.
            raise click.UsageError(
                "An argument is not text in the encoding of this locale; write it in UTF-8, and set LC_ALL=C.UTF-8 if "
                "the locale is another one."
            ) from None
        except BaseExceptionGroup as group:
            if group.split(KeyboardInterrupt)[1] is not None:
                raise
            raise KeyboardInterrupt from None  # of a verb that runs tasks; click prints "Aborted!"
        except BrokenPipeError:
            # The reader of the pipe (`head`, `less`) has closed it. Closing stderr as well suppresses the second
            # message that Python prints when it flushes stdout at exit.
            sys.stderr.close()
            sys.exit(1)


def _hint(message: str) -> str:
    from sidecar.cli.common import hint  # here, as below

    return hint(message)


def _print_json_error(message: str, exit_code: int) -> None:
    from sidecar.cli.common import print_json_error  # here: completing a verb must load none of what verbs need

    print_json_error(message, exit_code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option("--instance", default="", metavar="NAME", help="Which of several daemons on this host: px-sidecar@NAME.")
@click.option("--config", metavar="PATH", help="The configuration file; also accepted after the verb.")
@click.version_option(__version__, prog_name="px-sidecar", message="%(prog)s %(version)s")
def main(instance: str, config: str | None) -> None:  # noqa: ARG001 - verbs read them from the context
    """Deliver product-usage events to Gainsight PX, durably and within its limits.

    \b
    Try it; no account and no configuration are needed:
        px-sidecar demo
    Then write a configuration and start the daemon:
        px-sidecar init && px-sidecar run
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        click.get_current_context().color = False  # rich reads both itself
    # A terminal that is not UTF-8 shows a mark for what it lacks, instead of ending the verb with an error. In the C
    # locale Python's handler is surrogateescape, which fails on every character beyond ASCII, too.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")

"""The command ``px-sidecar``: one file per verb, loaded only when it is used.

Rules
-----
* A verb is ``sidecar/cli/<verb>.py`` with a click command of the same name; dashes do not occur.
* What goes wrong for a reason outside of us is a ``SidecarError`` and ends as one sentence on stderr with its exit
  code; anything else is a bug and shows its traceback.
* Data goes to stdout, everything about it to stderr, so that a verb can stand in a pipe.
"""

import sys
from difflib import get_close_matches
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from sidecar import __version__
from sidecar.errors import SidecarError

__all__ = ["VERBS", "main"]

VERBS = {
    "init": "Write a first configuration, asking a few questions.",
    "check": "Judge configuration, outbox, disk, sockets and system.",
    "run": "Run the daemon in the foreground.",
    "demo": "See the main job done, with nothing to set up.",
    "sandbox": "Run a stand-in for PX on loopback.",
    "map": "Show what PX would get for events, without sending.",
    "send": "Send one event through the running daemon.",
    "status": "Show state, rate, quota, backlog and problems.",
    "tail": "Watch events and their outcomes live.",
    "events": "Look into the outbox and its history.",
    "dead": "List, show, retry, discard or export dead letters.",
    "drain": "Wait until nothing is pending.",
    "pause": "Stop delivery; accepting goes on.",
    "resume": "Start delivery again.",
    "reconcile": "Compare what PX has with what was delivered.",
    "forget": "Remove a user from the outbox and its memory.",
    "outbox": "Move pending events between hosts.",
    "config": "Show the configuration, its schema, dashboards.",
}


class _Verbs(click.Group):
    """The verbs in the order of ``VERBS``; their files are imported when they are called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"sidecar.cli.{cmd_name}"), cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs, without loading them: completion has to be quick."""
        verbs = [CompletionItem(verb, help=about) for verb, about in VERBS.items() if verb.startswith(incomplete)]
        return verbs or click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            near = get_close_matches(verb, VERBS, 1)
            hint = f"did you mean {near[0]!r}" if near else "`px-sidecar --help` lists them"
            raise click.UsageError(f"There is no verb {verb!r}; {hint}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SidecarError as error:
            click.echo(f"px-sidecar: {error}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python would complain once more while closing stdout.
            sys.stderr.close()
            sys.exit(1)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option("--instance", default="", metavar="NAME", help="One of several daemons on this host: px-sidecar@NAME.")
@click.option("--config", metavar="PATH", help="The configuration file; it may also stand behind the verb.")
@click.version_option(__version__, prog_name="px-sidecar", message="%(prog)s %(version)s")
def main(instance: str, config: str | None) -> None:
    """Deliver product-usage events to Gainsight PX: durably, at the pace it allows.

    \b
    See it work, with nothing to set up:
        px-sidecar demo
    Then write a configuration and start:
        px-sidecar init && px-sidecar run
    """

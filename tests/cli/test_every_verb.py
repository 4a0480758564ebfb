"""Every verb in odd terminals: 80 columns, no colors, Latin-1 and ASCII, arguments that are not UTF-8, and JSON on failure.

One table says how each verb is called; a verb without an entry fails. What needs a terminal or a process of its own is in
``test_odd_terminals.py`` and ``test_ctrl_c.py``.
"""

import errno
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from running_daemon import DaemonDir, RunningDaemon

from sidecar.cli import main
from sidecar.px import PxAnswer, PxRequest, Reply
from sidecar.sandbox.server import free_ports

# Verbs with a daemon, in an order in which each finds what it needs. "1" is a delivered event, "2" a dead letter, "3" pending.
CALLS: dict[str, list[str]] = {
    "status": [],
    "check": [],
    "trace": ["--user", "ünal@example.com"],
    "names": [],
    "tail": ["--count", "1"],
    "events list": [],
    "events show": ["1"],
    "dead list": [],
    "dead show": ["2"],
    "dead export": [],
    "fleet status": [],
    "config show": [],
    "config reference": [],
    "config schema": [],
    "config openapi": [],
    "config dashboard": [],
    "config alerts": [],
    "client": [],
    "map": ["EVENTS"],
    "drain": ["--timeout", "100ms"],
    "pause": [],
    "reload": [],
    "reconcile": [],
    "send": ["Größe → gewählt", "--user", "ünal"],
    "events discard": ["--name", "nothing", "--yes"],
    "resend": ["--name", "nothing", "--yes"],
    "backfill": ["EVENTS", "--yes"],
    "dead retry": ["--name", "nothing", "--yes"],
    "dead discard": ["--name", "nothing", "--yes"],
    "outbox import": ["EXPORTED", "--yes"],
    "forget": ["nobody-ünal"],
    "resume": [],
}
# Verbs that serve until they are stopped, or that change this host: their own tests cover them.
OWN_TESTS = {
    "init": "tests/cli/test_init.py",
    "run": "tests/process/test_start_errors.py",
    "dev": "tests/process/test_dev.py",
    "demo": "tests/cli/test_demo.py",
    "sandbox": "tests/sandbox/test_sandbox_verb.py",
    "console": "tests/console/test_console_page.py",
    "outbox export": "tests/cli/test_outbox.py",
}
# Their output is a file for other programs, with lines of any length.
FILES = {
    "dead export",
    "config show",
    "config schema",
    "config openapi",
    "config dashboard",
    "config alerts",
    "client",
    "map",
}
# Without `tail`, whose feed does not end by itself without an event.
ENDING = [verb for verb in CALLS if verb != "tail"]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield the name of each verb, with its own verbs, and its command."""

    def below(command: click.Command, path: list[str]) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                yield from below(inner, [*path, name])
        else:
            yield " ".join(path), command

    return below(main, [])


COMMANDS = dict(commands())
ODD = "\udcff\udcfe"  # how Python reads arguments that are not UTF-8


def test_every_verb_has_an_entry():
    assert COMMANDS.keys() == CALLS.keys() | OWN_TESTS.keys()
    root = Path(__file__).parents[2]
    assert [path for path in OWN_TESTS.values() if not (root / path).exists()] == []


async def px(request: PxRequest) -> Reply:
    poison = b"Poison" in request.body
    return PxAnswer(400 if poison else 201, b'{"errorMessage":"gr\xc3\xb6\xc3\x9fer"}', content_type="application/json")


class Verbs:
    """Calls verbs with a running daemon, in this process; ``encoding`` is that of the terminal."""

    def __init__(self, daemon: RunningDaemon, folder: Path) -> None:
        self.daemon = daemon
        self._files = {"EVENTS": str(folder / "events.ndjson"), "EXPORTED": str(folder / "exported.ndjson")}
        event = {"type": "track", "event": "Größe", "userId": "u9", "messageId": "m9"}
        (folder / "events.ndjson").write_text(json.dumps(event, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "exported.ndjson").write_text("", encoding="utf-8")

    def __call__(self, verb: str, *more: str, encoding: str = "utf-8", arguments: list[str] | None = None):
        given = CALLS[verb] if arguments is None else arguments
        flags = self.daemon.daemon_dir.flags if takes(verb, "--config") else []
        line = [*verb.split(), *(self._files.get(word, word) for word in given), *more, *flags]
        result = CliRunner(charset=encoding).invoke(main, line, env={"COLUMNS": "80"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{line} in {encoding}: {result.exception!r}") from result.exception
        return result


def takes(verb: str, option: str) -> bool:
    return any(option in parameter.opts for parameter in COMMANDS[verb].params)


def is_sentence(line: str) -> bool:
    return "  " not in line.strip()


@pytest.fixture
def verbs(tmp_path: Path, verb, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verbs]:
    monkeypatch.chdir(tmp_path)  # some verbs write a file of the odd name that they are given
    with DaemonDir(tmp_path).running(px) as daemon:
        daemon.track("ünal@example.com", "Größe → gewählt", properties={"ä": "日本\x1b[31m"})
        daemon.track("6f1c0c80-7f4c-4f3e-9d2a-1f7f8a1b2c3d" * 2, "Poison" + "N" * 100)
        daemon.settle()
        daemon.client.post("/v1/pause")
        daemon.track("u3", "Waits")
        yield Verbs(daemon, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_every_verb_prints_80_plain_columns_in_every_terminal(verbs: Verbs, encoding):
    for verb in ENDING:
        ran = verbs(verb, encoding=encoding)
        assert ran.exit_code in (0, 1), (verb, ran.output)
        assert ran.stdout_bytes + ran.stderr_bytes, f"{verb} says nothing"
        try:
            # click takes ASCII for UTF-8 that was not set up (the C locale) and writes that.
            shown = ran.stdout_bytes.decode("utf-8" if encoding == "ascii" else encoding)
        except UnicodeDecodeError as error:
            raise AssertionError(f"{verb} prints bytes that are not {encoding}: {error}") from None
        assert "\x1b" not in shown, f"{verb} prints escape sequences"
        if verb not in FILES:
            # A sentence may be longer: a terminal wraps it, and a pipe keeps it in one piece. A table must not be.
            wide = [line for line in shown.splitlines() if len(line) > 80 and not is_sentence(line)]
            assert not wide, (verb, wide)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_verb_with_json_prints_one_document_or_a_line_each(verbs: Verbs, encoding):
    for verb in ENDING:
        if not takes(verb, "--json"):
            continue
        ran = verbs(verb, "--json", encoding=encoding)
        assert ran.exit_code in (0, 1), (verb, ran.output)
        text = ran.stdout_bytes.decode(encoding)
        documents = (
            [json.loads(line) for line in text.splitlines()] if verb in ("map", "dead export") else [json.loads(text)]
        )
        assert documents or verb == "dead export", verb


def test_every_verb_with_json_prints_json_on_a_failure(verbs: Verbs, tmp_path):
    for verb, command in COMMANDS.items():
        if not takes(verb, "--json"):
            continue
        ran = CliRunner().invoke(main, [*verb.split(), "--json", "--nope"])
        assert (ran.exit_code, json.loads(ran.stdout)["exit_code"]) == (2, 2), verb
        if takes(verb, "--config") and verb not in ("init", "map"):
            missing = str(tmp_path / "none.toml")
            arguments = [word for word in CALLS.get(verb, ["x"]) if word not in ("EVENTS", "EXPORTED")]
            arguments += [str(tmp_path / "events.ndjson")] if {"EVENTS", "EXPORTED"} & set(CALLS.get(verb, [])) else []
            ran = CliRunner().invoke(main, [*verb.split(), *arguments, "--json", "--config", missing])
            answer = json.loads(ran.stdout)
            if verb == "check":
                assert (ran.exit_code, answer["ok"]) == (1, False)
            else:
                assert ran.exit_code == answer["exit_code"] == 78, (verb, ran.output)
                assert answer["error"]
        assert command.help, verb


def test_arguments_that_are_not_utf_8_cause_no_traceback_in_any_verb(verbs: Verbs):
    for verb in ENDING:
        for parameter in COMMANDS[verb].params:
            is_text = isinstance(parameter.type, click.types.StringParamType | click.Path)
            if not is_text or parameter.name in ("config_flag", "control_flag"):
                continue
            if isinstance(parameter, click.Argument):
                ran = verbs(verb, arguments=[ODD])
            else:
                ran = verbs(verb, parameter.opts[0], ODD)
            assert ran.exit_code in (0, 1, 2), (verb, parameter.name, ran.output)


def test_odd_paths_of_configuration_and_socket_are_one_sentence(verbs: Verbs):
    for option in ("--config", "--control"):
        for value in (ODD, "/nowhere\x1b[31m", "x" * 5000):
            ran = CliRunner().invoke(main, ["status", option, value])
            assert isinstance(ran.exception, SystemExit), (option, value, ran.exception)
            assert ran.exit_code in (1, 2, 69, 78)


def test_no_help_text_is_wider_than_80_columns():
    for verb in COMMANDS:
        ran = CliRunner().invoke(main, [*verb.split(), "--help"])
        assert ran.exit_code == 0
        assert max(map(len, ran.stdout.splitlines())) <= 80, verb
        assert re.search("Examples?:", ran.stdout), verb


@pytest.mark.parametrize("host", ["a..b", "ä..b", "x" * 64])
@pytest.mark.parametrize("verb", ["dev --listen {}:80", "console --address {}:80", "sandbox --host {}"])
def test_a_host_that_cannot_be_looked_up_is_wrong_usage(verb: str, host: str):
    """A look-up of such a name raises UnicodeError, and binding it TypeError: the verbs ended in a traceback."""
    result = CliRunner().invoke(main, verb.format(host).split())
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert verb.split()[1] in result.stderr


@pytest.mark.parametrize("verb", ["dev --listen :0", "demo", "demo --fleet 2", "sandbox"])
def test_without_a_temporary_folder_a_verb_says_what_to_set(verb: str, monkeypatch: pytest.MonkeyPatch):
    """A container whose root is read-only has none."""

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    for name in ("mkdtemp", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)
    result = CliRunner().invoke(main, verb.replace(":0", f":{free_ports(1)[0]}").split())
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "set TMPDIR" in result.stderr

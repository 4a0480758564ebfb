"""Verbs in terminals that are not UTF-8, with arguments that are not, with a closed pipe, and with --json on failure."""

import json
import os
import subprocess
import sys

import pytest
from running_daemon import DaemonDir

PLAIN = [
    ["status"],
    ["events", "list"],
    ["events", "show", "1"],
    ["dead", "list"],
    ["trace", "--user", "ünal@example.com"],
    ["names"],
    ["check"],
    ["config", "show"],
    ["map", "--reference"],
]


def run(*arguments, **environ):
    command = [sys.executable, "-m", "sidecar", *arguments]
    # Python would otherwise switch a C locale to UTF-8 by itself (PEP 538, PEP 540).
    environ = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} | environ
    return subprocess.run(command, env=environ, capture_output=True, timeout=60)


@pytest.fixture
def sent(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("ünal@example.com", "Größe → gewählt", properties={"ä": "日本"})
        daemon.track("6f1c0c80-7f4c-4f3e-9d2a-1f7f8a1b2c3d" * 2, "N" * 100)
        daemon.settle()
    return daemon_dir


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}], ids=["latin-1", "C locale"])
def test_no_verb_fails_where_the_terminal_lacks_a_character(sent: DaemonDir, environ):
    """In the C locale Python's handler of standard output is surrogateescape, and each such verb ended in a traceback."""
    for arguments in PLAIN:
        flags = [] if arguments[0] == "map" else sent.flags
        ran = run(*arguments, *flags, **environ)
        assert b"Traceback" not in ran.stderr, (arguments, ran.stderr.decode("latin-1"))
        assert ran.stdout + ran.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_json_is_the_same_in_every_encoding(sent: DaemonDir, encoding):
    ran = run("events", "list", "--json", *sent.flags, PYTHONIOENCODING=encoding)
    events = json.loads(ran.stdout.decode(encoding))["events"]
    assert events[1]["name"] == "Größe → gewählt"
    assert events[1]["event"]["properties"] == {"ä": "日本"}


@pytest.mark.parametrize(
    "arguments", [["send", b"\xff\xfe"], ["forget", b"\xff"], ["trace", b"\xff"], ["events", "list", "--user", b"\xff"]]
)
def test_an_argument_that_is_not_utf_8_is_one_sentence(daemon_dir: DaemonDir, arguments):
    with daemon_dir.running():
        ran = run(*arguments, *daemon_dir.flags)
    assert b"Traceback" not in ran.stderr, ran.stderr.decode()
    assert ran.returncode in (0, 1, 2)


@pytest.mark.whole
def test_no_json_shows_a_traceback_when_its_reader_has_gone(sent: DaemonDir):
    """Without --json: ``test_terminals.py``, for every verb."""
    for arguments in [*PLAIN, ["dead", "export"], ["config", "openapi"], ["config", "reference"]]:
        flags = [] if arguments[0] == "map" or arguments[1:] in (["openapi"], ["reference"]) else sent.flags
        more = ["--json"] if arguments != ["map", "--reference"] else []
        command = [sys.executable, "-m", "sidecar", *arguments, *more, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            error = process.stderr.read()
        assert b"Traceback" not in error, (arguments, error)
        assert b"Exception ignored" not in error, (arguments, error)


def test_a_closed_pipe_causes_no_traceback(sent: DaemonDir):
    command = [sys.executable, "-m", "sidecar", "map", "--reference"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert b"Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--json", "--config", "/nowhere/config.toml"], 78),
        (["events", "show", "99", "--json"], 1),
        (["events", "show", "x", "--json"], 2),
        (["trace", "--json"], 2),
        (["pause", "--nope", "--json"], 2),
    ],
)
def test_with_json_a_failure_is_json_too(sent: DaemonDir, verb, arguments, code):
    flags = [] if "--config" in arguments else sent.flags
    ran = verb(*arguments, *flags)
    assert ran.code == code
    assert ran.json["exit_code"] == code
    assert ran.json["error"]
    assert ran.err, "people see it as ever"


def test_all_times_carry_a_zone(sent: DaemonDir, verb):
    ran = verb("events", "list", *sent.flags)
    times = [word for word in ran.out.split() if word.count(":") >= 2]
    assert len(times) == 2
    assert all(word[-6] in "+-" for word in times)


def test_a_list_of_long_users_stays_readable_in_80_columns(sent: DaemonDir, verb):
    ran = verb("events", "list", *sent.flags)
    assert max(map(len, ran.out.splitlines())) <= 80
    text = "".join("".join(line.split()) for line in ran.out.splitlines())
    assert "ünal" in text

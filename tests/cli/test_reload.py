"""`px-sidecar reload` says what was taken, what waits and what is wrong; a broken file locks no operator out of a daemon."""

import os
import sys
from pathlib import Path

import pytest
from running_daemon import DaemonDir

from sidecar.config import ConfigFile


@pytest.fixture(autouse=True)
def no_variables(verb, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon of these tests runs in this process, and its environment is not the operator's."""
    monkeypatch.delenv("PX_SIDECAR_PX_API_KEY")


def with_file(daemon_dir: DaemonDir):
    """Run a daemon that reads the directory's file on a reload."""
    return daemon_dir.running(config_file=ConfigFile(str(daemon_dir.file)))


def add(daemon_dir: DaemonDir, text: str) -> None:
    with daemon_dir.file.open("a") as file:
        file.write(text)


def test_a_reload_says_what_is_in_force_and_what_waits(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        add(daemon_dir, '[deliver]\nper_second = 50\norder = "none"\n[mapping.events]\nA = "B"\n')
        ran = verb("reload", *daemon_dir.flags)
        assert ran.code == 0
        assert ran.out.splitlines() == [
            "The configuration was reloaded.",
            "  in force now: deliver.per_second  190 → 50.0",
            '  in force now: mapping.events  {} → {"A": "B"}',
            '  after a restart: deliver.order  "user" → "none"',
        ]
        again = verb("reload", *daemon_dir.flags)
        assert again.out.splitlines() == [
            "The configuration was reloaded.",
            '  after a restart: deliver.order  "user" → "none"',
        ]


def test_a_reload_of_an_unchanged_file_says_so(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        assert verb("reload", *daemon_dir.flags).out == "The configuration was reloaded; nothing in it has changed.\n"


def test_a_reload_as_json(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        add(daemon_dir, "[deliver]\nhosts = 2\n")
        assert verb("reload", "--json", *daemon_dir.flags).json == {
            "reloaded": True,
            "waiting": [],
            "changed": [{"key": "deliver.hosts", "now": 1, "then": 2, "restart": False}],
            "new_key": False,
        }


def test_a_refused_reload_shows_every_problem_and_exits_78(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir) as daemon:
        add(daemon_dir, "[deliver]\nhosts = 0\nper_secnd = 5\n")
        ran = verb("reload", *daemon_dir.flags)
        assert ran.code == 78
        lines = ran.err.splitlines()
        assert "px-sidecar: The configuration was not reloaded, the old one stays in force:" in lines
        assert [line.partition(": ")[0] for line in lines[-2:]] == [
            f"  {daemon_dir.file} line 12",
            f"  {daemon_dir.file} line 13",
        ]
        ran = verb("reload", "--json", *daemon_dir.flags)
        assert ran.code == ran.json["exit_code"] == 78
        assert [problem["line"] for problem in ran.json["problems"]] == [12, 13]
        assert "stays in force" in daemon.status()["warnings"][0]


def test_contradicting_rules_refuse_a_reload(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        add(daemon_dir, '[mapping.attributes]\ndrop = ["email"]\nrename = { mail = "email" }\n')
        ran = verb("reload", *daemon_dir.flags)
        assert ran.code == 78
        assert "`drop` denies that name" in ran.err


def test_a_reload_without_a_daemon_exits_69(daemon_dir: DaemonDir, verb):
    assert verb("reload", *daemon_dir.flags).code == 69


def test_a_secret_is_not_shown_by_a_reload(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        add(daemon_dir, "[[source]]\nwrite_key = 'MARKED'\n[mapping.attributes]\nhash_salt = 'MARKED'\n")
        ran = verb("reload", *daemon_dir.flags)
        assert "source" in ran.out
        assert "MARKED" not in ran.out


# A broken file ------------------------------------------------------------------------------------------------------

BROKEN = {
    "wrong value": "[deliver]\nhosts = 0\n",
    "unknown key": "[deliver]\nhosst = 1\n",
    "wrong value in the same table": 'unix_mode = "rw"\n',
    "unknown table": "[nope]\na = 1\n",
    "a line that is not TOML": "[deliver]\npace = burst\n",
    "an open bracket": "[mapping]\nconsent = [\n'a'\n[deliver]\nhosts = 1\n",
    "an open string": 'x = """\n',
    "a table twice": "[px]\nregion = 'eu'\n",
}


def break_file(daemon_dir: DaemonDir, kind: str) -> None:
    text = daemon_dir.file.read_text()
    if kind == "wrong value in the same table":
        text = text.replace("[listen]\n", f"[listen]\n{BROKEN[kind]}")
    else:
        text += BROKEN[kind]
    daemon_dir.file.write_text(text)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("way", ["--config", "before the verb", "variable", "instance", "usual file"])
def test_a_broken_file_does_not_lock_the_operator_out(daemon_dir: DaemonDir, verb, monkeypatch, kind, way):
    """With a control socket of its own the verbs refused to work until the file was corrected."""
    before, after, environ = {
        "--config": ([], daemon_dir.flags, {}),
        "before the verb": (daemon_dir.flags, [], {}),
        "variable": ([], [], {"PX_SIDECAR_CONFIG": str(daemon_dir.file)}),
        "instance": (["--instance", "config"], [], {}),
        "usual file": ([], [], {}),
    }[way]
    monkeypatch.setattr(sys.modules["sidecar.config.file"], "DEFAULT_PATH", str(daemon_dir.file))
    with with_file(daemon_dir):
        break_file(daemon_dir, kind)
        for arguments in (["pause"], ["resume"], ["status", "--json"], ["config", "show"]):
            ran = verb(*before, *arguments, *after, **environ)
            assert ran.code == 0, (arguments, ran)
            assert "this file cannot be used" in ran.err
        assert verb(*before, "reload", *after, **environ).code == 78


@pytest.mark.parametrize("variable", ["PX_SIDECAR_DELIVER_HOSTS", "PX_SIDECAR_DELIVER_HOSST", "PX_SIDECAR_PX_REGION"])
def test_a_broken_variable_does_not_lock_the_operator_out(daemon_dir: DaemonDir, verb, variable):
    with daemon_dir.running():
        assert verb("status", "--json", *daemon_dir.flags, **{variable: "x"}).code == 0


def test_without_a_daemon_a_broken_file_is_what_fails(daemon_dir: DaemonDir, verb):
    break_file(daemon_dir, "wrong value")
    ran = verb("events", "list", *daemon_dir.flags)
    assert ran.code == 78
    assert "deliver.hosts" in ran.err


@pytest.mark.parametrize("text", ["[listen\n", "[listen]\ncontrol = 5\n"])
def test_a_file_whose_socket_cannot_be_found_is_an_error(tmp_path: Path, verb, text):
    """Another daemon may listen at the usual path."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    ran = verb("status", "--config", str(path))
    assert ran.code == 78
    assert str(path) in ran.err


# config show --------------------------------------------------------------------------------------------------------


def test_show_is_what_is_in_force_and_file_what_the_file_says(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        add(daemon_dir, "[deliver]\nper_second = 50\norder = 'none'\n")
        ran = verb("config", "show", *daemon_dir.flags)
        assert f"per_second = 190.0  # not taken yet: 50.0 ({daemon_dir.file} line 12)" in ran.out.splitlines() or (
            f"per_second = 190  # not taken yet: 50.0 ({daemon_dir.file} line 12)" in ran.out.splitlines()
        ), ran.out
        assert (
            f"per_second = 50.0  # {daemon_dir.file} line 12" in verb("config", "show", "--file", *daemon_dir.flags).out
        )
        verb("reload", *daemon_dir.flags)
        shown = verb("config", "show", "--json", *daemon_dir.flags).json
        assert shown["deliver"]["per_second"] == 50
        assert shown["deliver"]["order"] == "user"
        assert shown["origin"]["deliver.order"] == f'not taken yet: "none" ({daemon_dir.file} line 13)'
        assert shown["origin"]["deliver.per_second"] == f"{daemon_dir.file} line 12"


def test_what_was_taken_out_of_the_file_is_shown_as_waiting(daemon_dir: DaemonDir, verb):
    add(daemon_dir, "[deliver]\nhosts = 3\n")
    with with_file(daemon_dir):
        daemon_dir.file.write_text(daemon_dir.file.read_text().replace("hosts = 3\n", ""))
        assert "hosts = 3  # not taken yet: 1" in verb("config", "show", *daemon_dir.flags).out.splitlines()


def test_without_a_daemon_show_is_what_the_file_says(daemon_dir: DaemonDir, verb):
    add(daemon_dir, "[deliver]\nhosts = 3\n")
    ran = verb("config", "show", *daemon_dir.flags)
    assert f"hosts = 3  # {daemon_dir.file} line 12" in ran.out.splitlines()


def test_show_of_a_broken_file_is_what_is_in_force(daemon_dir: DaemonDir, verb):
    with with_file(daemon_dir):
        break_file(daemon_dir, "wrong value")
        assert "hosts = 1" in verb("config", "show", *daemon_dir.flags).out.splitlines()
        assert verb("config", "show", "--file", *daemon_dir.flags).code == 78


@pytest.mark.parametrize("name", ["reload", "resume"])
def test_a_new_credential_that_waits_for_a_restart_is_named(daemon_dir: DaemonDir, verb, monkeypatch, tmp_path, name):
    """A new key in the unit's file, then reload: "nothing in it has changed", and delivery stayed paused for the old one."""
    monkeypatch.setattr("sidecar.cli.px_queries.KEY_FOLDER", tmp_path)
    key = tmp_path / "api_key"
    key.write_text("an old one")
    os.utime(key, (1_000_000_000, 1_000_000_000))
    with with_file(daemon_dir):
        assert "systemctl restart" not in verb(name, *daemon_dir.flags).err
        os.utime(key, (4_000_000_000, 4_000_000_000))
        ran = verb(name, *daemon_dir.flags)
        assert ran.code == 0
        assert f"Note: {key} has changed since the daemon started" in ran.err
        assert "`systemctl restart px-sidecar`" in ran.err

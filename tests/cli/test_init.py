"""`px-sidecar init`: questions, files written, files kept."""

import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli.init_user import unit_text
from sidecar.config import api_key, load
from sidecar.config.file import user_path

GIVEN = ["--yes", "--property-key", "AP-XXXXXXXXXX-2"]


def test_answers_become_a_configuration_and_a_key_file(verb, tmp_path):
    path = tmp_path / "etc" / "config.toml"
    ran = verb("init", "--config", str(path), stdin="eu\nAP-XXXXXXXXXX-2\nnone\n3\nthe-secret-key\n")
    assert ran.code == 0, ran.err
    config = load(str(path), {})
    assert (config.px.region, config.px.property_key) == ("eu", "AP-XXXXXXXXXX-2")
    assert (config.mapping.preset, config.deliver.hosts) == ("none", 3)
    key_file = path.with_name("api_key")
    assert key_file.read_text() == "the-secret-key\n"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert api_key(config.px, {}).reveal() == "the-secret-key"
    assert "the-secret-key" not in path.read_text() + ran.out + ran.err
    assert f"px-sidecar check --live --config {path}" in ran.out


def test_yes_takes_defaults_and_the_key_from_a_file(verb, tmp_path):
    path, key = tmp_path / "config.toml", tmp_path / "given"
    key.write_text("the-secret-key\n")
    ran = verb("init", *GIVEN, "--key-from", str(key), "--config", str(path), "--json")
    assert ran.json == {"config": str(path), "key_file": str(tmp_path / "api_key"), "key_written": True}
    config = load(str(path), {})
    assert (config.px.region, config.mapping.preset, config.deliver.hosts) == ("us", "b2b-saas", 1)


def test_yes_without_a_key_says_where_to_write_it(verb, tmp_path):
    ran = verb("init", *GIVEN, "--config", str(tmp_path / "config.toml"))
    assert ran.code == 0
    assert f"write the REST API key, and nothing else, into {tmp_path / 'api_key'}" in ran.out


def test_an_existing_key_is_kept(verb, tmp_path):
    (tmp_path / "api_key").write_text("precious\n")
    ran = verb("init", *GIVEN, "--config", str(tmp_path / "config.toml"))
    assert (tmp_path / "api_key").read_text() == "precious\n"
    assert "kept" in ran.out


@pytest.mark.parametrize("text", ['[px]\nproperty_key = "AP-MINE-2"\n', "this is not TOML"])
def test_an_existing_configuration_is_not_overwritten(verb, tmp_path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text)
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.code == 1
    assert "not overwritten" in ran.err
    assert path.read_text() == text


def test_the_configuration_of_the_package_is_replaced(verb, tmp_path):
    shipped = Path(__file__).parents[2] / "systemd" / "debian" / "config.toml"
    path = tmp_path / "config.toml"
    path.write_text(shipped.read_text())
    assert verb("init", *GIVEN, "--config", str(path)).code == 0
    assert load(str(path), {}).px.property_key == "AP-XXXXXXXXXX-2"


def test_swapped_keys_are_reported(verb, tmp_path):
    path = tmp_path / "config.toml"
    ran = verb("init", "--config", str(path), stdin="us\nAP-odd\nb2b-saas\n1\nAP-XXXXXXXXXX-2\nthe-key\n")
    assert ran.code == 0
    assert "does not look like a property key" in ran.err
    assert "holds a property key" in ran.err
    assert (tmp_path / "api_key").read_text() == "the-key\n"


def test_a_malformed_key_file_writes_nothing(verb, tmp_path):
    key = tmp_path / "given"
    key.write_text("two words\n")
    ran = verb("init", *GIVEN, "--key-from", str(key), "--config", str(tmp_path / "config.toml"))
    assert ran.code == 78
    assert list(tmp_path.iterdir()) == [key]


def test_yes_requires_the_product_key(verb, tmp_path):
    ran = verb("init", "--yes", "--config", str(tmp_path / "config.toml"))
    assert ran.code == 2
    assert "--property-key" in ran.err


def test_an_unwritable_folder_fails_in_one_sentence(verb, tmp_path):
    (tmp_path / "file").write_text("")
    ran = verb("init", *GIVEN, "--config", str(tmp_path / "file" / "config.toml"))
    assert ran.code == 1
    assert ran.err.count("\n") == 1


def test_a_malformed_product_key_is_asked_again_or_refused(verb, tmp_path):
    path = tmp_path / "config.toml"
    ran = verb("init", "--config", str(path), stdin="us\ntwo words\nAP-XXXXXXXXXX-2\nnone\n1\n\n")
    assert ran.code == 0
    assert "A product key begins with AP-, as in AP-XXXXXXXXXX-2." in ran.err
    assert load(str(path), {}).px.property_key == "AP-XXXXXXXXXX-2"
    given = verb("init", "--yes", "--property-key", "two words", "--config", str(tmp_path / "other.toml"))
    assert (given.code, "a product key begins with AP-" in given.err) == (2, True)
    assert not (tmp_path / "other.toml").exists()


def test_answers_from_a_pipe_cause_no_warning_of_an_echo(tmp_path):
    """getpass warned with the path of its own source, as there is no terminal whose echo it could turn off."""
    path = tmp_path / "config.toml"
    ran = subprocess.run(
        [sys.executable, "-m", "sidecar", "init", "--config", str(path)],
        input="us\nAP-XXXXXXXXXX-2\n\n\nthe-secret-key\n",
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    assert path.with_name("api_key").read_text() == "the-secret-key\n"


def test_an_empty_api_key_leaves_it_for_later(verb, tmp_path):
    ran = verb("init", "--config", str(tmp_path / "config.toml"), stdin="us\nAP-XXXXXXXXXX-2\nnone\n1\n\n")
    assert ran.code == 0
    assert f"Still to do: write the REST API key, and nothing else, into {tmp_path / 'api_key'}" in ran.out
    assert not (tmp_path / "api_key").exists()


def test_an_unreadable_configuration_is_left_alone(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.mkdir()  # unreadable for root, too
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.code == 1
    assert f"{path} cannot be read (Is a directory); use sudo" in ran.err
    assert list(path.iterdir()) == []


@pytest.mark.parametrize(
    ("instance", "next_step"),
    [
        ([], "Next: px-sidecar check --live && systemctl enable --now px-sidecar\n"),
        (
            ["--instance", "eu"],
            "Next: px-sidecar --instance eu check --live && systemctl enable --now px-sidecar@eu\n",
        ),
    ],
)
def test_at_the_default_path_the_next_step_is_systemctl(
    verb, tmp_path, monkeypatch, instance: list[str], next_step: str
):
    default = tmp_path / "config.toml"
    monkeypatch.setattr("sidecar.cli.init.DEFAULT_PATH", str(default))
    ran = verb(*instance, "init", *GIVEN, "--config", str(default))
    assert ran.code == 0
    assert ran.out.endswith(next_step)
    assert "api_key_file" not in default.read_text()


def test_the_next_command_quotes_the_path(verb, tmp_path):
    """A path with a space was printed without quotes, and the printed command failed."""
    path = tmp_path / "my app" / "config.toml"
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.out.endswith(f"Next: px-sidecar check --live --config '{path}' && px-sidecar run --config '{path}'\n")
    assert load(str(path), {}).px.api_key_file == str(path.with_name("api_key"))


@pytest.mark.parametrize("folder", ["it's", 'a "quoted" one', "back\\slash", """ it's "both" """])
def test_a_path_with_quotes_can_be_read_again(verb, tmp_path, folder):
    path = tmp_path / folder / "config.toml"
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.code == 0, ran.err
    assert load(str(path), {}).px.api_key_file == str(path.with_name("api_key"))


def test_the_unit_quotes_a_path_for_systemd(tmp_path):
    """An apostrophe begins a quotation in the middle of a word, too (systemd.syntax(7), QUOTING)."""
    text = unit_text(tmp_path / "it's" / "config.toml")
    assert f'--config "{tmp_path}/it\'s/config.toml"\n' in text


@pytest.fixture
def not_root(monkeypatch, tmp_path):
    """A user without root on a host without a configuration; the test itself may run as root."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    # Not by name: the package has a function of the module's name.
    module = sys.modules["sidecar.config.file"]
    monkeypatch.setattr(module, "DEFAULT_PATH", str(tmp_path / "etc" / "config.toml"))
    for variable, folder in (("XDG_CONFIG_HOME", "conf"), ("XDG_STATE_HOME", "state"), ("XDG_RUNTIME_DIR", "run")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.delenv("PX_SIDECAR_CONFIG", raising=False)
    return tmp_path


def test_without_root_everything_is_below_the_xdg_directories(not_root, verb):
    ran = verb("init", *GIVEN)
    assert ran.code == 0, ran.err
    path = not_root / "conf" / "px-sidecar" / "config.toml"
    config = load(None, dict(os.environ))
    assert config.listen.unix == str(not_root / "run" / "px-sidecar" / "events.sock")
    assert config.listen.control == str(not_root / "run" / "px-sidecar" / "control.sock")
    assert config.outbox.path == str(not_root / "state" / "px-sidecar" / "outbox.db")
    unit = not_root / "conf" / "systemd" / "user" / "px-sidecar.service"
    assert f"run --config {path}" in unit.read_text()
    assert "systemctl --user enable --now px-sidecar" in ran.out


def test_verbs_say_that_they_use_the_users_file(not_root, verb):
    verb("init", *GIVEN)
    ran = verb("config", "show", "--json")
    assert ran.json["px"]["property_key"] == "AP-XXXXXXXXXX-2"
    assert f"Using {not_root / 'conf' / 'px-sidecar' / 'config.toml'}." in ran.err


def test_hints_name_the_users_own_service(not_root, verb):
    """The hint was `systemctl start px-sidecar`, which is another daemon, and not the user's to start."""
    verb("init", *GIVEN)
    assert "`systemctl --user start px-sidecar`" in verb("pause").err
    assert "`systemctl --user start px-sidecar`" in verb("status").err


def test_check_names_both_files_that_do_not_exist(not_root, verb):
    """It said that `init` writes the host's file, which a user without root cannot."""
    found = " ".join(verb("check").out.split()).replace(" ", "")
    assert f"Neither{not_root / 'etc' / 'config.toml'}nor{not_root / 'conf' / 'px-sidecar' / 'config.toml'}" in found


def test_a_configuration_of_the_host_goes_before_the_users(not_root, verb):
    verb("init", *GIVEN)
    host = not_root / "etc" / "config.toml"
    host.parent.mkdir()
    host.write_text('[px]\nproperty_key = "AP-HOST-2"\n')
    assert load(None, dict(os.environ)).px.property_key == "AP-HOST-2"
    assert "Using" not in verb("config", "show").err


def test_relative_xdg_directories_are_ignored(not_root, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "conf")
    monkeypatch.setenv("HOME", str(not_root))
    assert user_path() == not_root / ".config" / "px-sidecar" / "config.toml"


def test_a_new_configuration_names_its_schema_and_sends_ids(verb, tmp_path):
    path = tmp_path / "config.toml"
    verb("init", *GIVEN, "--config", str(path))
    assert path.read_text().startswith("#:schema ./config.schema.json\n")
    assert json.loads((tmp_path / "config.schema.json").read_text())["properties"]["px"]
    assert load(str(path), {}).mapping.fields["eventId"] == "messageId"
    assert load(str(path), {}).px.region == "us"
    assert 'region = "us"' in path.read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is not installed")
def test_local_tls_makes_a_certificate_that_a_client_can_trust(verb, tmp_path):
    path = tmp_path / "config.toml"
    ran = verb("init", *GIVEN, "--local-tls", "--config", str(path))
    assert ran.code == 0, ran.err
    config = load(str(path), {})
    assert config.listen.https == "127.0.0.1:8322"
    assert stat.S_IMODE(Path(config.listen.tls_key).stat().st_mode) & 0o007 == 0
    assert f"SSL_CERT_FILE={tmp_path / 'localhost.pem'}" in ran.out
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(config.listen.tls_cert, config.listen.tls_key)
    client = ssl.create_default_context(cafile=config.listen.tls_cert)
    for name in ("localhost", "127.0.0.1"):
        assert handshake(server, client, name)


def handshake(server, client, name):
    """Run a TLS handshake in memory; raises ssl.SSLError if the client does not trust the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = set()
    while len(done) < 2:
        for side in sides:
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    return True


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is not installed")
def test_local_tls_for_a_configuration_that_exists_prints_what_to_add(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[px]\nproperty_key = "AP-MINE-2"\n')
    ran = verb("init", "--local-tls", "--config", str(path))
    assert ran.code == 0, ran.err
    assert path.read_text() == '[px]\nproperty_key = "AP-MINE-2"\n'
    assert f'tls_cert = "{tmp_path / "localhost.pem"}"' in ran.out


def test_local_tls_without_openssl_is_one_sentence(verb, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    ran = verb("init", *GIVEN, "--local-tls", "--config", str(tmp_path / "config.toml"))
    assert ran.code == 1
    assert "openssl does not exist" in ran.err
    assert not (tmp_path / "config.toml").exists()


def test_a_question_without_an_answer_is_json_with_json(verb, tmp_path):
    ran = verb("init", "--config", str(tmp_path / "config.toml"), "--json", stdin="")
    assert ran.code == 1
    assert ran.lines[-1] == {"error": "Aborted at a question; give --yes, or the answers as options.", "exit_code": 1}


def test_json_of_init_without_root_writes_the_unit_too(not_root, verb):
    """The verb returned before it, though its help promises the unit."""
    ran = verb("init", "--yes", "--property-key", "AP-X-2", "--json")
    assert ran.json["key_written"] is False
    assert (not_root / "conf" / "systemd" / "user" / "px-sidecar.service").exists()


def test_local_tls_for_a_configuration_that_exists_as_json(verb, tmp_path, monkeypatch):
    """It printed text; for a file that this user cannot read it was a traceback."""
    path = tmp_path / "config.toml"
    path.write_text('[px]\nregion = "eu"\n')
    ran = verb("init", "--local-tls", "--config", str(path), "--json")
    assert ran.json["tls_key"] == str(tmp_path / "localhost.key")

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)
    ran = verb("init", "--local-tls", "--config", str(path), "--json")
    assert "cannot be read (Permission denied)" in ran.lines[-1]["error"]

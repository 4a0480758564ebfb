"""Paths: which file is read, where the outbox is, and what an instance does not share."""

import sys

import pytest

from sidecar.config import Config, config_path, load
from sidecar.config.file import control_sockets
from sidecar.errors import ConfigError


@pytest.fixture
def etc(tmp_path, monkeypatch):
    """A directory that stands in for /etc/px-sidecar."""
    monkeypatch.setattr(sys.modules["sidecar.config.file"], "DEFAULT_PATH", str(tmp_path / "config.toml"))
    return tmp_path


def test_the_outbox_is_in_the_state_directory_by_default(etc):
    assert load(None, {}).outbox.path == "/var/lib/px-sidecar/outbox.db"
    assert load(None, {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}).outbox.path == "/var/lib/a/outbox.db"
    (etc / "config.toml").write_text("outbox.path = '/srv/o.db'")
    assert load(None, {"STATE_DIRECTORY": "/var/lib/a"}).outbox.path == "/srv/o.db"
    assert Config().outbox.path == ""


def test_an_instance_has_its_own_file_sockets_and_outbox(etc):
    (etc / "acme.toml").write_text("px.region = 'eu'")
    config = load(None, {}, "acme")
    assert config.px.region == "eu"
    assert config.outbox.path == "/var/lib/px-sidecar/acme/outbox.db"
    assert config.listen.unix == "/run/px-sidecar/events-acme.sock"
    assert config.listen.control == "/run/px-sidecar/control-acme.sock"
    assert config.listen.http == ""


def test_file_and_variables_override_the_defaults_of_an_instance(etc):
    (etc / "acme.toml").write_text("[listen]\nhttp = '127.0.0.1:9000'\ncontrol = '/run/c'")
    config = load(None, {"PX_SIDECAR_LISTEN_UNIX": "/run/u"}, "acme")
    assert (config.listen.http, config.listen.control, config.listen.unix) == ("127.0.0.1:9000", "/run/c", "/run/u")


def test_an_instance_needs_its_file(etc):
    with pytest.raises(ConfigError) as caught:
        load(None, {}, "acme")
    assert (
        str(caught.value) == f"The configuration file {etc}/acme.toml does not exist; create it with `px-sidecar init`."
    )


def test_an_error_in_listen_is_reported_for_an_instance(etc):
    (etc / "acme.toml").write_text("listen = 5")
    with pytest.raises(ConfigError, match="line 1: listen must be a table"):
        load(None, {}, "acme")


@pytest.mark.parametrize("name", ["../x", "a/b", "-a", "a b", "x" * 33, "a\n"])
def test_an_instance_name_must_be_a_file_name(etc, name):
    with pytest.raises(ConfigError, match="is not valid; use at most 32 letters"):
        load(None, {}, name)
    for path_of in (config_path, control_sockets):  # a path with a slash in its name was a traceback
        with pytest.raises(ConfigError, match="is not valid; use at most 32 letters"):
            path_of(None, {}, name)

"""Sources of the API key, and checks that it is not confused with the property key."""

import pytest

from sidecar.config import PxConfig, Secret, api_key, load_text, property_key, property_key_warning
from sidecar.config.credentials import remote_warning, write_key_warnings
from sidecar.errors import ConfigError

KEY = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def refused(px, environ=None):
    with pytest.raises(ConfigError) as caught:
        api_key(px, environ or {})
    assert KEY not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def credentials(tmp_path):
    """A directory as systemd sets it in ``$CREDENTIALS_DIRECTORY``; tests write ``px_api_key`` into it."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    return folder


def test_the_key_is_read_from_the_configuration():
    assert api_key(PxConfig(api_key=Secret(f" {KEY}\n")), {}).reveal() == KEY


def test_the_key_is_read_from_a_file(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert api_key(PxConfig(api_key_file=str(tmp_path / "key")), {}).reveal() == KEY


def test_the_key_is_read_from_the_systemd_credential(credentials):
    (credentials / "px_api_key").write_text(f"{KEY}\n")
    assert api_key(PxConfig(), {"CREDENTIALS_DIRECTORY": str(credentials)}).reveal() == KEY


def test_an_empty_credential_counts_as_absent(credentials, tmp_path):
    (credentials / "px_api_key").write_text("\n")
    (tmp_path / "key").write_text(KEY)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert api_key(PxConfig(api_key_file=str(tmp_path / "key")), environ).reveal() == KEY
    assert "No PX API key is configured" in refused(PxConfig(), environ)


def test_a_missing_key_names_all_sources(credentials):
    message = refused(PxConfig(), {"CREDENTIALS_DIRECTORY": str(credentials)})
    for source in ("px.api_key_file", "'px_api_key'", "px.api_key", "PX_SIDECAR_PX_API_KEY"):
        assert source in message


def test_two_keys_are_refused_and_both_sources_named(tmp_path, credentials):
    (tmp_path / "key").write_text(KEY)
    (credentials / "px_api_key").write_text(KEY)
    message = refused(PxConfig(api_key=Secret(KEY), api_key_file=str(tmp_path / "key")))
    assert (
        message
        == f"The PX API key is configured more than once: in px.api_key and in px.api_key_file ({tmp_path}/key); keep one of them."
    )
    message = refused(PxConfig(api_key=Secret(KEY)), {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert "in px.api_key and in the systemd credential 'px_api_key'" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfek\0e\0y\0", "is UTF-16 text; save it as UTF-8"),
        (b"k\0e\0y\0", "is UTF-16 text; save it as UTF-8"),
        (KEY.encode("utf-8-sig"), "begins with a byte order mark; save it as UTF-8 without one"),
        (b"key\xe4", "is not UTF-8 text (line 1); save it as UTF-8"),
        (b"x" * 5000, "is longer than 4,096 bytes; check that the path is the right one"),
        (b"", "is empty; put the API key into it (PX: Administration > Integrations > REST API)"),
        (None, "is a directory; name the file in it"),
        ("absent", "does not exist; write the key alone into it, with mode 0600"),
    ],
)
def test_an_odd_key_file_is_one_sentence_that_says_what_to_write(tmp_path, data, reason):
    path = tmp_path / "key"
    if data is None:
        path.mkdir()
    elif data != "absent":
        path.write_bytes(data)
    message = refused(PxConfig(api_key_file=str(path)))
    assert message.endswith(f"{reason}."), message
    assert str(path) in message


@pytest.mark.parametrize("text", [f"{KEY}\r\n", f"\n  {KEY}\t\n\n"])
def test_blanks_and_line_ends_around_a_key_do_no_harm(tmp_path, text):
    (tmp_path / "key").write_bytes(text.encode())
    assert api_key(PxConfig(api_key_file=str(tmp_path / "key")), {}).reveal() == KEY


@pytest.mark.parametrize("text", [f'"{KEY}"', f"'{KEY}'", f"“{KEY}”"])
def test_quotes_around_a_key_are_named(text):
    assert "without quotes" in refused(PxConfig(api_key=Secret(text)))


@pytest.mark.parametrize(
    "text", [f"api_key={KEY}", f'key = "{KEY}', f"export PX_API_KEY={KEY}", f"X-APTRINSIC-API-KEY: {KEY}"]
)
def test_a_setting_in_place_of_a_key_is_named(text):
    assert "holds a setting" in refused(PxConfig(api_key=Secret(text)))


@pytest.mark.parametrize("key", ["key0=", "Zm9vYmFy==", "keykeykey"])
def test_a_key_that_ends_like_base64_is_a_key(key):
    assert api_key(PxConfig(api_key=Secret(key)), {}).reveal() == key


def test_a_write_key_that_basic_cannot_carry_is_named():
    config = load_text("[[source]]\nwrite_key = 'MARKED:x'\n[[source]]\nwrite_key = 'good'\n")
    (warning,) = write_key_warnings(config)
    assert "number 1" in warning
    assert "MARKED" not in warning


def test_an_empty_key_is_refused(tmp_path):
    (tmp_path / "key").write_text("\n \n")
    assert "is empty; put the API key into it" in refused(PxConfig(api_key_file=str(tmp_path / "key")))
    assert "px.api_key is empty" in refused(PxConfig(api_key=Secret("  ")))


@pytest.mark.parametrize("text", ["AP-XXXXXXXXXX-2", "AP-ABCDEFGHIJKL-2-1"])
def test_a_property_key_is_refused_as_api_key(text):
    message = refused(PxConfig(api_key=Secret(text)))
    assert (
        message == "px.api_key holds a property key (AP-…), not the REST API key; create a REST API key in PX "
        "(Administration > Integrations > REST API)."
    )


@pytest.mark.parametrize("text", [f"my {KEY}", f"{KEY}\n{KEY}", f"{KEY}\x00", f"{KEY}é", "k" * 5000])
def test_a_key_with_other_characters_is_refused(text):
    assert "put only the key into it" in refused(PxConfig(api_key=Secret(text)))


def test_an_unusual_property_key_is_only_a_warning():
    assert property_key(PxConfig(property_key=" AP-XXXXXXXXXX-2 ")) == "AP-XXXXXXXXXX-2"
    with pytest.raises(ConfigError, match=r"px\.property_key is not set; set it to your PX product's key"):
        property_key(PxConfig(property_key=" "))
    assert property_key_warning("AP-XXXXXXXXXX-2") is None
    warning = property_key_warning(KEY)
    assert warning is not None
    assert "does not look like a property key" in warning
    assert KEY not in warning


@pytest.mark.parametrize(
    ("text", "warns"),
    [
        ("", False),
        ('[listen]\nhttp = "0.0.0.0:8321"\nallow_remote = true', True),
        ("[listen]\nallow_remote = true\nhttp = ''", False),
        ("[listen]\nallow_remote = true\n[[source]]\nwrite_key = 'wk'", False),
    ],
)
def test_remote_listeners_without_a_write_key_are_warned_of(text, warns):
    assert bool(remote_warning(load_text(text))) is warns

"""Where the API key comes from, and that it is not mixed up with the property key."""

import pytest

from sidecar.config import Px, Secret, api_key, odd_property_key, property_key
from sidecar.errors import ConfigError

KEY = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def refused(px, environ=None):
    with pytest.raises(ConfigError) as caught:
        api_key(px, environ or {})
    assert KEY not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def credentials(tmp_path):
    """``$CREDENTIALS_DIRECTORY`` as systemd sets it; write ``px_api_key`` into it."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    return folder


def test_the_key_comes_from_the_configuration():
    assert api_key(Px(api_key=Secret(f" {KEY}\n")), {}).reveal() == KEY


def test_the_key_comes_from_a_file(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert api_key(Px(api_key_file=str(tmp_path / "key")), {}).reveal() == KEY


def test_the_key_comes_from_the_systemd_credential(credentials):
    (credentials / "px_api_key").write_text(f"{KEY}\n")
    assert api_key(Px(), {"CREDENTIALS_DIRECTORY": str(credentials)}).reveal() == KEY


def test_an_empty_credential_is_no_credential(credentials, tmp_path):
    (credentials / "px_api_key").write_text("\n")
    (tmp_path / "key").write_text(KEY)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert api_key(Px(api_key_file=str(tmp_path / "key")), environ).reveal() == KEY
    assert "There is no PX API key" in refused(Px(), environ)


def test_no_key_names_all_ways_to_give_one(credentials):
    message = refused(Px(), {"CREDENTIALS_DIRECTORY": str(credentials)})
    for way in ("px.api_key_file", "'px_api_key'", "px.api_key", "PX_SIDECAR_PX_API_KEY"):
        assert way in message


def test_two_keys_are_refused_and_both_places_are_named(tmp_path, credentials):
    (tmp_path / "key").write_text(KEY)
    (credentials / "px_api_key").write_text(KEY)
    message = refused(Px(api_key=Secret(KEY), api_key_file=str(tmp_path / "key")))
    assert (
        message
        == f"The PX API key is given more than once, by px.api_key and by px.api_key_file ({tmp_path}/key); keep one of them."
    )
    message = refused(Px(api_key=Secret(KEY)), {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert "by px.api_key and by the systemd credential 'px_api_key'" in message


def test_an_unreadable_file_is_told_with_path_and_reason(tmp_path):
    assert refused(Px(api_key_file=str(tmp_path / "none"))) == (
        f"px.api_key_file cannot be read from {tmp_path}/none (No such file or directory); check the path, its owner and mode."
    )
    assert "Is a directory" in refused(Px(api_key_file=str(tmp_path)))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not text" in refused(Px(api_key_file=str(tmp_path / "binary")))


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "key").write_text("\n \n")
    assert "is empty; write the API key into it" in refused(Px(api_key_file=str(tmp_path / "key")))
    assert "px.api_key is empty" in refused(Px(api_key=Secret("  ")))


@pytest.mark.parametrize("text", ["AP-XXXXXXXXXX-2", "AP-ABCDEFGHIJKL-2-1"])
def test_a_property_key_in_place_of_the_api_key_is_told(text):
    message = refused(Px(api_key=Secret(text)))
    assert (
        message
        == "px.api_key holds a property key (AP-…); the REST API key is another one (PX: Administration > REST API)."
    )


@pytest.mark.parametrize("text", [f"key = {KEY}", f"{KEY}\n{KEY}", f"{KEY}\x00", f"{KEY}é", "k" * 5000])
def test_what_cannot_travel_in_a_header_is_refused(text):
    assert "write the API key alone" in refused(Px(api_key=Secret(text)))


def test_the_property_key_is_required_and_only_its_odd_shape_is_a_warning():
    assert property_key(Px(property_key=" AP-XXXXXXXXXX-2 ")) == "AP-XXXXXXXXXX-2"
    with pytest.raises(ConfigError, match=r"px\.property_key is not set; give your PX product's key"):
        property_key(Px(property_key=" "))
    assert odd_property_key("AP-XXXXXXXXXX-2") is None
    warning = odd_property_key(KEY)
    assert warning is not None
    assert "does not look like a property key" in warning
    assert KEY not in warning

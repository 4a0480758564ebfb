"""`px-sidecar init`, through the command line."""

import stat
from pathlib import Path

import pytest

from sidecar.config import api_key, load

GIVEN = ["--yes", "--property-key", "AP-XXXXXXXXXX-2"]


def test_answers_become_a_configuration_without_secrets_and_a_key_file(verb, tmp_path):
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


def test_without_answers_defaults_are_taken_and_the_key_comes_from_a_file(verb, tmp_path):
    path, key = tmp_path / "config.toml", tmp_path / "given"
    key.write_text("the-secret-key\n")
    ran = verb("init", *GIVEN, "--key-from", str(key), "--config", str(path), "--json")
    assert ran.json == {"config": str(path), "key_file": str(tmp_path / "api_key"), "key_written": True}
    config = load(str(path), {})
    assert (config.px.region, config.mapping.preset, config.deliver.hosts) == ("us", "b2b-saas", 1)


def test_a_key_can_be_given_later(verb, tmp_path):
    ran = verb("init", *GIVEN, "--config", str(tmp_path / "config.toml"))
    assert ran.code == 0
    assert f"put the REST API key alone into {tmp_path / 'api_key'}" in ran.out


def test_a_key_that_is_there_is_kept(verb, tmp_path):
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


def test_the_configuration_that_the_package_brings_is_replaced(verb, tmp_path):
    shipped = Path(__file__).parents[2] / "systemd" / "debian" / "config.toml"
    path = tmp_path / "config.toml"
    path.write_text(shipped.read_text())
    assert verb("init", *GIVEN, "--config", str(path)).code == 0
    assert load(str(path), {}).px.property_key == "AP-XXXXXXXXXX-2"


def test_the_two_keys_are_not_mixed_up(verb, tmp_path):
    path = tmp_path / "config.toml"
    ran = verb("init", "--config", str(path), stdin="us\nnot-a-product\nb2b-saas\n1\nAP-XXXXXXXXXX-2\nthe-key\n")
    assert ran.code == 0
    assert "does not look like a property key" in ran.err
    assert "holds a property key" in ran.err
    assert (tmp_path / "api_key").read_text() == "the-key\n"


def test_an_odd_key_from_a_file_writes_nothing(verb, tmp_path):
    key = tmp_path / "given"
    key.write_text("two words\n")
    ran = verb("init", *GIVEN, "--key-from", str(key), "--config", str(tmp_path / "config.toml"))
    assert ran.code == 78
    assert list(tmp_path.iterdir()) == [key]


def test_without_questions_the_product_key_has_to_be_given(verb, tmp_path):
    ran = verb("init", "--yes", "--config", str(tmp_path / "config.toml"))
    assert ran.code == 2
    assert "--property-key" in ran.err


def test_a_folder_that_cannot_be_written_is_told(verb, tmp_path):
    (tmp_path / "file").write_text("")
    ran = verb("init", *GIVEN, "--config", str(tmp_path / "file" / "config.toml"))
    assert ran.code == 1
    assert ran.err.count("\n") == 1


def test_an_answer_that_is_no_product_key_is_asked_again_and_one_given_is_wrong_usage(verb, tmp_path):
    path = tmp_path / "config.toml"
    ran = verb("init", "--config", str(path), stdin="us\ntwo words\nAP-XXXXXXXXXX-2\nnone\n1\n\n")
    assert ran.code == 0
    assert "A product key is one word, as AP-XXXXXXXXXX-2." in ran.err
    assert load(str(path), {}).px.property_key == "AP-XXXXXXXXXX-2"
    given = verb("init", "--yes", "--property-key", "two words", "--config", str(tmp_path / "other.toml"))
    assert (given.code, "a product key is one word" in given.err) == (2, True)
    assert not (tmp_path / "other.toml").exists()


def test_an_empty_answer_for_the_api_key_means_later(verb, tmp_path):
    ran = verb("init", "--config", str(tmp_path / "config.toml"), stdin="us\nAP-XXXXXXXXXX-2\nnone\n1\n\n")
    assert ran.code == 0
    assert f"Still to do: put the REST API key alone into {tmp_path / 'api_key'}" in ran.out
    assert not (tmp_path / "api_key").exists()


def test_a_configuration_that_cannot_be_read_is_told_and_left_alone(verb, tmp_path):
    path = tmp_path / "config.toml"
    path.mkdir()  # root may read every file
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.code == 1
    assert f"{path} cannot be read (Is a directory); use sudo" in ran.err
    assert list(path.iterdir()) == []


@pytest.mark.parametrize(
    ("instance", "follows"),
    [
        ([], "Next: px-sidecar check --live && systemctl enable --now px-sidecar\n"),
        (
            ["--instance", "eu"],
            "Next: px-sidecar --instance eu check --live && systemctl enable --now px-sidecar@eu\n",
        ),
    ],
)
def test_where_the_units_look_the_next_step_is_the_unit_and_the_key_has_no_path(
    verb, tmp_path, monkeypatch, instance: list[str], follows: str
):
    default = tmp_path / "config.toml"
    monkeypatch.setattr("sidecar.cli.init.DEFAULT_PATH", str(default))
    ran = verb(*instance, "init", *GIVEN, "--config", str(default))
    assert ran.code == 0
    assert ran.out.endswith(follows)
    assert "api_key_file" not in default.read_text()


def test_a_path_with_a_space_broke_the_next_command(verb, tmp_path):
    path = tmp_path / "my app" / "config.toml"
    ran = verb("init", *GIVEN, "--config", str(path))
    assert ran.out.endswith(f"Next: px-sidecar check --live --config '{path}' && px-sidecar run --config '{path}'\n")
    assert load(str(path), {}).px.api_key_file == str(path.with_name("api_key"))

"""``reference.toml`` lists every key with its default; tables that are empty by default show an example."""

import tomllib
from pathlib import Path

import pytest

from sidecar.config import Config, as_toml, effective, json_schema, load_text

REFERENCE = (Path(__file__).parent / "reference.toml").read_text(encoding="utf-8")
TREE = tomllib.loads(REFERENCE)
EXAMPLES = {
    "mapping": ("events", "event", "drop", "fields", "attributes"),
    "identity": ("reject",),
}  # and all of [[source]]
DEFAULTS = [
    (section, key, value)
    for section, table in TREE.items()
    if section != "source"
    for key, value in table.items()
    if key not in EXAMPLES.get(section, ())
]


def test_the_reference_loads():
    config = load_text(REFERENCE)
    assert config.source[0].write_key.reveal() == "wk_web"
    assert config.mapping.event["Subscription Started"].priority == "high"
    assert config.mapping.attributes.set == {"environment": "production"}


@pytest.mark.parametrize(("section", "key", "value"), DEFAULTS, ids=lambda part: str(part))
def test_each_key_has_the_default_of_the_reference(section, key, value):
    default = getattr(getattr(Config(), section), key)
    assert getattr(getattr(load_text(f"[{section}]\n{key} = {toml_literal(value)}"), section), key) == default
    assert effective(Config())[section][key] == value


def toml_literal(value):
    return str(value).lower() if isinstance(value, bool | int | float | list) else f'"{value}"'


def test_the_examples_are_empty_by_default():
    config = Config()
    assert config.source == []
    assert config.mapping.events == config.mapping.event == config.mapping.fields == {}
    assert config.mapping.drop == []
    assert (config.mapping.attributes.keep, config.mapping.attributes.drop, config.mapping.attributes.rename) == (
        [],
        [],
        {},
    )


def test_the_reference_names_every_key():
    only_in_comments = {
        "px": {"proxy", "ca_file"},
        "listen": {"tls_cert", "tls_key", "unix_group"},
        "mapping": {"traits"},
    }
    for section, table in effective(Config()).items():
        if section != "source":
            assert set(table) - set(TREE[section]) <= only_in_comments.get(section, set()), section


def test_the_toml_output_loads_as_an_equal_configuration():
    config = load_text(REFERENCE.replace('write_key = "wk_web"', 'write_key = "****"'))
    assert load_text(as_toml(config)) == config
    assert load_text(as_toml(Config())) == Config()


def test_unusual_strings_survive_the_toml_output():
    config = load_text(
        '[mapping.events]\n"A \\"quoted\\" näme\\t\\u007f.*" = "x\\\\y"\n"" = "z"\n[deliver]\ntimeout = "1.5s"\nmax_age="90m"'
    )
    assert load_text(as_toml(config)) == config


def test_secrets_are_masked_in_every_view():
    marked = "MARKED-6f1"
    text = f"""
        px.api_key = "{marked}"
        px.proxy = "http://user:{marked}@proxy:3128"
        mapping.attributes.hash_salt = "{marked}"
        mapping.event."A".attributes.hash_salt = "{marked}"
        [[source]]
        write_key = "{marked}"
        """
    config = load_text(text)
    for view in (as_toml(config), str(effective(config)), repr(config).replace(config.px.proxy, "")):
        assert marked not in view
    assert effective(config)["px"]["api_key"] == "****"
    assert effective(config)["px"]["proxy"] == "http://****@proxy:3128"


def test_the_json_schema_has_every_key_and_default():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for section, key, value in DEFAULTS:
        assert schema["properties"][section]["properties"][key]["default"] == value, (section, key)
    deliver = schema["properties"]["deliver"]["properties"]
    texts = {"description", "examples"}
    typed = {key: value for key, value in deliver["max_in_flight"].items() if key not in texts}
    assert typed == {"type": "integer", "minimum": 1, "maximum": 1024, "default": 128}
    assert schema["properties"]["px"]["properties"]["region"]["enum"] == ["us", "eu", "us2"]
    assert schema["properties"]["source"]["items"]["required"] == ["write_key"]
    event = schema["properties"]["mapping"]["properties"]["event"]["additionalProperties"]
    assert event["properties"]["user_type"]["enum"] == ["USER", "VISITOR", "LEAD"]


@pytest.mark.parametrize("text", ["1500ms", "0.0005s", "90s", "24h", "2d"])
def test_the_toml_output_keeps_every_duration_exact(text: str):
    config = load_text(f'[outbox]\nkeep_delivered = "{text}"\n')
    again = load_text(as_toml(config))
    assert again.outbox.keep_delivered == config.outbox.keep_delivered

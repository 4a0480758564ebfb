"""``design.toml`` is the configuration as the design shows it: its values are the defaults, but for the examples."""

import tomllib
from pathlib import Path

import pytest

from sidecar.config import Config, as_toml, effective, json_schema, load_text

DESIGN = (Path(__file__).parent / "design.toml").read_text(encoding="utf-8")
TREE = tomllib.loads(DESIGN)
EXAMPLES = {"mapping": ("events", "event", "fields", "attributes")}  # and all of [[source]]
DEFAULTS = [
    (section, key, value)
    for section, table in TREE.items()
    if section != "source"
    for key, value in table.items()
    if key not in EXAMPLES.get(section, ())
]


def test_the_block_of_the_design_is_a_configuration_that_loads():
    config = load_text(DESIGN)
    assert config.source[0].write_key.reveal() == "wk_web"
    assert config.mapping.event["Subscription Started"].priority == "high"
    assert config.mapping.attributes.set == {"environment": "production"}


@pytest.mark.parametrize(("section", "key", "value"), DEFAULTS, ids=lambda part: str(part))
def test_each_key_has_the_default_that_the_design_shows(section, key, value):
    default = getattr(getattr(Config(), section), key)
    assert getattr(getattr(load_text(f"[{section}]\n{key} = {tomllib_text(value)}"), section), key) == default
    assert effective(Config())[section][key] == value


def tomllib_text(value):
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'


def test_the_examples_are_empty_by_default():
    config = Config()
    assert config.source == []
    assert config.mapping.events == config.mapping.event == config.mapping.fields == {}
    assert (config.mapping.attributes.keep, config.mapping.attributes.drop, config.mapping.attributes.rename) == (
        [],
        [],
        {},
    )


def test_the_design_names_every_key_there_is_or_it_is_listed_here():
    beyond = {
        "px": {"proxy", "ca_file"},  # in the design's comments
        "listen": {"tls_cert", "tls_key", "unix_group"},  # in the design's comments
        "mapping": {"traits"},
    }
    for section, table in effective(Config()).items():
        if section != "source":
            assert set(table) - set(TREE[section]) <= beyond.get(section, set()), section


def test_what_is_shown_loads_again_as_the_same():
    config = load_text(DESIGN.replace('write_key = "wk_web"', 'write_key = "****"'))
    assert load_text(as_toml(config)) == config
    assert load_text(as_toml(Config())) == Config()


def test_odd_texts_survive_being_shown():
    config = load_text(
        '[mapping.events]\n"A \\"quoted\\" näme\\t\\u007f.*" = "x\\\\y"\n"" = "z"\n[deliver]\ntimeout = "1.5s"\nmax_age="90m"'
    )
    assert load_text(as_toml(config)) == config


def test_secrets_are_masked_wherever_they_are():
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


def test_the_json_schema_knows_every_key_and_the_same_defaults():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for section, key, value in DEFAULTS:
        assert schema["properties"][section]["properties"][key]["default"] == value, (section, key)
    deliver = schema["properties"]["deliver"]["properties"]
    assert deliver["max_in_flight"] == {"type": "integer", "minimum": 1, "maximum": 1024, "default": 128}
    assert schema["properties"]["px"]["properties"]["region"]["enum"] == ["us", "eu", "us2"]
    assert schema["properties"]["source"]["items"]["required"] == ["write_key"]
    event = schema["properties"]["mapping"]["properties"]["event"]["additionalProperties"]
    assert event["properties"]["user_type"] == {"enum": ["USER", "VISITOR", "LEAD"]}


@pytest.mark.parametrize("text", ["1500ms", "0.0005s", "90s", "24h", "2d"])
def test_a_duration_is_shown_as_one_that_means_the_same(text: str):
    config = load_text(f'[outbox]\nkeep_delivered = "{text}"\n')
    again = load_text(as_toml(config))
    assert again.outbox.keep_delivered == config.outbox.keep_delivered

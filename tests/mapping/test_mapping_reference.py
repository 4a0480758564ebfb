"""The mapping reference says what the schema has, and its recipes do what they say."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from sidecar.cli.map import map as map_command
from sidecar.config import AttributeRules, EventRules, Mapping, People, load_text
from sidecar.config.schema import PX_FIELDS
from sidecar.mapping.names import PRESETS
from sidecar.mapping.recipes import RECIPES, Recipe
from sidecar.mapping.reference import KEYS, outcome, reference


def section(page: str, title: str) -> str:
    return page.partition(f"## `{title}`")[2].partition("\n## ")[0]


@pytest.mark.parametrize("table", [Mapping, EventRules, AttributeRules, People])
def test_every_key_of_the_schema_is_in_the_reference_and_no_other(table: type[msgspec.Struct]):
    title, words = KEYS[table]
    assert set(words) == set(table.__struct_fields__)
    text = section(reference(), title)
    for key in table.__struct_fields__:
        assert f"\n| `{key}` | " in text


def test_every_px_field_and_every_preset_name_is_in_the_reference():
    page = reference()
    for name in (*PX_FIELDS, "globalContext.NAME"):
        assert f"\n| `{name}` | " in section(page, "[mapping.fields]")
    for sent, px in PRESETS["b2b-saas"].items():
        assert f"| {sent} | {px} |" in page
    assert "| page | Page Viewed |" in page


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_every_recipe_is_a_valid_configuration_and_is_in_the_page(recipe: Recipe):
    load_text(recipe.toml)
    page = reference()
    assert f"### {recipe.title}\n" in page
    assert recipe.toml in page
    assert all(json.dumps(event, ensure_ascii=False) in page for event in recipe.events)


@pytest.mark.parametrize(
    ("title", "outcomes"),
    [
        ("Keep all names as they are", ['"eventName": "Products Searched"']),
        ("Send anonymous traffic", ['"userType": "VISITOR"']),
        ("Drop noise", ['"eventName": "Exported"', "dropped: unmapped", "dropped: mapped_to_nothing"]),
        ("Keep personal data here", ['"form": "{\\"step\\":2}"']),
        ("An account id of your own", ['"accountId": "42"']),
        ("One event with rules of its own", ['"attributes": {"plan": "Pro", "source": "billing"}']),
        ("Write users and accounts", ['user user-123: {"type"', 'account acct-987: {"industry"']),
        ("The RudderStack way", ['"identifyId": "anon-7", "propertyKey": "AP-XXXXXXXXXX-2", "userType": "USER"']),
    ],
)
def test_recipes_do_what_they_say(title: str, outcomes: list[str]):
    (recipe,) = (one for one in RECIPES if one.title == title)
    assert len(recipe.events) == len(outcomes)
    for event, part in zip(recipe.events, outcomes, strict=True):
        assert part in outcome(recipe, event)
        assert "a@b.test" not in outcome(recipe, event)


def test_the_command_prints_the_reference():
    result = CliRunner().invoke(map_command, ["--reference"])
    assert (result.exit_code, result.stdout) == (0, reference())

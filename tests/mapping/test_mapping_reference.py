"""The mapping reference matches the schema, and each recipe has the outcome it states."""

import json

import msgspec
import pytest
from click.testing import CliRunner
from mapping_help import track

from sidecar.cli.map import map as map_command
from sidecar.config import AttributeRules, EventRules, MappingConfig, PeopleConfig, load_text
from sidecar.config.schema import PX_FIELDS
from sidecar.mapping.names import PRESETS
from sidecar.mapping.recipes import RECIPES, Recipe
from sidecar.mapping.reference import KEYS, outcome, reference


def section(page: str, title: str) -> str:
    return page.partition(f"## `{title}`")[2].partition("\n## ")[0]


@pytest.mark.parametrize("table", [MappingConfig, EventRules, AttributeRules, PeopleConfig])
def test_reference_lists_exactly_the_keys_of_the_schema(table: type[msgspec.Struct]):
    title, words = KEYS[table]
    assert set(words) == set(table.__struct_fields__)
    text = section(reference(), title)
    for key in table.__struct_fields__:
        assert f"\n| `{key}` | " in text


def test_reference_lists_px_fields_and_preset_names():
    page = reference()
    for name in (*PX_FIELDS, "globalContext.NAME"):
        assert f"\n| `{name}` | " in section(page, "[mapping.fields]")
    for sent, px in PRESETS["b2b-saas"].items():
        assert f"| {sent} | {px} |" in page
    assert "| page | Page Viewed |" in page


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_recipe_is_valid_and_in_the_page(recipe: Recipe):
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
def test_recipe_has_the_stated_outcome(title: str, outcomes: list[str]):
    (recipe,) = (recipe for recipe in RECIPES if recipe.title == title)
    assert len(recipe.events) == len(outcomes)
    for event, part in zip(recipe.events, outcomes, strict=True):
        assert part in outcome(recipe, event)
        assert "a@b.test" not in outcome(recipe, event)


def test_command_prints_the_reference():
    result = CliRunner().invoke(map_command, ["--reference"])
    assert (result.exit_code, result.stdout) == (0, reference())


@pytest.mark.parametrize(
    "row",
    [
        '| `unmapped` | `pass`, `drop` | `"pass"` |',
        "| `events` | table | empty |",
        "| `keep` | list of texts | empty |",
        "| `hash_salt` | text |",
        '| `users` | `off`, `upsert` | `"off"` |',
        "| `case` | `camel`, `keep` |  |",
    ],
)
def test_reference_shows_values_and_defaults(row):
    assert f"\n{row}" in reference()


def test_outcome_of_a_recipe_is_not_escaped():
    made = outcome(RECIPES[0], track("Größe", properties={"search_term": "é"}))
    assert '"eventName": "Größe"' in made
    assert '"date": 1717689600000' in made
    assert "é" in made


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("Keep all names as they are", '"search_term": "export"'),
        ("Keep personal data here", '"phone": "'),
        ("One event with rules of its own", '"plan": "Pro"'),
        ("The RudderStack way", '"sessionId": "1679967592314"'),
    ],
)
def test_recipe_outcomes_show_the_mapped_properties(title, part):
    (recipe,) = (recipe for recipe in RECIPES if recipe.title == title)
    assert any(part in outcome(recipe, event) for event in recipe.events)

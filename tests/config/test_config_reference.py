"""Every key has its text: meaning, default, what is allowed, an example, and whether a reload is enough."""

import re
import tomllib
from typing import get_type_hints

import pytest

from sidecar.config import Config, json_schema, load_text
from sidecar.config.key_texts import KEY_TEXTS
from sidecar.config.reference import as_listed, key_references, reference_markdown, reference_text
from sidecar.config.schema import PX_FIELDS, AttributeRules, DropRule, EventRules, SourceConfig, Table

REFERENCES = key_references()


def tables_below(table: type[Table]) -> set[type[Table]]:
    """Return the table and all tables that its fields lead to, by their types alone."""
    found = {table}
    for hint in get_type_hints(table).values():
        for kind in re.findall(r"schema\.(\w+)", str(hint)):
            other = globals().get(kind) or getattr(__import__("sidecar.config.schema", fromlist=[kind]), kind)
            if isinstance(other, type) and issubclass(other, Table):
                found |= tables_below(other)
    return found


def test_each_key_of_each_table_has_a_text_and_no_text_is_left_over():
    tables = tables_below(Config)
    assert {SourceConfig, EventRules, DropRule, AttributeRules} < tables
    assert set(KEY_TEXTS) == tables
    for table in tables:
        assert tuple(KEY_TEXTS[table]) == table.__struct_fields__, table


def test_the_reference_lists_each_key_once():
    keys = [reference.key for reference in REFERENCES]
    assert len(set(keys)) == len(keys)
    for table in tables_below(Config) - {Config}:
        count = sum(reference.name == name for name in table.__struct_fields__ for reference in REFERENCES)
        assert count >= len(table.__struct_fields__), table


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.key)
def test_each_entry_is_complete(reference):
    assert reference.meaning[0].isupper() or ": " in reference.meaning
    assert reference.meaning.endswith((".", ")"))
    assert len(reference.meaning) <= 250
    assert reference.allowed
    assert not reference.allowed.startswith("must")


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.key)
def test_each_example_loads_and_differs_from_nothing(reference):
    table, _, name = reference.key.rpartition(".")
    header = {"source": "[[source]]", "mapping.drop": "[[mapping.drop]]"}.get(table, f"[{table}]")
    needs = {
        "https": "tls_cert = 'a'\ntls_key = 'b'\n",
        "retry_max": "",
        "property_key": "write_key = 'w'\n" if table == "source" else "",
        "url": "name = 'production'\n",
    }.get(name, "")
    text = f"{header}\n{needs}{name} = {reference.example}\n"
    load_text(text)
    assert tomllib.loads(text)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.key)
def test_each_default_loads_as_the_default(reference):
    table, _, name = reference.key.rpartition(".")
    if not reference.default or table not in Config.__struct_fields__ or table == "source":
        return
    default = load_text(f"[{table}]\n{name} = {reference.default}\n")
    assert getattr(getattr(default, table), name) == getattr(getattr(Config(), table), name)


def test_the_variable_of_a_key_sets_it():
    by_key = {reference.key: reference for reference in REFERENCES}
    assert load_text("", {by_key["px.region"].variable: "eu"}).px.region == "eu"
    assert by_key["mapping.events"].variable == ""
    assert by_key["mapping.event.NAME.priority"].variable == ""


def test_reload_or_restart_follows_from_the_type():
    by_key = {reference.key: reference.reload for reference in REFERENCES}
    assert by_key["deliver.per_second"]
    assert not by_key["deliver.order"]


def test_the_text_fits_80_columns_and_the_markdown_has_every_key():
    assert max(map(len, reference_text().splitlines())) <= 80
    markdown = reference_markdown()
    rows = [line for line in markdown.splitlines() if line.startswith("| `")]
    assert len(rows) == len(REFERENCES)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}


def test_the_schema_has_the_same_texts():
    deliver = json_schema()["properties"]["deliver"]["properties"]
    assert deliver["per_second"]["description"].startswith("The ceiling: ")
    assert deliver["order"]["description"].endswith("A change takes effect with a restart.")
    assert deliver["order"]["examples"] == ["none"]


def test_a_number_as_size_has_the_limits_of_the_loader_in_the_schema():
    size = json_schema()["properties"]["outbox"]["properties"]["max_bytes"]
    assert (size["minimum"], size["maximum"]) == (0, 2**62)
    assert load_text(f"[outbox]\nmax_bytes = {2**62}").outbox.max_bytes == 2**62


def test_the_schema_knows_the_px_fields_that_a_mapping_can_set():
    """`accountid` was valid by the schema, and an unknown key for the loader."""
    enum, pattern = json_schema()["properties"]["mapping"]["properties"]["fields"]["propertyNames"]["anyOf"]
    assert set(enum["enum"]) == set(PX_FIELDS)
    for name in (*PX_FIELDS, "globalContext.plan"):
        assert name in enum["enum"] or re.search(pattern["pattern"], name)
        load_text(f'[mapping.fields]\n"{name}" = "traits.x"')
    assert not re.search(pattern["pattern"], "globalContext.")


@pytest.mark.parametrize(
    ("key", "listed"),
    [
        ("mapping.traits.drop", "mapping.attributes.drop"),
        ('mapping.event."Plan A.B".attributes.set', "mapping.attributes.set"),
        ("mapping.event.Opened.sample", "mapping.event.NAME.sample"),
        ("mapping.traits", "mapping.traits"),
        ("mapping.event", "mapping.event"),
        ("deliver.per", "deliver.per"),
    ],
)
def test_a_key_of_a_shared_table_is_found_in_the_reference(key, listed):
    assert as_listed(key) == listed
    assert reference_text(as_listed(key))

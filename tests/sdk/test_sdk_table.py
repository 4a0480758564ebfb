"""The table of SDKs says what ran, with the versions of the lock files."""

import json
import re
from pathlib import Path

import pytest
import sdk_table as table
from sdk_apps import ABSENT, SDKS

HERE = Path(__file__).resolve().parent
RESULTS = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
LOCKED = {
    "segment-python": ("python/requirements.txt", r"^segment-analytics-python==(\S+)$"),
    "rudder-python": ("python/requirements.txt", r"^rudder-sdk-python==(\S+)$"),
    "segment-node": ("node/package.json", r'"@segment/analytics-node": "([^"]+)"'),
    "rudder-node": ("node/package.json", r'"@rudderstack/rudder-sdk-node": "([^"]+)"'),
    "segment-go": ("go/go.mod", r"segmentio/analytics-go/v3 v(\S+)"),
    "rudder-go": ("go/go.mod", r"rudderlabs/analytics-go/v4 v(\S+)"),
    "segment-java": (
        "java/pom.xml",
        r"com\.segment\.analytics\.java</groupId>\s*<artifactId>analytics</artifactId>\s*<version>(\S+)<",
    ),
    "rudder-java": (
        "java/pom.xml",
        r"com\.rudderstack\S+</groupId>\s*<artifactId>analytics</artifactId>\s*<version>(\S+)<",
    ),
    "rudder-ruby": ("ruby/Gemfile.lock", r"^    rudder-sdk-ruby \((\S+)\)$"),
    "rudder-rust": ("rust/Cargo.toml", r'rudderanalytics = \{ version = "=([^"]+)"'),
}


def test_the_page_has_the_table_of_the_results():
    page = (HERE / "README.md").read_text(encoding="utf-8")
    shown = page.partition(table.BEGIN)[2].partition(table.END)[0].strip()
    assert shown == table.render(RESULTS), "write it again: python tests/sdk/sdk_table.py"


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
def test_the_table_has_the_locked_version_of_every_sdk(sdk):
    name, pattern = LOCKED[sdk.name]
    (locked,) = set(re.findall(pattern, (HERE / name).read_text(encoding="utf-8"), re.MULTILINE))
    assert locked == sdk.version == RESULTS[sdk.name]["version"]


def test_no_sdk_has_lost_an_event_that_it_took():
    assert {name: facts["kill_lost"] for name, facts in RESULTS.items() if facts["kill_lost"]} == {}


def test_every_sdk_that_the_top_page_names_is_run_or_says_why_not():
    """Else a new row of the page promises what nothing shows."""
    page = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    table = page.partition("| SDK | one line |")[2].partition("\n\n")[0]
    named = set()
    for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]:
        for vendor, language in re.findall(r"(Segment|RudderStack), ([\w.-]+)", cell):
            language = {"analytics.net": "dotnet", "analytics-csharp": "csharp"}.get(language.lower(), language.lower())
            named.add(f"{'rudder' if vendor == 'RudderStack' else 'segment'}-{language}")
    assert named == {sdk.name for sdk in SDKS} | set(ABSENT)

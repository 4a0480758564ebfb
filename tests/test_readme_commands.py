"""Every block of commands or code in README.md is run by a test, or says here why it cannot be; a new one needs an entry."""

import re
import shlex
from pathlib import Path

import click

from sidecar.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Section, language and number of each block: the test that runs it as it is written, or the reason why none does.
BLOCKS = {
    ("", "sh", 0): "tests/cli/test_demo.py::test_the_demo_loses_nothing_and_removes_its_folder",
    ("", "sh", 1): "tests/test_ci.py::test_the_second_block_of_the_readme_sets_up_and_tests",
    (
        "Your own event in a minute",
        "sh",
        0,
    ): "tests/process/test_readme.py::test_the_command_of_the_first_minute_starts",
    (
        "Install",
        "sh",
        0,
    ): "not run: it installs what is published, from the network; tests/test_release.py installs the same wheels",
    ("Install", "sh", 1): "tests/systemd/test_package.py::test_the_life_of_a_package",
    ("Connect an app", "python", 0): "tests/process/test_readme.py::test_a_second_client_beside_the_vendors_works",
    ("Connect an app", "js", 0): "tests/process/test_readme.py::test_a_second_client_for_node_works",
    ("Connect an app", "python", 1): "tests/process/test_readme.py::test_the_client_example_works",
    (
        "Connect an app",
        "sh",
        0,
    ): "tests/process/test_readme.py::test_the_commands_to_send_events_are_answered_with_success",
    ("Operate", "sh", 0): "tests/process/test_readme.py::test_the_commands_to_operate_work",
    ("Configure", "toml", 0): "tests/process/test_readme.py::test_the_example_configuration_loads",
    ("Configure", "sh", 0): "tests/process/test_readme.py::test_the_mapping_example_maps_to_a_request",
    ("How it works", "text", 0): "not run: a drawing of the packages",
}


def blocks() -> dict[tuple[str, str, int], str]:
    found: dict[tuple[str, str, int], str] = {}
    section, language, lines = "", None, []
    for line in README.splitlines():
        if language is None and line.startswith("## "):
            section = line[3:].strip()
        elif line.startswith("```") and language is None:
            language, lines = line[3:].strip() or "text", []
        elif line.startswith("```"):
            number = sum(key[:2] == (section, language) for key in found)
            found[section, str(language), number] = "\n".join(lines)
            language = None
        else:
            lines.append(line)
    return found


def test_every_block_has_an_entry():
    assert blocks().keys() == BLOCKS.keys()


def test_each_entry_names_a_test_that_exists_or_a_reason():
    for place, entry in BLOCKS.items():
        if entry.startswith("not run: "):
            assert len(entry) > 20, place
            continue
        path, _, name = entry.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), entry


def test_every_toml_block_loads():
    from sidecar.config import load_text

    for place, text in blocks().items():
        if place[1] == "toml":
            load_text(text, {}, f"README.md, {place}")


def commands() -> list[list[str]]:
    """Return the words of each ``px-sidecar`` command that stands in a block or between backticks."""
    shell = [text.replace("\\\n", " ") for place, text in blocks().items() if place[1] == "sh"]
    lines = [line.partition("  #")[0] for text in shell for line in re.split(r"\n|&&|\|", text)]
    lines += re.findall(r"`(px-sidecar [^`]+)`", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))
    found = [re.match(r"(?:\.venv/bin/)?px-sidecar (.+)", line.strip()) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def test_every_command_in_the_readme_has_verbs_and_options_that_exist():
    given = commands()
    assert len(given) > 40
    for words in given:
        command: click.Command = main
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                inner = command.get_command(click.Context(command), word)
                if inner is None:
                    assert word.isupper(), words  # a placeholder, as in `px-sidecar --instance NAME VERB`
                    break
                command = inner
            elif word.startswith("--") and word != "--help":
                options = {option for parameter in command.params for option in parameter.opts}
                assert word.partition("=")[0] in options, (words, word)

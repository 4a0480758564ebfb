"""Editing and saving the configuration file: whole or not at all, and only where it is ours."""

import errno
import os
import stat
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.init import _config_text
from sidecar.config import ConfigFile
from sidecar.console import config_file
from sidecar.console.config_file import OLD_VERSIONS, Edit, edit, read, restore, rules_of, save
from sidecar.console.review import review
from sidecar.errors import ConfigError, Failed

TEXT = """# the product
[px]
property_key = "AP-XXXXXXXXXX-2"  # of the web app

[[source]]
write_key = "wk_secret"

[mapping.events]
"Clicked" = "Click"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return ConfigFile(str(path), {})


def test_a_save_keeps_owner_mode_secrets_and_the_old_version(file):
    loaded = read(file)
    assert loaded.managed == ""
    assert "wk_secret" not in loaded.toml
    save(file, loaded.toml.replace('"Click"', '"Button"'), loaded.sha256)
    assert file.path.read_text() == TEXT.replace('"Click"', '"Button"')
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    assert file.path.with_name("config.toml.old.1").read_text() == TEXT
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["config.toml", "config.toml.old.1"]


def test_a_save_keeps_the_line_ends(file):
    r"""A file with \r\n came back with \n in every line, which the shown difference did not say."""
    file.path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    loaded = read(file)
    save(file, loaded.toml + "# new\n", loaded.sha256)
    assert file.path.read_bytes() == (TEXT + "# new\n").replace("\n", "\r\n").encode()


def test_five_old_versions_are_kept(file):
    for number in range(8):
        loaded = read(file)
        save(file, loaded.toml + f"# {number}\n", loaded.sha256)
    old = [file.path.with_name(f"config.toml.old.{number}").read_text() for number in range(1, OLD_VERSIONS + 1)]
    assert [text.splitlines()[-1] for text in old] == ["# 6", "# 5", "# 4", "# 3", "# 2"]


def test_the_old_file_can_be_put_back(file):
    loaded = read(file)
    save(file, loaded.toml + "# new\n", loaded.sha256)
    restore(file, loaded.sha256)
    assert file.path.read_text() == TEXT
    assert not file.path.with_name("config.toml.old.1").exists()


@pytest.mark.parametrize("old", [None, TEXT])
def test_a_file_that_was_new_is_removed_again(tmp_path, old):
    """It stayed, or a version from before the file was removed came back."""
    file = ConfigFile(str(tmp_path / "config.toml"), {})
    if old is not None:
        file.path.with_name("config.toml.old.1").write_text(old)
    loaded = read(file)
    save(file, TEXT, loaded.sha256)
    restore(file, loaded.sha256)
    assert not file.path.exists()
    assert file.path.with_name("config.toml.old.1").exists() == (old is not None)


@pytest.mark.parametrize(
    ("toml", "error", "said"),
    [
        ("[px", ConfigError, "not valid TOML"),
        ('[px]\nregion = "mars"', ConfigError, "line 2"),
        ("#" * 1_100_000, Failed, "1 MB"),
    ],
)
def test_a_wrong_text_is_not_saved(file, toml, error, said):
    with pytest.raises(error, match=said):
        save(file, toml, read(file).sha256)
    assert file.path.read_text() == TEXT


def test_a_byte_order_mark_is_named_as_the_daemon_does(file):
    """The page showed the text, where the mark is not visible, and said of each change "Invalid statement (at line 1)"."""
    file.path.write_text(TEXT, encoding="utf-8-sig")
    with pytest.raises(ConfigError) as loaded:
        file.load()
    with pytest.raises(ConfigError) as shown:
        read(file)
    assert str(shown.value) == str(loaded.value)


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(file):
    loaded = read(file)
    file.path.write_text(TEXT + "# theirs\n")
    with pytest.raises(Failed, match="was changed meanwhile"):
        save(file, loaded.toml, loaded.sha256)
    assert file.path.read_text().endswith("# theirs\n")


def test_a_change_in_the_last_moment_is_not_overwritten(file, monkeypatch):
    loaded = read(file)
    write = config_file._write

    def race(*arguments):
        write(*arguments)
        file.path.write_text(TEXT + "# theirs\n")

    monkeypatch.setattr(config_file, "_write", race)
    with pytest.raises(Failed, match="was changed meanwhile"):
        save(file, loaded.toml, loaded.sha256)
    assert [path.name for path in file.path.parent.iterdir()] == ["config.toml"]


def test_a_full_disk_leaves_the_old_file(file, monkeypatch):
    loaded = read(file)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match=r"No space left on device.*the old file is as it was"):
        save(file, loaded.toml + "# new\n", loaded.sha256)
    assert file.path.read_text() == TEXT
    assert [path.name for path in file.path.parent.iterdir()] == ["config.toml"]


def test_a_link_is_managed_elsewhere(tmp_path):
    real = tmp_path / "..data"
    real.write_text(TEXT)
    (tmp_path / "config.toml").symlink_to(real)
    file = ConfigFile(str(tmp_path / "config.toml"), {})
    assert "symbolic link" in read(file).managed
    with pytest.raises(Failed, match="symbolic link"):
        save(file, TEXT, read(file).sha256)
    assert real.read_text() == TEXT


def test_a_link_in_the_path_is_managed_elsewhere(tmp_path, file):
    (tmp_path / "link").symlink_to(tmp_path)
    assert "symbolic link" in read(ConfigFile(str(tmp_path / "link" / "config.toml"), {})).managed


def test_a_path_with_dots_is_not_a_link(tmp_path, file):
    (tmp_path / "folder").mkdir()
    assert read(ConfigFile(str(tmp_path / "folder" / ".." / "config.toml"), {})).managed == ""
    (tmp_path / "folder" / "link").symlink_to("/usr/lib")
    assert "symbolic link" in config_file.managed_elsewhere(tmp_path / "folder" / "link" / ".." / "config.toml")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_of_another_user_is_managed_elsewhere(file):
    os.chown(file.path, 12_345, 12_345)
    assert "another user" in read(file).managed
    os.chown(file.path, 0, 0)
    os.chown(file.path.parent, 12_345, 0)
    assert "another user" in read(file).managed


def test_a_world_writable_folder_is_managed_elsewhere(file):
    file.path.parent.chmod(0o777)
    assert "written by every user" in read(file).managed


def test_no_regular_file_is_managed_elsewhere(tmp_path):
    (tmp_path / "config.toml").mkdir()
    assert "not a regular file" in config_file.managed_elsewhere(tmp_path / "config.toml")


def test_a_missing_file_is_empty_and_can_be_created(tmp_path):
    file = ConfigFile(str(tmp_path / "config.toml"), {})
    loaded = read(file)
    assert (loaded.toml, loaded.managed) == ("", "")
    save(file, '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n', loaded.sha256)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "written"),
    [("6", "n = 6"), ("2.5", "n = 2.5"), ("six", 'n = "six"'), ("true", 'n = "true"'), ("", 'n = ""')],
)
def test_a_form_keeps_the_type_of_what_it_changes(text, written):
    """The number 5 became the text "5" with a click on "Change", and PX keeps one type per attribute."""
    path = ["mapping", "attributes", "set", "n"]
    for toml in ("[mapping.attributes]\nset = { n = 5 }\n", "[mapping.attributes.set]\nn = 5\n"):
        assert written in edit(toml, [Edit(path, text)])
    assert "n = false" in edit("[mapping.attributes.set]\nn = true\n", [Edit(path, "false")])
    assert 'n = "6"' in edit('[mapping.attributes.set]\nn = "5"\n', [Edit(path, "6")])


def test_an_edit_keeps_comments_and_order():
    changed = edit(
        TEXT,
        [
            Edit(["mapping", "events", "Opened"], "Open"),
            Edit(["mapping", "attributes", "drop", "-"], "email"),
            Edit(["mapping", "events", "Clicked"], None),
            Edit(["source", "-"], {"write_key": "wk_2", "property_key": "AP-YYYYYYYYYY-2"}),
            Edit(["mapping", "attributes", "rename", "a b"], "c"),
        ],
    )
    assert changed.startswith('# the product\n[px]\nproperty_key = "AP-XXXXXXXXXX-2"  # of the web app\n')
    tree = tomllib.loads(changed)
    assert tree["mapping"]["events"] == {"Opened": "Open"}
    assert tree["mapping"]["attributes"] == {"drop": ["email"], "rename": {"a b": "c"}}
    assert tree["source"][1] == {"write_key": "wk_2", "property_key": "AP-YYYYYYYYYY-2"}


@pytest.mark.parametrize(
    "change",
    [
        Edit(["px", "property_key", "x"], 1),
        Edit(["source", 7, "write_key"], "x"),
        Edit(["px", "region"], object),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(change):
    with pytest.raises(Failed, match=r"does not fit|without changing"):
        edit(TEXT, [change])


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: name != "-"
)


@pytest.mark.parametrize("table", ["events", "fields"])
def test_a_dash_is_a_name_in_a_table(table):
    changed = edit("", [Edit(["mapping", table, "-"], "Dash"), Edit(["mapping", "attributes", "set", "-"], "d")])
    assert tomllib.loads(changed)["mapping"] == {table: {"-": "Dash"}, "attributes": {"set": {"-": "d"}}}


@given(names=st.dictionaries(NAMES, NAMES, min_size=1, max_size=5))
def test_any_name_can_be_mapped(names):
    changed = edit(TEXT, [Edit(["mapping", "events", name], value) for name, value in names.items()])
    assert tomllib.loads(changed)["mapping"]["events"] == {"Clicked": "Click"} | names


def test_the_review_is_of_the_masked_texts(file):
    loaded = read(file)
    changed = review(loaded.toml, loaded.toml.replace('"Click"', '"Button"'), {})
    assert '-"Clicked" = "Click"' in changed.lines
    assert '+"Clicked" = "Button"' in changed.lines
    assert changed.snippet == '[mapping.events]\nClicked = "Button"\n'
    assert "wk_secret" not in "\n".join(changed.lines)


def test_a_snippet_says_that_it_holds_placeholders():
    """Pasted where the file comes from, `write_key = "****1"` refused every event of the app."""
    before = '[[source]]\nwrite_key = "****1"\nproperty_key = "AP-A-2"\n'
    snippet = review(before, before.replace("AP-A-2", "AP-B-2"), {}).snippet
    assert "# write the secrets themselves in place of ****" in snippet
    assert tomllib.loads(snippet) == {"source": [{"write_key": "****1", "property_key": "AP-B-2"}]}


def test_the_snippet_holds_what_is_new_and_names_what_is_gone():
    before = RULES + '[[source]]\nwrite_key = "****1"\nproperty_key = "AP-A-2"\n'
    edits = [
        Edit(["mapping", "events", "Closed"], "Close"),
        Edit(["mapping", "events", "*test*"]),
        Edit(["mapping", "drop", 0]),
        Edit(["mapping", "attributes", "drop", "-"], "name"),
        Edit(["mapping", "attributes", "rename", "plan_name"]),
        Edit(["source", "-"], {"write_key": "wk_new", "property_key": "AP-B-2"}),
    ]
    snippet = review(before, edit(before, edits), {}).snippet
    assert tomllib.loads(snippet) == {
        "mapping": {"events": {"Closed": "Close"}, "attributes": {"drop": ["email", "phone", "name"]}},
        "source": [{"write_key": "wk_new", "property_key": "AP-B-2"}],
    }
    assert [line for line in snippet.splitlines() if line.startswith("#")] == [
        '# removed: mapping.events."*test*"',
        "# removed: mapping.drop",
        "# removed: mapping.attributes.rename.plan_name",
    ]


def test_a_broken_file_can_still_be_reviewed():
    assert review("[px\n", "[px]\n", {}).lines[-2:] == ["-[px", "+[px]"]


def test_a_key_that_a_variable_sets_is_named_when_it_is_changed():
    variables = {"deliver.per_second": "PX_SIDECAR_DELIVER_PER_SECOND", "px.region": "PX_SIDECAR_PX_REGION"}
    (sentence,) = review(TEXT, TEXT + "[deliver]\nper_second = 5\n", variables).overridden
    assert sentence.startswith("deliver.per_second is set by the daemon's variable PX_SIDECAR_DELIVER_PER_SECOND")


@pytest.mark.parametrize(
    "comment",
    [
        "# Ansible managed",
        "# This file is managed by Puppet. DO NOT EDIT",
        "#\n# Generated by Chef for web-1\n#",
        "# managed elsewhere",
    ],
)
def test_a_mark_of_configuration_management_is_believed(file, comment):
    file.path.write_text(f"{comment}\n{TEXT}")
    loaded = read(file)
    assert loaded.managed.startswith(f"{file.path} says ")
    with pytest.raises(Failed, match="Copy the text to where the file comes from"):
        save(file, loaded.toml, loaded.sha256)


@pytest.mark.parametrize("text", ["# our file, edited by hand\n", TEXT + "# managed by Puppet\n", ""])
def test_a_comment_elsewhere_is_not_such_a_mark(file, text):
    file.path.write_text(text)
    assert read(file).managed == ""


def test_what_init_writes_is_not_managed_elsewhere(file):
    file.path.write_text(_config_text("us", "AP-XXXXXXXXXX-2", "b2b-saas", 1, key_file=None))
    assert read(file).managed == ""


RULES = """
[mapping]
unmapped = "drop"
[mapping.events]
Opened = "Open"
"*test*" = ""
[mapping.event."Signed Up"]
priority = "high"
[[mapping.drop]]
event = "Ping"
where = { userId = "robot*" }
[mapping.fields]
eventId = "messageId"
[mapping.attributes]
drop = ["email", "phone"]
rename = { plan_name = "plan" }
"""


def test_every_mapping_rule_is_listed():
    assert [(rule.kind, rule.name, rule.value) for rule in rules_of(RULES)] == [
        ("events", "Opened", "Open"),
        ("events", "*test*", ""),
        ("event", "Signed Up", '{"priority":"high"}'),
        ("drop events", "Ping", '{"where":{"userId":"robot*"}}'),
        ("fields", "eventId", "messageId"),
        ("drop", "email", ""),
        ("drop", "phone", ""),
        ("rename", "plan_name", "plan"),
    ]


def test_every_listed_rule_can_be_removed_by_its_path():
    for rule in rules_of(RULES):
        left = rules_of(edit(RULES, [Edit(rule.path)]))
        assert len(left) == len(rules_of(RULES)) - 1
        assert (rule.kind, rule.name) not in {(other.kind, other.name) for other in left}


def test_text_without_rules_has_an_empty_list():
    assert rules_of("") == rules_of("mapping = 1") == rules_of("[mapping]\nevents = 3") == []

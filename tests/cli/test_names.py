"""`px-sidecar names`."""

import csv
import io
import json
import re

import pytest
from px_sidecar_client import Client
from running_daemon import DaemonDir

from sidecar.sandbox import OpenAnswers


@pytest.fixture
def sent(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("u-1", "Feature Used", properties={"plan": "gold"})
        daemon.track("u-1", "feature_used", properties={"plan": 3, "<b>": "=1+1"})
        daemon.settle()
    return daemon_dir


def test_the_table_and_what_is_suspicious(sent: DaemonDir, verb):
    ran = verb("names", *sent.flags)
    assert ran.code == 0
    assert "differ only in spelling" in ran.out
    assert "plan (string)" in ran.out
    assert re.search(r"^Feature Used: first [0-9].*; plan", ran.out, re.MULTILINE)
    assert max(len(line) for line in ran.out.splitlines() if not line.startswith("warn")) <= 80


def test_a_saved_catalogue_equals_itself_and_a_new_name_fails(sent: DaemonDir, verb, tmp_path):
    saved = tmp_path / "names.json"
    assert verb("names", "--save", str(saved), *sent.flags).code == 0
    same = verb("names", "--diff", str(saved), *sent.flags)
    assert (same.code, same.out.strip()) == (0, "Nothing has changed.")
    with sent.running() as daemon:
        daemon.track("u-1", "Brand New")
        daemon.settle()
        changed = verb("names", "--diff", str(saved), *sent.flags)
        as_json = verb("names", "--diff", str(saved), "--json", *sent.flags)
    assert changed.code == as_json.code == 1
    assert changed.out.strip() == "new: Brand New (track)"
    assert as_json.json["differences"] == ["new: Brand New (track)"]


def test_catalogues_of_hosts_are_merged(sent: DaemonDir, verb, tmp_path):
    saved = tmp_path / "host2.json"
    verb("names", "--save", str(saved), *sent.flags)
    ran = verb("names", "--merge", str(saved), "--json", *sent.flags)
    assert {entry["name"]: entry["events"] for entry in ran.json["names"]} == {"Feature Used": 2, "feature_used": 2}


def test_csv_and_html_are_safe_to_open(sent: DaemonDir, verb):
    rows = list(csv.DictReader(io.StringIO(verb("names", "--csv", *sent.flags).out)))
    assert {row["name"] for row in rows} == {"Feature Used", "feature_used"}
    page = verb("names", "--html", *sent.flags).out
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "<script" not in page


def test_names_that_px_does_not_show_are_listed_to_register(px, tmp_path, verb, monkeypatch):
    monkeypatch.setattr("sidecar.cli.names.TOO_NEW_MS", 0)
    sandboxed = px.daemon_dir(tmp_path)
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        daemon.track("u-1", "Known")
        daemon.settle()
    with sandboxed.running() as daemon:  # answered 201 by a fake network: the sandbox has none of it
        daemon.track("u-1", "Unknown")
        daemon.settle()
    ran = verb("names", "--verify", *sandboxed.flags)
    as_json = verb("names", "--verify", "--json", *sandboxed.flags)
    assert ran.out.split("To register under Administration > Events:")[1].split() == ["Unknown"]
    assert {entry["px"]: entry["in_px"] for entry in as_json.json["names"]} == {"Known": 1, "Unknown": 0}


def test_a_name_is_asked_for_at_once_and_judged_later(px, tmp_path, verb):
    """New names were not asked for, without a word; of pending ones `names` said that PX had answered 201."""
    sandboxed = px.daemon_dir(tmp_path)
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        daemon.track("u-1", "Known")
        daemon.settle()
        daemon.client.post("/v1/pause")
        daemon.track("u-1", "Pending")
        daemon.track("u-1", "a;b")
        ran = verb("names", "--verify", "--json", *sandboxed.flags)
    assert {entry["px"]: entry["in_px"] for entry in ran.json["names"]} == {"Known": 1, "Pending": None, "a;b": None}
    assert ran.json["findings"] == []
    assert ran.err == (
        "Whether PX shows these is not known: Pending (none of their events was delivered, or only within 15 minutes); "
        "a;b (PX cannot be asked for a name with a semicolon).\n"
    )


def test_a_pending_name_is_not_one_to_register(px, tmp_path, verb, monkeypatch):
    monkeypatch.setattr("sidecar.cli.names.TOO_NEW_MS", 0)
    sandboxed = px.daemon_dir(tmp_path)
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u-1", "Pending")
        ran = verb("names", "--verify", *sandboxed.flags)
    assert "To register" not in ran.out
    assert "answered 201" not in ran.out


def test_beside_a_daemon_the_daemon_asks_px(px, tmp_path, verb, monkeypatch):
    """A member of the operators' group cannot read the API key."""
    monkeypatch.setattr("sidecar.cli.px_queries.ask_px", lambda *_: pytest.fail("this process has asked PX"))
    sandboxed = px.daemon_dir(tmp_path, '[people]\nusers = "upsert"\n')
    with sandboxed.running(network=px.network(sandboxed)) as daemon, Client(sandboxed.unix) as client:
        client.identify("u-1", {"plan": "gold"})
        for number in range(25):  # more than one call asks about
            daemon.track("u-1", f"Known {number}")
        daemon.settle()
        ran = verb("names", "--verify", "--json", *sandboxed.flags)
    assert {entry["in_px"] for entry in ran.json["names"] if entry["type"] == "track"} == {1}


def test_a_file_that_is_not_a_catalogue_is_one_sentence(sent: DaemonDir, verb, tmp_path):
    wrong = tmp_path / "x.json"
    wrong.write_text(json.dumps({"names": 3}))
    ran = verb("names", "--diff", str(wrong), *sent.flags)
    assert ran.code == 1
    assert "is not a catalogue" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_traits_that_px_does_not_declare_are_named(px, tmp_path, verb):
    px.box.open_answers = OpenAnswers(declared_traits=("plan",))
    sandboxed = px.daemon_dir(tmp_path, '[people]\nusers = "upsert"\n')
    with sandboxed.running(network=px.network(sandboxed)) as daemon, Client(sandboxed.unix) as client:
        client.identify("u-1", {"plan": "gold", "shoeSize": 42})
        daemon.settle()
        ran = verb("names", "--verify", "--json", *sandboxed.flags)
    assert ran.json["traits"]["user"] == {"plan": 1, "shoeSize": 1}
    assert [finding for finding in ran.json["findings"] if "declares no" in finding] == [
        "PX declares no user attribute shoeSize; declare it under Administration > Attributes."
    ]


def test_the_traits_of_merged_hosts_are_asked_for_too(px, tmp_path, verb):
    """PX declares attributes for the subscription; only those of the host that asked were compared."""
    px.box.open_answers = OpenAnswers(declared_traits=("plan",))
    sandboxed = px.daemon_dir(tmp_path, '[people]\nusers = "upsert"\n')
    other = tmp_path / "host2.json"
    other.write_text(json.dumps({"names": [], "sampled": 7, "traits": {"user": {"plan": 2, "hatSize": 1}}}))
    with sandboxed.running(network=px.network(sandboxed)) as daemon, Client(sandboxed.unix) as client:
        client.identify("u-1", {"plan": "gold"})
        daemon.settle()
        ran = verb("names", "--merge", str(other), "--verify", "--json", *sandboxed.flags)
    assert (ran.json["sampled"], ran.json["traits"]["user"]) == (8, {"plan": 3, "hatSize": 1})
    assert [finding for finding in ran.json["findings"] if "declares no" in finding] == [
        "PX declares no user attribute hatSize; declare it under Administration > Attributes."
    ]

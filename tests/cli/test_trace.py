"""`px-sidecar trace`, with and without a daemon."""

import json

import pytest
from px_sidecar_client import Client
from running_daemon import DaemonDir, always, wait_until

from sidecar.cli.screen import local_time_ms


@pytest.mark.parametrize("alive", [True, False], ids=["with a daemon", "from the file"])
def test_a_delivered_event_has_a_story_of_80_columns(daemon_dir: DaemonDir, verb, alive: bool):
    with daemon_dir.running() as daemon:
        with Client(daemon_dir.unix) as client:
            group_id = client.group("u-1", "acme")
        message_id = daemon.track("u-1", "Feature Used", properties={"plan": "gold"})
        daemon.settle()
        if alive:
            ran = verb("trace", message_id, *daemon_dir.flags)
    if not alive:
        ran = verb("trace", message_id, *daemon_dir.flags)
    assert ran.code == 0
    text = " ".join(ran.out.split())
    assert "by the Unix socket, as a line" in text
    assert f"acme, from groupId of the group call {group_id}" in text
    assert "PX answered 201" in text
    assert max(map(len, ran.out.splitlines())) <= 80


def test_a_dead_event_shows_what_px_refused(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(400, b'{"message":"propertyKey is wrong"}')) as daemon:
        daemon.track("u-1", "Feature Used")
        wait_until(lambda: daemon.status()["dead"] == 1, "the dead letter")
        ran = verb("trace", "--user", "u-1", "--json", *daemon_dir.flags)
        shown = verb("trace", "--user", "u-1", *daemon_dir.flags)
    (story,) = ran.json["stories"]
    assert (story["state"], story["reason"], story["status"]) == ("dead", "refused", 400)
    assert "propertyKey is wrong" in " ".join(shown.out.split())


def test_what_is_not_there_exits_1_and_says_what_came_instead(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u-1", "Report Exported")
        daemon.settle()
        ran = verb("trace", "--event", "Report Exportd", *daemon_dir.flags)
        as_json = verb("trace", "--event", "Report Exportd", "--json", *daemon_dir.flags)
        user = verb("trace", "--user", "u-2", *daemon_dir.flags)
        late = verb("trace", "--user", "u-1", "--since", "2999-01-01T00:00", "--json", *daemon_dir.flags)
    assert ran.code == as_json.code == user.code == late.code == 1
    assert "No such event was received" in ran.err
    assert "Report Exported" in ran.err
    assert as_json.json["instead"]["names"][0]["name"] == "Report Exported"
    assert "Nothing was received of this user." in user.err
    assert late.json["stories"] == []


def test_verify_asks_px(px, tmp_path, verb):
    sandboxed = px.daemon_dir(tmp_path)
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        daemon.track("u-1", "Feature Used")
        daemon.settle()
        ran = verb("trace", "--user", "u-1", "--verify", "--json", *sandboxed.flags)
        px.box.reset()
        again = verb("trace", "--user", "u-1", "--verify", *sandboxed.flags)
    assert ran.json["stories"][0]["in_px"] is True
    assert "not yet" in again.out


def test_verify_asks_for_events_only(px, tmp_path, verb):
    """An identify that had written the user ended in a KeyError: its last request is no event."""
    sandboxed = px.daemon_dir(tmp_path)
    sandboxed.file.write_text(sandboxed.file.read_text() + '[people]\nusers = "upsert"\n')
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        with Client(sandboxed.unix) as client:
            client.identify("u-1", {"email": "u@example.com"})
        daemon.settle()
        ran = verb("trace", "--user", "u-1", "--verify", "--json", *sandboxed.flags)
    (story,) = ran.json["stories"]
    assert [request["method"] for request in story["mapped"]["requests"]] == ["PUT"]
    assert "in_px" not in story


def test_the_call_that_names_an_account_is_its_own_source(daemon_dir: DaemonDir, verb):
    """The account of a group call was said to come from "a call that is pruned"."""
    with daemon_dir.running() as daemon:
        with Client(daemon_dir.unix) as client:
            group_id = client.group("u-1", "acme")
        daemon.settle()
        ran = verb("trace", group_id, *daemon_dir.flags)
    assert "acme, from groupId of the event itself" in " ".join(ran.out.split())


def test_an_event_has_to_be_named(verb):
    ran = verb("trace")
    assert ran.code == 2
    assert "Name the event" in ran.err


@pytest.mark.parametrize("rule", ["drop", "hash"])
def test_account_is_shown_as_the_privacy_rules_allow(tmp_path, verb, rule: str):
    daemon_dir = DaemonDir(tmp_path, f'[mapping.attributes]\n{rule} = ["account_id"]\nhash_salt = "s"\n')
    with daemon_dir.running() as daemon:
        with Client(daemon_dir.unix) as client:
            client.identify("u-1", {"account_id": "acme-secret"})
        message_id = daemon.track("u-1", "Feature Used")
        daemon.settle()
        ran = verb("trace", message_id, *daemon_dir.flags)
        as_json = verb("trace", message_id, "--json", *daemon_dir.flags)
    assert "acme-secret" not in ran.out + as_json.out
    (story,) = as_json.json["stories"]
    sent = story["mapped"]["requests"][0]["body"].get("accountId")
    assert story["account"]["id"] == sent
    assert (sent is None) == (rule == "drop")
    assert "from traits.account_id of the identify call" in " ".join(ran.out.split())


def test_imported_event_is_traced_as_px_got_it(tmp_path, verb):
    """Values that another host has hashed were hashed once more."""
    rules = '[mapping.attributes]\nhash = ["phone"]\nhash_salt = "s"\n'
    (there := tmp_path / "there").mkdir()
    source, target = DaemonDir(tmp_path, rules), DaemonDir(there, rules)
    with source.running() as daemon:
        daemon.client.post("/v1/pause")
        message_id = daemon.track("u-1", "Feature Used", properties={"phone": "123"})
    file = str(tmp_path / "moved.ndjson")
    verb("outbox", "export", file, *source.flags)
    with target.running() as daemon:
        verb("outbox", "import", file, *target.flags)
        daemon.settle()
        (sent,) = daemon.network.sent
        (story,) = verb("trace", message_id, "--json", *target.flags).json["stories"]
    assert story["mapped"]["requests"][0]["body"] == json.loads(sent.body)


def test_rule_that_caps_an_event_is_named(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, '[mapping.event."Feature Used"]\nper_day = 0\n')
    with daemon_dir.running() as daemon:
        message_id = daemon.track("u-1", "Feature Used")
        wait_until(lambda: daemon.status()["dropped"] == 1, "the drop")
        ran = verb("trace", message_id, *daemon_dir.flags)
    assert 'mapping.event "Feature Used", per_day = 0' in " ".join(ran.out.split())


@pytest.mark.parametrize("rule", ["drop", "hash"])
def test_dead_letter_hides_the_account_of_a_later_rule(tmp_path, verb, rule: str):
    """The account came from another call, so nothing in the event itself told that its payload has to be hidden."""
    body = b'{"message":"account acme-secret is unknown"}'
    before = DaemonDir(tmp_path)
    with before.running(always(400, body)) as daemon:
        with Client(before.unix) as client:
            client.identify("u-1", {"account_id": "acme-secret"})
        message_id = daemon.track("u-1", "Feature Used")
        wait_until(lambda: daemon.status()["dead"] == 1, "the dead letter")
    daemon_dir = DaemonDir(tmp_path, f'[mapping.attributes]\n{rule} = ["account_id"]\n')
    shown = [
        verb(*arguments, *daemon_dir.flags).out
        for arguments in (
            ("dead", "list", "--json"),
            ("dead", "export"),
            ("trace", message_id, "--json"),
            ("events", "show", "2", "--json"),
        )
    ]
    assert all("is unknown" in text for text in shown)
    assert not any("acme-secret" in text for text in shown)


def test_with_since_it_is_not_said_that_there_is_no_older_event(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        message_id = daemon.track("u1", "Feature Used")
        daemon.settle()
        later = verb("trace", message_id, "--since", "2099-01-01T00:00:00+00:00", *daemon_dir.flags)
        absent = verb("trace", "m-9", *daemon_dir.flags)
    assert later.err.startswith(f"No such event was received since {local_time_ms(4_070_908_800_000)}. ")
    assert absent.err.startswith("No such event was received. ")


def test_since_may_reach_back_before_every_clock(daemon_dir: DaemonDir, verb):
    """A time before the year 1 ended in a traceback, as none can be shown."""
    with daemon_dir.running():
        ran = verb("trace", "--event", "Feature Used", "--since", "1000000d", *daemon_dir.flags)
    assert (ran.code, "No such event was received" in ran.err) == (1, True)

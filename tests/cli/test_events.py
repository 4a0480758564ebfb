"""`px-sidecar events`, with and without a daemon."""

import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.control.outbox_admin import event_summary
from sidecar.mapping import Priority
from sidecar.outbox.queries import EventRow

LISTED = {
    *("id", "state", "class", "name", "user", "messageId", "received_ms", "settled_ms"),
    *("reason", "status", "attempts", "event"),
}
PRIVATE = '[mapping.attributes]\ndrop = ["email"]\n'


@pytest.fixture
def private(tmp_path) -> DaemonDir:
    return DaemonDir(tmp_path, PRIVATE)


@pytest.mark.parametrize("alive", [True, False], ids=["with a daemon", "from the file"])
def test_list_filters_by_state_and_redacts(private: DaemonDir, verb, alive: bool):
    with private.running() as daemon:
        message_id = daemon.track("u1", "Feature Used", properties={"email": "ann@example.com", "plan": "gold"})
        daemon.track(None, "Feature Used", anonymous_id="visitor-1")
        daemon.settle()
        if alive:
            ran = verb("events", "list", "--state", "delivered", "--json", *private.flags)
    if not alive:
        ran = verb("events", "list", "--state", "delivered", "--json", *private.flags)
    assert ran.code == 0
    (event,) = ran.json["events"]
    assert set(event) == LISTED
    assert (event["name"], event["user"], event["messageId"]) == ("Feature Used", "u1", message_id)
    assert (event["status"], event["state"]) == (201, "delivered")
    assert event["event"]["properties"] == {"plan": "gold"}
    assert "ann@example.com" not in ran.out


def test_the_table_names_reasons_in_80_columns(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track(None, "A name " + "x" * 200)
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("events", "list", *daemon_dir.flags)
    assert "dropped: no_user" in ran.out
    assert "delivered" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_list_reads_beyond_one_page(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for number in range(30):
            daemon.track("u1", "Feature Used" if number else "First")
        some = verb("events", "list", "--limit", "7", "--json", *daemon_dir.flags).json["events"]
        named = verb("events", "list", "--name", "First", "--json", *daemon_dir.flags).json["events"]
    assert [event["id"] for event in some] == [30, 29, 28, 27, 26, 25, 24]
    assert [event["id"] for event in named] == [1]


def test_show_prints_state_answer_and_current_mapping(private: DaemonDir, verb):
    with private.running() as daemon:
        daemon.track("u1", "Feature Used", properties={"email": "ann@example.com"})
        daemon.settle()
        as_json = verb("events", "show", "1", "--json", *private.flags)
        shown = verb("events", "show", "1", *private.flags)
    assert as_json.json["id"] == 1
    assert "PX answered  201" in shown.out
    assert '"event": "Feature Used"' in shown.out
    assert "ann@example.com" not in as_json.out + shown.out
    assert "current mapping: POST /v1/events/custom" in shown.out
    mapped = as_json.json["mapped"]
    assert mapped["requests"][0]["body"]["eventName"] == "Feature Used"
    assert mapped["changes"] == []


def test_show_names_what_the_mapping_cuts(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used", properties={f"a{number:02}": number for number in range(51)})
        daemon.settle()
        shown = verb("events", "show", "1", *daemon_dir.flags)
    assert "changed: attributes.a50: " in shown.out


def test_show_of_an_unknown_id_fails(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        ran = verb("events", "show", "99", *daemon_dir.flags)
    assert ran.code == 1
    assert "no event 99" in ran.err


def test_an_empty_list_is_reported_on_stderr(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        ran = verb("events", "list", "--user", "unknown", *daemon_dir.flags)
    assert (ran.code, ran.out) == (0, "")
    assert "No events match" in ran.err


def test_list_finds_one_event_by_message_id(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        message_id = daemon.track("u1", "Feature Used")
        daemon.track("u1", "Feature Used")
        daemon.settle()
        ran = verb("events", "list", "--message-id", message_id, "--json", *daemon_dir.flags)
    assert [event["messageId"] for event in ran.json["events"]] == [message_id]


def test_show_prints_class_and_failed_attempts(tmp_path, verb):
    daemon_dir = DaemonDir(tmp_path, '[mapping.event."Subscription Started"]\npriority = "high"\n')
    with daemon_dir.running(always(503)) as daemon:
        daemon.track("u1", "Subscription Started")
        wait_until(lambda: daemon.status()["slowest_user"], "a failed attempt")
        listed = verb("events", "list", *daemon_dir.flags)
        shown = verb("events", "show", "1", *daemon_dir.flags)
    assert "pending, high" in listed.out
    assert "first failed" in shown.out
    assert "last failed" in shown.out
    assert "why" in shown.out
    assert "503" in shown.out


def test_show_names_the_rule_that_drops_an_event_now(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track(None, "Feature Used", anonymous_id="visitor-1")
        daemon.settle()
        shown = verb("events", "show", "1", *daemon_dir.flags)
    assert "current mapping: dropped (no_user)" in shown.out
    assert "POST" not in shown.out


def test_a_named_control_socket_is_not_replaced_by_the_file(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Feature Used")
        daemon.settle()
    ran = verb("events", "list", "--control", str(daemon_dir.folder / "absent.sock"), *daemon_dir.flags)
    assert (ran.code, ran.out) == (69, "")
    assert "absent.sock" in ran.err


def test_a_file_that_was_never_an_outbox_is_not_called_damaged(daemon_dir: DaemonDir, verb):
    """Verbs said that the daemon would recover its events; the daemon refused to start with it."""
    daemon_dir.outbox.write_text("a letter")
    for command in (("events", "list"), ("status",), ("check",)):
        ran = verb(*command, *daemon_dir.flags)
        assert ran.code == (1 if command == ("check",) else 78)
        assert "is not an outbox" in " ".join(f"{ran.out} {ran.err}".split())
    assert daemon_dir.outbox.read_text() == "a letter"


def test_an_undecodable_body_is_listed_without_its_event():
    unknown = dict.fromkeys(("settled_ms", "status", "reason", "account", "name", "via", "hashed", "history"))
    garbled = EventRow(
        id=7, state="pending", priority=Priority.NORMAL, source=0, user="u1", received_ms=0, attempts=0,
        body=b"\xff\xff", **unknown,
    )  # fmt: skip
    summary = event_summary(garbled, lambda event, *_: event)
    assert (summary["id"], summary["user"], summary["event"], summary["messageId"]) == (7, "u1", {}, None)

"""`px-sidecar send`: accepted, --wait, --verify and their failures."""

import json
import threading
import time
from contextlib import nullcontext

import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.control.client import DaemonClient
from sidecar.px import PxAnswer


def test_send_returns_when_the_event_is_on_disk(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", *daemon_dir.flags)
        assert daemon.settle()["delivered"] == 1
    assert ran.code == 0
    assert ran.out.startswith("accepted: it is on disk")


def test_send_json_prints_the_message_id(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", "--json", *daemon_dir.flags)
        daemon.settle()
        event = daemon.client.get("/v1/events", {"message_id": ran.json["messageId"]})["events"][0]
    assert ran.json["what"] == "accepted"
    assert event["user"] == "u1"


def test_send_wait_prints_the_payload_sent(daemon_dir: DaemonDir, verb):
    arguments = ["--user", "u1", "--account", "acme", "--property", "seats=5", "--property", "plan=gold", "--wait"]
    with daemon_dir.running() as daemon:
        ran = verb("send", "Feature Used", *arguments, "--json", *daemon_dir.flags)
        sent = json.loads(daemon.network.sent[0].body)
    assert ran.code == 0
    assert ran.json["what"] == "delivered"
    assert (ran.json["status"], ran.json["attempts"]) == (201, 1)
    assert ran.json["payload"] == sent
    assert (sent["identifyId"], sent["accountId"]) == ("u1", "acme")
    assert sent["attributes"] == {"seats": 5, "plan": "gold"}


def test_send_wait_of_a_dead_event_exits_1_with_the_reason(daemon_dir: DaemonDir, verb):
    body = b'{"externalapierror":{"status":"BAD_REQUEST","message":"eventName is unknown"}}'
    with daemon_dir.running(always(400, body)):
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", *daemon_dir.flags)
    assert ran.code == 1
    assert ran.out.startswith("dead: refused. PX answered 400 (eventName is unknown)")


def test_send_wait_of_a_dropped_event_exits_1(daemon_dir: DaemonDir, verb):
    with daemon_dir.running():
        ran = verb("send", "Feature Used", "--wait", *daemon_dir.flags)
    assert ran.code == 1
    assert ran.out.startswith("dropped: no_user. PX keeps events of known users only; give --user.")


@pytest.mark.parametrize("user", ["undefined", ""])
def test_send_wait_sees_the_outcome_of_an_id_that_is_none(daemon_dir: DaemonDir, verb, user):
    """The feed was filtered by the user as given, so the outcome was printed after --timeout, a minute later."""
    with daemon_dir.running():
        began_s = time.monotonic()
        ran = verb("send", "Used", "--user", user, "--wait", "--json", "--timeout", "20s", *daemon_dir.flags)
    assert (ran.json["what"], ran.json["reason"]) == ("dropped", "no_user")
    assert time.monotonic() - began_s < 15


def test_send_wait_times_out_with_the_reason(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(401)) as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", "--timeout", "500ms", *daemon_dir.flags)
        assert daemon.status()["pending"] == 1
    assert ran.code == 1
    assert "kept, but not delivered yet" in ran.err
    assert "API key is invalid" in ran.err


def test_send_with_a_timeout_of_zero_says_why_the_event_waits(daemon_dir: DaemonDir, verb):
    """It said that the daemon had stopped, or ended in a traceback."""
    with daemon_dir.running(always(401)):
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", "--timeout", "0s", *daemon_dir.flags)
    assert ran.code == 1
    assert "kept, but not delivered yet" in ran.err


def test_send_sends_nothing_without_the_feed(daemon_dir: DaemonDir, verb, monkeypatch):
    monkeypatch.setattr(DaemonClient, "lines", lambda *_, **__: nullcontext(iter(())))
    with daemon_dir.running() as daemon:
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", *daemon_dir.flags)
        assert daemon.status()["accepted"] == 0
    assert ran.code == 1
    assert "nothing was sent" in ran.err


def test_send_needs_a_daemon(daemon_dir: DaemonDir, verb):
    for more in ([], ["--wait"]):
        ran = verb("send", "Feature Used", *more, *daemon_dir.flags)
        assert ran.code == 69
        assert ran.err.count("\n") == 1


def test_a_property_without_a_value_is_wrong_usage(daemon_dir: DaemonDir, verb):
    ran = verb("send", "Feature Used", "--property", "seats", *daemon_dir.flags)
    assert ran.code == 2
    assert "KEY=VALUE" in ran.err


def test_send_verify_reads_the_event_back_from_px(px, tmp_path, verb):
    daemon_dir = px.daemon_dir(tmp_path)
    with daemon_dir.running(network=px.network(daemon_dir)):
        ran = verb("send", "Feature Used", "--user", "u1", "--verify", "--json", *daemon_dir.flags)
        shown = verb("send", "Feature Used", "--user", "u1", "--verify", *daemon_dir.flags)
    assert (ran.code, ran.json["verified"]) == (0, True)
    assert "verified: PX shows the event" in shown.out


def answers_reading(status: int, body: bytes):
    """PX accepts events, and answers what is read with ``status``."""

    async def script(request):
        if request.method == "GET":
            return PxAnswer(status, body, content_type="application/json")
        return await always(201)(request)

    return script


def test_send_verify_fails_if_px_does_not_show_the_event(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(answers_reading(200, b'{"customEvents": [], "totalHits": 0}')):
        ran = verb("send", "Feature Used", "--user", "u1", "--verify", "--timeout", "1s", *daemon_dir.flags)
    assert ran.code == 1
    assert "not verified" in ran.out


def test_send_verify_names_the_missing_read_permission(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(answers_reading(403, b"{}")):
        ran = verb("send", "Used", "--user", "u1", "--verify", *daemon_dir.flags)
    assert ran.code == 1
    assert "Read permission" in ran.err


def test_send_verify_needs_no_key_of_its_own(px, tmp_path, verb):
    """It asked PX itself, so that a member of the group needed the key, which root alone can read."""
    daemon_dir = px.daemon_dir(tmp_path)
    with daemon_dir.running(network=px.network(daemon_dir)):
        ran = verb("send", "Used; twice", "--user", "u;1", "--verify", *daemon_dir.flags, PX_SIDECAR_PX_API_KEY="")
    assert (ran.code, "verified: PX shows the event" in ran.out) == (0, True)


def test_send_wait_prints_failed_attempts(daemon_dir: DaemonDir, verb):
    replies = iter([503, 201])

    async def recovers(request):
        return await always(next(replies))(request)

    with daemon_dir.running(recovers):
        ran = verb("send", "Feature Used", "--user", "u1", "--wait", *daemon_dir.flags)
    assert ran.code == 0
    assert ran.err.startswith("attempt 1 failed: PX answered 503")
    assert ran.out.startswith("delivered: PX answered 201 at attempt 2\n")


def test_send_wait_reports_a_stopped_daemon(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(503)) as daemon:
        ran = []
        arguments = ["send", "Feature Used", "--user", "u1", "--wait", *daemon_dir.flags]
        waiting = threading.Thread(target=lambda: ran.append(verb(*arguments)))
        waiting.start()
        wait_until(lambda: daemon.status()["retries"], "a failed attempt")
    waiting.join(10)
    assert ran[0].code == 1
    assert "The daemon stopped before the outcome was known; the event is kept (" in ran[0].err


def test_send_wait_times_out_despite_other_records(daemon_dir: DaemonDir, verb):
    async def fail_mine(request):
        return await always(503 if b"Mine" in request.body else 201)(request)

    with daemon_dir.running(fail_mine) as daemon:
        ended = threading.Event()

        def traffic() -> None:
            while not ended.wait(0.02):
                daemon.track("u1", "Other")

        others = threading.Thread(target=traffic)
        others.start()
        try:
            ran = verb("send", "Mine", "--wait", "--user", "u1", "--timeout", "400ms", *daemon_dir.flags)
        finally:
            ended.set()
            others.join(10)
    assert ran.code == 1
    assert "kept, but not delivered yet" in ran.err


def test_an_invalid_timeout_is_wrong_usage(daemon_dir: DaemonDir, verb):
    ran = verb("send", "Feature Used", "--wait", "--timeout", "soon", *daemon_dir.flags)
    assert ran.code == 2
    assert "'soon'" in ran.err
    assert ran.out == ""


def test_what_a_suppressed_user_sends_is_said_to_be_dropped(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        verb("forget", "--suppress", "u1", *daemon_dir.flags)
        ran = verb("send", "Feature Used", "--user", "u1", *daemon_dir.flags)
        waited = verb("send", "Feature Used", "--user", "u1", "--wait", *daemon_dir.flags)
        daemon.settle()
    assert "it is on disk and will be dropped: suppressed. `forget --suppress` was run for this user" in ran.out
    assert waited.out == "dropped: suppressed. `forget --suppress` was run for this user: its events are dropped.\n"


def test_arguments_that_are_not_text_send_nothing(daemon_dir: DaemonDir, verb):
    """The event was stored and delivered, with U+FFFD in it, and then the verb said that its usage was wrong."""
    with daemon_dir.running() as daemon:
        for more in (["--user", "u\udcff"], ["--user", "u1", "--property", "p=\udcff"], ["--user", "u1", "--wait"]):
            ran = verb("send", "Used\udcff" if "--wait" in more else "Used", *more, *daemon_dir.flags)
            assert (ran.code, "not text in the encoding" in ran.err) == (2, True)
        assert daemon.status()["accepted"] == 0


def test_a_property_that_is_nested_too_deeply_is_a_text(daemon_dir: DaemonDir, verb):
    """It ended in a traceback."""
    with daemon_dir.running() as daemon:
        ran = verb("send", "Used", "--user", "u1", "--property", f"p={'[' * 10_000}", "--wait", *daemon_dir.flags)
        (sent,) = daemon.network.sent
    assert ran.code == 0
    assert json.loads(sent.body)["attributes"] == {"p": "[" * 10_000}


def test_a_filter_by_account_is_foretold(tmp_path, verb):
    """It said "will be delivered" of an event that a rule drops by the account given with --account."""
    daemon_dir = DaemonDir(tmp_path, '[[mapping.drop]]\nevent = "*"\nwhere = { "context.groupId" = "test-*" }\n')
    with daemon_dir.running():
        ran = verb("send", "Feature Used", "--user", "u1", "--account", "test-1", *daemon_dir.flags)
    assert "will be dropped: filtered" in ran.out


def test_send_works_without_a_unix_socket(tmp_path, verb):
    """It said that the sidecar cannot be reached at an empty path, and to start it."""
    daemon_dir = DaemonDir(tmp_path)
    text = daemon_dir.file.read_text().replace('http = ""', 'http = "127.0.0.1:0"')
    daemon_dir.file.write_text(text.replace(f'unix = "{daemon_dir.unix}"', 'unix = ""'))
    with daemon_dir.running() as daemon:
        ran = verb("send", "Used", "--user", "u1", "--account", "a1", "--wait", *daemon_dir.flags)
        (sent,) = daemon.network.sent
    assert (ran.code, ran.out.startswith("delivered")) == (0, True)
    assert (json.loads(sent.body)["identifyId"], json.loads(sent.body)["accountId"]) == ("u1", "a1")

"""`/v1/trace` and `/v1/names`, against a daemon with real sockets and a scripted PX."""

import json

import pytest
from px_sidecar_client import Client
from running_daemon import DaemonDir, always, wait_until

from sidecar.control.client import DaemonClient
from sidecar.errors import Failed
from sidecar.px import PxAnswer


@pytest.fixture
def configured(tmp_path):
    return DaemonDir(
        tmp_path,
        '[deliver]\nretry_initial = "10ms"\nretry_max = "20ms"\n'
        '[mapping.events]\n"Clicked" = "Click"\n"Noise" = ""\n[mapping.attributes]\ndrop = ["email"]\n',
    )


def trace(daemon, **query):
    return daemon.client.get("/v1/trace", query)


def test_a_story_names_the_call_that_decided_the_account_and_the_rule(configured: DaemonDir):
    with configured.running() as daemon:
        with Client(configured.unix) as client:
            group = client.group("u1", "acme")
            message_id = client.track("u1", "Clicked", {"email": "a@b.c", "plan": "pro"})
        daemon.settle()
        (story,) = trace(daemon, message_id=message_id)["stories"]
    assert story["account"]["id"] == "acme"
    assert story["account"]["path"] == "groupId"
    assert story["account"]["call"]["messageId"] == group
    assert story["account"]["call"]["type"] == "group"
    assert story["mapped"]["name"] == "Click"
    assert story["mapped"]["rule"] == 'mapping.events "Clicked"'
    assert story["via"] == "ndjson"
    assert (story["state"], story["status"], story["failures"], story["waits_for"]) == ("delivered", 201, None, None)
    assert "a@b.c" not in json.dumps(story)


def test_an_event_without_a_message_id_has_a_story(configured: DaemonDir):
    """The page of a dead letter asked by its message id and said "name the event"."""
    with configured.running() as daemon:
        DaemonClient(configured.unix).post("/v1/batch", {"batch": ["not an object"]})
        daemon.settle()
        answer = trace(daemon, id=1)
        assert trace(daemon, id=2)["stories"] == []
    assert answer["pruned"] == []
    (story,) = answer["stories"]
    assert (story["id"], story["state"], story["reason"], story["messageId"]) == (1, "dead", "bad_event", None)
    assert story["mapped"]["requests"] == []


def test_user_and_name_narrow_down_the_events_of_a_message_id(configured: DaemonDir):
    """They were ignored beside a message id."""
    with configured.running() as daemon:
        for call in ({"type": "track", "event": "Clicked"}, {"type": "identify", "traits": {"plan": "pro"}}):
            DaemonClient(configured.unix).post("/v1/batch", {"batch": [{"userId": "u1", "messageId": "m1", **call}]})
        daemon.settle()

        def types(**query):
            return {story["event"]["type"] for story in trace(daemon, message_id="m1", **query)["stories"]}

        assert types() == types(user="u1") == {"track", "identify"}
        assert types(event="Clicked") == {"track"}
        assert types(user="u2") == types(event="Other") == set()


def test_an_account_that_the_event_names_goes_first(configured: DaemonDir):
    """The story said "none", or the remembered account, of an event that named another itself."""
    with configured.running() as daemon:
        with Client(configured.unix) as client:
            first = client.track("u1", "Clicked", context={"groupId": "own"})
            client.group("u1", "acme")
            second = client.track("u1", "Clicked", context={"groupId": "other"})
        daemon.settle()
        accounts = [trace(daemon, message_id=message_id)["stories"][0]["account"] for message_id in (first, second)]
    assert [(account["id"], account["path"], account["call"]) for account in accounts] == [
        ("own", "context.groupId", None),
        ("other", "context.groupId", None),
    ]


def test_a_story_holds_the_first_and_the_last_answer(configured: DaemonDir):
    answers = iter([503, 502, 500])

    async def script(_request):
        return PxAnswer(next(answers, 201), b"{}", content_type="application/json")

    with configured.running(script) as daemon:
        message_id = daemon.track("u1", "Clicked")
        daemon.settle()
        failures = trace(daemon, message_id=message_id)["stories"][0]["failures"]
    assert failures["count"] == 3
    assert "503" in failures["first"]
    assert "500" in failures["last"]
    assert failures["first_ms"] <= failures["last_ms"]


def test_a_dropped_event_names_the_reason_and_the_rule(configured: DaemonDir):
    with configured.running() as daemon:
        daemon.track("u1", "Noise")
        daemon.settle()
        (story,) = trace(daemon, event="Noise")["stories"]
    assert story["mapped"]["dropped"] == story["reason"] == "mapped_to_nothing"
    assert story["mapped"]["rule"] == 'mapping.events "Noise"'


def test_a_pending_event_says_what_it_waits_for(configured: DaemonDir):
    with configured.running(always(401, b'{"message":"no"}')) as daemon:
        message_id = daemon.track("u1", "Clicked")
        wait_until(lambda: daemon.status()["state"] == "paused", "the pause")
        (story,) = trace(daemon, message_id=message_id)["stories"]
    assert story["state"] == "pending"
    assert "401" in story["waits_for"]


def test_what_was_received_instead_is_shown(configured: DaemonDir):
    with configured.running() as daemon:
        daemon.track("u1", "Report Exported")
        daemon.settle()
        with pytest.raises(Exception, match="bad_event"):
            daemon.track("u1", "")
        answer = trace(daemon, event="report exportd", user="u1")
        by_id = trace(daemon, message_id="nobody-sent-this")
    assert answer["stories"] == []
    assert [row["name"] for row in answer["instead"]["names"]] == ["Report Exported"]
    assert [row["name"] for row in answer["instead"]["same_user"]] == ["Report Exported"]
    assert answer["instead"]["refused"]["counts"] == {"bad_event": 1}
    assert [row["name"] for row in by_id["instead"]["newest_names"]] == ["Report Exported"]


def test_a_question_without_an_event_is_refused(configured: DaemonDir):
    with configured.running() as daemon, pytest.raises(Failed, match="Name the event"):
        trace(daemon)


def test_forgetting_a_user_removes_the_history_of_attempts(configured: DaemonDir):
    async def script(_request):
        return PxAnswer(400, b'{"message":"user u-secret is odd"}', content_type="application/json")

    with configured.running(script) as daemon:
        daemon.track("u-secret", "Clicked")
        wait_until(lambda: daemon.status()["dead"] == 1, "the dead letter")
        daemon.client.post("/v1/forget", {"user": "u-secret"})
        assert trace(daemon, user="u-secret")["stories"] == []
    assert b"u-secret" not in configured.outbox.read_bytes()


def test_names_holds_what_each_becomes_and_its_attributes(configured: DaemonDir):
    with configured.running() as daemon:
        daemon.track("u1", "Clicked", properties={"plan": "pro", "email": "a@b.c"})
        daemon.track("u2", "Clicked", properties={"plan": 3})
        daemon.track("u2", "clicked")
        daemon.track("u2", "Noise")
        daemon.settle()
        answer = daemon.client.get("/v1/names")
    by_name = {entry["name"]: entry for entry in answer["names"]}
    assert by_name["Clicked"]["px"] == "Click"
    assert by_name["Clicked"]["events"] == 2
    assert by_name["Clicked"]["share"] == 0.5
    assert by_name["Clicked"]["attributes"] == {"plan": {"string": 1, "number": 1}}
    assert by_name["Noise"]["px"] is None
    assert by_name["Noise"]["not_sent"] == {"mapped_to_nothing": 1}
    assert answer["sampled"] == 4
    assert any('"Clicked", "clicked" differ only in spelling' in finding for finding in answer["findings"])
    assert any("attribute plan is number (1) and string (1)" in finding for finding in answer["findings"])


def test_the_sample_is_bounded(configured: DaemonDir):
    with configured.running() as daemon:
        for number in range(5):
            daemon.track("u1", "Clicked", properties={f"a{number}": 1})
        answer = daemon.client.get("/v1/names", {"sample": 2})
    assert answer["sampled"] == 2
    assert answer["names"][0]["events"] == 5


def test_names_hide_what_a_rule_covers(tmp_path):
    """The name of a page is data of the app, such as "Order of Ada Lovelace"."""
    directory = DaemonDir(tmp_path, '[mapping.attributes]\ndrop = ["name"]\n')
    with directory.running() as daemon, Client(directory.unix) as client:
        for name in ("Order of Ada", "Order of Bob"):
            client.page("u1", name)
        daemon.track("u1", "Clicked")
        daemon.settle()
        answer = daemon.client.get("/v1/names")
        instead = trace(daemon, event="Order of Ad")
    assert "Order of" not in json.dumps([answer, instead])
    assert {(entry["type"], entry["name"]): entry["events"] for entry in answer["names"]} == {
        ("page", ""): 2,
        ("track", "Clicked"): 1,
    }

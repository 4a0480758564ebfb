"""The calls that the console needs, against a daemon with real sockets and a scripted PX."""

import json
import os
import socket
import threading
import time

import pytest
from running_daemon import DaemonDir, always, wait_until

from sidecar.client import Client
from sidecar.config import ConfigFile
from sidecar.control.offline import open_file
from sidecar.errors import Failed
from sidecar.outbox import StoreFailed
from sidecar.px import PxAnswer

REFUSED = always(400, b'{"message":"propertyKey is wrong"}')


@pytest.fixture
def configured(tmp_path):
    return DaemonDir(
        tmp_path,
        '[[source]]\nwrite_key = "wk_secret"\nproperty_key = "AP-YYYYYYYYYY-2"\n'
        '[mapping.events]\n"Clicked" = "Click"\n[mapping.attributes]\nrename = { plan_name = "plan" }\ndrop = ["email"]\n',
    )


def test_the_series_counts_what_was_accepted_and_delivered(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.track("u1", "Opened")
        daemon.settle()
        wait_until(lambda: sum(daemon.client.get("/v1/series")["seconds"]["requests"]) == 1, "the second to be over")
        seconds = daemon.client.get("/v1/series")["seconds"]
    assert sum(seconds["accepted"]) == sum(seconds["delivered"]) == 1
    assert seconds["step_s"] == 1


def test_the_live_feed_is_a_sample_that_says_so(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon, daemon.client.lines("/v1/live", {"what": "delivered"}, timeout_s=5) as lines:
        assert next(lines) == {"sample": {"seen": 0, "matched": 0, "shown": 0}}
        daemon.track("u1", "Opened", properties={"a": 1})
        record = next(line for line in lines if "what" in line)
        counts = next(lines)
    assert record["event"]["properties"] == {"a": 1}
    assert record["payload"]["attributes"] == {"a": 1}
    assert record["status"] == 201
    assert counts == {"sample": {"seen": 2, "matched": 1, "shown": 1}}


def test_dead_letters_are_grouped_and_counted_before_they_are_moved(daemon_dir: DaemonDir):
    with daemon_dir.running(REFUSED) as daemon:
        for number in range(5):
            daemon.track(f"u{number}", "Opened" if number else "Closed")
        wait_until(lambda: daemon.status()["dead"] == 5, "five dead letters")
        answer = daemon.client.get("/v1/dead/groups")
        count = daemon.client.post("/v1/dead/count", {"name": "Opened"})
        assert daemon.client.post("/v1/dead/count", {"ids": []}) == {"count": 0, "complete": True}
        with pytest.raises(Failed, match="Nothing is selected"):
            daemon.client.post("/v1/dead/count", {})
    assert [(group["name"], group["count"], group["status"]) for group in answer["groups"]] == [
        ("Opened", 4, 400),
        ("Closed", 1, 400),
    ]
    assert "propertyKey is wrong" in answer["groups"][0]["detail"]
    assert answer["complete"]
    assert count == {"count": 4, "complete": True}


def test_groups_show_what_the_privacy_rules_in_force_show(daemon_dir: DaemonDir):
    """A rule that came after the refusal hid the email in the letters, but not in PX's words about their group."""
    quoting = always(400, b'{"message":"ann@example.com is no name"}')
    with daemon_dir.running(quoting) as daemon:
        daemon.track("u1", "Opened", properties={"email": "ann@example.com"})
        wait_until(lambda: daemon.status()["dead"] == 1, "the refusal")
        assert "ann@example.com" in daemon.client.get("/v1/dead/groups")["groups"][0]["detail"]
        daemon.reload(daemon_dir.file.read_text() + '[mapping.attributes]\ndrop = ["email"]\n')
        (group,) = daemon.client.get("/v1/dead/groups")["groups"]
    assert "ann@example.com" not in group["detail"]
    assert group["detail"].startswith("PX answered 400")


def test_the_preview_shows_recent_events_under_both_mappings(configured: DaemonDir):
    with running(configured) as daemon:
        daemon.track("u1", "Clicked", properties={"email": "a@b.c", "planName": "pro"})
        daemon.settle()
        changed = configured.file.read_text().replace('"Clicked" = "Click"', '"Clicked" = "Button Clicked"')
        answer = daemon.client.post("/v1/mapping/preview", {"toml": changed, "unmatched": True})
        same = daemon.client.post("/v1/mapping/preview", {"name": "Clicked"})
    (row,) = answer["rows"]
    assert row["now"]["requests"][0]["body"]["eventName"] == "Click"
    assert row["then"]["requests"][0]["body"]["eventName"] == "Button Clicked"
    assert not row["same"]
    assert "a@b.c" not in json.dumps(answer)
    (name,) = [name for name in answer["names"] if name["name"] == "Clicked"]
    assert (name["now"], name["then"]) == ("Click", "Button Clicked")
    assert answer["unmatched"] == ["mapping.attributes.rename.plan_name"]
    assert same["rows"][0]["same"]


def test_a_mapped_event_without_a_time_has_the_time_of_the_call(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        event = {"type": "track", "event": "Opened", "userId": "u"}
        (result,) = daemon.client.post("/v1/map", {"events": [event]})["results"]
    assert "changes" not in result
    assert abs(result["requests"][0]["body"]["date"] - time.time() * 1000) < 60_000


def test_the_preview_judges_ids_and_filters_as_delivery_does(tmp_path):
    """It took the default of identity.reject, and did not see what a filter looks at."""
    more = (
        '[identity]\nreject = ["bogus"]\n[mapping.attributes]\ndrop = ["email"]\n'
        '[[mapping.drop]]\nevent = "*"\nwhere = { "properties.email" = "*@example.com" }\n'
    )
    place = DaemonDir(tmp_path, more)
    with running(place) as daemon:
        daemon.track("bogus", "Id")
        daemon.track("undefined", "Id")
        daemon.track("u1", "Filtered", properties={"email": "ann@example.com"})
        daemon.settle()
        text = place.file.read_text()
        rows = daemon.client.post("/v1/mapping/preview", {"toml": text.replace('"bogus"', '"undefined"')})["rows"]
        probed = daemon.client.post("/v1/mapping/preview", {"toml": text.replace("*@example.com", "ann@*")})["rows"]
    now = [row["now"].get("dropped") for row in rows]
    assert now == ["filtered", None, "no_user"]
    assert [row["then"].get("dropped") for row in rows] == ["filtered", "no_user", None]
    assert not any(row["reveals"] for row in rows)
    # A changed filter must not tell what the dropped attribute holds.
    assert "dropped" not in probed[0]["then"]
    assert not probed[0]["reveals"]


def test_every_kind_of_rule_that_matches_nothing_is_named(tmp_path):
    place = DaemonDir(tmp_path)
    with running(place) as daemon:
        daemon.track("u1", "Clicked", properties={"plan": "pro"})
        daemon.settle()
        rules = (
            '[[mapping.drop]]\nevent = "Nobody"\n[[mapping.drop]]\nevent = "Clicked"\nwhere = { "properties.plan" = "free" }\n'
            '[mapping.event."Nobody"]\npriority = "high"\n[mapping.event."Clicked"]\npriority = "high"\n'
            '[mapping.fields]\naccountId = "properties.nothing"\n[mapping.traits]\ndrop = ["phone"]\n'
        )
        toml = place.file.read_text() + rules
        unmatched = daemon.client.post("/v1/mapping/preview", {"toml": toml, "unmatched": True})["unmatched"]
    assert unmatched == [
        "mapping.event.Nobody",
        'mapping.drop, entry 1 (event "Nobody")',
        'mapping.drop, entry 2 (event "Clicked", where properties.plan)',
        "mapping.traits.drop: phone",
        "mapping.fields.accountId",
    ]


def test_the_preview_finds_a_name_that_came_long_ago(configured: DaemonDir):
    with running(configured) as daemon:
        daemon.track("u1", "Rare")
        daemon.settle()

        def put_far_behind(store, _now_ms):
            store.connection.execute("UPDATE events SET received_ms = received_ms - 1000")
            store.connection.execute("UPDATE names SET last_ms = last_ms - 1000")
            store.connection.execute(
                "INSERT INTO events (id, state, source, user, received_ms, settled_ms, name, body)"
                " WITH RECURSIVE more(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM more WHERE n < 60000)"
                " SELECT n, 4, 0, 'u', (SELECT max(received_ms) FROM events) + n, 1, 0, CAST('{}' AS BLOB) FROM more"
            )

        daemon.run(daemon.app.outbox.write, put_far_behind)
        rows = daemon.client.post("/v1/mapping/preview", {"name": "Rare"})["rows"]
    assert [row["id"] for row in rows] == [1]


def test_every_rule_for_names_is_compared_with_all_names_that_came(configured: DaemonDir):
    """With 500 rules the preview took a second, and judged 100 of them."""
    rules = (
        "".join(f'"Name {number}" = "Mapped {number}"\n' for number in range(300))
        + '"Page *" = "A page"\n"Click*" = ""\n'
    )
    with running(configured) as daemon:
        for name in ("Name 7", "Clicked"):
            daemon.track("u1", name)
        daemon.settle()
        toml = configured.file.read_text().replace("[mapping.events]", f"[mapping.events]\n{rules}")
        unmatched = daemon.client.post("/v1/mapping/preview", {"toml": toml, "unmatched": True})["unmatched"]
    names = [rule.removeprefix("mapping.events.") for rule in unmatched if rule.startswith("mapping.events.")]
    assert names == [*(f"Name {number}" for number in range(300) if number != 7), "Page *", "Click*"]


def test_the_preview_says_when_a_change_would_reveal_what_is_hidden(configured: DaemonDir):
    with running(configured) as daemon:
        daemon.track("u1", "Clicked", properties={"email": "a@b.c"})
        daemon.settle()
        changed = configured.file.read_text().replace('drop = ["email"]', "")
        answer = daemon.client.post("/v1/mapping/preview", {"toml": changed})
    assert answer["rows"][0]["reveals"]
    assert "a@b.c" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('"Clicked" = "Click"', '"Clicked" = ', 14, "not valid TOML"),
        ("[mapping.events]", 'preset = 1\n[mapping]\npreset = "no"\n[mapping.events]', None, ""),
        ('rename = { plan_name = "plan" }', 'rename = { plan_name = "email" }', None, "creates 'email'"),
    ],
)
def test_a_wrong_text_is_answered_with_its_line(configured: DaemonDir, old, new, line, said):
    with running(configured) as daemon:
        text = configured.file.read_text().replace(old, new)
        checked = daemon.client.post("/v1/config/check", {"toml": text})
        preview = daemon.client.post("/v1/mapping/preview", {"toml": text})
    assert not checked["ok"]
    assert checked == preview
    assert said in checked["error"]
    if line:
        assert checked["line"] == line


@pytest.mark.parametrize(
    ("function", "method", "path", "given"),
    [
        ("config_calls.check_text", "post", "/v1/config/check", {"toml": ""}),
        ("mapping_preview.check_text", "post", "/v1/mapping/preview", {"toml": ""}),
        ("trace._nearest", "get", "/v1/trace", {"event": "Clickd"}),
    ],
)
def test_long_work_does_not_hold_the_event_loop(
    configured: DaemonDir, monkeypatch: pytest.MonkeyPatch, function: str, method: str, path: str, given: dict
):
    """A text of some megabytes, and a name that is searched among 10,000, stopped accepting and delivery for a second."""
    begun, ended, in_time = threading.Event(), threading.Event(), []

    def work(*_: object) -> object:
        begun.set()
        in_time.append(ended.wait(5))
        return [] if "trace" in path else {"ok": False}

    monkeypatch.setattr(f"sidecar.control.{function}", work)
    with configured.running(config_file=ConfigFile(str(configured.file), {})) as daemon:
        caller = threading.Thread(target=getattr(daemon.client, method), args=(path, given))
        caller.start()
        assert begun.wait(10)
        daemon.client.get("/v1/status")
        ended.set()
        caller.join()
    assert in_time == [True]


def test_check_lists_the_changes_and_what_waits_for_a_restart(configured: DaemonDir):
    with running(configured) as daemon:
        text = configured.file.read_text().replace("[mapping.events]", "[deliver]\nper_second = 7\n[mapping.events]")
        checked = daemon.client.post("/v1/config/check", {"toml": text.replace('http = ""', 'http = "127.0.0.1:1"')})
    changes = {change["key"]: change for change in checked["changes"]}
    assert checked["ok"]
    assert changes["deliver.per_second"] == {"key": "deliver.per_second", "now": 190, "then": 7, "restart": False}
    assert changes["listen.http"]["restart"]


def test_the_file_is_shown_without_secrets(configured: DaemonDir):
    with running(configured) as daemon:
        shown = daemon.client.get("/v1/config/file")
    assert shown["path"] == str(configured.file)
    assert shown["variables"] == {}
    assert 'write_key = "****1"' in shown["toml"]
    assert "wk_secret" not in shown["toml"]


def test_a_reload_over_the_socket_says_what_it_did(configured: DaemonDir):
    with running(configured) as daemon:
        good = configured.file.read_text()
        configured.file.write_text(good + '[log]\nlevel = "debug"\n')
        assert daemon.client.post("/v1/reload")["reloaded"]
        configured.file.write_text("[px\n")
        with pytest.raises(Failed, match="was not reloaded, the old one stays in force"):
            daemon.client.post("/v1/reload")


def test_every_change_is_audited_with_the_peer(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.client.post("/v1/resume")
        daemon.client.post("/v1/forget", {"user": "ann@example.com"})
        daemon.client.post("/v1/dead/retry", {"name": "Opened"})
        daemon.client.post("/v1/audit/note", {"action": "configuration saved", "detail": "mapping.events"})
        daemon.client.post("/v1/dead/count", {"all": True})
        rows = daemon.client.get("/v1/audit")["changes"]
    assert [row["action"] for row in rows] == ["configuration saved", "dead retry", "forget", "resume", "pause"]
    assert rows[1]["detail"] == '{"name":"Opened"}'
    assert rows[2]["detail"] == '{"user":"…"}'
    assert f"uid {os.getuid()}, pid {os.getpid()}" in rows[0]["who"]


def test_a_call_that_is_done_is_answered_also_without_its_row(daemon_dir: DaemonDir, monkeypatch):
    """With a full disk it was answered 503, and the operator repeated what was done."""

    def fails(*_):
        raise StoreFailed("The outbox cannot be written (database or disk is full).")

    monkeypatch.setattr("sidecar.control.audit.add_audit", fails)
    with daemon_dir.running() as daemon:
        assert daemon.client.post("/v1/dead/retry", {"all": True})["next"] is None


def test_a_directory_of_users_that_does_not_answer_holds_no_call_up(daemon_dir: DaemonDir, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr("sidecar.control.audit.NAME_S", 0.05)
    monkeypatch.setattr("sidecar.control.audit.pwd.getpwuid", lambda _: gate.wait(10))
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        (row,) = daemon.client.get("/v1/audit")["changes"]
        gate.set()
    assert row["who"] == f"? (uid {os.getuid()}, pid {os.getpid()})"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/dead/discard", {"name": "Opened", "after": -1}),
        ("/v1/dead/discard", {"name": "Opened", "after": 1}),
        ("/v1/dead/disc%61rd", {"name": "Opened"}),
        ("/v1/dead/discard//", {"name": "Opened"}),
    ],
    ids=str,
)
def test_no_spelling_of_a_call_escapes_the_audit(daemon_dir: DaemonDir, path, body):
    """A call that began behind the first letter, and one with an escaped path, changed without a row."""
    with daemon_dir.running() as daemon:
        daemon.client.post(path, body)
        assert [row["action"] for row in daemon.client.get("/v1/audit")["changes"]] == ["dead discard"]


def test_the_pages_of_one_call_are_one_row(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        for after in (0, 500, 1_000):
            daemon.client.post("/v1/dead/retry", {"name": "Opened", "after": after})
        daemon.client.post("/v1/dead/retry", {"name": "Closed", "after": 1_500})
        details = [row["detail"] for row in daemon.client.get("/v1/audit")["changes"]]
    assert details == ['{"name":"Closed","after":1500}', '{"name":"Opened"}']


def test_the_trail_shows_what_was_selected_and_never_a_user(daemon_dir: DaemonDir):
    """Of `events discard --class low` and `forget --suppress` it showed that these were given, and not which."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/events/discard", {"class": "low", "user": "u-secret"})
        daemon.client.post("/v1/forget", {"users": ["u-secret"], "suppress": True})
        details = [row["detail"] for row in daemon.client.get("/v1/audit")["changes"]]
    assert details == ['{"users":"…","suppress":true}', '{"class":"low","user":"…"}']


def test_a_change_without_a_daemon_names_its_user(daemon_dir: DaemonDir):
    with daemon_dir.running():
        pass
    with open_file(daemon_dir.config) as backend:
        for after in (0, 500):
            backend.post("/v1/dead/discard", {"name": "Opened", "after": after})
        (row,) = backend.get("/v1/audit")["changes"]
    assert f"uid {os.getuid()}, pid {os.getpid()}), without a daemon" in row["who"]


def test_a_refused_call_is_not_audited(daemon_dir: DaemonDir):
    with daemon_dir.running() as daemon:
        with pytest.raises(Failed):
            daemon.client.post("/v1/dead/retry", {})
        assert daemon.client.get("/v1/audit")["changes"] == []


def test_a_test_event_is_sent_for_a_source_and_read_back(configured: DaemonDir):
    async def px(request):
        if request.method == "GET":
            body = {"customEvents": [{"date": 1_700_000_000_000}], "totalHits": 1}
            return PxAnswer(200, json.dumps(body).encode(), content_type="application/json")
        return PxAnswer(201, b"{}", content_type="application/json")

    event = {"type": "track", "event": "Test", "userId": "u", "timestamp": "2023-11-14T22:13:20Z"}
    with running(configured, px) as daemon:
        sent = daemon.client.post("/v1/send", {"event": event, "source": 0})
        daemon.settle()
        shown = daemon.client.get("/v1/events", {"message_id": sent["messageId"]})["events"][0]
        body = daemon.client.get(f"/v1/events/{shown['id']}")["mapped"]["requests"][0]["body"]
        query = {"name": "Test", "user": "u", "date_ms": body["date"]}
        assert daemon.client.get("/v1/verify", query)["found"]
        with pytest.raises(Failed, match="no \\[\\[source\\]\\] number 7"):
            daemon.client.post("/v1/send", {"event": event, "source": 7})
        with pytest.raises(Failed, match="cannot be accepted"):
            daemon.client.post("/v1/send", {"event": {"type": "track"}})
    assert body["propertyKey"] == "AP-YYYYYYYYYY-2"


def test_reconcile_puts_delivered_and_px_side_by_side(daemon_dir: DaemonDir):
    async def px(request):
        if request.method == "GET":
            return PxAnswer(200, b'{"customEvents": [], "totalHits": 41}', content_type="application/json")
        return PxAnswer(201, b"{}", content_type="application/json")

    with daemon_dir.running(px) as daemon:
        daemon.track("u1", "Opened", timestamp="2020-01-01T00:00:00Z")
        daemon.settle()
        answer = daemon.client.get("/v1/reconcile", {"hours": 4_000})
        window = {"since_ms": 1, "until_ms": 2}
        totals = daemon.client.post("/v1/reconcile/px", {"names": ["Opened", "a;b", "Opened"], **window})
        with pytest.raises(Failed, match="at most 20"):
            daemon.client.post("/v1/reconcile/px", {"names": ["x"] * 21, **window})
        with pytest.raises(Failed, match="190 days"):
            daemon.client.post("/v1/reconcile/px", {"names": [], "since_ms": 2, "until_ms": 2})
    assert totals == {"totals": [41, None, 41], "problem": None}
    assert answer["problem"] is None
    assert answer["names"] in ([], [{"name": "Opened", "delivered": 1, "px": 41}])


def running(daemon_dir: DaemonDir, script=None):
    return daemon_dir.running(script, config_file=ConfigFile(str(daemon_dir.file), {}))


def test_the_preview_hides_names_that_the_privacy_rules_hide(tmp_path):
    """The name of a page is data of the app: the list of names showed it, the catalogue did not."""
    private = DaemonDir(tmp_path, '[mapping.attributes]\ndrop = ["name"]\n')
    with private.running() as daemon:
        with Client(private.unix) as client:
            client.page("u1", "Patient Smith")
        daemon.settle()
        assert "Patient" not in str(daemon.client.post("/v1/mapping/preview"))


@pytest.mark.parametrize("body", [b"garbage", b"[1]"])
def test_a_call_with_a_body_that_is_wrong_does_nothing(daemon_dir: DaemonDir, body):
    """It was answered 400 after it had paused, and the audit trail did not have it."""
    with daemon_dir.running() as daemon:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(daemon_dir.control))
            connection.sendall(b"POST /v1/pause HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert daemon.status()["state"] != "paused"


def test_a_body_that_is_nested_too_deeply_is_a_bad_request(daemon_dir: DaemonDir):
    """It was "a bug; report it"."""
    body = b'{"events": [' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"]}"
    with daemon_dir.running() as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon_dir.config.listen.control)
        head = f"POST /v1/map HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert daemon.status()["state"] == "open"
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"nested too deeply" in answer


def test_a_reload_that_is_refused_is_no_change(daemon_dir: DaemonDir):
    with running(daemon_dir) as daemon:
        daemon_dir.file.write_text("broken =")
        with pytest.raises(Failed):
            daemon.client.post("/v1/reload")
        assert daemon.client.get("/v1/audit")["changes"] == []

"""Every SDK of tests/sdk/README.md, as an app of its own language, against a real daemon (`.ci/run sdk`).

What reaches PX is compared with what the app said. With ``PX_SDK_RESULTS=FILE`` the facts of the table are written there.
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from process_harness import ProcessHarness, wait_until
from sdk_apps import ABSENT, SDKS, App, CannotBuild, Recorder, Sdk, build, recording
from test_sdks import listening

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(500)]  # the first test of an SDK builds its app

WINDOW_S = 5.0
LAST_S = time.time()
TOO_LARGE = 40_000
IN_FLIGHT = 128  # deliver.max_in_flight: what a kill may repeat at PX
# What the daemon answers in each case (sidecar/receive/README.md#answers); 429 and 413 it never sends.
ERROR = b'{"success":false,"code":"x","message":"x","error":"x"}'
ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "503": (503, {"Retry-After": "1"}),
    "429": (429, {"Retry-After": "1"}),
    "413": (413, {}),
    "400": (400, {}),
}


@pytest.fixture(params=SDKS, ids=lambda sdk: sdk.name)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    try:
        build(request.param)
    except CannotBuild as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("name", ABSENT)
def test_an_sdk_that_no_machine_of_ci_can_install(name):
    pytest.skip(ABSENT[name])


def note(sdk: Sdk, **facts: Any) -> None:
    """Add facts to the results, from any of several workers."""
    if not (name := os.environ.get("PX_SDK_RESULTS")):
        return
    with open(name, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        results = json.loads(file.read() or "{}")
        results.setdefault(sdk.name, {"version": sdk.version, "setting": sdk.setting}).update(facts)
        file.truncate(0)
        file.write(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def at(number: int) -> str:
    """A timestamp with milliseconds, some minutes ago."""
    ms = int((LAST_S - 600) * 1000) + number
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z"


def ms_of(call: dict[str, Any]) -> int:
    return int((LAST_S - 600) * 1000) + call["n"]


VALUES = {
    "text": 'Grüße ✓ "quoted" \\ 日本',
    "whole": 9007199254740991,
    "float": 1.5,
    "negative": -3,
    "yes": True,
    "no": False,
    "empty": "",
    "nested": {"a": {"b": [1, "x", None]}},
    "list": [1, 2.5, "three"],
}


def make_calls(sdk: Sdk, name: str, count: int) -> list[dict[str, Any]]:
    """Calls of every kind in turn; each has a number, by which it is found again."""
    calls = []
    for n in range(count):
        kind = ("track", "page", "screen", "identify", "group", "track", "alias")[n % 7]
        user = f"{name}-u{n}" if kind in ("identify", "group", "alias") else f"{name}-u{n % 3}"
        call: dict[str, Any] = {"n": n, "type": kind, "userId": user, "messageId": f"{name}-{n}", "timestamp": at(n)}
        if kind in ("track", "page", "screen"):
            call["properties"] = {**VALUES, "n": n, "run": name}
            call["context"] = {"groupId": f"acme-{n % 2}"}
        if kind == "track":
            call["event"] = f"Feature {'Used' if n % 2 else 'Größe'}"
        elif kind in ("page", "screen"):
            call["name"] = "Start"
            if kind == "page" and sdk.category:
                call["category"] = "Docs"
        elif kind == "identify":
            call["traits"] = {"email": f"{n}@example.com", "plan": "pro", "seats": n}
        elif kind == "group":
            call |= {"groupId": f"{name}-a{n}", "traits": {"name": f"Account {n}", "seats": n}}
        else:
            call["previousId"] = f"{name}-old{n}"
        calls.append(call)
    return calls


def expected(call: dict[str, Any]) -> dict[str, Any]:
    """The event that PX must get for a track, page or screen call."""
    named = {key: call[key] for key in ("name", "category") if key in call}
    return {
        "eventName": {"page": "Page Viewed", "screen": "Screen Viewed"}.get(call["type"], call.get("event")),
        "identifyId": call["userId"],
        "accountId": call["context"]["groupId"],
        "date": ms_of(call),
        "attributes": {key: value for key, value in (call["properties"] | named).items() if value != ""},
    }


def shown(event: dict[str, Any]) -> dict[str, Any]:
    """The same fields of an event that has arrived, with nested values, which PX gets as text, decoded."""
    attributes = dict(event["attributes"])
    for name in ("nested", "list"):
        attributes[name] = json.loads(attributes[name])
    fields = {name: event.get(name) for name in ("eventName", "identifyId", "accountId", "date")}
    return {**fields, "attributes": {key: value for key, value in attributes.items() if value != ""}}


def write_config(
    harness: ProcessHarness, *, more: str = "", outbox: str = "", deliver: str = "per_second = 2000"
) -> None:
    path = harness.write_config('[people]\nusers = "upsert"\naccounts = "upsert"\n' + more, deliver=deliver)
    path.write_text(path.read_text().replace("[outbox]\n", f"[outbox]\n{outbox}\n"))


@contextmanager
def px(harness: ProcessHarness) -> Iterator[Recorder]:
    with recording(201, b"{}") as recorder:
        harness.sandbox_url = recorder.url
        yield recorder


def events_at(recorder: Recorder) -> list[dict[str, Any]]:
    return [json.loads(got.body) for got in list(recorder.received) if got.path == "/v1/events/custom"]


def test_every_call_reaches_px_as_the_app_made_it(sdk, harness):
    """All calls, in batches of 1, 20 and 250, compressed or not, beside a second client that goes elsewhere."""
    with px(harness) as recorder, recording() as elsewhere:
        write_config(harness)
        daemon = harness.start_daemon()
        runs = [("b1", 1, 28, False), ("b20", 20, 42, False), ("b250", 250, 308, False)]
        runs += [("gzip", 20, 42, True)] if sdk.gzip else []
        apps, made = [], {}
        for name, batch, count, gzip in runs:
            made[name] = make_calls(sdk, name, count)
            urls = [f"http://{harness.http}", elsewhere.url]
            apps.append(App(sdk, harness.folder, urls, made[name], batch=batch, gzip=gzip))
        for app in apps:
            said = app.result()
            assert said is not None, "the app has not ended"
            assert said["failed"] == said["refused"] == []
        wait_until(lambda: harness.status()["pending"] == 0, 30, what="the delivery")
        assert harness.stop(daemon) == 0
        check_events(sdk, events_at(recorder), made)
        check_people(recorder, made)
        bodies = [got for got in elsewhere.received if got.method == "POST"]
        assert bodies, "the second client has sent nothing"
        if sdk.gzip:
            assert any(got.body[:2] == b"\x1f\x8b" for got in bodies)
        plain = b"".join(got.body for got in bodies if got.body[:2] != b"\x1f\x8b")
        kinds = [call for name, calls in made.items() if name != "gzip" for call in calls if call["type"] == "track"]
        for call in kinds:
            assert json.dumps(call["userId"]).encode() in plain
    note(sdk, all_calls=sum(map(len, made.values())))


def check_events(sdk: Sdk, events: list[dict[str, Any]], made: dict[str, list[dict[str, Any]]]) -> None:
    arrived = {(event["attributes"]["run"], event["attributes"]["n"]): event for event in events}
    assert len(arrived) == len(events), "an event has come twice"
    wanted = {(name, call["n"]): call for name, calls in made.items() for call in calls if "properties" in call}
    assert arrived.keys() == wanted.keys()
    for key, call in wanted.items():
        event, said = shown(arrived[key]), expected(call)
        if key[0] != "b1" and not sdk.batch_times:
            assert event.pop("date") > said.pop("date"), "the SDK writes the time of sending over it"
        assert event == said, (sdk.name, call["type"])
        if sdk.message_ids:
            assert arrived[key]["eventId"] == call["messageId"]


def check_people(recorder: Recorder, made: dict[str, list[dict[str, Any]]]) -> None:
    written = {(got.method, got.path): json.loads(got.body) for got in recorder.received if got.method == "PUT"}
    for calls in made.values():
        for call in calls:
            user = written.get(("PUT", f"/v1/users/{call['userId']}"), {})
            if call["type"] == "identify":
                custom = {"plan": "pro", "seats": call["n"]}
                assert (user["email"], user["customAttributes"]) == (call["traits"]["email"], custom)
            elif call["type"] == "group":
                account = written["PUT", f"/v1/accounts/{call['groupId']}"]
                assert (account["name"], account["customAttributes"]) == (call["traits"]["name"], {"seats": call["n"]})
                assert user["accountId"] == call["groupId"]
            elif call["type"] == "alias":
                assert user == {}


def tracks(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "n": n, "type": "track", "userId": f"u{n % 50}", "messageId": f"{name}-{n}", "event": "Feature Used",
            "properties": {"n": n}, "timestamp": at(n),
        }
        for n in range(count)
    ]  # fmt: skip


def acknowledged(said: dict[str, Any], calls: list[dict[str, Any]]) -> set[int]:
    """The numbers of the calls that the SDK took and did not report as failed."""
    lost = {*said["failed"], *said["refused"]}
    return {call["n"] for call in calls if call["messageId"] not in lost}


def test_nothing_acknowledged_is_lost_through_kill_9(sdk, harness):
    """2,000 events of 16 parallel callers; the daemon is killed in the middle, its socket stays open."""
    harness.start_sandbox("--per-second", "0")
    write_config(harness)
    calls = tracks("k", 2_000)
    with listening(harness.http) as http:
        daemon = harness.start_daemon(http=http)
        app = App(sdk, harness.folder, [f"http://{harness.http}"], calls, threads=16, pause_s=0.004)
        app.half_way()
        harness.kill(daemon)
        daemon = harness.start_daemon(http=http)
        said = app.result(120)
        assert said is not None, "the app has not ended"
        wait_until(lambda: harness.status()["pending"] == 0, 60, what="the delivery")
        arrived = Counter(event["attributes"]["n"] for event in harness.arrived())
        assert harness.stop(daemon) == 0
    kept = acknowledged(said, calls)
    assert kept <= arrived.keys(), f"{len(kept - arrived.keys())} lost"
    twice = sum(count - 1 for count in arrived.values())
    assert len(kept) > 1_000
    # Without message ids a request that the kill left unanswered is stored again when the SDK repeats it.
    assert twice <= IN_FLIGHT + (0 if sdk.message_ids else 16 * 20)
    note(sdk, kill_lost=len(kept - arrived.keys()), kill_twice=twice, kill_reported=2_000 - len(kept))


def test_what_a_full_outbox_refuses_is_sent_again_or_reported(sdk, harness):
    write_config(harness, outbox='max_bytes = "256KiB"', deliver="per_second = 1")
    calls = tracks("f", 20)
    with listening(harness.http) as http:
        daemon = harness.start_daemon(http=http)
        for size in (20_000, 10):  # the second for what is left behind the first
            event = {"type": "track", "userId": "u", "event": "Fill", "properties": {"p": "x" * size}}
            body = json.dumps(event).encode()
            wait_until(lambda body=body: harness.post("/v1/track", body)[0] == 503, what="a full outbox")
        app = App(sdk, harness.folder, [f"http://{harness.http}"], calls, batch=5)
        app.half_way()
        time.sleep(1.5)
        assert harness.stop(daemon) == 0
        write_config(harness, deliver="per_second = 1")
        daemon = harness.start_daemon(http=http)
        said = app.result(40)
        assert said is not None, "the app has not ended"
        page = json.loads(harness.run("events", "list", "--name", "Feature Used", "--limit", "1000", "--json",
                                      "--config", str(harness.folder / "config.toml")).stdout)  # fmt: skip
        stored = Counter(event["event"]["properties"]["n"] for event in page["events"])
        assert harness.stop(daemon) == 0
    kept = acknowledged(said, calls)
    assert kept <= stored.keys(), "an event was neither stored nor reported"
    note(
        sdk,
        full="sends all again"
        if len(kept) == len(calls)
        else f"reports {len(calls) - len(kept)} of {len(calls)} as failed",
    )


def test_a_wrong_key_stores_nothing(sdk, harness):
    write_config(harness, more='[[source]]\nwrite_key = "right"\nproperty_key = "AP-XXXXXXXXXX-2"\n')
    daemon = harness.start_daemon()
    app = App(sdk, harness.folder, [f"http://{harness.http}"], tracks("w", 5), key="wrong")
    said = app.result(WINDOW_S + 3)
    right = App(sdk, harness.folder, [f"http://{harness.http}"], tracks("r", 5), key="right")
    assert right.result() is not None
    status = harness.status()
    assert status["accepted"] == 5
    assert harness.stop(daemon) == 0
    note(sdk, wrong_key="still repeats after 8 s" if said is None else f"reports {len(said['failed'])} of 5 as failed")


def test_an_event_that_is_too_large_takes_no_other_with_it(sdk, harness):
    harness.start_sandbox("--per-second", "0")
    write_config(harness)
    daemon = harness.start_daemon()
    calls = tracks("l", 9)
    calls[4]["properties"]["large"] = "x" * TOO_LARGE
    said = App(sdk, harness.folder, [f"http://{harness.http}"], calls).result()
    assert said is not None
    wait_until(lambda: harness.status()["pending"] == 0, what="the delivery")
    status = harness.status()
    arrived = {event["attributes"]["n"] for event in harness.arrived()}
    assert harness.stop(daemon) == 0
    assert arrived == {0, 1, 2, 3, 5, 6, 7, 8}
    dead = status["dead_by_reason"].get("bad_event", 0)
    reported = calls[4]["messageId"] in said["refused"] + said["failed"]
    assert dead or reported or sdk.name in ("segment-python", "rudder-python", "rudder-ruby"), (
        "the large event vanished without a word"
    )
    note(
        sdk,
        too_large="a dead letter"
        if dead
        else "refused by the SDK"
        if reported
        else "dropped by the SDK with a log line",
    )


def test_each_answer_has_a_known_effect(sdk, tmp_path):
    """What the SDK does with an error: the column of the table. An SDK that ends has given up."""
    effects = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(recording(status, ERROR, **headers))
            for name, (status, headers) in ANSWERS.items()
        }
        apps = {
            name: App(sdk, tmp_path, [server.url], tracks(name, 1), batch=1, linger_s=WINDOW_S)
            for name, server in servers.items()
        }
        for name, server in servers.items():
            wait_until(lambda server=server: server.received, 30, what=f"the first request ({name})")
        time.sleep(WINDOW_S)
        for name, server in servers.items():
            count = sum(got.method == "POST" for got in server.received)
            said = apps[name].result(2)
            if count > 1:
                effects[name] = f"{count} tries in 5 s"
            elif said is None:
                effects[name] = "waits longer than 5 s"
            else:
                assert said["failed"], f"{name}: the SDK has given up and not told its app"
                effects[name] = "drops it"
    note(sdk, answers=effects)


def test_an_exit_with_the_daemon_away_is_timed(sdk, harness):
    """Ten events, flush and shutdown, and nothing listens."""
    calls = tracks("x", 10)
    began_s = time.monotonic()
    app = App(sdk, harness.folder, [f"http://{harness.http}"], calls, wait=False)
    said = app.result(10)
    if said is None:
        note(sdk, exit_away="waits for more than 10 s")
        return
    assert time.monotonic() - began_s < 10
    told = len(said["failed"])
    note(sdk, exit_away=f"ends after {said['shutdown_s']:.1f} s, {told} of 10 reported as failed")

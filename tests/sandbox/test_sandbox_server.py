"""The sandbox over HTTP: order of judgment, limits, faults, the log and its file."""

import json

import h11
import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from sandbox_client import EVENTS, client_of, event

from sidecar.clock import SystemClock
from sidecar.http import Request, Shutdown
from sidecar.sandbox import Faults, OpenAnswers, Outage, Sandbox, serve_sandbox
from sidecar.sandbox.report import largest_window


async def test_an_event_is_stored_and_answered_201(make_box, autojump_clock):
    box = make_box()
    async with client_of(box) as call:
        status, headers, body = await call("POST", EVENTS, event(date=5))
        assert (status, headers[b"content-type"]) == (201, b"application/json")
        assert json.loads(body) == {"body": {}, "statusCode": 201, "statusCodeValue": 201}
    assert box.events == [event(date=5)]
    (entry,) = box.log()
    assert (entry.method, entry.path, entry.status, entry.identifyId, entry.eventName, entry.stored) == (
        "POST", EVENTS, 201, "u1", "Feature Used", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("POST", EVENTS, b"nonsense", "wrong", 401),
        ("POST", EVENTS, b"nonsense", None, 401),
        ("POST", EVENTS, b"nonsense", "sandbox-read-only", 403),
        ("POST", EVENTS, b"nonsense", "sandbox-key", 400),
        ("POST", EVENTS, b"{}", "sandbox-key", 400),
        ("GET", EVENTS, b"", "sandbox-read-only", 200),
        ("PUT", "/v1/users/u", b"{}", "sandbox-read-only", 403),
        ("PUT", "/v1/users/u", b"{}", "sandbox-key", 404),
        ("DELETE", EVENTS, b"", "sandbox-key", 405),
        ("POST", "/v1/events/page", b"{}", "sandbox-key", 404),
        ("POST", "/events/custom", b"{}", "wrong", 401),
    ],
)
async def test_key_permission_and_body_are_judged_in_this_order(make_box, method, path, body, key, status):
    box = make_box()
    async with client_of(box) as call:
        assert (await call(method, path, body, key=key))[0] == status
    assert box.report().stored == 0


async def test_above_the_second_limit_is_429_which_counts_too(make_box, autojump_clock):
    box = make_box(per_second=3, per_day=0)
    async with client_of(box) as call:
        statuses = [(await call("POST", EVENTS, event(seq=n)))[0] for n in range(5)]
        assert statuses == [201, 201, 201, 429, 429]
        await trio.sleep(0.999)
        assert (await call("POST", EVENTS, event()))[0] == 429
        await trio.sleep(0.002)
        assert (await call("POST", EVENTS, event()))[0] == 201
    report = box.report()
    assert (report.requests, report.by_status, report.largest_second) == (7, {"201": 4, "429": 3}, 6)


async def test_above_the_day_limit_is_429_until_24_hours_have_passed(make_box, autojump_clock):
    box = make_box(per_second=0, per_day=2)
    async with client_of(box) as call:
        assert [(await call("POST", EVENTS, event()))[0] for _ in range(3)] == [201, 201, 429]
        for _ in range(2):
            await trio.sleep(43_200.001)
        assert (await call("POST", EVENTS, event()))[0] == 201


async def test_latency_delays_the_answer_and_not_the_storing(make_box, autojump_clock):
    box = make_box(faults=Faults(latency_s=2))
    async with client_of(box) as call, trio.open_nursery() as nursery:
        nursery.start_soon(call, "POST", EVENTS, event())
        await trio.sleep(1)
        assert len(box.events) == 1
        started = trio.current_time()
        assert (await call("POST", EVENTS, event()))[0] == 201
        assert trio.current_time() - started == pytest.approx(2)


async def test_jitter_stays_within_its_bounds(make_box, autojump_clock):
    box = make_box(faults=Faults(latency_s=1, jitter_s=1), per_second=0)
    times = []
    async with client_of(box) as call:
        for _ in range(20):
            started = trio.current_time()
            await call("POST", EVENTS, event())
            times.append(trio.current_time() - started)
    assert min(times) >= 1
    assert max(times) <= 2
    assert max(times) - min(times) > 0.3


@pytest.mark.parametrize(("how", "expected"), [("refuse", None), ("503", 503), ("hang", "hangs")])
async def test_an_outage_applies_within_its_window(make_box, autojump_clock, how, expected):
    box = make_box()
    async with client_of(box) as call:

        async def status():
            answer = await call("POST", EVENTS, event(), cancel_after_s=0.5)
            return answer[0] if isinstance(answer, tuple) else answer

        await trio.sleep(5)
        box.set_faults(Faults(outages=(Outage(from_s=10, to_s=20, how=how),)))
        assert await status() == 201
        await trio.sleep(12)
        assert await status() == expected
        assert (await call("GET", "/sandbox/report"))[0] == 200
        await trio.sleep(10)
        assert await status() == 201
    assert box.report().stored == 2


async def test_a_dropped_answer_belongs_to_a_stored_event(make_box):
    box = make_box(faults=Faults(dropped_answers=1))
    async with client_of(box) as call:
        assert await call("POST", EVENTS, event()) is None
    assert box.events == [event()]
    assert (box.log()[0].answer_dropped, box.log()[0].status) == (True, 201)


async def test_a_hanging_request_is_not_processed(make_box, autojump_clock):
    box = make_box(faults=Faults(hang=1))
    async with client_of(box) as call:
        assert await call("POST", EVENTS, event(), cancel_after_s=1000) == "hangs"
    assert box.report().by_status == {"0": 1}


async def test_errors_have_their_rate_status_body_and_length(make_box):
    box = make_box(
        faults=Faults(error_rate=0.3, error_status=500, error_body="<h1>no</h1>", error_bytes=20), per_second=0
    )
    async with client_of(box) as call:
        answers = [await call("POST", EVENTS, event(seq=n)) for n in range(300)]
    errors = [answer for answer in answers if answer[0] == 500]
    assert 60 <= len(errors) <= 120
    assert errors[0][2] == b"<h1>no</h1>         "
    assert box.report().stored == 300 - len(errors)


async def test_a_garbage_answer_is_not_http(make_box):
    box = make_box(faults=Faults(garbage=1))
    async with client_of(box) as call:
        with pytest.raises(h11.RemoteProtocolError):
            await call("POST", EVENTS, event())


async def test_a_dripped_body_arrives_byte_by_byte(make_box, autojump_clock):
    box = make_box(faults=Faults(drip_s=1))
    async with client_of(box) as call:
        status, _, body = await call("POST", EVENTS, event())
        assert status == 201
        assert trio.current_time() == pytest.approx(len(body), abs=1)


async def test_firewall_names_and_fail_users_match_globs(make_box):
    box = make_box(faults=Faults(firewall_names=("*sleep(*",), fail_users=("bad-*",), fail_status=500))
    async with client_of(box) as call:
        status, headers, body = await call("POST", EVENTS, event(name=",sleep(100)"))
        assert (status, headers[b"content-type"][:9], body[:15]) == (403, b"text/html", b"<!doctype html>")
        assert (await call("POST", EVENTS, event(user="bad-1")))[0] == 500
        assert (await call("POST", EVENTS, event()))[0] == 201


@pytest.mark.parametrize(
    ("asked", "header"),
    [
        ("seconds:30", b"30"),
        ("date:60", b"Tue, 14 Nov 2023 22:14:20 GMT"),
        ("soon", b"soon"),
        ("date:soon", b"date:soon"),
        ("seconds:1000000000", b"1000000000"),
        ("", None),
    ],
)
async def test_retry_after_has_every_form(make_box, autojump_clock, asked, header):
    box = make_box(per_second=1, faults=Faults(retry_after=asked))
    async with client_of(box) as call:
        assert b"retry-after" not in (await call("POST", EVENTS, event()))[1]
        status, headers, _ = await call("POST", EVENTS, event())
        assert (status, headers.get(b"retry-after")) == (429, header)


async def test_the_control_path_changes_faults(make_box):
    box = make_box()
    async with client_of(box) as call:
        assert (await call("POST", "/sandbox/faults", {"error_rate": 1, "error_status": 500}, key=None))[0] == 200
        assert (await call("POST", EVENTS, event()))[0] == 500
        assert (await call("POST", "/sandbox/faults", {"latency_s": 0, "outages": [{"how": "503"}]}))[0] == 200
        assert (await call("POST", EVENTS, event()))[0] == 503
        shown = json.loads((await call("GET", "/sandbox/faults"))[2])
        assert (shown["error_status"], shown["outages"][0]["how"]) == (500, "503")
        assert (await call("DELETE", "/sandbox/faults"))[0] == 200
        assert (await call("POST", EVENTS, event()))[0] == 201


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error_rate":2}', b'{"eror_rate":1}', b'{"error_status":1}'])
async def test_invalid_faults_change_nothing(make_box, body):
    box = make_box(faults=Faults(latency_s=0.0, fail_users=("x",)))
    async with client_of(box) as call:
        status, _, answer = await call("POST", "/sandbox/faults", body)
        assert status == 400
        assert json.loads(answer)["error"].startswith("The faults are unchanged")
    assert box.faults == Faults(fail_users=("x",))


async def test_the_control_path_shows_log_events_and_report_and_resets(make_box, autojump_clock):
    box = make_box()
    async with client_of(box) as call:
        for seq in (1, 2, 2):
            await call("POST", EVENTS, event(seq=seq))
        log = json.loads((await call("GET", "/sandbox/log?start=1&limit=1"))[2])
        assert ([entry["index"] for entry in log["entries"]], log["next"]) == ([1], 2)
        lines = (await call("GET", "/sandbox/events"))[2].splitlines()
        assert [json.loads(line)["attributes"]["seq"] for line in lines] == [1, 2, 2]
        report = json.loads((await call("GET", "/sandbox/report"))[2])
        assert (report["requests"], report["stored"], report["distinct"], report["duplicates"]) == (3, 3, 2, 1)
        assert (await call("GET", "/sandbox/nothing"))[0] == 404
        assert (await call("GET", "/sandbox/log?start=x"))[0] == 400
        assert (await call("POST", "/sandbox/reset"))[0] == 200
    assert (box.report().requests, box.events) == (0, [])


async def test_a_report_key_identifies_events_instead_of_bodies(make_box):
    box = make_box()
    async with client_of(box) as call:
        await call("POST", EVENTS, event(seq=1, date=1))
        await call("POST", EVENTS, event(seq=1, date=2))
        await call("POST", EVENTS, event(seq="1", date=2))
    assert box.report().duplicates == 0
    assert box.report("attributes.seq").duplicates == 1
    assert box.report("attributes.none").duplicates == 0


async def test_a_killed_sandbox_continues_from_its_state_file(make_box, autojump_clock, tmp_path):
    state = tmp_path / "state"
    first = make_box(state=state, per_second=3, per_day=0)
    async with client_of(first) as call:
        await call("POST", EVENTS, event(seq=1, date=1) | {"url": "https://x/ü\n"})
        await call("POST", EVENTS, b"\nnot json\n")
        await call("POST", "/v1/users", {"identifyId": "u", "propertyKeys": ["AP-X-2"]})
    known = (first.log(), first.events, first.report())
    first.close()
    # A kill leaves the file as it is, possibly with an incomplete record.
    complete = state.read_bytes()
    state.write_bytes(complete + b"5.0 201 1 POST /v1/events/custom 1 500\n{half")
    second = make_box(state=state, per_second=3, per_day=0)
    assert (second.log(), second.events, second.report()) == known
    async with client_of(second) as call:
        assert (await call("GET", "/v1/users/u"))[0] == 429
        await trio.sleep(2)
        assert (await call("GET", "/v1/users/u"))[0] == 200
    assert state.read_bytes().startswith(complete)
    assert b"half" not in state.read_bytes()


async def test_requests_of_an_earlier_boot_count_for_no_second_of_this_one(make_box, autojump_clock, tmp_path):
    """CLOCK_BOOTTIME starts from 0 at a boot: 200 requests with later times kept a restarted sandbox at 429 for days."""
    state = tmp_path / "state"
    boots = [
        b"".join(b"%f 201 0 GET /v1/x 0 0\n\n" % (start_s + number / 100) for number in range(5))
        for start_s in (9e6, 7.0)
    ]
    state.write_bytes(b"".join(boots))
    box = make_box(state=state, per_second=3, per_day=12)
    now_s = box.clock.boot_s()
    arrivals = [entry.arrival_s for entry in box.log()]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] <= now_s - 1
    assert box.report().largest_second == 5
    async with client_of(box) as call:
        assert [(await call("GET", "/v1/users/u"))[0] for _ in range(3)] == [404, 404, 429], (
            "the day counts all of them"
        )


async def test_a_restarted_sandbox_knows_the_event_ids_that_it_stored(make_box, autojump_clock, tmp_path):
    once = {"state": tmp_path / "state", "open_answers": OpenAnswers(repeated_event_id="drop")}
    for _ in range(2):
        box = make_box(**once)
        async with client_of(box) as call:
            assert (await call("POST", EVENTS, event(seq=1) | {"eventId": "e-1"}))[0] == 201
        assert box.report().stored == 1
        box.close()


@given(st.lists(st.floats(0, 10), max_size=40))
def test_the_largest_window_is_exact(times):
    times.sort()
    every_window = [sum(1 for other in times if end - 1.0 < other <= end) for end in times]
    assert largest_window(times, 1.0) == max(every_window, default=0)


async def test_serve_sandbox_serves_until_it_is_stopped(make_box):
    box = make_box(clock=SystemClock())
    shutdown = Shutdown()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: serve_sandbox(box, shutdown=shutdown, task_status=task_status))
        async with httpx.AsyncClient(base_url=url, headers={"X-APTRINSIC-API-KEY": "sandbox-key"}) as client:
            for seq in (1, 2):
                assert (await client.post(EVENTS, json=event(seq=seq))).status_code == 201
            lines = (await client.get("/sandbox/events")).text.splitlines()
            assert [json.loads(line) for line in lines] == box.events == [event(seq=1), event(seq=2)]
            box.set_faults(Faults(dropped_answers=1))
            with pytest.raises(httpx.ReadError):
                await client.post(EVENTS, json=event(seq=3))
        shutdown.set()
    assert box.report("attributes.seq").distinct == 3


@pytest.mark.parametrize("count", [0, 500, 501])
async def test_all_stored_events_are_listed_one_per_line(make_box, count):
    box = make_box(per_second=0, per_day=0)
    async with client_of(box) as call:
        for number in range(count):
            await call("POST", EVENTS, event(seq=number))
        _, _, body = await call("GET", "/sandbox/events", b"")
    assert [json.loads(line) for line in body.splitlines()] == [event(seq=number) for number in range(count)]


async def test_a_reset_ends_a_list_of_events_that_is_being_sent(make_box):
    box = make_box(per_second=0, per_day=0)
    async with client_of(box) as call:
        for number in range(600):
            await call("POST", EVENTS, event(seq=number))
    response = await box.handle(Request("GET", "/sandbox/events", "", [], b"", "1.1", True))
    parts = [len((await anext(response.body)).splitlines())]
    box.reset()
    parts += [len(part.splitlines()) async for part in response.body]
    assert parts == [500]


@pytest.mark.parametrize("content", [b"my notes\nof a year\n", b"SQLite format 3\0", b"5 apples\n"])
def test_a_state_file_of_another_program_is_not_truncated(tmp_path, content):
    state = tmp_path / "notes"
    state.write_bytes(content)
    with pytest.raises(OSError, match="not a log of the sandbox"):
        Sandbox(state=state)
    assert state.read_bytes() == content


def test_a_state_file_has_one_sandbox_at_a_time(tmp_path):
    """A second one cut what the first was writing, and wrote over it."""
    first = Sandbox(state=tmp_path / "log")
    with pytest.raises(OSError, match="another process uses it"):
        Sandbox(state=tmp_path / "log")
    first.close()
    Sandbox(state=tmp_path / "log").close()


@pytest.mark.parametrize("content", [b"", b"5.0", b"5.000000 201 1 POST /v1/events/custom 1 500\n{half"])
def test_a_first_record_that_a_kill_left_is_truncated(tmp_path, content):
    state = tmp_path / "log"
    state.write_bytes(content)
    Sandbox(state=state).close()
    assert state.read_bytes() == b""

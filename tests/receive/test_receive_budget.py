"""Parsed events that wait for their commit are bounded, however many small requests expand into them."""

import json

import pytest
import trio
import trio.testing
from receive_harness import answers, receiving, track

from sidecar.events import encode
from sidecar.http import budget
from sidecar.receive.parse import EVENT_BYTES, MAX_SHARED_BYTES
from sidecar.receive.routes import has_tiny_events

CONTEXT = {"text": "x" * 500}
EVENTS = 40


def memory_for(parsed_bytes: int) -> int:
    """The listen.max_memory with which this many bytes of each group's parsed events may wait for their commit."""
    return parsed_bytes * 2 * 16 // 3


def expanding(number: int) -> bytes:
    """A small batch whose context goes into each of its events."""
    events = [{"type": "page", "userId": "u", "messageId": f"{number}-{at}"} for at in range(EVENTS)]
    body = json.dumps({"batch": events, "context": CONTEXT}).encode()
    return b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_parsed_events_of_small_bodies_are_bounded(tmp_path):
    """Small bodies that expand occupied all memory while the disk was slow."""
    async with receiving(tmp_path / "o.db", max_memory=memory_for(200_000)) as harness:
        harness.runner.shut()
        parsed, steps = [], harness.parser.steps
        harness.parser.steps = lambda *what, **more: parsed.append(1) or steps(*what, **more)
        clients = [harness.connect() for _ in range(30)]
        for number, client in enumerate(clients):
            await client.send_all(expanding(number))
        await trio.testing.wait_all_tasks_blocked()
        assert 200_000 < harness.memory.tcp.statistics().parsed_bytes < 300_000
        assert len(parsed) < 10
        parsed.clear()
        over_unix = harness.connect("unix")  # has a budget of its own
        await over_unix.send_all(expanding(99))
        await trio.testing.wait_all_tasks_blocked()
        assert len(parsed) == 1
        assert harness.memory.unix.statistics().parsed_bytes > EVENTS * EVENT_BYTES
        harness.runner.gate.set()
        for client in [*clients, over_unix]:
            (answer,) = answers(bytes(await client.receive_some(65_536)))
            assert answer.json == {"success": True, "accepted": EVENTS}
        assert harness.memory.tcp.statistics() == harness.memory.unix.statistics() == (0, 0, 0, 0)
        assert harness.count() == 31 * EVENTS


async def test_request_without_space_in_time_is_answered_503(tmp_path, autojump_clock):
    async with receiving(tmp_path / "o.db", max_memory=memory_for(10_000)) as harness:
        harness.runner.shut()
        first = harness.connect()
        await first.send_all(expanding(1))
        await trio.testing.wait_all_tasks_blocked()
        answer = await harness.post("/v1/track", track())
        assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "busy", "10")
        assert harness.refused == ["busy"]
        assert trio.current_time() >= budget.WAIT_S
        harness.runner.gate.set()
        (answer,) = answers(bytes(await first.receive_some(65_536)))
        assert answer.status == 200


async def test_batch_context_that_expands_too_far_is_refused(tmp_path):
    async with receiving(tmp_path / "o.db") as harness:
        context = {"text": "x" * 1_000}
        events = MAX_SHARED_BYTES // len(encode({"context": context})) + 1
        body = json.dumps({"batch": [{}] * events, "context": context}).encode()
        answer = harness.parser.parse(body, "batch", None, trusted=False)
        assert (answer.status, answer.code) == (400, "too_large")


async def test_requests_that_wait_to_be_parsed_are_bounded(tmp_path, autojump_clock):
    """A thousand bodies of 60 KB waited for a slow disk, uncounted."""
    async with receiving(tmp_path / "o.db", max_memory=memory_for(10_000)) as harness:
        harness.runner.shut()
        for number in range(4):
            await harness.connect().send_all(expanding(number))
            await trio.testing.wait_all_tasks_blocked()
        began_s = trio.current_time()
        answer = await harness.post("/v1/batch", {"batch": [track(properties={"x": "y" * 1_000})] * 9})
        assert (answer.status, answer.json["code"]) == (503, "busy")
        assert trio.current_time() == began_s, "it is refused at once"
        harness.runner.gate.set()


async def test_bad_events_count_with_their_entries_in_the_answer(tmp_path, autojump_clock):
    """Bad events of a few bytes each counted as those bytes, and were held by the hundred thousand."""
    async with receiving(tmp_path / "o.db", max_memory=memory_for(40_000)) as harness:
        harness.runner.shut()
        body = b'{"batch":[%b1]}' % (b"1," * 49)
        first = harness.connect()
        await first.send_all(
            b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await trio.testing.wait_all_tasks_blocked()
        answer = await harness.post("/v1/track", track())
        assert (answer.status, answer.json["code"]) == (503, "busy")
        harness.runner.gate.set()


@pytest.mark.parametrize(
    ("body", "tiny"),
    [
        (b'{"batch":[%b1]}' % (b"1," * 900), True),
        (b'{"batch":[%b{}]}' % (b"{}," * 900), True),
        (b'{"batch":[%b1]}' % (b"1," * 50), False),
        (encode({"batch": [track(number) for number in range(100)]}), False),
    ],
)
def test_bodies_of_tiny_events_are_recognized_by_their_commas(body, tiny):
    assert has_tiny_events(body) == tiny

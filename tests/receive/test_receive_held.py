"""What small requests become waits for its commit within bounds, however many there are."""

import json

import trio
import trio.testing
from receive_help import answers, receiving, track

from sidecar.receive import held as bounds
from sidecar.receive.intake import MAX_SHARED_BYTES

CONTEXT = {"text": "x" * 500}
EVENTS = 40


def swelling(number: int) -> bytes:
    """A small batch whose context goes into each of its events."""
    events = [{"type": "page", "userId": "u", "messageId": f"{number}-{at}"} for at in range(EVENTS)]
    body = json.dumps({"batch": events, "context": CONTEXT}).encode()
    return b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class StalledDisk:
    """Commits wait until it goes on."""

    def __init__(self, rooms) -> None:
        self.goes_on = trio.Event()
        self._run = rooms.outbox._runner.run
        rooms.outbox._runner.run = self._stalled

    async def _stalled(self, call):
        await self.goes_on.wait()
        return await self._run(call)


async def test_small_bodies_that_become_much_took_all_memory_while_the_disk_was_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "HELD_MAX_BYTES", 100_000)
    async with receiving(tmp_path / "o.db") as rooms:
        disk, opened = StalledDisk(rooms), []
        open_it = rooms.intake.open
        rooms.intake.open = lambda *what, **more: opened.append(1) or open_it(*what, **more)
        clients = [rooms.connect() for _ in range(30)]
        for number, client in enumerate(clients):
            await client.send_all(swelling(number))
        await trio.testing.wait_all_tasks_blocked()
        held = rooms.routes._held[False]
        assert 100_000 < held.bytes < 150_000
        assert len(opened) < 10
        opened.clear()
        over_unix = rooms.connect("unix")  # who has a share of his own
        await over_unix.send_all(swelling(99))
        await trio.testing.wait_all_tasks_blocked()
        assert len(opened) == 1
        assert rooms.routes._held[True].bytes > 0
        disk.goes_on.set()
        for client in [*clients, over_unix]:
            (said,) = answers(bytes(await client.receive_some(65_536)))
            assert said.json == {"success": True, "accepted": EVENTS}
        assert held.bytes == rooms.routes._held[True].bytes == 0
        assert rooms.count() == 31 * EVENTS


async def test_who_waits_for_the_others_in_vain_is_told_to_come_again(tmp_path, monkeypatch, autojump_clock):
    monkeypatch.setattr(bounds, "HELD_MAX_BYTES", 10_000)
    async with receiving(tmp_path / "o.db") as rooms:
        disk = StalledDisk(rooms)
        first = rooms.connect()
        await first.send_all(swelling(1))
        await trio.testing.wait_all_tasks_blocked()
        said = await rooms.post("/v1/track", track())
        assert (said.status, said.json["code"], said.headers["retry-after"]) == (503, "busy", "10")
        assert rooms.refused == ["busy"]
        assert trio.current_time() >= bounds.HELD_S
        disk.goes_on.set()
        (said,) = answers(bytes(await first.receive_some(65_536)))
        assert said.status == 200


async def test_a_context_that_would_fill_the_outbox_many_times_over_is_refused(tmp_path):
    async with receiving(tmp_path / "o.db") as rooms:
        body = json.dumps({"batch": [{}] * 1_000, "context": {"text": "x" * (MAX_SHARED_BYTES // 1_000)}}).encode()
        said = rooms.intake.open(body, "batch", None, trusted=False)
        assert (said.status, said.code) == (400, "too_large")


async def test_bad_events_weigh_what_they_and_their_entries_in_the_answer_take(tmp_path, monkeypatch, autojump_clock):
    """A few bytes each, they were held by the hundred thousand."""
    monkeypatch.setattr(bounds, "HELD_MAX_BYTES", 40_000)
    async with receiving(tmp_path / "o.db") as rooms:
        disk = StalledDisk(rooms)
        body = b'{"batch":[%b1]}' % (b"1," * 49)
        first = rooms.connect()
        await first.send_all(
            b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await trio.testing.wait_all_tasks_blocked()
        said = await rooms.post("/v1/track", track())
        assert (said.status, said.json["code"]) == (503, "busy")
        disk.goes_on.set()

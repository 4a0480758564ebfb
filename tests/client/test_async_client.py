"""The asyncio client, against a scripted sidecar. asyncio has no virtual clock: waits here are short and real."""

import asyncio
import json
import multiprocessing
import select
import socket
import time

import px_sidecar_client
import pytest
from px_sidecar_client import AsyncClient, NotAccepted, Unavailable

STORED = {"success": True, "accepted": 1}


class Script:
    """A sidecar on this loop. ``answer(event)`` gives the answer, None for silence, or "close"; lines stay in order."""

    def __init__(self, path):
        self.path = str(path)
        self.events = []
        self.connections = self.open = 0
        self.answer = lambda event: STORED
        self.hold = asyncio.Event()
        self.hold.set()

    async def __aenter__(self):
        self._writers = set()
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        while line := await reader.readline():
            event = json.loads(line)
            self.events.append(event)
            await self.hold.wait()
            answer = self.answer(event)
            if answer == "close":
                writer.close()
                return
            if answer is not None:
                writer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        self.open -= 1


def run(scenario, tmp_path, **options):
    """Run ``scenario(client, sidecar)``."""

    async def main():
        async with Script(tmp_path / "s") as sidecar, AsyncClient(**{"path": sidecar.path, **options}) as client:
            await scenario(client, sidecar)

    asyncio.run(main())


def test_many_calls_share_one_connection_and_get_their_own_answers(tmp_path):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: {"success": False, "code": event["event"], "message": "m"}
        sidecar.hold.clear()
        calls = [asyncio.ensure_future(client.track("u", f"e{number}")) for number in range(200)]
        await asyncio.sleep(0.05)
        sidecar.hold.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [error.code for error in results] == [f"e{number}" for number in range(200)]
        assert sidecar.connections == 1

    run(scenario, tmp_path)


def test_a_cancelled_call_does_not_shift_the_answers_of_others(tmp_path):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: {"success": False, "code": event["event"], "message": "m"}
        sidecar.hold.clear()
        calls = [asyncio.ensure_future(client.track("u", f"e{number}")) for number in range(20)]
        await asyncio.sleep(0.05)
        for call in calls[::2]:
            call.cancel()
        sidecar.hold.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in results[::2])
        assert [error.code for error in results[1::2]] == [f"e{number}" for number in range(1, 20, 2)]

    run(scenario, tmp_path)


def test_a_cancelled_connecting_call_leaves_others_connected(tmp_path):
    async def scenario(client, sidecar):
        first, second = (asyncio.ensure_future(client.track("u", name)) for name in ("first", "second"))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert [event["event"] for event in sidecar.events] == ["second"]
        assert sidecar.connections == 1

    run(scenario, tmp_path)


def test_a_lost_answer_is_retried_with_the_same_message_id(tmp_path):
    async def scenario(client, sidecar):
        answers = iter(["close", STORED])
        sidecar.answer = lambda event: next(answers)
        message_id = await client.track("u", "E")
        assert [event["messageId"] for event in sidecar.events] == [message_id] * 2

    run(scenario, tmp_path)


def test_a_connection_that_ends_before_it_is_used_is_replaced(tmp_path):
    """As at a restart, whose listener resets the clients in its queue; a busy loop learns of it with the connection."""

    async def scenario(client, sidecar):
        with socket.socket(socket.AF_UNIX) as restarting:
            restarting.bind(client._path)
            restarting.listen()
            call = asyncio.ensure_future(client.track("u", "E"))
            await asyncio.sleep(0)
            while not select.select([restarting], [], [], 0)[0]:
                await asyncio.sleep(0)
            restarting.accept()[0].close()
            (tmp_path / "restarting").unlink()
            (tmp_path / "s").rename(tmp_path / "restarting")
            await call
            assert len(sidecar.events) == 1

    run(scenario, tmp_path, path=str(tmp_path / "restarting"), timeout_s=1.0)


def test_a_second_failure_raises_unavailable(tmp_path):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: "close"
        with pytest.raises(Unavailable) as caught:
            await client.track("u", "E")
        assert caught.value.maybe_accepted is True

    run(scenario, tmp_path)


def test_an_absent_sidecar_has_accepted_nothing(tmp_path):
    async def main():
        with pytest.raises(Unavailable, match="start it, or give its socket") as caught:
            await AsyncClient(str(tmp_path / "none")).track("u", "E")
        assert caught.value.maybe_accepted is False
        with pytest.raises(Unavailable, match="cannot be reached"):
            await AsyncClient("/tmp/a\0b").track("u", "E")

    asyncio.run(main())


def test_a_stuck_connection_is_replaced_after_the_timeout(tmp_path):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: None if event["event"] == "stuck" else STORED
        with pytest.raises(Unavailable, match="did not answer in time") as caught:
            await client.track("u", "stuck")
        assert caught.value.maybe_accepted is True
        await client.track("u", "next")
        assert sidecar.connections == 2

    run(scenario, tmp_path, timeout_s=0.1)


def test_a_cancelled_call_does_not_keep_a_stuck_connection(tmp_path):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: None if event["event"] == "stuck" else STORED
        oldest = asyncio.ensure_future(client.track("u", "stuck"))
        await asyncio.sleep(0.02)
        oldest.cancel()
        with pytest.raises(Unavailable, match="did not answer in time"):
            await client.track("u", "stuck")
        await client.track("u", "next")
        assert sidecar.connections == 2

    run(scenario, tmp_path, timeout_s=0.1)


def test_a_full_queue_is_reported_as_no_answer_in_time(tmp_path):
    """Calls share an attempt to connect, whose time is over before that of a call that came later."""

    async def scenario(client, _sidecar):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filling:
            listener.bind(client._path)
            listener.listen(0)
            filling.connect(client._path)
            calls = [asyncio.ensure_future(client.track("u", "first"))]
            await asyncio.sleep(0.05)
            calls.append(asyncio.ensure_future(client.track("u", "second")))
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert "did not answer in time" in str(error)
                assert error.maybe_accepted is False

    run(scenario, tmp_path, path=str(tmp_path / "full"), timeout_s=0.1)


def test_every_answer_of_another_program_raises_not_accepted(tmp_path):
    async def scenario(client, sidecar):
        for answer in (b"HTTP/1.1 400 Bad Request\n", b"[]\n", b"null\n"):
            sidecar.answer = lambda event, answer=answer: answer
            with pytest.raises(NotAccepted, match="The peer is not a px-sidecar"):
                await client.track("u", "E")

    run(scenario, tmp_path)


def test_an_endless_answer_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(px_sidecar_client, "MAX_ANSWER_BYTES", 1_000)

    async def scenario(client, sidecar):
        sidecar.answer = lambda event: b"x" * 300_000
        with pytest.raises(Unavailable, match="the answer does not end"):
            await client.track("u", "E")

    run(scenario, tmp_path)


def test_a_value_that_cannot_be_written_raises_type_error(tmp_path):
    async def scenario(client, sidecar):
        with pytest.raises(TypeError):
            await client.track("u", "E", {"x": object()})
        assert sidecar.connections == 0

    run(scenario, tmp_path)


def test_with_on_error_no_call_raises_and_a_second_is_skipped(tmp_path):
    errors = []

    async def main():
        client = AsyncClient(str(tmp_path / "none"), on_error=errors.append)
        for _ in range(5):
            assert await client.track("u", "E", message_id="mine") == "mine"
        assert (len(errors), client.skipped) == (1, 4)

    asyncio.run(main())


def test_another_loop_gets_a_connection_of_its_own(tmp_path):
    client = AsyncClient(str(tmp_path / "s"))

    async def main():
        async with Script(tmp_path / "s") as sidecar:
            await client.track("u", "E")
            assert sidecar.connections == 1
            await client.aclose()
        (tmp_path / "s").unlink(missing_ok=True)

    asyncio.run(main())
    asyncio.run(main())


def test_a_task_may_call_while_its_loop_ends(tmp_path):
    """The end of asyncio.run cancels the task that reads answers, too: the call waited for its whole timeout."""
    took_s = []

    async def worker(client):
        try:
            await client.track("u", "started")
            await asyncio.sleep(100)
        finally:
            began_s = time.monotonic()
            await client.track("u", "ended")
            took_s.append(time.monotonic() - began_s)

    async def scenario(client, sidecar):
        task = asyncio.ensure_future(worker(client))
        while not sidecar.events:
            await asyncio.sleep(0.01)
        # As asyncio.run does at its end.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        others = {other for other in others if "_serve" not in str(other)}
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert task.cancelled()
        assert [event["event"] for event in sidecar.events] == ["started", "ended"]

    run(scenario, tmp_path)
    assert took_s[0] < 1


def test_loops_at_the_same_time_keep_their_connections(tmp_path):
    async def scenario(client, sidecar):
        def other_thread():
            async def calls():
                for _ in range(3):
                    await client.track("u", "E")
                    asyncio.run_coroutine_threadsafe(client.track("u", "E"), here).result(5)
                await client.aclose()

            asyncio.run(calls())

        here = asyncio.get_running_loop()
        await here.run_in_executor(None, other_thread)
        assert len(sidecar.events) == 6
        assert sidecar.connections == 2

    run(scenario, tmp_path)


@pytest.mark.parametrize("is_connected", [True, False])
def test_closing_fails_the_calls_in_flight_and_leaves_no_connection(tmp_path, is_connected):
    async def scenario(client, sidecar):
        sidecar.answer = lambda event: None
        if is_connected:
            (tmp_path / "later").symlink_to(sidecar.path)
        call = asyncio.ensure_future(client.track("u", "E"))
        await asyncio.sleep(0.02)
        await client.aclose()
        if not is_connected:  # the attempt tries once more, a moment later
            (tmp_path / "later").symlink_to(sidecar.path)
        with pytest.raises(Unavailable, match="was closed before"):
            await call
        await asyncio.sleep(0.02)
        assert (sidecar.connections, sidecar.open) == (1, 0)

    run(scenario, tmp_path, path=str(tmp_path / "later"))


def in_child(client, path, result):
    async def main():
        await client.track("u", "child")
        await client.aclose()

    asyncio.run(main())
    result.put("done")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_opens_its_own_connection(tmp_path):
    async def scenario(client, sidecar):
        await client.track("u", "parent")
        fork = multiprocessing.get_context("fork")
        result = fork.Queue()
        worker = fork.Process(target=in_child, args=(client, sidecar.path, result))
        worker.start()
        deadline_s = time.monotonic() + 10
        while worker.is_alive() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        worker.join(1)
        assert worker.exitcode == 0
        await client.track("u", "parent again")
        assert [event["event"] for event in sidecar.events] == ["parent", "child", "parent again"]
        assert sidecar.connections == 2

    run(scenario, tmp_path)

"""Delivery keeps its promises when a restart, a stop or a disk error falls into the middle of its work."""

import json

import pytest
import trio
from delivery_harness import (
    CREATED,
    ScriptedPx,
    create_all,
    delivering,
    first_arrivals,
    make_daemon,
    new_event,
    wait_until_settled,
)
from msgspec import structs

from sidecar.daemon import serve
from sidecar.deliver.order import QUEUE_MAX
from sidecar.errors import SidecarError
from sidecar.mapping import Priority
from sidecar.outbox import StoreFailed
from sidecar.px import PxAnswer


async def test_restart_keeps_order_with_parked_rows_in_between(tmp_path, autojump_clock):
    """The new process sent parked rows before older rows that the earlier process had loaded."""
    px = ScriptedPx(create_all)
    daemon = make_daemon(tmp_path, px)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, daemon, trio.sleep_forever)
        await daemon.delivery_control.pause()
        await daemon.outbox.accept([new_event(number, "u") for number in range(3 * QUEUE_MAX)])
        await trio.sleep(5)
        assert daemon.store.parked_users(priority=Priority.NORMAL) == ["u"]
        await daemon.delivery_control.resume()
        nursery.cancel_scope.cancel()
    daemon.store.connection.close()
    async with delivering(tmp_path, px) as again:
        await wait_until_settled(again)
    assert first_arrivals(px)["u"] == list(range(3 * QUEUE_MAX))


async def test_stop_does_not_wait_for_an_event_between_requests(tmp_path, autojump_clock):
    """The event held a slot without a request under way, and stopping took until its deadline."""
    px = ScriptedPx(lambda _event, px: PxAnswer(404, b"{}") if len(px.requests_s) == 1 else CREATED)
    body = json.dumps({"type": "identify", "userId": "u", "messageId": "m", "traits": {"email": "a@b.c"}}).encode()
    async with delivering(tmp_path, px, '[people]\nusers = "upsert"\n') as daemon:
        await daemon.outbox.accept([structs.replace(new_event(0, "u"), priority=Priority.HIGH, body=body)])
        while not px.requests_s:
            await trio.sleep(0.001)
        stopped_s = trio.current_time()
    assert trio.current_time() - stopped_s < 1


async def test_events_are_sent_if_forgetting_their_user_failed(tmp_path, autojump_clock):
    """The loaded events of the user were unloaded and not read again before a restart."""
    px = ScriptedPx(create_all)

    def fails(*_: object) -> None:
        raise StoreFailed("the disk fails")

    async with delivering(tmp_path, px) as daemon:
        await daemon.delivery_control.pause()
        await daemon.outbox.accept([new_event(number, f"u{number % 2}") for number in range(3 * QUEUE_MAX)])
        await trio.sleep(5)
        write, daemon.outbox.write = daemon.outbox.write, fails  # type: ignore[method-assign]
        with pytest.raises(SidecarError):
            await daemon.admin.forget(["u1"])
        daemon.outbox.write = write  # type: ignore[method-assign]
        await daemon.delivery_control.resume()
        with trio.fail_after(100):
            await wait_until_settled(daemon)
    assert all(numbers == sorted(numbers) for numbers in first_arrivals(px).values())
    assert len(px.stored) == 3 * QUEUE_MAX


async def test_page_that_cannot_be_read_is_read_again(tmp_path, autojump_clock):
    """One failed read of the outbox ended the daemon."""
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        read, failures = daemon.outbox.read, [3]

        async def fails(call):
            if failures[0]:
                failures[0] -= 1
                raise StoreFailed("the disk fails")
            return await read(call)

        daemon.outbox.read = fails  # type: ignore[method-assign]
        await daemon.outbox.accept([new_event(1, "u")])
        await wait_until_settled(daemon)
    assert len(px.stored) == 1


@pytest.mark.parametrize("reply", [PxAnswer(500, b"{}", "1"), PxAnswer(503, b"{}", "soon"), PxAnswer(429, b"{}")])
async def test_one_event_that_is_asked_to_wait_does_not_stop_all(tmp_path, autojump_clock, reply):
    """As the oldest event it was every probe, and 79 of 100 events were never sent."""
    px = ScriptedPx(lambda event, _px: reply if event["identifyId"] == "u3" else CREATED)
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(100)])
        await trio.sleep(15)
        assert daemon.store.pending() == 1

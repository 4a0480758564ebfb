"""How delivery once broke its promises, as the simulation found it. One test each, named after the failure."""

import json
from pathlib import Path

import pytest
import trio
from test_delivery import CREATED, Px, delivering, event, first_arrivals, make, settled
from test_dispatcher import House, track
from test_quota import Clock as QuotaClock
from test_quota import File, send

from sidecar.config import load_text
from sidecar.deliver.order import QUEUE_MAX, Order
from sidecar.deliver.prepared import Memory, Prepared
from sidecar.deliver.quota import Quota
from sidecar.deliver.steps import Rest, Send
from sidecar.errors import SidecarError
from sidecar.mapping import Known, compile_mapping
from sidecar.outbox import Row, StoreFailed
from sidecar.px import Answer

PEOPLE = '[people]\nusers = "upsert"\naccounts = "upsert"\n'


def row(number: int, user: str | None = "u", *, high: bool = False, body: bytes = b"{}") -> Row:
    return Row(number, high, 0, user, 0, body, None)


async def test_a_restart_sent_what_was_set_aside_before_the_older_events_in_front(tmp_path: Path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    daemon = make(tmp_path, px)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, trio.sleep_forever)
        await daemon.desk.pause()
        await daemon.outbox.accept([event(number, "u") for number in range(3 * QUEUE_MAX)])
        await trio.sleep(5)
        assert daemon.store.users_aside(high=False) == ["u"]
        await daemon.desk.resume()
        nursery.cancel_scope.cancel()
    daemon.store.connection.close()
    async with delivering(tmp_path, px) as again:
        await settled(again)
    assert first_arrivals(px)["u"] == list(range(3 * QUEUE_MAX))


def test_what_an_earlier_run_set_aside_is_not_read_before_the_front_has_passed_it():
    order = Order(by_user=True, window=40)
    order.mark_aside([((False, "u"), 5), ((False, "v"), 9)])
    order.load(row(3))
    order.load(row(7))
    assert order.to_set_aside() == [7]
    assert order.wants_aside() is None
    order.front_at(False, 7)
    item = order.head(0.0)
    assert item is not None
    assert item.id == 3
    order.take(item)
    order.done(item)
    assert order.wants_aside() == ((False, "u"), 0)
    order.front_at(False, float("inf"))
    order.load_aside((False, "u"), [], more=False)
    assert order.wants_aside() == ((False, "v"), 0)


def test_a_dead_letter_was_forgotten_when_its_users_head_failed_after_it_was_set_aside():
    order = Order(by_user=True, window=40)
    order.load(row(10))
    order.load(row(11))
    head = order.head(0.0)
    assert head is not None
    order.take(head)
    for number in range(12, 11 + QUEUE_MAX):
        order.load(row(number))
    order.load(row(5))  # a dead letter that was retried
    order.retry_at(head, 1.0)
    order.to_set_aside()
    order.head(2.0)
    order.take(head)
    order.done(head)
    wanted = order.wants_aside()
    assert wanted is not None
    assert wanted[1] < 5


def test_an_event_in_the_middle_of_its_requests_waited_for_a_slot_that_only_it_could_free():
    """It was younger than another one that became ready, which had to wait for a slot."""
    identify = json.dumps({"type": "identify", "userId": "b", "traits": {"email": "a@b.c"}}).encode()
    track = json.dumps({"type": "track", "event": "E", "userId": "a"}).encode()
    house = House(PEOPLE + "[deliver]\nmax_in_flight = 1\n", [row(2, "b", high=True, body=identify)])
    sent = house.next()
    assert isinstance(sent, Send)
    house.rows.insert(0, row(1, "a", high=True, body=track))
    house.it.rewind(1)
    house.feed()
    assert house.it.replied(sent.item, Answer(404, b"{}"), house.clock.now_s) == []
    house.clock.now_s += 1
    following = house.next()
    assert isinstance(following, Send)
    assert following.item.id == 2


def test_forgetting_a_user_in_the_middle_of_his_requests_kept_his_slot_for_ever():
    identify = json.dumps({"type": "identify", "userId": "b", "traits": {"email": "a@b.c"}}).encode()
    house = House(PEOPLE, [row(2, "b", high=True, body=identify)])
    sent = house.next()
    assert isinstance(sent, Send)
    house.it.replied(sent.item, Answer(404, b"{}"), house.clock.now_s)
    house.it.withdraw(lambda _row: True)
    assert house.it.in_flight() == 0


async def test_a_stop_waited_in_vain_for_an_event_in_the_middle_of_its_requests(tmp_path: Path, autojump_clock):
    px = Px(lambda _one, px: Answer(404, b"{}") if len(px.requests_s) == 1 else CREATED)
    body = json.dumps({"type": "identify", "userId": "u", "messageId": "m", "traits": {"email": "a@b.c"}}).encode()
    async with delivering(tmp_path, px, PEOPLE) as daemon:
        await daemon.outbox.accept([event(0, "u")._replace(high=True, body=body)])
        while not px.requests_s:
            await trio.sleep(0.001)
        stopped_s = trio.current_time()
    assert trio.current_time() - stopped_s < 1


async def test_users_who_could_not_be_forgotten_waited_for_a_restart(tmp_path: Path, autojump_clock):
    """Their loaded events were let go of, and nobody read them again."""
    px = Px(lambda _one, _px: CREATED)

    def fails(*_: object) -> None:
        raise StoreFailed("the disk is ill")

    async with delivering(tmp_path, px) as daemon:
        await daemon.desk.pause()
        await daemon.outbox.accept([event(number, f"u{number % 2}") for number in range(3 * QUEUE_MAX)])
        await trio.sleep(5)
        write, daemon.outbox.write = daemon.outbox.write, fails  # type: ignore[method-assign]
        with pytest.raises(SidecarError):
            await daemon.desk.archive.forget("u1")
        daemon.outbox.write = write  # type: ignore[method-assign]
        await daemon.desk.resume()
        with trio.fail_after(100):
            await settled(daemon)
    assert all(numbers == sorted(numbers) for numbers in first_arrivals(px).values())
    assert len(px.stored) == 3 * QUEUE_MAX


async def test_one_page_that_could_not_be_read_ended_the_daemon(tmp_path: Path, autojump_clock):
    px = Px(lambda _one, _px: CREATED)
    async with delivering(tmp_path, px) as daemon:
        read, failures = daemon.outbox.read, [3]

        async def fails(call):
            if failures[0]:
                failures[0] -= 1
                raise StoreFailed("the disk is ill")
            return await read(call)

        daemon.outbox.read = fails  # type: ignore[method-assign]
        await daemon.outbox.accept([event(1, "u")])
        await settled(daemon)
    assert len(px.stored) == 1


def changed(memory: Memory, event: dict) -> Prepared:
    config = load_text(PEOPLE)
    mapper = compile_mapping(config.mapping, config.people)
    mapped = mapper.map(event, memory.known, property_key="AP-XXXXXXXXXX-2", received_ms=0)
    return Prepared(mapped, "", "", memory)


def test_without_order_a_group_call_that_was_tried_again_was_dropped_as_remembered():
    """Another event of the user had changed his memory after it, so that its own change was not taken back."""
    memory = Memory(Known())
    group = changed(memory, {"type": "group", "userId": "u", "groupId": "g", "traits": {"name": "G"}})
    identify = changed(memory, {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}})
    group.take_back()
    assert memory.known.account_id is None
    assert memory.settle(identify).user_digest is not None
    assert changed(memory, {"type": "group", "userId": "u", "groupId": "g", "traits": {"name": "G"}}).walk is not None


def test_without_order_the_account_was_forgotten_when_an_older_identify_was_settled_last():
    memory = Memory(Known())
    identify = changed(memory, {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}})
    group = changed(memory, {"type": "group", "userId": "u", "groupId": "g"})
    assert memory.settle(group).account_id == "g"
    assert memory.settle(identify).account_id == "g"


def test_a_stop_while_the_first_lease_was_under_way_forgot_the_whole_days_quota():
    """The rows that the lease held were no longer to be written, and all others were deleted."""
    clock, file = QuotaClock(), File()
    assert send(Quota(10, clock=clock), file, 4) == 4
    stopped = Quota(10, clock=clock, rows=file.rows.values())
    stopped.ready_at_s(0.0, high=False)
    assert stopped.wants_lease() is not None
    file.commit(stopped.given_back())
    assert send(Quota(10, clock=clock, rows=file.rows.values()), file, 100) <= 6


def test_a_pause_turned_without_end_when_a_retry_was_due_and_the_day_was_spent():
    """What was due was not looked at before a probe, whose turn could not come: the next look was due at once, for hours."""
    house = House("[deliver]\nper_day = 2\nreserve_for_high = 0\n", [track(1, "a"), track(2, "b")])
    later, refused = house.send(), house.send()
    house.reply(later, Answer(503))
    house.reply(refused, Answer(401, b"{}", content_type="application/json"))
    house.clock.now_s += 400
    step = house.next()
    assert isinstance(step, Rest)
    assert step.until_s > house.clock.now_s + 3600


def test_a_pause_was_not_probed_when_all_that_was_left_was_a_retry_that_had_become_due():
    house = House("", [track(1, "a"), track(2, "b")])
    later, refused = house.send(), house.send()
    house.reply(later, Answer(503))
    house.reply(refused, Answer(401, b"{}", content_type="application/json"))
    house.it.withdraw(lambda one: one.id == 2)
    del house.rows[1]  # its user was forgotten
    house.clock.now_s += 400
    assert house.send().item.id == 1

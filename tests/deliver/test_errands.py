"""Requests that are not about an event (`forget --px`) spend the same pace and day, and wait where events wait."""

import json
from functools import partial
from typing import Any

import pytest
import trio
from delivery_harness import CREATED, ScriptedPx, create_all, delivering, most_in_a_second, new_event

from sidecar.daemon import Application
from sidecar.http import Request
from sidecar.px import NotSent, PxAnswer, PxRequest, Reply, Unknown, delete_user

DELETED = PxAnswer(204)


class PxWithUsers(ScriptedPx):
    """A scripted PX that answers deletions of users in turn from ``answers``, then as done."""

    def __init__(self, *answers: Reply) -> None:
        super().__init__(create_all)
        self.answers, self.deleted = list(answers), []

    async def answer(self, request: PxRequest) -> Reply:
        if request.method != "DELETE":
            return await super().answer(request)
        self.requests_s.append(trio.current_time())
        await trio.sleep(0.02)
        reply = self.answers.pop(0) if self.answers else DELETED
        if reply == DELETED:
            self.deleted.append(request.path.rpartition("/")[2])
        return reply


async def forget_in_px(daemon: Application, users: list[str]) -> dict[str, Any]:
    body = json.dumps({"users": users}).encode()
    response = await daemon.control.answer(Request("POST", "/v1/forget/px", "", [], body, "1.1", False))
    assert response.status == 200, response.body
    return json.loads(response.body)


def used(daemon: Application) -> int:
    return daemon.delivery.dispatcher.limiter.quota_status().used


@pytest.mark.whole
async def test_deletions_and_events_share_the_ceiling(tmp_path, autojump_clock):
    px = PxWithUsers()
    async with delivering(tmp_path, px) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(700)])
        for start in range(0, 40, 20):
            users = [f"gone{number}" for number in range(start, start + 20)]
            assert (await forget_in_px(daemon, users))["deleted"] == 20
        assert daemon.store.pending() > 100, "the events were delivered before the deletions"
        while daemon.store.pending():
            await trio.sleep(1)
        assert used(daemon) == 740
    assert len(px.deleted) == 40
    assert most_in_a_second(sorted(px.requests_s)) <= 190


async def test_a_pause_holds_deletions_and_says_why(tmp_path, autojump_clock):
    px = PxWithUsers()
    async with delivering(tmp_path, px) as daemon:
        await daemon.delivery_control.pause()
        answer = await forget_in_px(daemon, ["ann", "ben"])
        assert (answer["deleted"], answer["left"]) == (0, ["ann", "ben"])
        assert "px-sidecar resume" in answer["why"]
        await daemon.delivery_control.resume()
        assert (await forget_in_px(daemon, ["ann", "ben"]))["deleted"] == 2
    assert px.deleted == ["ann", "ben"]


async def test_a_spent_day_holds_deletions(tmp_path, autojump_clock):
    px = PxWithUsers()
    async with delivering(tmp_path, px, "[deliver]\nper_day = 3\nreserve_for_high = 0.0\n") as daemon:
        answer = await forget_in_px(daemon, ["a", "b", "c", "d"])
    assert (answer["deleted"], answer["left"]) == (3, ["d"])
    assert "per_day" in answer["why"]


async def test_a_deletion_that_is_too_fast_waits_and_is_repeated(tmp_path, autojump_clock):
    px = PxWithUsers(PxAnswer(429, b"{}", "4"))
    async with delivering(tmp_path, px) as daemon:
        began_s = trio.current_time()
        assert (await forget_in_px(daemon, ["ann"]))["deleted"] == 1
        assert trio.current_time() - began_s >= 4
        assert used(daemon) == 2
    assert px.deleted == ["ann"]


async def test_a_refused_deletion_neither_pauses_nor_judges_events(tmp_path, autojump_clock):
    px = PxWithUsers(PxAnswer(404), PxAnswer(403, b"{}", content_type="application/json"), Unknown("lost"))
    async with delivering(tmp_path, px) as daemon:
        answer = await forget_in_px(daemon, ["a", "b", "c", "d"])
        await daemon.outbox.accept([new_event(1, "u1")])
        await trio.sleep(2)
        assert daemon.outbox.counters["delivered"] == 1
    assert (answer["deleted"], answer["absent"], len(answer["failed"])) == (1, 1, 2)


async def test_a_deletion_that_had_no_permission_is_sent_again(tmp_path, autojump_clock):
    px = PxWithUsers(NotSent("no permission within 30 s", held=True), DELETED)
    async with delivering(tmp_path, px) as daemon:
        answer = await forget_in_px(daemon, ["a"])
    assert (answer["deleted"], answer["failed"]) == (1, [])


async def test_a_deletion_ends_an_outage_without_events(tmp_path, autojump_clock):
    """It waited for a probe, and a probe is an event: with an empty outbox it waited without end."""
    px = PxWithUsers(PxAnswer(429, b"{}"), PxAnswer(500, b"{}"), DELETED)
    async with delivering(tmp_path, px) as daemon:
        answer = await forget_in_px(daemon, ["a", "b"])
        assert daemon.delivery.dispatcher.destination.describe(trio.current_time()).state == "open"
    assert (answer["deleted"], len(answer["failed"])) == (1, 1)
    assert px.stored == []


async def test_a_deletion_that_waits_counts_as_demand(tmp_path, autojump_clock, monkeypatch):
    """A fleet gives slots for what is wanted: with no event to send, a deletion never got one."""
    px = PxWithUsers()
    async with delivering(tmp_path, px) as daemon, trio.open_nursery() as nursery:
        errands, limiter = daemon.errands, daemon.delivery.dispatcher.limiter
        monkeypatch.setattr(limiter, "ready_at_s", lambda now_s, **_: now_s + 1)
        assert errands.demand(trio.current_time()) == (0, 0, 0)
        nursery.start_soon(partial(errands.send_all, [delete_user("ann")], within_s=60))
        await trio.sleep(5)
        assert errands.demand(trio.current_time()) == (0, 1, 0)
        monkeypatch.undo()
        await trio.sleep(5)
        assert errands.demand(trio.current_time()) == (0, 0, 0)
    assert px.deleted == ["ann"]


async def test_a_429_long_after_an_errands_does_not_spend_the_day(tmp_path, autojump_clock):
    """The episode that the errand had begun never ended: one 429 hours later held everything for an hour."""
    answers = iter([PxAnswer(429)])
    px = PxWithUsers(PxAnswer(429, b"{}"))
    px.decide = lambda _event, _px: next(answers, CREATED)
    async with delivering(tmp_path, px) as daemon:
        assert (await forget_in_px(daemon, ["ann"]))["deleted"] == 1
        await trio.sleep(3600)
        await daemon.outbox.accept([new_event(1, "u1")])
        await trio.sleep(60)
        assert daemon.outbox.counters["delivered"] == 1

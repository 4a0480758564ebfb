"""Events that a file of the first format holds have no stored account: for them the old rule holds, memory when sent."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from delivery_harness import ScriptedPx, create_all, delivering, wait_until_settled

from sidecar.events import judge
from sidecar.outbox import new_event

PEOPLE = '[people]\nusers = "upsert"\n'


def call(kind: str, number: int, **fields: Any) -> dict[str, Any]:
    made = {"type": kind, "userId": "ann", "messageId": f"m{number}", "timestamp": "2023-11-01T18:00:00Z"}
    return made | ({"event": "Clicked", "properties": {"n": number}} if kind == "track" else {}) | fields


async def accept(daemon: Any, *calls: dict[str, Any]) -> None:
    await daemon.outbox.accept([new_event(daemon.settings.now, 0, judge(call, 2**15)) for call in calls])


async def fill_as_first_format(folder: Path, *calls: dict[str, Any], known: dict[str, Any] | None = None) -> None:
    """Leave an outbox in which the calls are pending as the first format stored them."""
    async with delivering(folder, ScriptedPx(create_all)) as daemon:
        await daemon.delivery_control.pause()
        await accept(daemon, *calls)
    with closing(sqlite3.connect(folder / "outbox.db")) as file, file:
        file.execute("UPDATE events SET account = NULL, account_from = NULL, account_call = NULL")
        file.execute("DELETE FROM users")
        file.execute("INSERT OR REPLACE INTO counters VALUES ('users', ?)", (1 if known else 0,))
        if known:
            row = ("AP-XXXXXXXXXX-2", "ann", json.dumps(known).encode())
            file.execute("INSERT INTO users (property_key, user, known, seen_ms) VALUES (?, ?, ?, 0)", row)


def accounts(px: ScriptedPx) -> dict[int, str | None]:
    return {body["attributes"]["n"]: body.get("accountId") for body in px.stored if "attributes" in body}


async def test_a_pending_identify_of_the_first_format_uses_memory(tmp_path, autojump_clock):
    """It names no account itself, and PX gets the remembered one."""
    await fill_as_first_format(
        tmp_path, call("identify", 1, traits={"plan": "pro"}), call("track", 2), known={"account_id": "acme"}
    )
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px, PEOPLE) as daemon:
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)
    (user,) = [body for body in px.stored if "attributes" not in body]
    assert user["accountId"] == "acme"
    assert accounts(px) == {2: "acme"}


@pytest.mark.parametrize("people", ["", PEOPLE])
@pytest.mark.parametrize("known", [None, {"account_id": "before"}])
async def test_new_events_get_what_older_pending_calls_say(tmp_path, autojump_clock, people, known):
    """The account of a new event was looked up before the pending identify had written it: the event went without one."""
    await fill_as_first_format(
        tmp_path, call("track", 1), call("identify", 2, traits={"account_id": "acme"}), call("track", 3), known=known
    )
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px, people) as daemon:
        await accept(daemon, call("track", 4))
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)
        await accept(daemon, call("track", 5), call("group", 6, groupId="globex"), call("track", 7))
        await wait_until_settled(daemon)
    assert accounts(px) == {1: known and "before", 3: "acme", 4: "acme", 5: "acme", 7: "globex"}


async def test_new_calls_decide_beside_older_pending_ones(tmp_path, autojump_clock):
    await fill_as_first_format(tmp_path, call("identify", 1, traits={"account_id": "acme"}))
    px = ScriptedPx(create_all)
    async with delivering(tmp_path, px) as daemon:
        await accept(daemon, call("track", 2), call("group", 3, groupId="globex"), call("track", 4))
        await trio.sleep(1)
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)
    assert accounts(px) == {2: "acme", 4: "globex"}

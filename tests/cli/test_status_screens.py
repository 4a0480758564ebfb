"""The screens of `status` in its states, at 80 columns: what is wrong and what to do come first."""

import time
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from sidecar.cli.status import render_status
from sidecar.control.pages import status_of
from sidecar.control.status import DaemonState, NameShare, OutboxFacts, QuotaFacts, RefusedCalls, SlowUser
from sidecar.observe import Problem

AT = "2026-01-05T10:02:11.000Z"
OUTBOX = OutboxFacts(path="/var/lib/px-sidecar/outbox.db", bytes=3 * 2**20, max_bytes=4 * 2**30, wal_bytes=0)
QUOTA = QuotaFacts(used=12_345, limit=990_000, left=977_655, reserve=99_000, free_in_s=0.0)


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def state(**facts) -> DaemonState:
    """The state of a daemon that has delivered 12,345 events and is idle, except for ``facts``."""
    usual = {
        "version": "0.1.0",
        "state": "open",
        "since": AT,
        "next_try_in_s": None,
        "delivering": True,
        "reasons": [],
        "warnings": [],
        "accepted": 12_345,
        "pending": 0,
        "pending_high": 0,
        "delivered": 12_345,
        "dropped": 0,
        "dead": 0,
        "dropped_by_reason": {},
        "dead_by_reason": {},
        "repeated": 0,
        "ambiguous": 0,
        "retries": 0,
        "in_flight": 0,
        "lanes": 2,
        "rate": 0.0,
        "pace": 190.0,
        "ceiling": 190.0,
        "quota": QUOTA,
        "oldest_pending_age_s": None,
        "drain_s": None,
        "full": None,
        "outbox": OUTBOX,
        "slowest_user": None,
        "last_delivered": AT,
        "last_problem": None,
        "uptime_s": 86_400.0,
        "counters": {},
        "lanes_in_use": 0,
        "changed": 0,
        "without_account": 0,
        "last_delivered_ms": None,
        "set_aside": False,
        "instance": "",
        "oldest_age_s_by_class": {},
        **{name: [] for name in ("not_stored", "not_delivered", "damage", "limits", "notes")},
    }
    return DaemonState(**usual | facts)


BACKLOG = {"accepted": 24_345, "pending": 12_000, "oldest_pending_age_s": 90.0, "drain_s": 64.0}
KEY = "PX answered 401 (key unknown); regenerate a key with Write access, write it to px.api_key_file, then `px-sidecar resume`."
AWAY = "PX cannot be reached (ConnectError: connection refused); events are kept, and delivery continues by itself."
SPENT = "The day's quota of 990,000 requests is spent; nothing is lost, and delivery continues in 3h 12m by itself."

STATES = {
    "idle": state(),
    "delivering": state(**BACKLOG, rate=189.8, in_flight=12, lanes=14, pending_high=7, retries=4, ambiguous=2),
    "paused": state(
        **BACKLOG | {"drain_s": None},
        state="paused",
        delivering=False,
        lanes=0,
        not_delivered=["Delivery was paused; `px-sidecar resume` starts it again."],
    ),
    "wrong key": state(
        **BACKLOG | {"drain_s": None},
        state="paused",
        delivering=False,
        next_try_in_s=240.0,
        lanes=0,
        not_delivered=[KEY],
        last_problem=Problem(AT, KEY),
        reasons=[KEY],
    ),
    "PX away": state(
        **BACKLOG,
        state="waiting",
        delivering=False,
        next_try_in_s=12.0,
        lanes=0,
        not_delivered=[AWAY],
        slowest_user=SlowUser(user="user-7", waiting_for_s=95.0, attempts=3, detail="PX answered 503."),
    ),
    "the day is spent": state(
        **BACKLOG | {"drain_s": 11_600.0},
        delivering=False,
        not_delivered=[SPENT],
        reasons=[SPENT],
        quota=msgspec.structs.replace(QUOTA, used=891_000, left=99_000, free_in_s=11_520.0),
        busiest_name=NameShare("Mouse Moved", 613_800),
    ),
    "dead letters and refused calls": state(
        accepted=12_382,
        dead=37,
        dead_by_reason={"bad_event": 3, "refused": 34},
        refused=RefusedCalls({"unknown_write_key": 120, "bad_json": 1}, 40.0, "The write key is not known."),
        limits=["User u1 had 900 events in 24 hours; PX accepts 1,000 a day and drops the rest silently."],
        notes=["Changes that wait for a restart: listen.http."],
    ),
    "damaged and full": state(
        **BACKLOG,
        full="outbox_full",
        outbox=msgspec.structs.replace(OUTBOX, bytes=4 * 2**30),
        not_stored=["The outbox has reached outbox.max_bytes (4 GiB); events are refused until some are delivered."],
        reasons=["The outbox has reached outbox.max_bytes (4 GiB); events are refused until some are delivered."],
        damage=["The outbox was damaged and is set aside as outbox.db.damaged-1. Check the disk."],
    ),
    "stopped": state(
        **BACKLOG,
        state="stopped",
        since=None,
        delivering=False,
        uptime_s=None,
        lanes=0,
        not_delivered=["The daemon is not running; start it with `systemctl start px-sidecar` or `px-sidecar run`."],
    ),
}


def screen(shown: DaemonState) -> str:
    out = Console(width=80, file=StringIO(), color_system=None, highlight=False)
    out.print(render_status(msgspec.to_builtins(status_of(shown))))
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"


SCREENS = dict(
    part.removesuffix("\n").split("\n", 1)
    for part in Path(__file__).with_name("status_screens.txt").read_text(encoding="utf-8").split("=== ")[1:]
)


def test_every_screen_belongs_to_a_state():
    assert SCREENS.keys() == STATES.keys()


@pytest.mark.parametrize("name", STATES)
def test_the_screen_leads_with_what_is_wrong(name):
    """A changed screen is copied from the failure into status_screens.txt."""
    shown = screen(STATES[name])
    assert max(map(len, shown.splitlines())) <= 80
    assert shown == SCREENS[name]


def test_everything_is_delivered_is_not_shown_with_dead_letters():
    assert "everything is delivered" in screen(state())
    assert "idle, but not everything is delivered" in screen(state(dead=1, dead_by_reason={"refused": 1}))


def test_many_problems_are_cut_and_counted():
    shown = screen(state(limits=[f"Limit {number} is near." for number in range(11)]))
    assert "Limit 7 is near." in shown
    assert "Limit 8 is near." not in shown
    assert "and 3 more: `px-sidecar status --json`" in shown


def test_commands_name_the_instance(verb):
    """A hint without it would act on another daemon of the host."""
    ran = verb("--instance", "acme", "pause")
    assert "`systemctl start px-sidecar@acme`" in ran.err
    assert "`px-sidecar --instance acme run`" in ran.err
    assert "control-acme.sock" in ran.err

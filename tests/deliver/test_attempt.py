"""The memory of a user: an attempt's change is visible at once, and rolled back or settled later."""

import pytest
from dispatcher_harness import track

from sidecar.config import load_text
from sidecar.deliver.attempt import Attempt, UserMemory, dead_letter_detail, outcome_of
from sidecar.deliver.order import LoadedEvent
from sidecar.mapping import Known, Mapped, Priority, UpsertUser, compile_mapping
from sidecar.px import Kind, Verdict

PEOPLE = '[people]\nusers = "upsert"\naccounts = "upsert"\n'
OLD = Known(account_id="acct-1", user_digest="old")
INTENT = UpsertUser("user-123", {"email": "a@example.com"}, {})


def attempt(memory: UserMemory, known: Known | None = None, *intents: UpsertUser) -> Attempt:
    return Attempt(Mapped(intents=intents, known=known), "Feature Used", "AP-XXXXXXXXXX-2", memory)


def test_change_is_visible_to_the_next_event_at_once():
    memory = UserMemory(OLD)
    attempt(memory, Known("acct-2", "old"))
    assert memory.known == Known("acct-2", "old")


def test_event_without_a_change_leaves_the_memory_as_it_is():
    memory = UserMemory(OLD)
    change = attempt(memory)
    change.roll_back()
    assert memory.known is OLD
    assert memory.settle(change) == OLD


def test_rolled_back_change_is_undone():
    memory = UserMemory(OLD)
    change = attempt(memory, Known("acct-2", "old"))
    change.roll_back()
    assert memory.known == OLD
    assert memory.settle(change) == OLD


def test_settled_change_stays():
    memory = UserMemory(OLD)
    change = attempt(memory, Known("acct-2", "old"))
    assert memory.settle(change) == Known("acct-2", "old")
    change.roll_back()
    assert memory.known == Known("acct-2", "old")


def test_rolling_back_keeps_the_changes_of_other_attempts():
    memory = UserMemory(OLD)
    first = attempt(memory, Known("acct-2", "old"))
    second = attempt(memory, Known("acct-2", "new"))
    first.roll_back()
    assert memory.known == Known("acct-1", "new")
    assert memory.settle(second) == Known("acct-1", "new")


def test_settling_returns_only_settled_changes():
    """The outbox must not learn the change of an event that may still fail."""
    memory = UserMemory(OLD)
    first = attempt(memory, Known("acct-2", "old"))
    second = attempt(memory, Known("acct-2", "new"))
    assert memory.settle(second) == Known("acct-1", "new")
    assert memory.known == Known("acct-2", "new")
    assert memory.settle(first) == Known("acct-2", "new")


def test_attempt_has_calls_only_if_there_is_something_to_send():
    upsert = attempt(UserMemory(OLD), None, INTENT)
    assert upsert.calls is not None
    assert upsert.calls.current.method == "PUT"
    assert attempt(UserMemory(OLD)).calls is None
    assert (upsert.name, upsert.product, upsert.mapped.intents) == ("Feature Used", "AP-XXXXXXXXXX-2", (INTENT,))


@pytest.mark.parametrize(
    ("message", "excerpt", "words"),
    [
        ("PX answered 400.", "", "PX answered 400."),
        ("PX answered 400 (bad date).", "bad date", "PX answered 400 (bad date)."),
        ("PX answered 400.", "bad date", "PX answered 400. PX said: bad date"),
    ],
)
def test_dead_letter_detail_quotes_px_once(message, excerpt, words):
    assert dead_letter_detail(Verdict(Kind.REFUSED, 400, excerpt, message=message)) == words


def test_open_changes_lie_over_settled_ones():
    memory = UserMemory(OLD)
    first = attempt(memory, Known("acct-2", "old"))
    second = attempt(memory, Known("acct-3", "old"))
    assert memory.settle(second) == Known("acct-3", "old")
    assert memory.known == Known("acct-2", "old")
    first.roll_back()
    assert memory.known == Known("acct-3", "old")


def mapped_attempt(memory: UserMemory, event: dict) -> Attempt:
    """Return the attempt of an event as the mapping makes it with people calls on."""
    config = load_text(PEOPLE)
    mapper = compile_mapping(config.mapping, config.people, config.identity)
    mapped = mapper.map(event, memory.known, property_key="AP-XXXXXXXXXX-2", received_ms=0)
    return Attempt(mapped, "", "", memory)


def test_retried_group_call_is_sent_again_without_order():
    """Another event had changed the user's memory since, so the change of the group call was not rolled back.

    Its retry was dropped as ``remembered``.
    """
    memory = UserMemory(Known())
    group = mapped_attempt(memory, {"type": "group", "userId": "u", "groupId": "g", "traits": {"name": "G"}})
    identify = mapped_attempt(memory, {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}})
    group.roll_back()
    assert memory.known.account_id is None
    assert memory.settle(identify).user_digest is not None
    assert (
        mapped_attempt(memory, {"type": "group", "userId": "u", "groupId": "g", "traits": {"name": "G"}}).calls
        is not None
    )


def test_settling_an_older_identify_last_keeps_the_account():
    """An older identify that was settled last replaced the whole memory, and the account was lost."""
    memory = UserMemory(Known())
    identify = mapped_attempt(memory, {"type": "identify", "userId": "u", "traits": {"email": "a@b.c"}})
    group = mapped_attempt(memory, {"type": "group", "userId": "u", "groupId": "g"})
    assert memory.settle(group).account_id == "g"
    assert memory.settle(identify).account_id == "g"


def test_outcome_carries_the_row_as_it_was_accepted():
    row = track(7, "u1")._replace(priority=Priority.HIGH, source=3, hashed='["a digest"]')
    outcome = outcome_of(LoadedEvent(row, ("AP-1", "u1"), None), "dropped", 0, reason="sampled")
    assert (outcome.event_id, outcome.user, outcome.body, outcome.hashed) == (7, "u1", row.body, '["a digest"]')
    assert (outcome.priority, outcome.source, outcome.received_ms) == ("high", 3, row.received_ms)
    assert (outcome.reason, outcome.request, outcome.payload) == ("sampled", "", b"")

"""What an event changes in the memory of its user: overlaid at once, taken back when it comes to nothing."""

import pytest

from sidecar.deliver.prepared import Memory, Prepared, words_of
from sidecar.mapping import Known, Mapped, UpsertUser
from sidecar.px import Kind, Verdict

OLD = Known(account_id="acct-1", user_digest="old")
INTENT = UpsertUser("user-123", {"email": "a@example.com"}, {})


def prepared(memory: Memory, known: Known | None = None, *intents: UpsertUser) -> Prepared:
    return Prepared(Mapped(intents=intents, known=known), "Feature Used", "AP-XXXXXXXXXX-2", memory)


def test_what_an_event_changes_is_seen_by_the_next_one_at_once():
    memory = Memory(OLD)
    prepared(memory, Known("acct-2", "old"))
    assert memory.known == Known("acct-2", "old")


def test_an_event_that_changes_nothing_leaves_the_memory_alone():
    memory = Memory(OLD)
    event = prepared(memory)
    event.take_back()
    assert memory.known is OLD
    assert memory.settle(event) == OLD


def test_a_change_that_is_taken_back_did_not_happen():
    memory = Memory(OLD)
    event = prepared(memory, Known("acct-2", "old"))
    event.take_back()
    assert memory.known == OLD
    assert memory.settle(event) == OLD


def test_a_change_that_is_settled_stays():
    memory = Memory(OLD)
    event = prepared(memory, Known("acct-2", "old"))
    assert memory.settle(event) == Known("acct-2", "old")
    event.take_back()
    assert memory.known == Known("acct-2", "old")


def test_what_others_changed_meanwhile_stays_when_one_takes_its_change_back():
    memory = Memory(OLD)
    first = prepared(memory, Known("acct-2", "old"))
    second = prepared(memory, Known("acct-2", "new"))
    first.take_back()
    assert memory.known == Known("acct-1", "new")
    assert memory.settle(second) == Known("acct-1", "new")


def test_settled_is_only_what_the_settled_event_changed():
    """The file must not learn what an event that may still fail has changed."""
    memory = Memory(OLD)
    first = prepared(memory, Known("acct-2", "old"))
    second = prepared(memory, Known("acct-2", "new"))
    assert memory.settle(second) == Known("acct-1", "new")
    assert memory.known == Known("acct-2", "new")
    assert memory.settle(first) == Known("acct-2", "new")


def test_there_is_a_walk_only_where_there_is_something_to_send():
    event = prepared(Memory(OLD), None, INTENT)
    assert event.walk is not None
    assert event.walk.first().method == "PUT"
    assert prepared(Memory(OLD)).walk is None
    assert (event.name, event.product, event.mapped.intents) == ("Feature Used", "AP-XXXXXXXXXX-2", (INTENT,))


@pytest.mark.parametrize(
    ("message", "excerpt", "words"),
    [
        ("PX answered 400.", "", "PX answered 400."),
        ("PX answered 400 (bad date).", "bad date", "PX answered 400 (bad date)."),
        ("PX answered 400.", "bad date", "PX answered 400. PX said: bad date"),
    ],
)
def test_a_dead_letter_keeps_what_px_said_once(message, excerpt, words):
    assert words_of(Verdict(Kind.REFUSED, 400, excerpt, message=message)) == words


def test_what_is_under_way_lies_over_what_is_settled():
    memory = Memory(OLD)
    first = prepared(memory, Known("acct-2", "old"))
    second = prepared(memory, Known("acct-3", "old"))
    assert memory.settle(second) == Known("acct-3", "old")
    assert memory.known == Known("acct-2", "old")
    first.take_back()
    assert memory.known == Known("acct-3", "old")

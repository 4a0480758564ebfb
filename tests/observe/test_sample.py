"""The sampled feed: filters look at every record, a reader gets a few."""

from types import SimpleNamespace

import msgspec

from sidecar.observe.feed import EventOutcome
from sidecar.observe.sample import PER_S, QUEUE_RECORDS, LiveFilter, LiveSample


def body(name: str, **properties: object) -> bytes:
    return msgspec.json.encode({"type": "track", "event": name, "userId": "u1", "properties": properties})


def accepted(name: str, **properties: object) -> SimpleNamespace:
    return SimpleNamespace(message_id="m", user="u1", body=body(name, **properties), bad=None, hashed=None)


def delivered(name: str) -> EventOutcome:
    return EventOutcome(
        what="delivered",
        event_id=1,
        user="u1",
        body=body(name),
        attempts=1,
        status=201,
        request="POST /x",
        payload=b"{}",
    )


def redact(event: dict, hashed: object = ()) -> dict:
    return event | {"properties": "hidden"}


def sample() -> LiveSample:
    return LiveSample(lambda: redact)


def test_a_sample_has_no_readers_at_first():
    assert not sample().listening


def test_a_reader_gets_a_few_records_a_second_and_the_count_of_all():
    live = sample()
    with live.subscribe(LiveFilter()) as reader:
        for _ in range(190):
            live.accepted(accepted("Opened"), 0)
        *records, counts = reader.take()
    assert len(records) == PER_S
    assert counts == {"sample": {"seen": 190, "matched": 190, "shown": PER_S}}
    assert not live.listening


def test_a_rare_event_is_found_among_many():
    live = sample()
    with live.subscribe(LiveFilter(name="Rare")) as reader:
        for number in range(1_000):
            live.accepted(accepted("Rare" if number == 777 else "Opened"), 0)
        record, counts = reader.take()
    assert record["name"] == "Rare"
    assert counts["sample"] == {"seen": 1_000, "matched": 1, "shown": 1}


def test_filters_select_by_outcome_user_reason_and_text():
    for query, expected in (
        (LiveFilter(what="delivered,dead"), 1),
        (LiveFilter(what="dead"), 0),
        (LiveFilter(user="u1"), 2),
        (LiveFilter(user="u2"), 0),
        (LiveFilter(reason="refused"), 0),
        (LiveFilter(text="Opened"), 2),
        (LiveFilter(text="absent"), 0),
    ):
        live = sample()
        with live.subscribe(query) as reader:
            live.accepted(accepted("Opened"), 0)
            live.outcome(delivered("Opened"), 0)
            assert len(reader.take()) == expected + 1, query


def test_a_record_shows_received_sent_and_answered_side_by_side():
    live = sample()
    with live.subscribe(LiveFilter()) as reader:
        live.outcome(delivered("Opened"), 0)
        record, _ = reader.take()
    assert record["event"]["properties"] == "hidden"
    assert record["request"] == "POST /x"
    assert record["status"] == 201


def test_a_reader_that_does_not_read_holds_a_bounded_number():
    live = sample()
    with live.subscribe(LiveFilter()) as reader:
        for _ in range(10 * QUEUE_RECORDS):
            live.accepted(accepted("Opened"), 0)
            reader.shown = 0
        assert len(reader.take()) == QUEUE_RECORDS + 1


def test_two_readers_share_one_record():
    live = sample()
    with live.subscribe(LiveFilter()) as first, live.subscribe(LiveFilter()) as second:
        live.accepted(accepted("Opened"), 0)
        assert first.take()[0] is second.take()[0]

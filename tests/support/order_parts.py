"""User queues for unit tests: rows, queues loaded with them, and taking heads."""

from sidecar.deliver.order import LoadedEvent, UserQueues
from sidecar.mapping import Priority
from sidecar.outbox import Row

WINDOW = 40


def row(number: int, user: str | None = "u", *, priority: Priority = Priority.NORMAL, body: bytes = b"{}") -> Row:
    return Row(number, priority, 0, user, 0, body, None)


def queues_of(*rows: Row, by_user: bool = True) -> UserQueues:
    queues = UserQueues(by_user=by_user, window=WINDOW)
    for loaded in rows:
        queues.load(loaded)
    return queues


def take(queues: UserQueues, now_s: float = 0.0) -> LoadedEvent | None:
    event = queues.head(now_s)
    if event is not None:
        queues.take(event)
    return event


def take_head(queues: UserQueues, now_s: float = 0.0) -> LoadedEvent:
    """Take the next event; there must be one."""
    event = take(queues, now_s)
    assert event is not None
    return event


def finish_all(queues: UserQueues) -> list[int]:
    """Take and finish events until nothing is ready; return their ids in this order."""
    finished = []
    while (event := take(queues)) is not None:
        finished.append(event.id)
        queues.done(event)
    return finished


def ids(events: list[LoadedEvent | None]) -> list[int | None]:
    return [event and event.id for event in events]

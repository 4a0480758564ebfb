"""Jobs: how far an operator's long operation on this outbox has come, so that it continues where it was cancelled."""

from typing import Final, NamedTuple

from sidecar.outbox.store import Store

__all__ = ["Job", "advance_job", "jobs"]

JOBS_MAX: Final = 1_000


class Job(NamedTuple):
    """``spec`` is what the job is about, ``position`` where it continues; ``state`` is running or done.

    ``done`` and ``total`` count events, the times are epoch milliseconds.
    """

    id: int
    kind: str
    spec: str
    state: str
    position: str
    done: int
    total: int
    started_ms: int
    changed_ms: int


def jobs(store: Store) -> list[Job]:
    """Return the newest jobs, the one that changed last first."""
    rows = store.connection.execute(f"SELECT * FROM jobs ORDER BY changed_ms DESC, id DESC LIMIT {JOBS_MAX}")
    return [Job(*row) for row in rows]


def advance_job(
    store: Store, kind: str, spec: str, now_ms: int, *, position: str, done: int, total: int, over: bool
) -> None:
    """Record the position of a job, inside a transaction, and add ``done`` events; begin it if it is new."""
    state = "done" if over else "running"
    changed = store.connection.execute(
        "UPDATE jobs SET state = ?, position = ?, done = done + ?, total = ?, changed_ms = ? WHERE kind = ? AND spec = ?",
        (state, position, done, total, now_ms, kind, spec),
    ).rowcount
    if not changed:
        store.connection.execute(
            "INSERT INTO jobs (kind, spec, state, position, done, total, started_ms, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (kind, spec, state, position, done, total, now_ms, now_ms),
        )
        # Bounded: the oldest are deleted, and a second run on their files is recognized by the ids of the events alone.
        store.connection.execute(
            "DELETE FROM jobs WHERE id <= (SELECT id FROM jobs ORDER BY id DESC LIMIT 1 OFFSET ?)", (JOBS_MAX,)
        )

"""The work of operators, in the outbox file: who changed what through the control API, how far backfills have come."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sidecar.outbox.store import Store

__all__ = [
    "AuditRow",
    "Job",
    "add_audit",
    "advance_job",
    "audit_page",
    "jobs",
    "last_action",
]

AUDIT_MAX: Final = 10_000
JOBS_MAX: Final = 1_000


class AuditRow(NamedTuple):
    """One change: the peer of the control socket that made it, the action, and its object."""

    id: int
    at_ms: int
    who: str
    action: str
    detail: str


def add_audit(store: Store, now_ms: int, who: str, action: str, detail: str) -> None:
    """Add a row, inside a transaction."""
    row = (now_ms, who, action, detail)
    store.connection.execute("INSERT INTO audit (at_ms, who, action, detail) VALUES (?, ?, ?, ?)", row)
    store.connection.execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (AUDIT_MAX,))


def audit_page(store: Store, *, before: int | None, limit: int) -> list[AuditRow]:
    """Return the newest rows with an id below ``before``, newest first."""
    rows = store.connection.execute(
        "SELECT id, at_ms, who, action, detail FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
        (2**63 - 1 if before is None else before, limit),
    )
    return [AuditRow(*row) for row in rows]


def last_action(store: Store, actions: Sequence[str]) -> str | None:
    """Return which of these actions was recorded last; None if none is among the rows that are kept."""
    marks = ",".join("?" * len(actions))
    row = store.connection.execute(
        f"SELECT action FROM audit WHERE action IN ({marks}) ORDER BY id DESC LIMIT 1", list(actions)
    ).fetchone()
    return row[0] if row else None


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

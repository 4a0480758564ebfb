"""The audit trail: who changed what through the control API, in the outbox file. The newest ``ROWS_MAX`` are kept."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sidecar.outbox.store import Store

__all__ = ["AuditRow", "add_audit", "audit_page", "last_action"]

ROWS_MAX: Final = 10_000


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
    store.connection.execute("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?", (ROWS_MAX,))


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

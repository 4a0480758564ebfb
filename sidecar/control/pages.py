"""What GET finds at the address for events: health, metrics, status, and what one SDK asks of a cluster."""

from collections.abc import Awaitable, Callable

import msgspec

from sidecar.control.desk import Desk
from sidecar.control.status import Status
from sidecar.http import Response
from sidecar.observe import CONTENT_TYPE, Metrics, Snapshot

__all__ = ["pages_of", "snapshot_of"]


def pages_of(
    desk: Desk, metrics: Metrics, problems: Callable[[], list[str]]
) -> dict[str, Callable[[], Awaitable[Response]]]:
    """The pages by path. ``problems`` are why events cannot be stored or the dispatcher does not decide."""

    async def health() -> Response:
        found, status = problems(), await desk.status()
        body = {"healthy": not found, "problems": found, "delivering": status.delivering, "reasons": status.reasons}
        return Response(503 if found else 200, msgspec.json.encode(body))

    async def show_metrics() -> Response:
        snapshot = snapshot_of(desk, await desk.status())
        metrics.snapshot = lambda: snapshot
        return Response(200, metrics.render(), CONTENT_TYPE)

    async def status() -> Response:
        return Response(200, msgspec.json.encode(await desk.status()))

    async def cluster_info() -> Response:
        return Response(200, b'{"nodeCount":1}')

    return {"/health": health, "/metrics": show_metrics, "/status": status, "/cluster-info": cluster_info}


def snapshot_of(desk: Desk, status: Status) -> Snapshot:
    """What the metrics show of a status of a running daemon."""
    dispatcher = desk.running().dispatcher
    return Snapshot(
        counters=desk.house.outbox.counters,
        destination=status.state,
        oldest_pending_age_s=status.oldest_pending_age_s or 0.0,
        pace_per_second=status.pace,
        ceiling_per_second=status.ceiling,
        quota_used=status.quota.used,
        quota_limit=status.quota.limit,
        quota_reserve=status.quota.reserve,
        in_flight=status.in_flight,
        lanes_open=status.lanes,
        lanes_in_use=dispatcher.under_way(),
        wal_bytes=status.outbox.wal_bytes or 0,
        outbox_bytes=status.outbox.bytes or 0,
        outbox_limit_bytes=status.outbox.max_bytes,
        set_aside=bool(desk.house.store.notice),
        full=status.full,
        last_delivered_ms=dispatcher.last_delivered_ms or 0,
        changed=dispatcher.tally["changed"],
    )

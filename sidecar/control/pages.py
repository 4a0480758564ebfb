"""The GET pages of the ingest listeners: ``/health``, ``/metrics``, ``/status``, and ``/cluster-info`` for one SDK."""

from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.control.problems import problems_of
from sidecar.control.state import StateReader
from sidecar.control.status import DaemonState, FleetFacts, StateFacts, Status, public_view
from sidecar.errors import with_instance
from sidecar.http import Response
from sidecar.observe import CONTENT_TYPE, FleetSnapshot, Heartbeats, Metrics, Snapshot
from sidecar.outbox import Outbox
from sidecar.receive import PageHandler

__all__ = ["UNHEALTHY_AFTER_S", "health_problems", "pages_of", "snapshot_of", "status_of"]

# Both parts beat at least once a second, the writer with a transaction of its own: so no write waits for longer unnoticed.
UNHEALTHY_AFTER_S = 5.0


def pages_of(reader: StateReader, metrics: Metrics, problems: Callable[[], list[str]]) -> dict[str, PageHandler]:
    """Return the handlers by path. ``problems`` returns why the daemon is unhealthy (see ``health_problems``).

    Apps, and perhaps other hosts, reach these pages: user ids, PX's words and paths are left to the control socket.
    """

    async def health() -> Response:
        current = [with_instance(problem, reader.instance) for problem in problems()]
        state = await reader.read()
        reasons = public_view(status_of(state)).reasons
        body = {"healthy": not current, "problems": current, "delivering": state.delivering, "reasons": reasons}
        return Response(503 if current else 200, msgspec.json.encode(body))

    async def show_metrics() -> Response:
        return Response(200, metrics.render(snapshot_of(await reader.read())), CONTENT_TYPE)

    async def status() -> Response:
        return Response(200, msgspec.json.encode(public_view(status_of(await reader.read()))))

    async def cluster_info() -> Response:
        return Response(200, b'{"nodeCount":1}')

    return {"/health": health, "/metrics": show_metrics, "/status": status, "/cluster-info": cluster_info}


def health_problems(heartbeats: Heartbeats, outbox: Outbox) -> list[str]:
    """Return why events cannot be stored or the dispatcher makes no progress; empty if the daemon is healthy."""
    late = heartbeats.late(heartbeats.monotonic_s(), UNHEALTHY_AFTER_S)
    problems = [f"the {part} has made no progress for {UNHEALTHY_AFTER_S:.0f} s" for part in late]
    if outbox.capacity.full:
        problems.append(f"events are refused: {outbox.capacity.full}")
    elif outbox.problem:
        problems.append("events cannot be stored; `px-sidecar status` says why")
    return problems


def status_of(state: DaemonState) -> Status:
    """Return the view for operators and scripts."""
    facts = {name: getattr(state, name) for name in StateFacts.__struct_fields__}
    status = Status(**facts, problems=problems_of(state))
    return _named(status, state.instance) if state.instance else status


def _named(status: Status, instance: str) -> Status:
    """Return the status of an instance, whose commands name it."""
    fleet, problem = status.fleet, status.last_problem
    return msgspec.structs.replace(
        status,
        reasons=[with_instance(reason, instance) for reason in status.reasons],
        warnings=[with_instance(warning, instance) for warning in status.warnings],
        problems=[
            msgspec.structs.replace(problem, message=with_instance(problem.message, instance))
            for problem in status.problems
        ],
        fleet=fleet and msgspec.structs.replace(fleet, problem=with_instance(fleet.problem, instance)),
        last_problem=problem and msgspec.structs.replace(problem, message=with_instance(problem.message, instance)),
    )


def snapshot_of(state: DaemonState) -> Snapshot:
    """Return the view for Prometheus."""
    return Snapshot(
        counters=state.counters,
        destination=state.state,
        oldest_pending_age_s=state.oldest_pending_age_s or 0.0,
        oldest_age_s_by_class=state.oldest_age_s_by_class,
        pace_per_second=state.pace,
        ceiling_per_second=state.ceiling,
        quota_used=state.quota.used,
        quota_limit=state.quota.limit,
        quota_reserve=state.quota.reserve,
        in_flight=state.in_flight,
        lanes_open=state.lanes,
        lanes_in_use=state.lanes_in_use,
        wal_bytes=state.outbox.wal_bytes or 0,
        outbox_bytes=state.outbox.bytes or 0,
        outbox_limit_bytes=state.outbox.max_bytes,
        set_aside=state.set_aside,
        full=state.full,
        last_delivered_ms=state.last_delivered_ms or 0,
        changed=state.changed,
        without_account=state.without_account,
        fleet=_fleet_snapshot(state.fleet) if state.fleet else None,
    )


def _fleet_snapshot(fleet: FleetFacts) -> FleetSnapshot:
    fields: dict[str, Any] = {name: getattr(fleet, name) for name in FleetSnapshot.__struct_fields__}
    fields["problem"] = bool(fleet.problem)
    return FleetSnapshot(**fields)

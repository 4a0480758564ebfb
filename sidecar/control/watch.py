"""Routes for live views: counts over time, the sampled feed, and the newest log lines.

The series is the only one of these that costs anything while no client asks: one addition a second.
"""

from collections.abc import AsyncIterator
from typing import Final

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.control.answers import Params, RouteTable, decode_query, json_response
from sidecar.control.status import total
from sidecar.http import Request, Response
from sidecar.observe import DaemonTelemetry, LiveFilter, LogLines
from sidecar.outbox import Outbox

__all__ = ["LiveQuery", "LogQuery", "WatchRoutes", "record_series"]

TICK_S: Final = 1.0


class LogQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/log``."""

    after: int = 0


LiveQuery = LiveFilter


class WatchRoutes:
    """``/v1/series``, ``/v1/live`` and ``/v1/log`` of a running daemon."""

    def __init__(self, telemetry: DaemonTelemetry, lines: LogLines) -> None:
        self._telemetry = telemetry
        self._lines = lines
        self.routes: RouteTable = {
            "/v1/series": ("GET", self._series),
            "/v1/live": ("GET", self._live),
            "/v1/log": ("GET", self._log),
        }

    async def _series(self, _request: Request, _params: Params) -> Response:
        return json_response(self._telemetry.series.as_dict())

    async def _log(self, _request: Request, params: Params) -> Response:
        return json_response({"lines": self._lines.after(decode_query(params, LogQuery).after)})

    async def _live(self, _request: Request, params: Params) -> Response:
        return Response(200, self._live_lines(decode_query(params, LiveQuery)), "application/x-ndjson")

    async def _live_lines(self, query: LiveFilter) -> AsyncIterator[bytes]:
        """Yield once a second what the sample holds, and how much it was taken from.

        The line of counts comes in a quiet second, too: writing it is how a reader that has left is noticed.
        """
        with self._telemetry.sample.subscribe(query) as reader:
            while True:
                yield b"".join(msgspec.json.encode(record) + b"\n" for record in reader.take())
                await trio.sleep(TICK_S)


async def record_series(telemetry: DaemonTelemetry, outbox: Outbox, clock: Clock) -> None:
    """Add the counters to the series once a second, without end."""
    while True:
        counters = outbox.counters  # replaced with each commit
        pending = sum(count for name, count in counters.items() if name.startswith("pending"))
        settled = {state: total(counters, state) for state in ("delivered", "dropped", "dead")}
        totals = settled | {"pending": pending, "accepted": pending + sum(settled.values())}
        telemetry.series.record(clock.wall_ms(), totals | {"requests": telemetry.statistics().requests})
        await trio.sleep(TICK_S)

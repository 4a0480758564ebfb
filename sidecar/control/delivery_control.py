"""Running delivery: pause and resume, what of them survives a restart; this host in its fleet."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

import trio

from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.control.answers import Params, RouteTable, json_response
from sidecar.control.status import FleetFacts
from sidecar.deliver.delivery_loop import Delivery
from sidecar.errors import Failed, SidecarError
from sidecar.http import Request, Response
from sidecar.mapping import Settings, compile_settings
from sidecar.outbox import Outbox, Store
from sidecar.outbox.forget import suppression
from sidecar.outbox.operations import last_action
from sidecar.receive import number_sources
from sidecar.units import counted

__all__ = [
    "DeliveryControl",
    "FleetRoutes",
    "FleetSource",
    "fleet_facts",
    "is_paused",
    "load_destination",
    "load_settings",
    "restored_destination",
    "save_delivery",
    "watch_pause",
]

log = logging.getLogger(__name__)

SINCE: Final = ("since_s", "operator_since_s")
SAVE_EVERY_S: Final = 1.0
DESTINATION: Final = "destination"  # the outbox's meta key of the destination's state


class DeliveryControl:
    """Pauses and resumes delivery; both survive restarts. ``renew_key`` reads the API key again, before a resume."""

    def __init__(
        self,
        delivery: Delivery,
        outbox: Outbox,
        clock: Clock,
        renew_key: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._renew_key = renew_key
        self._delivery = delivery
        self._outbox = outbox
        self._clock = clock

    async def pause(self) -> None:
        """Send nothing more until ``resume``. Requests in flight finish, and accepting continues."""
        now_s = self._clock.monotonic_s()
        self._delivery.dispatcher.destination.pause(now_s)
        self._delivery.report_state(now_s)
        await self._save()

    async def resume(self) -> None:
        """Lift the operator's pause; another pause, and an outage, are probed at once, with the API key read again."""
        if self._renew_key is not None:
            await self._renew_key()
        now_s = self._clock.monotonic_s()
        self._delivery.dispatcher.destination.resume(now_s)
        self._delivery.report_state(now_s)
        await self._save()

    async def _save(self) -> None:
        self._delivery.wake()
        saved = saved_destination(self._delivery, self._clock)
        await self._outbox.write(lambda store, _now_ms: store.set_meta(DESTINATION, saved))


def saved_destination(delivery: Delivery, clock: Clock) -> str:
    """Return the destination's state as it is stored: the times since when it is paused as epoch milliseconds."""
    saved = delivery.dispatcher.destination.saved()
    now_s, now_ms = clock.monotonic_s(), clock.wall_ms()
    for name in SINCE:
        if name in saved:
            saved[f"{name.removesuffix('_s')}_ms"] = round(now_ms - 1000 * (now_s - saved.pop(name)))
    return json.dumps(saved)


def restored_destination(saved: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Return a loaded state with its times as monotonic seconds of this process, which begins where they ended."""
    now_s, now_ms = clock.monotonic_s(), clock.wall_ms()
    restored = dict(saved)
    for name in SINCE:
        since_ms = restored.pop(f"{name.removesuffix('_s')}_ms", None)
        if isinstance(since_ms, int | float):
            restored[name] = now_s - max(0.0, now_ms - since_ms) / 1000
    return restored


def load_destination(store: Store) -> dict[str, Any]:
    """The saved destination state; empty if there is none.

    Where the outbox was damaged the state may be missing, corrupt or of an earlier time. The audit trail, which lies in
    other pages, then decides about an operator's pause. Raises sqlite3.Error.
    """
    text = store.get_meta(DESTINATION)
    try:
        saved = json.loads(text or "{}")
    except ValueError:
        saved = None
    if text is not None and isinstance(saved, dict) and not store.notice:
        return saved
    saved = saved if isinstance(saved, dict) else {}
    paused = last_action(store, ("pause", "resume")) == "pause"
    if paused and not saved.get("operator"):
        saved["operator"] = True
        with store.transaction():  # at once: the next start has no notice of the damage
            store.set_meta(DESTINATION, json.dumps(saved))
        log.warning("Delivery stays paused, as the audit trail says; run `px-sidecar resume` to start it.")
    return saved


def is_paused(store: Store) -> bool:
    """Return whether an operator's pause is in force at the next start. Raises sqlite3.Error."""
    try:
        saved = json.loads(store.get_meta(DESTINATION) or "{}")
    except ValueError:
        return False
    return isinstance(saved, dict) and bool(saved.get("operator"))


async def watch_pause(delivery: Delivery, outbox: Outbox, clock: Clock) -> NoReturn:
    """Save a pause when it begins and when it ends: after a crash the next process knows since when it lasts."""
    known = delivery.dispatcher.destination.saved().get("reason")
    while True:
        await trio.sleep(SAVE_EVERY_S)
        reason = delivery.dispatcher.destination.saved().get("reason")
        if reason == known:
            continue
        saved = saved_destination(delivery, clock)
        try:
            await outbox.write(lambda store, _now_ms: store.set_meta(DESTINATION, saved))  # noqa: B023 - awaited here
        except SidecarError:
            continue  # the outbox reports what is wrong with the disk
        known = reason


async def save_delivery(delivery: Delivery, outbox: Outbox, clock: Clock) -> None:
    """Save what the next process needs: the destination's state, and the day's quota without unused leases.

    An error is logged and not raised: the next process then counts too many requests, never too few.
    """
    dispatcher = delivery.dispatcher
    if unanswered := dispatcher.statistics().under_way:
        log.warning(
            "%s had no answer from PX within deliver.stop_timeout; the next start sends the events again, and PX may then "
            "have them twice.",
            counted(unanswered, "request"),
        )
    saved, lease = saved_destination(delivery, clock), dispatcher.limiter.closing_lease()

    def save(store: Store, _now_ms: int) -> None:
        store.set_meta(DESTINATION, saved)
        store.save_quota(lease.rows, drop_before=lease.drop_before, replaces_all=lease.replaces_all)

    try:
        await outbox.write(save)
    except SidecarError as error:
        log.error(
            "The state of delivery was not saved, so the day's quota counts more requests than were sent: %s", error
        )


def load_settings(config: Config, store: Store) -> Settings:
    """The settings at the start. Raises ConfigError where mapping rules contradict each other."""
    with store.transaction():
        numbers = number_sources(config.source, store.source)
    return compile_settings(config, numbers, store.source_products(), suppression(store))


# The fleet ------------------------------------------------------------------------------------------------------------


class FleetSource(Protocol):
    """The running part of a fleet."""

    def facts(self) -> dict[str, Any]:
        """Return the fields of ``FleetFacts``."""
        ...

    async def members(self) -> Sequence[Mapping[str, Any]]:
        """Return all members as the engine knows them. Raises SidecarError if it does not answer."""
        ...


def fleet_facts(fleet: FleetSource | None) -> FleetFacts | None:
    """Return the state of this host in its fleet; None without one."""
    return FleetFacts(**fleet.facts()) if fleet else None


class FleetRoutes:
    """``GET /v1/fleet``."""

    def __init__(self, fleet: FleetSource | None) -> None:
        self._fleet = fleet
        self.routes: RouteTable = {"/v1/fleet": ("GET", self._status)}

    async def _status(self, _request: Request, _params: Params) -> Response:
        if self._fleet is None:
            raise Failed("This daemon is not in a fleet; set fleet.url and fleet.name, and restart it.")
        try:
            members: Sequence[Mapping[str, Any]] | None = await self._fleet.members()
            error = None
        except SidecarError as failure:
            members, error = None, str(failure)
        return json_response({"fleet": fleet_facts(self._fleet), "members": members, "error": error})

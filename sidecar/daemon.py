"""The daemon: which parts exist, which tasks run, and in which order they stop.

The path of an event through the packages::

    receive ──► outbox ──► deliver ──► px
                  ▲            │ mapping decides what to send
                  └─ settled ◄─┘

``build`` constructs the application: every object gets what it needs in its constructor, and nothing is wired
afterwards. ``serve`` runs it. A start takes the lock and binds the sockets (``receive/claim.py``), opens the file while clients wait, starts
all tasks, and reports READY once events can be accepted and stored. A stop has three steps; each waits for the one before::

    1. delivery sends nothing more; requests in flight finish, or their deadline passes. Events are accepted meanwhile,
       so that a restart refuses clients only between the end of this process and the first steps of the next
    2. the listeners accept nothing more; clients in their queues, and requests that were read, are stored and answered
    3. the writer commits what is queued and stops; the file is checkpointed and closed

With ``fleet.on_stop = "drain"`` step 2 comes first. A second signal ends everything at once. Every answered event is on
disk at any moment, so this can cause duplicates at PX but no loss.
"""

import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import trio

from sidecar import __version__
from sidecar.clock import Clock, SystemClock
from sidecar.config import Config, ConfigFile, DeliverConfig, Secret, fleet_password
from sidecar.control.audit import AuditRoutes, PagedCalls
from sidecar.control.backlog import BacklogRoutes
from sidecar.control.checks import CheckRoutes
from sidecar.control.config_calls import ConfigRoutes
from sidecar.control.dead_groups import DeadGroupRoutes
from sidecar.control.delivery_control import (
    DeliveryControl,
    FleetRoutes,
    load_destination,
    load_settings,
    restored_destination,
    save_delivery,
    watch_pause,
)
from sidecar.control.export import lift_export
from sidecar.control.idle_rules import IdleRulesRoutes, watch_rules
from sidecar.control.limits import watch_limits, watch_names
from sidecar.control.mapping_preview import MappingRoutes
from sidecar.control.outbox_admin import OutboxAdmin
from sidecar.control.pages import UNHEALTHY_AFTER_S, health_problems, pages_of
from sidecar.control.px_calls import PxRoutes
from sidecar.control.reload import Reloaded, Reloader
from sidecar.control.server import ControlRoutes, refuse_while_starting, serve_control
from sidecar.control.signals import end_if_disk_hangs, handle_signals
from sidecar.control.state import Notices, StateReader, status_line
from sidecar.control.trace import TraceRoutes
from sidecar.control.watch import WatchRoutes, record_series
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.delivery_loop import Delivery, DeliverySignals
from sidecar.deliver.destination import Destination
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.errands import Errands
from sidecar.deliver.limiter import LocalLimiter, SharedLimiter, SharedPace
from sidecar.deliver.quota import DailyCaps, Quota, QuotaRow
from sidecar.http import IdleConnections, Limits, Shutdown
from sidecar.http.collector import CollectionPace
from sidecar.mapping import LiveSettings
from sidecar.observe import (
    WRITER,
    DaemonTelemetry,
    Heartbeats,
    LogLines,
    LogMasks,
    Telemetry,
    feed_watchdog,
    log_standstill,
    probe,
)
from sidecar.outbox import (
    Capacity,
    ClockTrust,
    Lock,
    Outbox,
    Runner,
    StorageUnavailable,
    Store,
    ThreadRunner,
    damage_marker,
    hold_lock,
    load_clock_record,
    open_outbox,
    run_housekeeping,
)
from sidecar.outbox.operations import add_audit
from sidecar.px import Network
from sidecar.px.key_renewal import KeyRenewal
from sidecar.px.transport import HttpxNetwork
from sidecar.receive import (
    BoundSockets,
    ClientMemory,
    EventParser,
    IngestServer,
    Routes,
    StartingServer,
    bind_control,
    bind_control_read,
    bind_events,
    keep_open,
    watch_inherited,
)
from sidecar.receive.claim import Claimed
from sidecar.receive.listeners import renew_certificate, try_certificate
from sidecar.systemd import Notifier, watchdog_s

if TYPE_CHECKING:  # without [fleet] no code of the fleet is loaded
    from sidecar.fleet.runner import Fleet

__all__ = [
    "Application",
    "Seams",
    "build",
    "build_dispatcher",
    "open_store",
    "reload",
    "serve",
    "serve_daemon",
    "serve_sockets",
]

log = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
Bind = Callable[[], AbstractContextManager[socket.socket | None]]
DRAIN_LOOK_S = 0.05
RECOVERY_STEP_S = 60.0


class Seams(NamedTuple):
    """Everything that connects to the outside world; tests and the simulation pass fakes.

    ``config_file`` is the file that the configuration came from, ``read_config`` what a reload that an operator asks
    for over the control socket reads, ``log_lines`` keeps the newest lines of the log.
    """

    store: Store
    network: Network
    clock: Clock
    runner: Runner
    random: Random
    notifier: Notifier = Notifier({})
    config_file: ConfigFile | None = None
    read_config: Callable[[], Awaitable[Config]] | None = None
    log_lines: LogLines | None = None
    key: KeyRenewal | None = None
    masks: LogMasks | None = None
    # Joins a fleet with the configuration in force; None without [fleet].
    join_fleet: "Callable[[Callable[[], Config]], Fleet] | None" = None

    @property
    def instance(self) -> str:
        """The name of this daemon (``--instance``), which its hints carry; empty for the usual one."""
        return self.config_file.instance if self.config_file else ""


class Application(NamedTuple):
    """All parts of one daemon, connected but not running."""

    settings: LiveSettings
    clock: Clock
    store: Store
    telemetry: DaemonTelemetry
    outbox: Outbox
    parser: EventParser
    delivery: Delivery
    errands: Errands
    notices: Notices
    state: StateReader
    admin: OutboxAdmin
    delivery_control: DeliveryControl
    control: ControlRoutes
    reloader: Reloader
    notifier: Notifier
    idle_connections: IdleConnections
    fleet: "Fleet | None" = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.settings.now.config


def build(config: Config, seams: Seams) -> Application:
    """Construct the application. Raises ConfigError if mapping rules contradict each other."""
    store, clock = seams.store, seams.clock
    settings = LiveSettings(load_settings(config, store))
    if (note := lift_export(store)) is not None:
        log.info("The export of %d events to %s is over: this daemon was started.", note.moved, note.file)
    telemetry = DaemonTelemetry(clock, lambda: settings.now.mapper.redact, version=__version__)
    capacity = Capacity(store.path, config.outbox.max_bytes, when_full=config.outbox.when_full)
    fleet = seams.join_fleet(lambda: settings.now.config) if seams.join_fleet else None
    trust = ClockTrust(clock, load_clock_record(store))
    dispatcher = build_dispatcher(settings, telemetry, store, clock, seams.random, fleet, trust)
    signals = DeliverySignals(dispatcher)
    outbox = Outbox(*(store, clock, capacity, seams.runner), telemetry=telemetry, listener=signals, clock_trust=trust)
    renew_key = partial(_renew_key, seams.key, settings) if seams.key else None
    delivery = Delivery(dispatcher, signals, outbox, seams.network, clock, telemetry, renew_key)
    errands = Errands(delivery, clock, telemetry)
    notices = Notices(startup=store.notice)
    known = (store, outbox, settings, clock, notices, seams.instance)
    state = StateReader(*known, delivery=delivery, telemetry=telemetry, fleet=fleet)
    admin = OutboxAdmin(outbox, settings, delivery)
    delivery_control = DeliveryControl(delivery, outbox, clock, renew_key)
    reloader = Reloader(settings, outbox, delivery, notices, seams.notifier, clock, seams.key, seams.masks)
    audit = AuditRoutes(outbox, PagedCalls())
    parts = (
        audit,
        WatchRoutes(telemetry, seams.log_lines or LogLines()),
        DeadGroupRoutes(outbox, settings),
        BacklogRoutes(outbox, settings, clock, delivery),
        FleetRoutes(fleet),
        MappingRoutes(outbox, settings, clock, seams.config_file),
        IdleRulesRoutes(outbox, settings),
        CheckRoutes(seams.config_file, state, outbox, settings),
        ConfigRoutes(settings, seams.config_file, seams.read_config and partial(reloader.reload, seams.read_config)),
        PxRoutes(seams.network, admin, outbox, settings, clock, errands),
        TraceRoutes(outbox, settings, clock, state, telemetry.refusals.describe),
    )
    more = [part.routes for part in parts]
    control = ControlRoutes(
        *(state, admin, settings, clock), delivery=delivery_control, feed=telemetry.feed, audit=audit, more=more
    )
    return Application(
        settings=settings,
        clock=clock,
        store=store,
        telemetry=telemetry,
        outbox=outbox,
        parser=EventParser(settings),
        delivery=delivery,
        errands=errands,
        notices=notices,
        state=state,
        admin=admin,
        delivery_control=delivery_control,
        control=control,
        reloader=reloader,
        notifier=seams.notifier,
        fleet=fleet,
        idle_connections=IdleConnections(Limits().idle_s),
    )


def build_dispatcher(
    settings: LiveSettings,
    telemetry: Telemetry,
    store: Store,
    clock: Clock,
    random: Random,
    shared: SharedPace | None = None,
    clock_trust: ClockTrust | None = None,
) -> Dispatcher:
    """Construct the dispatcher with the day's quota and the destination state that the previous process saved."""

    def deliver_config() -> DeliverConfig:
        return settings.now.config.deliver

    trust = clock_trust or ClockTrust(clock, load_clock_record(store))
    now_s = clock.monotonic_s()
    rows = [QuotaRow(*row) for row in store.quota_rows()]
    bucket = Bucket(deliver_config().host_per_second, now_s, spaced=deliver_config().hosts > 1)
    quota = Quota(deliver_config, clock=clock, rows=rows, trust=trust)
    return Dispatcher(
        caps=DailyCaps(store.cap_rows()),
        settings=settings,
        telemetry=telemetry,
        limiter=(
            SharedLimiter(bucket, quota, deliver_config, shared)
            if shared
            else LocalLimiter(bucket, quota, deliver_config)
        ),
        destination=Destination(
            now_s=now_s,
            config=deliver_config,
            random=random.random,
            saved=restored_destination(load_destination(store), clock),
        ),
        clock=clock,
        random=random.random,
        clock_trust=trust,
    )


async def serve(app: Application, ingest: Callable[[], Awaitable[None]]) -> None:
    """Run until ``ingest``, which serves the listeners, returns; then stop in order.

    Raises StoreFailed if the disk fails permanently. Cancellation loses no answered event.
    """
    # One nursery per step of the stop: an outer one keeps running until the inner one has ended.
    async with trio.open_nursery() as writer:
        writer.start_soon(app.outbox.run)
        if app.fleet:
            writer.start_soon(app.fleet.run, app.outbox.write, app.errands.demand, app.delivery.wake)
        async with trio.open_nursery() as delivery:
            await delivery.start(partial(app.delivery.run, stop_timeout_s=app.config.deliver.stop_timeout))
            async with trio.open_nursery() as background:
                background.start_soon(run_housekeeping, app.outbox, app.settings)
                background.start_soon(app.idle_connections.run)
                background.start_soon(watch_limits, app.outbox, app.settings, app.clock, app.notices)
                background.start_soon(watch_pause, app.delivery, app.outbox, app.clock)
                background.start_soon(watch_names, app.outbox, app.notices)
                background.start_soon(watch_rules, app.outbox, app.settings, app.notices)
                background.start_soon(
                    probe, app.telemetry.heartbeats, WRITER, partial(app.outbox.write, _no_op), PROBE_EVERY_S
                )
                background.start_soon(_keep_dispatcher_awake, app.delivery)
                background.start_soon(record_series, app.telemetry, app.outbox, app.clock)
                background.start_soon(_report_to_systemd, app)
                background.start_soon(_log_standstill, app.telemetry.heartbeats)
                await ingest()
                background.cancel_scope.cancel()
            if app.fleet and _drains(app):
                await _drain(app, app.fleet)
            app.delivery.stop()
        if app.fleet:
            await app.fleet.leave(app.outbox.write)
        await save_delivery(app.delivery, app.outbox, app.clock)
        app.outbox.stop()


def _drains(app: Application) -> bool:
    """True if delivery continues after the listeners are closed, until nothing is ready."""
    return app.fleet is not None and app.config.fleet.on_stop == "drain"


async def _drain(app: Application, fleet: "Fleet") -> None:
    """Ask for slots as high priority until nothing is pending or PX takes nothing, for ``deliver.stop_timeout`` at most."""
    dispatcher, now_s = app.delivery.dispatcher, app.clock.monotonic_s
    until_s, opens = now_s() + app.config.deliver.stop_timeout, dispatcher.destination.may_send_before
    fleet.drain()
    with trio.move_on_after(app.config.deliver.stop_timeout):
        # Polled: nothing reports that nothing is left. Of pending events none may be ready: while a page is read, before a retry.
        while app.store.pending() and (dispatcher.has_requests_out or opens(until_s, now_s())):  # noqa: ASYNC110
            await trio.sleep(DRAIN_LOOK_S)


async def _keep_dispatcher_awake(delivery: Delivery) -> None:
    """Wake the dispatcher every second so that its heartbeat stays fresh while idle, and during a stop."""
    while True:
        delivery.stay_awake()
        await trio.sleep(PROBE_EVERY_S)


def _no_op(_store: Store, _now_ms: int) -> None:
    """Do nothing in a transaction, which proves that the writer works."""


async def _log_standstill(heartbeats: Heartbeats) -> None:
    await log_standstill(heartbeats, limit_s=UNHEALTHY_AFTER_S, every_s=PROBE_EVERY_S)


async def _report_to_systemd(app: Application) -> None:
    """Feed the watchdog while the daemon is healthy by its heartbeats, and update the line that ``systemctl status`` shows."""
    async with trio.open_nursery() as nursery:
        limit_s = watchdog_s()
        if limit_s is not None:
            nursery.start_soon(
                partial(
                    feed_watchdog,
                    app.telemetry.heartbeats,
                    app.notifier.watchdog,
                    limit_s=min(UNHEALTHY_AFTER_S, limit_s),
                    # Every second, so that a process that was stopped for less than the limit is not late on waking.
                    every_s=min(limit_s / 3, PROBE_EVERY_S),
                )
            )
        while app.notifier.enabled:
            await trio.sleep(PROBE_EVERY_S)
            line = "; ".join([status_line(await app.state.read()), *app.notices.lasting()])
            if line != app.notifier.last_status:
                app.notifier.status(line)


async def reload(app: Application, read: Callable[[], Awaitable[Config]]) -> Reloaded:
    """Apply the configuration that ``read`` returns, as SIGHUP asks for, as far as a running daemon can.

    Logs errors, and returns them. The audit trail names the signal: nothing tells who has sent it.
    """
    reloaded = await app.reloader.reload(read)
    if not reloaded.error:
        try:
            await app.outbox.write(lambda store, now_ms: add_audit(store, now_ms, "SIGHUP", "reload", ""))
        except StorageUnavailable as error:
            log.error("The reload is in force, but is missing in the audit trail: %s", error)
    return reloaded


async def _renew_key(key: KeyRenewal, settings: LiveSettings) -> None:
    await key.renew(settings.now.config.px)


def _ingest_server(app: Application, shutdown: Shutdown) -> IngestServer:
    problems = partial(health_problems, app.telemetry.heartbeats, app.outbox)
    pages = pages_of(app.state, app.telemetry.metrics, problems)
    memory = ClientMemory(app.config.listen.max_memory)
    listen = app.config.listen
    parts = (app.parser, app.outbox, app.telemetry)
    routes = Routes(*parts, pages, memory, own_hosts=listen.hosts(), foreign_hosts=listen.allow_remote)
    return IngestServer(
        routes,
        *parts,
        memory,
        max_request_bytes=app.config.outbox.max_request_bytes,
        shutdown=shutdown,
        idle=app.idle_connections,
    )


async def serve_sockets(
    app: Application,
    sockets: BoundSockets,
    control: socket.socket,
    control_read: socket.socket | None = None,
    *,
    descriptors: int,
    stop: trio.Event,
    starting: StartingServer | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve all listeners until ``stop`` is set, and return once every request that was read is answered.

    ``starting`` serves them already; without it that begins here.
    """
    front = starting or StartingServer()
    shutdown = front.shutdown
    server = _ingest_server(app, shutdown)
    listen = app.config.listen
    # The stack is left after the tasks that use its sockets have ended.
    with ExitStack() as reopened:
        async with trio.open_nursery() as nursery, trio.open_nursery() as watching:

            def keep(path: str, bind: Bind, serve_again: Callable[[socket.socket], Awaitable[None]]) -> None:
                def again(listener: socket.socket) -> None:
                    nursery.start_soon(serve_again, listener)

                watching.start_soon(keep_open, path, bind, again, reopened)

            async def control_again(listener: socket.socket) -> None:
                await serve_control(app.control, listener, shutdown=shutdown)

            async def control_read_again(listener: socket.socket) -> None:
                await serve_control(app.control.reading(), listener, shutdown=shutdown)

            await nursery.start(partial(serve_control, app.control, control, shutdown=shutdown))
            if control_read is not None:
                await nursery.start(partial(serve_control, app.control.reading(), control_read, shutdown=shutdown))
                keep(listen.control_read, partial(bind_control_read, listen), control_read_again)
            front.open(server)
            if starting is None:
                await nursery.start(partial(front.serve, sockets, descriptors=descriptors))
            keep(listen.control, partial(bind_control, listen), control_again)
            if "unix" in sockets.inherited:
                watching.start_soon(watch_inherited, sockets.unix, app.notices.sockets_unreachable)
            elif listen.unix:
                keep(listen.unix, partial(bind_events, listen), partial(server.serve_reopened, descriptors=descriptors))
            app.notifier.ready("accepting events")
            log.info("Accepting events at %s.", ", ".join(sockets.names()))
            task_status.started()
            await stop.wait()
            app.notifier.stopping("finishing requests in flight")
            if not _drains(app):
                app.delivery.stop()
                await app.delivery.ended.wait()
            watching.cancel_scope.cancel()
            shutdown.set()
        await front.ended.wait()


@asynccontextmanager
async def open_store(config: Config, runner: Runner, notifier: Notifier) -> AsyncIterator[Store]:
    """Lock and open the outbox file for the length of the block; see ``open_locked``."""
    with hold_lock(config) as lock:
        async with open_locked(config, lock, runner, notifier) as store:
            yield store


@asynccontextmanager
async def open_locked(config: Config, lock: Lock, runner: Runner, notifier: Notifier) -> AsyncIterator[Store]:
    """Open the locked outbox file for the length of the block; checkpoint and close it at the end.

    A damaged file is recovered first, which can take minutes: systemd's start timeout is extended meanwhile. Raises
    Failed or ConfigError. Closing is shielded from cancellation.
    """
    path = lock.path

    def recovering() -> None:
        notifier.status("recovering a damaged outbox")
        notifier.extend_timeout(RECOVERY_STEP_S)

    open_file = partial(
        open_outbox,
        path,
        durability=config.outbox.durability,
        progress=recovering,
        claim=lock.claim,
        configured=Path(config.outbox.path),
    )
    store = await runner.run(open_file)
    if store.notice:
        log.error("%s", store.notice)
    try:
        with damage_marker(path):
            yield store
    finally:
        with trio.CancelScope(shield=True):
            await runner.run(store.close)


async def serve_daemon(
    config: Config, key: Secret, file: ConfigFile, claimed: Claimed, log_lines: LogLines, masks: LogMasks
) -> None:
    """Run the daemon of this process, which holds ``claimed``, until SIGTERM or SIGINT.

    SIGHUP reloads the configuration from ``file``, and the TLS certificate from its files. Raises Failed or
    ConfigError if the daemon cannot start, StoreFailed if the disk fails permanently.
    """
    runner, notifier = ThreadRunner(), Notifier()
    sockets = claimed.sockets

    async def read_again() -> Config:
        # In a thread that is left behind on cancellation: a disk that hangs must stop neither the loop nor the end.
        changed = await trio.to_thread.run_sync(file.load, abandon_on_cancel=True)
        await trio.to_thread.run_sync(try_certificate, sockets, config.listen, abandon_on_cancel=True)
        renew_certificate(sockets, config.listen)  # not in a thread: handshakes use it at the same time
        return changed

    # The outer one lasts until the file is closed, also when a second signal cancels everything else.
    async with trio.open_nursery() as watching:
        async with trio.open_nursery() as nursery:
            starting = StartingServer()
            await nursery.start(partial(starting.serve, sockets, descriptors=claimed.descriptors))
            async with AsyncExitStack() as stack:
                networks: list[HttpxNetwork] = []

                async def connect() -> None:
                    networks.append(await trio.to_thread.run_sync(HttpxNetwork, config.px, key, config.deliver.timeout))

                async with refuse_while_starting(claimed.control, claimed.control_read), trio.open_nursery() as opening:
                    opening.start_soon(connect)  # reading certificates takes as long as opening the file
                    store = await stack.enter_async_context(open_locked(config, claimed.lock, runner, notifier))
                random = Random()  # noqa: S311 - jitter, not secrets
                seams = Seams(store, networks[0], SystemClock(), runner, random, notifier, file, read_again, log_lines)
                renewal = KeyRenewal(networks[0], key, os.environ, masks.add)
                seams = seams._replace(key=renewal, masks=masks)
                if config.fleet.url:
                    seams = seams._replace(join_fleet=_fleet_of(config, renewal, seams))
                app = build(config, seams)
                stop = trio.Event()
                end = partial(os._exit, 1)
                watching.start_soon(end_if_disk_hangs, stop, runner, app.outbox, config.deliver.stop_timeout, end)
                nursery.start_soon(_collect_garbage_from, starting.opened)
                nursery.start_soon(handle_signals, partial(reload, app, read_again), stop, nursery.cancel_scope)
                sockets_of = partial(serve_sockets, app, sockets, claimed.control, claimed.control_read)
                await serve(app, partial(sockets_of, descriptors=claimed.descriptors, stop=stop, starting=starting))
                nursery.cancel_scope.cancel()
        watching.cancel_scope.cancel()


async def _collect_garbage_from(ready: trio.Event) -> None:
    """Let garbage be collected from the moment at which the daemon is ready on.

    What the start has created lives to the end: frozen, it is not examined again by each full collection, which would
    hold all connections up for as long as a commit takes.
    """
    await ready.wait()
    gc.freeze()
    gc.callbacks.append(CollectionPace())
    gc.enable()


def _fleet_of(config: Config, renewal: KeyRenewal, seams: Seams) -> "Callable[[Callable[[], Config]], Fleet]":
    """Return what joins the fleet. Raises ConfigError if the engine's password cannot be read."""
    from sidecar.fleet.join import join_fleet

    password = fleet_password(config.fleet, os.environ)
    if seams.masks is not None:
        seams.masks.add([password])
    return join_fleet(seams.store, seams.clock, key=lambda: renewal.key, password=password, random=seams.random.random)

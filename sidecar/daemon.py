"""The daemon: who runs, who stops first, in what order.

The way of an event through the rooms::

    receive ──► outbox ──► deliver ──► px
                  ▲            │ mapping says what to send
                  └─ settled ◄─┘

Starting: the lock, the file, the sockets, then everybody at once, and READY when events can be accepted and stored.

Stopping has an order; each step waits for the one before::

    1. the listeners accept no more; requests already read are stored and answered
    2. nothing more is sent; what is in flight comes back, or its deadline passes
    3. the writer commits what is left and stops; the file is checkpointed and closed

A second signal ends all of it at once. What was answered is on disk at any moment, so that costs repeats at most.
"""

import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from sidecar import __version__
from sidecar.clock import Clock, SystemClock
from sidecar.config import Config, Secret, reloaded
from sidecar.control.desk import DESTINATION, Desk
from sidecar.control.limits import warn_of_limits
from sidecar.control.pages import pages_of
from sidecar.control.server import serve_control
from sidecar.deliver.bucket import Bucket
from sidecar.deliver.destination import Destination
from sidecar.deliver.dispatcher import Dispatcher
from sidecar.deliver.quota import Quota, QuotaRow
from sidecar.deliver.shell import Delivery
from sidecar.errors import Failed, SidecarError
from sidecar.http import Stopping
from sidecar.mapping import compile_mapping
from sidecar.observe import DISPATCHER, WRITER, Feed, Marks, Metrics, feed_watchdog, prove
from sidecar.outbox import Keeper, Outbox, Room, Runner, Store, ThreadRunner, marking, open_outbox, take_lock
from sidecar.px import Answer, Network, NotSent, Reply, Unknown
from sidecar.px.transport import HttpxNetwork
from sidecar.receive import Front, Intake, Opened, Routes, Sources, bind_control, bind_listeners, raise_descriptor_limit
from sidecar.receive.listeners import renew_certificate
from sidecar.systemd import Notifier, inherited_sockets, watchdog_s

__all__ = ["Daemon", "open_store", "serve_daemon"]

log = logging.getLogger(__name__)

PROOF_EVERY_S = 1.0
RECOVERY_STEP_S = 60.0
UNHEALTHY_AFTER_S = 15.0


@asynccontextmanager
async def open_store(config: Config, runner: Runner, notifier: Notifier) -> AsyncIterator[Store]:
    """The outbox file, held exclusively; checkpointed and closed at the end. Raises Failed or ConfigError.

    A damaged one is recovered first, which may take long: systemd is asked to wait while it goes on.
    """
    path = Path(config.outbox.path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(
            f"The outbox folder {path.parent} cannot be made ({error.strerror}); make it, or give another outbox.path."
        ) from None
    lock = take_lock(path)
    try:

        def recovering() -> None:
            notifier.status("recovering a damaged outbox")
            notifier.extend_timeout(RECOVERY_STEP_S)

        call = partial(open_outbox, path, durability=config.outbox.durability, working=recovering)
        store = await runner.run(call)
        if store.notice:
            log.error("%s", store.notice)
        try:
            with marking(path):
                yield store
        finally:
            with trio.CancelScope(shield=True):
                await runner.run(store.close)
    finally:
        lock.release()


class Daemon:
    """All rooms of one daemon, joined; ``run`` brings them to life.

    The world comes in through the arguments: the ``network`` to PX, the ``clock``, the ``store`` and the ``runner`` of
    its calls; tests and the simulation give others.
    """

    def __init__(
        self,
        config: Config,
        *,
        store: Store,
        network: Network,
        clock: Clock,
        runner: Runner,
        random: Random,
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.store = store
        self.feed = Feed()
        self.metrics = Metrics(version=__version__)
        self.notifier = notifier or Notifier({})
        self.marks = Marks(clock.monotonic_s)
        self.mapper = compile_mapping(config.mapping, config.people)
        self.room = Room(store.path, config.outbox.max_bytes, when_full=config.outbox.when_full)
        self.outbox = Outbox(store, clock, self.room, runner)
        self.outbox.on_commit = self.metrics.committed
        self._keeper = Keeper(
            delivered_ms=round(config.outbox.keep_delivered * 1000),
            ids_ms=round(config.outbox.keep_ids * 1000),
            dead_ms=round(config.outbox.keep_dead * 1000),
            max_users=config.identity.max_users,
        )
        self.outbox.keep = self._keep
        with store.transaction():
            sources = Sources(config.source, store.source)
        self.products: dict[int, str] = store.source_products()
        self.intake = Intake(
            sources, self.mapper, max_event_bytes=config.outbox.max_event_bytes, count=self.metrics.refused
        )
        self.delivery = Delivery(self._dispatcher(random), self.outbox, network, clock)
        if config.outbox.when_full == "drop_oldest":
            self.outbox.protected = self.delivery.dispatcher.loaded_ids
        self.delivery.on_step = partial(self.marks.tick, DISPATCHER)
        self.delivery.on_reply = self._heard_of_px
        self._told_of = ("", "")
        self.desk = Desk(self)
        self.desk.notices.extend([store.notice] if store.notice else [])
        self._said_of_reload = ""
        self.delivery.on_retry = self.desk.retried
        self.intake.tell = self.desk.accepted

    def _dispatcher(self, random: Random) -> Dispatcher:
        """The dispatcher, going on where the process before left the day's quota and the destination."""
        deliver, now_s = self.config.deliver, self.clock.monotonic_s()
        return Dispatcher(
            config=deliver,
            mapper=self.mapper,
            product_of=self.product_of,
            bucket=Bucket(deliver.host_per_second, now_s),
            quota=Quota(
                deliver.host_per_day,
                clock=self.clock,
                day=deliver.day,
                pace=deliver.pace,
                reserve_for_high=deliver.reserve_for_high,
                rows=[QuotaRow(*row) for row in self.store.quota_rows()],
            ),
            destination=Destination(
                now_s=now_s,
                per_second=deliver.host_per_second,
                initial_s=deliver.retry_initial,
                max_s=deliver.retry_max,
                random=random.random,
                saved=_saved(self.store),
            ),
            clock=self.clock,
            random=random.random,
        )

    def product_of(self, source: int) -> str:
        """The property key that the events of a source belong to; those without a source belong to ``[px]``."""
        return self.products.get(source) or self.config.px.property_key

    async def reload(self, read: Callable[[], Config]) -> None:
        """Take over what a running daemon can (``config.reloaded``) from the configuration that ``read`` gives.

        A configuration that cannot be used is refused, and the old one goes on. The log and every status say why, and
        which changes wait for a restart.
        """
        self.notifier.reloading()
        try:
            config = read()
            mapper = compile_mapping(config.mapping, config.people)
            sources = await self.outbox.write(lambda store, _now_ms: Sources(config.source, store.source))
            self.products = await self.outbox.read(Store.source_products)
        except SidecarError as error:
            log.error("The configuration was not reloaded, the old one goes on: %s", error)
            self._note_of_reload(f"The configuration was not reloaded, the old one goes on: {error}")
            self.notifier.ready(f"reload refused: {error}")
            return
        self.config, waiting = reloaded(self.config, config)
        said = f"Changes that wait for a restart: {', '.join(waiting)}." if waiting else ""
        self._note_of_reload(said)
        if said:
            log.warning("%s", said)
        self.mapper = self.intake.mapper = mapper
        self.intake.sources = sources
        self.delivery.dispatcher.reconfigure(self.config.deliver, mapper)
        self.delivery.wake()
        log.info("The configuration was reloaded.")
        self.notifier.ready("accepting events, configuration reloaded")

    def _note_of_reload(self, said: str) -> None:
        """Have every status say what is to be known of the last reload, until the next one."""
        kept = [notice for notice in self.desk.notices if notice != self._said_of_reload]
        self.desk.notices[:] = [*kept, said] if said else kept
        self._said_of_reload = said

    def _keep(self, store: Store, now_ms: int) -> bool:
        return self._keeper.step(store, now_ms, hurry=self.outbox.short)

    def _heard_of_px(self, reply: Reply, took_s: float) -> None:
        """Count a reply, and log where it has changed what delivery does."""
        destination = self.delivery.dispatcher.destination.describe(self.clock.monotonic_s())
        if destination.state != "probing" and (destination.state, destination.reason) != self._told_of:
            self._told_of = (destination.state, destination.reason)
            if destination.state == "open":
                log.info("Delivery to PX goes on.")
            else:
                level = logging.ERROR if destination.state == "paused" else logging.WARNING
                log.log(level, "Delivery is %s: %s", destination.state, destination.message)
        match reply:
            case Answer(status=status):
                self.metrics.px_answered(status, took_s)
            case NotSent():
                self.metrics.px_not_sent()
            case Unknown():
                self.metrics.px_unknown()

    def problems(self) -> list[str]:
        """Why events cannot be stored or the dispatcher does not decide; nothing if all is well."""
        late = self.marks.late(self.clock.monotonic_s(), UNHEALTHY_AFTER_S)
        problems = [f"the {part} has made no progress for {UNHEALTHY_AFTER_S:.0f} s" for part in late]
        if self.outbox.full:
            problems.append(f"events are refused: {self.outbox.full}")
        return problems

    async def run(self, front: Callable[[], Awaitable[None]]) -> None:
        """Live until ``front``, which serves the listeners, returns; then stop in order."""
        async with trio.open_nursery() as writer:
            writer.start_soon(self.outbox.run)
            async with trio.open_nursery() as delivery:
                run = partial(self.delivery.run, stop_timeout_s=self.config.deliver.stop_timeout)
                await delivery.start(run)
                async with trio.open_nursery() as background:
                    background.start_soon(self._prove)
                    background.start_soon(warn_of_limits, self, self.desk.limits)
                    await front()
                    background.cancel_scope.cancel()
                self.delivery.stop()
            try:
                await self._save()
            except SidecarError as error:
                log.error(
                    "What the next process should know was not stored; the quota of the day counts more: %s", error
                )
            self.outbox.stop()

    async def _save(self) -> None:
        """Keep what the next process should know: the destination's state, and the leases that were not used."""
        dispatcher = self.delivery.dispatcher
        saved, lease = json.dumps(dispatcher.destination.saved()), dispatcher.quota.given_back()

        def save(store: Store, _now_ms: int) -> None:
            store.set_meta(DESTINATION, saved)
            store.save_quota(lease.rows, drop_before=lease.drop_before, replaces_all=lease.replaces_all)

        await self.outbox.write(save)

    async def _prove(self) -> None:
        """Prove again and again that the writer writes and the dispatcher decides, and tell systemd."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prove, self.marks, WRITER, partial(self.outbox.write, _no_op), PROOF_EVERY_S)
            nursery.start_soon(self._wake_dispatcher)
            if self.notifier.listened_to:
                nursery.start_soon(self._tell_status)
            limit_s = watchdog_s()
            if limit_s is not None:
                nursery.start_soon(
                    partial(feed_watchdog, self.marks, self.notifier.watchdog, limit_s=limit_s, every_s=limit_s / 3)
                )

    async def _tell_status(self) -> None:
        """Keep the line that ``systemctl status`` shows up to date."""
        while True:
            await trio.sleep(PROOF_EVERY_S)
            line = "; ".join([await self.desk.line(), *self.desk.notices])
            if line != self.notifier.told:
                self.notifier.status(line)

    async def _wake_dispatcher(self) -> None:
        """An idle dispatcher has to say that it is alive, too."""
        while True:
            self.delivery.wake()
            await trio.sleep(PROOF_EVERY_S)


def _saved(store: Store) -> dict[str, Any]:
    """What the destination of an earlier process knew; nothing if the file was damaged just there."""
    try:
        saved = json.loads(store.get_meta(DESTINATION) or "{}")
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        log.error(
            "The outbox does not know any more whether delivery was paused; it goes on. `px-sidecar pause` stops it."
        )
        return {}
    return saved


def _no_op(_store: Store, _now_ms: int) -> None:
    """What proves that the writer works: an empty transaction."""


async def serve_daemon(config: Config, key: Secret, reload: Callable[[], Config]) -> None:
    """Run the daemon of this process until SIGTERM or SIGINT; ``reload`` reads the configuration again upon SIGHUP.

    A certificate that was renewed in its files is taken over then, too.
    Raises Failed or ConfigError if it cannot start, StoreFailed if the disk gives up.
    """
    runner, clock, notifier = ThreadRunner(), SystemClock(), Notifier()
    descriptors = raise_descriptor_limit()
    inherited = inherited_sockets()
    network = HttpxNetwork(config.px, key, config.deliver.timeout)
    async with open_store(config, runner, notifier) as store:
        random = Random()  # noqa: S311 - jitter, not secrets
        daemon = Daemon(
            config, store=store, network=network, clock=clock, runner=runner, random=random, notifier=notifier
        )
        with closing(bind_listeners(config.listen, inherited)) as opened, bind_control(config.listen) as control:

            def read_again() -> Config:
                changed = reload()
                renew_certificate(opened, config.listen)
                return changed

            async with trio.open_nursery() as nursery:
                stop = trio.Event()
                nursery.start_soon(_obey_signals, daemon, stop, read_again, nursery.cancel_scope)
                await daemon.run(partial(_serve_front, daemon, opened, control, descriptors, stop))
                nursery.cancel_scope.cancel()


async def _serve_front(
    daemon: Daemon, opened: Opened, control: socket.socket, descriptors: int, stop: trio.Event
) -> None:
    """Serve all listeners until ``stop``, and return when what was read is answered."""
    stopping = Stopping()
    limit_bytes = daemon.config.outbox.max_request_bytes
    routes = Routes(
        daemon.intake,
        daemon.outbox,
        pages_of(daemon.desk, daemon.metrics, daemon.problems),
        foreign_hosts=daemon.config.listen.allow_remote,
        took=daemon.metrics.answer_seconds.observe,
    )
    front = Front(routes, daemon.intake, daemon.outbox, max_request_bytes=limit_bytes, stopping=stopping)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, daemon.desk, control, stopping=stopping))
        await nursery.start(partial(front.serve, opened, descriptors=descriptors))
        daemon.notifier.ready("accepting events")
        log.info("Accepting events at %s.", daemon.config.listen.http or daemon.config.listen.unix)
        await stop.wait()
        daemon.notifier.stopping("finishing what is in flight")
        stopping.set()


async def _obey_signals(
    daemon: Daemon, stop: trio.Event, reload: Callable[[], Config], everything: trio.CancelScope
) -> None:
    """SIGHUP reloads; the first SIGTERM or SIGINT stops in order, the second at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                await daemon.reload(reload)
            elif stop.is_set():
                log.warning(
                    "Stopping at once, upon a second signal; what was in flight is sent again at the next start."
                )
                everything.cancel()
            else:
                log.info("Stopping, upon %s.", signal.Signals(number).name)
                stop.set()

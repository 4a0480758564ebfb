"""Reload the configuration of a running daemon, and say what that did."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec
import trio

from sidecar.clock import Clock
from sidecar.config import Config, Secret, reloaded
from sidecar.config.problems import ConfigProblems
from sidecar.config.show import shown
from sidecar.control.state import Notices
from sidecar.deliver.delivery_loop import Delivery
from sidecar.errors import ConfigError, SidecarError
from sidecar.mapping import LiveSettings, compile_settings
from sidecar.observe import LogMasks, secrets_of, write_keys_of
from sidecar.outbox import Outbox, Store
from sidecar.outbox.forget import suppression
from sidecar.px.key_renewal import KeyRenewal
from sidecar.receive import number_sources
from sidecar.systemd import Notifier

__all__ = ["Reloaded", "Reloader", "changes_between", "problems_of"]

log = logging.getLogger(__name__)


class Reloaded(msgspec.Struct, frozen=True):
    """The result of a reload.

    ``error`` says why it was refused; else it is empty, ``changed`` are the keys that differ as ``{"key", "now", "then",
    "restart"}``, and ``waiting`` those of them that wait for a restart. ``problems`` are ``{"error", "line"}`` of a file that
    cannot be used. ``new_key``: another API key is in use.
    """

    error: str
    waiting: list[str]
    changed: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    new_key: bool = False


class Reloader:
    """Replaces the settings by a configuration that was read, as far as a running daemon can.

    ``key`` reads the API key again; None where there is none to read, as in tests. ``masks`` get the secrets of the new
    configuration, so that no log line shows them.
    """

    def __init__(
        self,
        settings: LiveSettings,
        outbox: Outbox,
        delivery: Delivery,
        notices: Notices,
        notifier: Notifier,
        clock: Clock,
        key: KeyRenewal | None = None,
        masks: LogMasks | None = None,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._delivery = delivery
        self._notices = notices
        self._notifier = notifier
        self._clock = clock
        self._key = key
        self._masks = masks
        self._one_at_a_time = trio.Lock()

    async def reload(self, read: Callable[[], Awaitable[Config]]) -> Reloaded:
        """Take what ``read`` returns.

        A configuration that cannot be used is refused, and the old one stays in force. The log and every status state the
        reason, and which changes wait for a restart (sidecar/config/README.md#reload).

        One reload at a time, each of which reads the file when its turn comes: of two operators the one whose file was read
        first could otherwise replace what the other one has read since.
        """
        async with self._one_at_a_time:
            return await self._reload(read)

    async def _reload(self, read: Callable[[], Awaitable[Config]]) -> Reloaded:
        self._notifier.reloading()
        running = self._settings.now.config
        # Everything that can fail comes before ``settings.replace``, so that a refused reload changes nothing in force.
        try:
            file = await read()
            config, waiting = reloaded(running, file)
            key = await self._read_key(config)
            numbers = await self._outbox.write(lambda store, _now_ms: number_sources(config.source, store.source))
            products = await self._outbox.read(Store.source_products)
            replaced = compile_settings(config, numbers, products, await self._outbox.read(suppression))
        except SidecarError as error:
            return self._refused(error)
        if self._masks is not None:
            self._masks.add(secrets_of(config), write_keys_of(config))
        new_key = self._key is not None and key is not None and self._key.use(key)
        if new_key:
            self._delivery.dispatcher.destination.probe_at_once(self._clock.monotonic_s())
        self._settings.replace(replaced)
        self._delivery.wake()
        sentence = f"Changes that wait for a restart: {', '.join(waiting)}." if waiting else ""
        self._notices.reloaded(sentence)
        if sentence:
            log.warning("%s", sentence)
        log.info("The configuration was reloaded.")
        self._notifier.ready("accepting events, configuration reloaded")
        changed = [change | {"restart": change["key"] in waiting} for change in changes_between(running, file)]
        return Reloaded("", waiting, changed, new_key=new_key)

    async def _read_key(self, config: Config) -> Secret | None:
        """Return the key that the new configuration has; None if none is to be read. Raises ConfigError."""
        return (
            None
            if self._key is None
            else await trio.to_thread.run_sync(self._key.read, config.px, abandon_on_cancel=True)
        )

    def _refused(self, error: SidecarError) -> Reloaded:
        log.error("The configuration was not reloaded, the old one stays in force: %s", error)
        refusal = f"The configuration was not reloaded, the old one stays in force: {error}"
        self._notices.reloaded(refusal)
        self._notifier.ready(f"reload refused: {error}")
        return Reloaded(refusal, [], problems=list(problems_of(error)))


def problems_of(error: SidecarError) -> Iterable[dict[str, Any]]:
    """Yield ``{"error", "line"}`` for each thing that is wrong with a configuration; nothing for another error."""
    if isinstance(error, ConfigProblems):
        return ({"error": problem.sentence, "line": problem.line} for problem in error.problems)
    return ({"error": str(error), "line": None},) if isinstance(error, ConfigError) else ()


def changes_between(now: Config, then: Config) -> Iterator[dict[str, Any]]:
    """Yield ``{"key", "now", "then"}`` for each key whose value differs, secrets masked."""
    for table in Config.__struct_fields__:
        old, new = getattr(now, table), getattr(then, table)
        if not isinstance(new, msgspec.Struct):
            if old != new:
                yield {"key": table, "now": shown(old), "then": shown(new)}
            continue
        for key in new.__struct_fields__:
            before, after = getattr(old, key), getattr(new, key)
            if before != after:
                yield {"key": f"{table}.{key}", "now": shown(before, key), "then": shown(after, key)}

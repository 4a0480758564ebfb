"""Renew the API key of a running daemon: read it again from where the configuration has it, and send it from then on."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import trio

from sidecar.config import PxConfig, Secret, api_key
from sidecar.errors import ConfigError

__all__ = ["KeyRenewal", "UsesKey"]

READ_S: Final = 5.0

log = logging.getLogger(__name__)


class UsesKey(Protocol):
    """A network whose key can be replaced."""

    def use_key(self, key: Secret) -> None:
        """Send ``key`` with every request from now on. Raises ConfigError if it cannot be sent."""
        ...


class KeyRenewal:
    """``key``, which is in use, and what replaces it.

    ``environ`` names the systemd credential. ``mask`` gets each new key, so that no log line shows it.
    """

    def __init__(
        self,
        network: UsesKey,
        key: Secret,
        environ: Mapping[str, str],
        mask: Callable[[Iterable[Secret]], None],
    ) -> None:
        self._network = network
        self.key = key
        self._environ = environ
        self._mask = mask
        # Of its own: a read that hangs keeps its thread, and the default limiter is shared with DNS look-ups.
        self._reading = trio.CapacityLimiter(1)

    def read(self, px: PxConfig) -> Secret:
        """Return the key that ``px`` has now. Raises ConfigError; nothing is changed."""
        return api_key(px, self._environ)

    def use(self, key: Secret) -> bool:
        """Send this key from now on; return whether it is another one. Raises ConfigError if it cannot be sent."""
        if key == self.key:
            return False
        self._mask([key])
        self._network.use_key(key)
        self.key = key
        log.info("A new API key is in use.")
        return True

    async def renew(self, px: PxConfig) -> bool:
        """Read the key again and use it; return whether it is another one. An error is logged, the old key stays.

        A file system that hangs is an error after ``READ_S``: a probe waits for this, and so would a stop.
        """
        try:
            with trio.move_on_after(READ_S):
                return self.use(
                    await trio.to_thread.run_sync(self.read, px, abandon_on_cancel=True, limiter=self._reading)
                )
            raise ConfigError(f"it could not be read within {READ_S:g} s; check the file system of px.api_key_file.")
        except ConfigError as error:
            log.warning("The API key was not read again, the old one stays in use: %s", error)
            return False

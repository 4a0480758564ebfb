"""Renew the API key of a running daemon: read it again from where the configuration has it, and send it from then on."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import trio

from sidecar.config import PxConfig, Secret, api_key
from sidecar.errors import ConfigError

__all__ = ["KeyRenewal", "UsesKey"]

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
        """Read the key again and use it; return whether it is another one. An error is logged, the old key stays."""
        try:
            return self.use(await trio.to_thread.run_sync(self.read, px))
        except ConfigError as error:
            log.warning("The API key was not read again, the old one stays in use: %s", error)
            return False

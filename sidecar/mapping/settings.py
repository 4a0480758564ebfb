"""The configuration in force: one frozen, compiled value that a reload replaces as a whole.

Every package reads ``LiveSettings.now`` at the moment it needs a value, and keeps no copy. A reload is therefore one
assignment: it needs no notification, and two packages never see different configurations at the same moment.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sidecar.config import Config
from sidecar.mapping.mapper import Mapper, compile_mapping

__all__ = ["LiveSettings", "Settings", "compile_settings"]


class Settings(NamedTuple):
    """The configuration at one moment, compiled.

    ``source_numbers`` maps the fingerprint of a configured write key to the number of its source in the outbox;
    ``products`` maps the number of every source that was ever configured to its property key. Use ``mapper`` only in
    the thread of the event loop.
    """

    config: Config
    mapper: Mapper
    source_numbers: Mapping[bytes, int]
    products: Mapping[int, str]

    def product_of(self, source: int) -> str:
        """Return the property key for events of a source; events without a source use ``px.property_key``."""
        return self.products.get(source) or self.config.px.property_key

    def sources_named(self, text: str) -> tuple[int, ...]:
        """Return the sources that an operator means: the position of a ``[[source]]`` from 0, or a property key.

        Empty if there are none. With the property key of ``[px]``, 0 is among them: the events without a source.
        """
        if text.isdecimal():
            return tuple(self.source_numbers.values())[int(text) :][:1]
        own = (0,) if text == self.config.px.property_key else ()
        return (
            *own,
            *(number for number, key in sorted(self.products.items()) if (key or self.config.px.property_key) == text),
        )


def compile_settings(
    config: Config,
    source_numbers: Mapping[bytes, int],
    products: Mapping[int, str],
    is_suppressed: Callable[[str], bool] | None = None,
) -> Settings:
    """Compile a configuration. Raises ConfigError if mapping rules contradict each other."""
    mapper = compile_mapping(config.mapping, config.people, config.identity, is_suppressed=is_suppressed)
    return Settings(config, mapper, source_numbers, products)


class LiveSettings:
    """Holder of the settings in force. Only a reload replaces ``now``."""

    __slots__ = ("now",)

    def __init__(self, now: Settings) -> None:
        self.now = now

    def replace(self, settings: Settings) -> None:
        """Put ``settings`` in force, effective immediately."""
        self.now = settings

"""The two keys of PX, which people mix up: where the REST API key comes from, and what a property key looks like.

facts/px_and_sdks.md 1.1: the REST API key (Administration > REST API) authorises the requests; the property key
(``AP-XXXXXXXXXX-2``, called tag key or product key in PX) names the product that an event belongs to.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from sidecar.config.schema import Px, Secret
from sidecar.errors import ConfigError

__all__ = ["CREDENTIAL", "api_key", "odd_property_key", "property_key"]

CREDENTIAL = "px_api_key"
LONGEST_KEY_BYTES = 4096

_PROPERTY_KEY = re.compile(r"AP-[A-Z0-9]+(-\d+)+")
_WAYS = f"px.api_key_file, the systemd credential {CREDENTIAL!r}, px.api_key or PX_SIDECAR_PX_API_KEY"


def api_key(px: Px, environ: Mapping[str, str]) -> Secret:
    """The REST API key, from the one place that gives it.

    The places are ``px.api_key`` (file or variable), the file ``px.api_key_file``, and the file ``px_api_key`` in
    ``$CREDENTIALS_DIRECTORY``, where an empty file counts as none: our unit gives one when the operator has no key yet.
    Raises ConfigError if no place or more than one gives a key, if it cannot be read, or if it cannot be an API key.
    """
    given: dict[str, str] = {}
    if px.api_key:
        given["px.api_key"] = px.api_key.reveal().strip()
    if px.api_key_file:
        given[f"px.api_key_file ({px.api_key_file})"] = _read("px.api_key_file", Path(px.api_key_file))
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory) / CREDENTIAL
        if credential.exists() and (text := _read(f"The systemd credential {CREDENTIAL!r}", credential)):
            given[f"the systemd credential {CREDENTIAL!r}"] = text
    if not given:
        raise ConfigError(f"There is no PX API key; give it in one of {_WAYS} (PX: Administration > REST API).")
    if len(given) > 1:
        raise ConfigError(f"The PX API key is given more than once, by {' and by '.join(given)}; keep one of them.")
    ((place, text),) = given.items()
    _judge(place, text)
    return Secret(text)


def property_key(px: Px) -> str:
    """The property key that events belong to unless their source has its own. Raises ConfigError if there is none."""
    if not px.property_key.strip():
        raise ConfigError(
            "px.property_key is not set; give your PX product's key, AP-XXXXXXXXXX-2 (PX: Administration > Products)."
        )
    return px.property_key.strip()


def odd_property_key(key: str) -> str | None:
    """A sentence if ``key`` has not the known shape. PX may know other shapes, so this is a warning and no error.

    The key is not shown: it may be the API key in the wrong place.
    """
    if _PROPERTY_KEY.fullmatch(key):
        return None
    return "px.property_key does not look like a property key (AP-XXXXXXXXXX-2); check that it is not the API key."


def _read(what: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_KEY_BYTES + 1).decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be read from {path} ({error.strerror}); check the path, its owner and mode."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} in {path} is not text; write the API key alone into that file.") from None
    return text


def _judge(place: str, text: str) -> None:
    place = place[:1].upper() + place[1:] if place.startswith("the ") else place
    if not text:
        raise ConfigError(f"{place} is empty; write the API key into it (PX: Administration > REST API).")
    if _PROPERTY_KEY.fullmatch(text):
        raise ConfigError(
            f"{place} holds a property key (AP-…); the REST API key is another one (PX: Administration > REST API)."
        )
    if len(text) > LONGEST_KEY_BYTES or not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(
            f"{place} holds more than a key (blanks, line breaks or other signs inside); write the API key alone."
        )

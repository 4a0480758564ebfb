"""The two keys of PX: the REST API key, which authorizes requests, and the property key, which names a product.

They are easily confused. The REST API key comes from Administration > Integrations > REST API. The property key
(``AP-XXXXXXXXXX-2``; PX also calls it tag key or product key) comes from Administration > Products and is sent with every
event. PX states that the two are not the same (sidecar/px/README.md#hosts-and-keys). The key itself never appears in a
message.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from sidecar.config.schema import Config, FleetConfig, PxConfig, Secret
from sidecar.config.text_file import read_text
from sidecar.errors import ConfigError

__all__ = [
    "CREDENTIAL",
    "KeyUnreadable",
    "api_key",
    "fleet_password",
    "property_key",
    "property_key_warning",
    "remote_warning",
    "write_key_warnings",
]

CREDENTIAL = "px_api_key"
FLEET_CREDENTIAL = "fleet_password"
# A key has some tens of characters. The limit keeps a wrong path (a log, a device) from being read into memory.
MAX_KEY_BYTES = 4096

_PROPERTY_KEY = re.compile(r"AP-[A-Z0-9]+(-\d+)+")
_SOURCES = (
    f"px.api_key_file, the systemd credential {CREDENTIAL!r} (the unit loads /etc/px-sidecar/api_key, that of an instance "
    "/etc/px-sidecar/NAME.api_key), px.api_key or PX_SIDECAR_PX_API_KEY"
)


class KeyUnreadable(ConfigError):
    """The API key is in a file that only root can read; the daemon gets it from systemd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"Asking PX needs the API key, and {path} is open to root only; use sudo, or leave out what asks PX."
        )


def api_key(px: PxConfig, environ: Mapping[str, str]) -> Secret:
    """Return the REST API key from the one source that provides it.

    The sources are ``px.api_key`` (file or environment), the file ``px.api_key_file``, and the file ``px_api_key`` in
    ``$CREDENTIALS_DIRECTORY``. An empty credential counts as absent: the unit provides one before a key is installed.
    Raises ConfigError if no source or more than one provides a key, if a source cannot be read, or if its text cannot
    be an API key.
    """
    keys: dict[str, str] = {}
    if px.api_key:
        keys["px.api_key"] = px.api_key.reveal().strip()
    if px.api_key_file:
        keys[f"px.api_key_file ({px.api_key_file})"] = _read_key("px.api_key_file", Path(px.api_key_file))
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory) / CREDENTIAL
        if credential.exists() and (text := _read_key(f"The systemd credential {CREDENTIAL!r}", credential)):
            keys[f"the systemd credential {CREDENTIAL!r}"] = text
    if not keys:
        raise ConfigError(
            f"No PX API key is configured; set one of {_SOURCES} (PX: Administration > Integrations > REST API)."
        )
    # Precedence between sources would hide a stale key after a rotation, so two sources are an error.
    if len(keys) > 1:
        raise ConfigError(f"The PX API key is configured more than once: in {' and in '.join(keys)}; keep one of them.")
    ((source, text),) = keys.items()
    _validate(source, text)
    return Secret(text)


def fleet_password(fleet: FleetConfig, environ: Mapping[str, str]) -> Secret:
    """Return the password of the fleet's engine: from ``fleet.password_file`` or the credential ``fleet_password``.

    Empty if neither is there. Raises ConfigError if a file cannot be read.
    """
    if fleet.password_file:
        return Secret(_read_key("fleet.password_file", Path(fleet.password_file)))
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory or "/", FLEET_CREDENTIAL)
    if directory and credential.exists():
        return Secret(_read_key(f"The systemd credential {FLEET_CREDENTIAL!r}", credential))
    return Secret()


def property_key(px: PxConfig) -> str:
    """Return the property key of events whose source does not set another. Raises ConfigError if it is not set."""
    if not px.property_key.strip():
        raise ConfigError(
            "px.property_key is not set; set it to your PX product's key, AP-XXXXXXXXXX-2 (PX: Administration > "
            "Products)."
        )
    return px.property_key.strip()


def remote_warning(config: Config) -> str | None:
    """Return why the listeners are too open: other hosts can reach them, and no write key is asked for."""
    if not config.listen.allow_remote or config.source or not (config.listen.http or config.listen.https):
        return None
    return (
        "listen.allow_remote = true without a [[source]]: every host that reaches the listener can send events; add a "
        "[[source]] with a write_key, or set it to false."
    )


def write_key_warnings(config: Config) -> list[str]:
    """Return a sentence for each write key that an SDK cannot send as the user of HTTP Basic (RFC 7617 section 2).

    The keys are not quoted.
    """
    return [
        f'write_key of [[source]] number {number} contains ":", which ends the user name of HTTP Basic: SDKs that send the '
        "key that way are refused with unknown_write_key. Choose a key without it."
        for number, source in enumerate(config.source, 1)
        if ":" in source.write_key.reveal()
    ]


def property_key_warning(key: str) -> str | None:
    """Return a warning if ``key`` does not have the known shape of a property key, else None.

    PX may issue other shapes, so this is not an error. The key is not quoted: it may be the API key in the wrong field.
    """
    if _PROPERTY_KEY.fullmatch(key):
        return None
    return "px.property_key does not look like a property key (AP-XXXXXXXXXX-2); check that it is not the API key."


def _read_key(source: str, path: Path) -> str:
    """Return the text of a file that holds a key or password alone, without blanks around it."""
    # A sentence about the file begins "px.api_key_file PATH …".
    try:
        return read_text(source, path, MAX_KEY_BYTES).strip()
    except FileNotFoundError:
        raise ConfigError(f"{source} {path} does not exist; write the key alone into it, with mode 0600.") from None


def _validate(source: str, text: str) -> None:
    """Raise ConfigError if ``text`` cannot be an API key. Its text is not quoted."""
    source = source[:1].upper() + source[1:] if source.startswith("the ") else source
    if not text:
        raise ConfigError(f"{source} is empty; put the API key into it (PX: Administration > Integrations > REST API).")
    if _PROPERTY_KEY.fullmatch(text):
        raise ConfigError(
            f"{source} holds a property key (AP-…), not the REST API key; create a REST API key in PX "
            "(Administration > Integrations > REST API)."
        )
    if text[0] in "\"'“„" or text[-1] in "\"'”“":
        raise ConfigError(f"{source} has quotes around the API key; put the key alone, without quotes, into it.")
    # Not a key that ends in "=" itself, as Base64 does.
    if re.match(r"(?i)(export\s+)?[\w-]*(key|token|secret)[\w-]*\s*[=:]\s*[^\s=]", text):
        raise ConfigError(f"{source} holds a setting, NAME=KEY; put the key alone into it.")
    # The key travels in a header: RFC 9110 section 5.5 allows spaces there, but no key of PX has any.
    if len(text) > MAX_KEY_BYTES or not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(
            f"{source} holds more than an API key (spaces, line breaks or other characters); put only the key into it."
        )

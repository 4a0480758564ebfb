"""What can be configured: one Struct per table of the file, each field with its default and what is allowed.

Rules
-----
* Unknown keys are errors (``forbid_unknown_fields``); wrong values are errors; ``load`` words both.
* A duration or size is written as text (``"24h"``, ``"4GiB"``) and arrives here as a number with its unit in the type.
* A secret is a ``Secret``: its ``repr`` and ``str`` are masked, so that no log line or traceback can show it.
* Nothing here touches files, sockets or the network.
"""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from sidecar.units import parse_duration_s, parse_size_bytes

__all__ = [
    "REGIONS",
    "AttributeRules",
    "Config",
    "Deliver",
    "Duration",
    "EventRules",
    "Identity",
    "Limit",
    "Listen",
    "Log",
    "Mapping",
    "Outbox",
    "People",
    "Px",
    "Refused",
    "Secret",
    "Size",
    "Source",
    "UnknownName",
    "is_loopback_host",
]

# facts/px_and_sdks.md 1.1 (PX Swagger; rudder-transformer gainsight_px/config.js)
REGIONS = {
    "us": "https://api.aptrinsic.com",
    "eu": "https://api-eu.aptrinsic.com",
    "us2": "https://api-us2.aptrinsic.com",
}

LONGEST_SOCKET_PATH_BYTES = 107  # unix(7): sun_path holds 108 with the ending NUL

PX_FIELDS = (
    "identifyId",
    "accountId",
    "sessionId",
    "url",
    "referrer",
    "remoteHost",
    "date",
    "eventName",
    "userType",
    "eventId",
    "globalContext",
)


class Refused(ValueError):
    """A value that its type allows and its table does not; ``allowed`` ends a sentence, as in "must be …"."""

    def __init__(self, key: str, allowed: str) -> None:
        super().__init__(f"{key}: {allowed}")
        self.key = key
        self.allowed = allowed


class UnknownName(ValueError):
    """A key that its table, which is free otherwise, does not know."""

    def __init__(self, path: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(f"{'.'.join(path)} is not known")
        self.path = path
        self.known = known


class Duration(float):
    """Seconds, written as ``"30s"`` or ``"24h"``."""


class Limit(Duration):
    """Seconds like a Duration, or ``""`` for no limit, which arrives as 0."""


class Size(int):
    """Bytes, written as ``"32KiB"`` or ``"4GiB"``."""


class Secret:
    """A text that must not be shown: ``reveal()`` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that sends or compares it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret('****')" if self._text else "Secret('')"


def decode_text_type(kind: type, value: Any) -> Any:
    """The msgspec ``dec_hook``: our own scalar types from the text in the file."""
    if kind is Duration:
        return Duration(parse_duration_s(_text(value)))
    if kind is Limit:
        return Limit(parse_duration_s(value) if _text(value) else 0)
    if kind is Size:
        return Size(value if isinstance(value, int) and value >= 0 else parse_size_bytes(_text(value)))
    if kind is Secret:
        return Secret(_text(value))
    raise AssertionError(kind)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return value


class Table(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The base of every table of the file."""


def is_loopback_host(host: str) -> bool:
    """Whether ``host`` names this machine by loopback: ``localhost``, ``127.0.0.0/8`` or ``::1``."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


class Px(Table, frozen=True):
    """``[px]``: the account and where its API is."""

    api_key: Secret = Secret()
    api_key_file: str = ""
    property_key: str = ""
    region: Literal["us", "eu", "us2"] = "us"
    base_url: str = ""
    proxy: str = ""
    ca_file: str = ""

    def __post_init__(self) -> None:
        if not self.base_url:
            return
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise Refused("base_url", 'must be scheme://host[:port] without a path, as in "https://api.aptrinsic.com"')
        if "@" in parts.netloc:
            raise Refused("base_url", "must not hold a user name or password; the key belongs in api_key_file")
        if parts.scheme == "http" and not is_loopback_host(parts.hostname):
            raise Refused(
                "base_url", "must begin with https:// unless its host is loopback, as the API key travels along"
            )

    def url(self) -> str:
        """The origin that requests go to, without a trailing slash."""
        return self.base_url.rstrip("/") or REGIONS[self.region]


class Listen(Table, frozen=True):
    """``[listen]``: where events and commands come in."""

    http: str = "127.0.0.1:8321"
    https: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    unix: str = "/run/px-sidecar/events.sock"
    unix_mode: str = "0660"
    unix_group: str = ""
    control: str = "/run/px-sidecar/control.sock"
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0?[0-7]{3}", self.unix_mode):
            raise Refused("unix_mode", 'must be an octal file mode, as in "0660"')
        for key, path in (("unix", self.unix), ("control", self.control)):
            if len(path.encode()) > LONGEST_SOCKET_PATH_BYTES:
                raise Refused(
                    key, f"must be a path of at most {LONGEST_SOCKET_PATH_BYTES} bytes, the system's limit for sockets"
                )
        if self.https and not (self.tls_cert and self.tls_key):
            raise Refused("https", "needs tls_cert and tls_key, the paths of the certificate and its key")
        for key, address in (("http", self.http), ("https", self.https)):
            if not address:
                continue
            host, _ = split_address(key, address)
            if not self.allow_remote and not is_loopback_host(host):
                raise Refused(
                    key, "must be a loopback address unless allow_remote = true, as other hosts could reach it"
                )


def split_address(key: str, address: str) -> tuple[str, int]:
    """Host and port of ``"127.0.0.1:8321"`` or ``"[::1]:8321"``. Raises ValueError that names ``key``."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65_535:
        raise Refused(key, 'must be host:port, as in "127.0.0.1:8321" or "[::1]:8321"')
    return match[1] or match[2], int(match[3])


class Source(Table, frozen=True):
    """``[[source]]``: an app with its own write key, perhaps for another PX product."""

    write_key: Secret
    property_key: str = ""

    def __post_init__(self) -> None:
        if not self.write_key:
            raise Refused("write_key", 'must be a text that is not empty, as in "wk_web"')


class Outbox(Table, frozen=True):
    """``[outbox]``: the file that holds accepted events."""

    path: str = ""
    durability: Literal["disk", "process"] = "disk"
    max_bytes: Size = Size(4 * 2**30)
    when_full: Literal["refuse", "drop_oldest"] = "refuse"
    keep_delivered: Duration = Duration(86_400)
    keep_ids: Duration = Duration(86_400)
    keep_dead: Duration = Duration(30 * 86_400)
    max_event_bytes: Size = Size(32 * 2**10)
    max_request_bytes: Size = Size(4 * 2**20)

    def __post_init__(self) -> None:
        if self.max_event_bytes > self.max_request_bytes:
            raise Refused(
                "max_event_bytes", "must not be above max_request_bytes, which bounds the request that holds it"
            )


class Deliver(Table, frozen=True):
    """``[deliver]``: pace, quota, order and patience."""

    per_second: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 190
    per_day: Annotated[int, msgspec.Meta(gt=0)] = 990_000
    hosts: Annotated[int, msgspec.Meta(ge=1)] = 1
    day: Literal["rolling", "utc"] = "rolling"
    pace: Literal["burst", "spread"] = "burst"
    reserve_for_high: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    order: Literal["user", "none"] = "user"
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 128
    timeout: Duration = Duration(30)
    max_age: Limit = Limit(0)
    retry_initial: Duration = Duration(1)
    retry_max: Duration = Duration(300)
    stop_timeout: Duration = Duration(10)

    def __post_init__(self) -> None:
        for key, value in (("timeout", self.timeout), ("retry_initial", self.retry_initial)):
            if value <= 0:
                raise Refused(key, "must be longer than nothing")
        if self.retry_max < self.retry_initial:
            raise Refused("retry_initial", "must not be longer than retry_max")

    @property
    def host_per_second(self) -> float:
        """This host's share of ``per_second``."""
        return self.per_second / self.hosts

    @property
    def host_per_day(self) -> int:
        """This host's share of ``per_day``, 1 at least."""
        return max(1, self.per_day // self.hosts)


class AttributeRules(Table, frozen=True):
    """``[mapping.attributes]``, ``[mapping.traits]`` and ``[mapping.event.NAME.attributes]``."""

    keep: list[str] = []
    drop: list[str] = []
    hash: list[str] = []
    hash_salt: Secret = Secret()
    rename: dict[str, str] = {}
    set: dict[str, str | int | float | bool] = {}
    case: Literal["camel", "keep"] | None = None
    nested: Literal["string", "flatten"] | None = None


class EventRules(Table, frozen=True):
    """``[mapping.event."NAME"]``: what differs for one event name, as the app sends it."""

    priority: Literal["high", "normal"] = "normal"
    user_type: Literal["USER", "VISITOR", "LEAD"] | None = None
    attributes: AttributeRules | None = None


class Mapping(Table, frozen=True):
    """``[mapping]``: how an event becomes PX requests."""

    preset: Literal["b2b-saas", "none"] = "b2b-saas"
    unmapped: Literal["pass", "drop"] = "pass"
    anonymous: Literal["drop", "visitor", "lead"] = "drop"
    attribute_case: Literal["camel", "keep"] = "camel"
    nested: Literal["string", "flatten"] = "string"
    events: dict[str, str] = {}
    event: dict[str, EventRules] = {}
    fields: dict[str, str | list[str]] = {}
    attributes: AttributeRules = AttributeRules()
    traits: AttributeRules = AttributeRules()

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in PX_FIELDS and not re.fullmatch(r"globalContext\..+", name):
                raise UnknownName(("fields", name), (*PX_FIELDS, "globalContext.NAME"))


class People(Table, frozen=True):
    """``[people]``: whether identify and group also write PX users and accounts."""

    users: Literal["off", "upsert"] = "off"
    accounts: Literal["off", "upsert"] = "off"


class Identity(Table, frozen=True):
    """``[identity]``: the memory of users."""

    max_users: Annotated[int, msgspec.Meta(ge=0)] = 1_000_000


class Log(Table, frozen=True):
    """``[log]``: what is said where."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class Config(Table, frozen=True):
    """The whole file."""

    px: Px = Px()
    listen: Listen = Listen()
    source: list[Source] = []
    outbox: Outbox = Outbox()
    deliver: Deliver = Deliver()
    mapping: Mapping = Mapping()
    people: People = People()
    identity: Identity = Identity()
    log: Log = Log()

    def __post_init__(self) -> None:
        keys = [source.write_key.reveal() for source in self.source]
        if len(set(keys)) < len(keys):
            raise Refused("source", "must not give two sources one write_key, as it tells them apart")

"""The configuration's schema: one Struct per table of the file, each field with its type, range and default.

Rules
-----
* Unknown keys are errors (``forbid_unknown_fields``), and so are wrong values. ``error_messages`` words both.
* A duration or size is a string in the file (``"24h"``, ``"4GiB"``) and a number here, with its unit in the type.
* A secret is a ``Secret``. Its ``repr`` and ``str`` are masked, so that log lines and tracebacks cannot show it.
* This module does not touch files, sockets or the network.
"""

import os
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from sidecar.units import MAX_SIZE_BYTES, parse_duration_s, parse_size_bytes

__all__ = [
    "LABEL_RULE",
    "REGIONS",
    "AttributeRules",
    "Config",
    "DeliverConfig",
    "DropRule",
    "Duration",
    "EventRules",
    "FleetConfig",
    "IdentityConfig",
    "Limit",
    "ListenConfig",
    "LogConfig",
    "MappingConfig",
    "OutboxConfig",
    "PeopleConfig",
    "PxConfig",
    "Secret",
    "Size",
    "SourceConfig",
    "UnknownName",
    "ValueRefused",
    "can_be_looked_up",
    "is_loopback_host",
    "is_loopback_name",
]

# The hosts of PX's REST API (sidecar/px/README.md#hosts-and-keys).
REGIONS = {
    "us": "https://api.aptrinsic.com",
    "eu": "https://api-eu.aptrinsic.com",
    "us2": "https://api-us2.aptrinsic.com",
}

LABEL_RULE = "whose parts between dots have 1 to 63 characters"

MAX_SOCKET_PATH_BYTES = 107  # unix(7): sun_path has 108 bytes, the last one for the terminating NUL

# The fields of PX's custom event that [mapping.fields] can set (sidecar/px/README.md#the-custom-event).
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
GLOBAL_CONTEXT: Final = r"^globalContext\..+$"
"""The names of the fields in it, which [mapping.fields] can set, too."""


_ORIGIN: Final = re.compile(
    r"(https?)://(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))"
    r"(?::(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?/?",
    re.IGNORECASE,
)


class ValueRefused(ValueError):
    """A value of the right type that breaks a rule of its table; ``allowed`` completes a sentence: "must be …"."""

    def __init__(self, key: str, allowed: str) -> None:
        super().__init__(f"{key}: {allowed}")
        self.key = key
        self.allowed = allowed


class UnknownName(ValueError):
    """An unknown key in a table whose keys are checked by a rule instead of by fields."""

    def __init__(self, path: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(f"{'.'.join(path)} is not a known key")
        self.path = path
        self.known = known


class Duration(float):
    """Seconds, written as ``"30s"`` or ``"24h"``."""


class Limit(Duration):
    """Seconds like a Duration, or ``""`` for no limit, which is 0 here."""


class Size(int):
    """Bytes, written as ``"32KiB"`` or ``"4GiB"``."""


class Secret:
    """A string that must not be shown. Only ``reveal()`` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; only for code that sends or compares it."""
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
    """Convert a value of the file to one of the scalar types above; msgspec's ``dec_hook``. Raises ValueError."""
    if kind is Duration:
        return Duration(parse_duration_s(_text(value)))
    if kind is Limit:
        return Limit(parse_duration_s(value) if _text(value) else 0)
    if kind is Size:
        # A boolean is an int in Python.
        is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SIZE_BYTES
        return Size(value if is_number else parse_size_bytes(_text(value)))
    if kind is Secret:
        return Secret(_text(value))
    raise AssertionError(kind)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return value


# Marks a key that sockets, files or connections are built from, or whose change would break what was promised under the
# old value. A reload keeps the running value and reports the key; it applies all other keys.
AT_RESTART: Final = msgspec.Meta(extra={"reload": False})

T = TypeVar("T")
AtRestart = Annotated[T, AT_RESTART]


class Table(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Base class of every table of the file."""


def is_loopback_host(host: str) -> bool:
    """Return whether ``host`` is ``localhost``, in ``127.0.0.0/8`` or ``::1``."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def is_loopback_name(host: str) -> bool:
    """Return whether clients of a loopback listener may call it ``host``, in lower case and without brackets.

    Beside ``is_loopback_host``: the names that Debian's hosts file has, every name below ``localhost`` (RFC 6761 6.3),
    and an IPv4 address that is written as an IPv6 one.
    """
    if is_loopback_host(host) or host in ("ip6-localhost", "ip6-loopback") or host.endswith(".localhost"):
        return True
    address = _address(host)
    if address is None:
        return False
    return address.is_loopback or bool((mapped := getattr(address, "ipv4_mapped", None)) and mapped.is_loopback)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that ``host`` is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def can_be_looked_up(host: str) -> bool:
    """Return whether the system can look up ``host``: for any other name a look-up raises UnicodeError and not OSError.

    Each part of a name between dots has 1 to 63 characters (RFC 1035 2.3.4), an internationalized one once it is encoded.
    """
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def ensure_can_be_looked_up(key: str, host: str) -> None:
    """Raise ValueRefused, which names ``key``, for a host that cannot be looked up."""
    if not can_be_looked_up(host):
        raise ValueRefused(key, f"must have a host {LABEL_RULE}")


class PxConfig(Table, frozen=True):
    """``[px]``: the PX subscription: keys, region, and how its API is reached."""

    # A reload reads the key again (sidecar/px/key_renewal.py), so both may change.
    api_key: Secret = Secret()
    api_key_file: str = ""
    property_key: AtRestart[str] = ""
    region: AtRestart[Literal["us", "eu", "us2"]] = "us"
    base_url: AtRestart[str] = ""
    proxy: AtRestart[str] = ""
    ca_file: AtRestart[str] = ""

    def __post_init__(self) -> None:
        if not self.base_url:
            return
        scheme, host = split_origin("base_url", self.base_url)
        if scheme == "http" and not is_loopback_host(host):
            raise ValueRefused(
                "base_url", "must begin with https:// unless its host is loopback, because requests carry the API key"
            )

    def url(self) -> str:
        """Return the origin of all requests, without a trailing slash."""
        return self.base_url.rstrip("/") or REGIONS[self.region]


def split_origin(key: str, url: str) -> tuple[str, str]:
    """Return scheme and host of ``scheme://host[:port]``, in lower case. Raises ValueRefused that says what to write."""
    if "@" in url:
        raise ValueRefused(key, "must not contain a user name or password; put the key into api_key_file")
    if match := _ORIGIN.fullmatch(url):
        host = (match[2] or match[3]).lower()
        ensure_can_be_looked_up(key, host)
        return match[1].lower(), host
    scheme, _, rest = url.strip().rpartition("://")
    origin = (
        f"{scheme.lower() if scheme.lower() == 'http' else 'https'}://{re.split(r'[/?#]', rest.lstrip('/'))[0].strip()}"
    )
    advice = f'; write "{origin}"' if _ORIGIN.fullmatch(origin) else ', as in "https://api.aptrinsic.com"'
    raise ValueRefused(key, f"must be scheme://host[:port] without a path{advice}")


class ListenConfig(Table, frozen=True):
    """``[listen]``: the addresses and sockets for events and for control."""

    http: AtRestart[str] = "127.0.0.1:8321"
    https: AtRestart[str] = ""
    tls_cert: AtRestart[str] = ""
    tls_key: AtRestart[str] = ""
    unix: AtRestart[str] = "/run/px-sidecar/events.sock"
    unix_mode: AtRestart[str] = "0660"
    unix_group: AtRestart[str] = ""
    control: AtRestart[str] = "/run/px-sidecar/control.sock"
    control_read: AtRestart[str] = ""
    max_memory: AtRestart[Size] = Size(64 * 2**20)
    allow_remote: AtRestart[bool] = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0?[0-7]{3}", self.unix_mode):
            raise ValueRefused("unix_mode", 'must be an octal file mode, as in "0660"')
        for key, path in (("unix", self.unix), ("control", self.control), ("control_read", self.control_read)):
            if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
                raise ValueRefused(
                    key, f"must be a path of at most {MAX_SOCKET_PATH_BYTES} bytes, the system's limit for socket paths"
                )
        if not self.control:
            raise ValueRefused("control", "must be a path, because the daemon is reached there")
        if self.https and not (self.tls_cert and self.tls_key):
            raise ValueRefused("https", "needs tls_cert and tls_key, the paths of the certificate and its private key")
        self._ensure_own_places()
        for key, address in (("http", self.http), ("https", self.https)):
            if not address:
                continue
            host, _ = split_address(key, address)
            # The addresses of a name are judged where they are opened: a look-up does not belong here.
            if not self.allow_remote and _address(host) is not None and not is_loopback_name(host.lower()):
                raise ValueRefused(
                    key, "must be a loopback address unless allow_remote = true, because other hosts could reach it"
                )

    def _ensure_own_places(self) -> None:
        """Raise ValueRefused if two listeners have one place: the second would find "another process" in it, this one."""
        taken: dict[str, str] = {}
        for key in ("unix", "control", "control_read"):
            path = os.path.normpath(getattr(self, key) or "/")
            if path != "/" and taken.setdefault(path, key) != key:
                raise ValueRefused(key, f"must be another path than listen.{taken[path]}")
        if self.http and self.http == self.https and split_address("https", self.https)[1]:
            raise ValueRefused("https", "must be another address than listen.http")

    def hosts(self) -> set[str]:
        """Return the host names and addresses that ``http`` and ``https`` are written with, as Host headers are compared."""
        addresses = {"http": self.http, "https": self.https}
        return {split_address(key, address)[0].lower().rstrip(".") for key, address in addresses.items() if address}


def split_address(key: str, address: str) -> tuple[str, int]:
    """Return host and port of ``"127.0.0.1:8321"`` or ``"[::1]:8321"``. Raises ValueRefused that names ``key``."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65_535:
        raise ValueRefused(key, 'must be host:port, as in "127.0.0.1:8321" or "[::1]:8321"')
    host = match[1] or match[2]
    ensure_can_be_looked_up(key, host)
    return host, int(match[3])


class SourceConfig(Table, frozen=True):
    """``[[source]]``: an app with its own write key, optionally for another PX product."""

    write_key: Secret
    property_key: str = ""

    def __post_init__(self) -> None:
        if not self.write_key:
            raise ValueRefused("write_key", 'must be a non-empty string, as in "wk_web"')


class OutboxConfig(Table, frozen=True):
    """``[outbox]``: the file that stores accepted events, its limits and retention."""

    path: AtRestart[str] = ""
    # process: survives a crash of the process but not of the host (sidecar/outbox/README.md#fsync).
    durability: AtRestart[Literal["disk", "process"]] = "disk"
    max_bytes: AtRestart[Size] = Size(4 * 2**30)
    when_full: AtRestart[Literal["refuse", "drop_oldest"]] = "refuse"
    keep_delivered: AtRestart[Duration] = Duration(86_400)
    # A repeated messageId is recognized for this long, and always while its event is pending or dead.
    keep_ids: AtRestart[Duration] = Duration(86_400)
    keep_dead: AtRestart[Duration] = Duration(30 * 86_400)
    max_event_bytes: AtRestart[Size] = Size(32 * 2**10)
    max_request_bytes: AtRestart[Size] = Size(5 * 2**20)

    def __post_init__(self) -> None:
        if self.max_event_bytes > self.max_request_bytes:
            raise ValueRefused(
                "max_event_bytes", "must not be above max_request_bytes, the limit of the request that contains it"
            )


class DeliverConfig(Table, frozen=True):
    """``[deliver]``: pace, quota, order, timeouts and retries."""

    # Slightly below PX's documented limits of about 200 per second and 1,000,000 per day (sidecar/px/README.md#limits).
    per_second: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 190
    per_day: Annotated[int, msgspec.Meta(gt=0)] = 990_000
    hosts: Annotated[int, msgspec.Meta(ge=1)] = 1
    day: AtRestart[Literal["rolling", "utc"]] = "rolling"
    pace: Literal["burst", "spread"] = "burst"
    reserve_for_high: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    # user: one request per user at a time, so that PX gets them in order (sidecar/deliver/README.md#order).
    order: AtRestart[Literal["user", "none"]] = "user"
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 128
    timeout: AtRestart[Duration] = Duration(30)  # of one attempt: connecting, sending and the answer together
    max_age: Limit = Limit(0)
    retry_initial: Duration = Duration(1)
    retry_max: Duration = Duration(300)
    stop_timeout: AtRestart[Duration] = Duration(10)

    def __post_init__(self) -> None:
        for key, value in (("timeout", self.timeout), ("retry_initial", self.retry_initial)):
            if value <= 0:
                raise ValueRefused(key, "must be longer than 0s")
        if self.retry_max < self.retry_initial:
            raise ValueRefused("retry_initial", "must not be longer than retry_max")

    @property
    def host_per_second(self) -> float:
        """Requests per second for this host: its share of the subscription's limit."""
        return self.per_second / self.hosts

    @property
    def host_per_day(self) -> int:
        """Requests per day for this host: its share of the subscription's limit, at least 1."""
        return max(1, self.per_day // self.hosts)


class FleetConfig(Table, frozen=True):
    """``[fleet]``: limits that several hosts share through Redis or Valkey (sidecar/fleet/README.md)."""

    url: AtRestart[str] = ""
    name: AtRestart[str] = ""
    username: AtRestart[str] = ""
    password_file: AtRestart[str] = ""
    ca_file: AtRestart[str] = ""
    # Replicas that must have acknowledged an answer before it is used (sidecar/fleet/README.md#split-brain).
    replicas: AtRestart[Annotated[int, msgspec.Meta(ge=0, le=16)]] = 0
    forget_after: AtRestart[Duration] = Duration(86_400)
    on_stop: AtRestart[Literal["keep", "drain"]] = "keep"

    def __post_init__(self) -> None:
        if not self.url:
            return
        try:
            parts, _ = urlsplit(self.url), urlsplit(self.url).port
        except ValueError:  # a port that is not a number, an IPv6 address without its bracket
            parts = urlsplit("")
        example = 'as in "redis://10.0.0.5:6379", "rediss://engine.example:6380" or "unix:///run/redis/redis.sock"'
        if parts.scheme not in ("redis", "rediss", "unix") or not (
            parts.path if parts.scheme == "unix" else parts.hostname
        ):
            raise ValueRefused("url", f"must be redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, {example}")
        ensure_can_be_looked_up("url", parts.hostname or "")
        if parts.username or parts.password:
            raise ValueRefused("url", "must not contain a user or password; use fleet.username and fleet.password_file")
        if parts.scheme != "unix" and not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ValueRefused(
                "url", "must end with the address, or with the number of a database, as in redis://HOST/1"
            )
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.name):
            raise ValueRefused(
                "name", "must be set with fleet.url: at most 64 letters, digits, dots, dashes, underscores"
            )
        if self.forget_after < 600:
            raise ValueRefused("forget_after", "must be 10m or longer: a shorter absence is a restart")


class AttributeRules(Table, frozen=True):
    """``[mapping.attributes]``, ``[mapping.traits]``, ``[mapping.event.NAME.attributes]``: rules for attributes."""

    keep: list[str] = []
    drop: list[str] = []
    hash: list[str] = []
    hash_salt: Secret = Secret()
    rename: dict[str, str] = {}
    set: dict[str, str | int | float | bool] = {}
    case: Literal["camel", "keep"] | None = None
    nested: Literal["string", "flatten"] | None = None


class EventRules(Table, frozen=True):
    """``[mapping.event."NAME"]``: rules for one event, by the name that the app sends."""

    priority: Literal["high", "normal", "low"] = "normal"
    user_type: Literal["USER", "VISITOR", "LEAD"] | None = None
    attributes: AttributeRules | None = None
    per_day: Annotated[int, msgspec.Meta(ge=0)] | None = None
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1


class DropRule(Table, frozen=True):
    """``[[mapping.drop]]``: events that are not sent: by name, and by values of the call."""

    event: str = "*"
    where: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.event == "*" and not self.where:
            raise ValueRefused(
                "event", 'must name an event or a glob other than "*", unless `where` selects by a value'
            )


class MappingConfig(Table, frozen=True):
    """``[mapping]``: how an event becomes PX requests."""

    preset: Literal["b2b-saas", "none"] = "b2b-saas"
    unmapped: Literal["pass", "drop"] = "pass"
    anonymous: Literal["drop", "visitor", "lead"] = "drop"
    attribute_case: Literal["camel", "keep"] = "camel"
    nested: Literal["string", "flatten"] = "string"
    url_query: Literal["keep", "drop"] | list[str] = "keep"
    consent: list[str] = []
    events: dict[str, str] = {}
    event: dict[str, EventRules] = {}
    drop: list[DropRule] = []
    fields: dict[str, str | list[str]] = {}
    attributes: AttributeRules = AttributeRules()
    traits: AttributeRules = AttributeRules()

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in PX_FIELDS and not re.fullmatch(GLOBAL_CONTEXT, name):
                raise UnknownName(("fields", name), (*PX_FIELDS, "globalContext.NAME"))


class PeopleConfig(Table, frozen=True):
    """``[people]``: whether identify and group calls also write PX users and accounts."""

    users: Literal["off", "upsert"] = "off"
    accounts: Literal["off", "upsert"] = "off"


class IdentityConfig(Table, frozen=True):
    """``[identity]``: how many users are remembered, and which texts are not ids."""

    max_users: AtRestart[Annotated[int, msgspec.Meta(ge=0)]] = 1_000_000
    reject: list[str] = msgspec.field(
        default_factory=lambda: ["undefined", "null", "None", "nil", "NaN", "[object Object]", "true", "false"]
    )


class LogConfig(Table, frozen=True):
    """``[log]``: level and format of the log on stderr."""

    level: AtRestart[Literal["debug", "info", "warning", "error"]] = "info"
    format: AtRestart[Literal["auto", "text", "json"]] = "auto"


class Config(Table, frozen=True):
    """The configuration file."""

    px: PxConfig = PxConfig()
    listen: ListenConfig = ListenConfig()
    source: list[SourceConfig] = []
    outbox: OutboxConfig = OutboxConfig()
    deliver: DeliverConfig = DeliverConfig()
    fleet: FleetConfig = FleetConfig()
    mapping: MappingConfig = MappingConfig()
    people: PeopleConfig = PeopleConfig()
    identity: IdentityConfig = IdentityConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.fleet.url and self.deliver.hosts != 1:
            # The engine divides the limits; dividing them once more would give each host a part of its part.
            msgspec.structs.force_setattr(self, "deliver", msgspec.structs.replace(self.deliver, hosts=1))
        keys = [source.write_key.reveal() for source in self.source]
        if len(set(keys)) < len(keys):
            raise ValueRefused(
                "source", "must not give two sources the same write_key, because the key identifies the source"
            )

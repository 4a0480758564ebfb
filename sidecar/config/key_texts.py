"""The text of every configuration key: what it means, and an example.

This is the only place for them: ``px-sidecar config reference`` and the JSON Schema read it. Type, default, range and
whether a reload is enough follow from ``schema``. A key without a text fails ``tests/config/test_config_reference.py``.
"""

from typing import Final, NamedTuple

from sidecar.config.schema import (
    AttributeRules,
    Config,
    DeliverConfig,
    DropRule,
    EventRules,
    FleetConfig,
    IdentityConfig,
    ListenConfig,
    LogConfig,
    MappingConfig,
    OutboxConfig,
    PeopleConfig,
    PxConfig,
    SourceConfig,
    Table,
)

__all__ = ["KEY_TEXTS", "KeyText"]


class KeyText(NamedTuple):
    """The meaning of a key, an example value in TOML, and what is allowed where the type does not say it."""

    meaning: str
    example: str
    allowed: str = ""


_PX: Final = {
    "api_key": KeyText(
        "The REST API key (PX: Administration > Integrations > REST API), with the Write permission. Set one of api_key, api_key_file "
        'and the systemd credential "px_api_key"; a file keeps it out of backups of this one.',
        '"0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"',
    ),
    "api_key_file": KeyText(
        "A file that holds the REST API key alone. It is read again on a reload, on `px-sidecar resume`, and before each "
        "probe while PX answers 401 or 403.",
        '"/etc/px-sidecar/api_key"',
        "the path of a file",
    ),
    "property_key": KeyText(
        "The key of the PX product that gets the events (PX: Administration > Products). The daemon does not start "
        "without it.",
        '"AP-XXXXXXXXXX-2"',
        "a product key, AP-XXXXXXXXXX-2",
    ),
    "region": KeyText("The data residency of the PX subscription; it chooses the host of the API.", '"eu"'),
    "base_url": KeyText(
        "The origin of the API instead of the region's, for a stand-in or a relay.",
        '"https://api.aptrinsic.com"',
        "scheme://host[:port] without a path; https, unless the host is loopback",
    ),
    "proxy": KeyText(
        "The proxy through which PX is reached. A user and a password in it are percent-encoded: p@ss is p%40ss.",
        '"http://user:p%40ss@proxy.example:3128"',
        "http://HOST:PORT or https://HOST:PORT",
    ),
    "ca_file": KeyText(
        "Certificates that are trusted instead of the system's, for a proxy that opens TLS.",
        '"/etc/ssl/certs/company.pem"',
        "the path of a PEM file",
    ),
}

_LISTEN: Final = {
    "http": KeyText(
        'The address for events over HTTP, with /health, /metrics and /status. "" turns it off.',
        '"127.0.0.1:8321"',
        'HOST:PORT of a loopback host, or "" (other hosts: allow_remote)',
    ),
    "https": KeyText(
        "A second address, with TLS, for SDKs that cannot speak plain HTTP (PHP, Ruby, C#). It needs tls_cert and tls_key.",
        '"127.0.0.1:8322"',
        'HOST:PORT of a loopback host, or ""',
    ),
    "tls_cert": KeyText(
        "The certificate of https, with its chain; a reload reads the file again.",
        '"/etc/px-sidecar/localhost.pem"',
        "the path of a PEM file",
    ),
    "tls_key": KeyText(
        "The private key of tls_cert; a reload reads the file again.",
        '"/etc/px-sidecar/localhost.key"',
        "the path of a PEM file",
    ),
    "unix": KeyText(
        'The Unix socket for events, as HTTP or NDJSON. "" turns it off. Under systemd the socket unit decides.',
        '"/run/px-sidecar/events.sock"',
        "a path of at most 107 bytes",
    ),
    "unix_mode": KeyText("The file mode of unix: which users may send events.", '"0666"', "an octal file mode"),
    "unix_group": KeyText(
        "The group of unix; empty leaves that of the process.", '"px-sidecar-clients"', "the name of a group"
    ),
    "control": KeyText(
        "The Unix socket of the verbs that show and change the daemon; open to the daemon's user and root only.",
        '"/run/px-sidecar/control.sock"',
        "a path of at most 107 bytes",
    ),
    "control_read": KeyText(
        "A second control socket that answers reading calls only, to members of the group px-sidecar-operators where "
        'that group exists. "" turns it off.',
        '"/run/px-sidecar/control-read.sock"',
        "a path of at most 107 bytes",
    ),
    "max_memory": KeyText(
        "The bound on all that is held for clients: heads, bodies, lines and answers. Beyond it requests wait, and then "
        "the slowest clients are answered 503 busy.",
        '"128MiB"',
    ),
    "allow_remote": KeyText(
        "Whether http and https may be addresses that other hosts reach. Give each client a write key in [[source]] then.",
        "true",
    ),
}

_SOURCE: Final = {
    "write_key": KeyText(
        "The write key that an app sends, as its SDK does. Once there is a source, requests over TCP must carry a known "
        'one. With HTTP Basic a key with ":" needs the empty password that SDKs send, as in "wk:web:".',
        '"wk_web"',
        "a text that is not empty and that no other source has",
    ),
    "property_key": KeyText(
        "The PX product of this source's events; empty means px.property_key.",
        '"AP-YYYYYYYYYY-2"',
        "a product key, AP-XXXXXXXXXX-2",
    ),
}

_OUTBOX: Final = {
    "path": KeyText(
        "The file of accepted events. Empty means outbox.db in $STATE_DIRECTORY, else in /var/lib/px-sidecar.",
        '"/var/lib/px-sidecar/outbox.db"',
        "a path on a local file system",
    ),
    "durability": KeyText(
        "When an event is answered. disk: after fsync. process: after the write, which survives a crash of the process "
        "but not of the host.",
        '"process"',
    ),
    "max_bytes": KeyText("The space for events; when it is used up, when_full decides.", '"10GiB"'),
    "when_full": KeyText(
        "What happens to a new event when the outbox is full. refuse: 503 with Retry-After. drop_oldest: the oldest "
        "pending event becomes dropped: outbox_full.",
        '"drop_oldest"',
    ),
    "keep_delivered": KeyText(
        "How long delivered and dropped events can be looked at (`events`, `trace`); they are deleted first when space runs short.",
        '"7d"',
    ),
    "keep_ids": KeyText(
        "How long a repeated messageId is recognized; always while its event is pending or dead.", '"48h"'
    ),
    "keep_dead": KeyText("How long dead letters are kept; then they become dropped: discarded.", '"90d"'),
    "max_event_bytes": KeyText(
        "The largest event, without the context that its batch shares. A larger one becomes dead: bad_event.",
        '"64KiB"',
        'a size such as "32KiB", at most max_request_bytes',
    ),
    "max_request_bytes": KeyText("The largest body of a request; a larger one is answered 400 too_large.", '"9MiB"'),
}

_DELIVER: Final = {
    "per_second": KeyText("The ceiling: requests to PX in any one second, slightly under PX's documented 200.", "150"),
    "per_day": KeyText("The requests of a day, slightly under PX's documented 1,000,000.", "500_000"),
    "hosts": KeyText(
        "The hosts that share the PX subscription: both limits are divided by it. Not used with [fleet].", "3"
    ),
    "day": KeyText("What a day is. rolling: any 24 hours. utc: a calendar day.", '"utc"'),
    "pace": KeyText(
        "burst: at per_second until the day is spent. spread: evenly over the day.",
        '"spread"',
    ),
    "reserve_for_high": KeyText("The share of the day that only events of class high may use.", "0.2"),
    "order": KeyText(
        "user: the events of a user one after the other, in order. none: without order, so that one user is not limited "
        "to one request per round trip.",
        '"none"',
    ),
    "max_in_flight": KeyText(
        "The most events that are sent and not yet settled on disk: what a crash can repeat. Connections are opened as they "
        "are needed.",
        "64",
    ),
    "timeout": KeyText(
        "The time of one attempt: connecting, sending and the answer together.",
        '"10s"',
        'a duration above 0s such as "30s"',
    ),
    "max_age": KeyText('An older pending event becomes dead: too_old. "" keeps events without limit.', '"3d"'),
    "retry_initial": KeyText(
        "The wait after the first failure; it doubles, with jitter, up to retry_max.",
        '"2s"',
        'a duration above 0s such as "1s", at most retry_max',
    ),
    "retry_max": KeyText("The longest wait between two attempts.", '"10m"'),
    "stop_timeout": KeyText("How long a stop waits for answers to requests in flight.", '"20s"'),
}

_FLEET: Final = {
    "url": KeyText(
        "The Redis or Valkey through which hosts share both limits. Empty means no fleet.",
        '"rediss://engine.example:6379"',
        "redis://HOST:PORT, rediss://HOST:PORT, or unix:///PATH, without user and password",
    ),
    "name": KeyText(
        "The name of the fleet, the same on all of its hosts; required with url.",
        '"production"',
        "at most 64 letters, digits, dots, dashes and underscores",
    ),
    "username": KeyText("The user at the engine; empty means its default user.", '"px-sidecar"', "a user name"),
    "password_file": KeyText(
        'A file that holds the engine\'s password alone; or the systemd credential "fleet_password".',
        '"/etc/px-sidecar/fleet_password"',
        "the path of a file",
    ),
    "ca_file": KeyText(
        "Certificates that are trusted for rediss:// instead of the system's.",
        '"/etc/ssl/certs/company.pem"',
        "the path of a PEM file",
    ),
    "replicas": KeyText(
        "Replicas that must have acknowledged an answer before it is used; 1 or more where a stale primary may live on.",
        "1",
    ),
    "forget_after": KeyText(
        "A host that is absent for longer no longer holds a promise.", '"48h"', 'a duration of at least "10m"'
    ),
    "on_stop": KeyText(
        "keep: a stop leaves pending events for the next start. drain: a stop first sends as class high for stop_timeout.",
        '"drain"',
    ),
}

_MAPPING: Final = {
    "preset": KeyText(
        "The names and fields to begin with: `px-sidecar map --reference` lists them. none: names stay as they are.",
        '"none"',
    ),
    "unmapped": KeyText(
        "What happens to a name that no rule maps. pass: it is kept. drop: the event is dropped.", '"drop"'
    ),
    "anonymous": KeyText(
        "What happens to an event without a user. drop: dropped: no_user. visitor or lead: its anonymousId becomes a PX "
        "user of that type.",
        '"visitor"',
    ),
    "attribute_case": KeyText("camel: plan_name becomes planName. keep: names stay as they are.", '"keep"'),
    "nested": KeyText(
        "What happens to objects and lists in attributes. string: compact JSON. flatten: names with dots.", '"flatten"'
    ),
    "url_query": KeyText(
        "The parameters of URLs (url, referrer, attributes that are URLs): keep all, drop all, or keep the named ones.",
        '["utm_source", "utm_campaign"]',
        "'keep', 'drop' or a list of names",
    ),
    "consent": KeyText(
        "Categories of context.consent.categoryPreferences that must not be false; else dropped: no_consent.",
        '["analytics"]',
    ),
    "events": KeyText(
        'A name or glob, as apps send it, and its name in PX; "" drops it. Takes precedence over the preset, exact names over globs.',
        '{ "Products Searched" = "Searched", "Debug *" = "" }',
        "a table of names",
    ),
    "event": KeyText(
        "Rules for one event, by the name that apps send; a table for each.",
        '{ "Subscription Started" = { priority = "high" } }',
        'tables [mapping.event."NAME"]',
    ),
    "drop": KeyText(
        "Events that are not sent (dropped: filtered), by name and by values of the call.",
        '[{ where = { "context.traits.email" = "*@example.com" } }]',
        "tables, each under its own [[mapping.drop]]",
    ),
    "fields": KeyText(
        "A field of PX's event, and the path or paths in the call that it comes from; the first with a value counts. "
        "Replaces that field's own list.",
        '{ accountId = ["context.groupId", "traits.company_id"] }',
        "identifyId, accountId, sessionId, url, referrer, remoteHost, date, eventName, userType, eventId, "
        "globalContext.NAME",
    ),
    "attributes": KeyText("Rules for the attributes of all events.", '{ drop = ["email"] }', "a table"),
    "traits": KeyText("Rules for the attributes of PX users and accounts.", '{ drop = ["phone"] }', "a table"),
}

_ATTRIBUTES: Final = {
    "keep": KeyText("Names that are sent; empty means all.", '["plan", "feature_name"]'),
    "drop": KeyText("Names that never leave this host, in any form.", '["email"]'),
    "hash": KeyText("Names whose values are sent as their SHA-256.", '["phone"]'),
    "hash_salt": KeyText(
        "A text that is hashed together with each value, so that hashes of known values cannot be looked up.", '"4f1c…"'
    ),
    "rename": KeyText("A name as apps send it, and its name in PX.", '{ plan_name = "plan" }', "a table of names"),
    "set": KeyText(
        "Attributes that are added; they replace those of the call.",
        '{ environment = "production" }',
        "a table of texts, numbers, true and false",
    ),
    "case": KeyText("As mapping.attribute_case, but for this table only.", '"keep"'),
    "nested": KeyText("As mapping.nested, but for this table only.", '"flatten"'),
}

_EVENT: Final = {
    "priority": KeyText(
        "The class, decided when the event is accepted. high goes first and may use the reserve of the day; low takes "
        "what the others leave.",
        '"high"',
    ),
    "user_type": KeyText("The type of the PX user, instead of the usual one.", '"LEAD"'),
    "attributes": KeyText(
        "Rules for the attributes of this event, merged over mapping.attributes.", '{ keep = ["plan"] }', "a table"
    ),
    "per_day": KeyText("The most events of this name in a day; more are dropped: capped.", "10_000"),
    "sample": KeyText(
        "The share of users whose events of this name are sent; the others' are dropped: sampled.", "0.1"
    ),
}

_DROP: Final = {
    "event": KeyText("The name that apps send, or a glob.", '"Debug *"', "a name or a glob"),
    "where": KeyText(
        "Paths in the call and globs for their values; all of them must match.",
        '{ "context.traits.email" = "*@example.com" }',
        "a table of paths",
    ),
}

_PEOPLE: Final = {
    "users": KeyText("Whether identify calls also write PX users.", '"upsert"'),
    "accounts": KeyText("Whether group calls, and account traits, also write PX accounts.", '"upsert"'),
}

_IDENTITY: Final = {
    "max_users": KeyText(
        "How many users are remembered with their accounts; the least recently seen are forgotten first.", "100_000"
    ),
    "reject": KeyText(
        "Ids that are mistakes of an app; they count as no id, and are reported.", '["undefined", "null", "0"]'
    ),
}

_LOG: Final = {
    "level": KeyText("The lowest level that is logged.", '"debug"'),
    "format": KeyText("auto: text on a terminal, otherwise JSON. text and json: always that one.", '"json"'),
}

_FILE: Final = {
    "px": KeyText("The PX subscription.", '{ region = "eu" }', "a table"),
    "listen": KeyText("Addresses and sockets.", '{ http = "127.0.0.1:8321" }', "a table"),
    "source": KeyText("Apps with write keys of their own.", '[{ write_key = "wk_web" }]', "tables [[source]]"),
    "outbox": KeyText("The file of accepted events.", '{ max_bytes = "10GiB" }', "a table"),
    "deliver": KeyText("Pace, day, order and retries.", "{ per_second = 150 }", "a table"),
    "fleet": KeyText("Limits that hosts share.", '{ name = "production" }', "a table"),
    "mapping": KeyText("How an event becomes PX requests.", '{ preset = "none" }', "a table"),
    "people": KeyText("Users and accounts in PX.", '{ users = "upsert" }', "a table"),
    "identity": KeyText("Which users are remembered.", "{ max_users = 100_000 }", "a table"),
    "log": KeyText("The log on stderr.", '{ level = "debug" }', "a table"),
}

KEY_TEXTS: Final[dict[type[Table], dict[str, KeyText]]] = {
    PxConfig: _PX,
    ListenConfig: _LISTEN,
    SourceConfig: _SOURCE,
    OutboxConfig: _OUTBOX,
    DeliverConfig: _DELIVER,
    FleetConfig: _FLEET,
    MappingConfig: _MAPPING,
    AttributeRules: _ATTRIBUTES,
    EventRules: _EVENT,
    DropRule: _DROP,
    PeopleConfig: _PEOPLE,
    IdentityConfig: _IDENTITY,
    LogConfig: _LOG,
    Config: _FILE,
}

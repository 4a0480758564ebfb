"""The tables of the outbox, as migrations: an older file is brought up to date in place, one step a transaction.

``events``    every event until its body is pruned; ``pending``, ``aside`` and ``settled`` are partial indexes over a few
              bytes a row: the next page, a waiting user's rows, and what is oldest in the history are found at once
``dead``      why an event was refused for good, beside its row in ``events``
``retries``   attempts that failed and will be repeated
``ids``       message ids older than the newest, see ``ids.py``
``users``     the memory of users
``counters``  numbers that outlive the rows they count
``meta``      small JSON values of the rooms above, by name
``quota``     requests sent, per minute
``sources``   which product the events of a write key belong to; the key itself is never stored

Each step sets ``user_version`` to its number, so that an older px-sidecar can tell that it does not know the file.
"""

import sqlite_utils
from sqlite_utils.migrations import Migrations

__all__ = ["SCHEMA_VERSION", "migrations"]

SCHEMA_VERSION = 1
migrations = Migrations("px-sidecar")


@migrations()
def m0001_first_light(database: sqlite_utils.Database) -> None:
    """The first released schema."""
    for statement in _FIRST_LIGHT.split(";"):
        database.conn.execute(statement)


_FIRST_LIGHT = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY, state INTEGER NOT NULL, source INTEGER NOT NULL, user TEXT, received_ms INTEGER NOT NULL,
    body BLOB NOT NULL, settled_ms INTEGER, status INTEGER, reason TEXT, attempts INTEGER
) STRICT;
CREATE INDEX pending ON events (state, id) WHERE state < 2;
CREATE INDEX aside ON events (state, user, id) WHERE state IN (2, 3);
CREATE INDEX settled ON events (state, settled_ms) WHERE state > 3;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY, reason TEXT NOT NULL, name TEXT NOT NULL, user TEXT, status INTEGER, detail TEXT NOT NULL,
    attempts INTEGER NOT NULL, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE retries (
    id INTEGER PRIMARY KEY, attempts INTEGER NOT NULL, first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
    counted INTEGER NOT NULL, over_ms INTEGER NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TABLE ids (digest BLOB PRIMARY KEY, event_id INTEGER NOT NULL, seen_s INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE users (
    property_key TEXT NOT NULL, user TEXT NOT NULL, known BLOB NOT NULL, seen_ms INTEGER NOT NULL,
    PRIMARY KEY (user, property_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX users_seen ON users (seen_ms);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE quota (minute INTEGER NOT NULL, boot_id TEXT NOT NULL, boot_minute INTEGER NOT NULL, sent INTEGER NOT NULL,
    PRIMARY KEY (minute, boot_id, boot_minute)) STRICT, WITHOUT ROWID;
CREATE TABLE sources (id INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL UNIQUE, property_key TEXT NOT NULL) STRICT;
PRAGMA user_version = 1
"""

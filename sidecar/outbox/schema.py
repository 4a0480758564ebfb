"""The tables of the outbox, as migrations: an older file is brought up to date in place, one migration per transaction.

``events``    every event until its body is pruned. Three partial indexes, a few bytes per row, find rows directly:
              ``pending`` the next page, ``aside`` the parked rows of a user, ``settled`` the oldest history
``dead``      why an event was refused for good, beside its row in ``events``
``retries``   failed attempts of pending events
``ids``       message ids that have left memory, see ``dedup.py``
``users``     the memory of users: what the mapping knows about each
``counters``  numbers that outlive the rows they count
``meta``      small JSON values of other packages, by name
``quota``     requests sent, per minute
``sources``   which product the events of a write key belong to; only a fingerprint of the key is stored

Each migration sets ``user_version`` to its number, so that an older px-sidecar can refuse a newer file.
"""

import sqlite_utils
from sqlite_utils.migrations import Migrations

from sidecar.outbox.lock import SCHEMA_VERSION

__all__ = ["SCHEMA_VERSION", "migrations"]

migrations = Migrations("px-sidecar")


# The name of a migration is stored in every outbox file: renaming the function would apply it a second time.
@migrations()
def m0001_first_light(database: sqlite_utils.Database) -> None:
    """The first released schema."""
    for statement in _FIRST_SCHEMA.split(";"):
        database.conn.execute(statement)


@migrations()
def m0002_what_the_app_said(database: sqlite_utils.Database) -> None:
    """Columns for the account of each event and user as it was at acceptance, and for what verbs look up.

    Columns are only appended and are NULL in older rows, which SQLite does without reading or writing a row
    (https://www.sqlite.org/lang_altertable.html#alter_table_add_column): the step takes milliseconds with ten rows and
    with ten million, in one transaction, so that a kill leaves the older format or the new one.
    """
    for statement in _WHAT_THE_APP_SAID.split(";"):
        database.conn.execute(statement)


_WHAT_THE_APP_SAID = """
ALTER TABLE events ADD COLUMN account TEXT;
ALTER TABLE events ADD COLUMN account_from TEXT;
ALTER TABLE events ADD COLUMN account_call INTEGER;
ALTER TABLE events ADD COLUMN name INTEGER;
ALTER TABLE events ADD COLUMN via INTEGER;
ALTER TABLE events ADD COLUMN hashed TEXT;
ALTER TABLE events ADD COLUMN history TEXT;
ALTER TABLE users ADD COLUMN account TEXT;
ALTER TABLE users ADD COLUMN account_from TEXT;
ALTER TABLE users ADD COLUMN account_call INTEGER;
CREATE TABLE names (
    id INTEGER PRIMARY KEY, type TEXT NOT NULL, name TEXT NOT NULL, events INTEGER NOT NULL, first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL, UNIQUE (type, name)
) STRICT;
CREATE TABLE caps (
    name INTEGER NOT NULL, day INTEGER NOT NULL, taken INTEGER NOT NULL, PRIMARY KEY (name, day)
) STRICT, WITHOUT ROWID;
CREATE TABLE low_parked (
    user TEXT NOT NULL, id INTEGER NOT NULL, since_ms INTEGER NOT NULL, PRIMARY KEY (user, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE suppressed (digest BLOB PRIMARY KEY, since_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL, position TEXT NOT NULL,
    done INTEGER NOT NULL, total INTEGER NOT NULL, started_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL
) STRICT;
INSERT INTO meta SELECT 'ids_of_the_first_format', '1' WHERE EXISTS (SELECT 1 FROM ids);
PRAGMA user_version = 2
"""

# The states in the index conditions are the values of ``records.EventState``. A query uses a partial index only if it
# repeats the condition literally.
_FIRST_SCHEMA = """
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

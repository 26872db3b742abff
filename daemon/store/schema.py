"""The store's tables, as numbered steps from an empty file. A step that was ever released is never changed."""

import sqlite3

# Step N brings user_version N to N + 1.
_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE namespaces (
        name TEXT PRIMARY KEY,
        labels TEXT NOT NULL DEFAULT '{}'           -- JSON
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE containers (
        ns TEXT NOT NULL,
        id TEXT NOT NULL,
        record BLOB NOT NULL,                       -- containerd.services.containers.v1.Container
        PRIMARY KEY (ns, id)
    ) STRICT;

    CREATE TABLE tasks (
        ns TEXT NOT NULL,
        id TEXT NOT NULL,
        state TEXT NOT NULL,                        -- see records.py
        incarnation TEXT NOT NULL DEFAULT '',       -- '' until the shim has told it
        runtime TEXT NOT NULL,
        shim_path TEXT NOT NULL,
        bundle TEXT NOT NULL,
        address TEXT NOT NULL DEFAULT '',
        shim_pid INTEGER NOT NULL DEFAULT 0,
        shim_start_ticks INTEGER NOT NULL DEFAULT 0,
        pid INTEGER NOT NULL DEFAULT 0,
        pid_start_ticks INTEGER NOT NULL DEFAULT 0,
        boot_id TEXT NOT NULL,
        request BLOB NOT NULL,                      -- containerd.services.tasks.v1.CreateTaskRequest
        created_at_ns INTEGER NOT NULL,
        started_at_ns INTEGER NOT NULL DEFAULT 0,
        restarts INTEGER NOT NULL DEFAULT 0,        -- by the restart policy, since the client created the task
        streak INTEGER NOT NULL DEFAULT 0,          -- of them, those in a row that ended too soon
        PRIMARY KEY (ns, id)
    ) STRICT;

    -- Kept after the task is deleted. seq orders them over all tasks; shim_seq is the journal's, 0 for our own finding.
    CREATE TABLE exits (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        ns TEXT NOT NULL,
        container_id TEXT NOT NULL,
        incarnation TEXT NOT NULL,
        exec_id TEXT NOT NULL,
        shim_seq INTEGER NOT NULL,
        record BLOB NOT NULL,                       -- shimd.shim.v1.ExitRecord
        UNIQUE (ns, container_id, incarnation, exec_id, shim_seq)
    ) STRICT;

    -- seq is the cursor clients hold: never reused, also not after the newest event was pruned.
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ns INTEGER NOT NULL,
        ns TEXT NOT NULL,
        topic TEXT NOT NULL,
        type_url TEXT NOT NULL,
        value BLOB NOT NULL,
        exit BLOB,                                  -- shimd.shim.v1.ExitRecord, with /tasks/exit
        incarnation TEXT,                           -- of the journal it came from, with shim_seq; NULL: our own
        shim_seq INTEGER,
        UNIQUE (incarnation, shim_seq)
    ) STRICT;
    CREATE INDEX events_by_age ON events (at_ns);

    -- How far each shim's journal is stored.
    CREATE TABLE cursors (
        incarnation TEXT PRIMARY KEY,
        stored_seq INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)

VERSION = len(_MIGRATIONS)


class NewerSchema(Exception):
    """The store was written by a later release; nothing was touched."""


def migrate(connection: sqlite3.Connection, path: str) -> int:
    """Bring the file to this release's tables; returns the version it had. All steps or none.

    Raises: NewerSchema; sqlite3.Error.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise NewerSchema(
            f"{path} has schema {found}, this release knows up to {VERSION}: "
            "run the release that wrote it or a later one, or restore an older copy"
        )
    if found == VERSION:
        return VERSION
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in _MIGRATIONS[found:]:
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return int(found)


def _statements(step: str) -> list[str]:
    """Split a step into statements: executescript would commit the transaction around them."""
    statements: list[str] = []
    collected = ""
    for line in step.splitlines(keepends=True):
        collected += line
        if sqlite3.complete_statement(collected):
            statements.append(collected)
            collected = ""
    assert not collected.strip(), f"a migration ends in the middle of a statement: {collected!r}"
    return statements

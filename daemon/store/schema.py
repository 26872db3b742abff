"""The store's tables, as numbered steps from an empty file. A step that was ever released is never changed.

Each step says which programs can still work with what it makes, by the schema number they know up to: a column that an
older program does not look at leaves it a reader, a changed meaning does not. The file carries the oldest such number,
so a program that is older than the file knows whether it may open it.
"""

import os
import sqlite3
from typing import NamedTuple


class Step(NamedTuple):
    """One migration: its statements, and the oldest schema whose programs can work with the outcome."""

    statements: str
    oldest_reader: int


class Found(NamedTuple):
    """What a file is: its schema (0: there is none yet), and the oldest schema whose programs can work with it."""

    schema: int
    oldest_reader: int


_FIRST = """
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
    """

# Step N brings user_version N to N + 1.
MIGRATIONS: tuple[Step, ...] = (Step(_FIRST, oldest_reader=1),)

VERSION = len(MIGRATIONS)
OLDEST_READER_KEY = "oldest_reader"  # in meta; absent: only programs that know the schema itself


class NewerSchema(Exception):
    """The store was written by a later release; nothing was touched."""


def oldest_reader() -> int:
    """The oldest schema whose programs can work with a file that this program has migrated."""
    return max(step.oldest_reader for step in MIGRATIONS)


def find(connection: sqlite3.Connection) -> Found:
    """What the file is. Raises: sqlite3.Error."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if not schema:
        return Found(0, 0)
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (OLDEST_READER_KEY,)).fetchone()
    return Found(int(schema), int(row[0]) if row else int(schema))


def examine(path: str) -> Found:
    """What the file at `path` is, without changing anything in it; also while another process writes there.

    Raises: sqlite3.Error.
    """
    if not os.path.exists(path):
        return Found(0, 0)
    connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)
    try:
        return find(connection)
    finally:
        connection.close()


def _quoted(path: str) -> str:
    """For a file: URI. Source: sqlite.org/uri.html."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def require_readable(found: Found, path: str, known: int | None = None) -> None:
    """Raises: NewerSchema, when a program that knows schemas up to `known` (this one) cannot work with the file."""
    known = VERSION if known is None else known
    if found.schema > known and found.oldest_reader > known:
        kept = backup_path(path, known)
        raise NewerSchema(
            f"{path} has schema {found.schema}, this release knows up to {known}: "
            f"run a release that knows schema {found.oldest_reader} or later"
            + (f", or restore the copy from before: {kept}" if os.path.exists(kept) else ", or restore an older copy")
        )


def backup_path(path: str, schema: int) -> str:
    """Where the copy is kept that a migration makes which programs of `schema` cannot follow."""
    return f"{path}.schema-{schema}"


def migrate(connection: sqlite3.Connection, path: str) -> int:
    """Bring the file to this release's tables; returns the version it had. All steps or none.

    A newer file that this release can work with stays as it is. Before steps that the release which wrote the file
    could not follow, a copy of it is put beside it (`backup_path`).
    Raises: NewerSchema; sqlite3.Error.
    """
    found = find(connection)
    require_readable(found, path)
    if found.schema >= VERSION:
        return found.schema
    oldest = oldest_reader()
    if found.schema and oldest > found.schema:
        _back_up(connection, backup_path(path, found.schema))
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[found.schema :]:
            for statement in _statements(step.statements):
                connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (OLDEST_READER_KEY, str(oldest)))
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return found.schema


def _back_up(connection: sqlite3.Connection, path: str) -> None:
    """A copy of the whole file, on disk when this returns; it never looks complete while it is not."""
    unfinished = f"{path}.new"
    if os.path.exists(unfinished):
        os.unlink(unfinished)
    fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy = sqlite3.connect(unfinished, isolation_level=None)
        try:
            connection.backup(copy)
        finally:
            copy.close()
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(unfinished, path)


def restore(path: str) -> bool:
    """Put the copy back that a later release made before it changed the file beyond us. For a hand-over that failed.

    Call it only while nobody has the file open. Returns false when there is nothing to put back.
    Raises: OSError, sqlite3.Error.
    """
    found = examine(path)
    kept = backup_path(path, VERSION)
    if found.schema <= VERSION or found.oldest_reader <= VERSION or not os.path.exists(kept):
        return False
    for suffix in ("-wal", "-shm"):  # of the file that goes: they must never meet the one that comes
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    os.rename(kept, path)
    return True


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

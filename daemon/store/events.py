"""The event journal and the exit records: appended, never changed, pruned from the old end."""

import sqlite3

from daemon.store.records import NewEvent, NewExit, StoredEvent, StoredExit

# Far beyond what a shim or client tells (some hundred bytes); keep_count of them must fit a disk, a page our memory.
MAX_EVENT_BYTES = 256 * 1024
_PRUNED = "events.pruned_through"


def append(connection: sqlite3.Connection, event: NewEvent) -> bool:
    """Store an event; False when this journal record was stored before."""
    cursor = connection.execute(
        "INSERT OR IGNORE INTO events (at_ns, ns, topic, type_url, value, exit, incarnation, shim_seq) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            event.at_ns,
            event.ns,
            event.topic,
            event.type_url,
            event.value,
            event.exit,
            event.incarnation,
            event.shim_seq,
        ),
    )
    return cursor.rowcount == 1


def has_topic(connection: sqlite3.Connection, incarnation: str, topic: str) -> bool:
    """Whether an event of this topic came from this journal, and was not pruned since."""
    found = connection.execute("SELECT 1 FROM events WHERE incarnation = ? AND topic = ?", (incarnation, topic))
    return found.fetchone() is not None


def page(connection: sqlite3.Connection, after_seq: int, limit: int) -> list[StoredEvent]:
    """Up to ``limit`` events after a cursor, of all namespaces, oldest first."""
    rows = connection.execute(
        "SELECT seq, at_ns, ns, topic, type_url, value, exit FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
        (after_seq, limit),
    )
    return [StoredEvent(*row) for row in rows]


def newest_seq(connection: sqlite3.Connection) -> int:
    """The highest number ever given, also when that event was pruned; 0 when there was none."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(found[0]) if found else 0


def oldest_seq(connection: sqlite3.Connection) -> int:
    """The oldest event still stored; 0 when there is none."""
    (found,) = connection.execute("SELECT min(seq) FROM events").fetchone()
    return int(found or 0)


def pruned_through(connection: sqlite3.Connection) -> int:
    """The newest event that was pruned: a cursor before it has missed something. 0: nothing ever was."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (_PRUNED,)).fetchone()
    return int(found[0]) if found else 0


def prune(connection: sqlite3.Connection, *, keep_count: int, older_than_ns: int, limit: int = 5000) -> int:
    """Drop up to ``limit`` events that are too many (0: no bound) or too old; returns how many went.

    Only from the old end, so that what is stored is always one unbroken run.
    """
    through = 0
    if keep_count:
        found = connection.execute(
            "SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?", (keep_count,)
        ).fetchone()
        through = int(found[0]) if found else 0
    (first_young,) = connection.execute("SELECT min(seq) FROM events WHERE at_ns >= ?", (older_than_ns,)).fetchone()
    through = max(through, first_young - 1 if first_young is not None else newest_seq(connection))
    doomed = connection.execute(
        "SELECT max(seq), count(*) FROM (SELECT seq FROM events WHERE seq <= ? ORDER BY seq LIMIT ?)", (through, limit)
    ).fetchone()
    last, count = doomed
    if not count:
        return 0
    connection.execute("DELETE FROM events WHERE seq <= ?", (last,))
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (_PRUNED, str(last))
    )
    return int(count)


# --- exits


def record_exit(connection: sqlite3.Connection, found: NewExit) -> bool:
    """Store an exit; False when it was stored before."""
    cursor = connection.execute(
        "INSERT OR IGNORE INTO exits (ns, container_id, incarnation, exec_id, shim_seq, record) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (found.ns, found.container_id, found.incarnation, found.exec_id, found.shim_seq, found.record),
    )
    return cursor.rowcount == 1


def last_exit(
    connection: sqlite3.Connection, ns: str, container_id: str, incarnation: str, exec_id: str
) -> StoredExit | None:
    """The newest exit of one process (an exec's id may be used again) of one task."""
    row = connection.execute(
        "SELECT seq, container_id, incarnation, exec_id, record FROM exits "
        "WHERE ns = ? AND container_id = ? AND incarnation = ? AND exec_id = ? ORDER BY seq DESC LIMIT 1",
        (ns, container_id, incarnation, exec_id),
    ).fetchone()
    return StoredExit(*row) if row else None


def has_exit(connection: sqlite3.Connection, ns: str, container_id: str, exec_id: str, shim_seq: int) -> bool:
    """Whether an exit of this number is stored, of whichever task of the container."""
    row = connection.execute(
        "SELECT 1 FROM exits WHERE ns = ? AND container_id = ? AND exec_id = ? AND shim_seq = ?",
        (ns, container_id, exec_id, shim_seq),
    ).fetchone()
    return row is not None


def list_exits(
    connection: sqlite3.Connection, ns: str, container_id: str, exec_id: str | None, limit: int
) -> list[StoredExit]:
    """The newest ``limit`` exits (0: all) of a container ('': of the namespace), oldest first."""
    where, values = _where(("ns", ns), ("container_id", container_id or None), ("exec_id", exec_id))
    rows = connection.execute(
        "SELECT seq, container_id, incarnation, exec_id, record FROM exits "  # noqa: S608 - constants
        f"WHERE {where} ORDER BY seq DESC LIMIT ?",
        (*values, limit or -1),
    ).fetchall()
    return [StoredExit(*row) for row in reversed(rows)]


def current_exits(
    connection: sqlite3.Connection, ns: str, container_id: str, exec_id: str | None, limit: int
) -> list[StoredExit]:
    """As `list_exits`, but only of containers that are on record, and of each process its newest exit."""
    where, values = _where(("containers.ns", ns), ("containers.id", container_id or None), ("exec_id", exec_id))
    rows = connection.execute(
        "SELECT seq, container_id, incarnation, exec_id, record FROM exits WHERE seq IN ("  # noqa: S608 - constants
        "SELECT max(exits.seq) FROM containers "
        "JOIN exits ON exits.ns = containers.ns AND exits.container_id = containers.id "
        f"WHERE {where} GROUP BY containers.id, exec_id) ORDER BY seq DESC LIMIT ?",
        (*values, limit or -1),
    ).fetchall()
    return [StoredExit(*row) for row in reversed(rows)]


def _where(*columns: tuple[str, str | None]) -> tuple[str, list[str]]:
    """The condition that each of these columns has its value, and the values; None: any will do."""
    given = [(name, value) for name, value in columns if value is not None]
    return " AND ".join(f"{name} = ?" for name, _ in given), [value for _, value in given]


def prune_exits(connection: sqlite3.Connection, keep_count: int, limit: int = 5000) -> int:
    """Drop up to ``limit`` of the oldest exits beyond ``keep_count`` (0: no bound); never how a task on record ended.

    Its execs' go like all others: a health check of every ten seconds makes three million a year.
    """
    if not keep_count:
        return 0
    cursor = connection.execute(
        "DELETE FROM exits WHERE seq IN (SELECT seq FROM exits WHERE seq <= "
        "(SELECT seq FROM exits ORDER BY seq DESC LIMIT 1 OFFSET ?) "
        "AND NOT (exec_id = '' AND incarnation IN (SELECT incarnation FROM tasks)) ORDER BY seq LIMIT ?)",
        (keep_count, limit),
    )
    return cursor.rowcount

"""Rows of tasks, and how far each one's journal is stored."""

import dataclasses
import sqlite3
from typing import Any

from daemon.store.records import CREATING, RESTARTING, TASK_STATES, TaskRow
from shim import policy

_COLUMNS = tuple(field.name for field in dataclasses.fields(TaskRow))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM tasks"  # noqa: S608 - column names are ours
_INSERT = f"INSERT INTO tasks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608

# A cursor is of a journal, and that of all runs in one bundle: `shim.policy.journal_of`.
_JOURNAL = "substr(incarnation, 1, instr(incarnation || '.', '.') - 1)"


def get(connection: sqlite3.Connection, ns: str, container_id: str) -> TaskRow | None:
    """The row of a container's task, if it has one."""
    found = connection.execute(f"{_SELECT} WHERE ns = ? AND id = ?", (ns, container_id)).fetchone()
    return TaskRow(**dict(zip(_COLUMNS, found, strict=True))) if found else None


def list_all(connection: sqlite3.Connection) -> list[TaskRow]:
    """Every task of every namespace, by namespace and id."""
    rows = connection.execute(f"{_SELECT} ORDER BY ns, id")
    return [TaskRow(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def insert(connection: sqlite3.Connection, row: TaskRow) -> None:
    """Raises: sqlite3.IntegrityError when the id has a task already."""
    assert row.state in TASK_STATES, row.state
    connection.execute(_INSERT, tuple(getattr(row, name) for name in _COLUMNS))


def update(connection: sqlite3.Connection, ns: str, container_id: str, **changes: Any) -> TaskRow | None:
    """Change some columns; returns the row as it now is, None when there is no such task."""
    assert set(changes) <= set(_COLUMNS) - {"ns", "id"}, changes
    assert changes.get("state", TASK_STATES[0]) in TASK_STATES, changes
    assignments = ", ".join(f"{name} = ?" for name in changes)
    connection.execute(
        f"UPDATE tasks SET {assignments} WHERE ns = ? AND id = ?",  # noqa: S608 - checked above
        (*changes.values(), ns, container_id),
    )
    return get(connection, ns, container_id)


def delete(connection: sqlite3.Connection, ns: str, container_id: str) -> None:
    """Forget the task. Its exits and events stay."""
    connection.execute(
        f"DELETE FROM cursors WHERE incarnation = (SELECT {_JOURNAL} FROM tasks WHERE ns = ? AND id = ?)",  # noqa: S608
        (ns, container_id),
    )
    connection.execute("DELETE FROM tasks WHERE ns = ? AND id = ?", (ns, container_id))


def cursor(connection: sqlite3.Connection, incarnation: str) -> int:
    """The record up to which the journal this run is told in is stored; 0: none."""
    journal = policy.journal_of(incarnation)
    found = connection.execute("SELECT stored_seq FROM cursors WHERE incarnation = ?", (journal,)).fetchone()
    return int(found[0]) if found else 0


def set_cursor(connection: sqlite3.Connection, incarnation: str, seq: int) -> None:
    """Only forward."""
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (incarnation) "
        "DO UPDATE SET stored_seq = max(stored_seq, excluded.stored_seq)",
        (policy.journal_of(incarnation), seq),
    )


def forget_cursor(connection: sqlite3.Connection, incarnation: str) -> None:
    """Of a journal that is gone."""
    connection.execute("DELETE FROM cursors WHERE incarnation = ?", (policy.journal_of(incarnation),))


def forget_orphan_cursors(connection: sqlite3.Connection) -> None:
    """Cursors of tasks that never came to have a row of their own. Nothing while a task is in the making: its row does
    not say yet which cursor is its."""
    connection.execute(
        f"DELETE FROM cursors WHERE incarnation NOT IN (SELECT {_JOURNAL} FROM tasks) "  # noqa: S608
        "AND NOT EXISTS (SELECT 1 FROM tasks WHERE state IN (?, ?))",
        (CREATING, RESTARTING),
    )

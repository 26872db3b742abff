"""Namespaces with their labels, container records, and the few facts about the store itself."""

import json
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrpc.api import containers

if TYPE_CHECKING:
    from ttrpc.api.containers import Container


def get(connection: sqlite3.Connection, ns: str, container_id: str) -> "Container | None":
    """One container's record, a copy of the caller's own."""
    found = connection.execute("SELECT record FROM containers WHERE ns = ? AND id = ?", (ns, container_id)).fetchone()
    return containers.Container.FromString(found[0]) if found else None


def iterate(connection: sqlite3.Connection, ns: str) -> "Iterator[Container]":
    """Every container of a namespace, by id."""
    for (record,) in connection.execute("SELECT record FROM containers WHERE ns = ? ORDER BY id", (ns,)):
        yield containers.Container.FromString(record)


def insert(connection: sqlite3.Connection, ns: str, container: "Container") -> None:
    """Raises: sqlite3.IntegrityError when the id is taken."""
    connection.execute(
        "INSERT INTO containers (ns, id, record) VALUES (?, ?, ?)", (ns, container.id, container.SerializeToString())
    )


def replace(connection: sqlite3.Connection, ns: str, container: "Container") -> None:
    connection.execute(
        "UPDATE containers SET record = ? WHERE ns = ? AND id = ?",
        (container.SerializeToString(), ns, container.id),
    )


def delete(connection: sqlite3.Connection, ns: str, container_id: str) -> bool:
    """Forget a container; False when there was none."""
    return connection.execute("DELETE FROM containers WHERE ns = ? AND id = ?", (ns, container_id)).rowcount == 1


# --- namespaces


def namespace_labels(connection: sqlite3.Connection, name: str) -> dict[str, str] | None:
    """The labels of a namespace; None when it was never written to."""
    found = connection.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return dict(json.loads(found[0])) if found else None


def list_namespaces(connection: sqlite3.Connection) -> list[tuple[str, dict[str, str]]]:
    """Every one that was ever written to, with its labels, by name."""
    rows = connection.execute("SELECT name, labels FROM namespaces ORDER BY name").fetchall()
    return [(name, json.loads(labels)) for name, labels in rows]


def ensure_namespace(connection: sqlite3.Connection, name: str) -> None:
    """The first write into a namespace makes it."""
    connection.execute("INSERT OR IGNORE INTO namespaces (name) VALUES (?)", (name,))


def put_namespace(connection: sqlite3.Connection, name: str, labels: dict[str, str]) -> None:
    connection.execute(
        "INSERT INTO namespaces VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
        (name, json.dumps(labels, sort_keys=True)),
    )


def delete_namespace(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))


def is_namespace_empty(connection: sqlite3.Connection, name: str) -> bool:
    """Whether neither containers nor tasks are in it; events and exits of the past do not count."""
    found = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM containers WHERE ns = ?1) OR EXISTS (SELECT 1 FROM tasks WHERE ns = ?1)", (name,)
    ).fetchone()
    return not found[0]


# --- facts about the store


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """A fact about the store itself, such as the server's uuid."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(found[0]) if found else None


def set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )

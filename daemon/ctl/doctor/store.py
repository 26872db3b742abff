"""The store, read only and without its daemon: what is on record, and whether the file is whole."""

import dataclasses
import os
import time

from daemon.ctl.doctor.finding import Finding, error, warning

SCHEMA_VERSION = 1  # what this release writes; see daemon/store/schema.py, which says what each step is
BUSY_MS = 2000
QUICK_CHECK_LINES = 5
CLOCK_SLACK_S = 60.0

Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What the doctor needs of a task's row."""

    state: str
    boot_id: str
    shim_pid: int
    shim_start_ticks: int
    pid: int
    pid_start_ticks: int
    bundle: str


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """A snapshot of the store."""

    tasks: dict[Key, Row] = dataclasses.field(default_factory=dict)
    containers: frozenset[Key] = frozenset()
    past: frozenset[Key] = frozenset()  # whose exit is stored, of whichever task
    newest_event_at_ns: int = 0
    schema: int = SCHEMA_VERSION
    damage: tuple[str, ...] = ()


def read(path: str, bundles_dir: str) -> "tuple[Store | None, str]":
    """The store, or None and why not. Also while a daemon writes it; nothing is changed.

    Blocks: on the disk; for a big store, seconds.
    """
    import sqlite3

    if not os.path.exists(path):
        return None, ""
    try:
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=BUSY_MS / 1000)
        try:
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            damage = tuple(
                str(line) for (line,) in connection.execute(f"PRAGMA quick_check({QUICK_CHECK_LINES})") if line != "ok"
            )
            rows = connection.execute(
                "SELECT ns, id, state, boot_id, shim_pid, shim_start_ticks, pid, pid_start_ticks, bundle FROM tasks"
            )
            tasks = {(ns, name): Row(*rest) for ns, name, *rest in rows}
            containers = frozenset((ns, name) for ns, name in connection.execute("SELECT ns, id FROM containers"))
            past = frozenset(
                (ns, name) for ns, name in connection.execute("SELECT DISTINCT ns, container_id FROM exits")
            )
            (newest,) = connection.execute("SELECT max(at_ns) FROM events").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as failure:
        return None, str(failure)
    if tasks and not any(row.bundle.startswith(bundles_dir + "/") for row in tasks.values()):
        return (
            None,
            f"it is of another state directory than {bundles_dir}: name both with --config, or --state and --root",
        )
    return Store(tasks, containers, past, newest or 0, schema, damage), ""


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


def check(path: str, found: Store | None, trouble: str, *, now_ns: int | None = None) -> "list[Finding]":
    """Whether the store can be read, is whole, is one this release knows, and has no event of the future. Pure."""
    if trouble:
        return [
            error(
                "store", path, f"it cannot be read: {trouble}",
                "the daemon cannot start, or forgets what it is told; containers run on under their shims",
                "stop the daemon, keep a copy of the file, and repair it: sqlite3 shimd.db .recover",
            )
        ]  # fmt: skip
    if found is None:
        return []
    findings = []
    if found.damage:
        findings.append(
            error(
                "store", path, f"SQLite finds it damaged: {'; '.join(found.damage)}",
                "records may be wrong or missing; the disk, or who else wrote there, is to blame",
                "stop the daemon, keep a copy of the file, and repair it: sqlite3 shimd.db .recover",
            )
        )  # fmt: skip
    if found.schema > SCHEMA_VERSION:
        findings.append(
            error(
                "store", path, f"it is of a newer release (schema {found.schema}, this one knows {SCHEMA_VERSION})",
                "a daemon of this release refuses to start on it",
                "install that release again, or restore the store it was upgraded from",
            )
        )  # fmt: skip
    ahead_s = (found.newest_event_at_ns - (now_ns if now_ns is not None else time.time_ns())) / 1e9
    if ahead_s > CLOCK_SLACK_S:
        findings.append(
            warning(
                "clock", "the clock", f"the newest stored event is {ahead_s:.0f} s ahead of it",
                "the clock went back: times of new events and exits come before those of old ones; their order is kept",
                "check how the clock is set: timedatectl, chronyc tracking",
            )
        )  # fmt: skip
    return findings

"""The store, read only and without its daemon: what is on record, and whether the file is whole."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator

from daemon.ctl.doctor.finding import ERROR, WARNING, Finding, Kind, command

SCHEMA_VERSION = 1  # what this release writes; see daemon/store/schema.py, which says what each step is
LOCK = "shimd.lock"  # daemon.lock, which is not imported: it is about taking it
BUSY_MS = 2000
QUICK_CHECK_LINES = 5
CLOCK_SLACK_S = 60.0

UNREADABLE = Kind(
    "store", ERROR,
    "the daemon cannot start, or forgets what it is told; containers run on under their shims",
    "stop the daemon, recover what can be read into a new file, and put that in the place of the old one and its -wal",
)  # fmt: skip
BUSY = Kind(
    "store", WARNING,
    "what is on record cannot be looked at now, so nothing is called an orphan",
    "try again; if it stays so, see who has the file open",
)  # fmt: skip
ELSEWHERE = Kind(
    "store", ERROR,
    "what is on record here cannot be known, so nothing is called an orphan and nothing removed",
    "name the daemon's own directories: --config FILE, or --root DIR and --state DIR",
)  # fmt: skip
DAMAGED = Kind(
    "store", ERROR,
    "records may be wrong or missing; the disk, or who else wrote there, is to blame",
    "stop the daemon, recover what can be read into a new file, and put that in the place of the old one and its -wal",
)  # fmt: skip
NEWER = Kind(
    "store", ERROR,
    "a daemon of this release refuses to start on it",
    "install that release again, or restore the store it was upgraded from",
)  # fmt: skip
CLOCK = Kind(
    "clock", WARNING,
    "the clock went back: times of new events and exits come before those of old ones; their order is kept",
    "see how the clock is set",
)  # fmt: skip

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


def read(path: str, bundles_dir: str) -> "tuple[Store | None, Finding | None]":
    """The store, or None and what is wrong with it, if it is there at all. Also while a daemon writes it; only read.

    Blocks: on the disk; for a big store, seconds.
    """
    import sqlite3

    if not os.path.exists(path):
        return None, None
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
        if getattr(failure, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
            return None, BUSY.of(path, f"it is locked: {failure}", command("fuser", "-v", path))
        return None, UNREADABLE.of(path, f"it cannot be read: {failure}", *_recover(path))
    is_its = any(row.bundle.startswith(bundles_dir + "/") for row in tasks.values())
    if not is_its and (tasks or not _is_of_one_daemon(path, bundles_dir)):
        return None, ELSEWHERE.of(path, f"it is of another state directory than {bundles_dir}")
    return Store(tasks, containers, past, newest or 0, schema, damage), None


def has_row(path: str, key: Key) -> bool:
    """Whether a task of this name is on record by now; also when that cannot be found out."""
    import sqlite3

    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=BUSY_MS / 1000)
        ) as connection:
            found = connection.execute("SELECT 1 FROM tasks WHERE ns = ? AND id = ?", key).fetchone()
    except sqlite3.Error:
        return True
    return found is not None


def _is_of_one_daemon(database_path: str, bundles_dir: str) -> bool:
    """Whether root and state directory were held by the same process when they were held last (daemon.lock), or
    nothing is in the state directory, as after a reboot.
    """
    holders: list[str | None] = []
    for directory in (os.path.dirname(database_path), os.path.dirname(bundles_dir)):
        try:
            with open(os.path.join(directory, LOCK), encoding="ascii", errors="replace") as file:
                holders.append(file.read())
        except OSError:
            holders.append(None)
    return holders[0] == holders[1] if None not in holders else not os.path.isdir(bundles_dir)


def _recover(path: str) -> tuple[str, str]:
    return "systemctl stop shimd", f"{command('sqlite3', path, '.recover')} | {command('sqlite3', path + '.new')}"


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


def check(path: str, found: Store | None, *, now_ns: int | None = None) -> "Iterator[Finding]":
    """Whether the store is whole, is one this release knows, and has no event of the future. Pure."""
    if found is None:
        return
    if found.damage:
        yield DAMAGED.of(path, f"SQLite finds it damaged: {'; '.join(found.damage)}", *_recover(path))
    if found.schema > SCHEMA_VERSION:
        yield NEWER.of(path, f"it is of a newer release (schema {found.schema}, this one knows {SCHEMA_VERSION})")
    ahead_s = (found.newest_event_at_ns - (now_ns if now_ns is not None else time.time_ns())) / 1e9
    if ahead_s > CLOCK_SLACK_S:
        said = f"the newest stored event is {ahead_s:.0f} s ahead of it"
        yield CLOCK.of("the clock", said, "timedatectl", "chronyc tracking")

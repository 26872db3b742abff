"""What a bundle's files and /proc say about a shim and its container, when the shim itself does not answer."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING

from daemon import procfs
from daemon.procfs import Identity
from daemon.shims import bundle, recovery
from daemon.store.records import TaskRow
from ttrpc.api import shim, wkt

if TYPE_CHECKING:
    from ttrpc.api.shim import ExitRecord

# The exit record files' own version; a later one is not guessed at.
EXIT_FILE_VERSION = 1
STATE_FILE_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Read from outside. `exits` are the bundle's exit records, init's and execs'."""

    has_bundle: bool
    shim: recovery.Shim  # GONE or SILENT: it was not asked
    init: recovery.Init
    exits: "tuple[ExitRecord, ...]" = ()
    incarnation: str = ""
    can_raise: bool = False
    is_coming_back: bool = False  # its shim was about to restart it

    @property
    def init_exit(self) -> "ExitRecord | None":
        return next((record for record in self.exits if not record.exec_id), None)


def gather(path: str, row: TaskRow | None, boot_id: str) -> Evidence:
    """Look at a bundle and at the processes its row names. Blocks: on /proc and small files; call it in a thread."""
    if not os.path.isdir(path):
        alive = row is not None and row.boot_id == boot_id and _shim_of(row, path) is recovery.Shim.SILENT
        return Evidence(False, recovery.Shim.SILENT if alive else recovery.Shim.GONE, _init_of(row, path, boot_id))
    exits = tuple(_read_exits(os.path.join(path, "exits")))
    state = _read_state(path)
    incarnation = str(state.get("incarnation") or "")
    can_raise = _can_raise(path, state, boot_id)
    init = _init_of(row, path, boot_id)
    return Evidence(True, _shim_of(row, path), init, exits, incarnation, can_raise, _is_coming_back(state))


def _can_raise(path: str, state: dict[str, object], boot_id: str) -> bool:
    """Whether the bundle says enough for a successor of our own shim: see shim/SHIM.md."""
    is_understood = state.get("version") == STATE_FILE_VERSION and state.get("boot_id") == boot_id
    is_live = state.get("state") not in ("creating", "deleted")
    return is_understood and is_live and not os.path.lexists(os.path.join(path, bundle.DOOMED))


def _is_coming_back(state: dict[str, object]) -> bool:
    """Whether a restart by policy was planned, or under way, when the state file was written."""
    planned = state.get("restart")
    return isinstance(planned, dict) and bool(planned.get("due_ns") or planned.get("phase"))


def _shim_of(row: TaskRow | None, path: str) -> recovery.Shim:
    """Gone only if every process on record as the shim is; without a record, only if nobody works in the bundle."""
    known = [Identity(row.shim_pid, row.shim_start_ticks)] if row is not None and row.shim_pid else []
    noted = _noted_shim(_read_state(path))
    if noted is not None:
        known.append(noted)  # a successor's, if the row is older
    if known:
        running = any(process.is_running() for process in known)
    else:
        running = next(procfs.working_in(path), None) is not None
    return recovery.Shim.SILENT if running else recovery.Shim.GONE


def _init_of(row: TaskRow | None, path: str, boot_id: str) -> recovery.Init:
    if row is not None and row.boot_id != boot_id:
        return recovery.Init.DEAD
    known = recorded_init(row, path)
    if known is None:
        return recovery.Init.UNKNOWN
    return recovery.Init.ALIVE if known.is_running() else recovery.Init.DEAD


def recorded_init(row: TaskRow | None, path: str) -> Identity | None:
    """The container's init as the row or the shim's own state file recorded it; None when neither did."""
    if row is not None and row.pid and row.pid_start_ticks:
        return Identity(row.pid, row.pid_start_ticks)
    state = _read_state(path)
    init = state.get("init")
    if isinstance(init, dict) and state.get("boot_id") == procfs.boot_id():
        pid, ticks = init.get("pid"), init.get("start_ticks")
        if isinstance(pid, int) and isinstance(ticks, int) and pid > 0 and ticks > 0:
            return Identity(pid, ticks)
    return None


def present_shim(row: TaskRow) -> Identity | None:
    """The task's shim: by the note of whoever serves there now, if it runs, for the row may be of one it has followed
    without anybody's notice. None when nothing is on record.
    """
    noted = _noted_shim(_read_state(row.bundle))
    if noted is not None and noted.is_running():
        return noted
    return Identity(row.shim_pid, row.shim_start_ticks) if row.shim_pid else None


def _noted_shim(state: dict[str, object]) -> Identity | None:
    pid, ticks = state.get("shim_pid"), state.get("shim_start_ticks")
    if isinstance(pid, int) and isinstance(ticks, int) and state.get("boot_id") == procfs.boot_id():
        return Identity(pid, ticks)
    return None


def identify_init(path: str, pid: int) -> Identity | None:
    """The container's init, of which its shim has just told the pid. Its own note says which process that was: one that
    has ended since may have left its pid to somebody else.
    """
    noted = recorded_init(None, path)
    return noted if noted is not None and noted.pid == pid else procfs.identify(pid)


def _read_state(path: str) -> dict[str, object]:
    try:
        state = json.loads(bundle.read_small(path, "state.json") or "{}")
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def _read_exits(directory: str) -> "list[ExitRecord]":
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    records = (exit_from_json(bundle.read_small(directory, name)) for name in names if name.endswith(".json"))
    return [record for record in records if record is not None]


def exit_from_json(text: str) -> "ExitRecord | None":
    """One exit record file; None when it is none, or of a version not known here. A damaged one proves nothing."""
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != EXIT_FILE_VERSION:
            return None
        record = shim.ExitRecord(
            container_id=fields["container_id"],
            exec_id=fields["exec_id"],
            seq=fields["seq"],
            pid=fields["pid"],
            source=fields["source"],
            oom=fields["oom"],
            core_dumped=fields["core_dumped"],
            exited_at=wkt.timestamp(fields["exited_at_ns"]),
            pid_start_ticks=fields["start_ticks"],
            boot_id=fields["boot_id"],
            incarnation=fields["incarnation"],
            code=fields["code"],
            signal=fields["signal"],
        )
        if fields["started_at_ns"] is not None:
            record.started_at.CopyFrom(wkt.timestamp(fields["started_at_ns"]))
    except (KeyError, TypeError, ValueError):
        return None
    return record

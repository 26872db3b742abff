"""How orphans of dead shims ended: the keeper is their next parent, and notes the exact status in their bundle.

A note is `<bundle>/keeper-exit.<pid>`, JSON: pid, start_ticks and boot_id (together the identity of the process),
wait_status as wait(2) has it, exited_at_ns, and shim_pid, the dead shim's.
"""

import json
import os
import time

from shim.bundle import Bundle, read_file, remove, write_replacing
from shim.core import kernel
from shim.task.lifecycle import DELETED, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
# How long after a shim's death a process nobody knows may be one it had begun: a runtime call that was under way goes
# on without it, and the successor waits for that; see successor.RUNTIME_S.
BEGUN_S = 30.0


class Orphans:
    """What is known of the processes dead shims left to this one. Owns the notes until a shim reads them."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._expected: dict[int, tuple[str, int]] = {}
        self._dead: dict[str, tuple[int, float]] = {}  # bundle → the shim's pid, and until when it may be asked about

    def expect(self, shim_pid: int, bundle: str) -> None:
        """A shim died: its container's processes are ours now, as far as they live or are not reaped."""
        self._dead = {each: dead for each, dead in self._dead.items() if os.path.isdir(each)}
        self._dead[bundle] = (shim_pid, time.monotonic() + BEGUN_S)
        for pid, ticks in recorded_processes(bundle).items():
            found = parent_and_start(pid)
            if found is not None and found[0] == os.getpid() and ticks in (None, found[1]):
                self._expected.setdefault(pid, (bundle, shim_pid))

    def note(self, pid: int, status: int) -> str:
        """An orphan ended and is not reaped yet: put that on disk. The bundle it belonged to; empty for a stray.

        A stray may be a process that a runtime started for a shim which died just then, and of which no file says so
        yet: it is noted in each bundle it may be of. Pid and start time tell the successors whether it is theirs. These
        notes are not synced: after the death of all shims there are so many that a slow disk would hold the keeper up.
        Order: before it is reaped, so that its pid and start time are still its own.
        """
        now_ns, now, ticks = time.time_ns(), time.monotonic(), kernel.start_ticks(pid)
        known = self._expected.pop(pid, None) or self._claimed(pid, ticks)
        recent = [(bundle, shim_pid) for bundle, (shim_pid, until) in self._dead.items() if until > now]
        bundles = [known] if known is not None else recent
        for bundle, shim_pid in bundles:
            try:
                self.write(bundle, shim_pid, pid, ticks, status, now_ns, durable=known is not None)
            except FileNotFoundError:
                self._dead.pop(bundle, None)  # removed since
                if known is not None:
                    raise
        return known[0] if known is not None else ""

    def write(
        self, bundle: str, shim_pid: int, pid: int, ticks: int, status: int, at_ns: int, *, durable: bool = True
    ) -> None:
        """Write one note. Raises: OSError."""
        note = {
            "version": VERSION, "pid": pid, "start_ticks": ticks, "boot_id": self._boot_id,
            "wait_status": status, "exited_at_ns": at_ns, "shim_pid": shim_pid,
        }  # fmt: skip
        write_replacing(note_path(bundle, pid), json.dumps(note).encode(), durable=durable)

    def _claimed(self, pid: int, ticks: int) -> "tuple[str, int] | None":
        """Whose it is that was not there when its shim died: the runtime, or a successor, has put it on record."""
        for bundle, (shim_pid, until) in reversed(self._dead.items()):
            is_begun = until > time.monotonic() and pid in _pids_in_files(bundle)
            if is_begun or recorded_processes(bundle).get(pid, -1) == ticks:
                return bundle, shim_pid
        return None


def note_path(bundle: str, pid: object) -> str:
    """Where the note about a process is."""
    return os.path.join(bundle, f"keeper-exit.{pid}")


def read_note(bundle: str, pid: object, start_ticks: object, boot_id: object) -> "dict[str, Any] | None":
    """The note about exactly this process, or None. A start time of 0 is any."""
    note = _read_json(note_path(bundle, pid))
    if not isinstance(note, dict) or note.get("version") != VERSION:
        return None
    identity = {"pid": pid, "start_ticks": start_ticks or note.get("start_ticks"), "boot_id": boot_id}
    return note if all(note.get(name) == value for name, value in identity.items()) else None


def recorded_processes(bundle: str, *, with_ended: bool = True) -> "dict[int, int | None]":
    """Every pid a bundle names, with its start time where that is known: of init and of execs.

    The shim wrote state files with both; a pid runc wrote a moment before the shim died is in a pid file only.
    A process that has ended, by its state file, has its exit on disk.
    """
    found: dict[int, int | None] = dict.fromkeys(_pids_in_files(bundle))
    execs = Bundle(bundle).execs_dir
    states = [(Bundle(bundle).read_state() or {}).get("init")]
    states += [_read_json(os.path.join(execs, name)) for name in _names(execs, ".state.json")]
    for state in states:
        if isinstance(state, dict) and isinstance(state.get("pid"), int) and isinstance(state.get("start_ticks"), int):
            found[state["pid"]] = state["start_ticks"]
            if not with_ended and state.get("state") in (STOPPED, DELETED):
                del found[state["pid"]]
    return found


def has_strangers(bundle: str, shim_pid: int) -> bool:
    """Whether a process that a bundle names lives, and is a child of neither this process nor of its shim."""
    found = [(ticks, parent_and_start(pid)) for pid, ticks in recorded_processes(bundle, with_ended=False).items()]
    alive = [there for ticks, there in found if there is not None and ticks in (None, there[1])]
    return any(parent not in (os.getpid(), shim_pid) for parent, _ in alive)


def _pids_in_files(path: str) -> "set[int]":
    """What the runtime wrote: the pids of init and of execs."""
    bundle, found = Bundle(path), set()
    for directory in (bundle.path, bundle.execs_dir):
        for name in _names(directory, ".pid"):
            try:
                found.add(bundle.read_pid(os.path.join(directory, name)))
            except (OSError, ValueError):
                pass  # its writer was killed
    return found


def forget_notes(bundle: str, but: "set[int]") -> None:
    """Remove notes nobody will read: of all processes ``but`` these."""
    for name in _names(bundle, ""):
        prefix, _, pid = name.rpartition(".")
        if prefix == "keeper-exit" and pid.isdigit() and int(pid) not in but:
            remove(os.path.join(bundle, name))


def _names(directory: str, suffix: str) -> "list[str]":
    try:
        return [name for name in os.listdir(directory) if name.endswith(suffix) and name != "shim.pid"]
    except OSError:
        return []


def _read_json(path: str) -> "Any":
    try:
        return json.loads(read_file(path))
    except (OSError, ValueError):
        return None


def parent_and_start(pid: int) -> "tuple[int, int] | None":
    """A process's parent and start time, zombies included; None when there is none.

    Source: proc_pid_stat(5), fields 4 and 22.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[1]), int(fields[19])

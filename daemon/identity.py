"""Processes by identity: a bare pid read from a file or a record proves nothing, a pid with its start time does.

Without trio, so that the command line has it too; `daemon.procfs` waits for such processes.

Source: proc_pid_stat(5) field 22 (start in clock ticks since boot), random(4) (boot id), pidfd_open(2) (Linux 5.3).
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator


def boot_id() -> str:
    """This boot's random id: records that carry another one are of processes long gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from field 3 on; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in field 2 may hold spaces and parentheses: count from the last one.
    return text[text.rindex(b")") + 2 :].split()


def _ticks(fields: list[bytes]) -> int:
    return int(fields[19])


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """One process of this boot."""

    pid: int
    start_ticks: int

    def is_running(self) -> bool:
        """Whether exactly this process still runs; a zombie is over."""
        fields = _stat(self.pid)
        return fields is not None and _ticks(fields) == self.start_ticks and fields[0] not in (b"Z", b"X")


def identify(pid: int) -> Identity | None:
    """The identity of a pid that is known to be meant right now; None when it is gone already."""
    fields = _stat(pid) if pid > 0 else None
    return Identity(pid, _ticks(fields)) if fields is not None else None


def identify_child(pid: int, parent: Identity) -> Identity | None:
    """The identity of a pid that its parent told us, if it is that parent's child; a zombie still is."""
    fields = _stat(pid) if pid > 0 else None
    if fields is None or int(fields[1]) != parent.pid or not parent.is_running():
        return None
    return Identity(pid, _ticks(fields))


def open_pidfd(process: Identity) -> int | None:
    """A pidfd of exactly this process, or None when it is gone. The caller closes it."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    # The fd holds the pid from here on: if the ticks match now, it is the one that was meant.
    if process.is_running():
        return fd
    os.close(fd)
    return None


def kill(process: Identity, signum: int = signal.SIGKILL) -> bool:
    """Signal exactly this process; False when it is gone."""
    fd = open_pidfd(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def working_in(directory: str) -> Iterator[Identity]:
    """Processes whose working directory is this one, or was before it was removed.

    A shim, its `start` and its runc work in the bundle; a container's processes see their own root instead.
    """
    wanted = (directory, f"{directory} (deleted)")
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{entry}/cwd") in wanted:
                found = identify(int(entry))
                if found is not None and found.is_running():
                    yield found


def mounts_under(directory: str) -> list[str]:
    """Mount points at or below a directory, deepest first. Source: proc_pid_mountinfo(5), field 5."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = os.fsdecode(_unescape(line.split(b" ")[4]))
            if point == directory or point.startswith(directory + "/"):
                found.append(point)
    return found[::-1]


def _unescape(field: bytes) -> bytes:
    r"""Undo the octal escapes of space, tab, newline and backslash (\040 \011 \012 \134)."""
    for escaped, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escaped, plain)
    return field

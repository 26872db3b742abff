"""What a keeper looks at to know whether it is still wanted: its children, its socket, its siblings, its bundles."""

import os
import stat

from shim.bundle import read_file
from shim.core.reaper import wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_PID_MAX_BYTES = 32


def has_children() -> bool:
    """Whether there is anything left to reap, now or later."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def ended_child(pid: int) -> "os.waitid_result | None":
    """How a child ended that is a zombie; None of any other process: also of a copy whose parent is about to end."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def next_ended(first: "Collection[int]") -> "tuple[int, int] | None":
    """A child that ended and its wait status, one of the ``first`` before all others; it is still a zombie."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    if found.si_pid not in first:
        found = next(filter(None, map(ended_child, first)), found)
    return found.si_pid, wait_status(found.si_code, found.si_status)


def children() -> "set[int]":
    """Our children, zombies among them. Source: proc_pid_task_tid_children(5), CONFIG_PROC_CHILDREN."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:
        return {0}  # nobody knows: somebody


def inode_of(path: str) -> "tuple[int, int] | None":
    """What a path names now, or None."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def younger_sibling(path: str) -> str:
    """A keeper's socket in the same directory that was made after this one; empty when there is none."""
    directory = os.path.dirname(path)
    made_ns = os.stat(path).st_mtime_ns
    for name in sorted(os.listdir(directory)):
        other = os.path.join(directory, name)
        if other != path and "." not in name and os.stat(other).st_mtime_ns > made_ns:  # a dot: locks, logs
            return other
    return ""


def youngest(directory: str) -> str:
    """The keeper's socket made last in a directory; empty when there is none."""
    found: list[tuple[int, str]] = []
    try:
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            status = os.stat(path, follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode) and "." not in name:
                found.append((status.st_mtime_ns, path))
    except OSError:
        pass
    return max(found)[1] if found else ""


def read_pid(bundle: str) -> int:
    """Who the bundle's shim is, by its own file; 0 when that says nothing."""
    try:
        return int(read_file(os.path.join(bundle, "shim.pid"), _PID_MAX_BYTES))
    except (OSError, ValueError):
        return 0

"""Processes by identity (daemon.identity), and waiting for their end on the event loop."""

import os
import select

import trio

from daemon.identity import (
    Identity,
    boot_id,
    identify,
    identify_child,
    kill,
    mounts_under,
    open_pidfd,
    working_in,
)

__all__ = (
    "Identity",
    "boot_id",
    "cgroup_of",
    "identify",
    "identify_child",
    "kill",
    "mounts_under",
    "open_pidfd",
    "wait_gone",
    "working_in",
)


def cgroup_of(pid: int) -> str | None:
    """The cgroup systemd put a process into: cgroups(7), version 2 or systemd's own hierarchy. None: not found."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="surrogateescape") as file:
            found = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    for controllers in ("name=systemd", ""):
        for _, name, path in found:
            if name == controllers:
                return path
    return None


async def wait_gone(process: Identity, timeout_s: float) -> bool:
    """Wait until the process has exited; False when it still runs after that time."""
    fd = open_pidfd(process)
    if fd is None:
        return True
    try:
        with trio.move_on_after(timeout_s):
            # pidfd_open(2): readable once the process has terminated.
            await trio.lowlevel.wait_readable(fd)
        return bool(select.select([fd], [], [], 0)[0])
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)

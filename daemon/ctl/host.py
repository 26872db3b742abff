"""What this machine has left, and what shimd takes of it. Only commands that show it load psutil: it costs 30 ms."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

FULL_PERCENT = 90  # of a disk: beyond it the store and logs come near to stopping


def host_as_json(directories: "Iterable[str]") -> "dict[str, Any]":
    """Memory, load, and the room of the file systems these directories are on. Bytes and counts."""
    import psutil

    memory = psutil.virtual_memory()
    made: dict[str, Any] = {
        "cpus": psutil.cpu_count(),
        "load": [round(value, 2) for value in psutil.getloadavg()],
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "disks": [],
    }
    for directory in dict.fromkeys(directories):
        try:
            room, files = psutil.disk_usage(directory), os.statvfs(directory)
        except OSError:  # of another machine's daemon, or gone
            continue
        made["disks"].append(
            {
                "directory": directory,
                "total_bytes": room.total,
                "free_bytes": room.free,
                "used_percent": room.percent,
                "free_files": files.f_favail,
            }
        )
    return made


def process_as_json(pid: int) -> "dict[str, Any] | None":
    """What one process takes; None when it is not there, or not ours to look at.

    ``pss_bytes`` counts a page shared by N processes as one Nth. Source: proc(5), smaps_rollup.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_full_info()
            return {
                "pid": pid,
                "rss_bytes": memory.rss,
                "pss_bytes": memory.pss,
                "cpu_s": round(times.user + times.system, 2),
                "threads": process.num_threads(),
                "fds": process.num_fds(),
                "fds_limit": process.rlimit(psutil.RLIMIT_NOFILE)[0],
            }
    except (psutil.Error, OSError):
        return None


def lines(host: "dict[str, Any]", daemon: "dict[str, Any] | None", shims: "list[dict[str, Any]]") -> list[str]:
    """The same for a person."""
    from daemon.ctl.units import binary_bytes

    memory = host["memory"]
    load = " ".join(f"{value:g}" for value in host["load"])
    told = [
        f"host: load {load} on {host['cpus']} CPUs, "
        f"{binary_bytes(memory['available_bytes'])} of {binary_bytes(memory['total_bytes'])} memory available"
    ]
    for disk in host["disks"]:
        warning = "; nearly full" if disk["used_percent"] >= FULL_PERCENT or disk["free_files"] == 0 else ""
        told.append(
            f"disk of {disk['directory']}: {binary_bytes(disk['free_bytes'])} of {binary_bytes(disk['total_bytes'])} "
            f"free{warning}"
        )
    if daemon is not None:
        told.append(
            f"daemon: {binary_bytes(daemon['pss_bytes'])} memory, {daemon['fds']} of {daemon['fds_limit']} files open, "
            f"{daemon['cpu_s']:g} s CPU"
        )
    if shims:
        together = sum(shim["pss_bytes"] for shim in shims)
        told.append(f"shims: {binary_bytes(together)} memory, {binary_bytes(together // len(shims))} each")
    return told

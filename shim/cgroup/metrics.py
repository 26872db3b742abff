"""What a container uses, as containerd's messages. The readers are imported at the first call, for memory's sake."""

import os

from shim.errors import not_found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cgroup.cgroups import CgroupPaths
    from ttrpc.api import cgroups1, cgroups2


def read(paths: "CgroupPaths", pid: int = 0) -> "cgroups1.Metrics | cgroups2.Metrics":
    """The counters of a container's cgroups; with its init's pid, also those of its network interfaces.

    A controller this machine lacks is left out. Raises: StatusError NOT_FOUND when the whole cgroup is gone.
    """
    metrics: cgroups1.Metrics | cgroups2.Metrics
    if paths.is_v1:
        from shim.cgroup import metrics_v1

        metrics = metrics_v1.read(paths)
    else:
        from shim.cgroup import metrics_v2

        metrics = metrics_v2.read(paths)
    if not metrics.ListFields() and not paths.exists():
        raise not_found("cgroup does not exist")
    if pid:
        _fill_network(metrics, pid)
    return metrics


def read_pressure(paths: "CgroupPaths") -> "dict[str, cgroups2.PSIStats]":
    """PSI by resource (cpu, memory, io) as far as the kernel keeps it: of the v2 cgroup, on hybrid systems as well."""
    if paths.v2 is None:
        return {}
    from shim.cgroup import metrics_v2

    try:
        return metrics_v2.read_pressure(paths.directory_fd(paths.v2))
    except FileNotFoundError:
        return {}


def _fill_network(metrics: "Any", pid: int, proc_root: str = "/proc") -> None:
    """Add the interfaces of a process's network namespace but the loopback; nothing when it shares ours, the host's.

    Source: proc_pid_net(5), net/dev: per line eight receive fields, then eight transmit fields.
    """
    try:
        if os.readlink(f"{proc_root}/{pid}/ns/net") == os.readlink(f"{proc_root}/self/ns/net"):
            return
        with open(f"{proc_root}/{pid}/net/dev", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:  # the process has exited: its network is gone, its cgroup is still worth telling
        return
    for line in lines:
        name, colon, counts = line.rpartition(":")
        fields = counts.split()
        if colon and len(fields) >= 16 and name.strip() != "lo":
            rx, tx = [int(each) for each in fields[0:4]], [int(each) for each in fields[8:12]]
            metrics.network.add(
                name=name.strip(),
                rx_bytes=rx[0], rx_packets=rx[1], rx_errors=rx[2], rx_dropped=rx[3],
                tx_bytes=tx[0], tx_packets=tx[1], tx_errors=tx[2], tx_dropped=tx[3],
            )  # fmt: skip

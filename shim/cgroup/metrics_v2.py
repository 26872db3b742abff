"""Counters of cgroup v2 as io.containerd.cgroups.v2.Metrics. Source: kernel, admin-guide/cgroup-v2.rst."""

from cgroupspy.interfaces import IntegerFile

from shim.cgroup.metrics_files import (
    HeldController,
    LimitFile,
    NestedFile,
    PairsFile,
    PressureFile,
    RdmaController,
    huge_page_sizes,
)
from ttrpc.api import cgroups2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cgroup.cgroups import CgroupPaths


class Unified(HeldController):
    """One v2 cgroup: all controllers' files lie in its one directory."""

    pids_current = IntegerFile("pids.current")
    pids_max = LimitFile("pids.max")
    cpu_stat = PairsFile("cpu.stat")
    cpu_pressure = PressureFile("cpu.pressure")
    memory_current = IntegerFile("memory.current")
    memory_max = LimitFile("memory.max")
    memory_peak = IntegerFile("memory.peak")  # kernel 5.19+
    memory_swap_current = IntegerFile("memory.swap.current")
    memory_swap_max = LimitFile("memory.swap.max")
    memory_swap_peak = IntegerFile("memory.swap.peak")  # kernel 6.5+
    memory_stat = PairsFile("memory.stat")
    memory_events = PairsFile("memory.events")
    memory_pressure = PressureFile("memory.pressure")
    io_stat = NestedFile("io.stat")
    io_pressure = PressureFile("io.pressure")


_MEMORY_NUMBERS = (
    ("usage", "memory_current"),
    ("usage_limit", "memory_max"),
    ("max_usage", "memory_peak"),
    ("swap_usage", "memory_swap_current"),
    ("swap_limit", "memory_swap_max"),
    ("swap_max_usage", "memory_swap_peak"),
)
PRESSURES = ("cpu", "memory", "io")


def read(paths: "CgroupPaths") -> "cgroups2.Metrics":
    """What the container's v2 cgroup counts; a controller that is missing is left out of the message."""
    metrics = cgroups2.Metrics()
    if paths.v2 is None:
        return metrics
    try:
        directory_fd = paths.directory_fd(paths.v2)
    except FileNotFoundError:
        return metrics
    files = Unified(directory_fd)
    _fill_pids(metrics, files)
    _fill_cpu(metrics, files)
    _fill_memory(metrics, files)
    _fill_io(metrics, files)
    names = files.names()
    for size in huge_page_sizes(names, ".current"):
        metrics.hugetlb.add(
            pagesize=size,
            current=files.number(f"hugetlb.{size}.current") or 0,
            max=files.number(f"hugetlb.{size}.max") or 0,
            failcnt=_events_max(files, size),
        )
    if "rdma.current" in names:
        RdmaController(directory_fd).fill(metrics.rdma)
    return metrics


def read_pressure(directory_fd: int) -> "dict[str, cgroups2.PSIStats]":
    """PSI of one v2 cgroup by resource; it is kept there on hybrid systems as well, whatever v1 has. Kernel 4.20+."""
    files = Unified(directory_fd)
    found = {}
    for resource in PRESSURES:
        stats = cgroups2.PSIStats()
        if _fill_pressure(stats, files.get(f"{resource}_pressure")):
            found[resource] = stats
    return found


def _fill_pressure(into: "cgroups2.PSIStats", stalls: "dict[str, dict[str, float]] | None") -> bool:
    """``full`` is missing from cpu.pressure before 5.13. Whether there was anything."""
    for kind in ("some", "full"):
        numbers = (stalls or {}).get(kind)
        if numbers is not None:
            part = getattr(into, kind)
            part.SetInParent()
            part.avg10, part.avg60, part.avg300 = (numbers.get(name, 0.0) for name in ("avg10", "avg60", "avg300"))
            part.total = int(numbers.get("total", 0))
    return bool(stalls)


def _fill_pids(metrics: "cgroups2.Metrics", files: Unified) -> None:
    current = files.get("pids_current")
    if current is not None:
        metrics.pids.current = current
        metrics.pids.limit = files.get("pids_max") or 0


def _fill_named(into: "Any", numbers: "dict[str, int]") -> None:
    """Copy the numbers whose names the message has as well; v2's files and containerd's fields agree on them."""
    fields = into.DESCRIPTOR.fields_by_name
    for name, value in numbers.items():
        if name in fields and fields[name].message_type is None:
            setattr(into, name, value)


def _fill_cpu(metrics: "cgroups2.Metrics", files: Unified) -> None:
    stat = files.get("cpu_stat")
    if stat is not None:
        metrics.cpu.SetInParent()
        _fill_named(metrics.cpu, stat)
        _set_pressure(metrics.cpu, files.get("cpu_pressure"))


def _set_pressure(part: "Any", stalls: "dict[str, dict[str, float]] | None") -> None:
    if stalls:
        _fill_pressure(part.psi, stalls)


def _fill_memory(metrics: "cgroups2.Metrics", files: Unified) -> None:
    stat = files.get("memory_stat")
    if stat is not None:
        # Split in two by kernel 5.9; who reads the older field wants the sum.
        for name in ("workingset_refault", "workingset_activate"):
            if name not in stat and f"{name}_anon" in stat:
                stat[name] = stat[f"{name}_anon"] + stat.get(f"{name}_file", 0)
        _fill_named(metrics.memory, stat)
        for field, name in _MEMORY_NUMBERS:
            setattr(metrics.memory, field, files.get(name) or 0)
        _set_pressure(metrics.memory, files.get("memory_pressure"))
    events = files.get("memory_events")
    if events is not None:
        metrics.memory_events.SetInParent()
        _fill_named(metrics.memory_events, events)


def _fill_io(metrics: "cgroups2.Metrics", files: Unified) -> None:
    stat = files.get("io_stat")
    if stat is None:
        return
    metrics.io.SetInParent()
    for device, counts in stat.items():
        major, colon, minor = device.partition(":")
        if colon and counts:
            named = {name: counts.get(name, 0) for name in ("rbytes", "wbytes", "rios", "wios")}
            metrics.io.usage.add(major=int(major), minor=int(minor), **named)
    _set_pressure(metrics.io, files.get("io_pressure"))


def _events_max(files: Unified, size: str) -> int:
    """How often a huge page was refused: ``max N`` in hugetlb.<size>.events."""
    try:
        text = files.get_property(f"hugetlb.{size}.events".encode())
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("max ")), 0)

"""Counters of cgroup v1 as io.containerd.cgroups.v1.Metrics. Source: kernel, admin-guide/cgroup-v1/."""

import os

from cgroupspy.controllers import BlkIOController, CpuAcctController, CpuController, MemoryController
from cgroupspy.interfaces import IntegerFile

from shim.cgroup.metrics_files import (
    UNLIMITED,
    BlockFile,
    HeldController,
    LimitFile,
    PairsFile,
    RdmaController,
    block_device_path,
    huge_page_sizes,
)
from ttrpc.api import cgroups1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cgroup.cgroups import CgroupPaths

NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # cpuacct.stat counts in USER_HZ


class Cpu(HeldController, CpuController):  # type: ignore[misc]
    """cpu.stat: throttling by the quota."""


class CpuAcct(HeldController, CpuAcctController):  # type: ignore[misc]
    """cpuacct.usage, .usage_percpu in nanoseconds; cpuacct.stat in ticks."""


class Pids(HeldController):
    """pids.current and pids.max, which cgroupspy has no controller for."""

    current = IntegerFile("pids.current")
    limit = LimitFile("pids.max")


class Memory(HeldController, MemoryController):  # type: ignore[misc]
    """What cgroupspy lacks: kernel memory, and memory.oom_control with a field that is no flag."""

    oom_control = PairsFile("memory.oom_control")
    kmem_usage_in_bytes = IntegerFile("memory.kmem.usage_in_bytes")
    kmem_max_usage_in_bytes = IntegerFile("memory.kmem.max_usage_in_bytes")
    kmem_limit_in_bytes = IntegerFile("memory.kmem.limit_in_bytes")
    kmem_failcnt = IntegerFile("memory.kmem.failcnt")
    kmem_tcp_usage_in_bytes = IntegerFile("memory.kmem.tcp.usage_in_bytes")
    kmem_tcp_max_usage_in_bytes = IntegerFile("memory.kmem.tcp.max_usage_in_bytes")
    kmem_tcp_limit_in_bytes = IntegerFile("memory.kmem.tcp.limit_in_bytes")
    kmem_tcp_failcnt = IntegerFile("memory.kmem.tcp.failcnt")


class BlkIO(HeldController, BlkIOController):  # type: ignore[misc]
    """Which of the families exists depends on the scheduler: BFQ, CFQ (before 5.0), or only the throttling layer's."""

    bfq_io_service_bytes_recursive = BlockFile("blkio.bfq.io_service_bytes_recursive")
    bfq_io_serviced_recursive = BlockFile("blkio.bfq.io_serviced_recursive")
    io_service_bytes_recursive = BlockFile("blkio.io_service_bytes_recursive")
    io_serviced_recursive = BlockFile("blkio.io_serviced_recursive")
    io_queued_recursive = BlockFile("blkio.io_queued_recursive")
    io_service_time_recursive = BlockFile("blkio.io_service_time_recursive")
    io_wait_time_recursive = BlockFile("blkio.io_wait_time_recursive")
    io_merged_recursive = BlockFile("blkio.io_merged_recursive")
    io_time_recursive = BlockFile("blkio.time_recursive")
    sectors_recursive = BlockFile("blkio.sectors_recursive")
    throttle_io_service_bytes_recursive = BlockFile("blkio.throttle.io_service_bytes_recursive")
    throttle_io_serviced_recursive = BlockFile("blkio.throttle.io_serviced_recursive")
    throttle_io_service_bytes = BlockFile("blkio.throttle.io_service_bytes")
    throttle_io_serviced = BlockFile("blkio.throttle.io_serviced")


# Metrics field → where it is counted; the first that has counted anything.
_BYTES = ("bfq_io_service_bytes_recursive", "io_service_bytes_recursive", "throttle_io_service_bytes_recursive")
_SERVICED = ("bfq_io_serviced_recursive", "io_serviced_recursive", "throttle_io_serviced_recursive")
_BLOCK_FIELDS = (
    ("io_service_bytes_recursive", (*_BYTES, "throttle_io_service_bytes")),
    ("io_serviced_recursive", (*_SERVICED, "throttle_io_serviced")),
    ("io_queued_recursive", ("io_queued_recursive",)),
    ("io_service_time_recursive", ("io_service_time_recursive",)),
    ("io_wait_time_recursive", ("io_wait_time_recursive",)),
    ("io_merged_recursive", ("io_merged_recursive",)),
    ("io_time_recursive", ("io_time_recursive",)),
    ("sectors_recursive", ("sectors_recursive",)),
)
_MEMORY_ENTRIES = (("usage", ""), ("swap", "memsw_"), ("kernel", "kmem_"), ("kernel_tcp", "kmem_tcp_"))
# memory.stat says memsw where the message says swap.
_MEMORY_RENAMED = {"hierarchical_memsw_limit": "hierarchical_swap_limit"}


def read(paths: "CgroupPaths") -> "cgroups1.Metrics":
    """What the container's v1 cgroups count; a controller that is missing is left out of the message."""
    metrics = cgroups1.Metrics()
    for controller, kind, fill in _PARTS:
        if controller not in paths.v1:
            continue
        try:
            directory_fd = paths.directory_fd(paths.v1[controller])
        except FileNotFoundError:
            continue
        fill(metrics, kind(directory_fd))
    return metrics


def _fill_cpu(metrics: "cgroups1.Metrics", cpu: "Any") -> None:
    stat = cpu.get("stat")
    if stat is not None:
        throttling = metrics.cpu.throttling
        throttling.periods = stat.get("nr_periods", 0)
        throttling.throttled_periods = stat.get("nr_throttled", 0)
        throttling.throttled_time = stat.get("throttled_time", 0)


def _fill_cpuacct(metrics: "cgroups1.Metrics", cpuacct: "Any") -> None:
    total, ticks, per_cpu = cpuacct.get("usage"), cpuacct.get("acct_stat"), cpuacct.get("usage_percpu")
    if total is not None:
        metrics.cpu.usage.total = total
    if ticks is not None:
        metrics.cpu.usage.user = ticks.get("user", 0) * NANOSECONDS_PER_TICK
        metrics.cpu.usage.kernel = ticks.get("system", 0) * NANOSECONDS_PER_TICK
    if per_cpu:
        metrics.cpu.usage.per_cpu.extend(per_cpu)


def _fill_pids(metrics: "cgroups1.Metrics", pids: "Any") -> None:
    current, limit = pids.get("current"), pids.get("limit")
    if current is not None:
        metrics.pids.current = current
        # 0 is how containerd's v1 message says that there is no limit.
        metrics.pids.limit = limit if limit is not None and limit != UNLIMITED else 0


def _fill_memory(metrics: "cgroups1.Metrics", memory: "Any") -> None:
    stat = memory.get("stat")
    fields = cgroups1.MemoryStat.DESCRIPTOR.fields_by_name
    for name, value in (stat or {}).items():
        field = _MEMORY_RENAMED.get(name, name)
        if field in fields and fields[field].message_type is None:
            setattr(metrics.memory, field, value)
    for field, prefix in _MEMORY_ENTRIES:
        usage = memory.get(f"{prefix}usage_in_bytes")
        if usage is None:
            continue
        entry = getattr(metrics.memory, field)
        entry.usage = usage
        entry.max = memory.get(f"{prefix}max_usage_in_bytes") or 0
        entry.limit = memory.get(f"{prefix}limit_in_bytes") or 0
        entry.failcnt = memory.get(f"{prefix}failcnt") or 0
    oom = memory.get("oom_control")
    if oom is not None:
        control = metrics.memory_oom_control
        control.oom_kill_disable = oom.get("oom_kill_disable", 0)
        control.under_oom = oom.get("under_oom", 0)
        control.oom_kill = oom.get("oom_kill", 0)
        control.SetInParent()


def _fill_blkio(metrics: "cgroups1.Metrics", blkio: "Any") -> None:
    for field, sources in _BLOCK_FIELDS:
        for source in sources:
            counts = blkio.get(source)
            if counts is None:
                continue
            metrics.blkio.SetInParent()
            if counts:
                for major, minor, operation, value in counts:
                    getattr(metrics.blkio, field).add(
                        op=operation, device=block_device_path(major, minor), major=major, minor=minor, value=value
                    )
                break


def _fill_hugetlb(metrics: "cgroups1.Metrics", files: "HeldController") -> None:
    for size in huge_page_sizes(files.names(), ".usage_in_bytes"):
        metrics.hugetlb.add(
            pagesize=size,
            usage=files.number(f"hugetlb.{size}.usage_in_bytes") or 0,
            max=files.number(f"hugetlb.{size}.max_usage_in_bytes") or 0,
            failcnt=files.number(f"hugetlb.{size}.failcnt") or 0,
        )


def _fill_rdma(metrics: "cgroups1.Metrics", rdma: "Any") -> None:
    stat = cgroups1.RdmaStat()
    if rdma.fill(stat):
        metrics.rdma.CopyFrom(stat)


_PARTS = (
    ("pids", Pids, _fill_pids),
    ("cpu", Cpu, _fill_cpu),
    ("cpuacct", CpuAcct, _fill_cpuacct),
    ("memory", Memory, _fill_memory),
    ("blkio", BlkIO, _fill_blkio),
    ("hugetlb", HeldController, _fill_hugetlb),
    ("rdma", RdmaController, _fill_rdma),
)

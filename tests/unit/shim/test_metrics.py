"""Control files become containerd's messages, field by field.

The trees are recorded in the documented formats, since not every machine has v2 with controllers: see trees/README.md.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cgroup import metrics
from shim.cgroup.cgroups import CgroupPaths
from shim.cgroup.metrics import _fill_network
from ttrpc.api import cgroups1, cgroups2
from ttrpc.errors import StatusError
from ttrpc.status import Code

TREES = Path(__file__).parent / "trees"
UNLIMITED = 2**64 - 1


@pytest.fixture
def held() -> Iterator[list[CgroupPaths]]:
    """What is put in is closed afterwards."""
    paths: list[CgroupPaths] = []
    yield paths
    for each in paths:
        each.close()


def read_v2(held: list[CgroupPaths], tree: Path) -> cgroups2.Metrics:
    held.append(CgroupPaths({}, str(tree)))
    made = metrics.read(held[-1])
    assert made.DESCRIPTOR.full_name == "io.containerd.cgroups.v2.Metrics"
    return made  # type: ignore[return-value]


def read_v1(held: list[CgroupPaths], tree: Path, *controllers: str) -> cgroups1.Metrics:
    wanted = controllers or ("memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "rdma")
    held.append(CgroupPaths({controller: str(tree / controller) for controller in wanted}, None))
    made = metrics.read(held[-1])
    assert made.DESCRIPTOR.full_name == "io.containerd.cgroups.v1.Metrics"
    return made  # type: ignore[return-value]


def numbers(message: object) -> dict[str, int]:
    """The scalar fields that are set, by name."""
    return {field.name: value for field, value in message.ListFields() if field.message_type is None}  # type: ignore[attr-defined]


# --- v2


def test_v2_memory_field_by_field(held: list[CgroupPaths]) -> None:
    """Each number in memory.stat is 1000 plus its field's number; the files beside it follow the same plan."""
    memory = read_v2(held, TREES / "v2").memory

    for field in memory.DESCRIPTOR.fields:
        if (1 <= field.number <= 31 and field.number not in (20, 21)) or field.number >= 39:
            assert getattr(memory, field.name) == 1000 + field.number, field.name
    assert (memory.workingset_refault, memory.workingset_activate) == (1039 + 1040, 1041 + 1042)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (132001, 67108864, 136001)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (134001, UNLIMITED, 137001)


def test_v2_memory_events(held: list[CgroupPaths]) -> None:
    events = numbers(read_v2(held, TREES / "v2").memory_events)

    assert events == {"low": 1, "high": 2, "max": 3, "oom": 4, "oom_kill": 5, "oom_group_kill": 6}


def test_v2_cpu(held: list[CgroupPaths]) -> None:
    assert numbers(read_v2(held, TREES / "v2").cpu) == {
        "usage_usec": 1000001,
        "user_usec": 600002,
        "system_usec": 400003,
        "nr_periods": 14,
        "nr_throttled": 5,
        "throttled_usec": 160006,
        "nr_bursts": 7,
        "burst_usec": 8,
    }


def test_v2_pressure_of_each_resource(held: list[CgroupPaths]) -> None:
    made = read_v2(held, TREES / "v2")

    for base, part in ((1, made.cpu), (2, made.memory), (3, made.io)):
        some, full = part.psi.some, part.psi.full
        assert (some.avg10, some.avg60, some.avg300) == pytest.approx((base + 0.1, base + 0.6, base + 0.3))
        assert (full.avg10, full.avg60, full.avg300) == pytest.approx((base + 0.11, base + 0.61, base + 0.31))
        assert (some.total, full.total) == (base * 1000000 + 1, base * 1000000 + 2)


def test_v2_pids_without_a_limit(held: list[CgroupPaths]) -> None:
    pids = read_v2(held, TREES / "v2").pids

    assert (pids.current, pids.limit) == (3, UNLIMITED)


def test_v2_io_per_device(held: list[CgroupPaths]) -> None:
    """A device that never did anything has a line without counts, and is left out."""
    assert [numbers(entry) for entry in read_v2(held, TREES / "v2").io.usage] == [
        {"major": 8, "minor": 16, "rbytes": 1459200, "wbytes": 314773504, "rios": 192, "wios": 353},
        {"major": 8, "rbytes": 90430464, "wbytes": 299008000, "rios": 8950, "wios": 1252},
    ]


def test_v2_huge_pages_and_rdma(held: list[CgroupPaths]) -> None:
    made = read_v2(held, TREES / "v2")

    assert [numbers(entry) for entry in made.hugetlb] == [
        {"max": 1073741824, "pagesize": "1GB"},
        {"current": 2097152, "max": UNLIMITED, "pagesize": "2MB", "failcnt": 9},
    ]
    assert [numbers(entry) for entry in made.rdma.current] == [
        {"device": "mlx4_0", "hca_handles": 1, "hca_objects": 20}
    ]
    assert [numbers(entry) for entry in made.rdma.limit] == [
        {"device": "mlx4_0", "hca_handles": 2, "hca_objects": 2**32 - 1}
    ]


def test_v2_of_an_older_kernel_leaves_out_what_it_lacks(held: list[CgroupPaths]) -> None:
    made = read_v2(held, TREES / "v2_old")

    assert {field.name for field, _ in made.ListFields()} == {"cpu", "memory", "memory_events"}
    assert numbers(made.memory) == {
        "anon": 1,
        "file": 2,
        "workingset_refault": 3,
        "workingset_activate": 4,
        "usage": 7,
        "usage_limit": UNLIMITED,
    }
    assert not made.memory.HasField("psi")
    assert numbers(made.cpu) == {"usage_usec": 10, "user_usec": 6, "system_usec": 4}


def test_pressure_by_itself(held: list[CgroupPaths]) -> None:
    """On hybrid systems the counters are v1's, but the kernel keeps PSI in the v2 cgroup."""
    held.append(CgroupPaths({"memory": str(TREES / "v1/memory")}, str(TREES / "v2")))

    found = metrics.read_pressure(held[-1])

    assert {"cpu", "memory", "io"} == set(found)
    assert found["io"].full.total == 3000002
    assert metrics.read_pressure(CgroupPaths({}, None)) == {}
    assert metrics.read_pressure(CgroupPaths({}, str(TREES / "missing"))) == {}


def test_v2_pressure_switched_off_is_left_out(held: list[CgroupPaths], tmp_path: Path) -> None:
    shutil.copytree(TREES / "v2", tmp_path / "c")
    for name in ("cpu.pressure", "memory.pressure", "io.pressure"):
        os.unlink(tmp_path / "c" / name)

    made = read_v2(held, tmp_path / "c")

    assert not made.cpu.HasField("psi")
    assert not made.io.HasField("psi")
    assert made.memory.anon == 1001


# --- v1


def test_v1_memory_field_by_field(held: list[CgroupPaths]) -> None:
    """Each number in memory.stat is its field's number; the entries count on from there."""
    memory = read_v1(held, TREES / "v1").memory

    for field in memory.DESCRIPTOR.fields:
        if field.number <= 32:
            assert getattr(memory, field.name) == field.number, field.name
        else:
            expected = {"limit": f"{field.number}1", "usage": f"{field.number}2", "max": f"{field.number}3"}
            expected["failcnt"] = f"{field.number}4"
            assert numbers(getattr(memory, field.name)) == {key: int(value) for key, value in expected.items()}, (
                field.name
            )


def test_v1_oom_control_is_told_even_when_all_zero(held: list[CgroupPaths], tmp_path: Path) -> None:
    made = read_v1(held, TREES / "v1", "memory").memory_oom_control
    assert numbers(made) == {"under_oom": 1, "oom_kill": 2}

    shutil.copytree(TREES / "v1/memory", tmp_path / "memory")
    (tmp_path / "memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert read_v1(held, tmp_path, "memory").HasField("memory_oom_control")


def test_v1_cpu_in_nanoseconds(held: list[CgroupPaths]) -> None:
    """cpuacct.stat counts in ticks of the machine, usually a hundredth of a second."""
    cpu = read_v1(held, TREES / "v1").cpu
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    assert (cpu.usage.total, cpu.usage.user, cpu.usage.kernel) == (5_000_000_000, 300 * tick_ns, 200 * tick_ns)
    assert list(cpu.usage.per_cpu) == [2_000_000_000, 3_000_000_000]
    assert numbers(cpu.throttling) == {"periods": 1, "throttled_periods": 2, "throttled_time": 3}


@pytest.mark.parametrize(("text", "limit"), [("50\n", 50), ("max\n", 0)])
def test_v1_pids(held: list[CgroupPaths], tmp_path: Path, text: str, limit: int) -> None:
    """Without a limit containerd's v1 message says 0."""
    shutil.copytree(TREES / "v1/pids", tmp_path / "pids")
    (tmp_path / "pids/pids.max").write_text(text)

    pids = read_v1(held, tmp_path, "pids").pids

    assert (pids.current, pids.limit) == (4, limit)


def test_v1_block_io_from_the_first_family_that_counted(held: list[CgroupPaths]) -> None:
    """BFQ's file is there, but only says Total 0: then the throttling layer's counts are the ones."""
    blkio = read_v1(held, TREES / "v1").blkio

    counts = [(entry.op, entry.major, entry.minor, entry.value) for entry in blkio.io_service_bytes_recursive]
    assert counts[:2] == [("Read", 8, 0, 4096), ("Write", 8, 0, 8192)]
    assert counts[-1] == ("Total", 8, 0, 12288)
    assert [entry.value for entry in blkio.io_serviced_recursive] == [1, 2, 3]
    assert [(entry.op, entry.value) for entry in blkio.sectors_recursive] == [("", 77)]


def test_v1_huge_pages_and_rdma(held: list[CgroupPaths]) -> None:
    made = read_v1(held, TREES / "v1")

    assert [numbers(entry) for entry in made.hugetlb] == [
        {"usage": 2097152, "max": 4194304, "failcnt": 5, "pagesize": "2MB"}
    ]
    assert [numbers(entry) for entry in made.rdma.limit] == [
        {"device": "mlx4_0", "hca_handles": 2, "hca_objects": 2**32 - 1}
    ]


def test_v1_missing_controllers_are_left_out(held: list[CgroupPaths]) -> None:
    made = read_v1(held, TREES / "v1", "pids", "cpu")

    assert {field.name for field, _ in made.ListFields()} == {"pids", "cpu"}


def test_v1_without_swap_accounting(held: list[CgroupPaths], tmp_path: Path) -> None:
    shutil.copytree(TREES / "v1/memory", tmp_path / "memory")
    for kind in ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt"):
        os.unlink(tmp_path / f"memory/memory.memsw.{kind}")

    memory = read_v1(held, tmp_path, "memory").memory

    assert not memory.HasField("swap")
    assert memory.usage.usage == 332


# --- both


@pytest.mark.parametrize(("v1", "v2"), [({}, "gone"), ({"memory": "gone", "pids": "gone"}, None), ({}, None)])
def test_a_cgroup_that_is_gone_is_not_found(v1: dict[str, str], v2: str | None, tmp_path: Path) -> None:
    paths = CgroupPaths(
        {name: str(tmp_path / path) for name, path in v1.items()}, None if v2 is None else str(tmp_path / v2)
    )

    with pytest.raises(StatusError, match=r"^cgroup does not exist$") as refused:
        metrics.read(paths)

    assert refused.value.code == Code.NOT_FOUND


def test_a_cgroup_removed_while_its_directory_is_held(held: list[CgroupPaths], tmp_path: Path) -> None:
    """The held directory stays the old one: a new cgroup of that name does not answer for it."""
    shutil.copytree(TREES / "v2", tmp_path / "c")
    read_v2(held, tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    shutil.copytree(TREES / "v2_old", tmp_path / "c")

    with pytest.raises(StatusError, match="cgroup does not exist"):
        metrics.read(held[-1])


def test_a_cgroup_without_any_counter_is_empty_not_gone(held: list[CgroupPaths], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/cgroup.procs").write_text("")

    assert read_v2(held, tmp_path / "c").ListFields() == []


NET_DEV = """\
Inter-|   Receive                                             |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0  100        1    0    0    0     0       0          0
  eth0:  201     202  203  204    0     0          0         0  205      206  207  208    0     0       0          0
"""


def fake_proc(root: Path, netns: str) -> None:
    for who, inode in (("self", "net:[1]"), ("7", netns)):
        (root / who / "ns").mkdir(parents=True)
        (root / who / "ns/net").symlink_to(inode)
    (root / "7/net").mkdir()
    (root / "7/net/dev").write_text(NET_DEV)


def test_network_interfaces_but_the_loopback(tmp_path: Path) -> None:
    fake_proc(tmp_path, "net:[2]")
    made = cgroups1.Metrics()

    _fill_network(made, 7, str(tmp_path))

    assert [numbers(entry) for entry in made.network] == [
        {
            "name": "eth0",
            "rx_bytes": 201,
            "rx_packets": 202,
            "rx_errors": 203,
            "rx_dropped": 204,
            "tx_bytes": 205,
            "tx_packets": 206,
            "tx_errors": 207,
            "tx_dropped": 208,
        }
    ]


def test_the_hosts_network_is_not_the_containers(tmp_path: Path) -> None:
    fake_proc(tmp_path, "net:[1]")
    made = cgroups1.Metrics()

    _fill_network(made, 7, str(tmp_path))

    assert list(made.network) == []


def test_a_process_that_is_gone_has_no_network(tmp_path: Path) -> None:
    made = cgroups1.Metrics()

    _fill_network(made, 7, str(tmp_path))

    assert list(made.network) == []

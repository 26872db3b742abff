"""Which directories a process's cgroups are, from the two /proc files that say so, in every layout there is."""

import os
from pathlib import Path

import pytest

from shim.cgroup.cgroups import CgroupPaths, find, pids
from ttrpc.errors import StatusError
from ttrpc.status import Code

V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
V2_MOUNT = "38 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
RUNNING = 0x400140  # flags of any process; PF_EXITING is 0x4


def located(root: Path, cgroup: str, mounts: str, ours: str = "", flags: int = RUNNING) -> CgroupPaths:
    """Play /proc for a process 7 with this `cgroup` file, us having `ours` and these mounts."""
    for name in ("7", "self"):
        (root / name).mkdir()
    (root / "7/cgroup").write_text(cgroup)
    (root / "7/stat").write_text(f"7 (a name) with) R) S 1 7 7 0 -1 {flags} 1 2 3\n")
    (root / "self/cgroup").write_text(ours)
    (root / "self/mountinfo").write_text(mounts)
    return find(7, str(root))


def test_v1_with_shared_and_named_hierarchies(tmp_path: Path) -> None:
    found = located(tmp_path, "4:memory:/ns/c1\n2:cpu,cpuacct:/ns/c1\n1:name=systemd:/ns/c1\n", V1_MOUNTS)

    assert found.v1 == {
        "memory": "/sys/fs/cgroup/memory/ns/c1",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/ns/c1",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/ns/c1",
        "name=systemd": "/sys/fs/cgroup/systemd/ns/c1",
    }
    assert found.v2 is None
    assert found.is_v1


def test_hybrid_has_both_and_counts_in_v1(tmp_path: Path) -> None:
    found = located(tmp_path, "4:memory:/ns/c1\n0::/ns/c1\n", V1_MOUNTS + V2_MOUNT)

    assert found.v1 == {"memory": "/sys/fs/cgroup/memory/ns/c1"}
    assert found.v2 == "/sys/fs/cgroup/unified/ns/c1"
    assert found.is_v1


def test_unified(tmp_path: Path) -> None:
    mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw\n"

    found = located(tmp_path, "0::/system.slice/c1.scope\n", mounts)

    assert (found.v1, found.v2, found.is_v1) == ({}, "/sys/fs/cgroup/system.slice/c1.scope", False)


def test_what_the_process_shares_with_us_is_left_out(tmp_path: Path) -> None:
    """A hierarchy the runtime does not know: the container stayed in the shim's cgroup there. It must not be killed."""
    cgroup = "5:misc:/system.slice/shimd.service\n4:memory:/ns/c1\n0::/system.slice/shimd.service\n"
    ours = "5:misc:/system.slice/shimd.service\n4:memory:/system.slice/shimd.service\n0::/system.slice/shimd.service\n"

    found = located(tmp_path, cgroup, V1_MOUNTS + V2_MOUNT, ours)

    assert (found.v1, found.v2) == ({"memory": "/sys/fs/cgroup/memory/ns/c1"}, None)


def test_a_bind_mounted_root_is_taken_off_the_path(tmp_path: Path) -> None:
    """As in a container without a cgroup namespace: the mount's root is its own cgroup on the host."""
    mounts = (
        "40 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 /docker/abc /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )

    found = located(tmp_path, "4:memory:/docker/abc/ns/c1\n0::/docker/abc\n", mounts)

    assert found.v1 == {"memory": "/sys/fs/cgroup/memory/ns/c1"}
    assert found.v2 == "/sys/fs/cgroup/unified"


def test_a_mount_that_does_not_hold_it_is_passed_over(tmp_path: Path) -> None:
    """The name of one cgroup may begin with another's."""
    mounts = (
        "40 31 0:32 /docker/ab /first rw - cgroup cgroup rw,memory\n"
        "41 31 0:32 /docker /second rw - cgroup cgroup rw,memory\n"
    )

    assert located(tmp_path, "4:memory:/docker/abc\n", mounts).v1 == {"memory": "/second/abc"}


def test_outside_of_our_cgroup_namespace_there_is_nothing(tmp_path: Path) -> None:
    found = located(tmp_path, "4:memory:/../other/c1\n0::/..\n", V1_MOUNTS + V2_MOUNT)

    assert (found.v1, found.v2) == ({}, None)


def test_the_root_cgroup_has_no_double_slash(tmp_path: Path) -> None:
    assert located(tmp_path, "4:memory:/\n", V1_MOUNTS, ours="4:memory:/shim\n").v1 == {
        "memory": "/sys/fs/cgroup/memory"
    }


def test_blanks_in_mount_points_and_colons_in_paths(tmp_path: Path) -> None:
    mounts = r"35 31 0:32 / /a\040b\134c rw - cgroup cgroup rw,memory" + "\n"

    assert located(tmp_path, "4:memory:/ns/c:1\n", mounts).v1 == {"memory": r"/a b\c/ns/c:1"}


def test_a_cgroup_removed_under_its_process(tmp_path: Path) -> None:
    assert located(tmp_path, "0::/ns/c1 (deleted)\n", V2_MOUNT).v2 == "/sys/fs/cgroup/unified/ns/c1"


def test_an_exiting_process_is_not_believed(tmp_path: Path) -> None:
    """In v1 it already shows the root cgroup, the whole machine's."""
    with pytest.raises(StatusError, match="process 7 has exited") as refused:
        located(tmp_path, "4:memory:/\n", V1_MOUNTS, flags=RUNNING | 0x4)

    assert refused.value.code == Code.NOT_FOUND


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="process 7 has exited"):
        find(7, str(tmp_path))


def test_members_are_collected_from_the_whole_subtree(tmp_path: Path) -> None:
    """A container may make cgroups of its own; 0 is a process of a pid namespace we do not see."""
    for name, text in (("", "5\n0\n"), ("inner", "6\n"), ("inner/most", "7\n8\n"), ("empty", "")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text(text)
    paths = CgroupPaths({}, str(tmp_path))

    assert pids(paths) == [5, 6, 7, 8]

    paths.close()


def test_members_come_from_v1_when_there_is_any(tmp_path: Path) -> None:
    for name, text in (("freezer", "5\n"), ("memory", "6\n"), ("unified", "7\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text(text)
    paths = CgroupPaths(
        {"memory": str(tmp_path / "memory"), "freezer": str(tmp_path / "freezer")}, str(tmp_path / "unified")
    )

    assert pids(paths) == [5]

    paths.close()


def test_nobody_is_in_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    assert pids(CgroupPaths({}, str(tmp_path / "gone"))) == []
    assert pids(CgroupPaths({}, None)) == []


def test_closing_twice_is_one(tmp_path: Path) -> None:
    paths = CgroupPaths({}, str(tmp_path))
    held_fd = paths.directory_fd(str(tmp_path))

    paths.close()
    paths.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held_fd)

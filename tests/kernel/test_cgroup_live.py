"""Finding, counting, killing: against this machine's cgroups and containers of real runc."""

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from shim.cgroup import cgroups, metrics
from tests.support.limited import MEMORY_BYTES, PIDS, QUOTA_US
from tests.support.waiting import wait_until
from ttrpc.errors import StatusError


def test_the_container_is_found_where_runc_put_it(make_container: Any) -> None:
    container = make_container("exec sleep 60")

    with open(f"{container.folder}/runc/c1/state.json", encoding="utf-8") as file:
        told = json.load(file)["cgroup_paths"]
    for controller, path in container.paths.v1.items():
        assert told[controller] == path
    # runc tells the v2 directory under "", also on a hybrid system.
    assert container.paths.v2 == told.get("")
    assert container.paths.v1 or container.paths.v2


def test_our_own_cgroups_are_never_given_out() -> None:
    """Found for a child of ours, which shares them all: there is nothing of its own to count or to kill."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        found = cgroups.find(child.pid)

        assert (found.v1, found.v2) == ({}, None)
        assert cgroups.kill_all(found) == 0
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_zombie_has_no_cgroup() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(StatusError, match="has exited"):
        cgroups.find(child.pid)

    child.wait()


def test_the_limits_and_the_use_of_a_running_container(make_container: Any) -> None:
    container = make_container("while :; do :; done", quota_us=QUOTA_US)
    container.start()
    paths = container.paths

    def burnt() -> Any:
        """Its figures, once the one process uses what it may.

        `runc start` is done before runc's own threads are: throttled as well, they stay a while, and count.
        """
        made: Any = metrics.read(paths)
        if paths.is_v1:
            throttled = made.cpu.usage.total > QUOTA_US * 1000 and made.cpu.throttling.throttled_periods > 0
        else:
            throttled = made.cpu.usage_usec > QUOTA_US and made.cpu.nr_throttled > 0
        return made if throttled and made.pids.current == 1 else None

    made: Any = wait_until(burnt, what="the container to be its program alone, use what it may, and be throttled")

    assert made.pids.limit == PIDS
    if paths.is_v1:
        assert made.memory.usage.limit == MEMORY_BYTES
        assert made.memory.hierarchical_memory_limit == MEMORY_BYTES
        assert 0 < made.memory.usage.usage <= made.memory.usage.max <= MEMORY_BYTES
        assert sum(made.cpu.usage.per_cpu) > 0
        assert made.HasField("blkio")
        assert made.memory_oom_control.oom_kill == 0
    else:
        assert made.memory.usage_limit == MEMORY_BYTES
        assert 0 < made.memory.usage <= MEMORY_BYTES
        assert made.memory_events.oom_kill == 0


def test_the_network_of_its_own_is_counted(make_container: Any) -> None:
    """It has only a loopback, which is left out; that no host interface shows up is the point."""
    container = make_container("exec sleep 60")

    assert list(metrics.read(container.paths, container.pid).network) == []


def test_pressure_is_there_where_the_kernel_keeps_it(make_container: Any) -> None:
    container = make_container("while :; do :; done", quota_us=QUOTA_US)
    container.start()
    if container.paths.v2 is None or not os.path.exists(f"{container.paths.v2}/cpu.pressure"):
        pytest.skip("no v2 hierarchy, or PSI is switched off (boot with psi=1)")

    found = wait_until(
        lambda: metrics.read_pressure(container.paths).get("cpu") or None, what="pressure of the cpu to be told"
    )

    # With a quota the one process is stalled whenever it is throttled.
    wait_until(lambda: metrics.read_pressure(container.paths)["cpu"].some.total > 0, what="a stall")
    assert set(metrics.read_pressure(container.paths)) == {"cpu", "memory", "io"}
    assert found.HasField("some")


def test_a_removed_cgroup_is_not_found(make_container: Any) -> None:
    container = make_container("exec sleep 60")
    metrics.read(container.paths)
    container.runc("delete", "--force", "c1")

    with pytest.raises(StatusError, match=r"^cgroup does not exist$"):
        metrics.read(container.paths)
    assert cgroups.pids(container.paths) == []
    assert cgroups.kill_all(container.paths) == 0


SHELLS = "i=0; while [ $i -lt 5 ]; do sleep 60 & i=$((i+1)); done; trap 'echo' TERM; while :; do wait; done"


def test_everybody_in_the_container_is_known(make_container: Any) -> None:
    container = make_container(SHELLS)
    container.start()

    found = wait_until(
        lambda: (lambda now: now if len(now) == 6 else None)(cgroups.pids(container.paths)), what="5 + 1"
    )

    assert container.pid in found
    assert found == sorted(found)


@pytest.mark.parametrize("through", ["cgroup.kill", "each process"])
def test_kill_all_leaves_nobody(make_container: Any, through: str) -> None:
    container = make_container(SHELLS)
    container.start()
    wait_until(lambda: len(cgroups.pids(container.paths)) == 6, what="5 + 1 processes")
    paths = container.paths
    if through == "each process":
        paths = cgroups.CgroupPaths(dict(paths.v1), None) if paths.v1 else paths
    elif paths.v2 is None or not os.path.exists(f"{paths.v2}/cgroup.kill"):
        pytest.skip("no v2 hierarchy with cgroup.kill (kernel 5.14+)")

    assert cgroups.kill_all(paths) == 6

    wait_until(lambda: cgroups.pids(paths) == [], what="all to be gone")
    paths.close()


def test_other_signals_reach_everybody_too(make_container: Any) -> None:
    """The five sleepers end, the shell catches it."""
    container = make_container(SHELLS)
    container.start()
    wait_until(lambda: len(cgroups.pids(container.paths)) == 6, what="5 + 1 processes")

    assert cgroups.kill_all(container.paths, signal.SIGTERM) == 6

    wait_until(lambda: cgroups.pids(container.paths) == [container.pid], what="the sleepers to be gone")

"""Out of memory, for real: a container with a small limit, and when and how the watch learns of the kill."""

import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from shim.cgroup import cgroups, metrics
from shim.cgroup.oom import OomWatch
from shim.core.loop import Loop
from tests.support.limited import Container
from tests.support.waiting import wait_until

# A shell variable that doubles until the limit of the cgroup is reached.
GLUTTON = "x=0123456789abcdef; while :; do x=$x$x; done"


class Watched:
    """A loop with an OOM watch on a container, and what it told."""

    def __init__(self, container: Container) -> None:
        self.loop = Loop()
        self.told: list[int] = []
        self.watch = OomWatch(self.loop, container.paths, self.told.append)

    def until(self, condition: Any, what: str) -> None:
        wait_until(lambda: (self.loop.run_once(0.05), condition())[1], what=what)

    def close(self) -> None:
        self.watch.close()
        self.loop.close()


@pytest.fixture
def watch() -> Iterator[Any]:
    made: list[Watched] = []

    def make(container: Container) -> Watched:
        made.append(Watched(container))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_real_oom_kill_is_told(make_container: Any, watch: Any) -> None:
    container = make_container(f"/bin/busybox sh -c '{GLUTTON}'; exec /bin/busybox sleep 60")
    watched = watch(container)
    assert watched.watch.count() == 0

    container.start()
    watched.until(lambda: watched.told, "the kill to be told")

    assert watched.told == [1]
    assert watched.watch.count() == 1
    made: Any = metrics.read(container.paths)
    assert (made.memory_oom_control.oom_kill if container.paths.is_v1 else made.memory_events.oom_kill) == 1


def test_the_count_is_there_before_the_victim_can_be_reaped(make_container: Any, watch: Any) -> None:
    """Init itself is the victim; whoever sees its exit reads the kill at once, with no event handled yet."""
    container = make_container(GLUTTON)
    watched = watch(container)
    pidfd = os.pidfd_open(container.pid)
    try:
        container.start()
        assert select.select([pidfd], [], [], 30)[0], "init should have been killed"

        assert watched.watch.count() == 1
        assert watched.watch.check()
        assert watched.told == [1]
    finally:
        os.close(pidfd)


def test_the_watch_ends_by_itself_when_the_cgroup_is_removed(make_container: Any, watch: Any) -> None:
    """A removed cgroup makes the fd ready for ever: a loop that stayed registered would spin."""
    container = make_container("exec /bin/busybox sleep 60")
    watched = watch(container)
    container.runc("delete", "--force", "c1")

    watched.until(lambda: watched.watch._watched_fd < 0, "the watch to end")

    assert watched.told == []
    assert watched.watch.count() == 0


def test_a_v2_file_wakes_epoll_as_memory_events_does(make_container: Any) -> None:
    """cgroup.events stands in for memory.events where v2 has no controllers: the kernel notifies both the same way."""
    container = make_container("exec /bin/busybox sleep 60")
    if container.paths.v2 is None:
        pytest.skip("no v2 hierarchy is mounted")
    fd = os.open(f"{container.paths.v2}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    poller = select.epoll()
    try:
        poller.register(fd, select.EPOLLPRI)
        assert b"populated 1" in os.pread(fd, 4096, 0)
        assert poller.poll(0) == []

        cgroups.kill_all(container.paths)
        assert poller.poll(10), "the change should have woken us"
        wait_until(lambda: b"populated 0" in os.pread(fd, 4096, 0), what="the cgroup to be empty")
        assert poller.poll(0) == [], "reading it makes it quiet"
    finally:
        poller.close()
        os.close(fd)

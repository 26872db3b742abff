"""When the OOM watch tells, against a scripted loop; the real kernel's part is tests/kernel/test_cgroup_oom.py."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.cgroup.cgroups import CgroupPaths
from shim.cgroup.oom import OomWatch

TREES = Path(__file__).parent / "trees"


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """Remembers what it was asked for; the test is the kernel and the clock."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[int], None]] = {}
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], object]] = []

    def register(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        assert mask
        self.watched[fd] = callback

    def unregister(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def fire(self) -> None:
        """The kernel says that something happened."""
        ((_fd, callback),) = self.watched.items()
        callback(1)

    def pass_time(self) -> list[float]:
        """Let every timer come due, also those set meanwhile; the delays, in order."""
        delays = []
        while self.timers:
            timer = self.timers.pop(0)
            if not timer.is_cancelled:
                delays.append(timer.delay_s)
                timer.callback()
        return delays


class Scene:
    """Owns a cgroup directory, its paths and a watch on it."""

    def __init__(self, root: Path, version: int) -> None:
        self.loop = FakeLoop()
        self.told: list[int] = []
        self.file = root / ("memory.oom_control" if version == 1 else "memory.events")
        root.mkdir()
        (root / "cgroup.event_control").write_text("")
        self.kills(0)
        self.paths = CgroupPaths({"memory": str(root)}, None) if version == 1 else CgroupPaths({}, str(root))
        self.watch: OomWatch | None = None

    def kills(self, count: int, name: str = "oom_kill") -> None:
        """In place, as the kernel: the watch holds the file open."""
        with open(self.file, "w", encoding="ascii") as file:
            file.write(f"low 9\noom 9\n{name} {count}\noom_group_kill 9\n")

    def open(self, told: int = 0) -> OomWatch:
        self.watch = OomWatch(self.loop, self.paths, self.told.append, told=told)
        return self.watch

    def close(self) -> None:
        if self.watch is not None:
            self.watch.close()
        self.paths.close()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "c", request.param)
    yield made
    made.close()


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "c", 1)
    yield made
    made.close()


@pytest.fixture
def v2(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "c", 2)
    yield made
    made.close()


def wake(scene: Scene) -> None:
    """A wake-up as each version gives it: v1's eventfd must be readable."""
    if "memory" in scene.paths.v1:
        ((fd, _),) = scene.loop.watched.items()
        os.eventfd_write(fd, 1)
    scene.loop.fire()


def test_each_rise_is_told_once_with_the_count(scene: Scene) -> None:
    scene.open()

    scene.kills(1)
    wake(scene)
    wake(scene)
    scene.kills(3)
    wake(scene)

    assert scene.told == [1, 3]


def test_a_wake_up_without_a_kill_tells_nothing(scene: Scene) -> None:
    """v2 wakes for each line of memory.events, v1 also when the cgroup is removed."""
    scene.open()

    wake(scene)
    scene.loop.pass_time()

    assert scene.told == []


def test_the_count_is_read_at_the_call_not_at_the_wake_up(scene: Scene) -> None:
    """At an exit the kill must be known, whether or not the loop came round to the event."""
    watch = scene.open()
    scene.kills(2)

    assert watch.count() == 2
    assert watch.check()
    assert not watch.check()
    assert scene.told == [2]


def test_v1_looks_again_because_it_is_woken_before_the_kill_is_counted(v1: Scene) -> None:
    v1.open()
    wake(v1)
    assert v1.told == []

    v1.kills(1)
    assert v1.loop.pass_time() == [0.01]
    assert v1.told == [1]


def test_v1_gives_up_looking_when_nobody_is_killed(v1: Scene) -> None:
    """With oom_kill_disable the processes just wait."""
    v1.open()
    wake(v1)

    assert v1.loop.pass_time() == [0.01, 0.1, 1.0]


def test_a_second_wake_up_starts_the_looking_anew(v1: Scene) -> None:
    v1.open()
    wake(v1)
    wake(v1)

    assert v1.loop.pass_time() == [0.01, 0.1, 1.0]


def test_kills_before_the_watch_are_told_from_the_loop(scene: Scene) -> None:
    """Not from the constructor: the caller does not hold the watch yet."""
    scene.kills(4)
    scene.open()
    assert scene.told == []

    for callback in scene.loop.soon:
        callback()
    assert scene.told == [4]


def test_a_successor_says_what_was_told_before_it(scene: Scene) -> None:
    scene.kills(4)
    watch = scene.open(told=4)

    assert scene.loop.soon == []
    assert not watch.check()
    scene.kills(5)
    assert watch.check()
    assert scene.told == [5]


def test_closing_ends_everything(scene: Scene) -> None:
    watch = scene.open()
    scene.kills(1)
    assert watch.count() == 1

    watch.close()
    watch.close()

    assert scene.loop.watched == {}
    assert watch.count() == 1
    assert not watch.check()
    assert scene.told == []


def test_closing_while_looking_again(v1: Scene) -> None:
    watch = v1.open()
    wake(v1)

    watch.close()

    assert v1.loop.pass_time() == []


def test_v1_registers_its_eventfd_for_the_file_it_counts_from(v1: Scene) -> None:
    v1.open()

    event_fd, counter_fd = (Path(v1.paths.v1["memory"]) / "cgroup.event_control").read_text().split()
    assert int(event_fd) in v1.loop.watched
    assert os.readlink(f"/proc/self/fd/{counter_fd}").endswith("memory.oom_control")


def test_v2_watches_the_file_it_counts_from(v2: Scene) -> None:
    v2.open()

    ((fd, _),) = v2.loop.watched.items()
    assert os.readlink(f"/proc/self/fd/{fd}").endswith("memory.events")


@pytest.mark.parametrize(
    "paths", [CgroupPaths({}, None), CgroupPaths({"memory": "/gone"}, None), CgroupPaths({}, "/gone")]
)
def test_nothing_to_watch_is_an_idle_watch(paths: CgroupPaths) -> None:
    loop = FakeLoop()

    watch = OomWatch(loop, paths, lambda count: None)

    assert watch.count() == 0
    assert not watch.check()
    assert loop.watched == {}


def test_a_cgroup_without_the_memory_controller_is_an_idle_watch(tmp_path: Path) -> None:
    """As in the v2 half of a hybrid system; no fd stays behind (the leak check looks)."""
    paths = CgroupPaths({}, str(tmp_path))

    watch = OomWatch(FakeLoop(), paths, lambda count: None)

    assert watch.count() == 0
    paths.close()


def test_the_recorded_events_file_is_understood(tmp_path: Path) -> None:
    shutil.copytree(TREES / "v2", tmp_path / "c")
    paths = CgroupPaths({}, str(tmp_path / "c"))

    watch = OomWatch(FakeLoop(), paths, lambda count: None)

    assert watch.count() == 5
    watch.close()
    paths.close()

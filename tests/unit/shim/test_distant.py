"""How processes ended that are nobody's child of ours: exactly, or not at all, in whatever order the kernel tells."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shim.keeper import connector, distant
from shim.keeper.connector import End

SHIM, REAPER, PID = 100, 7, 200
BUNDLE = "/bundle"
TICKS = 1000  # 10 s after boot, where a second has 100
EARLIER, LATER = 5 * 10**9, 15 * 10**9  # than that
SEGV, CORE = 11, 0x80


def end(pid: int = PID, code: int = 0, *, tgid: int = 0, parent: int = REAPER, at_ns: int = LATER) -> End:
    return End(pid, tgid or pid, code, parent, at_ns)


class Kernel:
    """What Distant asks of the world: processes as they are now, and what was told and nobody has read yet."""

    def __init__(self) -> None:
        self.processes: dict[int, tuple[int, int]] = {SHIM: (REAPER, 1)}  # parent and start
        self.recorded: dict[int, int | None] = {PID: TICKS}
        self.states: dict[int, tuple[str, int]] = {}
        self.told: list[End | OSError] = []
        self.parents: set[int] = set()
        self.is_open = False
        self.refusal: OSError | None = None

    # the connector

    def fileno(self) -> int:
        return 99

    def listen_for(self, parents: set[int]) -> None:
        self.parents = parents

    def read(self) -> End | None:
        if not self.told:
            return None
        word = self.told.pop(0)
        if isinstance(word, OSError):
            raise word
        return word

    def close(self) -> None:
        self.is_open = False

    def connect(self) -> "Kernel":
        if self.refusal is not None:
            raise self.refusal
        self.is_open = True
        return self

    # processes

    def state_and_start(self, pid: int) -> tuple[str, int]:
        if pid not in self.states:
            raise ProcessLookupError(pid)
        return self.states[pid]

    def open_exactly(self, pid: int, ticks: int) -> int | None:
        return os.open("/dev/null", os.O_RDONLY) if pid in self.processes and self.processes[pid][1] == ticks else None


class Host:
    """The loop, the log, and the notes."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.fds: dict[int, Callable[[int], None]] = {}
        self.lines: list[str] = []
        self.notes: dict[int, int] = {}

    def call_later(self, _delay_s: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)

    def register(self, fd: int, _mask: int, callback: Callable[[int], None]) -> None:
        self.fds[fd] = callback

    def unregister(self, fd: int) -> None:
        del self.fds[fd]

    def write(self, _bundle: str, _shim: int, pid: int, _ticks: int, status: int, _at_ns: int) -> None:
        self.notes[pid] = status

    def info(self, line: str) -> None:
        self.lines.append(line)

    warning = error = info

    def failure(self, what: str, error: BaseException) -> None:
        raise AssertionError(what) from error

    def pass_time(self) -> None:
        """Every timer that is set now, and those they set, a few times over."""
        for _ in range(distant.TRIES + 1):
            timers, self.timers = self.timers, []
            for timer in timers:
                timer()


class Scene:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.host = Host()
        self.distant = distant.Distant(self.host, self.host, self.host)  # type: ignore[arg-type]
        self.distant.adopted(SHIM)

    def kill_shim(self) -> None:
        """Its container's process, if it lives, is the reaper's now."""
        del self.kernel.processes[SHIM]
        self.distant.died(SHIM, BUNDLE)

    def tell(self, *ends: End | OSError) -> None:
        self.kernel.told += ends
        self.host.fds[99](0)

    def reap(self, pid: int = PID) -> None:
        """The process is gone, and its pidfd says so."""
        del self.kernel.processes[pid]
        (fd,) = (fd for fd in self.host.fds if fd != 99)
        self.host.fds[fd](0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(distant, "Connector", made.connect)
    monkeypatch.setattr(distant, "parent_and_start", made.processes.get)
    monkeypatch.setattr(distant, "recorded_processes", lambda _bundle, *, with_ended: dict(made.recorded))
    monkeypatch.setattr(distant.kernel, "state_and_start", made.state_and_start)
    monkeypatch.setattr(distant.pidfds, "open_exactly", made.open_exactly)
    monkeypatch.setattr(distant.pidfds, "is_over", lambda _fd: False)
    monkeypatch.setattr(distant.time, "clock_gettime_ns", lambda _clock: 0)  # as if never suspended
    monkeypatch.setattr(distant, "_TICK_NS", 10_000_000)
    return made


@pytest.fixture
def scene(kernel: Kernel) -> Iterator[Scene]:
    made = Scene(kernel)
    yield made
    made.distant.close()


def living(scene: Scene, parent: int = REAPER) -> Scene:
    scene.kernel.processes[PID] = (parent, TICKS)
    scene.kill_shim()
    return scene


# --- one thread


def test_a_process_that_ends_after_its_shim_is_noted_with_its_status(scene: Scene) -> None:
    living(scene)
    scene.tell(end(code=42 << 8))
    assert scene.host.notes == {}  # it may yet be contradicted
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 42 << 8}


def test_the_end_may_be_told_after_the_process_is_seen_to_be_over(scene: Scene) -> None:
    living(scene)
    scene.reap()
    scene.host.timers.pop()()
    scene.kernel.told.append(end(code=7 << 8))  # read at the next try
    scene.host.pass_time()

    assert scene.host.notes == {PID: 7 << 8}


@pytest.mark.parametrize("parent", [SHIM, REAPER, 0])
def test_one_that_ended_in_the_moment_of_its_shim_was_heard(scene: Scene, parent: int) -> None:
    """As a child of its shim, as an orphan, or reaped before it was told."""
    scene.kernel.told.append(end(code=9, parent=parent))
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 9}


def test_what_nobody_told_is_not_noted(scene: Scene) -> None:
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.notes == {}
    assert f"how process {PID} of {BUNDLE} ended is not known" in scene.host.lines


def test_who_had_the_pid_before_is_another(scene: Scene) -> None:
    scene.tell(end(code=1 << 8, at_ns=EARLIER), end(code=2 << 8))
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 2 << 8}


def test_two_ends_that_may_be_its_own_are_none(scene: Scene) -> None:
    scene.tell(end(code=1 << 8), end(code=2 << 8))
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.notes == {}


def test_a_suspended_host_counts_its_sleep(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends are told on a clock that stands meanwhile, starts on one that does not."""
    slept = {distant.time.CLOCK_BOOTTIME: 20 * 10**9, distant.time.CLOCK_MONOTONIC: 12 * 10**9}
    monkeypatch.setattr(distant.time, "clock_gettime_ns", slept.__getitem__)
    scene.tell(end(code=3 << 8, at_ns=4 * 10**9))
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 3 << 8}


# --- threads


@pytest.mark.parametrize(
    ("first", "others", "status"),
    [
        (5 << 8, [5 << 8, 5 << 8], 5 << 8),  # exit_group
        (9, [9], 9),
        (0, [], 0),
        (0, [3 << 8], None),  # the first left by itself, and another ended the process
        (SEGV, [SEGV | CORE], SEGV | CORE),  # who wrote the core tells
        (SEGV | CORE, [SEGV], SEGV | CORE),
        (SEGV, [9], None),
    ],
)
@pytest.mark.parametrize("is_first_last", [False, True])
def test_threads_that_contradict_each_other(
    scene: Scene, first: int, others: list[int], status: int | None, is_first_last: bool
) -> None:
    living(scene)
    leader, rest = [end(code=first)], [end(PID + n, code, tgid=PID, parent=0) for n, code in enumerate(others, 1)]
    scene.tell(*(rest + leader if is_first_last else leader + rest))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes.get(PID) == status


def test_a_thread_that_contradicts_later_is_heard(scene: Scene) -> None:
    living(scene)
    scene.tell(end(code=0))
    scene.reap()
    scene.kernel.told.append(end(PID + 1, 3 << 8, tgid=PID, parent=0))
    scene.host.pass_time()

    assert scene.host.notes == {}


def test_a_process_whose_other_thread_called_execve_has_not_ended(scene: Scene) -> None:
    living(scene)
    scene.kernel.states[PID] = ("S", TICKS)
    scene.tell(end(code=0))
    del scene.kernel.states[PID]
    scene.tell(end(code=4 << 8))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 4 << 8}


def test_so_it_is_when_it_was_looked_at_in_the_middle_of_that(scene: Scene) -> None:
    living(scene)
    scene.kernel.states[PID] = ("Z", TICKS)
    scene.tell(end(code=0))
    scene.kernel.states[PID] = ("S", TICKS)
    scene.host.pass_time()
    del scene.kernel.states[PID]
    scene.tell(end(code=4 << 8))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 4 << 8}


def test_who_lives_when_its_shim_dies_has_not_ended_before(scene: Scene) -> None:
    scene.tell(end(code=0))
    scene.kernel.states[PID] = ("S", TICKS)
    living(scene)
    del scene.kernel.states[PID]
    scene.tell(end(code=4 << 8))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 4 << 8}


# --- whose they are


@pytest.mark.parametrize("parent", [os.getpid(), SHIM])
def test_a_child_of_ours_or_of_a_shim_that_lives_is_theirs_to_reap(scene: Scene, parent: int) -> None:
    scene.kernel.processes[PID] = (parent, TICKS)
    scene.distant.settled(SHIM, BUNDLE)
    assert list(scene.host.fds) == [99]


def test_what_a_shim_before_the_adopted_one_left_is_awaited_while_that_lives(scene: Scene) -> None:
    scene.kernel.processes[PID] = (REAPER, TICKS)
    scene.distant.settled(SHIM, BUNDLE)
    scene.tell(end(code=6 << 8))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 6 << 8}


def test_what_is_put_on_record_after_the_death_is_found_when_the_successor_has_settled(scene: Scene) -> None:
    scene.kernel.recorded = {}
    scene.kill_shim()
    scene.tell(end(code=8 << 8))
    scene.kernel.recorded = {PID: TICKS}
    scene.distant.settled(SHIM + 1, BUNDLE)
    scene.host.timers = scene.host.timers[1:]  # not what forgets the dead shim, half a minute later
    scene.host.pass_time()

    assert scene.host.notes == {PID: 8 << 8}


# --- listening


def test_it_listens_for_shims_for_whom_their_orphans_fall_to_and_for_pid_1(scene: Scene) -> None:
    assert scene.kernel.parents == {1, SHIM, REAPER}
    living(scene, parent=55)
    assert scene.kernel.parents == {1, SHIM, REAPER, 55}


def test_it_listens_no_longer_than_it_has_somebody(scene: Scene) -> None:
    living(scene)
    scene.tell(end())
    scene.reap()
    assert scene.kernel.is_open
    scene.host.pass_time()
    assert not scene.kernel.is_open


def test_after_a_loss_only_who_lives_is_awaited(scene: Scene) -> None:
    scene.kernel.processes[PID] = (REAPER, TICKS)
    scene.kernel.recorded = {PID: TICKS, PID + 1: TICKS}
    scene.kernel.told = [end(PID + 1, 1 << 8), OSError(errno.ENOBUFS, "lost"), end(PID + 1, 2 << 8)]
    scene.kill_shim()
    scene.tell(end(PID + 1, 1 << 8), OSError(errno.ENOBUFS, "lost"), end(code=5 << 8))
    scene.reap()
    scene.host.pass_time()

    assert scene.host.notes == {PID: 5 << 8}


def test_where_there_is_no_connector_it_is_said_once_and_shims_are_adopted(kernel: Kernel) -> None:
    kernel.refusal = OSError(errno.EPERM, "not allowed")
    scene = Scene(kernel)
    scene.distant.adopted(SHIM)
    scene.kill_shim()
    scene.host.pass_time()

    assert scene.host.lines == [
        "no process connector (not allowed): what a killed shim we did not fork leaves ends unknown"
    ]
    assert scene.host.notes == {}


def test_what_goes_wrong_here_keeps_no_shim_from_being_looked_after(scene: Scene) -> None:
    said: list[Any] = []
    scene.host.failure = lambda what, error: said.append((what, error))  # type: ignore[method-assign]
    scene.kernel.listen_for = lambda _parents: 1 / 0  # type: ignore[method-assign,return-value]
    scene.kernel.processes[SHIM + 1] = (REAPER + 1, 1)
    scene.distant.adopted(SHIM + 1)

    assert [what for what, _ in said] == ["with the process connector"]


# --- messages and the filter


def message(what: int, *words: int) -> bytes:
    return bytes(36) + struct.pack("=IIQ6I", what, 0, 123, *words)


def test_a_message_about_an_end_is_taken_apart() -> None:
    found = connector.parse(message(connector.EXIT, 11, 10, 42 << 8, 17, 8, 9))

    assert found is not None
    assert (found.pid, found.tgid, found.code, found.parent, found.at_ns) == (11, 10, 42 << 8, 9, 123)


@pytest.mark.parametrize("what", [message(connector.NONE, *[0] * 6), message(1, *[0] * 6), b"", bytes(75)])
def test_any_other_message_is_none(what: bytes) -> None:
    assert connector.parse(what) is None


@pytest.mark.parametrize("count", [0, 1, connector.PARENTS_MAX, connector.PARENTS_MAX + 1, 100_000])
def test_a_filter_is_never_longer_than_the_kernel_takes(count: int) -> None:
    steps = len(connector.program(range(1, count + 1))) // 8

    assert steps <= 4096

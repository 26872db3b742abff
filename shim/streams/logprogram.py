"""A client's own log program (binary://): it reads the output straight from the FIFOs the process writes to.

It is given what containerd's shim gives it: arguments `k v k v` of the URI's query, an environment of CONTAINER_ID and
CONTAINER_NAMESPACE and nothing else, fd 3 stdout and fd 4 stderr to read from, fd 5 to say that it is ready: by a byte
or by closing it; as binary-v2:// by a byte only.

What differs: its death is not the container's. The process's ends are O_RDWR, so a write never fails for want of a
reader; we keep a read end too, so nothing in the FIFO is lost; and the program is started again. One that cannot live
is given up after some tries, and from then on the output is thrown away and counted, so that no write waits for ever.
"""

import fcntl
import os
import select
import signal

from shim.core import kernel, pidfds, pipes
from shim.core.reaper import NotOurChild
from shim.core.steps import DeadlinePassed, Exited, Fired, Readable, Signal, Sleep, Spawn
from shim.errors import invalid_argument, unknown
from shim.streams.jsonlines import STDERR, STDOUT
from shim.streams.pumps import Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.core.steps import Handler
    from shim.streams.targets import Target

# To load its configuration, open its files, dial its server.
READY_S = 30.0
# A program that lived for less than this did not live: so many such lives in a row, and it is given up.
LIFE_S = 10.0
LIVES_MAX = 5
RESTART_FIRST_S, RESTART_MAX_S = 0.1, 5.0
# Once the process is gone: to end by itself after the end of its input, as long as it is still reading and then so
# much longer; in all not more than this. Then it is asked, and after containerd's 12 s made to.
QUIET_S, STEP_S, READ_ON_S = 0.5, 0.01, 5.0
TERM_S = 12.0
KILL_S = 5.0
# Above the numbers the program gets: duplicating one onto 3 must not close what goes onto 4.
LOWEST_FD = 16


class LogProgram:
    """Owns the read ends kept here and the program, from `prepare` to its end.

    Order: pipe (for each stream) → prepare → the process's life → end → close.
    """

    def __init__(
        self, loop: "Loop", target: "Target", environment: "dict[str, str]", report: "Callable[[str], None]"
    ) -> None:
        self._loop = loop
        self._target = target
        self._environment = environment
        self._report = report
        self._sources: dict[str, int] = {}
        self._ready_fd = -1  # kept for the program's life: a late word into a closed pipe would kill it
        self._pid = 0
        self._pidfd = -1  # of one that an earlier shim started: it is not our child
        self.identity: tuple[int, int] | None = None  # pid and start time, for a successor
        self.on_change: Callable[[], None] = _nothing
        self._gone = Signal()
        self._is_kept = False
        self._hurry = Signal()  # the process is gone: what is left to read is to be read now
        self._is_ending = False
        self._discarders: list[Pump] = []

    @property
    def dropped_bytes(self) -> int:
        """Output thrown away because the program was given up."""
        return sum(pump.taken_bytes for pump in self._discarders)

    def pipe(self, stream: str, path: str, *, reopens: bool = False) -> "int | None":
        """Take a stream's FIFO; the value is the process's end of it, unless it has that already. Raises: OSError.

        Order: our end is opened first, for poll(2) tells of a writer's going only to who was there before it came.
        """
        self._sources[stream] = pipes.open_read_end(path)
        if reopens:
            return None
        child_fd = pipes.open_child_output(path)
        pipes.enlarge(child_fd)
        return child_fd

    # --- its life

    def prepare(self) -> "Handler":
        """Start the program and wait until it is ready.

        Raises: InvalidArgument when it cannot be run, UNKNOWN when it does not get ready.
        """
        path = self._target.path
        try:
            pid = yield from self._start()
        except OSError as error:
            raise invalid_argument(f"log program {path!r}: {error.strerror}") from None
        self._is_kept = True
        self._loop.spawn(self._keep(pid), is_watch=True)
        try:
            yield Readable(self._ready_fd, deadline_s=READY_S)
        except DeadlinePassed:
            raise unknown(f"log program {path!r} was not ready within {READY_S:g} s") from None
        if not os.read(self._ready_fd, 1) and self._target.says_ready:
            raise unknown(f"log program {path!r} did not say that it is ready: it may have ended early")

    def take_over(self, identity: "tuple[int, int] | None") -> None:
        """Keep the program an earlier shim started; one that has died since is started again."""
        self.identity = identity
        pidfd = pidfds.open_exactly(*identity) if identity is not None else None
        self._pid, self._pidfd = (identity[0], pidfd) if identity is not None and pidfd is not None else (0, -1)
        if pidfd is not None and self._is_child():
            os.close(pidfd)
            self._pidfd = -1
        self._is_kept = True
        self._loop.spawn(self._keep(self._pid or -1), is_watch=True)

    def _is_child(self) -> bool:
        """Whether it is ours, as after an upgrade in place: then its status is, too."""
        try:
            assert self._loop.reaper is not None, "programs are children"
            self._loop.reaper.adopt(self._pid)
        except NotOurChild:
            return False
        return True

    def _start(self) -> "Handler":
        """The value is its pid. Raises: OSError."""
        ready_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        given = [_lift(write_fd)]
        try:
            for number, stream in enumerate((STDOUT, STDERR)):
                given.insert(number, _lift(self._open_source(stream)))
            argv = (self._target.path, *self._target.arguments)
            self._pid = yield Spawn(argv, env=self._environment, more=tuple(given))
        except BaseException:
            os.close(ready_fd)
            raise
        finally:
            for fd in given:
                os.close(fd)
        self.identity = (self._pid, kernel.start_ticks(self._pid))
        self.on_change()
        self._gone = Signal()
        self._close_ready()
        self._ready_fd = ready_fd
        return self._pid

    def _open_source(self, stream: str) -> int:
        """A read end of the program's own; a stream there is none of is at its end."""
        source = self._sources.get(stream)
        if source is None:
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        fd = pipes.reopen(source, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        return fd

    def _keep(self, pid: int) -> "Handler":
        """Start it again whenever it ends before its input did."""
        lives, delay_s = 0, RESTART_FIRST_S
        while pid:
            began = self._loop.clock()
            status = yield from self._until_gone(pid)
            self._pid = pid = 0
            self._gone.fire(status)
            while not pid and not self._may_rest():
                lives, delay_s = (lives + 1, delay_s) if self._loop.clock() - began < LIFE_S else (1, RESTART_FIRST_S)
                if lives >= LIVES_MAX:
                    self._report(f"log program {self._target.path} {_how(status)} again and again: output is dropped")
                    self._discard()
                    break
                self._report(f"log program {self._target.path} {_how(status)}: starting it again")
                try:
                    yield Fired(self._hurry, deadline_s=delay_s)
                except DeadlinePassed:
                    delay_s = min(2 * delay_s, RESTART_MAX_S)
                began = self._loop.clock()
                if not self._may_rest():
                    pid = yield from self._start_again()
        self._is_kept = False

    def _until_gone(self, pid: int) -> "Handler":
        """The value is its wait status, or 0 of one that is not our child."""
        if pid > 0 and self._pidfd < 0:
            return (yield Exited(pid))
        if self._pidfd >= 0:
            yield Readable(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        return 0

    def _signal(self, signum: int) -> None:
        try:
            kernel.send_signal(self._pidfd if self._pidfd >= 0 else None, self._pid, signum)
        except ProcessLookupError:
            pass  # not our child, and reaped already

    def _start_again(self) -> "Handler":
        """The value is its pid, or 0."""
        try:
            pid = yield from self._start()
        except OSError as error:
            self._report(f"log program {self._target.path} cannot be started: {error.strerror}")
            return 0
        if self._is_ending:
            self._signal(signal.SIGTERM)
        return pid

    def _may_rest(self) -> bool:
        """Whether its end is in order: it was asked to, or nobody will write any more and all was read."""
        return self._is_ending or all(_is_at_end(fd) for fd in self._sources.values())

    def _unread_bytes(self) -> int:
        return sum(pipes.waiting_bytes(fd) for fd in self._sources.values())

    def _discard(self) -> None:
        """Read and forget, so that nobody's write waits; ends with the last writer."""
        sources, self._sources = self._sources, {}
        for stream, fd in sources.items():
            pump = Pump(self._loop, fd, stream, None)
            self._discarders.append(pump)
            pump.start()

    # --- its end

    def end(self) -> "Handler":
        """The process is gone: let the program read to the end, then have it end. Idempotent.

        Blocks: until it has ended, about 22 s at most.
        """
        if not self._hurry.fired:
            self._hurry.fire()
        yield from self._while_it_reads()
        self._is_ending = True
        for signum, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
            if not self._pid:
                break
            self._signal(signum)
            try:
                yield Fired(self._gone, deadline_s=patience_s)
            except DeadlinePassed:
                self._report(f"log program {self._target.path} does not end by {signum.name}")
        self._discard()  # of who writes on, which can be a process an exec has left behind

    def _while_it_reads(self) -> "Handler":
        quiet_s, deadline = 0.0, self._loop.clock() + READ_ON_S
        while self._is_kept and quiet_s < QUIET_S and self._loop.clock() < deadline:
            yield Sleep(STEP_S)
            quiet_s = 0.0 if self._unread_bytes() else quiet_s + STEP_S

    def close(self) -> None:
        """Let go; a program that still runs is ended meanwhile. Idempotent."""
        self._close_ready()
        if self._is_kept:
            self._loop.spawn(self.end())
        else:
            self._discard()

    def _close_ready(self) -> None:
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1


def _nothing() -> None:
    """Nobody asked to be told."""


def _lift(fd: int) -> int:
    """The same file under a number that the program gets for nothing else."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD)
    finally:
        os.close(fd)


def _is_at_end(fd: int) -> bool:
    """Whether a FIFO is empty and its last writer gone. Source: poll(2), POLLHUP; POLLIN with it when data is left."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return [ready for _, ready in poll.poll(0)] == [select.POLLHUP]


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"

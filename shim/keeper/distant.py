"""How processes ended that are neither our children nor a living shim's, by the process connector: exactly, or not.

A shim that is killed leaves its container's processes to the nearest subreaper above it. Is the keeper not that, for it
has only adopted the shim, then below Linux 6.15 nobody could say afterwards how they ended. Of a process a bundle names
the end is awaited here, and noted in the bundle as those of our own children are.
"""

import errno
import os
import time
from collections import deque

from shim.core import kernel, pidfds
from shim.core.loop import READ
from shim.keeper.connector import Connector, End
from shim.keeper.orphans import BEGUN_S, has_strangers, parent_and_start, recorded_processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.core.shimlog import ShimLog
    from shim.keeper.orphans import Orphans

# An end is told after who waits for the process can see it, by a thread that may have to wait for a processor: from
# when it is over until its ends are counted, and how often that is tried while there is none. See watching.NOTE_S.
SETTLE_S, TRIES = 0.2, 5
# Of the children of each parent, and of threads: as many ends are kept, for a shim whose death we hear of later.
KEPT = 256
# How soon, and how late, we look again whether execve(2) has put one thread in the place of another.
DOUBT_FIRST_S, DOUBT_MAX_S = 0.01, 2.0
# At once; then others have their turn.
READS_PER_TURN = 256
PID_1 = 1  # to whom all falls when another subreaper ends
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Seen:
    """The end of a process's first thread, and what others of it ended with, if that was not 0."""

    __slots__ = ("code", "end_ns", "mono_ns", "others", "pid")

    def __init__(self, end: End, end_ns: int, others: "set[int]") -> None:
        self.pid = end.pid
        self.code = end.code
        self.mono_ns = end.at_ns
        self.end_ns = end_ns  # since boot, as start times are
        self.others = others

    @property
    def status(self) -> "int | None":
        """The process's wait status; None when its threads contradict each other. Pure.

        The first thread's code is the process's when all ended together. It is not, when that thread had left before
        and another ended the process. Of a core dump only the thread that wrote it may tell.
        """
        codes = {self.code, *self.others}
        if len({code & ~0x80 for code in codes}) != 1:
            return None
        return max(codes)


class Watched:
    """A process whose end is awaited. Owns its pidfd, until it is over."""

    __slots__ = ("bundle", "parent", "pid", "pidfd", "seen", "shim_pid", "ticks", "tries")

    def __init__(self, pid: int, ticks: int, parent: int, bundle: str, shim_pid: int) -> None:
        self.pid = pid
        self.ticks = ticks
        self.parent = parent
        self.bundle = bundle
        self.shim_pid = shim_pid
        self.pidfd = -1
        self.seen: list[Seen] = []
        self.tries = TRIES

    def outcome(self) -> "Seen | None":
        """The one end that can be its own; none, when there is no such, or more than one. Pure."""
        found = [seen for seen in self.seen if seen.end_ns >= self.ticks * _TICK_NS]
        return found[0] if len(found) == 1 else None


class Distant:
    """Owns the connector while there is a shim we did not fork, or a process it left."""

    def __init__(self, loop: "Loop", orphans: "Orphans", log: "ShimLog") -> None:
        self._loop = loop
        self._orphans = orphans
        self._log = log
        self._connector: Connector | None = None
        self._refusal = ""
        self._shims: dict[int, int] = {}  # adopted, or dead a moment ago: the process what they leave falls to
        self._parents: set[int] = set()
        self._watched: dict[int, Watched] = {}
        self._recent: dict[int, deque[Seen]] = {}  # by parent
        self._threads: deque[tuple[int, int]] = deque(maxlen=KEPT)

    # --- shims

    def adopted(self, pid: int) -> None:
        """A shim that is not our child is looked after from here on."""
        self._try(lambda: self._adopted(pid))

    def died(self, pid: int, bundle: str) -> None:
        """A shim ended, child or not: what it left is to be known, also what is put on record a moment later."""
        self._try(lambda: self._died(pid, bundle))

    def settled(self, pid: int, bundle: str) -> None:
        """A shim, adopted or a successor, has everything in order: there may be what one before it had left.

        Also one that died while no keeper lived, or before it was adopted.
        """
        self._try(lambda: self._look(pid, bundle))

    def _try(self, work: "Callable[[], None]") -> None:
        """Whatever goes wrong here, shims are looked after."""
        try:
            work()
        except Exception as error:  # noqa: BLE001
            self._log.failure("with the process connector", error)

    def _adopted(self, pid: int) -> None:
        found = parent_and_start(pid)
        if found is not None:
            self._shims[pid] = found[0]
            self._retune()

    def _died(self, pid: int, bundle: str) -> None:
        self._catch_up()
        self._look(pid, bundle)
        if pid in self._shims:
            self._loop.call_later(BEGUN_S, lambda: self._forget(pid))

    def _forget(self, pid: int) -> None:
        self._shims.pop(pid, None)
        self._retune()

    def _look(self, shim_pid: int, bundle: str) -> None:
        """Await the end of each process a bundle names that is nobody's child of ours, nor of its shim."""
        if self._connector is None and not (has_strangers(bundle, shim_pid) and self._open()):
            return
        for pid, ticks in recorded_processes(bundle, with_ended=False).items():
            found = parent_and_start(pid)
            is_there = found is not None and ticks in (None, found[1])
            if is_there and found is not None and found[0] not in (os.getpid(), shim_pid):
                self._await(Watched(pid, found[1], found[0], bundle, shim_pid))
            elif not is_there and ticks is not None and pid not in self._watched:
                self._await(Watched(pid, ticks, PID_1, bundle, shim_pid))
        self._retune()

    # --- processes

    def _await(self, watched: Watched) -> None:
        known = self._watched.get(watched.pid)
        if known is not None and known.ticks == watched.ticks:
            known.parent = watched.parent
            return
        if known is not None:
            self._drop(known)
        watched.seen = [] if _is_alive(watched) else self._seen(watched.pid)
        self._watched[watched.pid] = watched
        pidfd = pidfds.open_exactly(watched.pid, watched.ticks)
        if pidfd is None:
            self._loop.call_later(SETTLE_S, lambda: self._settle(watched))
            return
        watched.pidfd = pidfd
        self._loop.register(pidfd, READ, lambda _mask: self._over(watched))

    def _over(self, watched: Watched) -> None:
        """All its threads have ended, of which the last may not have told yet."""
        self._loop.unregister(watched.pidfd)
        os.close(watched.pidfd)
        watched.pidfd = -1
        self._loop.call_later(SETTLE_S, lambda: self._settle(watched))

    def _settle(self, watched: Watched) -> None:
        if self._watched.get(watched.pid) is not watched:
            return
        self._catch_up()
        watched.tries -= 1
        if not watched.seen and watched.tries > 0:
            self._loop.call_later(SETTLE_S, lambda: self._settle(watched))
            return
        self._drop(watched)
        self._retune()
        seen = watched.outcome()
        status = seen.status if seen is not None else None
        if seen is None or status is None:
            self._log.warning(f"how process {watched.pid} of {watched.bundle} ended is not known")
            return
        at_ns = time.time_ns() - (time.monotonic_ns() - seen.mono_ns)
        try:
            self._orphans.write(watched.bundle, watched.shim_pid, watched.pid, watched.ticks, status, at_ns)
        except FileNotFoundError:
            return  # the bundle was removed
        except OSError as error:
            self._log.error(f"how process {watched.pid} ended, wait status {status}, cannot be noted: {error}")
            return
        self._log.info(
            f"process {watched.pid} of {watched.bundle}, whose shim is dead, ended with wait status {status}, "
            "says the process connector"
        )

    def _drop(self, watched: Watched) -> None:
        self._watched.pop(watched.pid, None)
        if watched.pidfd >= 0:
            self._loop.unregister(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = -1

    # --- the connector

    def _retune(self) -> None:
        """Have told what is needed by now, by nobody if that is nothing."""
        if not (self._shims or self._watched):
            self.close()
            return
        if self._connector is None and not self._open():
            return
        assert self._connector is not None
        parents = {PID_1, *self._shims, *self._shims.values(), *(each.parent for each in self._watched.values())}
        if parents != self._parents:
            self._connector.listen_for(parents)
            self._parents = parents
            for parent in self._recent.keys() - parents - {0}:
                del self._recent[parent]

    def _open(self) -> bool:
        try:
            self._connector = Connector()
        except OSError as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                why = error.strerror or self._refusal
                self._log.info(f"no process connector ({why}): what a killed shim we did not fork leaves ends unknown")
            return False
        self._loop.register(self._connector.fileno(), READ, lambda _mask: self._read(READS_PER_TURN))
        self._log.info("listening to the process connector")
        return True

    def close(self) -> None:
        """Listen no more, and forget all that was heard. Idempotent."""
        for watched in tuple(self._watched.values()):
            self._drop(watched)
        self._shims.clear()
        self._parents.clear()
        self._recent.clear()
        self._threads.clear()
        if self._connector is not None:
            self._loop.unregister(self._connector.fileno())
            self._connector.close()
            self._connector = None

    def _catch_up(self) -> None:
        self._read(1 << 16)

    def _read(self, limit: int) -> None:
        for _ in range(limit):
            if self._connector is None:
                return
            try:
                end = self._connector.read()
            except OSError as error:
                self._log.warning(f"ends of processes are lost: {error}")
                if error.errno != errno.ENOBUFS:
                    self.close()
                    return
                self._lost()
                continue
            if end is None:
                return
            self._heard(end)

    def _lost(self) -> None:
        """What was heard may have been contradicted by what was not. Whoever lives is awaited as before."""
        self._recent.clear()
        self._threads.clear()
        for watched in tuple(self._watched.values()):
            watched.seen.clear()
            if watched.pidfd < 0 or pidfds.is_over(watched.pidfd):
                self._drop(watched)
                self._log.warning(f"how process {watched.pid} of {watched.bundle} ended is not known")

    def _heard(self, end: End) -> None:
        """One thread ended."""
        if end.pid != end.tgid:
            if (end.tgid, end.code) not in self._threads:
                self._threads.append((end.tgid, end.code))
            for seen in self._seen(end.tgid):
                seen.others.add(end.code)
            return
        end_ns = end.at_ns + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if _lives_on(end.pid, end_ns):
            return
        seen = Seen(end, end_ns, {code for tgid, code in self._threads if tgid == end.pid})
        self._recent.setdefault(end.parent, deque(maxlen=KEPT)).append(seen)
        watched = self._watched.get(end.pid)
        if watched is not None:
            watched.seen.append(seen)
            self._doubt_in(DOUBT_FIRST_S, watched)

    def _doubt_in(self, pause_s: float, watched: Watched) -> None:
        self._loop.call_later(pause_s, lambda: self._doubt(pause_s, watched))

    def _doubt(self, pause_s: float, watched: Watched) -> None:
        """Who lives on after all has not ended: we had looked while execve(2) took the first thread's place."""
        if watched.pidfd < 0:
            return  # it is over
        if _is_alive(watched):
            watched.seen.clear()
        elif pause_s < DOUBT_MAX_S:
            self._doubt_in(2 * pause_s, watched)

    def _seen(self, pid: int) -> "list[Seen]":
        found = [seen for ring in self._recent.values() for seen in ring if seen.pid == pid]
        return found + (self._watched[pid].seen if pid in self._watched else [])


def _is_alive(watched: Watched) -> bool:
    """Whether its first thread runs, which then is yet to end."""
    try:
        state, ticks = kernel.state_and_start(watched.pid)
    except ProcessLookupError:
        return False
    return state not in ("Z", "X") and ticks == watched.ticks


def _lives_on(pid: int, end_ns: int) -> bool:
    """Whether a process goes on whose first thread ended: another thread of it has called execve(2), and has its place.

    Source: execve(2); proc_pid_stat(5). Whoever has the pid since then started later.
    """
    try:
        state, ticks = kernel.state_and_start(pid)
    except ProcessLookupError:
        return False
    return state not in ("Z", "X") and ticks * _TICK_NS <= end_ns

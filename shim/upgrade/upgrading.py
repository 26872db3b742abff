"""Going on as other code, in place: same process, so its children, pids, locks and sockets stay what they are.

    check    the new program reads the state in a child; what it cannot read is the answer, and nothing was touched
    quiet    a moment is awaited in which nothing is under way that could not be begun again
    freeze   state on disk, what is in memory alone in a memory file, every fd that matters open over execve(2)
    execute  the new program restores as a successor does, but waits for nobody, and serves (resume.py)

Until the execve a failure leaves all as it was; after it the new program's first text knows the way back to the old
one (handover.py); whoever is killed on the way is followed by a successor, as after any death.
"""

import fcntl
import json
import os
import signal
import stat
import sys
import time

from shim import faults
from shim.core.pipes import waiting_bytes
from shim.core.steps import DeadlinePassed, Exited, Signal, Sleep, Spawn
from shim.errors import failed_precondition, invalid_argument
from shim.keeper.code import ABOVE
from shim.recovery.successor import DOOMED
from shim.streams.pumps import discard
from shim.task.lifecycle import DELETED
from shim.task.saving import save, save_exec
from shim.upgrade import carriedcalls, handover
from shim.upgrade.carrying import carry, staged_bytes, trouble
from shim.version import VERSION
from ttrpc.api import shim as api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.loop import Loop
    from shim.core.steps import Handler
    from shim.serving.serve import Shim
    from shim.task.process import Process
    from ttrpc.api.shim import UpgradeRequest, UpgradeResponse
    from ttrpc.loop_connection import LoopConnection

# The new program imports everything it has and reads a few files.
CHECK_S = 20.0
PATIENCE_S = 10.0
LOOK_FIRST_S, LOOK_MAX_S = 0.001, 0.02
# None of them may end the new program before it heeds them; a mask survives execve(2), handlers do not.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
OUTPUT_MAX_BYTES = 65536
LOWEST_FD = 16
OLDER = "the other program, an older one,"


class Upgrade:
    """Leads at most one at a time. `outcome` is the handover this code came by, if it came by one."""

    __slots__ = ("_is_busy", "_listener_fd", "_lock_fd", "_shim", "outcome")

    def __init__(self, shim: "Shim", listener_fd: int, lock_fd: int) -> None:
        self._shim = shim
        self._listener_fd = listener_fd
        self._lock_fd = lock_fd
        self._is_busy = False
        self.outcome: dict[str, Any] | None = None

    def answer(self) -> "UpgradeResponse | None":
        """What the caller is told by whoever serves afterwards; None: nobody knows.

        Raises: FailedPrecondition when the old code went on.
        """
        outcome = self.outcome
        if outcome is None:
            return None
        if outcome["failed"]:
            raise failed_precondition(f"the new program failed, and version {VERSION} goes on: {outcome['failed']}")
        return api.UpgradeResponse(
            from_version=outcome["from_version"],
            to_version=VERSION,
            pause_us=(time.monotonic_ns() - int(outcome["frozen_at_ns"])) // 1000,
            check_us=outcome["check_us"],
            found=outcome["found"],
        )

    def lead(self, request: "UpgradeRequest") -> "Handler":
        """Do what is asked for. Does not return when it succeeds: who comes after us answers.

        Raises: FailedPrecondition, InvalidArgument with the reason; this code goes on then.
        """
        python, paths = request.python or sys.executable, list(request.paths) or module_paths(self._shim.params.bundle)
        if not all(path.startswith("/") and "\0" not in path for path in (python, *paths)):
            raise invalid_argument("python and paths must be absolute paths")
        if self._is_busy:
            raise failed_precondition("another upgrade is under way")
        self._refuse_if_ending()
        self._is_busy = True
        try:
            faults.point("upgrade.begun")
            began_ns = time.monotonic_ns()
            found = yield from self._check(python, paths, (request.patience_ms / 1000) or CHECK_S)
            found["check_us"] = (time.monotonic_ns() - began_ns) // 1000
            faults.point("upgrade.checked")
            if request.dry_run:
                return api.UpgradeResponse(
                    from_version=VERSION,
                    to_version=found["version"],
                    check_us=found["check_us"],
                    found=found["found"],
                )
            carries, lifts = found.pop("carries"), found.pop("lifts")
            patience_s = (request.patience_ms / 1000) or PATIENCE_S
            yield from self._await_quiet(patience_s, cuts_streams=not carries, leaves_lifted=not lifts)
            found["clients"], client_fds = carriedcalls.carry(self._shim) if carries else (None, set())
            self._execute(python, paths, found, client_fds)
        finally:
            self._is_busy = False
            self._thaw()

    def _refuse_if_ending(self) -> None:
        container = self._shim.tasks.container
        is_over = container is not None and container.state == DELETED
        if self._shim.is_finishing or is_over or os.path.lexists(self._shim.parts.bundle.file(DOOMED)):
            raise failed_precondition("its container was deleted: this shim is about to end")

    # --- the dry run

    def _check(self, python: str, paths: "list[str]", limit_s: float) -> "Handler":
        """Have the new program read the state. The value is what it says. Raises: FailedPrecondition."""
        reaper = self._shim.reaper
        fds = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
        try:
            fds.append(handover.write(self.facts()))
            fds.append(fcntl.fcntl(fds[2], fcntl.F_DUPFD_CLOEXEC, LOWEST_FD))
            argv = handover.check_command(python, paths)
            try:
                pid = yield Spawn(argv, stdio=(None, fds[0], fds[1]), more=(fds[3],))
            except OSError as error:
                raise failed_precondition(f"{python} cannot be run: {error.strerror or error}") from None
            try:
                status = yield Exited(pid, deadline_s=limit_s)
            except DeadlinePassed:
                reaper.kill_group(pid)
                raise failed_precondition(f"the new program did not read the state within {limit_s:g} s") from None
            output, words = (os.pread(fd, OUTPUT_MAX_BYTES, 0) for fd in fds[:2])
        finally:
            for fd in fds:
                os.close(fd)
        if status != 0:
            last = words.decode(errors="replace").strip().rpartition("\n")[2] or f"wait status {status}"
            raise failed_precondition(f"the new program cannot go on from here: {last}")
        try:
            found: dict[str, Any] = json.loads(output)
            carries, lifts = found.get("carries") == carriedcalls.VERSION, bool(found.get("lifts"))
            return {"version": str(found["version"]), "found": str(found["found"]), "carries": carries, "lifts": lifts}
        except (ValueError, KeyError, TypeError):
            raise failed_precondition(f"the new program's check says {output[:200]!r}") from None

    # --- the moment

    def _await_quiet(self, patience_s: float, *, cuts_streams: bool, leaves_lifted: bool) -> "Handler":
        """Wait until nothing is under way. For the second half of the time nothing new is begun.

        ``cuts_streams``: the new program, an older one, does not go on with them. ``leaves_lifted``: nor does it read
        what was lifted from a terminal and has no room yet where it is to go (terminal.py).

        Raises: FailedPrecondition naming what does not end.
        """
        began, pause_s = time.monotonic(), LOOK_FIRST_S
        while why := (leaves_lifted and self._what_is_lifted()) or self.what_hinders(
            spares_streams=cuts_streams and time.monotonic() - began < patience_s / 2
        ):
            waited_s = time.monotonic() - began
            if waited_s > patience_s:
                raise failed_precondition(f"busy: {why}; nothing was changed, try again")
            if waited_s > patience_s / 2 and self._shim.tasks.freezing is None:
                self._shim.tasks.freezing = Signal()
            yield Sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_MAX_S)
        self._refuse_if_ending()

    def what_hinders(self, *, spares_streams: bool, is_ours: bool = True) -> str:
        """What is under way, or in no place where the new code would find it; empty when all is quiet.

        ``is_ours``: the upgrade that is led now is not meant.
        ``spares_streams``: a client that streams, and will be cut off, shall have its say and its answers before.
        """
        shim = self._shim
        others = [getattr(task.handler, "__name__", "") for task in shim.loop.under_way]
        if is_ours:
            others.remove("lead")
        if others:
            return f"under way is {', '.join(sorted(set(others)))}"
        if shim.loop.has_soon or shim.rejoin.is_asking:
            return "something has just begun"
        if shim.forwarder is not None and shim.forwarder.is_telling:
            return "containerd has not taken an event"
        if not shim.parts.journal.flush():
            return "the journal cannot be written"
        for process in self.processes():
            why = trouble(process.stdio) if process.stdio is not None else ""
            if why:
                return why
        if spares_streams and any(is_streaming(connection) for connection in shim.server.connections):
            return "a client streams"
        return ""

    def _what_is_lifted(self) -> str:
        for process in self.processes():
            count = staged_bytes(process.stdio) if process.stdio is not None else 0
            if count:
                return f"{count} bytes of {process.name}'s terminal wait for its client to read, and {OLDER} loses them"
        return ""

    def processes(self) -> "list[Process]":
        """Of the container; none without one."""
        container = self._shim.tasks.container
        return container.processes() if container is not None else []

    def _thaw(self) -> None:
        freezing, self._shim.tasks.freezing = self._shim.tasks.freezing, None
        if freezing is not None:
            freezing.fire()

    # --- the step

    def facts(self) -> "dict[str, Any]":
        """What passes on that no file says."""
        shim = self._shim
        parts, container = shim.parts, shim.tasks.container
        streams = [process.stdio for process in self.processes() if process.stdio is not None]
        return {
            "from_version": VERSION,
            "params": {name: getattr(shim.params, name) for name in type(shim.params).__slots__},
            "has_task": container is not None,
            "incarnation": parts.incarnation,
            "started_at_ns": shim.started_at_ns,
            "log_bytes": parts.log_bytes + sum(stdio.log_bytes for stdio in streams),
            "dropped_bytes": parts.dropped_bytes + sum(stdio.dropped_bytes for stdio in streams),
            "oom_at": container.oom_at if container is not None else None,
            "streams": {
                process.name: carry(process.stdio) for process in self.processes() if process.stdio is not None
            },
        }

    def _execute(self, python: str, paths: "list[str]", found: "dict[str, Any]", client_fds: "set[int]") -> None:
        """Order: all is quiet, and nothing runs between that and this. Raises: FailedPrecondition."""
        shim, frozen_at_ns = self._shim, time.monotonic_ns()
        container = shim.tasks.container
        if container is not None:
            is_saved = [save(container), *(save_exec(container, process) for process in container.execs.values())]
            if not all(is_saved):
                raise failed_precondition("the state cannot be written; see the shim's log")
        faults.point("upgrade.saved")
        keeper_fd, held = shim.parts.spares.held()
        if not shim.parts.spares.is_told:
            keeper_fd = -1  # it is looked for anew, and told everything
        fds = {self._listener_fd, self._lock_fd, keeper_fd, *held.values()} - {-1}
        ballast = open_fifos() - fds - shim.wakeup.fds
        facts = {
            **self.facts(), **found, "failed": "", "frozen_at_ns": frozen_at_ns, "listener": self._listener_fd,
            "lock": self._lock_fd, "keeper": keeper_fd, "spares": held, "ballast": sorted(ballast),
        }  # fmt: skip
        fds |= ballast | client_fds
        try:
            fds.add(handover_fd := handover.write(facts))
        except OSError as error:
            raise failed_precondition(f"there is no memory to write the state into: {error.strerror}") from None
        back = handover.command(sys.executable, module_paths(shim.params.bundle), handover_fd)
        argv = handover.command(python, paths, handover_fd, back)
        shim.log.info(f"going on as version {found['version']} in place: {python} with {paths[0]}")
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for fd in fds:
                os.set_inheritable(fd, True)
            faults.point("upgrade.frozen")
            os.execve(argv[0], argv, dict(os.environ))  # noqa: S606 - no shell is wanted
        except OSError as error:
            for fd in fds:
                os.set_inheritable(fd, False)
            os.close(handover_fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            raise failed_precondition(f"{python} cannot be executed: {error.strerror or error}") from None


def is_streaming(connection: "LoopConnection") -> bool:
    """Whether something is on its way between us and a client whose connection ends with this code."""
    if not connection.calls or not carriedcalls.is_carried(connection):
        return False
    if connection.outbox.unsent_bytes or waiting_bytes(connection.fd):
        return True
    return any(call.inbox is not None and len(call.inbox) > 0 for call in connection.calls.values())


def module_paths(bundle: str) -> "list[str]":
    """Where this code finds its modules, ours first, without what every interpreter brings itself."""
    library = os.path.dirname(os.__file__)
    its_own = {"", bundle, ABOVE, library, f"{library}/lib-dynload"}
    return [ABOVE, *dict.fromkeys(path for path in sys.path if path not in its_own and not path.endswith(".zip"))]


def open_fifos() -> "set[int]":
    """Our fds of pipes and FIFOs: what is in one is gone once nobody has it open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                found.add(int(name))
        except OSError:  # the directory's own, closed by now
            pass
    return found


def drop_ballast(loop: "Loop", fds: "list[int]") -> None:
    """Close the pipes that were kept open; where this was the last reader somebody writes to, go on reading."""
    ours = {_inode(fd) for fd in open_fifos() - set(fds)}
    for fd in fds:
        os.set_inheritable(fd, False)
        is_read_end = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if is_read_end and _inode(fd) not in ours:
            ours.add(_inode(fd))
            os.set_blocking(fd, False)
            discard(loop, fd)
        else:
            os.close(fd)


def _inode(fd: int) -> "tuple[int, int]":
    found = os.fstat(fd)
    return found.st_dev, found.st_ino

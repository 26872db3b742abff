"""A shim that is not ours, such as containerd's: it has no journal to follow, so what it tells is gathered.

Its events come to our socket (Forward), but it gives up after some seconds of our absence. So its exits are asked for
besides: one Wait stays open for each process, and its answer is stored when no event has told the same by then.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import trio

from daemon.shims import bundle
from daemon.shims.client import ShimClient
from daemon.shims.foreign_exits import Ledger
from daemon.store.database import Database
from ttrpc.aio_client import raise_only_leaf
from ttrpc.api import events, task, wkt
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from daemon.shims.handle import Handle
    from daemon.store.records import NewEvent
    from ttrpc.api.task import DeleteResponse, StateResponse

log = logging.getLogger(__name__)

EVENT_GRACE_S = 1.0  # how long an answered Wait leaves the telling to the event, which comes in its order
ASK_TIMEOUT_S = 10.0
KEPT_EXECS = 64  # that are over and deleted by nobody: detached ones; older ones are deleted for their client
LOG_READ_BYTES = 64 << 10
LOG_LINE_MAX = 4096


async def follow(
    handle: "Handle",
    client: ShimClient,
    incarnation: str,
    database: Database,
    on_stopped: "Callable[[Handle], None]",
) -> None:
    """Have every exit of the shim's processes stored until its connection is lost.

    Raises: ConnectionLost.
    """
    try:
        async with trio.open_nursery() as nursery:
            ledger = Ledger(handle, incarnation, database, on_stopped)
            handle.foreign = following = Following(handle, client, ledger, nursery)
            try:
                nursery.start_soon(copy_log, handle.row.bundle)
                if handle.row.pid:  # else it is only being created
                    following.watch("")
                for exec_id in _noted_execs(handle.row.bundle):
                    following.watch(exec_id)
                await client.raw.wait_closed()
            finally:
                handle.foreign = None
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_only_leaf(group)
        raise
    raise ConnectionLost("the shim closed it")


class Following:
    """One task of a foreign shim while it is connected. Owns a waiting task per process that has not ended."""

    def __init__(self, handle: "Handle", client: ShimClient, ledger: Ledger, nursery: trio.Nursery) -> None:
        self._handle = handle
        self._client = client
        self._ledger = ledger
        self._nursery = nursery
        self._pids: dict[str, int] = {}  # of execs, as their start was told: the shim forgets them with their end
        self._watched: dict[str, trio.CancelScope] = {}
        self._ended: list[str] = []  # execs that are over and not deleted, oldest first

    # --- waiting for the end

    def watch(self, exec_id: str) -> None:
        """Wait for the end of a process from now on. Once is enough."""
        if exec_id not in self._watched:
            self._watched[exec_id] = trio.CancelScope()
            self._nursery.start_soon(self._watch, exec_id, self._watched[exec_id])

    def started(self, exec_id: str, pid: int) -> None:
        """A process runs under this pid."""
        if exec_id:
            self._pids[exec_id] = pid
        self.watch(exec_id)

    async def _watch(self, exec_id: str, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._wait(exec_id)
            except StatusError as error:
                if error.code == Code.NOT_FOUND and exec_id:
                    self._forget(exec_id)
                elif error.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
                    log.warning("waiting for a process failed", extra={"exec_id": exec_id, "reason": error.message})
            finally:
                if self._watched.get(exec_id) is scope:
                    del self._watched[exec_id]

    async def _wait(self, exec_id: str) -> None:
        waited = await self._client.task("Wait", task.WaitRequest(id=self._handle.id, exec_id=exec_id), None)
        record = self._ledger.record(exec_id, waited, self._pid_of(exec_id))
        with trio.move_on_after(EVENT_GRACE_S):
            await self._handle.wait_until(lambda: self._ledger.is_stored(record))
        await self._ledger.store_at_last(record)
        if exec_id:
            forget_note(self._handle.row.bundle, exec_id)
            self._ended.append(exec_id)
            await self._keep_few()

    def _pid_of(self, exec_id: str) -> int:
        return self._pids.get(exec_id, 0) if exec_id else self._handle.row.pid

    async def _keep_few(self) -> None:
        """Nobody deletes an exec that was started detached: have the shim forget the oldest that are over."""
        while len(self._ended) > KEPT_EXECS:
            request = task.DeleteRequest(id=self._handle.id, exec_id=self._ended[0])
            self._forget(self._ended[0])
            with contextlib.suppress(StatusError):
                await self._client.task("Delete", request, ASK_TIMEOUT_S)

    def _forget(self, exec_id: str) -> None:
        forget_note(self._handle.row.bundle, exec_id)
        self._pids.pop(exec_id, None)
        if exec_id in self._ended:
            self._ended.remove(exec_id)

    # --- what others bring

    async def settle(self, exec_id: str) -> None:
        """Store the exit of a process that is about to be deleted from the shim, if it is over.

        Raises: StatusError of the shim; StoreFull.
        """
        request = task.StateRequest(id=self._handle.id, exec_id=exec_id)
        try:
            state: StateResponse = await self._client.task("State", request, ASK_TIMEOUT_S)
        except StatusError as error:
            if error.code == Code.NOT_FOUND:
                return
            raise
        if state.status == task.STOPPED:
            await self._ledger.store(self._ledger.record(exec_id, state, self._pid_of(exec_id) or state.pid))

    async def deleted(self, exec_id: str, answer: "DeleteResponse") -> None:
        """An exec was deleted: nobody need wait for it any more. Its answer tells its exit if it had one.

        Raises: StoreFull.
        """
        if wkt.nanoseconds(answer.exited_at) is not None:
            await self._ledger.store(self._ledger.record(exec_id, answer, self._pid_of(exec_id) or answer.pid))
        self._forget(exec_id)
        scope = self._watched.pop(exec_id, None)
        if scope is not None:
            scope.cancel()

    async def forwarded(self, event: "NewEvent") -> None:
        """Store what the shim tells, and watch the execs it tells of, whoever asked it for them. Raises: StoreFull."""
        await self._ledger.forwarded(event)
        if event.topic == "/tasks/exec-started":
            told = events.TaskExecStarted.FromString(event.value)
            self.started(told.exec_id, told.pid)


# --- execs, noted in the bundle: their ends are waited for again after our own


@contextlib.contextmanager
def noting_exec(path: str, exec_id: str) -> Iterator[None]:
    """Note an exec before its shim hears of it; one that is refused is none."""
    note = os.path.join(path, bundle.EXECS, exec_id)
    is_new = True
    try:
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:  # one of that id is there; or the bundle has gone
        is_new = False
    try:
        yield
    except StatusError as error:
        if is_new and error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            forget_note(path, exec_id)
        raise


def forget_note(path: str, exec_id: str) -> None:
    """The exec's exit is stored, or there is no such exec."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, bundle.EXECS, exec_id))


def _noted_execs(path: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(path, bundle.EXECS)))
    except OSError:
        return []


# --- the shim's log


async def copy_log(path: str) -> None:
    """The shim's log into ours, line by line, until cancelled. What it logs while we are down is lost to it."""
    fd = bundle.open_log(path)
    if fd is None:
        return
    try:
        rest = b""
        while True:
            await trio.lowlevel.wait_readable(fd)
            with contextlib.suppress(BlockingIOError):
                *lines, rest = (rest + os.read(fd, LOG_READ_BYTES)).split(b"\n")
                for line in lines:
                    log.info("shim: %s", line[:LOG_LINE_MAX].decode("utf-8", "replace"))
                rest = rest[:LOG_LINE_MAX]
    finally:
        trio.lowlevel.notify_closing(fd)
        os.close(fd)

"""What the daemon knows of one task while it runs: its row, its shim's connection and health, and who is at it."""

import contextlib
import enum
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import trio

from daemon.errors import aborted, failed_precondition, not_found, unavailable
from daemon.shims.client import ShimClient
from daemon.store.records import STOPPED, TaskRow
from ttrpc.api import wkt

if TYPE_CHECKING:
    from daemon.shims.foreign import Following
    from ttrpc.api.process import Process
    from ttrpc.api.shim import InfoResponse


class Health(enum.Enum):
    """Of a shim; the container is another matter. Values are shimd.v1's."""

    CONNECTING = 1
    SERVING = 2
    UNREACHABLE = 3
    GONE = 4


class Handle:
    """One task. Owns the operation lock and the supervisor's cancel scope; the row is the last committed one."""

    def __init__(self, row: TaskRow) -> None:
        self.row = row
        self.health = Health.CONNECTING
        self.reason = "not asked yet"
        self.client: ShimClient | None = None
        self.info: InfoResponse | None = None
        self.foreign: Following | None = None  # while a shim that is not ours is connected
        self.last_known: Process | None = None
        self.stored_seq = 0  # of the shim's journal
        self.has_terms = False  # its shim restarts it by policy, or was told not to
        self.next_restart_at_ns: int | None = None
        self.failed_at_ns = 0  # when the policy last tried in vain to restart it; 0: not since it ran
        self.trouble = ""  # why its shim is taken for wedged
        self.stack = ""  # of that shim
        self.raises = 0  # of shims, in vain, one after the other
        self.is_settled = False  # recovery has decided about it, or it was born under us
        self.is_deleted = False
        self.is_being_removed = False  # it has ended, and its container goes with it
        self.is_after_reboot = False  # its task ended with the boot before this one
        self.supervisor = trio.CancelScope()
        self.restarter = trio.CancelScope()
        self.operation = ""
        self._lock = trio.Lock()
        self._changed = trio.Event()

    @property
    def ns(self) -> str:
        return self.row.ns

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def name(self) -> str:
        return f"task {self.row.id}"

    # --- changes and waiting for them

    def tell(self) -> None:
        """Wake everyone who waits for a change."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_until(self, look: Callable[[], bool]) -> None:
        """Return once ``look`` is true; it is asked now and after each change."""
        while not look():
            await self._changed.wait()

    async def wait_changed(self, timeout_s: float) -> None:
        """Wait for the next change, at most so long."""
        with trio.move_on_after(timeout_s):
            await self._changed.wait()

    def now_serving(self, client: ShimClient, info: "InfoResponse | None") -> None:
        self.client, self.info = client, info
        self.has_terms = info is not None and info.HasField("restart")
        if info is not None and self.has_terms:
            is_planned = info.restart.HasField("next_at")
            self.next_restart_at_ns = wkt.nanoseconds(info.restart.next_at) if is_planned else None
        self.raises = 0
        self.health, self.reason = Health.SERVING, ""
        self.is_settled = True
        self.tell()

    def now(self, health: Health, reason: str, *, settled: bool = True) -> None:
        """The shim cannot be called; why."""
        self.client = None
        self.health, self.reason = health, reason
        self.is_settled = self.is_settled or settled
        self.tell()

    def committed(self, row: TaskRow | None) -> None:
        """Take over the row as it was just stored; None: it is gone."""
        if row is None:
            self.is_deleted = True
        else:
            self.row = row
        self.tell()

    # --- for callers

    def require_present(self) -> None:
        """Raises: NotFound once the task is deleted."""
        if self.is_deleted:
            raise not_found(f"{self.name} not found")

    async def wait_settled(self, timeout_s: float) -> None:
        """Wait for recovery to have decided about this task.

        Raises: Unavailable when that takes too long.
        """
        with trio.move_on_after(timeout_s) as scope:
            await self.wait_until(lambda: self.is_settled or self.is_deleted)
        if scope.cancelled_caught:
            raise unavailable(f"{self.name}: still being created, or recovered after a restart of shimd; try again")

    async def connected(self, timeout_s: float) -> ShimClient:
        """The shim to call. A connection being made is waited for, a shim known not to answer is not.

        Raises: NotFound when the task is deleted meanwhile; FailedPrecondition when it is over and its shim gone;
        Unavailable with the reason.
        """
        with trio.move_on_after(timeout_s):
            await self.wait_until(lambda: self.is_deleted or self.health is not Health.CONNECTING)
        self.require_present()
        if self.client is None and self.health is Health.GONE and self.row.state == STOPPED:
            raise failed_precondition(f"{self.name} is stopped: delete it and create a new one ({self.reason})")
        if self.client is None:
            raise unavailable(f"{self.name}: its shim cannot be reached: {self.reason}")
        return self.client

    @contextlib.asynccontextmanager
    async def exclusively(self, operation: str, timeout_s: float) -> AsyncIterator[None]:
        """Hold the task for one multi-step operation; every call made within has a deadline.

        One that is free is taken without a checkpoint: whoever has just made the handle gets it, cancelled or not.
        Raises: Aborted when another operation holds it for too long.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(timeout_s) as scope:
                await self._lock.acquire()
            if scope.cancelled_caught:
                raise aborted(
                    f"{self.name}: another operation ({self.operation}) is still under way; try again"
                ) from None
        self.operation = operation
        try:
            yield
        finally:
            self.operation = ""
            self._lock.release()

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

"""Tasks as a whole: created, started, deleted, restarted. The manager asks and keeps the record; the shim decides."""

import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from daemon import faults, restart
from daemon import log as logs
from daemon.config import Config
from daemon.errors import already_exists, failed_precondition, not_found, unavailable
from daemon.shims import birth, ending, forcing, ingest, launch, removal, terms
from daemon.shims.answers import delete_response
from daemon.shims.client import earlier
from daemon.shims.handle import Handle, Health
from daemon.shims.registry import Registry
from daemon.shims.restarter import Restarter
from daemon.shims.undo import UndoStack
from daemon.store import containers, tasks
from daemon.store import events as journal
from daemon.store.database import Database
from daemon.store.records import CREATED, CREATING, RESTARTING, RUNNING, STOPPED, TaskRow
from ttrpc.api import task
from ttrpc.api import tasks as api
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from ttrpc.api.containers import Container
    from ttrpc.api.task import DeleteResponse
    from ttrpc.api.tasks import CreateTaskRequest

log = logging.getLogger(__name__)

T = TypeVar("T")
UNDO_TIMEOUT_S = 30.0


class Manager(Registry):
    """What is done to a task as a whole, in steps that can be undone or finished by whoever comes next."""

    def __init__(
        self, config: Config, database: Database, nursery: trio.Nursery, boot_id: str, publish_binary: str
    ) -> None:
        super().__init__(config, database, nursery, boot_id, publish_binary)
        self.restarter = Restarter(database, config.restart, nursery, self.restart)
        self.supervisors.on_stopped = self._ended

    # --- creating

    async def create(
        self, ns: str, container: "Container", request: "CreateTaskRequest", deadline: float | None
    ) -> Handle:
        """Create a container's task: row, bundle, shim, Task.Create. All of it, or nothing is left.

        Raises: AlreadyExists for a container with a task; what `birth.bear` raises; StoreFull.
        """
        key = (ns, container.id)
        there = self.handles.get(key)
        if there is not None:
            await there.wait_settled(earlier(self.config.timeouts.busy_s, deadline))
        if key in self.handles:
            raise already_exists(f"task {container.id}: already exists")
        stray = self.present_strays().get(key)
        if stray is not None:
            raise failed_precondition(
                f"task {container.id}: its bundle is in use: {stray}; what to do with it: shimctl doctor"
            )
        handle = Handle(self._new_row(ns, container, request))
        self.handles[key] = handle
        async with handle.exclusively("create", self.config.timeouts.busy_s):
            faults.point("create.begin")
            undo = UndoStack()
            try:
                undo.push("the record", lambda: self._delete_row(handle))
                await self.database.write(lambda connection: self._insert_row(connection, handle.row))
                faults.point("create.row_stored")
                changes = await birth.bear(handle, container, request, self.supervisors, undo, deadline)
                await terms.give(handle, self.database, self.config.restart, self.config.timeouts.call_s)
                await self._commit_birth(handle, CREATED, changes)
                faults.point("create.stored")
            except BaseException:
                await self._undo(handle, undo)
                raise
        if handle.row.state == STOPPED:
            self._ended(handle)
        return handle

    @staticmethod
    def _insert_row(connection: sqlite3.Connection, row: TaskRow) -> None:
        if containers.get(connection, row.ns, row.id) is None:  # deleted since it was looked up
            raise not_found(f"container {row.id}: not found")
        tasks.insert(connection, row)

    def _new_row(self, ns: str, container: "Container", request: "CreateTaskRequest") -> TaskRow:
        runtime = container.runtime.name
        return TaskRow(
            ns=ns,
            id=container.id,
            state=CREATING,
            runtime=runtime,
            shim_path=launch.resolve(runtime, request.runtime_path, self.config.runtimes),
            bundle=self.config.bundle(ns, container.id),
            boot_id=self.boot_id,
            request=request.SerializeToString(),
            created_at_ns=time.time_ns(),
        )

    async def _commit_birth(self, handle: Handle, state: str, changes: dict[str, Any]) -> None:
        """Put the newborn on its row; a task that is over already is put down as stopped."""

        def work(connection: sqlite3.Connection) -> TaskRow | None:
            incarnation = changes.get("incarnation", handle.row.incarnation)
            if incarnation != handle.row.incarnation:
                tasks.forget_cursor(connection, handle.row.incarnation)
            ended = journal.last_exit(connection, handle.ns, handle.id, incarnation, "") is not None
            return tasks.update(
                connection, handle.ns, handle.id, **changes, state=STOPPED if ended else state, boot_id=self.boot_id
            )

        handle.committed(await self.database.write(work))

    async def _undo(self, handle: Handle, undo: UndoStack) -> None:
        """Take everything back; what could not be is left to recovery, which tries again until it can."""
        if not await undo.unwind(UNDO_TIMEOUT_S):
            log.error("a failed create could not be undone; recovery goes on with it", extra={"id": handle.id})
            self.resume(handle)

    def resume(self, handle: Handle) -> None:
        """Have the task looked at anew."""
        handle.supervisor = trio.CancelScope()
        handle.now(Health.CONNECTING, "an operation on it ended half-way", settled=False)
        self.nursery.start_soon(self.supervisors.run_found, handle)

    async def _delete_row(self, handle: Handle) -> None:
        await removal.forget(self.database, handle.row, self.config.root_dir)
        handle.committed(None)
        handle.supervisor.cancel()
        self.forget(handle)

    # --- starting

    async def start(self, handle: Handle, exec_id: str, deadline: float | None) -> int:
        """Start init or an exec; a container the user starts is no longer one the user stopped."""
        point = "exec_start" if exec_id else "start"
        faults.point(f"{point}.before_call")
        timeouts = self.config.timeouts
        pid = await birth.start_process(handle, exec_id, earlier(timeouts.start_s, deadline), timeouts.connect_s)
        faults.point(f"{point}.called")
        if not exec_id:
            await self._clear_stopped_label(handle)
        return pid

    async def _clear_stopped_label(self, handle: Handle) -> None:
        container = self.database.read(lambda c: containers.get(c, handle.ns, handle.id))
        if container is None or restart.STOPPED_LABEL not in container.labels:
            return

        def work(connection: sqlite3.Connection) -> None:
            now = containers.get(connection, handle.ns, handle.id)
            if now is not None and now.labels.pop(restart.STOPPED_LABEL, None) is not None:
                containers.replace(connection, handle.ns, now)

        await self.database.write(work)
        # What was started may have ended already, while its shim still took it for stopped by the user.
        await self.policy_changed(handle.ns, handle.id, decide_now=True)

    async def policy_changed(self, ns: str, container_id: str, *, decide_now: bool = False) -> None:
        """A container's labels or spec are others now: its shim is told, or will be once it answers again.

        Returns after the first attempt. Goes on when the caller is gone: what is on record has changed already.
        """
        handle = self.handles.get((ns, container_id))
        if handle is None or handle.is_deleted:
            return
        tried = trio.Event()
        self.nursery.start_soon(terms.tell, handle, self.database, self.config, decide_now, tried)
        await tried.wait()

    # --- deleting

    async def delete(self, handle: Handle) -> "DeleteResponse":
        """Delete a task that is over, or was never started: in its shim, then shim, bundle and row.

        Goes on when the caller is gone: from its mark on, a delete is finished by whoever comes next.
        Raises: what the shim says of a running one; FailedPrecondition, Unavailable.
        """
        return await self._detached(lambda: self.delete_here(handle))

    async def delete_here(self, handle: Handle) -> "DeleteResponse":
        """The same, ending half-way if its caller does."""
        timeouts = self.config.timeouts
        async with handle.exclusively("delete", timeouts.busy_s):
            handle.require_present()
            faults.point("delete.begin")
            answer = await self._delete_in_shim(handle)
            faults.point("delete.drained")
            if answer is None:
                answer = self._answer_from_store(handle)
            told = answer
            handle.committed(await self.database.write(lambda c: removal.mark(c, handle.row, told)))
            faults.point("delete.marked")
            try:
                await self._clear(handle)
                faults.point("delete.bundle_removed")
                await self._delete_row(handle)
                faults.point("delete.row_removed")
            except BaseException:
                if not handle.is_deleted:
                    handle.supervisor.cancel()
                    self.resume(handle)
                raise
            return answer

    async def force_delete(self, handle: Handle) -> None:
        """Delete a task in whatever state, also when its shim is of no help; see `forcing`. Raises: Unavailable."""
        await self._detached(lambda: forcing.delete(self, handle))

    def _ended(self, handle: Handle) -> None:
        """A task is over and its exit stored: what its client wanted for this case."""
        if self.database.read(lambda connection: removal.is_due(connection, handle.row)):
            self.nursery.start_soon(self._remove, handle)
        else:
            self.restarter.consider(handle)

    async def _remove(self, handle: Handle) -> None:
        """Delete a task, and so its container, that is to go with its end; again and again until it is gone."""
        pause_s = self.config.recovery.retry_min_s
        with logs.begin(ns=handle.ns, id=handle.id):
            while not handle.is_deleted and not handle.is_being_removed:
                handle.is_being_removed = True
                try:
                    await self.delete(handle)
                    log.info("removed, as it has ended")
                except StatusError as error:
                    log.warning("not removed yet", extra={"reason": error.message})
                except Exception:  # a bug met in one task's affairs is that task's trouble
                    log.exception("not removed yet")
                finally:
                    handle.is_being_removed = False
                if not handle.is_deleted:
                    await trio.sleep(pause_s)
                    pause_s = min(pause_s * 2, self.config.recovery.retry_max_s)

    async def _delete_in_shim(self, handle: Handle) -> "DeleteResponse | None":
        """Have the shim delete the container and tell all it has to tell; None when it did that before, or is gone."""
        if handle.health is Health.GONE:
            if handle.row.state != STOPPED:
                raise failed_precondition(f"{handle.name}: {handle.reason}; it can be deleted once it is over")
            return None
        timeouts = self.config.timeouts
        client = await handle.connected(timeouts.connect_s)
        answer: DeleteResponse | None = None
        if handle.foreign is not None:
            await handle.foreign.settle("")
        try:
            answer = await client.task("Delete", task.DeleteRequest(id=handle.id), timeouts.delete_s)
        except StatusError as error:
            if error.code != Code.NOT_FOUND:
                raise
        faults.point("delete.task_deleted")
        if not client.is_foreign:
            await ingest.drain(handle, client, timeouts.delete_s)
        return answer

    async def _clear(self, handle: Handle) -> None:
        """Shim, leftovers, bundle. An empty shim that ends by itself leaves nothing for its `delete` to do."""
        program = self.program_of(handle)
        is_down = handle.client is not None and await ending.shut_down(handle.row, handle.client, program.spared)
        handle.supervisor.cancel()
        faults.point("delete.shim_down")
        if not is_down:
            await ending.end_all(handle.row, program, self.config.timeouts.shim_delete_s)
        await ending.remove_files(handle.row)

    def _answer_from_store(self, handle: Handle) -> "DeleteResponse":
        return delete_response(handle.row, self.stored_exit(handle))

    async def _detached(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation that must not end half-way because its caller went away."""
        outcome: list[T] = []
        failure: list[BaseException] = []
        done = trio.Event()

        async def run() -> None:
            try:
                outcome.append(await operation())
            except Exception as error:  # noqa: BLE001 - handed to the caller
                failure.append(error)
            finally:
                done.set()

        self.nursery.start_soon(run)
        await done.wait()
        if failure:
            raise failure[0]
        if not outcome:
            raise unavailable("shimd is stopping; the operation goes on when it is back")
        return outcome[0]

    # --- restarting

    async def restart(self, handle: Handle, streak: int) -> None:
        """Replace a task that is over by a new one of the same request, and start it. For the restart policy.

        Goes on when the caller is gone: a new task that is over already has another restart planned meanwhile.
        Raises: what `birth.bear` and Task.Start raise; the task is stopped as before then.
        """
        await self._detached(lambda: self._restart(handle, streak))

    async def _restart(self, handle: Handle, streak: int) -> None:
        timeouts = self.config.timeouts
        async with handle.exclusively("restart", timeouts.busy_s):
            if handle.is_deleted or handle.row.state != STOPPED:
                return
            container = await self._mark_restarting(handle, streak)
            if container is None:
                return
            faults.point("restart.marked")
            undo = UndoStack()
            undo.push("the restart", lambda: self._back_to_stopped(handle))
            try:
                if handle.client is not None:
                    await self._delete_in_shim(handle)
                await self._clear(handle)
                faults.point("restart.cleared")
                handle.stored_seq, handle.info, handle.client, handle.last_known = 0, None, None, None
                handle.now(Health.CONNECTING, "it is being restarted")
                request = api.CreateTaskRequest.FromString(handle.row.request)
                changes = await birth.bear(handle, container, request, self.supervisors, undo, None)
                faults.point("restart.created")
                await birth.start_process(handle, "", timeouts.start_s, timeouts.connect_s)
                faults.point("restart.started")
                await self._commit_birth(handle, RUNNING, {**changes, "started_at_ns": time.time_ns()})
                handle.failed_at_ns = 0
            except BaseException:
                await self._undo(handle, undo)
                raise
        log.info("restarted by policy", extra={"restarts": handle.row.restarts, "pid": handle.row.pid})
        # Not before the row knows the new run: from here on the shim may follow it with the next.
        await self.policy_changed(handle.ns, handle.id, decide_now=True)
        if handle.row.state == STOPPED:
            self._ended(handle)

    async def _mark_restarting(self, handle: Handle, streak: int) -> "Container | None":
        """Count the restart on the row and in containerd's label; None when the container's record is gone."""

        def work(connection: sqlite3.Connection) -> "tuple[TaskRow | None, Container | None]":
            container = containers.get(connection, handle.ns, handle.id)
            row = tasks.get(connection, handle.ns, handle.id)
            if container is None or row is None:
                return row, None
            restarts = row.restarts + 1
            container.labels[restart.COUNT_LABEL] = str(restarts)
            container.labels.pop(restart.STOPPED_LABEL, None)
            containers.replace(connection, handle.ns, container)
            changes = {"state": RESTARTING, "restarts": restarts, "streak": streak, "pid": 0, "pid_start_ticks": 0}
            return tasks.update(connection, handle.ns, handle.id, **changes), container

        row, container = await self.database.write(work)
        handle.committed(row)
        return container

    async def _back_to_stopped(self, handle: Handle) -> None:
        """After a restart that failed: as before, and without a shim."""
        changes = {"state": STOPPED, "address": "", "shim_pid": 0, "shim_start_ticks": 0}
        handle.committed(
            await self.database.write(lambda connection: tasks.update(connection, handle.ns, handle.id, **changes))
        )
        handle.supervisor.cancel()
        handle.now(Health.GONE, "its restart failed; the policy tries again")

"""Waiting for exits. Answers come from the store only: one that was given is never forgotten, whatever dies then."""

from typing import TYPE_CHECKING

from daemon.errors import not_found
from daemon.services import fleet
from daemon.shims import answers
from daemon.shims.handle import Handle, Health
from daemon.shims.manager import Manager
from daemon.store.records import StoredExit
from ttrpc.api import process, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from ttrpc.api.process import Process
    from ttrpc.api.shim import ExitRecord


async def init_exit(manager: Manager, handle: Handle) -> "ExitRecord":
    """The exit of this task's init; a task its policy restarts meanwhile is another one. Survives the shim.

    Raises: NotFound when the task goes without one.
    """
    incarnation = handle.row.incarnation
    await handle.wait_until(
        lambda: (
            manager.exit_of(handle, incarnation) is not None
            or handle.is_deleted
            or handle.row.incarnation != incarnation
        )
    )
    record = answers.record_of(manager.exit_of(handle, incarnation))
    if record is None:
        raise not_found(f"task {handle.id} is gone and left no exit status")
    return record


async def exec_exit(manager: Manager, handle: Handle, exec_id: str, timeout_s: float) -> "ExitRecord":
    """The exit of an exec, also of one not started yet. An id may have been used before: only the shim knows which
    exit is the present one's.

    Raises: NotFound for an exec that is not there, or whose shim is gone without having recorded its end.
    """
    incarnation = handle.row.incarnation

    def stored() -> StoredExit | None:
        return manager.exit_of(handle, incarnation, exec_id)

    def is_lost() -> bool:
        return handle.is_deleted or handle.health is Health.GONE

    while True:
        await handle.wait_until(lambda: is_lost() or handle.health is Health.SERVING)
        before = stored()
        if is_lost():
            break
        try:
            present = await fleet.ask_state(handle, exec_id, timeout_s)
        except StatusError as error:
            if error.code == Code.NOT_FOUND:
                break
            await handle.wait_changed(timeout_s)  # slow or lost: its supervisor finds out
            continue
        if handle.foreign is not None:  # whoever asked its shim for it
            handle.foreign.watch(exec_id)
        is_its = _of_present(present, before)
        await handle.wait_until(lambda is_its=is_its: is_its(stored()) or is_lost())  # type: ignore[misc]
        break
    record = answers.record_of(stored())
    if record is None:
        raise not_found(f"process {exec_id} of task {handle.id} does not exist, or is gone and left no exit status")
    return record


def _of_present(present: "Process", before: StoredExit | None) -> "Callable[[StoredExit | None], bool]":
    """Tells the exit of the exec as the shim knows it now from those of earlier execs of its id."""
    if present.status == process.STOPPED:
        exited_at_ns = wkt.nanoseconds(present.exited_at)

        def is_same(found: StoredExit | None) -> bool:
            record = answers.record_of(found)
            return record is not None and wkt.nanoseconds(record.exited_at) == exited_at_ns

        return is_same
    newest = before.seq if before is not None else 0
    return lambda found: found is not None and found.seq > newest

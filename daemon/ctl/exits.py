"""How a process ended: found, waited for, and turned into an exit code. A status nobody knows stays unknown."""

from daemon.ctl.client import SHIMD, TASKS, say
from daemon.ctl.errors import EXIT_UNKNOWN, CtlError
from daemon.ctl.resume import find_task
from ttrpc.api import process, shim, shimd, tasks
from ttrpc.errors import StatusError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.ctl.client import Daemon

SIGNAL_BASE = 128  # what shells add to the number of the signal that ended a process


def exit_code(record: "shim.ExitRecord") -> int | None:
    """The shell's exit code of an exit record; None when the status is unknown."""
    if record.HasField("code"):
        return int(record.code)
    if record.HasField("signal"):
        return SIGNAL_BASE + int(record.signal)
    return None


def source_name(record: "shim.ExitRecord") -> str:
    """How the status became known, as one word."""
    return str(shim.ExitSource.Name(record.source)).removeprefix("EXIT_SOURCE_").lower()


def find_exits(daemon: "Daemon", container_id: str, exec_id: str | None = "", *, limit: int) -> "list[shim.ExitRecord]":
    """The newest stored exit records of a container, oldest first; ``exec_id`` empty: of the init process only, None:
    of every process.
    """
    request = shimd.ExitsRequest(container_id=container_id, limit=limit)
    if exec_id is not None:
        request.exec_id = exec_id
    return list(daemon.call(SHIMD, "Exits", request).exits)


def last_exits(daemon: "Daemon") -> "dict[str, shim.ExitRecord]":
    """By container, how each one's init ended last, as far as it has. All that ever ran would be too much."""
    request = shimd.ExitsRequest(exec_id="", current=True)
    # Oldest first, so the newest stays also when an older daemon, which does not know `current`, tells all of them.
    return {each.container_id: each for each in daemon.call(SHIMD, "Exits", request).exits}


def last_exit(daemon: "Daemon", container_id: str, exec_id: str = "") -> "shim.ExitRecord | None":
    """The newest stored exit of one process; None when there is none, or the daemon keeps none."""
    try:
        found = find_exits(daemon, container_id, exec_id, limit=1)
    except StatusError as error:
        if error.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
            return None
        raise
    return found[-1] if found else None


def wait_for(daemon: "Daemon", container_id: str, exec_id: str = "") -> int | None:
    """Wait for a process to end; its exit code, or None when that is unknown.

    A task deleted meanwhile, or before, is answered from the stored exit records.
    Blocks: until the end, across restarts of the daemon. Raises: CtlError when there is nothing to wait for.
    """
    try:
        reply = daemon.call(
            TASKS, "Wait", tasks.WaitRequest(container_id=container_id, exec_id=exec_id), timeout_s=None
        )
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise
        record = last_exit(daemon, container_id, exec_id)
        if record is None:
            raise CtlError(
                f"nothing to wait for: {exec_id or container_id} has no task and never ended one",
                hint="shimctl ps -a lists containers; start one: shimctl start ID",
            ) from None
        return exit_code(record)
    record = last_exit(daemon, container_id, exec_id)
    if record is not None and record.source == shim.EXIT_SOURCE_UNKNOWN and exit_code(record) is None:
        return None
    return int(reply.exit_status)


def answer(code: int | None, name: str) -> int:
    """The exit code to end with; says so when the status is unknown."""
    if code is None:
        say(f"{name} has ended, but how is not known (its shim and its status were lost): exit code {EXIT_UNKNOWN}")
        return EXIT_UNKNOWN
    return code


def is_over(daemon: "Daemon", container_id: str) -> bool:
    """Whether the task has stopped or is not there."""
    found = find_task(daemon, container_id)
    return found is None or found.status == process.STOPPED

"""What must not happen twice, done across a daemon's death: after a lost reply, look before asking again.

Each function takes the daemon and answers as if the daemon had never gone. `_settle` is the pattern; the rest say how
to see whether a lost call took effect.
"""

from daemon.ctl import labels
from daemon.ctl.client import CONTAINERS, MAX_LOSSES, TASKS
from daemon.ctl.errors import CtlError, DaemonGone
from ttrpc.api import containers, process, tasks, wkt
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from daemon.ctl.client import Daemon

    Answer = TypeVar("Answer")

# What is said of a task, by number of containerd.v1.types.Status, which is containerd.task.v2.Status too.
STATUS_WORDS = {1: "created", 2: "running", 3: "stopped", 4: "paused", 5: "pausing"}
# A second one of these does what the first did; of any other it must be known whether the first arrived.
REPEATABLE_SIGNALS = frozenset({9, 15, 18, 19})  # KILL, TERM, CONT, STOP


def _settle(attempt: "Callable[[], Answer]", look: "Callable[[], Answer | None]") -> "Answer":
    """Ask; after a lost reply look whether it took effect, and ask again only if not.

    An error after a loss is looked at too: the first request may have been under way while we asked the second time.
    Raises: what `attempt` raises; DaemonGone.
    """
    was_lost = False
    for _ in range(MAX_LOSSES):
        try:
            return attempt()
        except ConnectionLost:
            was_lost = True
            found = look()
        except StatusError:
            found = look() if was_lost else None
            if found is None:
                raise
        if found is not None:
            return found
    raise DaemonGone("the daemon died over this request again and again", hint="its log says why: journalctl -u shimd")


def find_task(daemon: "Daemon", container_id: str, exec_id: str = "") -> "process.Process | None":
    """The task, or one of its execs, as the daemon sees it now; None when there is none."""
    try:
        reply = daemon.call(TASKS, "Get", tasks.GetRequest(container_id=container_id, exec_id=exec_id))
    except StatusError as error:
        if error.code == Code.NOT_FOUND:
            return None
        raise
    found: process.Process = reply.process
    return found


def find_container(daemon: "Daemon", container_id: str) -> "containers.Container | None":
    """The container record; None when there is none."""
    try:
        reply = daemon.call(CONTAINERS, "Get", containers.GetContainerRequest(id=container_id))
    except StatusError as error:
        if error.code == Code.NOT_FOUND:
            return None
        raise
    found: containers.Container = reply.container
    return found


def require_container(daemon: "Daemon", container_id: str) -> "containers.Container":
    """The container record.

    Raises: CtlError naming the namespace looked in.
    """
    found = find_container(daemon, container_id)
    if found is None:
        raise CtlError(
            f"no container {container_id!r} in namespace {daemon.namespace!r}",
            hint="shimctl ps -a lists them; another namespace: -n NAME",
        )
    return found


def create_container(daemon: "Daemon", container: "containers.Container") -> "containers.Container":
    """Make the record. One of the same name counts as ours only when it carries our request label."""

    def attempt() -> "containers.Container":
        reply = daemon.attempt(CONTAINERS, "Create", containers.CreateContainerRequest(container=container))
        made: containers.Container = reply.container
        return made

    def look() -> "containers.Container | None":
        found = find_container(daemon, container.id)
        if found is not None and found.labels.get(labels.REQUEST) == container.labels[labels.REQUEST]:
            return found
        return None

    return _settle(attempt, look)


def create_task(daemon: "Daemon", request: "tasks.CreateTaskRequest") -> int:
    """Create the task of a container that is ours; returns the pid of its init process.

    A create that recovery discarded left nothing, and is made again.
    """

    def attempt() -> int:
        return int(daemon.attempt(TASKS, "Create", request).pid)

    def look() -> int | None:
        found = find_task(daemon, request.container_id)
        if found is not None and found.status in (process.CREATED, process.RUNNING, process.PAUSED):
            return int(found.pid)
        return None

    return _settle(attempt, look)


def start(daemon: "Daemon", container_id: str, exec_id: str = "") -> int:
    """Start the created task or exec; returns its pid. One that has ended since did start."""

    def attempt() -> int:
        return int(daemon.attempt(TASKS, "Start", tasks.StartRequest(container_id=container_id, exec_id=exec_id)).pid)

    def look() -> int | None:
        found = find_task(daemon, container_id, exec_id)
        if found is None:
            raise CtlError(
                f"{exec_id or container_id} vanished while the daemon was away", hint="shimctl events --since 0"
            )
        return int(found.pid) if found.status != process.CREATED else None

    return _settle(attempt, look)


def add_exec(daemon: "Daemon", request: "tasks.ExecProcessRequest") -> None:
    """Register an exec whose id only we can have chosen: if it is there, it is ours."""

    def attempt() -> bool:
        daemon.attempt(TASKS, "Exec", request)
        return True

    def look() -> bool | None:
        return True if find_task(daemon, request.container_id, request.exec_id) is not None else None

    _settle(attempt, look)


def kill(daemon: "Daemon", container_id: str, signal: int, *, exec_id: str = "", everyone: bool = False) -> None:
    """Send a signal once.

    Raises: CtlError when it cannot be known whether it arrived and a second one might do harm.
    """
    request = tasks.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal, all=everyone)
    is_second = False

    def attempt() -> bool:
        nonlocal is_second
        was_sent, is_second = is_second, True
        try:
            daemon.attempt(TASKS, "Kill", request)
        except StatusError as error:
            # Of the first one: its end may not be on record yet, so looking would find it running.
            if not was_sent or error.code != Code.NOT_FOUND:
                raise
        return True

    def look() -> bool | None:
        found = find_task(daemon, container_id, exec_id)
        if found is None or found.status == process.STOPPED:
            return True
        if signal in REPEATABLE_SIGNALS:
            return None
        raise CtlError(
            f"the daemon died while it sent signal {signal} to {exec_id or container_id}: it may have arrived or not",
            hint="look at the container, then send it again if need be",
        )

    _settle(attempt, look)


def want(daemon: "Daemon", record: "containers.Container", *, stopped: bool) -> None:
    """Tell the restart policy whether the container is meant to run. Repeating it changes nothing."""
    changed = {labels.RESTART_STOPPED: "true" if stopped else "false"}
    if not stopped:
        changed[labels.RESTART_STATUS] = "running"
    mask = wkt.FieldMask(paths=[f"labels.{name}" for name in changed])
    update = containers.Container(id=record.id, labels=changed)
    daemon.call(CONTAINERS, "Update", containers.UpdateContainerRequest(container=update, update_mask=mask))


def delete_task(daemon: "Daemon", container_id: str) -> None:
    """Delete the stopped task; one that is not there is deleted."""
    _delete(lambda: daemon.attempt(TASKS, "Delete", tasks.DeleteTaskRequest(container_id=container_id)))


def delete_exec(daemon: "Daemon", container_id: str, exec_id: str) -> None:
    """Forget an ended exec; one that is not there is forgotten."""
    request = tasks.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
    _delete(lambda: daemon.attempt(TASKS, "DeleteProcess", request))


def delete_container(daemon: "Daemon", container_id: str) -> None:
    """Delete the record; one that is not there is deleted."""
    _delete(lambda: daemon.attempt(CONTAINERS, "Delete", containers.DeleteContainerRequest(id=container_id)))


def _delete(attempt: "Callable[[], object]") -> None:
    """Deleting twice is harmless: the second finds nothing, which is what was wanted."""
    for _ in range(MAX_LOSSES):
        try:
            attempt()
        except ConnectionLost:
            continue
        except StatusError as error:
            if error.code != Code.NOT_FOUND:
                raise
        return
    raise DaemonGone("the daemon died over a deletion again and again", hint="its log says why: journalctl -u shimd")


def switch(daemon: "Daemon", container_id: str, method: str, wanted: int) -> None:
    """Pause or resume: after a loss, being in the wanted state means it took effect."""

    def attempt() -> bool:
        if method == "Pause":
            daemon.attempt(TASKS, "Pause", tasks.PauseTaskRequest(container_id=container_id))
        else:
            daemon.attempt(TASKS, "Resume", tasks.ResumeTaskRequest(container_id=container_id))
        return True

    def look() -> bool | None:
        found = find_task(daemon, container_id)
        return True if found is not None and found.status == wanted else None

    _settle(attempt, look)

"""What a shim finds of one before it in its bundle, and whether it is to take that one's container over."""

import json
import os
import signal

from shim.bundle import Bundle, read_file
from shim.core import kernel
from shim.core.steps import DeadlinePassed, Readable
from shim.task.lifecycle import DELETED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

    from shim.core.steps import Handler
    from shim.params import Params
    from shim.serving.parts import Parts

# Whoever is going to remove a bundle puts this there first: then no shim is raised in it any more.
DOOMED = "doomed"
# The exit code of a successor which the host hinders, not the state it found (EX_TEMPFAIL of sysexits.h).
TRY_AGAIN = 75
# A runtime call the dead shim had begun goes on without it, and is waited for; most take 50 ms. Then it is killed.
RUNTIME_S, KILLED_S = 10.0, 5.0


def find_task(params: "Params", boot_id: str, *, is_raised: bool) -> "dict[str, Any] | None":
    """The state of the task this shim is to take over; None when there is none, or the bundle is to be removed.

    A deleted one is taken over only by a shim the keeper raises: there may be events nobody was told of. Whoever calls
    `start` then wants a new task, also where it is not understood what there was.
    Raises: OSError when it cannot be read now, which says nothing about the task; ValueError of one that is raised.
    """
    bundle = Bundle(params.bundle)
    if os.path.lexists(bundle.file(DOOMED)):
        return None
    try:
        state = bundle.find_state()
    except ValueError:
        if is_raised:
            raise
        return None
    if state is None:
        return None
    identity = {"boot_id": boot_id, "namespace": params.namespace, "id": params.id}
    if any(state.get(name) != value for name, value in identity.items()):
        return None
    return state if is_raised or state.get("state") != DELETED else None


def exit_code(error: BaseException) -> int:
    """Of a shim that cannot take over. Pure."""
    return TRY_AGAIN if isinstance(error, (OSError, MemoryError)) else 1


def is_locked(path: str, lock_fd: int) -> bool:
    """Whether the bundle at a path is the very directory this lock holds, not another that took its name meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock_fd), os.stat(path))
    except OSError:
        return False


def read_exec_states(bundle: Bundle, report: "Callable[[str], None]") -> "Iterator[dict[str, Any]]":
    """What is on disk of each exec; one that cannot be read is reported, for the container is worth more."""
    for name in sorted(os.listdir(bundle.execs_dir)):
        if name.endswith(".state.json"):
            try:
                snapshot = json.loads(read_file(bundle.file("execs", name)))
                if not isinstance(snapshot, dict):
                    raise ValueError("not a JSON object")
            except (OSError, ValueError) as error:
                report(f"exec {name.removesuffix('.state.json')} is lost, its state cannot be read: {error}")
            else:
                yield snapshot


def wait_for_runtimes(parts: "Parts", session: int, but: "set[int]") -> "Handler":
    """Let runtime calls of a dead shim come to their end; what takes too long is killed.

    ``but``: log programs, with all that is in their process groups.
    """
    for pid in list(left_by(session, parts.bundle.path, but)):
        pidfd = kernel.open_pidfd(pid)
        if pidfd is None:
            continue
        try:
            if not _is_left(pid, session, parts.bundle.path, but):
                continue  # its pid may have been another's when we looked
            parts.log.info(f"waiting for process {pid}, which the shim before this one had started")
            try:
                yield Readable(pidfd, deadline_s=RUNTIME_S)
            except DeadlinePassed:
                parts.log.warning(f"process {pid} is killed: not done within {RUNTIME_S:g} s")
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                yield Readable(pidfd, deadline_s=KILLED_S)
        except (DeadlinePassed, ProcessLookupError):
            pass
        finally:
            os.close(pidfd)


def left_by(session: int, bundle: str, but: "Collection[int]" = ()) -> "Iterator[int]":
    """Processes of a dead shim's session that work in its bundle: `runc`, and what that runs until it is done.

    A container's processes have another session and see another root; ``but`` are process groups to leave alone, one
    for each program a shim starts (steps.Spawn). Source: proc_pid_stat(5), fields 3, 5 and 6.
    """
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _is_left(int(name), session, bundle, but):
            yield int(name)


def _is_left(pid: int, session: int, bundle: str, but: "Collection[int]") -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        fields = text[text.rindex(b")") + 2 :].split()
        if int(fields[3]) != session or int(fields[2]) in but or fields[0] == b"Z":
            return False
        return os.readlink(f"/proc/{pid}/cwd") == bundle
    except OSError:
        return False

"""`shimctl rm`, and taking a container back piece by piece: task, record, log."""

import argparse
import os

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.ctl.client import Daemon
    from ttrpc.api import process

SIGKILL = 9
DEATH_S = 10.0  # a killed process that is not gone by then hangs in the kernel


def end_task(daemon: "Daemon", container_id: str) -> None:
    """Kill the task if it lives, and delete it. Nothing to do when there is none.

    Raises: CtlError when it does not die; StatusError.
    """
    from daemon.ctl import resume
    from ttrpc.api import process

    found = resume.find_task(daemon, container_id)
    if found is None:
        return
    if found.status != process.STOPPED:
        kill_now(daemon, container_id)
    resume.delete_task(daemon, container_id)


def kill_now(daemon: "Daemon", container_id: str) -> None:
    """SIGKILL everything in the container and wait until it is over.

    Raises: CtlError when it is not over in `DEATH_S`.
    """
    from daemon.ctl import resume
    from daemon.ctl.client import TASKS
    from ttrpc.api import tasks
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    try:
        resume.kill(daemon, container_id, SIGKILL, everyone=True)
        daemon.call(TASKS, "Wait", tasks.WaitRequest(container_id=container_id), timeout_s=DEATH_S)
    except StatusError as error:
        if error.code == Code.DEADLINE_EXCEEDED:
            raise CtlError(
                f"{container_id} did not end within {DEATH_S:g} s of SIGKILL",
                hint=f"see what its processes hang in: shimctl top {container_id}",
            ) from None
        if error.code != Code.NOT_FOUND:
            raise


def remove_container(daemon: "Daemon", container_id: str, *, force: bool, may_be_gone: bool = False) -> None:
    """Delete task, record and log.

    Raises: CtlError when it still runs and ``force`` is not given, or does not exist.
    """
    from daemon.ctl import compose, fifos, labels, resume
    from daemon.ctl.client import SHIMD
    from ttrpc.api import process, shimd

    if may_be_gone and resume.find_container(daemon, container_id) is None:
        return
    record = resume.require_container(daemon, container_id)
    found = _find_task(daemon, container_id, force=force)
    if found is not None and found.status not in (process.STOPPED, process.CREATED) and not force:
        state = resume.STATUS_WORDS.get(found.status, "in an unknown state")
        raise CtlError(
            f"{container_id} is {state}", hint=f"shimctl stop {container_id} first, or shimctl rm -f {container_id}"
        )
    if labels.has_restart_policy(record.labels):
        resume.want(daemon, record, stopped=True)  # or the daemon might start it again under our hands
    if force:
        end_by_force(daemon, container_id)
    else:
        end_task(daemon, container_id)
    resume.delete_container(daemon, container_id)
    stdio = labels.stdio_of(record.labels)
    is_foreign = compose.is_foreign(record.runtime)
    if is_foreign or (stdio is not None and stdio.log_path):
        info = daemon.call(SHIMD, "Info", shimd.InfoRequest())
        if stdio is not None:
            remove_log(stdio.log_path, info.root_dir)
        if is_foreign:
            fifos.remove_folder(fifos.folder_of(info.state_dir, daemon.namespace, container_id))


def _find_task(daemon: "Daemon", container_id: str, *, force: bool) -> "process.Process | None":
    """The task; with ``force`` None also for one whose shim does not answer, as it makes no difference.

    Raises: CtlError that says so otherwise.
    """
    from daemon.ctl import resume
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    try:
        return resume.find_task(daemon, container_id)
    except StatusError as error:
        if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            raise
        if not force:
            raise CtlError(error.message, hint=f"end it all the same: shimctl rm -f {container_id}") from None
    return None


def end_by_force(daemon: "Daemon", container_id: str) -> None:
    """Have the daemon delete the task, running or not, whether or not its shim answers. None is fine.

    Raises: StatusError.
    """
    from daemon.ctl.client import SHIMD
    from ttrpc.api import shimd
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    try:
        daemon.call(SHIMD, "ForceDelete", shimd.ForceDeleteRequest(container_id=container_id))
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise


def remove_log(path: str, root_dir: str) -> None:
    """Delete a container's log, its rotated files, and their directory; only below the daemon's own log directory."""
    folder, name = os.path.split(path)
    if not path or not root_dir or not folder.startswith(f"{root_dir}/logs/"):
        return
    try:
        for entry in os.listdir(folder):
            if entry.startswith(name):
                os.unlink(os.path.join(folder, entry))
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CtlError(f"log {error.filename or folder} stays: {error.strerror}") from error


def remove(args: argparse.Namespace) -> int:
    """`shimctl rm`."""
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each

    with open_daemon(args) as daemon:
        return for_each(args.ids, lambda name: remove_container(daemon, name, force=args.force))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")


REMOVE = Command(
    remove,
    description="""\
Remove containers: the task with its exit status, the record, and the log. What runs is refused, unless -f kills it
first. Prints each id it removed. Exit records and events stay with the daemon: shimctl events, shimctl wait ID.
""",
    examples="""\
  shimctl rm job
  shimctl rm -f $(shimctl ps -aq)
""",
    options=_options,
)

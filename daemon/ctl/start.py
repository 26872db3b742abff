"""`shimctl start`: a created task is let go, a stopped one is made anew with the streams it had."""

import argparse
import os

from daemon.ctl.commands import Command
from daemon.ctl.errors import EXIT_FAILED, CtlError, UsageError, exit_code_of_failure
from daemon.ctl.flags import DETACH_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.ctl.client import Daemon
    from daemon.ctl.labels import Stdio
    from ttrpc.api import containers


def prepare(
    daemon: "Daemon", container_id: str, *, hold: "Callable[[containers.Container, Stdio], Stdio] | None" = None
) -> "Stdio | None":
    """Bring the container to the point before its start: a created task. None when it runs already.

    ``hold`` makes streams for somebody who stays with it, and is asked only where its shim has no Attach.

    Raises: CtlError when there is no such container, or its shim does not answer; StatusError.
    """
    from daemon.ctl import compose, labels, remove, resume
    from ttrpc.api import process

    record = resume.require_container(daemon, container_id)
    stdio = labels.stdio_of(record.labels)
    if stdio is None:
        terminal = bool((compose.spec_of(record).get("process") or {}).get("terminal"))
        stdio = labels.Stdio("", "attach:", "" if terminal else "attach:", terminal=terminal)
    found = resume.find_task(daemon, container_id)
    if found is not None and found.status in (process.RUNNING, process.PAUSED, process.PAUSING):
        return None
    if found is not None and found.status == process.UNKNOWN:
        raise CtlError(f"the shim of {container_id} does not answer", hint="shimctl daemon info tells why")
    if labels.has_restart_policy(record.labels):
        resume.want(daemon, record, stopped=False)
    asked = stdio
    if compose.is_foreign(record.runtime):
        asked = hold(record, stdio) if hold is not None else stdio.without_attach()
        if found is not None and found.status == process.CREATED and hold is not None:
            remove.end_task(daemon, container_id)  # it was created with other streams
            found = None
    if found is not None and found.status == process.STOPPED:
        if not _is_deleted(daemon, container_id):
            return None
        found = None
    if found is None:
        resume.create_task(daemon, compose.task_request(container_id, asked))
    return stdio


def _is_deleted(daemon: "Daemon", container_id: str) -> bool:
    """Delete a stopped task; False when it is not stopped any more, its restart policy having been quicker.

    Raises: StatusError.
    """
    from daemon.ctl import resume
    from ttrpc.api import process
    from ttrpc.errors import StatusError

    try:
        resume.delete_task(daemon, container_id)
    except StatusError:
        found = resume.find_task(daemon, container_id)
        if found is None or found.status not in (process.RUNNING, process.PAUSED, process.PAUSING):
            raise
        return False
    return True


def start_one(daemon: "Daemon", container_id: str) -> None:
    """Start one container; one that runs already is fine."""
    from daemon.ctl import resume

    if prepare(daemon, container_id) is not None:
        resume.start(daemon, container_id)


def _start_here(args: argparse.Namespace, daemon: "Daemon", container_id: str) -> int:
    """start -a: stay with it, as `run` does."""
    from daemon.ctl import foreground, resume
    from daemon.ctl.client import SHIMD
    from daemon.ctl.fifos import Fifos, folder_of
    from daemon.ctl.pump import DETACHED, ENDED, FORCED, READER_GONE
    from ttrpc.api import shimd

    made: list[Fifos] = []

    def hold(_record: "containers.Container", stdio: "Stdio") -> "Stdio":
        folder = folder_of(daemon.call(SHIMD, "Info", shimd.InfoRequest()).state_dir, daemon.namespace, container_id)
        made.append(Fifos(folder, stdin=args.interactive and bool(stdio.stdin), terminal=stdio.terminal))
        made[0].make()
        return made[0].stdio

    stdio = prepare(daemon, container_id, hold=hold)
    if stdio is None:
        raise CtlError(f"{container_id} runs already", hint=f"shimctl attach {container_id}")
    wants_input = args.interactive and bool(stdio.stdin)
    if stdio.terminal and wants_input and not os.isatty(0):
        raise UsageError("the container has a terminal, but our input is none", hint="leave out -i")
    with foreground.attach(
        daemon,
        container_id,
        stdin=wants_input,
        terminal=stdio.terminal,
        detach_keys=args.detach_keys,
        fifos=made[0] if made else None,
    ) as session:
        session.open()
        resume.start(daemon, container_id)
        ending = foreground.pump(session)
    if ending.kind in (DETACHED, ENDED, FORCED, READER_GONE):
        foreground.tell_running_on(container_id, ending)
        return 0 if ending.kind == DETACHED else 128 + (ending.signal or 13)
    for fifos in made:
        fifos.remove()
    return foreground.code_of(daemon, ending, container_id)


def start(args: argparse.Namespace) -> int:
    """`shimctl start`."""
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each
    from ttrpc.errors import StatusError

    with open_daemon(args) as daemon:
        if not args.attach and not args.interactive:
            return for_each(args.ids, lambda name: start_one(daemon, name))
        if len(args.ids) != 1:
            raise UsageError("-a and -i stay with one container, not several")
        try:
            return _start_here(args, daemon, args.ids[0])
        except CtlError as error:
            error.exit_code = error.exit_code or EXIT_FAILED
            raise
        except StatusError as error:
            raise CtlError(error.message, exit_code=exit_code_of_failure(error.message) or EXIT_FAILED) from None


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("-a", "--attach", action="store_true", help="stay with it; its exit code becomes ours")
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="stay with it and pass our input on (created with -i)"
    )
    parser.add_argument(
        "--detach-keys", default=DETACH_KEYS, metavar="KEYS", help=f"keys that let go (default {DETACH_KEYS})"
    )


START = Command(
    start,
    description="""\
Start created containers, or stopped ones again: same record, same spec, same log. One that runs already is left alone.
""",
    examples="""\
  shimctl start job
  shimctl start -a job        its output here, its exit code ours
""",
    options=_options,
)

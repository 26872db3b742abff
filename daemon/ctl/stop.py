"""`shimctl stop`: ask each container by its own signal, give all of them the same time, then kill those that stay."""

import argparse
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemon.ctl.client import Daemon

GRACE_S = 10.0


def _ask(daemon: "Daemon", container_id: str, number: int | None) -> None:
    """Send the stop signal, after telling the restart policy that this end is wanted."""
    from daemon import spec_parse
    from daemon.ctl import labels, resume
    from ttrpc.api import process
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    record = resume.require_container(daemon, container_id)
    if labels.has_restart_policy(record.labels):
        resume.want(daemon, record, stopped=True)
    found = resume.find_task(daemon, container_id)
    if found is None or found.status == process.STOPPED:
        return
    chosen = number if number is not None else spec_parse.parse_signal(labels.stop_signal_of(record.labels))
    try:
        resume.kill(daemon, container_id, chosen)
        if found.status in (process.PAUSED, process.PAUSING):
            resume.switch(daemon, container_id, "Resume", process.RUNNING)  # frozen, it could not react
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise


def _finish(daemon: "Daemon", container_id: str, until: float) -> None:
    """Wait for the end as long as the grace lasts, then kill."""
    from daemon.ctl import remove
    from daemon.ctl.client import TASKS
    from ttrpc.api import tasks
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    remaining_s = until - time.monotonic()
    try:
        if remaining_s > 0:
            daemon.call(TASKS, "Wait", tasks.WaitRequest(container_id=container_id), timeout_s=remaining_s)
            return
    except StatusError as error:
        if error.code == Code.NOT_FOUND:
            return
        if error.code != Code.DEADLINE_EXCEEDED:
            raise
    remove.kill_now(daemon, container_id)


def stop(args: argparse.Namespace) -> int:
    """`shimctl stop`."""
    from daemon import spec_parse
    from daemon.ctl.client import TASKS, open_daemon
    from daemon.ctl.each import for_each
    from ttrpc.api import process, tasks

    if bool(args.ids) == args.all:
        raise UsageError("name the containers to stop, or say --all")
    number = spec_parse.parse_signal(args.signal) if args.signal else None
    with open_daemon(args) as daemon:
        names = args.ids
        if args.all:
            living = (process.CREATED, process.RUNNING, process.PAUSED, process.PAUSING)
            found = daemon.call(TASKS, "List", tasks.ListTasksRequest()).tasks
            names = [task.container_id or task.id for task in found if task.status in living]
        asked: list[str] = []

        def ask(name: str) -> None:
            _ask(daemon, name, number)
            asked.append(name)

        refused = for_each(names, ask, quiet=True)
        until = time.monotonic() + args.time
        return for_each(asked, lambda name: _finish(daemon, name, until)) or refused


def seconds(text: str) -> float:
    """A span for argparse: 10, 1.5, 2m."""
    from daemon.ctl.units import parse_span

    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--all", action="store_true", help="every container of the namespace that lives")
    parser.add_argument(
        "-t",
        "--time",
        type=seconds,
        default=GRACE_S,
        metavar="SECONDS",
        help=f"grace before SIGKILL (default {GRACE_S:g})",
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="ask with this instead of the container's stop signal")


STOP = Command(
    stop,
    description="""\
Ask containers to end with their stop signal (--stop-signal of run, else SIGTERM), wait as long as the grace lasts, then
kill what is left in them. Several are asked at once and share the time. A restart policy does not start them again.
""",
    examples="""\
  shimctl stop web
  shimctl stop -t 2m database
  shimctl stop --all
""",
    options=_options,
)

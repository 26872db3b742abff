"""`shimctl run` and `create`: compose the record, create the task, attach before it starts, and undo what failed."""

import argparse
import contextlib
import os
import signal

from daemon.ctl.commands import Command
from daemon.ctl.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    CtlError,
    DaemonGone,
    UsageError,
    exit_code_of_failure,
    sentence_of,
)
from daemon.ctl.flags import DETACH_KEYS, container_options, split_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.ctl.client import Daemon
    from daemon.ctl.fifos import Fifos
    from daemon.ctl.labels import Stdio
    from daemon.ctl.pump import Ending

MADE_UP_IDS = 5  # how many names to try before giving up: the first collides only with thousands of containers


class Interrupted(BaseException):
    """A signal told us to leave while a container was half made: undo, then leave."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Making:
    """A container in the making: what it is called, where its streams go, and how to take it all back."""

    def __init__(self, daemon: "Daemon") -> None:
        self.daemon = daemon
        self.container_id = ""
        self.stdio: Stdio | None = None
        self.fifos: Fifos | None = None  # of a process we stay with, where its shim has no Attach
        self.root_dir = ""
        self._undo: list[tuple[str, Callable[[], object]]] = []

    def undoes(self, what: str, step: "Callable[[], object]") -> None:
        """Remember how to take back what was just made, or may have been."""
        self._undo.append((what, step))

    def keep(self) -> None:
        """It is complete: nothing is taken back any more."""
        self._undo.clear()

    def take_back(self, cause: BaseException) -> None:
        """Undo in reverse. What cannot be undone is named, with the command that will do it."""
        from daemon.ctl.client import say

        if isinstance(cause, DaemonGone):
            if self._undo:
                say(f"left behind until the daemon is back: shimctl rm -f {self.container_id}")
            return
        while self._undo:
            what, step = self._undo.pop()
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the first cause is what counts; this one is told beside it
                say(f"could not undo {what}: {sentence_of(error)[0]}; later: shimctl rm -f {self.container_id}")
                return


def run_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes beyond `create`: how it stays, or does not."""
    group = parser.add_argument_group("how to run")
    group.add_argument("-d", "--detach", action="store_true", help="in the background; prints the id")
    group.add_argument(
        "--rm",
        dest="remove",
        action="store_true",
        help="remove container, task and log when it has ended",
    )
    group.add_argument(
        "--detach-keys",
        default=DETACH_KEYS,
        metavar="KEYS",
        help=f"with -t -i: keys that let go of it (default {DETACH_KEYS})",
    )
    container_options(parser)


def resolve_words(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(id or empty, command) of the words, after reading options that stand between the id and ``--``."""
    container_id, command, late = split_words(args, args.words)
    if late:
        parser = argparse.ArgumentParser(prog=f"shimctl {args.command}", add_help=False, allow_abbrev=False)
        (run_options if args.command == "run" else container_options)(parser)
        try:
            parser.parse_args(late, args)
        except SystemExit:
            raise UsageError(f"only options may stand between the id and --, not {' '.join(late)!r}") from None
        if args.words:
            raise UsageError(f"only options may stand between the id and --, not {args.words[0]!r}")
    if args.name and container_id not in ("", args.name):
        raise UsageError(f"two ids: --name {args.name} and {container_id}")
    return args.name or container_id, command


def make(args: argparse.Namespace, making: Making) -> None:
    """Create record and task. The task waits for its start; `making` knows how to take both back.

    Raises: UsageError, SpecError before anything is made; StatusError, CtlError after.
    """
    from daemon.ctl import compose, remove, resume
    from daemon.ctl.client import SHIMD
    from ttrpc.api import shimd
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    daemon = making.daemon
    wanted, command = resolve_words(args)
    request = os.urandom(8).hex()
    made = compose.build_spec(args, wanted or "probe", command)  # what is wrong is told before the daemon is asked
    info = daemon.call(SHIMD, "Info", shimd.InfoRequest())
    making.root_dir = info.root_dir
    for attempt in range(MADE_UP_IDS):
        container_id = wanted or compose.made_up_id()
        if not wanted:
            made = compose.build_spec(args, container_id, command)
        stdio = compose.build_stdio(args, container_id, making.root_dir, terminal=made["process"]["terminal"])
        record = compose.container_record(args, container_id, made, stdio, request)
        try:
            resume.create_container(daemon, record)
        except StatusError as error:
            if error.code == Code.ALREADY_EXISTS and not wanted and attempt + 1 < MADE_UP_IDS:
                continue
            if error.code == Code.ALREADY_EXISTS:
                raise CtlError(
                    error.message, hint=f"remove it (shimctl rm {container_id}) or choose another id"
                ) from None
            raise
        break
    making.container_id, making.stdio = container_id, stdio
    making.undoes("the record", lambda: resume.delete_container(daemon, container_id))
    making.undoes("the log", lambda: remove.remove_log(stdio.log_path, making.root_dir))
    if compose.is_foreign(record.runtime):
        is_detached = getattr(args, "detach", True)  # `create` leaves it, too
        stdio = stdio.without_attach() if is_detached else _make_fifos(making, info.state_dir, stdio)
    making.undoes("the task", lambda: remove.end_task(daemon, container_id))
    resume.create_task(daemon, compose.task_request(container_id, stdio))


def _make_fifos(making: Making, state_dir: str, stdio: "Stdio") -> "Stdio":
    """The streams of a container we stay with under a shim that is not ours."""
    from daemon.ctl.fifos import Fifos, folder_of

    folder = folder_of(state_dir, making.daemon.namespace, making.container_id)
    making.fifos = Fifos(folder, stdin=bool(stdio.stdin), terminal=stdio.terminal)
    making.undoes("the FIFOs", making.fifos.remove)
    making.fifos.make()
    return making.fifos.stdio


@contextlib.contextmanager
def undoing(making: Making) -> "Iterator[None]":
    """Take everything back when what is inside fails or a signal tells us to leave, and say why."""

    def leave(number: int, _frame: object) -> None:
        raise Interrupted(number)

    kept = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except BaseException as error:
        for number in kept:
            signal.signal(number, signal.SIG_IGN)  # the second impatient signal must not stop the undoing
        making.take_back(error)
        raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _in_terms_of_the_program(error: Exception) -> CtlError:
    """A runtime's refusal as an error with docker's exit codes 126 and 127."""
    message, hint = sentence_of(error)
    code = error.exit_code if isinstance(error, CtlError) else None
    return CtlError(message, hint=hint, exit_code=code or exit_code_of_failure(message) or EXIT_FAILED)


def run(args: argparse.Namespace) -> int:
    """`shimctl run`."""
    from daemon.ctl.client import open_daemon
    from ttrpc.errors import StatusError

    if args.tty and args.interactive and not args.detach and not os.isatty(0):
        raise UsageError("-t -i needs a terminal on our input", hint="leave out -t to pipe input into it")
    with open_daemon(args) as daemon:
        making = Making(daemon)
        try:
            return _run_detached(args, making) if args.detach else _run_here(args, making)
        except StatusError as error:
            raise _in_terms_of_the_program(error) from None
        except Interrupted as interrupted:
            return 128 + interrupted.number


def _run_detached(args: argparse.Namespace, making: Making) -> int:
    from daemon.ctl import resume

    with undoing(making):
        make(args, making)
        resume.start(making.daemon, making.container_id)
        making.keep()
    print(making.container_id)
    return 0


def _run_here(args: argparse.Namespace, making: Making) -> int:
    from daemon.ctl import resume
    from daemon.ctl.foreground import attach, pump

    with undoing(making):
        make(args, making)
        assert making.stdio is not None
        with attach(
            making.daemon,
            making.container_id,
            stdin=bool(making.stdio.stdin),
            terminal=making.stdio.terminal,
            detach_keys=args.detach_keys,
            fifos=making.fifos,
        ) as session:
            session.open()
            resume.start(making.daemon, making.container_id)
            making.keep()
            ending = pump(session)
    return _finish(args, making, ending)


def _finish(args: argparse.Namespace, making: Making, ending: "Ending") -> int:
    """What a foreground run does once its stream is over: remove if asked to, and answer."""
    from daemon.ctl import foreground
    from daemon.ctl.client import say, say_apart
    from daemon.ctl.pump import DETACHED, ENDED, FORCED, READER_GONE

    container_id = making.container_id
    if ending.kind in (DETACHED, ENDED):
        if args.remove:
            _leave_removal_to_daemon(making)
        say_apart(f"let go of {container_id}; it runs on (back to it: shimctl attach {container_id})")
        return 0 if ending.kind == DETACHED else 128 + ending.signal
    if ending.kind in (READER_GONE, FORCED):
        code = EXIT_BROKEN_PIPE if ending.kind == READER_GONE else 128 + ending.signal
        if not args.remove:
            foreground.tell_running_on(container_id, ending)
            return code
    else:
        code = foreground.code_of(making.daemon, ending, container_id)
        if making.fifos is not None:
            making.fifos.remove()
        if args.restart != "no":
            say(f"its restart policy ({args.restart}) decides what comes next; to end it: shimctl stop {container_id}")
    if args.remove:
        _remove_after(making)
    return code


def _leave_removal_to_daemon(making: Making) -> None:
    """--rm, and we leave before the end. One that ended before the label was changed is still ours to remove."""
    from daemon.ctl import exits, labels
    from daemon.ctl.client import CONTAINERS
    from ttrpc.api import containers, wkt

    update = containers.Container(id=making.container_id, labels={labels.AUTO_REMOVE: "true"})
    mask = wkt.FieldMask(paths=[f"labels.{labels.AUTO_REMOVE}"])
    with contextlib.suppress(CtlError):  # it stays then, as without --rm
        making.daemon.call(CONTAINERS, "Update", containers.UpdateContainerRequest(container=update, update_mask=mask))
        if exits.is_over(making.daemon, making.container_id):
            _remove_after(making)


def _remove_after(making: Making) -> None:
    """--rm. A failure is told, but does not replace the container's exit code."""
    from daemon.ctl import remove
    from daemon.ctl.__main__ import complain
    from ttrpc.errors import TtrpcError

    try:
        remove.remove_container(making.daemon, making.container_id, force=True, may_be_gone=True)
    except (CtlError, TtrpcError, OSError) as error:
        message, _ = sentence_of(error)
        complain(f"could not remove {making.container_id}: {message}", f"later: shimctl rm -f {making.container_id}")


def create(args: argparse.Namespace) -> int:
    """`shimctl create`."""
    from daemon.ctl.client import open_daemon
    from ttrpc.errors import StatusError

    with open_daemon(args) as daemon:
        making = Making(daemon)
        try:
            with undoing(making):
                make(args, making)
                making.keep()
        except StatusError as error:
            failed = _in_terms_of_the_program(error)
            raise CtlError(failed.message, hint=failed.hint, exit_code=_unless_general(failed.exit_code)) from None
        except Interrupted as interrupted:
            return 128 + interrupted.number
        print(making.container_id)
        return 0


def _unless_general(code: int | None) -> int | None:
    return None if code == EXIT_FAILED else code


_USAGE = (
    "shimctl {0} [OPTIONS] --rootfs DIR [ID] -- COMMAND [ARG…]\n"
    "       shimctl {0} [OPTIONS] --bundle DIR [ID] [-- COMMAND [ARG…]]"
)
_SHAPE = """\
The command follows --, before it stands at most the container's id:

    shimctl run [OPTIONS] --rootfs DIR [ID] -- COMMAND [ARG…]
    shimctl run [OPTIONS] --bundle DIR [ID] [-- COMMAND [ARG…]]

With --name ID the -- may be left out, as with docker. Without an id one is made up (quiet-heron-42).
"""

RUN = Command(
    run,
    usage=_USAGE.format("run"),
    description="Create a container, start it, and stay with it until it ends; with -d leave it in the background.\n\n"
    + _SHAPE
    + """
Its output goes through us and into its log at once; its exit code becomes ours. We talk to its shim directly, so the
daemon may be killed meanwhile. Signals we get are passed on; the third Ctrl-C gives up on a container that ignores
them. When any step fails, what was made is removed again.
""",
    examples="""\
  shimctl run --rm --rootfs /srv/alpine -- echo hello
  shimctl run -d --rootfs /srv/alpine --restart always --memory 256m --log-opt max-size=10m,max-file=3 web -- httpd -f
  shimctl run --rm -t -i --rootfs /srv/alpine --name shell sh
  tar c . | shimctl run --rm -i --rootfs /srv/alpine -- tar t
""",
    options=run_options,
    passes_code=True,
)
CREATE = Command(
    create,
    usage=_USAGE.format("create"),
    description="""\
Create a container and everything it needs but the start of its program: its namespaces and cgroups exist, its process
waits. `shimctl start` lets it go. Prints the id.

"""
    + _SHAPE.replace("shimctl run", "shimctl create"),
    examples="""\
  shimctl create --rootfs /srv/alpine job -- sh -c 'echo done'
  shimctl start job && shimctl wait job
""",
    options=container_options,
)

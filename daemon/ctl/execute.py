"""`shimctl exec`: one more process in a running container."""

import argparse
import contextlib
import json
import os

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
from daemon.ctl.flags import DETACH_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from daemon.ctl.client import Daemon
    from daemon.ctl.fifos import Fifos
    from daemon.ctl.pump import Ending, Pump
    from ttrpc.api import tasks

    class Side(Protocol):
        """Who is asked for an exec: the daemon, or a shim itself."""

        container_id: str
        address: str
        metadata: dict[str, str]
        fifo_folder: str  # empty: the shim has Attach

        def add(self, request: "tasks.ExecProcessRequest") -> None: ...

        def start(self, exec_id: str) -> None: ...

        def forget(self, exec_id: str) -> None: ...

        def code_of(self, ending: "Ending", exec_id: str) -> int: ...


SIGKILL = 9


def process_of(
    args: argparse.Namespace, spec: "Mapping[str, Any]", bundle: str, command: list[str]
) -> "dict[str, Any]":
    """The OCI process of an exec, out of the container's spec and the options. ``bundle`` resolves a relative root.

    Raises: UsageError, SpecError.
    """
    from daemon import hostfacts, rootfs
    from daemon import spec as specs

    environment: list[str] = []
    for path in args.env_file:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            environment += specs.parse_env_file(file.read(), os.environ)
    user = None
    if args.user:
        root = os.path.join(bundle, (spec.get("root") or {}).get("path") or "rootfs")
        user = specs.parse_user(args.user, *rootfs.passwd_and_group(root))
    options = specs.ExecOptions(
        args=command,
        env=environment + specs.parse_env(args.env, os.environ),
        cwd=args.cwd,
        user=user,
        terminal=args.tty,
        cap_add=args.cap_add,
        host_capabilities=hostfacts.capabilities() if args.privileged or args.cap_add else None,
        privileged=args.privileged,
    )
    return specs.exec_process(spec.get("process") or {}, options)


def split_exec_words(words: list[str]) -> tuple[str, list[str]]:
    """(id, command) of ``ID [--] COMMAND…``.

    Raises: UsageError.
    """
    if len(words) < 2 or words[0] == "--":
        raise UsageError("say where and what: shimctl exec [OPTIONS] ID COMMAND [ARG…]")
    command = words[2:] if words[1] == "--" else words[1:]
    if not command:
        raise UsageError("nothing to run: put the command after the id")
    return words[0], command


def request_of(
    args: argparse.Namespace,
    container_id: str,
    exec_id: str,
    process: "dict[str, Any]",
    fifos: "Fifos | None" = None,
) -> "tasks.ExecProcessRequest":
    """The request to send to Tasks.Exec."""
    from daemon.ctl import compose
    from daemon.ctl.labels import Stdio
    from ttrpc.api import tasks, wkt

    out = "" if args.detach else "attach:"
    stdin = "attach:" if args.interactive and not args.detach else ""
    stdio = fifos.stdio if fifos is not None else Stdio(stdin, out, "" if args.tty else out)
    return tasks.ExecProcessRequest(
        container_id=container_id,
        exec_id=exec_id,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        terminal=args.tty,
        spec=wkt.any_of(compose.PROCESS_TYPE, json.dumps(process, separators=(",", ":")).encode()),
    )


class DaemonSide:
    """Where `exec_in` sends its calls when the daemon does the work: calls outlive its death, output comes directly."""

    def __init__(self, daemon: "Daemon", container_id: str, *, is_foreign: bool) -> None:
        from daemon.ctl import foreground
        from daemon.ctl.client import SHIMD
        from daemon.ctl.fifos import folder_of
        from ttrpc.api import shimd

        self._daemon = daemon
        self.fifo_folder = ""
        if is_foreign:
            state_dir = daemon.call(SHIMD, "Info", shimd.InfoRequest()).state_dir
            self.fifo_folder = folder_of(state_dir, daemon.namespace, container_id)
        self.container_id = container_id
        self.metadata = daemon.metadata
        self.address = foreground.shim_address(daemon, container_id)

    def add(self, request: "tasks.ExecProcessRequest") -> None:
        from daemon.ctl import resume

        resume.add_exec(self._daemon, request)

    def start(self, exec_id: str) -> None:
        from daemon.ctl import resume

        resume.start(self._daemon, self.container_id, exec_id)

    def forget(self, exec_id: str) -> None:
        from daemon.ctl import resume

        resume.delete_exec(self._daemon, self.container_id, exec_id)

    def code_of(self, ending: "Ending", exec_id: str) -> int:
        from daemon.ctl import foreground

        return foreground.code_of(self._daemon, ending, self.container_id, exec_id)


def check_streams(args: argparse.Namespace) -> None:
    """Refuse what cannot work. Raises: UsageError."""
    if args.detach and args.interactive:
        raise UsageError("-d and -i do not go together: nobody would be there to give input")
    if args.tty and args.interactive and not os.isatty(0):
        raise UsageError("-t -i needs a terminal on our input", hint="leave out -t to pipe input into it")


def execute(args: argparse.Namespace) -> int:
    """`shimctl exec`."""
    from daemon.ctl.client import open_daemon
    from ttrpc.errors import StatusError

    container_id, command = split_exec_words(args.words)
    check_streams(args)
    with open_daemon(args) as daemon:
        try:
            return _execute(args, daemon, container_id, command)
        except StatusError as error:
            message, hint = sentence_of(error)
            raise CtlError(message, hint=hint, exit_code=exit_code_of_failure(message) or EXIT_FAILED) from None


def _execute(args: argparse.Namespace, daemon: "Daemon", container_id: str, command: list[str]) -> int:
    from daemon.ctl import compose, resume

    record = resume.require_container(daemon, container_id)
    side = DaemonSide(daemon, container_id, is_foreign=compose.is_foreign(record.runtime))
    return exec_in(args, side, process_of(args, compose.spec_of(record), "", command))


def exec_in(args: argparse.Namespace, side: "Side", process: "dict[str, Any]") -> int:
    """Register an exec, attach to it, start it, stay with it, forget it; with -d only start it.

    Raises: StatusError, CtlError; then it is forgotten, as far as that goes.
    """
    from daemon.ctl import compose, foreground
    from daemon.ctl.fifos import Fifos
    from daemon.ctl.pump import DETACHED, ENDED
    from daemon.ctl.terminal import parse_detach_keys

    keys = parse_detach_keys(args.detach_keys) if args.tty and args.interactive else b""
    exec_id = compose.made_up_exec_id()
    fifos = None
    if side.fifo_folder and not args.detach:
        fifos = Fifos(side.fifo_folder, exec_id, stdin=args.interactive, terminal=args.tty)
    with contextlib.ExitStack() as stack:
        try:
            if fifos is not None:
                fifos.make()
            side.add(request_of(args, side.container_id, exec_id, process, fifos))
            if args.detach:
                side.start(exec_id)
                print(exec_id)
                return 0
            session = stack.enter_context(_session(args, side, exec_id, fifos, keys))
            session.open()
            side.start(exec_id)
        except BaseException as error:
            if not isinstance(error, DaemonGone):
                if not _is_silence(error):
                    _forget(side, exec_id)
                if fifos is not None:
                    fifos.remove()
            raise
        ending = foreground.pump(session)
        code = _finish(side, session, ending, exec_id)
        if fifos is not None and ending.kind not in (DETACHED, ENDED):
            fifos.remove()
        return code


def _session(args: argparse.Namespace, side: "Side", exec_id: str, fifos: "Fifos | None", keys: bytes) -> "Pump":
    from daemon.ctl.fifosession import FifoSession
    from daemon.ctl.session import Session

    where = (side.address, side.container_id, exec_id)
    if fifos is not None:
        return FifoSession(
            *where, fifos.stdio, fifos.take_outputs(), metadata=side.metadata, stdin=args.interactive, detach_keys=keys
        )
    return Session(
        *where,
        metadata=side.metadata,
        stdin=args.interactive,
        terminal=args.tty,
        backpressure=True,
        detach_keys=keys,
    )


def _finish(side: "Side", session: "Pump", ending: "Ending", exec_id: str) -> int:
    """The exit code. An exec that is over is forgotten; one we were alone with is ended when we must leave it."""
    from daemon.ctl.client import say_apart
    from daemon.ctl.pump import DETACHED, ENDED, FORCED, READER_GONE
    from ttrpc.errors import TtrpcError

    if ending.kind in (DETACHED, ENDED):
        say_apart(f"let go of {exec_id}; it runs on (end it: shimctl kill --exec {exec_id} {side.container_id})")
        return 0 if ending.kind == DETACHED else 128 + ending.signal
    if ending.kind in (READER_GONE, FORCED):
        with contextlib.suppress(TtrpcError, OSError):
            session.kill(SIGKILL)
        return EXIT_BROKEN_PIPE if ending.kind == READER_GONE else 128 + ending.signal
    code = side.code_of(ending, exec_id)
    _forget(side, exec_id)
    return code


def _is_silence(error: BaseException) -> bool:
    """Whether nobody answered in time: then another request would only wait as long again."""
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    return isinstance(error, StatusError) and error.code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)


def _forget(side: "Side", exec_id: str) -> None:
    """Delete the exec's record. It goes with its container anyway, so this is never worth failing for."""
    from ttrpc.errors import TtrpcError

    with contextlib.suppress(TtrpcError, CtlError, OSError):
        side.forget(exec_id)


def exec_options(parser: argparse.ArgumentParser) -> None:
    """The options of exec, which `shim exec` takes as well."""
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass our input on to it")
    parser.add_argument(
        "-d", "--detach", action="store_true", help="in the background, its output dropped; prints its exec id"
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="environment to add")
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help="environment, one NAME=VALUE a line"
    )
    parser.add_argument("-w", "--cwd", "--workdir", dest="cwd", metavar="DIR", help="directory to start in")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="names (of the root filesystem) or numbers")
    parser.add_argument("--cap-add", action="append", default=[], metavar="CAP", help="give it a capability")
    parser.add_argument("--privileged", action="store_true", help="give it all capabilities")
    parser.add_argument(
        "--detach-keys", default=DETACH_KEYS, metavar="KEYS", help=f"with -t -i (default {DETACH_KEYS})"
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="ID COMMAND", help=argparse.SUPPRESS)


EXEC = Command(
    execute,
    usage="shimctl exec [OPTIONS] ID COMMAND [ARG…]",
    description="""\
Run one more program in a running container, as its first process was run unless options say otherwise. Its exit code
becomes ours; 126 and 127 mean that it cannot be executed or is not there, 125 that shimctl or the daemon failed.
""",
    examples="""\
  shimctl exec web ps
  shimctl exec -t -i web sh
  shimctl exec -u nobody -e DEBUG=1 web env
  echo 'select 1' | shimctl exec -i database sqlite3
""",
    options=exec_options,
    passes_code=True,
)

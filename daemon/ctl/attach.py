"""`shimctl attach`: our terminal becomes one more of a container's."""

import argparse
import os

from daemon.ctl.commands import Command
from daemon.ctl.errors import EXIT_BROKEN_PIPE, CtlError
from daemon.ctl.flags import DETACH_KEYS

REPLAY_BYTES = 4096  # enough to see the prompt or the last lines


def attach(args: argparse.Namespace) -> int:
    """`shimctl attach`."""
    from daemon.ctl import compose, foreground, labels, resume
    from daemon.ctl.client import open_daemon, say, say_apart
    from daemon.ctl.fifos import Fifos, are_there
    from daemon.ctl.pump import CUT, DETACHED, ENDED, FORCED, READER_GONE
    from ttrpc.api import process

    with open_daemon(args) as daemon:
        name = args.id
        record = resume.require_container(daemon, name)
        found = resume.find_task(daemon, name, args.exec_id)
        if found is None or found.status == process.STOPPED:
            raise CtlError(
                f"{args.exec_id or name} is not running", hint=f"shimctl logs {name}, shimctl start -a {name}"
            )
        is_foreign = compose.is_foreign(record.runtime)
        takes_input = (bool(found.stdin) if is_foreign else found.stdin == "attach:") and not args.no_stdin
        if found.terminal and takes_input and not os.isatty(0):
            takes_input = False
        fifos = None
        if is_foreign:
            stdin = found.stdin if takes_input else ""
            stdio = labels.Stdio(stdin, found.stdout, found.stderr, terminal=found.terminal)
            if not are_there(stdio):
                raise CtlError(f"{args.exec_id or name} has nothing to attach to", hint=f"shimctl logs -f {name}")
            fifos = Fifos.of(stdio)
        replay = 0 if args.no_replay else REPLAY_BYTES
        while True:
            with foreground.attach(
                daemon,
                name,
                args.exec_id,
                stdin=takes_input,
                terminal=found.terminal,
                detach_keys=args.detach_keys,
                backpressure=False,
                forward_signals=args.sig_proxy,
                replay_bytes=replay,
                fifos=fifos,
            ) as session:
                session.open()
                ending = foreground.pump(session)
            if ending.kind != CUT:
                break
            say(f"{ending.reason}; attaching again")
            replay = 0
        if ending.kind in (DETACHED, ENDED):
            say_apart(f"let go of {name}; it runs on")
            return 0 if ending.kind == DETACHED else 128 + ending.signal
        if ending.kind in (FORCED, READER_GONE):
            foreground.tell_running_on(name, ending)
            return EXIT_BROKEN_PIPE if ending.kind == READER_GONE else 128 + ending.signal
        return foreground.code_of(daemon, ending, name, args.exec_id)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="attach to an exec of it")
    parser.add_argument("--no-stdin", action="store_true", help="watch only")
    parser.add_argument("--no-replay", action="store_true", help="only what is written from now on")
    parser.add_argument("--sig-proxy", action="store_true", help="pass signals on instead of ending by them")
    parser.add_argument(
        "--detach-keys",
        default=DETACH_KEYS,
        metavar="KEYS",
        help=f"keys that let go of a terminal (default {DETACH_KEYS})",
    )


ATTACH = Command(
    attach,
    description="""\
Connect to a running container: its output here, after the last lines of what came before, and our input to it if it was
run with -i. Ends with the container and then has its exit code; Ctrl-C, or the detach keys where it has a terminal, end
only the attachment. Whoever attached reads too slowly misses output, and is told; the container never waits for him.
""",
    examples="""\
  shimctl attach shell
  shimctl attach --no-stdin --detach-keys ctrl-c web
""",
    options=_options,
    passes_code=True,
)

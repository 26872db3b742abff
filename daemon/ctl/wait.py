"""`shimctl wait`."""

import argparse

from daemon.ctl.commands import Command


def wait(args: argparse.Namespace) -> int:
    """`shimctl wait`: prints each exit code; ours is the first that is not 0."""
    from daemon.ctl import exits
    from daemon.ctl.client import open_daemon

    result = 0
    with open_daemon(args) as daemon:
        for name in args.ids:
            code = exits.wait_for(daemon, name, args.exec_id)
            print("unknown" if code is None else code, flush=True)
            result = result or exits.answer(code, args.exec_id or name)
    return result


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="wait for an exec of it instead")


WAIT = Command(
    wait,
    description="""\
Wait until containers have ended; print the exit code of each and exit with the first that is not 0. 128 + N stands
for signal N; a status that is lost for good prints `unknown` and exits with 123. The daemon may be restarted meanwhile,
and a container that ended while it was down, or whose task is deleted already, is answered from the exit records.
""",
    examples="""\
  shimctl wait job
  shimctl wait job && echo it worked
""",
    options=_options,
    passes_code=True,
)

"""`shimctl wait`."""

import argparse

from daemon.ctl.commands import Command


def wait(args: argparse.Namespace) -> int:
    """`shimctl wait`: prints each exit code; ours is the first that is not 0, or that one could not be waited for."""
    from daemon.ctl import exits
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each
    from daemon.ctl.errors import EXIT_FAILED

    codes: list[int] = []
    with open_daemon(args) as daemon:

        def wait_for(name: str) -> None:
            code = exits.wait_for(daemon, name, args.exec_id)
            print("unknown" if code is None else code, flush=True)
            codes.append(exits.answer(code, args.exec_id or name))

        if for_each(args.ids, wait_for, quiet=True):
            return EXIT_FAILED  # what was printed is not one line for each id
    return next((code for code in codes if code), 0)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="wait for an exec of it instead")


WAIT = Command(
    wait,
    description="""\
Wait until containers have ended; print the exit code of each and exit with the first that is not 0. 128 + N stands
for signal N; a status that is lost for good prints `unknown` and exits with 123. The daemon may be restarted meanwhile,
and a container that ended while it was down, or whose task is deleted already, is answered from the exit records.
One that never was is told on stderr, the others are waited for all the same, and the end is 125.
""",
    examples="""\
  shimctl wait job
  shimctl wait job && echo it worked
""",
    options=_options,
    passes_code=True,
)

"""`shimctl kill`, `pause` and `resume`."""

import argparse

from daemon.ctl.commands import Command


def kill(args: argparse.Namespace) -> int:
    """`shimctl kill`."""
    from daemon import spec_parse
    from daemon.ctl import resume
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each

    number = spec_parse.parse_signal(args.signal)
    with open_daemon(args) as daemon:
        return for_each(
            args.ids, lambda name: resume.kill(daemon, name, number, exec_id=args.exec_id, everyone=args.all)
        )


def _kill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="name or number (default KILL)")
    parser.add_argument("-a", "--all", action="store_true", help="every process of the container, not only its first")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="an exec of it instead")


def pause(args: argparse.Namespace) -> int:
    """`shimctl pause`."""
    from ttrpc.api import process

    return _switch(args, "Pause", process.PAUSED)


def resume_paused(args: argparse.Namespace) -> int:
    """`shimctl resume`."""
    from ttrpc.api import process

    return _switch(args, "Resume", process.RUNNING)


def _switch(args: argparse.Namespace, method: str, wanted: int) -> int:
    from daemon.ctl import resume
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each

    with open_daemon(args) as daemon:
        return for_each(args.ids, lambda name: resume.switch(daemon, name, method, wanted))


def _ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")


KILL = Command(
    kill,
    description="""\
Send a signal to a container's first process (SIGKILL unless -s says another). A container that ends by it may be
started again by its restart policy; `shimctl stop` is the end that is wanted.
""",
    examples="""\
  shimctl kill web
  shimctl kill -s HUP web
  shimctl kill --all -s TERM web
""",
    options=_kill_options,
)
PAUSE = Command(
    pause,
    description="Freeze every process of a container: its memory stays, it uses no CPU. `resume` undoes it.\n",
    examples="  shimctl pause web\n",
    options=_ids,
)
RESUME = Command(
    resume_paused,
    description="Let the processes of a paused container go on.\n",
    examples="  shimctl resume web\n",
    options=_ids,
)

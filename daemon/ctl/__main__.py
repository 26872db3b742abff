"""shimctl: the command line of shimd. Parses in two stages, so that a command pays only for what it uses.

The first stage reads the options before the command's name; the second builds the parser of that one command. Only
then is protobuf imported, by whoever needs it. The exit codes are listed in daemon.ctl.errors and in `shimctl --help`.
"""

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import NoReturn

    from daemon.ctl.commands import Command

DEFAULT_ADDRESS = "/run/shimd/shimd.sock.ttrpc"
DEFAULT_STATE = "/run/shimd"
PATIENCE_S = 10.0
GC_THRESHOLD = 50_000  # allocations between two collections; Python's own is 700

EXIT_CODES = """\
exit codes:
  of run, exec, attach, wait (and shim exec, shim wait): the container's own; 128 + N when signal N ended it;
  123 its status is unknown; 125 shimctl or the daemon failed; 126 the program cannot be executed; 127 it is not there.
  Of every other command: 0 done, 1 failed. Always: 2 wrong usage (125 where 125 means failed), 130 Ctrl-C.
"""


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command line and return its exit code. Expected errors are told as `shimctl: …`, never by a traceback."""
    if argv is None:  # a process of our own: what we import lives as long as we do, so looking through it is in vain
        gc.set_threshold(GC_THRESHOLD)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us is gone; without this the interpreter would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(words: "list[str]") -> int:
    from daemon.ctl import commands

    try:
        early, rest = _global_options(words)
    except _WrongUsage as wrong:
        complain(*wrong.args)
        return 2
    if rest[:1] == ["help"]:
        rest, early.show_help = ([*rest[1:], "--help"] if rest[1:] else []), True
    name, entry, arguments = commands.find(rest)
    if entry is None:
        return _no_such_command(name, early)
    command = entry.load()
    failed = 125 if command.passes_code else 1
    parser = command_parser(name, command, is_read=bool({"-h", "--help"} & set(arguments)))
    try:
        args = parser.parse_args(arguments, early)
        args.command = name
    except SystemExit as stop:
        return 125 if command.passes_code and stop.code == 2 else int(stop.code or 0)
    from daemon.ctl.errors import CtlError, UsageError, sentence_of
    from daemon.spec_parse import SpecError
    from ttrpc.errors import TtrpcError

    try:
        return command.run(args)
    except BrokenPipeError:
        raise
    except (CtlError, SpecError, TtrpcError, OSError) as error:
        message, hint = sentence_of(error)
        complain(message, hint)
        if isinstance(error, (UsageError, SpecError)):
            return 125 if command.passes_code else 2
        if isinstance(error, CtlError) and error.exit_code is not None:
            return error.exit_code
        return failed


def complain(message: str, hint: str = "") -> None:
    """Say what went wrong and what to do next, on stderr."""
    sys.stdout.flush()
    for number, line in enumerate(message.rstrip().splitlines() or [""]):
        print(f"shimctl: {line}" if number == 0 else f"  {line}", file=sys.stderr)
    if hint:
        print(f"  → {hint}", file=sys.stderr)


def add_global_options(parser: "argparse.ArgumentParser") -> None:
    """The options every command takes, before its name or after it. Absent ones leave no attribute."""
    import argparse

    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--address",
        metavar="SOCKET",
        default=argparse.SUPPRESS,
        help=f"the daemon's socket (env SHIMD_ADDRESS; default {DEFAULT_ADDRESS})",
    )
    group.add_argument(
        "-n",
        "--namespace",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="namespace to work in (env SHIMD_NAMESPACE; default default)",
    )
    group.add_argument(
        "--state",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help=f"state directory, where `shim` commands find shims (env SHIMD_STATE; default {DEFAULT_STATE})",
    )
    group.add_argument(
        "--reconnect",
        metavar="SECONDS",
        type=_patience,
        default=argparse.SUPPRESS,
        help=f"how long to wait for a daemon that went away (default {PATIENCE_S:g})",
    )


def _global_options(words: "list[str]") -> "tuple[argparse.Namespace, list[str]]":
    """First stage: options before the command's name. Returns them with defaults filled in, and what follows.

    By hand, because an argparse parser for these few would cost as much as the whole second stage.
    """
    import argparse

    early = argparse.Namespace(
        address=os.environ.get("SHIMD_ADDRESS") or DEFAULT_ADDRESS,
        namespace=os.environ.get("SHIMD_NAMESPACE") or "default",
        state=os.environ.get("SHIMD_STATE") or DEFAULT_STATE,
        reconnect=PATIENCE_S,
        show_help=False,
    )
    rest = list(words)
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            early.show_help = True
            return early, []
        if option in ("-V", "--version"):
            return early, ["version", *rest]
        name = _VALUED.get(option)
        if name is None:
            raise _WrongUsage(f"no option {option!r} before a command", "shimctl --help lists them")
        if not equals:
            if not rest:
                raise _WrongUsage(f"option {option} needs a value", "")
            value = rest.pop(0)
        setattr(early, name, _seconds(value) if name == "reconnect" else value)
    return early, rest


_VALUED = {
    "--address": "address",
    "-n": "namespace",
    "--namespace": "namespace",
    "--state": "state",
    "--reconnect": "reconnect",
}


class _WrongUsage(Exception):
    """What stands before the command cannot be understood: (what, what to do)."""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # NaN is not, either
        raise _WrongUsage(f"--reconnect {text!r} is no number of seconds", "write 0 to wait for nobody, inf for ever")
    return seconds


def _patience(text: str) -> float:
    """The same after the command, where argparse tells what is wrong."""
    try:
        return _seconds(text)
    except _WrongUsage as wrong:
        raise ValueError(wrong.args[0]) from None


_patience.__name__ = "number of seconds"  # as argparse calls it in its error


def command_parser(name: str, command: "Command", *, is_read: bool = False) -> "argparse.ArgumentParser":
    """Second stage: the parser of one command, and of no other. ``is_read``: somebody will read its help."""
    import argparse

    width = _width() if is_read else 80

    class Formatter(argparse.RawDescriptionHelpFormatter):
        """With the width given, argparse need not look for it: that costs an import for every option added."""

        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=width, max_help_position=28)

    class Parser(argparse.ArgumentParser):
        """Says what is wrong as every other error is said; the whole usage is one command away."""

        def error(self, message: str) -> "NoReturn":
            complain(message, _what_was_meant(message, self) or f"{self.prog} --help")
            raise SystemExit(2)

    parser = Parser(
        prog=f"shimctl {name}",
        usage=command.usage,
        description=_filled(command.description, width) if is_read else command.description,
        epilog="examples:\n" + command.examples,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    command.options(parser)
    add_global_options(parser)
    return parser


def _what_was_meant(message: str, parser: "argparse.ArgumentParser") -> str:
    """The option most like one that there is not, or nothing."""
    import difflib

    word = message.rpartition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(word, known, 1, 0.75) if word.startswith("--") else []
    return f"did you mean {close[0]}? All options: {parser.prog} --help" if close else ""


def _width() -> int:
    import shutil

    return max(40, min(120, shutil.get_terminal_size().columns) - 2)


def _filled(text: str, width: int) -> str:
    """Paragraphs filled to the width; indented lines stay as they are."""
    import textwrap

    parts = text.strip("\n").split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)


def _no_such_command(name: str, early: "argparse.Namespace") -> int:
    from daemon.ctl import commands

    if not name or name in commands.GROUPS:
        print(overview(name), end="")
        return 0 if early.show_help or name else 2
    close = commands.nearest(name)
    complain(f"no command {name!r}", f"did you mean `shimctl {close}`?" if close else "shimctl --help lists them")
    return 2


def overview(group: str = "") -> str:
    """The help of shimctl itself, or of one group such as `shim`."""
    from daemon.ctl import commands

    lines = [f"usage: shimctl [OPTIONS] {group + ' ' if group else ''}COMMAND …", ""]
    if not group:
        lines += [
            "Runs containers, each under its own shim: the daemon may be stopped, killed or upgraded meanwhile.",
            "",
        ]
    for title, section in commands.SECTIONS.items():
        rows = [(name, entry.summary) for name, entry in section.items() if not group or name.split()[0] == group]
        if rows:
            lines += [f"{title}:", *(f"  {name:<16} {summary}" for name, summary in rows), ""]
    lines += [
        "options, before the command or after it:",
        f"  --address SOCKET     the daemon's socket (env SHIMD_ADDRESS; default {DEFAULT_ADDRESS})",
        "  -n, --namespace NAME namespace to work in (env SHIMD_NAMESPACE; default default)",
        f"  --state DIR          where `shim` commands find shims (env SHIMD_STATE; default {DEFAULT_STATE})",
        f"  --reconnect SECONDS  how long to wait for a daemon that went away (default {PATIENCE_S:g})",
        "  -h, --help           this text; `shimctl COMMAND --help` has each command's options and examples",
        "  -V, --version        versions of shimctl and the daemon",
        "",
        EXIT_CODES,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

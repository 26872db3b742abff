"""Completion for bash: the script, and the hidden command it asks for candidates."""

import argparse
import signal

from daemon.ctl.commands import COMMANDS, GROUPS, Command, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# The script asks us for everything, so that a new command or option completes without a new script. A last line of
# `:files` or `:dirs` hands over to the shell's own completion of paths.
SCRIPT = """\
# bash completion for shimctl.  Load it:  source <(shimctl completion bash)
# or for all:  shimctl completion bash > /etc/bash_completion.d/shimctl
_shimctl() {
    local current="${COMP_WORDS[COMP_CWORD]}" line
    COMPREPLY=()
    while IFS= read -r line; do
        case "$line" in
            :files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
            :dirs) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
            *=) compopt -o nospace; COMPREPLY+=("$line") ;;
            *) COMPREPLY+=("$line") ;;
        esac
    done < <("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _shimctl shimctl
"""

GLOBAL_OPTIONS = ("--address", "--namespace", "--state", "--reconnect", "--help", "--version")
FILES, DIRS = ":files", ":dirs"
# What an option's value may be, by its destination.
VALUES: dict[str, tuple[str, ...]] = {
    "rootfs": (DIRS,),
    "bundle": (DIRS,),
    "state": (DIRS,),
    "env_file": (FILES,),
    "config": (FILES,),
    "root": (DIRS,),
    "address": (FILES,),
    "program": (FILES,),
    "net": ("none", "host"),
    "restart": ("no", "on-failure", "always", "unless-stopped"),
    "log_opt": ("max-size=", "max-file=", "mode="),
    "security_opt": ("seccomp=", "no-new-privileges"),
    "mount": ("type=bind,src=", "type=tmpfs,dst="),
    "filter": ("id=", "name=", "status=", "label=", "exited=", "runtime="),
    "runtime": ("runc", "crun", "youki"),
}
# Whose positional words are ids, and in which states those are worth offering.
LIVING = ("created", "running", "paused", "pausing", "restarting", "unknown")
STATES: dict[str, tuple[str, ...] | None] = {
    "start": ("created", "exited", "no task"),
    "stop": LIVING,
    "kill": LIVING,
    "pause": ("running",),
    "resume": ("paused",),
    "exec": ("running",),
    "attach": ("created", "running", "paused"),
    "top": ("running", "paused"),
    "stats": ("running", "paused"),
    "wait": None,
    "rm": None,
    "update": None,
    "logs": None,
    "inspect": None,
}


def bash(_args: argparse.Namespace) -> int:
    """`shimctl completion bash`."""
    print(SCRIPT, end="")
    return 0


def complete(args: argparse.Namespace) -> int:
    """`shimctl __complete -- WORDS…`: candidates for the last word, one a line. Never fails aloud."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    try:
        found = candidates(words or [""], args)
    except Exception:  # noqa: BLE001 - the shell is in the middle of a line; there is nobody to tell
        return 1
    for candidate in found:
        print(candidate)
    return 0


def candidates(words: "Sequence[str]", args: argparse.Namespace) -> list[str]:
    """What may stand for the last word, given those before it."""
    *before, current = words
    before = _without_global_options(before, args)
    if not before:
        names = [name.split()[0] for name in COMMANDS]
        return _starting(current, GLOBAL_OPTIONS if current.startswith("-") else sorted(set(names)))
    name, entry, rest = find(list(before))
    if entry is None:
        if name in GROUPS and not rest:
            return _starting(current, [each.split()[1] for each in COMMANDS if each.startswith(name + " ")])
        return []
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    entry.load().options(parser)
    if "--" in rest:
        return []
    awaited = _awaiting(parser, rest[-1]) if rest else None
    if awaited is not None:
        return _starting(current, _values(awaited))
    if current.startswith("-"):
        options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        return _starting(current, sorted([*options, *GLOBAL_OPTIONS[:4], "--help"]))
    return _starting(current, _ids(name, parser, rest, args))


def _without_global_options(words: "Sequence[str]", args: argparse.Namespace) -> list[str]:
    """The words from the command's name on; options before it are obeyed, so that ids come from the right daemon."""
    left = list(words)
    while left and left[0].startswith("-"):
        option, equals, value = left.pop(0).partition("=")
        name = {"-n": "namespace", "--namespace": "namespace", "--address": "address", "--state": "state"}.get(option)
        if not equals and (name or option == "--reconnect") and left:
            value = left.pop(0)
        if name:
            setattr(args, name, value)
    return left


def _starting(current: str, choices: "Sequence[str]") -> list[str]:
    return [choice for choice in choices if choice.startswith((current, ":"))]


def _awaiting(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    """The option that takes the next word as its value."""
    for action in parser._actions:
        if word in action.option_strings and action.nargs != 0:
            return action
    return None


def _values(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest in ("signal", "stop_signal"):
        return sorted(member.name.removeprefix("SIG") for member in signal.Signals)
    if action.dest in ("cap_add", "cap_drop"):
        from daemon.spec_caps import ALL

        return ["ALL", *(name.removeprefix("CAP_") for name in ALL)]
    if action.dest == "user":
        return ["root", "nobody"]
    return list(VALUES.get(action.dest, ()))


def _ids(name: str, parser: argparse.ArgumentParser, rest: "Sequence[str]", args: argparse.Namespace) -> list[str]:
    """Containers the command could be about, without those named already. One daemon call, no patience."""
    takes_many = any(action.dest == "ids" for action in parser._actions)
    positional = [word for at, word in enumerate(rest) if _is_positional(parser, rest, at)]
    if name.startswith("shim ") and name != "shim list" and not positional:
        from daemon.ctl.bundles import bundles

        return [bundle.container_id for bundle in bundles(args.state, args.namespace)]
    if name not in STATES or (positional and not takes_many):
        return []
    from daemon.ctl.client import Daemon
    from daemon.ctl.ps import rows_of

    wanted = STATES[name]
    with Daemon(args.address, args.namespace, patience_s=0.0) as daemon:
        found = [row.id for row in rows_of(daemon, everything=True) if wanted is None or row.state in wanted]
    return [each for each in found if each not in positional]


def _is_positional(parser: argparse.ArgumentParser, rest: "Sequence[str]", at: int) -> bool:
    if rest[at].startswith("-"):
        return False
    return at == 0 or _awaiting(parser, rest[at - 1]) is None


def _complete_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER)


def _no_options(_parser: argparse.ArgumentParser) -> None:
    """`completion bash` takes none of its own."""


BASH = Command(
    bash,
    description="Print the completion script for bash: commands, options, their values, and ids of containers.\n",
    examples="""\
  source <(shimctl completion bash)
  shimctl completion bash > /etc/bash_completion.d/shimctl
""",
    options=_no_options,
)
COMPLETE = Command(complete, description="Candidates for the shell.\n", examples="", options=_complete_options)

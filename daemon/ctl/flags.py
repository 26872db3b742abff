"""The options of run and create, and the rule by which their words are an id and a command. No protobuf, no daemon."""

import argparse

from daemon.ctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# What a bundle's own config.json decides: these options would contradict it silently.
NOT_WITH_BUNDLE = {
    "user": "--user",
    "mount": "--mount",
    "volume": "--volume",
    "memory": "--memory",
    "memory_swap": "--memory-swap",
    "cpus": "--cpus",
    "cpu_shares": "--cpu-shares",
    "cpuset_cpus": "--cpuset-cpus",
    "pids_limit": "--pids-limit",
    "cap_add": "--cap-add",
    "cap_drop": "--cap-drop",
    "read_only": "--read-only",
    "privileged": "--privileged",
    "net": "--net",
    "security_opt": "--security-opt",
    "oom_score_adj": "--oom-score-adj",
    "ulimit": "--ulimit",
}
LOG_DRIVERS = ("json-file", "raw", "none")
# What happens when the log cannot be written: the container waits, or the oldest output goes. docker's words work too.
LOG_MODES = {"block": "block", "drop": "drop", "blocking": "block", "non-blocking": "drop"}
DETACH_KEYS = "ctrl-p,ctrl-q"


def container_options(parser: argparse.ArgumentParser) -> None:
    """Every option that describes a container: what it is made of, runs as, may use, and how it is kept."""
    _what(parser.add_argument_group("what to run"))
    _process(parser.add_argument_group("the process"))
    _limits(parser.add_argument_group("limits"))
    _rights(parser.add_argument_group("rights and isolation"))
    _keeping(parser.add_argument_group("record, log and restart"))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="[ID] -- COMMAND", help=argparse.SUPPRESS)


def _what(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--rootfs", metavar="DIR", help="directory that becomes the container's root")
    group.add_argument("--bundle", metavar="DIR", help="OCI bundle: DIR/config.json decides, options add to it")
    group.add_argument("--name", metavar="ID", help="the container's id; one is made up when it has none")
    group.add_argument(
        "--runtime",
        metavar="NAME",
        help="a runc-compatible program (name or path, such as crun), or a containerd runtime (io.containerd.…)",
    )


def _process(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    group.add_argument("-i", "--interactive", action="store_true", help="pass our input on to it")
    group.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="environment; NAME alone takes ours"
    )
    group.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help="environment, one NAME=VALUE a line"
    )
    group.add_argument("-w", "--cwd", "--workdir", dest="cwd", metavar="DIR", help="directory to start in")
    group.add_argument("-u", "--user", metavar="USER[:GROUP]", help="names (of the root filesystem) or numbers")
    group.add_argument("--hostname", metavar="NAME", help="default: the id")
    group.add_argument("--stop-signal", metavar="SIGNAL", help="what `stop` sends first (default SIGTERM)")
    group.add_argument(
        "--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="such as nofile=1024:4096"
    )
    group.add_argument("--oom-score-adj", type=int, metavar="N", help="-1000 (spare it) to 1000 (kill it first)")


def _limits(group: "argparse._ArgumentGroup") -> None:
    limit_options(group)
    group.add_argument("--pids-limit", type=int, metavar="N", help="processes and threads; -1 for no limit")


def limit_options(group: "argparse._ArgumentGroup") -> None:
    """Memory and CPU limits, which `update` takes as well."""
    group.add_argument("-m", "--memory", metavar="SIZE", help="such as 512m or 1.5g; 6m at least")
    group.add_argument("--memory-swap", metavar="SIZE", help="memory and swap together; -1 for no limit")
    group.add_argument("--cpus", metavar="N", help="how many CPUs' worth of time, such as 1.5")
    group.add_argument(
        "--cpu-shares", type=int, metavar="N", help="weight among containers that compete (1024 is usual)"
    )
    group.add_argument("--cpuset-cpus", metavar="LIST", help="which CPUs, such as 0-2,4")


def _rights(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="SPEC",
        help="type=bind,src=/host,dst=/inside[,ro] or type=tmpfs,dst=…",
    )
    group.add_argument(
        "-v", "--volume", action="append", default=[], metavar="/HOST:/INSIDE[:ro]", help="a bind mount, short"
    )
    group.add_argument("--read-only", action="store_true", help="the root filesystem cannot be written")
    group.add_argument("--cap-add", action="append", default=[], metavar="CAP", help="give a capability, or ALL")
    group.add_argument("--cap-drop", action="append", default=[], metavar="CAP", help="take a capability, or ALL")
    group.add_argument("--privileged", action="store_true", help="all capabilities and devices, no system-call filter")
    group.add_argument(
        "--security-opt",
        action="append",
        default=[],
        metavar="OPT",
        help="seccomp=unconfined, seccomp=PROFILE.json, no-new-privileges[=true|false]",
    )
    group.add_argument(
        "--net",
        metavar="MODE",
        help="none (its own, with nothing in it; the default), host, or a network namespace's path",
    )


def _keeping(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="label of the record")
    group.add_argument(
        "--annotation", action="append", default=[], metavar="NAME=VALUE", help="annotation of the OCI spec"
    )
    group.add_argument(
        "--restart", metavar="POLICY", default="no", help="no (default), on-failure[:N], always or unless-stopped"
    )
    group.add_argument(
        "--log-driver",
        choices=LOG_DRIVERS,
        default="json-file",
        help="json-file (default), raw bytes, or none: output goes to whoever is attached",
    )
    group.add_argument(
        "--log-opt",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="max-size=10m, max-file=3; several joined by ,",
    )


def split_words(args: argparse.Namespace, parser_words: "Sequence[str]") -> "tuple[str, list[str], list[str]]":
    """Tell an id from a command: (id or empty, command, words that were options after the id).

    The rule: the command follows ``--``, before it stands at most the id. With --name every word is the command, as
    docker has it. Without either, only a bundle needs no command, so that its one word is the id.
    Raises: UsageError that shows how to write it.
    """
    words = list(parser_words)
    if args.name and words[:1] != ["--"]:
        return args.name, words, []
    if "--" in words:
        at = words.index("--")
        before, command = words[:at], words[at + 1 :]
        if len(before) > 1 and not before[1].startswith("-"):
            raise UsageError(f"only the id may stand before --, not {' '.join(before)!r}", hint=_shape(args, before[0]))
        return (args.name or (before[0] if before else "")), command, before[1:]
    if len(words) <= 1 and args.bundle:
        return (words[0] if words else ""), [], []
    if words and words[1:] and words[1].startswith("-") and args.bundle:
        return words[0], [], words[1:]
    if not words:
        raise UsageError("nothing to run: put the command after --", hint=_shape(args, "ID"))
    raise UsageError("put the command after --, so that it cannot be taken for an id", hint=_shape(args, "ID", words))


def _shape(args: argparse.Namespace, container_id: str, words: "Sequence[str]" = ()) -> str:
    import shlex

    source = f"--bundle {args.bundle}" if args.bundle else f"--rootfs {args.rootfs or 'DIR'}"
    return f"shimctl {args.command} … {source} {container_id} -- {shlex.join(words) if words else 'sh'}"


def key_values(items: "Sequence[str]", what: str) -> dict[str, str]:
    """NAME=VALUE items as a mapping; a bare NAME has an empty value, a later one wins.

    Raises: UsageError for one without a name.
    """
    made = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name.strip():
            raise UsageError(f"{what} {item!r} has no name: write NAME=VALUE")
        made[name.strip()] = value
    return made


def check_restart(policy: str) -> str:
    """The policy itself when it is one.

    Raises: UsageError.
    """
    kind, colon, count = policy.partition(":")
    if policy in ("no", "always", "unless-stopped", "on-failure") or (
        kind == "on-failure" and colon and count.isdecimal()
    ):
        return policy
    raise UsageError(f"restart policy {policy!r} is not known: no, on-failure[:N], always or unless-stopped")


def parse_log_options(items: "Sequence[str]") -> "dict[str, Any]":
    """--log-opt values as the log URI's own: max-size in bytes, max-files. Several may be joined by commas.

    Raises: UsageError; SpecError for a size that is none.
    """
    from daemon.spec_parse import parse_memory

    made: dict[str, Any] = {}
    for name, value in key_values([part for item in items for part in item.split(",")], "log option").items():
        if name == "max-size":
            made["max-size"] = 0 if value in ("0", "-1") else parse_memory(value)
        elif name in ("max-file", "max-files"):
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"log option {name} is {value!r}: how many files to keep, 1 or more")
            made["max-files"] = int(value)
        elif name == "mode" and value in LOG_MODES:
            made["mode"] = LOG_MODES[value]
        else:
            raise UsageError(
                f"log option {name!r}={value!r} is not known: max-size=10m, max-file=3, mode=block or mode=drop"
            )
    return made

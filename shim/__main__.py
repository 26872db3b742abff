"""The shim's command line, as containerd calls it. The only reader of argv and the environment.

containerd-shim-shimd-v2 -namespace NS -id ID -address SOCKET [-publish-binary BIN] [-debug] start | delete
containerd-shim-shimd-v2 keeper | ensure-keeper
containerd-shim-shimd-v2 -info | -v
"""

import os
import sys

from shim.actions.bootstrap import read_bootstrap
from shim.launch import read_stdin
from shim.params import DEFAULT_SOCKET_DIR, Params, socket_path
from shim.version import REVISION, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What Go's flag package calls them; the value says whether a flag takes an argument.
FLAGS = {
    "namespace": True, "id": True, "address": True, "publish-binary": True, "socket": True, "bundle": True,
    "fd": True, "debug": False, "info": False, "v": False, "version": False, "h": False, "help": False,
}  # fmt: skip
TRUE, FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
USAGE = (
    "usage: containerd-shim-shimd-v2 -namespace NS -id ID -address SOCKET [-debug] start | delete; "
    "or keeper, ensure-keeper, -info, -v"
)


class UsageError(Exception):
    """A command line we do not understand."""


def parse_flags(arguments: "Sequence[str]") -> "tuple[dict[str, str], list[str]]":
    """Go's flag syntax: -name value, -name=value, one dash or two, booleans bare; ends at the first non-flag. Pure.

    Raises: UsageError.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest[0]
        if len(word) < 2 or word[0] != "-":
            break
        rest.pop(0)
        if word == "--":
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name not in FLAGS:
            raise UsageError(f"flag provided but not defined: -{name}")
        if FLAGS[name]:
            if not equals:
                if not rest:
                    raise UsageError(f"flag needs an argument: -{name}")
                value = rest.pop(0)
        else:
            value = value if equals else "true"
            if value not in TRUE + FALSE:
                raise UsageError(f'invalid boolean value "{value}" for -{name}')
            value = "true" if value in TRUE else ""
        values[name] = value
    return values, rest


def main(stdin: "bytes | None" = None, reason: str = "") -> int:
    """Blocks: `serve` for the container's life, the others briefly. Returns the exit code; errors are on stderr.

    ``stdin`` is what was read of it already, and ``reason`` why the keeper does not start this shim: see launch.py.
    """
    try:
        flags, rest = parse_flags(sys.argv[1:])
        if flags.get("v") or flags.get("version"):
            _print_version()
            return 0
        if flags.get("info"):
            return _print_info()
        if flags.get("h") or flags.get("help"):
            _say(USAGE)
            return 0
        action = rest[0] if rest else "serve"
        return run(action, flags, stdin, reason)
    except UsageError as error:
        _say(f"{error}\n{USAGE}")
        return 2


def run(action: str, flags: "dict[str, str]", stdin: "bytes | None" = None, reason: str = "") -> int:
    """One action. Raises: UsageError."""
    from ttrpc.errors import StatusError

    environment = dict(os.environ)
    if action == "start" and stdin is None:
        stdin = read_stdin()
    params = make_params(flags, _working_directory(), environment, stdin or b"")
    try:
        check(params)
    except StatusError as error:
        _say(str(error))
        return 1
    if action == "start":
        return _start(params, reason)
    if action == "delete":
        return _delete(params)
    if action == "serve" and "fd" in flags and params.socket_path:
        return _serve(int(flags["fd"]), params)
    raise UsageError(f"unknown action {action!r}" if action != "serve" else "an action is missing")


def _working_directory() -> str:
    """Where we were started, or nothing when that was removed: containerd runs `delete` once more at times."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def make_params(flags: "dict[str, str]", cwd: str, environment: "dict[str, str]", stdin: bytes = b"") -> Params:
    """What flags, environment and stdin say of a shim. Pure."""
    given = read_bootstrap(stdin, flags.get("id", ""), flags.get("namespace", ""))
    return Params(
        namespace=flags.get("namespace", ""),
        id=flags.get("id", ""),
        address=flags.get("address", ""),
        bundle=flags.get("bundle") or cwd,
        socket_path=flags.get("socket", ""),
        publish_binary=flags.get("publish-binary", ""),
        events_address=environment.get("TTRPC_ADDRESS") or given.events_address,
        socket_dir=environment.get("SHIMD_SOCKET_DIR") or given.socket_dir or DEFAULT_SOCKET_DIR,
        shim_cgroup=given.shim_cgroup,
        debug=bool(flags.get("debug")),
        environment=environment,
    )


def check(params: Params) -> None:
    """Raises: InvalidArgument for ids that are none, or a bundle that is not ours."""
    from shim.bundle import Bundle, require_id

    require_id(params.namespace, "namespace")
    require_id(params.id, "id")
    Bundle(params.bundle).check()


def _start(params: Params, reason: str) -> int:
    from shim.actions.start import StartError, start

    try:
        start(params, _serve, reason)
    except (StartError, OSError) as error:
        _say(str(error))
        return 1


def _serve(listener_fd: int, params: Params, lock_fd: int = -1) -> int:
    from shim.recovery.spares import KeeperLink
    from shim.serving.serve import serve

    return serve(listener_fd, params, KeeperLink(lock_fd=lock_fd))


def _delete(params: Params) -> int:
    """Nothing but the answer may get to stdout: the daemon parses all of it."""
    from shim.actions.delete import delete

    params.socket_path = params.socket_path or _listening_path(params)
    try:
        answer = delete(params, _say)
    except (OSError, ValueError) as error:
        _say(f"delete {params.id}: {error}")
        return 1
    os.write(1, answer)
    return 0


def _listening_path(params: Params) -> str:
    """Where the shim of this bundle listened: as it wrote itself, or else by the formula."""
    try:
        with open(os.path.join(params.bundle, "address"), encoding="utf-8") as file:
            return file.read().removeprefix("unix://")
    except (OSError, ValueError):
        return socket_path(params.socket_dir, params.address, params.namespace, params.id)


def _print_info() -> int:
    """Nothing but the answer may get to stdout."""
    from shim.actions.info import NoRuntime, runtime_info

    try:
        answer = runtime_info(read_stdin(), dict(os.environ))
    except NoRuntime as error:
        _say(str(error))
        return 1
    os.write(1, answer)
    return 0


def _print_version() -> None:
    lines = (
        f"{os.path.basename(sys.argv[0])}:",
        f"  Version:  {VERSION}",
        f"  Revision: {REVISION}",
        f"  Python version: {sys.version.split()[0]}",
    )
    os.write(1, ("\n".join(lines) + "\n\n").encode())


def _say(text: str) -> None:
    os.write(2, (text + "\n").encode(errors="replace"))


if __name__ == "__main__":
    from shim.launch import main as launch

    sys.exit(launch())

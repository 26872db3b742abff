"""What a process forked from the keeper does to become the shim of one container. Runs in the child alone."""

import gc
import os
import signal

from shim import kernel, start
from shim.__main__ import UsageError, check, make_params, parse_flags
from shim.keeper_peer import Different, World, parent_of, take_over_manners
from shim.keeper_wire import pack_answer
from shim.launch import OK, REFUSED
from shim.serve import serve
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from shim.keeper_wire import Request
    from shim.params import Params

# The daemon's address to tell its own readiness to; a shim has nothing to say there.
NOT_FOR_SHIMS = ("NOTIFY_SOCKET",)


def become_shim(request: "Request", connection: "socket.socket", peer_pid: int, world: World) -> int:
    """Be the shim that was asked for until its end; the value is the exit code. Blocks.

    Order: all of the keeper's fds but the connection are closed, its signal handlers are taken back. The address is
    sent when it works: whoever asked is bound by it as we are, and if it cannot be sent, everything is undone.
    """
    gc.enable()
    try:
        os.setsid()
        params = _understand(request)
        _settle(request, params, peer_pid, world)
        if params.shim_cgroup:
            start.join_cgroup(params.shim_cgroup, os.getpid())
        listener, _bundle_fd = start.claim(params)
    except (UsageError, StatusError, start.StartError, Different, OSError, ValueError) as error:
        _answer(connection, REFUSED, str(error))
        return 1
    try:
        address = start.publish(params, os.getpid())
        _answer(connection, OK, address)
    except OSError:
        # The asker gave up, and starts a shim of its own as soon as the bundle is let go: with this process' end.
        os.unlink(params.socket_path)
        return 1
    connection.close()
    return serve(listener.detach(), params)


def _understand(request: "Request") -> "Params":
    """The shim's parameters. Raises: UsageError, StatusError."""
    flags, rest = parse_flags(request.arguments)
    if rest != ["start"]:
        raise UsageError("the keeper only starts")
    params = make_params(flags, request.cwd, request.environment, request.stdin)
    check(params)
    return params


def _settle(request: "Request", params: "Params", peer_pid: int, world: World) -> None:
    """Make this process what the caller's own child were. Raises: Different, OSError, ValueError."""
    world.compare(World(peer_pid))
    take_over_manners(peer_pid)
    os.chdir(request.cwd)
    _set_environment(request.environment)
    for name in NOT_FOR_SHIMS:
        params.environment.pop(name, None)
    score = kernel.oom_score_adj(parent_of(peer_pid)) + 1
    kernel.raise_oom_score_adj("self", score)


def _set_environment(wanted: "dict[str, str]") -> None:
    """Have os.environ be the caller's; only what differs is touched."""
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _answer(connection: "socket.socket", outcome: bytes, text: str) -> None:
    """Raises: OSError when nobody can read it any more."""
    connection.send(pack_answer(outcome, text))


def reset_signals(handled: "tuple[int, ...]") -> None:
    """Take the keeper's handlers back and let every signal through."""
    signal.set_wakeup_fd(-1)
    for signum in handled:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

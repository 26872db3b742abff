"""The template: a process with all code in memory that does nothing but fork. Every shim is its copy.

A page one of two processes writes to becomes two. So the process shims are copied from must hardly run: it waits for a
request, forks, and waits again; the keeper beside it, its parent, does everything else. And the shim itself waits, from
its first instruction, until a helper forked from it has looked at the caller, claimed bundle and address, and answered:
what that code touches are the helper's pages, which end with it.
"""

import _signal  # type: ignore[import-not-found]  # typeshed has no such name
import _socket
import gc
import marshal
import os
import socket

from shim import kernel, start
from shim.__main__ import UsageError, check, make_params, parse_flags
from shim.keeper_memory import settle
from shim.keeper_peer import Different, World, file_mode_mask, parent_of, pass_on_manners
from shim.keeper_rehearsal import rehearse_in_memory
from shim.keeper_wire import pack_answer, pack_birth, unpack_request
from shim.launch import OK, REFUSED
from shim.params import Params
from shim.serve import serve
from shim.start import close_all_but
from ttrpc.errors import StatusError
from ttrpc.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# The daemon's address to tell its own readiness to; a shim has nothing to say there.
NOT_FOR_SHIMS = ("NOTIFY_SOCKET",)
EXPECTED = (UsageError, StatusError, start.StartError, Different, OSError)
MESSAGE_MAX_BYTES = 1 << 20
FDS_ROOM = socket.CMSG_SPACE(4 * 4)


class Template:
    """The keeper's end of a template: its pid, and the channel, which takes a request and its connection at a time."""

    __slots__ = ("channel", "pid")

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel

    def take(self, request: bytes, connection: socket.socket) -> None:
        """Raises: OSError when it is dead or stuck."""
        socket.send_fds(self.channel, [request], [connection.fileno()])

    def dismiss(self) -> None:
        """Have it end as soon as it has served what is in the channel."""
        self.channel.shutdown(socket.SHUT_WR)


def fork_template(world: World, *, rehearse_in: str = "") -> Template:
    """Start a template as our child. With ``rehearse_in``, a folder, it first rehearses, and says when it has.

    Raises: OSError when there is no room for one more process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            reset_signals()
            os.close(ours.detach())
            close_all_but({0, 1, 2, theirs.fileno()})
            gc.disable()
            gc.freeze()
            kept = prepare(theirs, rehearse_in) if rehearse_in else []
            kernel.name_process("shimd-template", "shimd-template")
            run_template(theirs, world, kept)
        finally:
            os._exit(1)
    theirs.close()
    ours.setblocking(False)
    return Template(pid, ours)


def prepare(channel: socket.socket, folder: str) -> "list[bytes]":
    """Take the time to become a better template; what is returned has to be kept."""
    words = rehearse_in_memory(folder)
    kernel.become_subreaper(False)  # as the shims it played were: what is orphaned is the keeper's
    kept = settle()
    channel.send(pack_birth(0, words))
    return kept


def reset_signals() -> None:
    """Take back what the keeper does with signals: most templates are forked from within its loop."""
    _signal.set_wakeup_fd(-1)
    for signum in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT):
        _signal.signal(signum, _signal.SIG_DFL)


def run_template(channel: socket.socket, world: World, _kept: "list[bytes]") -> "NoReturn":
    """Fork for every request until the keeper is gone. Blocks.

    A shim's parent ends at once, so that it falls to the keeper, the subreaper: nothing here is ever woken for it.
    """
    while True:
        message, ancillary, _flags, _address = channel.recvmsg(MESSAGE_MAX_BYTES, FDS_ROOM)
        if not message:
            os._exit(0)
        fd = int.from_bytes(ancillary[0][2][:4], "little")
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                be_shim(message, fd, channel, world)
            os._exit(0)
        os.close(fd)
        os.waitpid(pid, 0)


def be_shim(message: bytes, fd: int, channel: socket.socket, world: World) -> "NoReturn":
    """Be the shim that was asked for until its end. Blocks."""
    code = 1
    try:
        os.setsid()
        ours, helpers = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        helper = os.fork()
        if helper == 0:
            help_shim(message, socket.socket(fileno=fd), channel, helpers.detach(), world)
        os.close(fd)
        os.close(channel.fileno())
        os.close(helpers.detach())
        handover, ancillary, _flags, _address = ours.recvmsg(MESSAGE_MAX_BYTES, FDS_ROOM)
        os.close(ours.detach())
        os.waitpid(helper, 0)
        if handover:
            fields, mask, changes = marshal.loads(handover)  # noqa: S302 - our own helper's, and cheaper than json
            params = Params(**fields)
            os.umask(mask)
            os.chdir(params.bundle)
            for name, value in changes:
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            gc.enable()  # the shim is no template: what it makes from here on, it has to look after
            code = serve(int.from_bytes(ancillary[0][2][:4], "little"), params)
    finally:
        os._exit(code)


def help_shim(
    message: bytes, connection: socket.socket, channel: socket.socket, shim_fd: int, world: World
) -> "NoReturn":
    """The helper: prepare everything for its parent, answer the asker, tell the keeper, hand over."""
    try:
        _help(message, connection, channel, socket.socket(fileno=shim_fd), os.getppid(), world)
    except Exception as error:  # noqa: BLE001 - whatever it is: the asker starts the shim by itself, and logs this
        words = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        try:
            connection.send(pack_answer(REFUSED, words))
        except OSError:
            pass  # it gave up
    finally:
        os._exit(0)


def _help(
    message: bytes, connection: socket.socket, channel: socket.socket, shim: socket.socket, pid: int, world: World
) -> None:
    """Raises: whatever keeps the shim from being what was asked for."""
    request = unpack_request(message)
    flags, rest = parse_flags(request.arguments)
    if rest != ["start"]:
        raise UsageError("the keeper only starts")
    params = make_params(flags, request.cwd, request.environment, request.stdin)
    check(params)
    peer_pid = peer_of(connection).pid
    world.compare(World(peer_pid))
    pass_on_manners(peer_pid, pid)
    kernel.raise_oom_score_adj(pid, kernel.oom_score_adj(parent_of(peer_pid)) + 1)
    if params.shim_cgroup:
        start.join_cgroup(params.shim_cgroup, pid)
    changes = differences(dict(os.environ), request.environment)
    for name in NOT_FOR_SHIMS:
        params.environment.pop(name, None)
    handover = {name: getattr(params, name) for name in Params.__slots__}, file_mode_mask(peer_pid), changes
    listener, bundle_fd = start.claim(params)
    try:
        channel.send(pack_birth(pid, params.bundle))
        # Whoever asked is bound by the answer as we are. If it cannot be sent he gave up, and starts a shim of his own
        # as soon as the bundle is let go: when both of us have ended.
        connection.send(pack_answer(OK, start.publish(params, pid)))
    except OSError:
        os.unlink(params.socket_path)
        raise
    handover[0]["socket_path"] = params.socket_path
    socket.send_fds(shim, [marshal.dumps(handover)], [listener.fileno(), bundle_fd])


def differences(present: "dict[str, str]", wanted: "dict[str, str]") -> "list[tuple[str, str | None]]":
    """What to set, and to unset (None), to get from one environment to the other. Pure."""
    changes: list[tuple[str, str | None]] = [(name, None) for name in present if name not in wanted]
    changes += [(name, value) for name, value in wanted.items() if present.get(name) != value]
    return changes

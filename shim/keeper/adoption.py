"""A living shim that has no keeper asks to be looked after: it outlived another keeper, or was started cold.

It is not our child, and its container's processes do not fall to us: its end is known by a pidfd, and how a process of
its container ended is for its successor to find (PIDFD_GET_INFO, the pin). All else is as with a shim we forked.
"""

import fcntl
import json
import os
import select
import socket
import stat
import struct

from shim.__main__ import check
from shim.bundle import STATE_VERSION
from shim.core import pidfds
from shim.keeper.looks import read_pid
from shim.keeper.peer import Different, Manners, World, file_mode_mask
from shim.keeper.wards import Ward
from shim.keeper.wire import BadRequest
from shim.launch import ADOPT, MAGIC
from shim.params import Params
from shim.recovery.spares import LISTENER, LOCK
from ttrpc.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Source: asm-generic/socket.h, Linux 6.5.
SO_PEERPIDFD = 77


def adopt(message: bytes, fds: "list[int]", connection: socket.socket, world: World) -> Ward:
    """Look at a shim that asks; the ward it is from here on, which owns the connection and the fds then.

    Raises: one of births.REFUSALS, with nothing taken but what had to be closed.
    """
    state_version, params = unpack_adoption(message)
    if state_version != STATE_VERSION:
        raise Different(f"its state is of version {state_version}, successors forked here read {STATE_VERSION}")
    check(params)
    if len(fds) != 2:
        raise BadRequest(f"{len(fds)} fds instead of listener and lock")
    peer_pid = peer_of(connection).pid
    pidfd = peer_pidfd(connection, peer_pid)
    try:
        world.compare(World(peer_pid))
        check_identity(params, peer_pid, *fds)
        manners, mask = Manners(peer_pid), file_mode_mask(peer_pid)
        if pidfds.is_over(pidfd):
            raise ProcessLookupError(f"shim {peer_pid} has ended")
    except BaseException:
        os.close(pidfd)
        raise
    ward = Ward(peer_pid, params, mask, connection, {LISTENER: fds[0], LOCK: fds[1]})
    ward.manners, ward.pidfd = manners, pidfd
    return ward


def unpack_adoption(message: bytes) -> "tuple[Any, Params]":
    """The version of the shim's state files, and how it was invoked; what we do not know is left out.

    Raises: BadRequest. Pure.
    """
    fields = message.split(b"\0", 2)
    if len(fields) != 3 or fields[:2] != [MAGIC, ADOPT]:
        raise BadRequest("not a request of this version")
    try:
        body = json.loads(fields[2])
        given = {name: body["params"][name] for name in Params.__slots__ if name in body["params"]}
        params, state_version = Params(**given), body["state_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRequest(f"not an adoption: {error}") from None
    is_debug, environment = given.pop("debug", False), given.pop("environment", {})
    texts = list(given.values())
    if not isinstance(is_debug, bool) or not isinstance(environment, dict):
        raise BadRequest("not an adoption: debug is no boolean or environment no object")
    if not all(isinstance(text, str) and "\0" not in text for text in (*texts, *environment, *environment.values())):
        raise BadRequest("not an adoption: a parameter is no text")
    return state_version, params


def peer_pidfd(connection: socket.socket, pid: int) -> int:
    """A pidfd of exactly who connected. Raises: OSError.

    Below Linux 6.5: of who has its pid, and its end of the connection, which nobody else has, is open after that.
    """
    try:
        return int(struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0])
    except OSError:
        pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    if poll.poll(0):
        os.close(pidfd)
        raise ProcessLookupError(f"shim {pid} has hung up")
    return pidfd


def check_identity(params: Params, pid: int, listener_fd: int, lock_fd: int) -> None:
    """Whether this is the one shim of that bundle and address. Raises: Different, OSError."""
    here = os.stat(params.bundle)
    found = os.fstat(lock_fd)
    if not stat.S_ISDIR(found.st_mode) or (found.st_dev, found.st_ino) != (here.st_dev, here.st_ino):
        raise Different(f"its lock is not that of {params.bundle}")
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours is its own lock, if it has it
    except BlockingIOError:
        raise Different(f"another shim holds {params.bundle}") from None
    if read_pid(params.bundle) not in (0, pid):
        raise Different(f"the shim of {params.bundle} is another process than {pid}")
    copy_fd = os.dup(listener_fd)
    try:
        listener = socket.socket(fileno=copy_fd)
    except OSError:
        os.close(copy_fd)
        raise
    with listener:
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listener.family != socket.AF_UNIX or not is_listening or listener.getsockname() != params.socket_path:
            raise Different(f"its listener is not at {params.socket_path}")

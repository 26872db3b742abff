"""What a shim left that asked to be looked after and died before its request was read: its spares, for whoever follows.

A keeper that is being started listens at once and imports for half a second. A shim that is killed meanwhile has sent
its spares together with its request, and the kernel keeps them in the connection. No successor is raised for it, for
whether a dead process was of our world nobody can say any more; but a `start` in its bundle is given what it left.
"""

import os
import socket
import struct

from shim.__main__ import check
from shim.bundle import STATE_VERSION
from shim.core import pidfds
from shim.keeper.adoption import SO_PEERPIDFD, check_identity, unpack_adoption
from shim.keeper.looks import read_pid
from shim.keeper.peer import Different
from shim.keeper.wards import Ward
from shim.keeper.wire import BadRequest
from shim.recovery.spares import CONNECTION
from ttrpc.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.loop import Loop, Timer

# A daemon sees at once that a shim is dead, and runs `start`; a busy one takes its time.
KEPT_S = 30.0


class Estates:
    """Owns the fds that were left, by bundle, each until it is taken or for KEPT_S."""

    __slots__ = ("_left", "_loop")

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop
        self._left: dict[str, tuple[dict[str, int], Timer]] = {}

    def leave(self, message: bytes, fds: "list[int]", connection: socket.socket) -> bool:
        """Keep what a dead shim sent; False when it lives. What came with the request stays the caller's.

        Raises: BadRequest, Different, UsageError, OSError for what is not of the shim of that bundle.
        """
        pid = peer_of(connection).pid
        if not is_dead(connection, pid):
            return False
        state_version, params = unpack_adoption(message)
        check(params)
        if len(fds) != 2 or state_version != STATE_VERSION:
            raise BadRequest("nothing that can be kept for its successor")
        check_identity(params, pid, *fds)
        if read_pid(params.bundle) != pid:
            raise Different(f"the shim of {params.bundle} was another process than {pid}")
        dead = Ward(pid, params, 0, connection, {})
        dead.read()
        self._forget(params.bundle)
        left = {name: dead.spares.pop(name) for name in tuple(dead.spares) if not name.startswith(CONNECTION)}
        dead.close()
        if left:
            self._left[params.bundle] = left, self._loop.call_later(KEPT_S, lambda: self._forget(params.bundle))
        return True

    def take(self, bundle: str) -> "dict[str, int]":
        """What was left in a bundle; the caller's from here on."""
        left, timer = self._left.pop(bundle, ({}, None))
        if timer is not None:
            timer.cancel()
        return left

    def _forget(self, bundle: str) -> None:
        for fd in self.take(bundle).values():
            os.close(fd)

    def close(self) -> None:
        for bundle in tuple(self._left):
            self._forget(bundle)


def is_dead(connection: socket.socket, pid: int) -> bool:
    """Whether exactly the process that connected has ended, as far as can be known. Raises: OSError."""
    try:
        pidfd = int(struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0])
    except OSError:  # before Linux 6.5; or it was reaped, before 6.16
        try:
            os.close(os.pidfd_open(pid))
        except ProcessLookupError:
            return True
        return False
    try:
        return pidfds.is_over(pidfd)
    finally:
        os.close(pidfd)

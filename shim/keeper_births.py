"""What the keeper does to answer a `start`: look at the caller, claim what the shim needs, make a copy that shim."""

import os

from shim import kernel, start
from shim.__main__ import UsageError, check, make_params, parse_flags
from shim.keeper_peer import Different, World, file_mode_mask, parent_of, pass_on_manners
from shim.keeper_template import hand_over
from shim.keeper_wire import BadRequest, pack_answer, unpack_request
from shim.launch import OK
from ttrpc.errors import StatusError
from ttrpc.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from shim.keeper_template import Changes

# What can be the matter with a request, or with who sends it; the asker then starts the shim by itself, and logs this.
REFUSALS = (BadRequest, UsageError, StatusError, start.StartError, Different, OSError)
# The daemon's address to tell its own readiness to; a shim has nothing to say there.
NOT_FOR_SHIMS = ("NOTIFY_SOCKET",)


class Birth:
    """A shim that was asked for and may be: bundle and address are its own. Owns their fds until they are given away.

    Raises, when made: one of REFUSALS, with nothing left open.
    """

    def __init__(self, message: bytes, connection: "socket.socket", world: World) -> None:
        request = unpack_request(message)
        flags, rest = parse_flags(request.arguments)
        if rest != ["start"]:
            raise UsageError("the keeper only starts")
        self.connection = connection
        self.params = make_params(flags, request.cwd, request.environment, request.stdin)
        check(self.params)
        self.peer_pid = peer_of(connection).pid
        world.compare(World(self.peer_pid))
        self.mask = file_mode_mask(self.peer_pid)
        self.changes = differences(dict(os.environ), request.environment)
        for name in NOT_FOR_SHIMS:
            self.params.environment.pop(name, None)
        self.listener, self.bundle_fd = start.claim(self.params)

    def complete(self, spare: "socket.socket", pid: int) -> None:
        """Make a waiting copy this shim, and answer. The answer binds both: if it cannot be sent, nothing was done.

        Raises: one of REFUSALS.
        """
        try:
            pass_on_manners(self.peer_pid, pid)
            kernel.raise_oom_score_adj(pid, kernel.oom_score_adj(parent_of(self.peer_pid)) + 1)
            if self.params.shim_cgroup:
                start.join_cgroup(self.params.shim_cgroup, pid)
            self.connection.send(pack_answer(OK, start.publish(self.params, pid)))
        except BaseException:
            self.abandon()
            raise
        try:
            hand_over(spare, self.params, self.mask, self.changes, [self.listener.fileno(), self.bundle_fd])
        except OSError:  # it was killed just now: whoever dials finds nobody, as with any shim that is killed
            os.unlink(self.params.socket_path)
        finally:
            self._close()

    def abandon(self) -> None:
        """Leave bundle and address to whoever starts the shim instead."""
        os.unlink(self.params.socket_path)
        self._close()

    def _close(self) -> None:
        self.listener.close()
        os.close(self.bundle_fd)


def differences(present: "dict[str, str]", wanted: "dict[str, str]") -> "Changes":
    """What to set, and to unset (None), to get from one environment to the other. Pure."""
    changes: Changes = [(name, None) for name in present if name not in wanted]
    changes += [(name, value) for name, value in wanted.items() if present.get(name) != value]
    return changes

"""What the keeper does to answer a `start`: look at the caller, claim what the shim needs, make a copy that shim."""

import os

from shim import faults
from shim.__main__ import UsageError, check, make_params, parse_flags
from shim.actions import start
from shim.core import kernel
from shim.keeper.peer import Different, Manners, World, file_mode_mask, parent_of
from shim.keeper.template import hand_over
from shim.keeper.wards import Ward, is_passed
from shim.keeper.wire import BadRequest, pack_answer, unpack_request
from shim.launch import HANDED, OK, REFUSED
from shim.recovery.spares import LISTENER, LOCK
from ttrpc.errors import StatusError
from ttrpc.peer import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from shim.keeper.copy import Changes
    from shim.keeper.estates import Estates

# What can be the matter with a request, or with who sends it; the asker then starts the shim by itself, and logs this.
REFUSALS = (BadRequest, UsageError, StatusError, start.StartError, Different, OSError)
# The daemon's address to tell its own readiness to; a shim has nothing to say there.
NOT_FOR_SHIMS = ("NOTIFY_SOCKET",)


class Birth:
    """A shim that was asked for and may be: bundle and address are its own. Owns their fds until they are given away.

    Raises, when made: one of REFUSALS, with nothing left open.
    """

    def __init__(self, message: bytes, connection: "socket.socket", world: World, estates: "Estates") -> None:
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
        self.estate = estates.take(self.params.bundle)  # of a shim that died there before it was looked after
        faults.point("keeper.claimed")

    def complete(self, spare: "socket.socket", pid: int) -> "Ward | None":
        """Make a waiting copy this shim, and answer. The answer binds both: if it cannot be sent, nothing was done.

        The value is the shim to look after, with the fds. Raises: one of REFUSALS.
        """
        try:
            Manners(self.peer_pid).pass_on(pid)
            kernel.raise_oom_score_adj(pid, kernel.oom_score_adj(parent_of(self.peer_pid)) + 1)
            if self.params.shim_cgroup:
                start.join_cgroup(self.params.shim_cgroup, pid)
            answer = pack_answer(OK, start.publish(self.params, pid))
            faults.point("keeper.published")
            self.connection.send(answer)
            faults.point("keeper.answered")
        except BaseException:
            self.abandon()
            raise
        try:
            passed = {name: fd for name, fd in self.estate.items() if is_passed(name)}
            fds = [self.listener.fileno(), self.bundle_fd, *passed.values()]
            held = (list(self.estate), list(passed), False) if self.estate else None
            hand_over(spare, self.params, self.mask, self.changes, fds, held)
            faults.point("keeper.handed")
            self._say_handed()
        except OSError:  # it was killed just now: who asked starts another by itself
            self.abandon()
            return None
        finally:
            self.connection.close()
        spares = {LISTENER: self.listener.detach(), LOCK: self.bundle_fd, **self.estate}
        return Ward(pid, self.params, self.mask, spare, spares)

    def _say_handed(self) -> None:
        try:
            self.connection.send(HANDED)
        except OSError:
            pass  # it has its answer

    def give_up(self, why: BaseException) -> None:
        """Tell who asked that nothing will come of it."""
        self.abandon()
        self.refuse(why)

    def refuse(self, why: BaseException) -> None:
        refuse(self.connection, why)
        self.connection.close()

    def abandon(self) -> None:
        """Leave bundle and address to whoever starts the shim instead."""
        os.unlink(self.params.socket_path)
        self.listener.close()
        for fd in (self.bundle_fd, *self.estate.values()):
            os.close(fd)


class Succession:
    """A shim that died and is to be followed by a copy. Nobody else waits for it, so it can wait long."""

    def __init__(self, ward: "Ward", report: "Callable[[str], None]", again: "Callable[[Ward], None]") -> None:
        self.ward = ward
        self._report = report
        self._again = again

    def complete(self, spare: "socket.socket", pid: int) -> "Ward | None":
        """Make a waiting copy the successor. Raises: one of REFUSALS."""
        ward = self.ward
        if not ward.wants_successor():
            ward.let_go()
            return None
        self._adapt(pid)
        start.publish_pid(ward.bundle, pid)
        changes = differences(dict(os.environ), ward.params.environment)
        passed = ward.passed
        fds = [ward.spares[LISTENER], ward.spares[LOCK], *passed.values()]
        ward.succeed(spare, pid)
        faults.point("keeper.succession_begun")
        try:
            hand_over(spare, ward.params, ward.mask, changes, fds, (list(ward.spares), list(passed), True))
            faults.point("keeper.succession_handed")
        except OSError:
            pass  # it was killed just now: that is told, and then there will be another
        return ward

    def _adapt(self, pid: int) -> None:
        """Give it what the dead one had; where that fails it is better off without than not there."""
        ward = self.ward
        try:
            if ward.params.shim_cgroup:
                start.join_cgroup(ward.params.shim_cgroup, pid)
            if ward.manners is not None:
                ward.manners.pass_on(pid)
                kernel.raise_oom_score_adj(pid, ward.manners.oom_score)
        except (OSError, ValueError) as error:
            self._report(f"shim {pid} of {ward.bundle} is not as the one before it was: {error}")

    def refuse(self, why: BaseException) -> None:
        """A copy could not be made the successor: nobody but us can raise one, and what hinders it may pass."""
        self._report(f"no successor in {self.ward.bundle} yet: {why}")
        self._again(self.ward)

    def give_up(self, why: BaseException) -> None:
        """There will be none."""
        self._report(f"no successor in {self.ward.bundle}: {why}")
        self.ward.close()


def differences(present: "dict[str, str]", wanted: "dict[str, str]") -> "Changes":
    """What to set, and to unset (None), to get from one environment to the other. Pure."""
    changes: Changes = [(name, None) for name in present if name not in wanted]
    changes += [(name, value) for name, value in wanted.items() if present.get(name) != value]
    return changes


def refuse(connection: "socket.socket", error: BaseException) -> None:
    """Tell who asked why it has to start the shim by itself."""
    try:
        connection.send(pack_answer(REFUSED, str(error)))
    except OSError:
        pass  # it gave up, and does

"""What the keeper does: it forks for who asks, and reaps. One poll loop, no threads, a bounded number of clients."""

import errno
import os
import signal
import socket
import time

from shim import faults
from shim.core import kernel, pidfds
from shim.core.loop import READ, Loop
from shim.core.pulse import begin_pulse
from shim.core.shimlog import ShimLog
from shim.core.wakeup import Wakeup
from shim.keeper.adoption import adopt
from shim.keeper.births import REFUSALS, Birth, Succession, refuse
from shim.keeper.copy import MESSAGE_MAX_BYTES
from shim.keeper.estates import Estates
from shim.keeper.looks import children, has_children, inode_of, next_ended, younger_sibling
from shim.keeper.nursery import Nursery
from shim.keeper.orphans import Orphans, has_strangers
from shim.keeper.peer import Manners
from shim.keeper.pulse import PulseWatch, limits_of
from shim.keeper.wards import PAUSE_MAX_S, Ward, is_relieved, take_fds
from shim.keeper.watchers import Watchers
from shim.keeper.wire import pack_answer, verb_of
from shim.launch import ADOPT, OK, STALE, WATCH
from shim.recovery.spares import OTHER_CODE
from ttrpc.api.pulse import OF_KEEPER
from ttrpc.peer import check_peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.core.loop import Timer
    from shim.keeper.code import Edition
    from shim.keeper.distant import Distant
    from shim.keeper.peer import World

# A client sends its request as soon as it is connected; this many may be in between, each for so long.
CLIENTS_MAX, REQUEST_S = 64, 5.0
ACCEPTS_PER_TURN = 16
FDS_ROOM = socket.CMSG_SPACE(8 * 4)  # of a request; an adoption has two
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NO_ROOM_S = 0.1
# How often a keeper looks whether it can still be reached, and how long one with a younger sibling waits to be asked.
LOOK_S, UNUSED_S = 60.0, 600.0
# Of one that retires: how often it looks whether anybody is left.
AGAIN_S = 1.0


class Keeper:
    """Owns the listener, its path while that is its own, the clients, and every child from fork to wait.

    `shims` are our children by pid, `adopted` those that some other keeper or a `start` had forked.
    A keeper that is `retiring` forks no more, and ends with its last child.
    """

    def __init__(self, listener_fd: int, path: str, edition: "Edition", world: "World", log: ShimLog) -> None:
        kernel.name_process("shimd-keeper", f"shimd-keeper {path}")
        self.path = path
        self.edition = edition
        self.log = log
        self.world = world
        self.orphans = Orphans(kernel.boot_id())
        self.shims: dict[int, Ward] = {}
        self.adopted: dict[int, Ward] = {}
        self.resting = 0  # successors that are raised a little later
        self.clients: dict[socket.socket, Timer] = {}
        self.is_retiring = False
        self.asked_at_s = time.monotonic()
        self.inode = inode_of(path)
        self.listener = socket.socket(fileno=listener_fd)
        self.listener.setblocking(False)
        self.listener.set_inheritable(False)
        self.loop = Loop()
        self.watchers = Watchers(self.loop)
        self.distant: Distant | None = None  # only where it is needed: see `_adopt`
        self.loop.on_error = lambda error: self.log.failure("a callback fails", error)
        self.wakeup = Wakeup(
            self.loop, {signal.SIGCHLD: self.reap, signal.SIGTERM: self._told_to_end, signal.SIGINT: self._told_to_end}
        )
        self.loop.register(self.listener.fileno(), READ, self._accept)
        look_after = lambda ward: self._watch(ward, self.shims)  # noqa: E731 - one that was born, or a successor
        self.nursery = Nursery(self.loop, os.path.dirname(path), self.log, look_after)
        self.estates = Estates(self.loop)
        self.pulses = PulseWatch(self.loop, self.wards, self.log, limits_of(os.environ))
        # After the first template is forked, which has no part in it.
        self.loop.pulse = begin_pulse(os.path.dirname(path), log, os.path.basename(path) + OF_KEEPER)
        self.loop.call_later(LOOK_S, self._look)

    def wards(self) -> "dict[int, Ward]":
        """Every shim that lives and is looked after, by its pid."""
        return {**self.shims, **self.adopted}

    def run(self) -> None:
        """Blocks: until told to end, or no longer wanted."""
        self.loop.run()

    # --- requests

    def _accept(self, _mask: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._rest()
                return
            if len(self.clients) >= CLIENTS_MAX:
                self._give_up(next(iter(self.clients)))  # who has said nothing for longest
            connection.setblocking(False)
            self._expect(connection)
            self._read(connection)

    def _rest(self) -> None:
        """The listener stays readable while we cannot accept: without a pause the loop would spin."""
        fd = self.listener.fileno()
        self.loop.modify(fd, 0)
        self.loop.call_later(NO_ROOM_S, lambda: self.loop.modify(fd, READ))

    def _expect(self, connection: socket.socket) -> None:
        self.clients[connection] = self.loop.call_later(REQUEST_S, lambda: self._give_up(connection))
        self.loop.register(connection.fileno(), READ, lambda _mask: self._read(connection))

    def _give_up(self, connection: socket.socket) -> None:
        self._take(connection)
        connection.close()

    def _take(self, connection: socket.socket) -> None:
        """A client's turn has come, or it is given up: nothing more is expected of it."""
        self.clients.pop(connection).cancel()
        self.loop.unregister(connection.fileno())

    def _read(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            message, ancillary, flags, _ = connection.recvmsg(MESSAGE_MAX_BYTES, FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
            fds = take_fds(ancillary)
            if flags & socket.MSG_CTRUNC:
                message = b""  # more than anybody sends, or we have no fds left: who hangs up is asked again
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._take(connection)
        is_kept = False
        try:
            is_kept = bool(message) and self._serve(message, fds, connection)
        finally:
            if not is_kept:
                connection.close()
            for fd in fds:  # who took them has emptied the list
                os.close(fd)

    def _serve(self, message: bytes, fds: "list[int]", connection: socket.socket) -> bool:
        """Answer a request, or have it answered as soon as there is a copy to be the shim.

        The value is true when the connection lives on, and is whose it is by then.
        """
        self.asked_at_s, verb = time.monotonic(), verb_of(message)
        try:
            check_peer(connection)
        except OSError as error:
            self.log.warning(str(error))
            return False
        try:
            changed = self.edition.changed()
            if changed:
                self._retire(f"{changed} has changed")
            if self.is_retiring:
                connection.send(pack_answer(STALE, "it is out of date"))
                return False
            if verb == WATCH:
                return self.watchers.let(connection)
            if verb == ADOPT:
                if self.estates.leave(message, fds, connection):
                    return False
                return self._adopt(adopt(message, fds, connection, self.world), fds)
            birth = Birth(message, connection, self.world, self.estates)
        except REFUSALS as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM and verb == ADOPT:
                self.log.warning(f"no room for one more shim: {error}")  # a shim that is refused stays away for long
            else:
                refuse(connection, error)
            return False
        self.nursery.expect(birth)
        return True

    # --- shims

    def _adopt(self, ward: Ward, fds: "list[int]") -> bool:
        """Look after a shim that is not our child, or is and had lost us. The answer binds both.

        Order: who gave up asking has shut its reading half, and then nothing was done.
        """
        try:
            ward.channel.send(pack_answer(OK, str(os.getpid())))
        except OSError as error:
            self.log.warning(f"shim {ward.pid} of {ward.bundle} does not want to be looked after any more: {error}")
            ward.spares.clear()  # the caller's still
            ward.close()
            return True
        fds.clear()
        earlier = self.adopted.get(ward.pid)
        if earlier is not None and earlier.bundle != ward.bundle:
            self._adopted_ended(earlier)  # just now, and its pid is another's already
        is_child = ward.pid in self.shims
        before = self.shims.pop(ward.pid, None) or self.adopted.pop(ward.pid, None)
        if before is not None:
            self.loop.unregister(before.pidfd)
            self.loop.unregister(before.channel.fileno())
            before.close()
        if is_child:
            ward.forget_pidfd()
        else:
            self.adopted[ward.pid] = ward
            if (distant := self._distant(ward)) is not None:
                distant.adopted(ward.pid)
            self.loop.register(ward.pidfd, READ, lambda _mask: self._adopted_ended(ward))
        self._watch(ward, self.shims if is_child else self.adopted)
        ward.is_new = True
        return True

    def _adopted_ended(self, ward: Ward) -> None:
        """How, the kernel tells later or never: who did not say before that it ends was killed."""
        self.loop.unregister(ward.pidfd)
        del self.adopted[ward.pid]
        ward.forget_pidfd()
        self._shim_ended(ward, signal.SIGKILL, is_adopted=True)
        self.loop.call_soon(self._end_if_done)

    def _watch(self, ward: Ward, among: "dict[int, Ward]") -> None:
        ward.report, ward.judge = self.log.warning, self._judge_relief
        among[ward.pid] = ward
        self.loop.register(ward.channel.fileno(), READ, lambda _mask: self._hear(ward))

    def _distant(self, ward: Ward) -> "Distant | None":
        """What an adopted shim leaves is no child of ours, nor what one left when no keeper lived.

        Where no pidfd tells how that ends, the connector may.
        """
        if self.distant is not None or pidfds.keeps_exit_status():
            return self.distant
        if ward.pid in self.adopted or has_strangers(ward.bundle, ward.pid):
            from shim.keeper.distant import Distant  # never with a newer kernel

            self.distant = Distant(self.loop, self.orphans, self.log)
        return self.distant

    def _hear(self, ward: Ward) -> None:
        """A shim says something, or is dead: then SIGCHLD says more."""
        was_settled = ward.is_settled
        if not ward.read():
            self.loop.unregister(ward.channel.fileno())
        elif ward.is_settled and not was_settled:  # from here on nothing of it is lost with it
            if (distant := self._distant(ward)) is not None:
                distant.settled(ward.pid, ward.bundle)
            if ward.is_new:
                ward.is_new = False
                self.log.info(f"looking after shim {ward.pid} of {ward.bundle}, which was not forked here")

    def _judge_relief(self, code: str) -> str:
        """Why a shim of this code is not to be followed by a copy of ours; empty when it may be."""
        if code != os.path.basename(self.path) or self.is_retiring or self.edition.changed():
            return OTHER_CODE
        return "" if self.nursery.has_rehearsed else "its copies would be large, too: the rehearsal is not over"

    def _shim_ended(self, ward: Ward, status: int, *, is_adopted: bool = False) -> None:
        """A child's: its container's processes are ours now, and itself is a zombie still."""
        self.loop.unregister(ward.channel.fileno())
        ward.read()
        ward.channel.close()
        self.orphans.expect(ward.pid, ward.bundle)
        if self.distant is not None:
            self.distant.died(ward.pid, ward.bundle)
        if is_relieved(status):
            self.log.info(f"shim {ward.pid} of {ward.bundle} is relieved")
        elif status != 0:
            self.log.warning(f"shim {ward.pid} of {ward.bundle} ended with wait status {status}")
        is_wanted = status != 0 and ward.wants_successor()
        pause_s = ward.next_pause_s(status) if is_wanted else None
        if pause_s is None:
            if is_wanted:
                self.log.error(f"no shim can take over in {ward.bundle}: it is given up")
            ward.let_go()
            return
        self.log.info(f"raising a successor in {ward.bundle}")
        faults.point("keeper.shim_ended")
        if not is_adopted:  # else its pid may be another's by now
            try:
                ward.manners = Manners(ward.pid)
            except OSError as error:
                self.log.warning(f"shim {ward.pid} of {ward.bundle} left no limits: {error}")
        self._raise_in(pause_s, ward)

    def _raise_in(self, pause_s: float, ward: Ward) -> None:
        self.resting += 1
        self.loop.call_later(pause_s, lambda: self._raise(ward))

    def _raise(self, ward: Ward) -> None:
        self.resting -= 1
        self.nursery.expect_successor(Succession(ward, self.log.error, lambda ward: self._raise_in(PAUSE_MAX_S, ward)))

    # --- children

    def reap(self) -> None:
        """Take every child that ended: shims first, so that it is known whose processes the others were."""
        while (found := next_ended(self.shims)) is not None:
            pid, status = found
            ward = self.shims.pop(pid, None)
            if ward is not None:
                self._shim_ended(ward, status)
            elif not self.nursery.ended(pid, status):
                self._note(pid, status)
                faults.point("keeper.noted")
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        self.loop.call_soon(self._end_if_done)

    def _note(self, pid: int, status: int) -> None:
        try:
            bundle = self.orphans.note(pid, status)
        except OSError as error:
            self.log.error(f"how process {pid} ended, wait status {status}, cannot be noted: {error}")
            return
        if bundle:
            self.log.info(f"process {pid} of {bundle}, whose shim is dead, ended with wait status {status}")

    # --- the end

    def _told_to_end(self) -> None:
        self.log.info("told to end")
        self.unlink()
        self.loop.stop()

    def _retire(self, why: str) -> None:
        if not self.is_retiring:
            self.log.info(f"retiring with {len(self.shims) + len(self.adopted)} shims: {why}")
            self.is_retiring = True
            self.unlink()
            self.watchers.close()
            self._look_again()

    def _look_again(self) -> None:
        self._end_if_done()
        self.loop.call_later(AGAIN_S, self._look_again)

    def _end_if_done(self) -> None:
        """When retiring, end with the last child; copies wait as long as there may be a successor to raise."""
        is_busy = self.shims or self.adopted or self.resting or self.nursery.births
        if not (is_busy or self.is_retiring) and inode_of(self.path) != self.inode:
            self._retire("its last shim has ended, and its socket is gone, or another's")
        if not self.is_retiring:
            return
        if not is_busy and children() <= self.nursery.pids():
            self.nursery.dismiss()
        if not (has_children() or self.adopted):
            self.log.info("the last child is gone")
            self.loop.stop()

    def _look(self) -> None:
        """Retire when nobody can reach us, or nobody wants to since a younger keeper is there."""
        self.loop.call_later(LOOK_S, self._look)
        if inode_of(self.path) != self.inode:
            self._retire("its socket is gone, or another's")
        elif time.monotonic() - self.asked_at_s > UNUSED_S and not self._is_wanted():
            younger = younger_sibling(self.path)
            if younger:
                self._retire(f"unused since {younger} is there")

    def _is_wanted(self) -> bool:
        return bool(self.watchers.count or self.adopted) or not children() <= self.nursery.pids()

    def unlink(self) -> None:
        """Take the socket's name away, if it is still our socket's."""
        if self.inode is not None and inode_of(self.path) == self.inode:
            os.unlink(self.path)

    def close(self) -> None:
        self.unlink()
        self.wakeup.close()
        self.listener.close()
        self.nursery.close()
        self.estates.close()
        for ward in self.wards().values():
            ward.close()
        for connection in self.clients:
            connection.close()
        self.watchers.close()
        if self.distant is not None:
            self.distant.close()
        self.loop.close()
        if self.loop.pulse is not None:
            self.loop.pulse.close()
        self.log.close()

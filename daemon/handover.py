"""What passes from one daemon process to the next, and the channel it passes through.

The channel is a socketpair of records, each a JSON object with descriptors (SCM_RIGHTS); the one that comes has
inherited its end, named by SHIMD_HANDOVER_FD. Whoever finds the channel closed knows that the other process
is dead: the old one ends the new one before it closes its end, and the new one closes its own after that. After the
last word it means: the old one has named the new one to its supervisor, which listens to nobody else from then on.

    old → new   hello      versions, upgrade's id, listening sockets, locks
    new → old   ready      everything is imported and read; it waits for the store. Or: refused, with a reason
    old → new   take       the store is closed; connections (a memfd of JSON, then their descriptors)
    new → old   loaded     it has the store and could accept
    old → new   commit     the old one has let go of the connections
    new → old   serving    it accepts; until this word the old one would take everything back

The locks are never let go: both processes hold the same open file descriptions (flock(2)), and the kernel gives them
back when the last of the two is gone.
"""

import array
import dataclasses
import json
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from daemon.config import Config
from daemon.lock import DirectoryLock
from daemon.server import Listener, close_listeners
from ttrpc.aio import KeptConnection

if TYPE_CHECKING:
    from ttrpc.api.shimd import UpgradeRecord

PROTOCOL = 1
FD_VARIABLE = "SHIMD_HANDOVER_FD"
MAX_MESSAGE_BYTES = 64 << 10
MAX_FDS = 250  # SCM_MAX_FD is 253: unix(7)
_FDS_ROOM = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Gone(Exception):
    """The other process is dead: its end of the channel is closed."""


class Misunderstood(Exception):
    """The other process says what we do not know; the message names it."""


@dataclasses.dataclass
class Seat:
    """Owns what makes a process the daemon of its directories, but the store, which is opened by path.

    ``record`` is the upgrade this process came by, or the last that failed in it.
    """

    locks: list[DirectoryLock]
    listeners: list[Listener]
    kept: list[KeptConnection] = dataclasses.field(default_factory=list)
    record: "UpgradeRecord | None" = None

    @classmethod
    def claim(cls, config: Config) -> "Seat":
        """Take the directories; the sockets are to be opened once the store is. Raises: AlreadyRunning; OSError."""
        locks: list[DirectoryLock] = []
        try:
            for directory in dict.fromkeys((config.state_dir, config.root_dir)):
                locks.append(DirectoryLock(directory))
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return cls(locks, [])

    def sign(self) -> None:
        """Say in the locks that it is this process that holds them."""
        for lock in self.locks:
            lock.sign()

    def release(self, *, is_given: bool) -> None:
        """Let go of everything; what was given to a successor stays its own. Idempotent."""
        close_listeners(self.listeners, is_given=is_given)
        self.close_kept()
        for lock in self.locks:
            lock.release()
        self.locks, self.listeners = [], []

    def close_kept(self) -> None:
        for kept in self.kept:
            kept.close()
        self.kept = []


class Channel:
    """One end. Owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    async def send(self, word: str, fds: "list[int] | tuple[int, ...]" = (), **values: Any) -> None:
        """Raises: Gone."""
        data = json.dumps({"word": word, **values}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            try:
                self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)
            except OSError as error:
                raise Gone(str(error)) from None

    async def receive(self, *words: str) -> tuple[dict[str, Any], list[int]]:
        """The next record, which must be one of these words; the caller owns its descriptors.

        Raises: Gone; Misunderstood.
        """
        while True:
            try:
                # Not socket.recv_fds: CPython 3.11 leaves its flags out, and what we start would inherit the locks.
                data, ancillary, _, _ = self.sock.recvmsg(MAX_MESSAGE_BYTES, _FDS_ROOM, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            except OSError as error:
                raise Gone(str(error)) from None
        if not data:
            raise Gone("it has ended")
        fds = _fds_of(ancillary)
        try:
            message = json.loads(data)
            word = message["word"]
        except (ValueError, KeyError, TypeError):
            message, word = {}, "?"
        if word not in words:
            for fd in fds:
                os.close(fd)
            raise Misunderstood(f"expected {' or '.join(words)}, not {data[:200]!r}")
        return message, fds


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """What came along (unix(7), SCM_RIGHTS), ours from here on."""
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    return list(fds)


async def send_kept(channel: Channel, kept: list[KeptConnection], **values: Any) -> None:
    """`take`: every connection. Raises: Gone; OSError."""
    fd = os.memfd_create("shimd-connections", os.MFD_CLOEXEC)
    try:
        _write_whole(fd, json.dumps([one.as_json() for one in kept]).encode())
        await channel.send("take", [fd], **values)
    finally:
        os.close(fd)
    fds = [one.fd for one in kept]
    for at in range(0, len(fds), MAX_FDS):
        await channel.send("connections", fds[at : at + MAX_FDS])


def _write_whole(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _read_states(memfd: int) -> list[dict[str, Any]]:
    with open(memfd, "rb") as file:
        file.seek(0)
        states = json.loads(file.read())
    if not isinstance(states, list):
        raise Misunderstood("the connections are no list")
    return states


async def receive_kept(channel: Channel) -> tuple[dict[str, Any], list[KeptConnection]]:
    """The other side of `send_kept`. Raises: Gone; Misunderstood."""
    message, (memfd,) = await channel.receive("take")
    states = _read_states(memfd)
    fds: list[int] = []
    try:
        while len(fds) < len(states):
            fds += (await channel.receive("connections"))[1]
        return message, [KeptConnection.from_json(state, fd) for state, fd in zip(states, fds, strict=True)]
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, (KeyError, TypeError, ValueError)):
            raise Misunderstood(f"a connection that cannot be read: {error!r}") from None
        raise


def inherited_channel(environ: Mapping[str, str]) -> Channel | None:
    """Our end, when a daemon started us to take its place."""
    text = environ.get(FD_VARIABLE, "")
    if not text.isdigit():
        return None
    os.set_inheritable(int(text), False)
    return Channel(socket.socket(fileno=int(text)))

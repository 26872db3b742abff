"""The new process's side of an upgrade: everything but the store is made ready while the old daemon serves."""

import contextlib
import logging
import os
import socket
import time
from typing import Any

import trio

from daemon import faults
from daemon.config import Config
from daemon.handover import PROTOCOL, Channel, Gone, Misunderstood, Seat, receive_kept
from daemon.lock import DirectoryLock
from daemon.server import Listener
from daemon.version import VERSION
from ttrpc.api import shimd, wkt

log = logging.getLogger(__name__)


class NotTakenOver(Exception):
    """We were started to take a daemon's place and it did not come to that; the message says why."""


class Predecessor:
    """The daemon whose place we take. Owns our end of the channel, until `finish`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.record = shimd.UpgradeRecord()
        self._closed_at_ns = 0

    async def meet(self, config: Config) -> Seat:
        """Get what can be shared: locks and listening sockets. Then wait until we may take the rest, and take it.

        An old daemon that dies from here on is replaced all the same: to give up it would end us first.
        Blocks: as long as the old daemon wants to serve on. Raises: NotTakenOver.
        """
        seat = Seat([], [])
        try:
            hello, fds = await self._channel.receive("hello")
            seat, self.record = _read_hello(config, hello, fds)
            self.record.to_version, self.record.to_pid = VERSION, os.getpid()
            faults.point("successor.began")
            await self._channel.send("ready", version=VERSION, pid=os.getpid())
        except Gone:
            seat.release(is_given=True)
            raise NotTakenOver("the daemon that was to be replaced is gone") from None
        except (Misunderstood, OSError, KeyError, ValueError) as error:
            await self._refuse(str(error))
            raise NotTakenOver(f"it cannot take the place of the daemon that runs: {error}") from None
        faults.point("successor.ready")
        await self._take(seat)
        seat.record = self.record
        faults.point("successor.taken")
        return seat

    async def _refuse(self, reason: str) -> None:
        with contextlib.suppress(Gone):
            await self._channel.send("refused", reason=reason)

    async def _take(self, seat: Seat) -> None:
        self._closed_at_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        try:
            take, seat.kept = await receive_kept(self._channel)
            self._closed_at_ns = int(take["closed_at_ns"])
        except Gone:
            log.warning("the daemon that was to be replaced has died; going on in its place")

    async def confirm(self, seat: Seat) -> None:
        """We could serve now: returns when we shall, because the old daemon says so or has died."""
        faults.point("successor.loaded")
        with contextlib.suppress(Gone):
            await self._channel.send("loaded")
            await self._channel.receive("commit")
        faults.point("successor.committed")
        seat.sign()

    async def finish(self) -> None:
        """We accept: the wait of those who connected meanwhile is over."""
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.record.done = True
        self.record.gap_ns = max(0, now_ns - self._closed_at_ns)
        self.record.at.CopyFrom(wkt.timestamp(time.time_ns()))
        with contextlib.suppress(Gone):
            await self._channel.send("serving", gap_ns=self.record.gap_ns)
        faults.point("successor.serving")

    async def wait_told(self) -> None:
        """Wait until the old daemon has said its last word, to its supervisor too. Its end of the channel says so."""
        try:
            with contextlib.suppress(Gone, Misunderstood):
                await self._channel.receive()
        finally:
            self._channel.close()

    async def wait_gone(self) -> None:
        """Wait until the old daemon has ended. We are its supervisor's child then, as it was."""
        if os.getppid() != self.record.from_pid:
            return
        fd = os.pidfd_open(self.record.from_pid)  # no stranger's: it would have to be our parent
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def _read_hello(config: Config, hello: "dict[str, Any]", fds: list[int]) -> "tuple[Seat, shimd.UpgradeRecord]":
    """What the hello brought. Raises: see `_seat`; then its descriptors are closed."""
    try:
        record = shimd.UpgradeRecord.FromString(bytes.fromhex(hello["record"]))
        return _seat(config, hello, fds), record
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _seat(config: Config, hello: dict[str, object], fds: list[int]) -> Seat:
    """The place it describes. Raises: Misunderstood, for one when the configuration is about other directories."""
    if hello["protocol"] != PROTOCOL:
        raise Misunderstood(f"protocol {hello['protocol']}, this program knows {PROTOCOL}")
    places, kinds = hello["locks"], hello["listeners"]
    assert isinstance(places, list)
    assert isinstance(kinds, list)
    if len(fds) != len(places) + len(kinds):
        raise Misunderstood(f"{len(fds)} descriptors for {len(places)} locks and {len(kinds)} listeners")
    locks = [DirectoryLock.adopted(path, fd) for path, fd in zip(places, fds, strict=False)]
    for directory in dict.fromkeys((config.state_dir, config.root_dir)):
        if not any(lock.is_of(directory) for lock in locks):
            raise Misunderstood(
                f"it does not own {directory}: a daemon with other directories is started beside it, not in its place"
            )
    listeners = [
        Listener(socket.socket(fileno=fd), is_ours=is_ours, is_stored=is_stored)
        for (is_ours, is_stored), fd in zip(kinds, fds[len(locks) :], strict=True)
    ]
    return Seat(locks, listeners)

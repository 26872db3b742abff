"""The kernel's process connector: it tells how every process of the host ends, nobody's child of ours among them.

Only to who is in the initial user, PID and network namespace and may CAP_NET_ADMIN; parents since Linux 4.18. A filter
in the kernel keeps back what nobody here asks for, so that a busy host does not wake us. Source: linux/cn_proc.h,
drivers/connector/cn_proc.c, netlink(7), socket(7), linux/filter.h.
"""

import errno
import os
import socket
import struct
import sys
from array import array

from shim import faults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC, _NLMSG_DONE = 11, 1, 1, 3
_LISTEN, _IGNORE = 1, 2
_SOL_NETLINK, _NETLINK_BROADCAST_ERROR, _NETLINK_NO_ENOBUFS = 270, 4, 5
SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
NONE, EXIT = 0, 0x80000000
# Of a message: nlmsghdr 16, cn_msg 20 (its acknowledgement number at 28), proc_event: what, cpu, time, and of an exit
# pid, tgid, code, signal, parent's pid and tgid; of an answer the error where else the pid is.
_ACK_AT, _WHAT_AT, _TIME_AT, _PID_AT, _TGID_AT, _CODE_AT, _PARENT_AT, _BYTES = 28, 36, 44, 52, 56, 60, 72, 76
# What the kernel keeps for us while we are busy, or stopped: some 10,000 ends.
BUFFER_BYTES = 4 * 1024 * 1024
# A classic filter has 4,096 instructions at most; two for each parent.
PARENTS_MAX = 2000
# linux/bpf_common.h. A word is loaded as big-endian, whatever it is.
_LOAD, _TO_X, _IF_EQUAL, _IF_EQUAL_X, _RETURN = 0x20, 0x07, 0x15, 0x1D, 0x06
_ALL, _NOTHING = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)


class End:
    """One thread ended, its process's first (pid is tgid) or another: exit code as the kernel has it, monotonic ns."""

    __slots__ = ("at_ns", "code", "parent", "pid", "tgid")

    def __init__(self, pid: int, tgid: int, code: int, parent: int, at_ns: int) -> None:
        self.pid = pid
        self.tgid = tgid
        self.code = code
        self.parent = parent  # the process; 0 when it was reaped already
        self.at_ns = at_ns


class Connector:
    """Owns two sockets: one that gets the ends, and one that only fills up.

    Kernels from 6.6 on, until that was mended, stop telling anything once an event was delivered to nobody, for which
    they take one that our filter held back. A full socket that asks for errors makes it another outcome (ENOBUFS).
    """

    def __init__(self) -> None:
        """Raises: OSError with what is missing."""
        if faults.lacks("connector"):
            raise OSError(errno.EPERM, "a test wants it so")
        self._socket = _bound()
        try:
            self._full = _bound()
            try:
                _ask_for_room(self._socket)
                self._full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                for option in (_NETLINK_BROADCAST_ERROR, _NETLINK_NO_ENOBUFS):
                    self._full.setsockopt(_SOL_NETLINK, option, 1)
                self.listen_for(())
                self._say(_LISTEN)
                self._await_answer()
            except BaseException:
                self._full.close()
                raise
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def listen_for(self, parents: "Collection[int]") -> None:
        """Whose children's ends are told from now on. Raises: OSError; then all stays as it was."""
        code = array("B", program(parents))
        address, size = code.buffer_info()
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", size // 8, address))

    def read(self) -> "End | None":
        """The next end; None when there is no more for now.

        Raises: OSError, ENOBUFS: there were more than could be kept, and some are lost.
        """
        while True:
            try:
                message, (sender, _groups) = self._socket.recvfrom(2 * _BYTES)
            except BlockingIOError:
                return None
            end = parse(message) if sender == 0 else None
            if end is not None:
                return end

    def close(self) -> None:
        """Order: who does not say so is counted as a listener for ever, by kernels before 6.6."""
        try:
            self._say(_IGNORE)
        except OSError:
            pass
        self._socket.close()
        self._full.close()

    def _say(self, word: int) -> None:
        body = struct.pack("=IIIIHHI", _CN_IDX_PROC, _CN_VAL_PROC, 0, os.getpid(), 4, 0, word)
        header = struct.pack("=IHHII", 16 + len(body), _NLMSG_DONE, 0, 0, 0)
        self._socket.sendto(header + body, (0, 0))

    def _await_answer(self) -> None:
        """The kernel has answered before the call that asked came back. No answer: we are in a namespace of our own."""
        while True:
            try:
                message, (sender, _groups) = self._socket.recvfrom(2 * _BYTES)
            except BlockingIOError:
                raise OSError(errno.EPERM, "not in the initial user and PID namespace") from None
            if sender != 0 or len(message) < _BYTES:
                continue
            what, acknowledged, code = (struct.unpack_from("=I", message, at)[0] for at in (_WHAT_AT, _ACK_AT, _PID_AT))
            if what == NONE and acknowledged == os.getpid() + 1:
                if code:
                    raise OSError(code, os.strerror(code))
                return


def parse(message: bytes) -> "End | None":
    """What a message tells; None when it is not about an end. Pure."""
    if len(message) < _BYTES or struct.unpack_from("=I", message, _WHAT_AT)[0] != EXIT:
        return None
    pid, tgid, code = struct.unpack_from("=iiI", message, _PID_AT)
    (parent,), (at_ns,) = struct.unpack_from("=i", message, _PARENT_AT), struct.unpack_from("=Q", message, _TIME_AT)
    return End(pid, tgid, code, parent, at_ns)


def program(parents: "Collection[int]") -> bytes:
    """A classic BPF program: the ends of processes that are children of these, and answers.

    Of other threads than the first those that end with a code, which contradicts another of their process; they have no
    parent by then. A process that was reaped meanwhile has none either, and is let through. Pure.
    """
    steps = [(_LOAD, 0, 0, _WHAT_AT), (_IF_EQUAL, 0, 1, _as_loaded(NONE)), _ALL]
    steps += [(_IF_EQUAL, 1, 0, _as_loaded(EXIT)), _NOTHING]
    steps += [(_LOAD, 0, 0, _PID_AT), (_TO_X, 0, 0, 0), (_LOAD, 0, 0, _TGID_AT), (_IF_EQUAL_X, 4, 0, 0)]
    steps += [(_LOAD, 0, 0, _CODE_AT), (_IF_EQUAL, 0, 1, 0), _NOTHING, _ALL]
    if len(parents) > PARENTS_MAX:
        steps.append(_ALL)
    else:
        steps.append((_LOAD, 0, 0, _PARENT_AT))
        for parent in (0, *parents):
            steps += [(_IF_EQUAL, 0, 1, _as_loaded(parent)), _ALL]
        steps.append(_NOTHING)
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _as_loaded(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, sys.byteorder), "big")


def _bound() -> socket.socket:
    """Raises: OSError (EPERM, EPROTONOSUPPORT)."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made = socket.socket(socket.AF_NETLINK, kind, _NETLINK_CONNECTOR)
    try:
        made.bind((0, _CN_IDX_PROC))
    except BaseException:
        made.close()
        raise
    return made


def _ask_for_room(made: socket.socket) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except OSError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)

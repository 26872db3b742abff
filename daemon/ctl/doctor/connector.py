"""Whether the kernel's process connector tells a keeper here how processes end that are nobody's child of ours.

Only where no pidfd tells it later is it needed; what a keeper does with it is in shim/keeper/connector.py.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from daemon.ctl.doctor.host import TELLS_EXIT, Feature

# linux/netlink.h, linux/connector.h, linux/cn_proc.h. Of an answer: the acknowledgement number, and its error.
_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC, _NLMSG_DONE, _LISTEN, _IGNORE = 11, 1, 1, 3, 1, 2
_ACK_AT, _WHAT_AT, _ERROR_AT, _BYTES, _NONE = 28, 36, 52, 76, 0


def refusal() -> str:
    """Why not; empty when it tells. Asked as a keeper asks, and ended at once."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_NETLINK, kind, _CONNECTOR) as asking:
            asking.bind((0, _CN_IDX_PROC))
            _say(asking, _LISTEN)
            try:
                code = _answer(asking)
            finally:
                _say(asking, _IGNORE)
    except ConnectionRefusedError:
        return "not in the host's own network namespace, or no kernel with CONFIG_CONNECTOR"
    except BlockingIOError:
        return "not in the host's own user and PID namespace, or no kernel with CONFIG_PROC_EVENTS"
    except OSError as error:
        return error.strerror or str(error)
    return os.strerror(code) if code else ""


def _say(asking: socket.socket, word: int) -> None:
    body = struct.pack("=IIIIHHI", _CN_IDX_PROC, _CN_VAL_PROC, 0, os.getpid(), 4, 0, word)
    asking.sendto(struct.pack("=IHHII", 16 + len(body), _NLMSG_DONE, 0, 0, 0) + body, (0, 0))


def _answer(asking: socket.socket) -> int:
    """The error the kernel answers, 0 for none; it has before the question came back. Raises: BlockingIOError."""
    while True:
        message = asking.recv(2 * _BYTES)
        if len(message) >= _BYTES:
            acknowledged, what, code = (
                struct.unpack_from("=I", message, at)[0] for at in (_ACK_AT, _WHAT_AT, _ERROR_AT)
            )
            if what == _NONE and acknowledged == os.getpid() + 1:
                return int(code)


def feature(others: Iterable[Feature], ask: Callable[[], str] = refusal) -> Iterator[Feature]:
    """Told only where no pidfd tells how a process ended: elsewhere nobody misses it."""
    if not any(one.name == TELLS_EXIT and one.is_present for one in others):
        why = ask()
        yield Feature(
            "process connector", not why, why,
            "what a killed shim leaves that the keeper did not fork (started cold, or before another keeper died) ends "
            "in an unknown status",
            "run shimd in the host's own user, PID and network namespace, with CAP_NET_ADMIN; a kernel of 6.15 or "
            "later does without",
        )  # fmt: skip

"""A copy of the template: it waits to be told whose shim it is, from its first instruction, and is that until its end.

The keeper has looked at the caller of `start` by then, claimed bundle and address, and answered. Written with what
costs few pages, for they are the shim's for life; and in steps that the rehearsal takes too.
"""

import _socket
import gc
import marshal
import os
import socket

from shim.params import Params
from shim.recovery.spares import KeeperLink
from shim.serving.serve import serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TypeAlias

    Changes: TypeAlias = "list[tuple[str, str | None]]"
    Held: TypeAlias = "tuple[list[str], list[str], bool] | None"

MESSAGE_MAX_BYTES = 1 << 20
FDS_MAX = 253  # SCM_MAX_FD of the kernel: more come in no message
FDS_ROOM = socket.CMSG_SPACE(FDS_MAX * 4)
MORE = b"more"  # fds that belong to the handover which follows


def be_copy(fd: int, channel_fd: int, *, is_large: bool) -> "NoReturn":
    """Wait to be told which container's shim this is, and be that until its end; or end with the keeper. Blocks."""
    code = 1
    try:
        os.close(channel_fd)
        os.setsid()
        os.write(fd, b"%d" % os.getpid())
        handover, raw = receive(fd)
        if handover:
            params, link, listener_fd = put_on(handover, raw, fd)
            link.is_large = is_large
            gc.enable()  # the shim is no template: what it makes from here on it has to look after
            code = serve(listener_fd, params, link)
    finally:
        os._exit(code)


def receive(fd: int) -> "tuple[bytes, bytes]":
    """The handover, empty if there is none, and the numbers of all fds that came. Blocks. ``fd`` stays open.

    They are nobody's but the shim's: a log program that inherited listener and lock would hold them for its own life.
    """
    pair = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
    raw = b""
    while True:
        handover, ancillary, _flags, _address = pair.recvmsg(MESSAGE_MAX_BYTES, FDS_ROOM, _socket.MSG_CMSG_CLOEXEC)
        if ancillary:
            raw += ancillary[0][2]
        if handover != MORE:
            break
    pair.detach()
    return handover, raw


def pack(params: Params, mask: int, changes: "Changes", held: "Held") -> bytes:
    """A handover, as `put_on` takes it: with marshal, for that is cheaper to read than json, and the keeper's own."""
    return marshal.dumps(({name: getattr(params, name) for name in Params.__slots__}, mask, changes, held))


def put_on(handover: bytes, raw: bytes, fd: int) -> "tuple[Params, KeeperLink, int]":
    """Become what the handover says: umask, directory and environment. Returns what `serve` is told.

    ``fd``, the pair, goes on as the connection to the keeper.
    """
    fields, mask, changes, held = marshal.loads(handover)  # noqa: S302 - see pack
    params = Params(**fields)
    os.umask(mask)
    os.chdir(params.bundle)
    for name, value in changes:
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    listener_fd, lock_fd, *more = (int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4))
    if held is None:
        return params, KeeperLink(fd, lock_fd=lock_fd), listener_fd
    names, passed, is_raised = held
    spares = {**dict.fromkeys(names, -1), **dict(zip(passed, more, strict=True))}
    return params, KeeperLink(fd, spares, lock_fd=lock_fd, is_raised=is_raised), listener_fd

"""Who is at the other end of a Unix socket, and whether we talk to them."""

import os
import socket
import struct

_ucred = struct.Struct("3i")


class Peer:
    """Process, user and group of the other end, as the kernel recorded them when it connected (or listened)."""

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid

    def __repr__(self) -> str:
        return f"pid {self.pid}, uid {self.uid}, gid {self.gid}"


def peer_of(sock: socket.socket) -> Peer:
    """Source: unix(7), SO_PEERCRED. The pid is 0 when it is of another pid namespace. Raises: OSError."""
    return Peer(*_ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size)))


def check_peer(sock: socket.socket) -> Peer:
    """The peer, if its user and group are both ours, as containerd's own ttrpc demands it.

    Raises: PermissionError for anyone else, OSError for a socket that has no such peer.
    """
    peer = peer_of(sock)
    if peer.uid != os.geteuid() or peer.gid != os.getegid():
        raise PermissionError(f"peer ({peer}) is not our own user and group; connection refused")
    return peer

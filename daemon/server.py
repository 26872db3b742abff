"""Sockets: where clients connect. Private before anybody can reach them; systemd's are taken over when it has them."""

import contextlib
import dataclasses
import logging
import os
import socket
import stat
from collections.abc import Mapping

from daemon.config import Config
from daemon.notify import STORED_NAME, Notifier, inherited_listeners

log = logging.getLogger(__name__)

BACKLOG = 1024


class SocketTaken(Exception):
    """Something that is no stale socket of ours is at the path; the message says what."""


@dataclasses.dataclass
class Listener:
    """Owns a listening socket. ``is_ours``: we made it, its path goes when we end. ``is_stored``: systemd keeps a copy
    for the next start (FDSTORE=1), so that connections wait for it.
    """

    sock: socket.socket
    is_ours: bool
    is_stored: bool = False

    @property
    def outlives_us(self) -> bool:
        return self.is_stored or not self.is_ours


def open_listeners(config: Config, environ: Mapping[str, str], notifier: Notifier) -> list[Listener]:
    """The listening sockets: systemd's, those it keeps of our last run, or our own at the configured path.

    Call it only while holding the directories' locks: a socket found there is stale then, and is replaced.
    Raises: SocketTaken, OSError.
    """
    listeners = []
    for sock, name in inherited_listeners(environ):
        if name != STORED_NAME:
            listeners.append(Listener(sock, is_ours=False))
        elif sock.getsockname() == config.socket_path and os.path.exists(config.socket_path):
            listeners.append(Listener(sock, is_ours=True, is_stored=True))
        else:  # of a configuration that is no more
            notifier.tell(FDSTOREREMOVE=1, FDNAME=STORED_NAME)
            sock.close()
    if listeners:
        return listeners
    made = Listener(_listen(config), is_ours=True)
    made.is_stored = notifier.store(made.sock, STORED_NAME)
    return [made]


def _listen(config: Config) -> socket.socket:
    path = config.socket_path
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The umask applies to bind: at no moment is the socket open to more than its mode.
        before = os.umask(0o777 & ~config.socket.mode)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, config.socket.mode)
        if (config.socket.uid, config.socket.gid) != (os.geteuid(), os.getegid()):
            os.chown(path, config.socket.uid, config.socket.gid)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketTaken(f"{path} is there and is no socket: move it away or set another socket path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            log.debug("replacing a stale socket", extra={"path": path})
        except OSError as error:
            raise SocketTaken(f"{path} cannot be checked: {error.strerror}") from None
        else:
            raise SocketTaken(f"{path} is served by another program: stop it or set another socket path")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def close_listeners(listeners: list[Listener], *, is_given: bool = False) -> None:
    """Close. A socket of our own is removed; one that systemd keeps, or a successor was given, stays where it is."""
    for listener in listeners:
        path = listener.sock.getsockname()
        listener.sock.close()
        if not (is_given or listener.outlives_us):
            with contextlib.suppress(OSError):
                os.unlink(path)

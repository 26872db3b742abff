"""Sockets: where clients connect. Private before anybody can reach them; systemd's are taken over when it has them."""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Mapping

from daemon.config import Config
from daemon.notify import inherited_listeners

log = logging.getLogger(__name__)

BACKLOG = 1024


class SocketTaken(Exception):
    """Something that is no stale socket of ours is at the path; the message says what."""


def open_listeners(config: Config, environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets: systemd's, or our own at the configured path.

    Call it only while holding the directories' locks: a socket found there is stale then, and is replaced.
    Raises: SocketTaken, OSError.
    """
    inherited = inherited_listeners(environ)
    if inherited:
        return inherited
    return [_listen(config)]


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


def close_listeners(config: Config, listeners: list[socket.socket]) -> None:
    """Close; a socket of our own is removed, one of systemd's stays for the next start."""
    for listener in listeners:
        is_ours = listener.getsockname() == config.socket_path
        listener.close()
        if is_ours and not os.environ.get("LISTEN_FDS"):
            with contextlib.suppress(OSError):
                os.unlink(config.socket_path)

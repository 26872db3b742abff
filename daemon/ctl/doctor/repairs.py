"""What --fix does. Each makes sure once more that what it touches is ours and dead, then acts, or raises OSError.

Between the look and the repair a container may have been started: whoever comes back to life is left alone.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterable

from daemon import identity
from daemon.ctl.doctor import store
from daemon.ctl.doctor.facts import (
    Bundle,
    Facts,
    Key,
    addresses_in,
    is_empty_cgroup,
    is_refused,
    owner_of_pin,
    pin_owners,
)
from daemon.identity import Identity
from daemon.shims import bundle
from ttrpc.errors import StatusError

RUNTIME_S = 30.0
END_S = 5.0


class Changed(OSError):
    """What was found is not so any more; nothing was done."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EBUSY, "it is in use again", path)


def if_off_record(facts: Facts, key: Key, act: "Callable[[], None]") -> "Callable[[], None]":
    """A repair of what is no container's, for as long as the store has none of this name: a row is written before all
    else, and by then what was seen here may be that container's.
    """

    def checked() -> None:
        if store.has_row(facts.config.database_path, key):
            raise Changed("/".join(key))
        act()

    return checked


def end_shim(shim: Identity) -> None:
    """Ask a shim to end, which one that has a container ignores, and wait for it. Blocks: END_S at most."""
    pidfd = identity.open_pidfd(shim)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], END_S)[0]:
            raise OSError(errno.EBUSY, "it does not end", f"pid {shim.pid}")
    finally:
        os.close(pidfd)


def go_on(shim: Identity) -> None:
    identity.kill(shim, signal.SIGCONT)


def remove_bundle(found: Bundle) -> None:
    """Remove a bundle, and what its runtime has left, if nobody lives in it. Blocks: for the runtime."""
    if found.has_shim or found.has_container or next(identity.working_in(found.path), None) is not None:
        raise Changed(found.path)
    bundle.doom(found.path)
    name = found.key[1]
    if os.path.isdir(os.path.join(found.runtime_root, name)):
        argv = ["runc", "--root", found.runtime_root, "delete", "--force", name]
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUNTIME_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # its cgroup may stay; the bundle goes all the same
    _remove(found.path)
    if found.socket_path and os.path.lexists(found.socket_path):
        remove_socket(found.socket_path)


def remove_rest(path: str) -> None:
    """Go on with a removal that was cut."""
    if next(identity.working_in(path), None) is not None:
        raise Changed(path)
    bundle.remove_doomed([path])
    if os.path.lexists(path):
        raise OSError(errno.EBUSY, "it cannot be removed", path)


def _remove(path: str) -> None:
    try:
        bundle.remove(path)
    except StatusError as failure:
        raise OSError(errno.EBUSY, failure.message, path) from None


def unmount(point: str) -> None:
    """Detach a mount, and what is mounted below it."""
    try:
        bundle.unmount(point)
    except StatusError as failure:
        raise OSError(errno.EBUSY, failure.message, point) from None


def remove_socket(path: str) -> None:
    """Unlink it, if still nobody listens there."""
    if not is_refused(path, socket.SOCK_STREAM):
        raise Changed(path)
    os.unlink(path)


def remove_keeper_socket(path: str) -> None:
    """Order: under the lock that whoever binds there takes."""
    lock_fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_refused(path, socket.SOCK_SEQPACKET):
            raise Changed(path)
        os.unlink(path)
    finally:
        os.close(lock_fd)


def remove_pin(path: str, bundles_dir: str) -> None:
    """Take a pin away, and the file system of the pins with its last. Order: under the lock shims take for it, and so
    not while one of a container just created is made.
    """
    directory = os.path.dirname(path)
    lock_fd = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if owner_of_pin(path) in pin_owners(addresses_in(bundles_dir)):
            raise Changed(path)
        unmount(path)
        os.unlink(path)
        if not os.listdir(directory):
            unmount(directory)
            os.rmdir(directory)
    finally:
        os.close(lock_fd)


def remove_cgroups(paths: "Iterable[str]") -> None:
    """Remove cgroups and those below them, none if one has a process; the kernel refuses one that has."""
    for path in paths:
        if os.path.isdir(path) and not is_empty_cgroup(path):
            raise Changed(path)
    for path in paths:
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass  # one hierarchy is mounted in several places


def restrict(path: str, mode: int) -> None:
    """Take rights away, and give none. A link is not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, "it is a link", path)
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(found.st_mode) & mode)
    finally:
        os.close(fd)

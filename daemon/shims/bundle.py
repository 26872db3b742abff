"""Bundle directories: made before a shim starts, removed when nothing of the container is left. Layout: containerd's.

<state>/io.containerd.runtime.v2.task/<namespace>/<id>/config.json, rootfs/, …     the rest is the shim's
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import stat

from daemon import identity
from daemon.errors import already_exists, failed_precondition, from_os_error
from ttrpc.errors import StatusError

INCARNATION = "shimd.incarnation"  # file: which task of its container this is, where its shim does not tell
EXECS = "shimd.execs"  # directory: one empty file for each exec of a foreign shim whose exit is not stored yet
# In a bundle that is going to be removed: no keeper raises a shim there any more (shim/SHIM.md).
DOOMED = "doomed"
MNT_DETACH = 0x2  # umount2(2)
_libc = ctypes.CDLL(None, use_errno=True)


def make(path: str, spec: bytes) -> None:
    """Make the directory with the runtime spec in it.

    Raises: AlreadyExists when something of that name is left; ResourceExhausted on a full disk.
    """
    try:
        _make(path, spec)
    except OSError as error:
        raise from_os_error(f"bundle {path} cannot be made", error) from None


def _make(path: str, spec: bytes) -> None:
    # 0711: a container's remapped root must be able to reach its rootfs, and only that.
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise already_exists(f"bundle {path} exists: a container that is not recorded uses it, or used it") from None
    os.mkdir(os.path.join(path, "rootfs"), 0o711)
    # 0600: a spec holds the environment, and that may hold secrets.
    fd = os.open(os.path.join(path, "config.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(spec)


def rewrite_spec(path: str, spec: bytes) -> None:
    """Give the next run of a container in this bundle another spec, whole or not at all. Raises: OSError."""
    name = os.path.join(path, "config.json")
    with open(name, "rb") as file:
        if file.read() == spec:
            return
    fresh = f"{name}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(spec)
    os.rename(fresh, name)


def prepare_foreign(path: str) -> int:
    """What a shim that is not ours needs besides: our note of which task this is, and the log it writes to.

    Returns the log's fd; while it is open the shim finds a reader. Raises: OSError.
    """
    with open(os.path.join(path, INCARNATION), "x", encoding="ascii") as file:
        file.write(secrets.token_hex(16))
    os.mkdir(os.path.join(path, EXECS), 0o700)
    os.mkfifo(os.path.join(path, "log"), 0o700)
    log_fd = open_log(path)
    assert log_fd is not None, path
    return log_fd


def open_log(path: str) -> int | None:
    """The FIFO a foreign shim logs to, read-write so that it never ends; None where there is none. To be closed."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(os.path.join(path, "log"), flags)
    except OSError:
        return None
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def remove(path: str) -> None:
    """Remove a bundle, first what is mounted in it; a missing one is fine. Idempotent, and may be cut at any point.

    Blocks: on the disk; call it in a thread.
    Raises: FailedPrecondition while something stays mounted there: deleting through a mount would delete what is
    mounted. What `from_os_error` makes of the rest.
    """
    unmount(path)
    # The name is free at once, however long the removal takes; the next start clears what a cut removal leaves.
    doomed = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(4)}")
    try:
        os.rename(path, doomed)
        _remove_tree(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(f"bundle {path} cannot be removed", error) from None


def doom(path: str) -> None:
    """Say that the bundle is going to be removed, so that no shim is raised for one that is killed. Idempotent."""
    with contextlib.suppress(OSError):
        os.close(os.open(os.path.join(path, DOOMED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def unmount(path: str) -> None:
    """Detach every mount at or below the path, deepest first.

    Raises: FailedPrecondition naming what would not go.
    """
    for _ in range(64):  # mounts may be stacked on one point; more than this is somebody mounting as we unmount
        mounts = identity.mounts_under(path)
        if not mounts:
            return
        for point in mounts:
            _libc.umount2(os.fsencode(point), MNT_DETACH)
    raise failed_precondition(f"{mounts[0]} stays mounted: unmount it, then delete again")


def _remove_tree(path: str) -> None:
    still_mounted = identity.mounts_under(path)
    if still_mounted:
        raise failed_precondition(f"{still_mounted[0]} is mounted: unmount it, then delete again")
    shutil.rmtree(path)


def list_bundles(directory: str) -> list[tuple[str, str]]:
    """(namespace, id) of every bundle there is."""
    return sorted(key for key in _all(directory) if not key[1].startswith("."))


def list_doomed(directory: str) -> list[str]:
    """Paths of what a removal that was cut has left. Ask before anything is removed in this run."""
    return [os.path.join(directory, *key) for key in _all(directory) if key[1].startswith(".")]


def remove_doomed(paths: list[str]) -> None:
    """Go on with removals that were cut. What will not go stays for the next start."""
    for path in paths:
        with contextlib.suppress(OSError, StatusError):
            unmount(path)
            _remove_tree(path)


def _all(directory: str) -> list[tuple[str, str]]:
    return [(namespace, name) for namespace in _entries(directory) for name in _entries(f"{directory}/{namespace}")]


def _entries(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def read_small(path: str, name: str) -> str:
    """A small text file of a bundle; empty when it is not there or is no plain file."""
    try:
        fd = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(1 << 16).decode("utf-8", "replace").strip()

"""`start`: listen, fork the serving process, write the bundle's address files, print the address. Imports little.

containerd reads our stdout and stderr, one pipe, to its end: nothing else may be printed, and the serving process must
not hold it.
"""

import errno
import fcntl
import os
import socket
import time

from shim.params import Params, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# sockaddr_un.sun_path holds 108 bytes (unix(7)); containerd's shim leaves room for two.
SOCKET_PATH_MAX = 106
BACKLOG = 128
PROBE_S = 0.5
# How long a keeper that is slow, or a shim it forked too late for its `start`, may hold the bundle until it knows that
# nobody waits for it any more. Both do nothing else first: what takes time is a machine with more to do than it can.
LATE_SHIM_S = 5.0
CGROUP_MOUNTS = "/sys/fs/cgroup"


class StartError(Exception):
    """Why there is no shim; printed as it is."""


def start(params: Params, serve: "Callable[[int, Params, int], int]", reason: str = "") -> "NoReturn":
    """Start the shim of one container: once the address works it is printed, and this process ends.

    ``serve`` is called in the child only, and imports the rest there. ``reason`` is why the keeper did not do it: the
    shim's log gets it. Raises: StartError.
    """
    listener, bundle_fd = claim(params, LATE_SHIM_S if reason else 0.0)
    pid = 0
    try:
        score = parent_oom_score_adj()
        pid = os.fork()
        if pid == 0:
            _become_shim(listener, bundle_fd, params, score, serve, reason)
        if params.shim_cgroup:
            join_cgroup(params.shim_cgroup, pid)
        if params.environment.get("SCHED_CORE"):
            from shim.actions.schedcore import isolate

            isolate(pid)  # before anybody knows the address, so before there is a container
        address = publish(params, pid)
    except OSError as error:
        if pid:
            os.kill(pid, 9)  # ours and not waited for, so it is still this process; it serves nobody yet
        os.unlink(params.socket_path)
        raise StartError(f"cannot start the shim: {error}") from None
    os.write(1, address.encode())
    os._exit(0)  # nothing of this interpreter needs taking down, and the daemon is waiting


def claim(params: Params, patience_s: float = 0.0) -> "tuple[socket.socket, int]":
    """Make the bundle and the address this shim's own: its listener, and the fd whose lock holds the bundle.

    Blocks: at most ``patience_s`` for another that is about to let the bundle go. Raises: StartError.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            bundle_fd = lock_bundle(params.bundle)
            break
        except StartError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
    params.socket_path = params.socket_path or path_of(params)
    try:
        return listen(params.socket_path), bundle_fd
    except BaseException:
        os.close(bundle_fd)  # in the keeper the lock would be held for ever
        raise


def path_of(params: Params) -> str:
    """Where the shim listens. Pure."""
    return socket_path(params.socket_dir, params.address, params.namespace, params.id)


def publish(params: Params, pid: int) -> str:
    """Write the bundle's `shim.pid` and `address`; the value is the address. Raises: OSError."""
    address = "unix://" + params.socket_path
    try:
        os.unlink(os.path.join(params.bundle, "ended"))  # an earlier shim's last word
    except FileNotFoundError:
        pass
    publish_pid(params.bundle, pid)
    _write(os.path.join(params.bundle, "address"), address)
    return address


def publish_pid(bundle: str, pid: int) -> None:
    """Write the bundle's `shim.pid`; on a full disk over the one that is there, whose room it has. Raises: OSError."""
    path = os.path.join(bundle, "shim.pid")
    try:
        _write(path, str(pid))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not os.path.lexists(path):
            raise
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, str(pid).ljust(os.fstat(fd).st_size).encode(), 0)
        finally:
            os.close(fd)


def _become_shim(
    listener: socket.socket,
    bundle_fd: int,
    params: Params,
    score: int,
    serve: "Callable[[int, Params, int], int]",
    reason: str,
) -> "NoReturn":
    """The child, which never returns: a session of its own, nothing of the parent's fds, then the serving loop."""
    code = 1
    try:
        os.setsid()
        null_fd = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null_fd, fd)
        close_all_but({0, 1, 2, listener.fileno(), bundle_fd})
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
        params.environment.pop("NOTIFY_SOCKET", None)
        if reason:
            from shim.core.shimlog import ShimLog

            log = ShimLog(params.bundle, params.id)
            log.warning(f"started without the keeper: {reason}")
            log.close()
        code = serve(listener.detach(), params, bundle_fd)
    finally:
        os._exit(code)


def close_all_but(keep: "set[int]") -> None:
    """Close what the caller of `start` left open in us: a pipe held here would never end for its reader."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the directory's own, closed by now
                pass


def lock_bundle(path: str) -> int:
    """Lock the bundle directory (flock(2)) for the shim's whole life: a bundle has one shim, and this proves it.

    Raises: StartError when another shim holds it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StartError(f"a shim of this bundle is running already: {path}") from None
    return fd


def listen(path: str) -> socket.socket:
    """Bind and listen, for us alone (0600); a socket file that nobody answers on is replaced.

    Raises: StartError when a live shim answers there, or the path cannot be had.
    """
    if len(path.encode()) > SOCKET_PATH_MAX:
        raise StartError(
            f"socket path {path} is longer than {SOCKET_PATH_MAX} bytes: choose a shorter SHIMD_SOCKET_DIR"
        )
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if is_answering(path):
                raise StartError(f"a shim answers at {path} already: the container exists") from None
            os.unlink(path)
            listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen at {path}: {error.strerror}") from None
    finally:
        os.umask(mask)
    return listener


def is_answering(path: str) -> bool:
    """Whether someone listens at a socket path. A full backlog counts: only a refusal shows that nobody is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def parent_oom_score_adj() -> int:
    """The score of who started us, plus one: the daemon is to outlive its shims. At most 1000 (proc(5))."""
    try:
        with open(f"/proc/{os.getppid()}/oom_score_adj", encoding="ascii") as file:
            return min(int(file.read()) + 1, 1000)
    except (OSError, ValueError):
        return 1


def join_cgroup(path: str, pid: int) -> None:
    """Put the shim into a cgroup of every hierarchy that has it. Raises: OSError when none has."""
    joined = False
    for mount in (CGROUP_MOUNTS, *(os.path.join(CGROUP_MOUNTS, name) for name in os.listdir(CGROUP_MOUNTS))):
        procs = os.path.join(mount, path.lstrip("/"), "cgroup.procs")
        if os.path.exists(procs):
            with open(procs, "w", encoding="ascii") as file:
                file.write(str(pid))
            joined = True
    if not joined:
        raise FileNotFoundError(errno.ENOENT, "no such shim_cgroup", path)


def _write(path: str, text: str) -> None:
    temporary = path + ".new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(temporary, path)
    except OSError:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise

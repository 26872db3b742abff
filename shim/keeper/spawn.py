"""How a keeper comes to be: bind its socket, execute it.

Used by a `start` or a shim that found none, by `ensure-keeper` for the daemon, and by `keeper` itself.
"""

import fcntl
import os
import signal
import socket
import sys
import time

from shim.launch import ANSWER_MAX_BYTES, MAGIC, OK, WATCH, Unserved, keeper_path

TYPE_CHECKING = False

BACKLOG = 128  # the starts that may wait while a new keeper imports
# Whoever holds the lock binds and executes, a millisecond's work.
LOCK_S, LOCK_PAUSE_S = 0.5, 0.005
UNWATCHED_S = 0.2  # before the next look at a keeper that does not let itself be watched
# A process's title lies where its arguments were: this many bytes of padding hold an id and a namespace of 76 each.
TITLE_BYTES = 256
LISTENER_FD = 3


class Busy(Unserved):
    """Another starts one just now."""


def start_keeper(path: bytes, *, instead_of: int = 0, patience_s: float = LOCK_S) -> bool:
    """Have a keeper listen at the path; it may still be importing when this returns, and who connects waits for it.

    Nothing is done when one listens there already, unless its socket is the inode ``instead_of``: then the value is
    False, and what listens may be about to end.
    Blocks: at most ``patience_s`` for another who starts one. Raises: Unserved; Busy when that one takes longer.
    """
    name = os.fsdecode(path)
    try:
        make_directory(os.path.dirname(name))
        lock_fd = take_lock(name + ".lock", patience_s)
        try:
            listener = bind_instead(name, instead_of)
            if listener is not None:
                with listener:
                    spawn(listener, name)
        finally:
            os.close(lock_fd)
    except OSError as error:
        raise Unserved(f"a keeper cannot be started: {error}") from None
    return listener is not None


def run_keeper(environment: "dict[bytes, bytes]") -> int:
    """The action `keeper`: become the keeper, as soon as there is no other. Returns only an exit code.

    It is for a supervisor, which would take an end for a failure: shims that lose their keeper start one first.
    """
    path = keeper_path(environment)
    if not path:
        return _fail("SHIMD_KEEPER=off: none is wanted")
    name = os.fsdecode(path)
    try:
        make_directory(os.path.dirname(name))
        while True:
            lock_fd = take_lock(name + ".lock")
            listener = bind_instead(name, 0)
            os.close(lock_fd)  # before its number is taken: without `site` it is just LISTENER_FD
            if listener is not None:
                break
            wait_for_end(name)
        os.dup2(listener.fileno(), LISTENER_FD)
        os.set_inheritable(LISTENER_FD, True)
        os.execve(sys.executable, command(name), keeper_environment())  # noqa: S606 - no shell is wanted
    except (OSError, Unserved) as error:
        return _fail(str(error))


def ensure_keeper(environment: "dict[bytes, bytes]") -> int:
    """The action `ensure-keeper`: have one serve, in a session of its own, and print its socket's path. The exit code.

    Blocks: some milliseconds; the keeper may still be importing then, and who connects waits for it.
    """
    path = keeper_path(environment)
    if not path:
        return _fail("SHIMD_KEEPER=off: none is wanted")
    try:
        start_keeper(path)
    except Unserved as error:
        return _fail(str(error))
    os.write(1, path)
    return 0


def wait_for_end(path: str) -> None:
    """Wait until the keeper that serves there has ended, or forks no more. Blocks: as long as that takes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect(path)
            connection.send(b"%s\0%s\0" % (MAGIC, WATCH))
            answer = connection.recv(ANSWER_MAX_BYTES).split(b"\0", 2)
            if answer[1:2] == [OK]:
                os.write(2, f"shimd-keeper: one serves at {path}: waiting for its end\n".encode())
                connection.recv(1)
                return
        except OSError:
            pass  # it ends just now
    time.sleep(UNWATCHED_S)


def _fail(words: str) -> int:
    os.write(2, f"shimd-keeper: {words}\n".encode(errors="replace"))
    return 1


def make_directory(path: str) -> None:
    """The keepers' directory, ours alone. Raises: Unserved when others may write there, OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.stat(path)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unserved(f"{path} is not ours alone: its owner must be uid {os.geteuid()}, and nobody else may write")


def take_lock(path: str, patience_s: float = LOCK_S) -> int:
    """Only one at a time binds. The fd holds the lock. Blocks: at most so long. Raises: Busy, OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise Busy(f"{path} is locked by another start") from None
            time.sleep(LOCK_PAUSE_S)
        else:
            return fd


def bind_instead(path: str, instead_of: int) -> "socket.socket | None":
    """A listener at the path, put there in one step; None when somebody else's is to stay.

    Order: under the lock. Raises: OSError.
    """
    if is_listening(path) and os.stat(path).st_ino != instead_of:
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    temporary = path + ".new"
    try:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        mask = os.umask(0o177)
        try:
            listener.bind(temporary)
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        listener.close()
        raise
    return listener


def is_listening(path: str) -> bool:
    """Whether a connection is taken, be it into the backlog; a full backlog is one too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def spawn(listener: socket.socket, path: str) -> None:
    """Execute the keeper: a session of its own, nothing of ours but the listener. Raises: OSError."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)
    ]
    actions.append(
        (os.POSIX_SPAWN_DUP2, listener.fileno(), LISTENER_FD)
    )  # clears close-on-exec, also if it is 3 already
    os.posix_spawn(
        sys.executable, command(path), keeper_environment(), file_actions=actions,
        setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )  # fmt: skip


def keeper_environment() -> "dict[str, str]":
    """The keeper's own: it is what `ps e` and /proc show for every shim, whatever that was started with."""
    return {**os.environ, "LD_BIND_NOW": "1"}


def command(path: str) -> "list[str]":
    """The keeper's command line, isolated from what Python reads of the environment, and padded. Pure.

    It gets our own module path as text: what served us serves it, also without `site`.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from shim.keeper.main import main; sys.exit(main())"
    return [sys.executable, "-I", "-S", "-c", code, path, " " * TITLE_BYTES]

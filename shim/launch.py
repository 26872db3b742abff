"""The first steps of every action: the daemon runs `start` and `delete` for each container and waits for both.

What is common is done here with builtin modules alone, most of it by the keeper: see keeper/main.py. The rest is
imported only where that does not do.
"""

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import NoReturn

# The first field of every message between `start` and keeper. The place of the second field, verb or outcome, is the
# same in every version: an old keeper can tell a newer `start` that it is out of date.
MAGIC = b"shimd-keeper 1"
START, OK, REFUSED, STALE = b"start", b"ok", b"refused", b"stale"
# What others ask: to be looked after (keeper/adoption.py), and to be told of its end by the end of the connection.
ADOPT, WATCH = b"adopt", b"watch"
# After an `ok` to start: the shim has listener and lock. A keeper that died just before that has none to start it.
HANDED = b"handed"
# So long a dying keeper may take to let a bundle go.
DYING_S, DYING_PAUSE_S = 0.5, 0.005
# A keeper forks in a few milliseconds; one that was just started imports for a tenth of a second first. This long
# without an answer means stopped, stuck, or a machine so busy that nothing is quick.
ANSWER_S = 2.0
# One that young may be at its imports still: another in its place would begin anew beside it, and make both slower.
# A start beside it were no quicker either, and its shim not the keeper's child: that is worth waiting longer for.
YOUNG_S, YOUNG_ANSWER_S = 20.0, 6.0
ANSWER_MAX_BYTES = 65536
STDIN_MAX_BYTES = 1 << 20
DEFAULT_SOCKET_DIR = b"/run/containerd/s"
ENDED_MAX_BYTES = 4096
EMSGSIZE, SHUT_RD = 90, 0  # the modules that have these names cost a millisecond


class Unserved(Exception):
    """Why the keeper did not start this shim."""


class Sick(Unserved):
    """The keeper is there and does not answer."""


def main() -> int:
    """Blocks: for the action. Returns the exit code, unless the action ended the process by itself."""
    stdin, reason = None, ""
    if sys.argv[-1] == "start":
        path = keeper_path(posix.environ)
        if path and posix.environ.get(b"SCHED_CORE"):
            reason = "SCHED_CORE asks for what its template must not have"
        elif path:
            stdin = read_stdin()
            try:
                _print_and_end(start_by_keeper(path, stdin))
            except Unserved as why:
                reason = str(why)
    elif sys.argv[-1] == "delete":
        answer = ended_answer(sys.argv)
        if answer:
            _print_and_end(answer)
    elif sys.argv[-1] == "keeper":
        from shim.keeper.spawn import run_keeper

        return run_keeper(posix.environ)
    elif sys.argv[-1] == "ensure-keeper":
        from shim.keeper.spawn import ensure_keeper

        return ensure_keeper(posix.environ)
    from shim.__main__ import main as run_action

    return run_action(stdin, reason)


def _print_and_end(answer: bytes) -> "NoReturn":
    posix.write(1, answer)
    posix._exit(0)  # nothing of this interpreter needs taking down, and the daemon is waiting


def read_stdin() -> bytes:
    """What the daemon wrote, to its end; nothing from a terminal. Blocks."""
    if posix.isatty(0):
        return b""
    data = b""
    while len(data) < STDIN_MAX_BYTES:
        part = posix.read(0, 65536)
        if not part:
            break
        data += part
    return data


# --- start


def keeper_directory(environment: "dict[bytes, bytes]") -> bytes:
    """Where the keepers' sockets are; empty when none is to be used (SHIMD_KEEPER=off). Pure.

    A directory of its own beside that of the shims' sockets, or the one SHIMD_KEEPER names.
    """
    directory = environment.get(b"SHIMD_KEEPER", b"")
    if directory == b"off":
        return b""
    if directory:
        return directory
    sockets = environment.get(b"SHIMD_SOCKET_DIR") or DEFAULT_SOCKET_DIR
    return sockets.rstrip(b"/").rpartition(b"/")[0] + b"/shimd-keeper"


def keeper_path(environment: "dict[bytes, bytes]") -> bytes:
    """The socket of the keeper of this code; empty when none is to be used.

    It is called after the inode of our package: another installation has another keeper. Whether the files of an
    installation have changed, its keeper looks itself. Raises: OSError when the package is not there any more.
    """
    directory = keeper_directory(environment)
    if not directory:
        return b""
    found = posix.stat(__file__.rpartition("/")[0])
    return b"%s/%x-%x" % (directory, found.st_dev, found.st_ino)


def start_by_keeper(path: bytes, stdin: bytes) -> bytes:
    """Have the keeper start this shim; what `start` is to print. One that is missing, old or sick is replaced.

    Blocks: at most ANSWER_S per keeper asked, YOUNG_ANSWER_S for a new one; a sick one's successor is not waited for.
    Raises: Unserved; then no shim was or will be started by what was asked.
    """
    request = pack_request(posix.getcwdb(), sys.argv[1:], posix.environ, stdin)
    inode = 0
    try:
        inode = posix.stat(path).st_ino
        outcome, text = ask(path, request)
    except Sick:
        from shim.keeper.spawn import start_keeper

        start_keeper(path, instead_of=inode)
        raise
    except OSError as error:  # nobody is there
        outcome, text = STALE, str(error).encode()
    if outcome == STALE:
        outcome, text = _ask_another(path, request)
    if outcome != OK:
        raise Unserved(text.decode(errors="replace"))
    return text


def _ask_another(path: bytes, request: bytes) -> "tuple[bytes, bytes]":
    """Start a keeper and ask it. One that listens there and does not answer is dying: another comes when it is gone.

    Blocks: as `start_by_keeper`, and at most DYING_S for that one's end. Raises: Unserved.
    """
    import time

    from shim.keeper.spawn import start_keeper

    deadline = time.monotonic() + DYING_S
    while True:
        is_new = start_keeper(path)
        try:
            return ask(path, request)
        except OSError as error:
            if is_new or time.monotonic() >= deadline:
                raise Unserved(f"a new one does not serve: {error}") from None
        time.sleep(DYING_PAUSE_S)


def ask(path: bytes, request: bytes) -> "tuple[bytes, bytes]":
    """One request, one answer: outcome and text. The answer is the keeper's commitment.

    Order: when this raises, no answer can be sent any more, and so the request has and will have no effect.
    Blocks: at most ANSWER_S, YOUNG_ANSWER_S when it is new. Raises: OSError when nobody serves there; Unserved when it
    will not do, Sick among them.
    """
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(path)
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], sys.byteorder) != posix.geteuid():
            raise Unserved("its socket is not ours")
        answer = _exchange(connection, request, path)
        if not answer:
            raise ConnectionResetError("it hung up")
        fields = answer.split(b"\0", 2)
        if len(fields) != 3:
            raise Unserved("it speaks another language")
        if fields[1] == OK and not _is_handed(connection):
            raise ConnectionResetError("it died before the shim had its bundle")
        return fields[1], fields[2]
    finally:
        connection.close()


def _is_handed(connection: "_socket.socket") -> bool:
    """Whether the shim has what it needs to begin. One that a dead keeper had given it holds the bundle's lock."""
    try:
        if connection.recv(ANSWER_MAX_BYTES):
            return True
    except TimeoutError:
        return True  # it is bound, and goes on when it can
    except OSError:
        pass
    import fcntl
    import time

    bundle_fd = posix.open(".", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        deadline = time.monotonic() + DYING_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(bundle_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                time.sleep(DYING_PAUSE_S)
        return True
    finally:
        posix.close(bundle_fd)


def _exchange(connection: "_socket.socket", request: bytes, path: bytes) -> bytes:
    """Source: unix(7); a send to a socket whose reading half is shut down fails with EPIPE, whoever holds it."""
    try:
        connection.send(request)
    except OSError as error:
        if error.errno == EMSGSIZE:
            raise Unserved(f"the environment of {len(request)} bytes is too long to send") from None
        raise
    try:
        return connection.recv(ANSWER_MAX_BYTES)
    except TimeoutError:
        pass
    is_young = _is_young(path)
    if is_young:
        connection.settimeout(YOUNG_ANSWER_S - ANSWER_S)
        try:
            return connection.recv(ANSWER_MAX_BYTES)
        except TimeoutError:
            pass
    # Our half is closed first: an answer is in the queue by now, or can never get there.
    connection.shutdown(SHUT_RD)
    answer = connection.recv(ANSWER_MAX_BYTES)
    if answer:
        return answer
    if is_young:
        raise Unserved(f"it does not answer within {YOUNG_ANSWER_S:g} s, but is new")
    raise Sick(f"it does not answer within {ANSWER_S:g} s")


def _is_young(path: bytes) -> bool:
    import time

    try:
        return 0 <= time.time() - posix.stat(path).st_mtime < YOUNG_S
    except OSError:
        return False


def pack_request(cwd: bytes, arguments: "list[str]", environment: "dict[bytes, bytes]", stdin: bytes) -> bytes:
    """Everything a shim is started with, as one message; none of it but stdin can hold a NUL. Pure."""
    words = [word.encode("utf-8", "surrogateescape") for word in arguments]
    variables = [b"%s=%s" % item for item in environment.items()]
    counts = b"%d %d" % (len(words), len(variables))
    return b"\0".join((MAGIC, START, counts, cwd, *words, *variables, stdin))


# --- delete


def ended_answer(arguments: "list[str]") -> bytes:
    """What `delete` answers for a shim that ended in order: it left the answer in the bundle. Empty when it did not."""
    try:
        container_id = arguments[arguments.index("-id") + 1]
        bundle = arguments[arguments.index("-bundle") + 1] if "-bundle" in arguments else "."
        fd = posix.open(f"{bundle}/ended", posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except (OSError, ValueError, IndexError):
        return b""
    written_id, _, answer = posix.read(fd, ENDED_MAX_BYTES).partition(b"\n")
    posix.close(fd)
    return answer if written_id == container_id.encode("utf-8", "surrogateescape") else b""

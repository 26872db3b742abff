"""The keeper's own cgroup, out of the caller's: whoever stops the daemon's unit, or limits it, does not mean the shims.

Best effort: where nothing can be done the keeper stays where it was started, as containerd's own shims do.
"""

import os
import resource
import signal
import socket

from shim.cgroup import cgroups
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "shimd-keeper"
SYSTEMD_RUNS = "/run/systemd/system"
ANSWER_S = 5.0  # of systemd, which may have more to do
STOP_S = 10
# A cpuset without processors takes no process (cpuset(7)); its parent's are what a new one begins with elsewhere.
CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


def move_out(name: str, *, systemd_runs: str = SYSTEMD_RUNS, mountinfo: str = "/proc/self/mountinfo") -> str:
    """Go into a cgroup of that name, with all that is forked later; what was done, for the log. Never fails.

    Where systemd runs it owns the tree, and is asked for a scope of our own. Elsewhere the cgroup is made at the root
    of each hierarchy. Empty name: stay.
    """
    if not name:
        return "its cgroup is left as it is"
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            paths = [line.rstrip("\n").split(":", 2)[2] for line in file]
    except OSError as error:
        return f"its cgroup is left as it is: {error}"
    if any(NAME in path for path in paths):
        return "it has a cgroup of its own already"
    if os.path.isdir(systemd_runs):
        return _ask_systemd(name)
    joined = [root for root in hierarchies(mountinfo) if _join(root, name)]
    return f"in cgroup /{name} of {len(joined)} hierarchies"


def raise_fd_limit() -> None:
    """Take as many fds as we may have: the spares of all shims are here. A shim gets its caller's limit (Manners)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def hierarchies(mountinfo: str) -> "Iterator[str]":
    """Where cgroup hierarchies are mounted. Source: proc_pid_mountinfo(5)."""
    try:
        with open(mountinfo, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        if right.split(" ")[0] in ("cgroup", "cgroup2"):
            yield left.split(" ")[4]


def _join(root: str, name: str) -> bool:
    path = os.path.join(root, name)
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
        for file_name in CPUSET_FILES:
            _inherit(root, path, file_name)
        _write(os.path.join(path, "cgroup.procs"), str(os.getpid()))
    except OSError:
        return False
    return True


def _inherit(root: str, path: str, name: str) -> None:
    try:
        with open(os.path.join(path, name), encoding="ascii") as file:
            if file.read().strip():
                return
        with open(os.path.join(root, name), encoding="ascii") as file:
            value = file.read().strip()
    except FileNotFoundError:
        return
    _write(os.path.join(path, name), value)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _ask_systemd(name: str) -> str:
    """Into a scope, with no limits but the machine's.

    It is made around a helper, by systemd's own client, which needs no message bus; once we have joined it the helper
    ends. At the machine's own end nobody waits for us longer than STOP_S: no shim ends before its container.
    """
    unit = f"{name}-{os.getpid()}.scope"
    settings = ("Delegate=yes", "TasksMax=infinity", f"TimeoutStopSec={STOP_S}")
    argv = [
        "systemd-run", "--quiet", "--collect", "--scope", f"--unit={unit}", "--description=shimd keeper and shims",
        *(f"--property={setting}" for setting in settings), "--", "cat",
    ]  # fmt: skip
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with ours:
        with its:
            actions = [
                *((os.POSIX_SPAWN_DUP2, its.fileno(), fd) for fd in (0, 1)),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ]
            try:
                pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
            except OSError as error:
                return f"its cgroup is left as it is: {argv[0]}: {error.strerror}"
        try:
            return _join_helper(pid, unit, ours)
        except (OSError, StatusError) as error:
            return f"its cgroup is left as it is: systemd gives no scope: {error}"
        finally:
            os.kill(pid, signal.SIGKILL)  # our child, which nobody has waited for
            os.waitpid(pid, 0)


def _join_helper(pid: int, unit: str, helper: socket.socket) -> str:
    """Go where the helper is, once it says a word, which it does in the scope. Raises: OSError; StatusError."""
    helper.settimeout(ANSWER_S)
    helper.sendall(b"\n")
    if not helper.recv(1):
        return "its cgroup is left as it is: systemd gives no scope"
    paths = cgroups.find(pid)
    try:
        joined = [path for path in {*paths.v1.values(), paths.v2} if path is not None and path.endswith(unit)]
        for path in joined:
            _write(f"{path}/cgroup.procs", str(os.getpid()))
    finally:
        paths.close()
    return f"in {unit}" if joined else "its cgroup is left as it is: systemd gives no scope"

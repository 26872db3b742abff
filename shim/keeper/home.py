"""The keeper's own cgroup, out of the caller's: whoever stops the daemon's unit, or limits it, does not mean the shims.

Best effort: where nothing can be done the keeper stays where it was started, as containerd's own shims do.
"""

import os
import resource
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "shimd-keeper"
SYSTEMD_RUNS = "/run/systemd/system"
BUS_S = 2.0
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
    """A transient scope around this process, by systemd's own client: a bus client of ours would be for this alone."""
    unit = f"{name}-{os.getpid()}.scope"
    argv = [
        "busctl", "--quiet", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail",
        "4", "PIDs", "au", "1", str(os.getpid()), "Description", "s", "shimd keeper and shims",
        "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed",
        "0",
    ]  # fmt: skip
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=null)
    except OSError as error:
        return f"its cgroup is left as it is: busctl: {error.strerror}"
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(BUS_S * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    return f"in {unit}" if code == 0 else f"its cgroup is left as it is: systemd gives no scope (busctl: {code})"

"""Where a process's cgroups are, and who is in them. Source: cgroups(7); kernel: cgroup-v1/, cgroup-v2.rst.

Three layouts exist: v1 (a hierarchy per controller), hybrid (the same plus a v2 hierarchy, mostly without controllers),
unified (v2 only). `CgroupPaths` holds what there is of each.
"""

import errno
import os
import signal

from shim.errors import not_found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The v1 controllers counters come from; a container with none of them is measured by its v2 cgroup.
MEASURED = ("memory", "cpuacct", "cpu", "pids", "blkio", "hugetlb", "rdma")
# Asked in this order who is in the container: processes can be moved apart in v1, and these are the ones a program in a
# container has least reason to touch.
_MEMBERS = ("freezer", "pids", "memory", "devices", "cpu", "name=systemd")
# proc_pid_stat(5), field flags; linux/sched.h. Set as soon as a process begins to exit.
_PF_EXITING = 0x4
_READ_BYTES = 64 * 1024
# Of finding processes that were not there before: a fork bomb is given up on, for its parent's sake, with a count.
_KILL_ROUNDS = 100


class CgroupPaths:
    """Owns the directory fds it has opened; `close` gives them back. A new cgroup of the same name does not fool them.

    ``v1`` is controller → directory (``name=systemd`` included), ``v2`` the directory in the v2 hierarchy, or None.
    An open directory does not keep a cgroup from being removed.
    """

    __slots__ = ("_fds", "v1", "v2")

    def __init__(self, v1: "dict[str, str]", v2: "str | None") -> None:
        self.v1 = v1
        self.v2 = v2
        self._fds: dict[str, int] = {}

    @property
    def is_v1(self) -> bool:
        """Whether counters come from v1 (also on a hybrid system)."""
        return any(controller in self.v1 for controller in MEASURED)

    def directory_fd(self, path: str) -> int:
        """An fd of one of our directories, opened at the first call. Ours to close.

        Raises: FileNotFoundError when the cgroup is gone.
        """
        fd = self._fds.get(path)
        if fd is None:
            fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return fd

    def exists(self) -> bool:
        """Whether any of the cgroups is still there."""
        for path in (*self.v1.values(), self.v2):
            if path is None:
                continue
            try:
                os.close(os.open("cgroup.procs", os.O_PATH | os.O_CLOEXEC, dir_fd=self.directory_fd(path)))
            except OSError:
                continue
            return True
        return False

    def close(self) -> None:
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)


def find(pid: int, proc_root: str = "/proc") -> CgroupPaths:
    """The cgroups a live process is in, as directories we can open.

    Both files speak relative to our own cgroup namespace, so a mount whose root lies deeper (a bind mount, as in a
    container) is taken off the path. Left out are cgroups outside of what we have mounted, and those the process shares
    with us: there the runtime gave it none of its own, so their counters are others' and a kill would hit ourselves.

    Raises: StatusError NOT_FOUND when the process has exited. An exiting process would show the root cgroup in v1,
    which is the whole machine's.
    """
    try:
        lines = _read(f"{proc_root}/{pid}/cgroup").splitlines()
        stat = _read(f"{proc_root}/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        raise not_found(f"process {pid} has exited: its cgroup does not exist") from None
    # The name in parentheses may hold anything; what follows it are the fields from 3 (state) on, flags is 9.
    if int(stat.rpartition(")")[2].split()[6]) & _PF_EXITING:
        raise not_found(f"process {pid} has exited: its cgroup does not exist")
    mounts = list(_mounts(_read(f"{proc_root}/self/mountinfo")))
    ours = set(_read(f"{proc_root}/self/cgroup").splitlines())
    v1: dict[str, str] = {}
    v2 = None
    for line in lines:
        if line in ours:
            continue
        _, controllers, path = line.split(":", 2)
        path = path.removesuffix(" (deleted)")
        if not controllers:
            v2 = _locate(path, [(root, where) for root, where, kind, _ in mounts if kind == "cgroup2"])
            continue
        for controller in controllers.split(","):
            own = [(root, where) for root, where, kind, options in mounts if kind == "cgroup" and controller in options]
            where = _locate(path, own)
            if where is not None:
                v1[controller] = where
    return CgroupPaths(v1, v2)


def _mounts(mountinfo: str) -> "Iterator[tuple[str, str, str, list[str]]]":
    """Each cgroup mount as (root, mount point, type, super options). Source: proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, rest = right.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            fields = left.split(" ")
            yield _unescape(fields[3]), _unescape(fields[4]), kind, rest.rpartition(" ")[2].split(",")


def _unescape(text: str) -> str:
    r"""Blanks and backslashes are written as octal ``\040`` in mountinfo."""
    if "\\" not in text:
        return text
    head, *parts = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts)


def _locate(path: str, mounts: "list[tuple[str, str]]") -> "str | None":
    """The directory of a cgroup path in the first mount whose root holds it; None when none does."""
    if path.startswith("/.."):  # outside our cgroup namespace
        return None
    for root, where in mounts:
        if root == "/":
            return where + path if path != "/" else where
        if path == root:
            return where
        if path.startswith(root + "/"):
            return where + path[len(root) :]
    return None


# --- reading


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> str:
    """Everything: the kernel hands out sequence files a page at a time."""
    chunks = []
    while chunk := os.read(fd, _READ_BYTES):
        chunks.append(chunk)
    return b"".join(chunks).decode("utf-8", "surrogateescape")


def read_at(directory_fd: int, name: "str | bytes") -> str:
    """A control file's text. Raises: FileNotFoundError (also for a cgroup that is gone), OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return _read_all(fd)
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between open and read
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        raise
    finally:
        os.close(fd)


# --- who is in it


def pids(paths: CgroupPaths) -> "list[int]":
    """Every process in the container's cgroup and below it; empty when the cgroup is gone."""
    directory = _members_directory(paths)
    if directory is None:
        return []
    found: set[int] = set()
    try:
        _collect(paths.directory_fd(directory), found)
    except FileNotFoundError:
        return []
    return sorted(found)


def _members_directory(paths: CgroupPaths) -> "str | None":
    for controller in _MEMBERS:
        if controller in paths.v1:
            return paths.v1[controller]
    return paths.v2 or next(iter(paths.v1.values()), None)


def _collect(directory_fd: int, found: "set[int]") -> None:
    """Add the processes of a cgroup and those below it. Raises: FileNotFoundError when it is gone."""
    try:
        # 0 stands for a process that our pid namespace does not show.
        found.update(int(pid) for pid in read_at(directory_fd, "cgroup.procs").split() if pid != "0")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # a threaded v2 cgroup: its processes are told of by its parent
            raise
    with os.scandir(directory_fd) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
        except FileNotFoundError:
            continue
        try:
            _collect(fd, found)
        except FileNotFoundError:
            continue
        finally:
            os.close(fd)


def kill_all(paths: CgroupPaths, signum: int = signal.SIGKILL) -> int:
    """Signal every process in the cgroup, those included that are forked meanwhile. Returns how many (0: none there).

    SIGKILL goes through cgroup.kill where the kernel has it (v2 and hybrid, 5.14+), which no fork escapes; then the
    count is that of the processes found before. Does not wait for them to be gone.
    """
    signalled: set[int] = set()
    if signum == signal.SIGKILL and paths.v2 is not None:
        try:
            _collect(paths.directory_fd(paths.v2), signalled)
        except FileNotFoundError:
            pass
        if not signalled or os.getpid() in signalled or not _write_kill(paths, paths.v2):
            signalled.clear()
    # What is left, for want of cgroup.kill or because v1 has more in it.
    for _ in range(_KILL_ROUNDS):
        fresh = [pid for pid in pids(paths) if pid not in signalled]
        if not fresh:
            break
        _signal(paths, fresh, signum)
        signalled.update(fresh)
    return len(signalled)


def _write_kill(paths: CgroupPaths, path: str) -> bool:
    try:
        fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=paths.directory_fd(path))
    except OSError:  # an older kernel, or the root cgroup, or gone
        return False
    try:
        os.write(fd, b"1")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _signal(paths: CgroupPaths, targets: "list[int]", signum: int) -> None:
    """Signal these processes of the cgroup.

    A pid may be somebody else's by now, so it is looked for again in the cgroup once its pidfd is held: then the pidfd
    is either that process or one that is gone. pidfds: kernel 5.3+.
    """
    held: dict[int, int] = {}
    try:
        for pid in targets:
            try:
                held[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        still_here = set(pids(paths))
        for pid, pidfd in held.items():
            if pid in still_here:
                try:
                    signal.pidfd_send_signal(pidfd, signum)
                except ProcessLookupError:
                    continue
    finally:
        for pidfd in held.values():
            os.close(pidfd)

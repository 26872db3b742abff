"""What a test left behind: found, told and removed.

One test session owns one folder (TMPDIR of the session and all its descendants) and one name in the environment of
every process it starts, so what belongs to it can be told from what anybody else does on the machine. A container's
processes carry neither; they are known by the root file system they were given, which lies in the folder.

With SHIMD_TEST_ALONE in the environment the machine is taken to be ours alone: then any new cgroup, any new named
network namespace, and whatever comes to lie in the default folders of daemon and shim counts.
"""

import contextlib
import fcntl
import gc
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import uuid
from dataclasses import dataclass, field

from tests.support import traits
from tests.support.waiting import wait_until

MARK = "SHIMD_TEST_RUN"
ALONE = "SHIMD_TEST_ALONE"
FOLDER_PREFIX = "st-"  # short: a unix socket's path holds 107 bytes, and a shim's socket name takes 64 of them
OTHER_RUN = re.compile(rf"\b{FOLDER_PREFIX}[0-9a-f]{{8}}")
SETTLE_S = 2.0  # a process told to end, and its cgroup, need a moment; a leak does not go away
ROUNDS = 5  # of killing: each may bring to light what the killed one was about to start
OWNER = "owner"
OWN_ENTRIES = (OWNER, "p")  # the session's own in its folder
FOREIGN_CGROUPS = (".slice", ".scope", ".service", "docker", "kubepods")
PASSING_FDS = ("/dev/urandom", "/dev/random")  # opened once, lazily, by libraries
OUR_PLACES = ("/run/shimd", "/var/lib/shimd", "/run/containerd/runc", "/run/containerd/s")


@dataclass(frozen=True)
class Session:
    """The marks of one run of the tests."""

    run: str
    folder: str
    is_alone: bool
    lock_fd: int = -1

    @property
    def tag(self) -> str:
        """The word that tells our paths from others', also inside a container's mount table."""
        return os.path.basename(self.folder)


@dataclass(frozen=True)
class Snapshot:
    """What there was at one moment."""

    pids: frozenset[int] = frozenset()
    mounts: frozenset[str] = frozenset()
    cgroups: frozenset[str] = frozenset()
    netns: frozenset[str] = frozenset()
    fds: frozenset[str] = frozenset()
    entries: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()


@dataclass
class Leaks:
    """What a later moment has too much."""

    processes: dict[int, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    netns: list[str] = field(default_factory=list)
    fds: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    traits: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        others = self.mounts or self.cgroups or self.netns or self.fds or self.entries or self.traits
        return bool(self.processes or others)

    def __str__(self) -> str:
        lines = [f"process {pid}: {text}" for pid, text in sorted(self.processes.items())]
        lines += [f"mount {path}" for path in self.mounts]
        lines += [f"cgroup {path}" for path in self.cgroups]
        lines += [f"network namespace {name}" for name in self.netns]
        lines += [f"file descriptor {text}" for text in self.fds]
        lines += [f"file {path}" for path in self.entries]
        lines += [f"this process {text}" for text in self.traits]
        return "\n".join(lines)


def begin() -> Session:
    """Make the session's folder and mark this process, so that all it starts is marked too."""
    run = uuid.uuid4().hex
    os.environ.pop("TMPDIR", None)
    tempfile.tempdir = None
    folder = os.path.join(tempfile.gettempdir(), FOLDER_PREFIX + run[:8])
    os.mkdir(folder, 0o700)
    lock_fd = os.open(os.path.join(folder, OWNER), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    os.write(lock_fd, run.encode())
    os.environ[MARK] = run
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder
    return Session(run, folder, is_alone=bool(os.environ.get(ALONE)), lock_fd=lock_fd)


def end(session: Session) -> Leaks:
    """Take away whatever the session still has on the machine, and tell what that was."""
    found = Leaks()
    for _ in range(ROUNDS):
        more = processes(session)
        if not more:
            break
        found.processes.update(more)
        clear(session, Leaks(processes=more))
    found.mounts = [path for path in mounts() if session.tag in path]
    found.cgroups = [path for path in cgroups() if session.tag in path]
    clear(session, found)
    shutil.rmtree(session.folder, ignore_errors=True)
    if session.lock_fd >= 0:
        os.close(session.lock_fd)
    unmark(session)
    return found


def unmark(session: Session) -> None:
    """From here on nothing that this process starts is the session's."""
    if os.environ.get(MARK) == session.run:
        del os.environ[MARK]
        os.environ.pop("TMPDIR", None)
        tempfile.tempdir = None


def remove(session: Session, before: Snapshot, found: Leaks, *, deep: bool = True) -> None:
    """Clear what was found, and what comes to light only then: the container of a shim that was just killed."""
    for _ in range(ROUNDS):
        clear(session, found)
        found = compare(session, before, look(session, deep=deep), deep=deep)
        found.fds.clear()
        found.traits.clear()
        if not found:
            break


def sweep_stale() -> list[str]:
    """Clean up after sessions whose process was killed before it could; returns their folders.

    Whether one lives says the lock on its file: its pid may be of another PID namespace.
    """
    parent = tempfile.gettempdir()
    swept = []
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not name.startswith(FOLDER_PREFIX):
            continue
        try:
            with open(os.path.join(folder, OWNER), encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                run = file.read()
        except OSError:
            continue
        if run:  # else it was just made
            end(Session(run, folder, is_alone=False))
            swept.append(folder)
    return swept


# --- looking ----------------------------------------------------------------------------------------------------------


def look(session: Session, *, deep: bool = True) -> Snapshot:
    """What there is now. Not deep: this process and its children only, for tests that start nothing."""
    fds = frozenset(own_fds())
    entries = frozenset(os.listdir(session.folder)) - frozenset(OWN_ENTRIES)
    own = frozenset(traits.own())
    if not deep:
        return Snapshot(pids=frozenset(children()), fds=fds, entries=entries, traits=own)
    return Snapshot(
        pids=frozenset(pids()),
        mounts=frozenset(mounts()),
        cgroups=frozenset(cgroups()),
        netns=frozenset(named_netns()),
        fds=fds,
        entries=entries | frozenset(places()),
        traits=own,
    )


def compare(session: Session, before: Snapshot, after: Snapshot, *, deep: bool = True) -> Leaks:
    """What `after` has that `before` had not, as far as it is ours."""
    found = Leaks()
    for pid in after.pids - before.pids:
        text = describe_if_ours(session, pid)
        if text is not None:
            found.processes[pid] = text
    found.fds = sorted(after.fds - before.fds)
    found.entries = sorted(after.entries - before.entries)
    found.traits = sorted(after.traits - before.traits)
    if deep:
        found.mounts = sorted(path for path in after.mounts - before.mounts if is_our_mount(session, path))
        found.cgroups = sorted(path for path in after.cgroups - before.cgroups if is_our_cgroup(session, path))
        found.netns = sorted(n for n in after.netns - before.netns if session.is_alone or session.tag in n)
    return found


def check(session: Session, before: Snapshot, *, deep: bool = True) -> Leaks:
    """Compare with now, giving what is on its way out a moment to go."""
    found = compare(session, before, look(session, deep=deep), deep=deep)
    if not found:
        return found
    last = [found]

    def is_clean() -> bool:
        gc.collect()
        last[0] = compare(session, before, look(session, deep=deep), deep=deep)
        return not last[0]

    with contextlib.suppress(AssertionError):
        wait_until(is_clean, deadline_s=SETTLE_S, what="what the test started to go")
    return last[0]


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children() -> list[int]:
    """This process's children, zombies among them. Source: proc(5), CONFIG_PROC_CHILDREN."""
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # the thread has ended: its children went to another one
            found += map(int, read(f"/proc/self/task/{thread}/children").split())
    return found


def processes(session: Session) -> dict[int, str]:
    """Every living process of the session but this one."""
    found = {}
    for pid in pids():
        text = describe_if_ours(session, pid)
        if text is not None:
            found[pid] = text
    return found


def describe_if_ours(session: Session, pid: int) -> str | None:
    """The command line (and, of a container's process, so much) when the process belongs to the session."""
    if pid == os.getpid():
        return None
    try:
        stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        state, parent = stat[0], int(stat[1])
        command = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
        if parent == os.getpid():
            return f"{command} (a child)" if state != "Z" else "a child nobody waited for"
        if state == "Z":
            return None  # its parent's business, and that parent is looked at too
        if f"{MARK}={session.run}" in read(f"/proc/{pid}/environ").split("\0"):
            return command
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            first = read(f"/proc/{pid}/mountinfo").partition("\n")[0]
            if session.tag in first:
                return f"{command} (in a container)"
    except (OSError, IndexError, ValueError):
        pass  # it ended while we looked
    return None


def mounts() -> list[str]:
    """Mount points of this mount namespace, with a trailing number when one is mounted over another."""
    found: dict[str, int] = {}
    for line in read("/proc/self/mountinfo").splitlines():
        path = line.split()[4].replace("\\040", " ")
        found[path] = found.get(path, 0) + 1
    return [path if n == 0 else f"{path} ({n})" for path, count in found.items() for n in range(count)]


def is_our_mount(session: Session, path: str) -> bool:
    return session.tag in path or path.startswith(OUR_PLACES) or (session.is_alone and path.startswith("/run/netns"))


def cgroup_roots() -> list[str]:
    """Where cgroup hierarchies are mounted; co-mounted controllers are seen once per mount point."""
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in ("cgroup", "cgroup2"):
            found.append(left.split()[4])
    return found


def cgroups() -> list[str]:
    """Every cgroup directory that is not the init system's or another container engine's."""
    found = []
    for root in cgroup_roots():
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and not entry.name.endswith(FOREIGN_CGROUPS):
                        waiting.append(entry.path)
                        found.append(entry.path)
    return found


def is_our_cgroup(session: Session, path: str) -> bool:
    """Whether our processes are in it; an empty one counts where nobody else could have made it."""
    try:
        inside = [int(pid) for pid in read(os.path.join(path, "cgroup.procs")).split()]
    except OSError:
        return False  # gone
    if inside:
        return any(describe_if_ours(session, pid) is not None for pid in inside)
    return session.tag in path or (session.is_alone and not OTHER_RUN.search(path))


def named_netns() -> list[str]:
    try:
        return os.listdir("/run/netns")
    except FileNotFoundError:
        return []


def places() -> list[str]:
    """What lies in the default folders of the daemon and the shim; tests use their own, so nothing comes there."""
    found = []
    for place in OUR_PLACES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found += [os.path.join(place, name) for name in os.listdir(place)]
    return found if os.environ.get(ALONE) else []


def own_fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{name}")
            if target not in PASSING_FDS:
                found.append(f"{name} → {target}")
    return found


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


# --- cleaning ---------------------------------------------------------------------------------------------------------


def clear(session: Session, found: Leaks) -> None:
    """Remove what was found, so that the next test is not blamed. Descriptors are left: their owner may live on."""
    traits.undo(found.traits)
    for pid in found.processes:
        kill(session, pid)
    for path in sorted(found.mounts, reverse=True):
        subprocess.run(["umount", "-l", path.partition(" (")[0]], check=False, stderr=subprocess.DEVNULL)
    for path in sorted(found.cgroups, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    for name in found.netns:
        path = os.path.join("/run/netns", name)
        subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
        with contextlib.suppress(OSError):
            os.unlink(path)
    for name in found.entries:
        if os.path.isabs(name):
            continue  # in a place that is not the session's: told, not touched
        path = os.path.join(session.folder, name)
        with contextlib.suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def kill(session: Session, pid: int) -> None:
    """SIGKILL one process of ours and wait until it is gone; a child is reaped.

    A pidfd is taken before the second look, so the signal cannot hit a stranger who got the number.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if describe_if_ours(session, pid) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], SETTLE_S)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    finally:
        os.close(pidfd)

"""The host: what its kernel can do, what is missing without it, and how much room there is. Needs no daemon."""

import dataclasses
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator

from daemon.config import Config
from daemon.ctl.doctor.finding import ERROR, NOTE, WARNING, Finding, Kind, command

LOW_PERCENT, FULL_PERCENT = 10.0, 2.0  # of a disk or its inodes that is free
LOW_BYTES = 256 * 1024 * 1024
USED_PERCENT = 80.0  # of a table of the kernel's, or of a limit of the daemon's
FDS_PER_SHIM, FDS_BASE = 4, 256  # what the daemon opens
# Of inotify: the kernel gives 128 to all that runs as root. Some 64 are the host's own, and a program has one or two.
INOTIFY_PER_SHIM, INOTIFY_BASE = 2, 64
EARLIEST_S = 1_704_067_200  # 2024-01-01: a clock before that was never set
RUNTIME_S = 5.0
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24
# linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), and PIDFD_INFO_EXIT.
_GET_INFO, _INFO_BYTES, _INFO_EXIT = 0xC040FF0B, 64, 1 << 3


TELLS_EXIT = "exit status by pidfd"
LOW_DISK, FULL_DISK = (
    Kind(
        "disk", severity,
        "when it is full nothing new is recorded or created, and logs wait; exits already told are safe",
        "make room, or move root_dir or state_dir; keep less of logs: log options max-size and max-file",
    )
    for severity in (WARNING, ERROR)
)  # fmt: skip
MANY_FILES = Kind(
    "files", WARNING,
    "at the limit no container starts, and programs fail at random",
    "find who holds so many, or raise fs.file-max",
)  # fmt: skip
MANY_PIDS = Kind(
    "pids", WARNING,
    "at the limit no container starts, and programs fail at random",
    "find who has so many, or raise kernel.pid_max and kernel.threads-max",
)  # fmt: skip
DAEMON_FILES = Kind(
    "files", WARNING,
    "at the limit the daemon accepts no client and adopts no shim",
    "raise LimitNOFILE of its unit, and restart it: containers run on",
)  # fmt: skip
FEW_INOTIFY = Kind(
    "inotify", NOTE,
    "shimd needs none; programs in containers share it, and fail with 'too many open files'",
    "raise it, here and in /etc/sysctl.d",
)  # fmt: skip
CLOCK = Kind(
    "clock", ERROR,
    "times of exits and events are wrong; their order is kept",
    "set it, and see why nothing does",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Feature:
    """One thing a host may have or lack, what degrades without it, and where it would come from."""

    name: str
    is_present: bool
    detail: str  # what is here, if that says more than that it is
    without: str
    remedy: str
    is_needed: bool = False  # nothing runs without it


class Host:
    """Reads files of this host; a test has it read below a folder of its own."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def text(self, path: str) -> str:
        """A small file; empty when it cannot be read."""
        try:
            with open(self.root + path, encoding="utf-8", errors="replace") as file:
                return file.read(1 << 20)
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        text = self.text(path).split()
        return int(text[0]) if text and text[0].isdecimal() else None

    def has(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def count(self, path: str) -> int:
        try:
            return len(os.listdir(self.root + path))
        except OSError:
            return 0


# --- features


def features(host: Host, runtimes: Iterable[str]) -> list[Feature]:
    """Everything that makes a difference here. Blocks: for `runc --version`."""
    return [*kernel_features(host, *pidfd_abilities()), *privileges(host), *map(runtime, runtimes)]


def pidfd_abilities() -> tuple[bool, bool, bool]:
    """Whether this kernel has pidfds, a file system of them (Linux 6.9), and tells exits through them (6.15).

    Asked of ourselves. Source: pidfd_open(2), PIDFD_GET_INFO; what 6.13 and 6.14 do not tell is seen in the release.
    """
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        return False, False, False
    info = bytearray(_INFO_BYTES)
    struct.pack_into("<Q", info, 0, _INFO_EXIT)
    other = os.eventfd(0)  # on the file system of anonymous inodes
    try:
        has_pidfs = os.fstat(other).st_dev != os.fstat(pidfd).st_dev
        fcntl.ioctl(pidfd, _GET_INFO, info)
        tells_exit = release(os.uname().release) >= (6, 15)
    except OSError:
        tells_exit = False
    finally:
        os.close(other)
        os.close(pidfd)
    return True, has_pidfs, tells_exit


def release(text: str) -> tuple[int, int]:
    """Major and minor of a kernel's release; (0, 0) for what is none. Pure."""
    parts = text.split("-")[0].split(".")
    return (
        (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal() else (0, 0)
    )


def kernel_features(host: Host, has_pidfd: bool, has_pidfs: bool, tells_exit: bool) -> Iterator[Feature]:
    """What the kernel offers. Pure but for the host's files."""
    kernel = host.text("/proc/sys/kernel/osrelease").strip()
    yield Feature(
        "pidfd", has_pidfd, f"kernel {kernel}", "processes cannot be held fast: nothing works",
        "a kernel of 5.4 or later", True,
    )  # fmt: skip
    yield Feature(
        "pidfs", has_pidfs, "", "processes are told apart by pid, start time and boot id alone, which is enough",
        "a kernel of 6.9 or later has it; nothing needs it",
    )  # fmt: skip
    yield Feature(
        TELLS_EXIT, tells_exit, "",
        "an exit while neither shim nor keeper lives is unknown, and pins do not help; large shims stay so; what a "
        "killed shim leaves that the keeper did not fork is known by the process connector alone",
        "a kernel of 6.15 or later has it; nothing needs it",
    )  # fmt: skip
    version = cgroup_version(host.text("/proc/self/mountinfo"))
    yield Feature(
        "cgroups", bool(version), version, "runc cannot make a container",
        "mount them: mount -t cgroup2 none /sys/fs/cgroup", True,
    )  # fmt: skip
    yield Feature(
        "cgroup v2", version == "v2", version, "metrics and OOM notices come from version 1, which knows no PSI",
        "boot with systemd.unified_cgroup_hierarchy=1; nothing needs it",
    )  # fmt: skip
    yield Feature(
        "overlayfs", "overlay" in host.text("/proc/filesystems").split(), "",
        "root file systems by overlay cannot be mounted, unless the module is loaded on demand",
        "modprobe overlay",
    )  # fmt: skip
    yield Feature(
        "seccomp", "Seccomp:" in host.text("/proc/self/status"), "",
        "containers run without the system-call filter, or not at all", "a kernel with CONFIG_SECCOMP_FILTER",
    )  # fmt: skip
    users = host.number("/proc/sys/user/max_user_namespaces")
    yield Feature(
        "user namespaces", bool(users), "", "containers with a user namespace fail",
        "sysctl user.max_user_namespaces=10000, and a kernel with CONFIG_USER_NS",
    )  # fmt: skip
    yield Feature(
        "PSI", host.has("/proc/pressure/memory"), "", "no pressure in metrics",
        "boot with psi=1, a kernel of 4.20 or later with CONFIG_PSI; nothing needs it",
    )  # fmt: skip


def cgroup_version(mountinfo: str) -> str:
    """v1, v2, hybrid (both), or nothing. Source: proc_pid_mountinfo(5). Pure."""
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in mountinfo.splitlines()}
    if "cgroup" in kinds:
        return "hybrid" if "cgroup2" in kinds else "v1"
    return "v2" if "cgroup2" in kinds else ""


def privileges(host: Host) -> Iterator[Feature]:
    """What this process may do, and so the daemon it would start. Source: proc_pid_status(5), CapEff."""
    line = next(
        (line for line in host.text("/proc/self/status").splitlines() if line.startswith("CapEff:")), "CapEff: 0"
    )
    mask = int(line.split()[1], 16)
    yield Feature(
        "CAP_SYS_ADMIN", bool(mask >> CAP_SYS_ADMIN & 1), "", "nothing can be mounted: no root file systems, no pins",
        "start shimd as root of the host, or of a container that is privileged", True,
    )  # fmt: skip
    yield Feature(
        "CAP_SYS_RESOURCE", bool(mask >> CAP_SYS_RESOURCE & 1), "",
        "shims cannot be protected from the OOM killer, nor given more files than their limit",
        "give it to the daemon's unit, or the container it runs in; nothing else needs it",
    )  # fmt: skip


def runtime(name: str) -> Feature:
    """A runc-compatible program. Blocks: RUNTIME_S at most."""
    path = shutil.which(name)
    said = ""
    if path is not None:
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=RUNTIME_S, check=False)
            said = (done.stdout.splitlines() or ["says nothing"])[0]
        except (OSError, subprocess.TimeoutExpired) as failure:
            said = f"cannot be run: {failure}"
    return Feature(
        name, path is not None, said or "not in PATH", "no container can be made with it",
        "install it, or name another in the configuration: [runtimes]", True,
    )  # fmt: skip


def missing(found: "Iterable[Feature]") -> Iterator[Finding]:
    """A finding for each feature that is not there."""
    for feature in found:
        if feature.is_present:
            continue
        kind = Kind("feature", ERROR if feature.is_needed else NOTE, feature.without, feature.remedy)
        yield kind.of(feature.name, f"missing ({feature.detail})" if feature.detail else "missing")


# --- room


def disks(directories: Iterable[str]) -> Iterator[Finding]:
    """Room and inodes where records, logs and bundles are written."""
    for directory in dict.fromkeys(directories):
        try:
            found = os.statvfs(directory)
        except OSError:
            continue
        yield from disk(directory, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, "bytes")
        yield from disk(directory, found.f_favail, found.f_files, "inodes")


def disk(directory: str, free: int, total: int, what: str) -> Iterator[Finding]:
    """One file system's room. A total of 0: it does not count them. Pure."""
    percent = 100 * free / total if total else 100.0
    is_low = percent < LOW_PERCENT or (what == "bytes" and free < LOW_BYTES)
    if total and is_low:
        kind = FULL_DISK if percent < FULL_PERCENT or free == 0 else LOW_DISK
        amount = f"{free / 2**20:.0f} MiB" if what == "bytes" else f"{free} {what}"
        yield kind.of(
            directory, f"{amount} free, {percent:.1f} %", command("df", "-h" if what == "bytes" else "-i", directory)
        )


def tables(host: Host, shims: int) -> Iterator[Finding]:
    """Files and processes of the whole host against what the kernel allows."""
    words = host.text("/proc/sys/fs/file-nr").split()
    if len(words) == 3:
        yield from _used(MANY_FILES, "open files of the host", int(words[0]) - int(words[1]), int(words[2]))
    threads = host.text("/proc/loadavg").split()
    running = threads[3].partition("/")[2] if len(threads) > 3 else ""
    limits = [host.number(f"/proc/sys/kernel/{name}") for name in ("pid_max", "threads-max")]
    known = [limit for limit in limits if limit]
    if running.isdecimal() and known:
        yield from _used(MANY_PIDS, "processes and threads", int(running), min(known))
    instances = host.number("/proc/sys/fs/inotify/max_user_instances")
    if instances is not None and instances < INOTIFY_BASE + INOTIFY_PER_SHIM * shims:
        yield FEW_INOTIFY.of(
            "fs.inotify.max_user_instances",
            f"it is {instances}, with {shims} containers",
            "sysctl fs.inotify.max_user_instances=1024",
        )


def _used(kind: Kind, subject: str, used: int, limit: int) -> Iterator[Finding]:
    if limit and 100 * used / limit >= USED_PERCENT:
        yield kind.of(subject, f"{used} of {limit}")


def daemon_files(host: Host, pid: int, shims: int) -> Iterator[Finding]:
    """The daemon's own limit of open files. Source: proc_pid_limits(5)."""
    line = next(
        (line for line in host.text(f"/proc/{pid}/limits").splitlines() if line.startswith("Max open files")), ""
    )
    words = line.split()
    if len(words) < 5 or not words[3].isdecimal():
        return
    limit, used = int(words[3]), host.count(f"/proc/{pid}/fd")
    if 100 * used / limit >= USED_PERCENT or limit < FDS_PER_SHIM * shims + FDS_BASE:
        yield DAEMON_FILES.of(f"the daemon (pid {pid})", f"{used} of {limit} files open, with {shims} shims")


def clock(now_s: float | None = None) -> Iterator[Finding]:
    """Whether the clock was ever set. Pure but for the clock."""
    now = time.time() if now_s is None else now_s
    if now < EARLIEST_S:
        said = time.strftime("it says %Y-%m-%d", time.gmtime(now))
        yield CLOCK.of("the clock", said, "timedatectl", "chronyc makestep")


def check(host: Host, config: Config, found: "Iterable[Feature]", pid: int, shims: int) -> Iterator[Finding]:
    """Everything about the host."""
    yield from missing(found)
    yield from disks((config.root_dir, config.state_dir))
    yield from tables(host, shims)
    if pid:
        yield from daemon_files(host, pid, shims)
    yield from clock()

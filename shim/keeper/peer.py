"""Who asks, and whether a shim forked here would be what it had become if it had been executed there."""

import os
import resource

from shim.core import kernel

TYPE_CHECKING = False

NAMESPACES = ("mnt", "net", "pid", "ipc", "uts", "user", "cgroup")
# Lines of /proc/<pid>/status that no process can change for itself in every direction, or that exec passes on.
CREDENTIALS = (
    b"Uid:", b"Gid:", b"Groups:", b"CapInh:", b"CapPrm:", b"CapEff:", b"CapBnd:", b"CapAmb:",
    b"NoNewPrivs:", b"Seccomp:",
)  # fmt: skip
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class Different(Exception):
    """A shim forked from here would not be what the caller's own child is; it says in what."""


class World:
    """What a process cannot be given: namespaces, root directory, credentials, security label."""

    __slots__ = ("credentials", "label", "namespaces", "root")

    def __init__(self, pid: "int | str") -> None:
        """Raises: OSError when the process is gone, or somebody else's."""
        base = f"/proc/{pid}"
        self.namespaces = [os.readlink(f"{base}/ns/{name}") for name in NAMESPACES]
        root = os.stat(f"{base}/root/.")
        self.root = (root.st_dev, root.st_ino)
        with open(f"{base}/status", "rb") as file:
            self.credentials = [line for line in file if line.startswith(CREDENTIALS)]
        try:
            with open(f"{base}/attr/current", "rb") as file:
                self.label = file.read()
        except OSError:  # no security module
            self.label = b""

    def compare(self, other: "World") -> None:
        """Raises: Different."""
        for name, ours, theirs in zip(NAMESPACES, self.namespaces, other.namespaces, strict=True):
            if ours != theirs:
                raise Different(f"the keeper is in another {name} namespace")
        if self.root != other.root:
            raise Different("the keeper has another root directory")
        for mine, its in zip(self.credentials, other.credentials, strict=True):
            if mine != its:
                raise Different(f"the keeper has other credentials, {_words(mine)}, than the caller, {_words(its)}")
        if self.label != other.label:
            raise Different("the keeper has another security label")


def _words(line: bytes) -> str:
    return " ".join(line.decode().split())


class Manners:
    """A process's limits, scheduling and OOM score: what fork and exec pass on, but the file mode mask."""

    __slots__ = ("limits", "nice", "oom_score", "processors", "scheduling")

    def __init__(self, giver: int) -> None:
        """Raises: OSError when the process is gone; a zombie still has all of it."""
        self.limits = [(limit, resource.prlimit(giver, limit)) for limit in LIMITS]
        self.scheduling = (os.sched_getscheduler(giver), os.sched_getparam(giver))
        self.nice = os.getpriority(os.PRIO_PROCESS, giver)
        self.processors = os.sched_getaffinity(giver)
        self.oom_score = kernel.oom_score_adj(giver)

    def pass_on(self, taker: int) -> None:
        """Give them to another process, all but the OOM score.

        Raises: OSError, ValueError when that is not allowed; ProcessLookupError when it is gone.
        """
        for limit, wanted in self.limits:
            if resource.prlimit(taker, limit) != wanted:
                resource.prlimit(taker, limit, wanted)
        policy, parameters = self.scheduling
        if policy != os.sched_getscheduler(taker):
            os.sched_setscheduler(taker, policy, parameters)
        if self.nice != os.getpriority(os.PRIO_PROCESS, taker):
            os.setpriority(os.PRIO_PROCESS, taker, self.nice)
        if self.processors != os.sched_getaffinity(taker):
            os.sched_setaffinity(taker, self.processors)


def file_mode_mask(pid: int) -> int:
    """Source: proc_pid_status(5), Umask, Linux 4.7."""
    with open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def parent_of(pid: int) -> int:
    """Source: proc_pid_stat(5), field 4. Raises: OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    return int(text[text.rindex(b")") + 2 :].split()[1])

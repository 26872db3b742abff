"""Each oddity of the kernel once: identity of pids, pidfds, subreaper, names, oom score. Mounts are in mounts.py."""

import os
import signal

TYPE_CHECKING = False

# task_struct.comm holds 15 bytes and a NUL (prctl(2), PR_SET_NAME).
COMM_BYTES = 15
OOM_SCORE_ADJ_MAX = 1000


def become_subreaper(wanted: bool = True) -> None:
    """Have orphans of our descendants reparented to us, or no longer: runc's container init is one.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER, Linux 3.4. The bit survives execve and is not inherited by fork.
    """
    import prctl

    prctl.set_child_subreaper(int(wanted))


def name_process(name: str, title: str) -> None:
    """Name this process for `ps` and `top`: comm is cut to 15 bytes, the command line holds the whole title.

    Source: prctl(2), PR_SET_NAME. The title overwrites argv in place, so that a forked shim does not pass for `start`.
    """
    import prctl

    prctl.set_name(name[:COMM_BYTES])
    try:
        prctl.set_proctitle(title)
    except (OSError, RuntimeError, ValueError):
        pass  # cosmetic only: an interpreter that hides its argv keeps its old title


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the boot id, the identity of a pid.

    Raises: ProcessLookupError when there is no such process; a zombie still has its start time.
    """
    return state_and_start(pid)[1]


def state_and_start(pid: int) -> "tuple[str, int]":
    """A process's state, a letter, and when it started, in clock ticks since boot. Raises: ProcessLookupError.

    Source: proc_pid_stat(5), fields 3 and 22. The name in field 2 may hold spaces and parentheses: split after the last
    one.
    """
    try:
        text = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19])


def boot_id() -> str:
    """This boot's random id; read once. Source: random(4), /proc/sys/kernel/random/boot_id."""
    if not _boot_id:
        _boot_id.append(_read("/proc/sys/kernel/random/boot_id").decode().strip())
    return _boot_id[0]


_boot_id: "list[str]" = []


def _read(path: str) -> bytes:
    """A small file of /proc. Not by open(): its classes are 0.2 MB of memory in each shim."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def open_pidfd(pid: int) -> "int | None":
    """A pidfd of the process, or None where the kernel (below 5.3) or the fd limit gives none.

    A pidfd of a zombie can be opened: its pid cannot be reused before we reap it.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def send_signal(pidfd: "int | None", pid: int, signum: int) -> None:
    """Signal a child of ours that we have not reaped: by pidfd, or by its pid, which cannot be reused until we reap it.

    Raises: ProcessLookupError when it is gone.
    """
    if pidfd is not None:
        signal.pidfd_send_signal(pidfd, signum)
    else:
        os.kill(pid, signum)


def raise_oom_score_adj(pid: "int | str", score: int) -> None:
    """Make a process a likelier victim of the OOM killer, up to `score` (proc(5), oom_score_adj)."""
    with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(min(score, OOM_SCORE_ADJ_MAX)))


def oom_score_adj(pid: "int | str") -> int:
    """The OOM score adjustment of a process."""
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        return int(file.read())

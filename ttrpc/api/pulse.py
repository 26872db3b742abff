"""The heartbeat of a shim: one page of its memory that keeper and daemon read without a call, and without waking it.

The page is a memfd of the shim; `pulse` in the bundle is a link to it. Six little-endian words of 64 bits, written one
at a time by the shim and by nobody else (shim/SHIM.md, "The pulse").
"""

import os
import stat
import struct

TYPE_CHECKING = False

NAME = "pulse"  # in the bundle
OF_KEEPER = ".pulse"  # behind the name of its socket
MAGIC, VERSION = int.from_bytes(b"shimpuls", "little"), 1
PAGE_BYTES = 4096
# Which word is which. BUSY_SINCE is CLOCK_MONOTONIC in nanoseconds; 0: it waits in poll.
WORD_MAGIC, WORD_VERSION, WORD_PID, WORD_START_TICKS, WORD_BUSY_SINCE, WORD_TURNS = range(6)
_WORDS = struct.Struct("<6Q")

SIGUSR1_CAUGHT = 1 << 9  # proc_pid_status(5), SigCgt: bit N - 1 for signal N


class Look:
    """What one look at a shim's process has shown. Nothing was asked of it.

    `state` is the letter of proc_pid_stat(5), empty when the process is gone. `cpu_ns` it has run, `queued_ns` it has
    waited for a processor, as far as its last waiting has ended (proc_pid_schedstat). `busy_since_ns` and `turns` are
    None where it has no pulse we understand.
    """

    __slots__ = ("at_ns", "busy_since_ns", "cpu_ns", "is_frozen", "pid", "queued_ns", "start_ticks", "state", "turns")

    def __init__(
        self,
        pid: int,
        start_ticks: int,
        *,
        at_ns: int,
        state: str = "S",
        cpu_ns: int = 0,
        queued_ns: int = 0,
        busy_since_ns: "int | None" = None,
        turns: "int | None" = None,
        is_frozen: bool = False,
    ) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.at_ns = at_ns
        self.state = state
        self.cpu_ns = cpu_ns
        self.queued_ns = queued_ns
        self.busy_since_ns = busy_since_ns
        self.turns = turns
        self.is_frozen = is_frozen


def unpack(data: bytes, pid: int, start_ticks: int) -> "tuple[int, int] | None":
    """(busy since, turns) of the page of exactly this process; None for any other page or version. Pure."""
    if len(data) < _WORDS.size:
        return None
    magic, version, its_pid, its_ticks, busy_since_ns, turns = _WORDS.unpack_from(data)
    if (magic, version, its_pid, its_ticks) != (MAGIC, VERSION, pid, start_ticks):
        return None
    return busy_since_ns, turns


def read(bundle: str, pid: int, start_ticks: int, name: str = NAME) -> "tuple[int, int] | None":
    """(busy since, turns) of the shim in a bundle; None when it has no pulse, or another shim's is there."""
    return unpack(page(os.path.join(bundle, name)), pid, start_ticks)


def page(path: str) -> bytes:
    """What is in the page of whoever has its pulse there; empty when nobody has."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a dead shim's pid may be anybody's
            return b""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _WORDS.size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def glance(path: str) -> "tuple[int, bytes, int, int] | None":
    """Pid, state, busy since, turns of who has its pulse there, in as few steps as can be; None when nobody has.

    What it shows is no reason to do anything: for that there is `look`.
    """
    data = page(path)
    if len(data) < _WORDS.size:
        return None
    magic, version, pid, _ticks, busy_since_ns, turns = _WORDS.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        return None
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        said = os.read(fd, 512)
    except OSError:
        return None
    finally:
        os.close(fd)
    at = said.rfind(b")") + 2
    return pid, said[at : at + 1], busy_since_ns, turns


def look(bundle: str, pid: int, now_ns: int, name: str = NAME) -> Look:
    """Look at a process and at its pulse. Blocks: for some microseconds, whatever state the shim is in."""
    state, ticks = _state(pid)
    if not state:
        return Look(pid, 0, at_ns=now_ns, state="")
    found = Look(pid, ticks, at_ns=now_ns, state=state)
    told = read(bundle, pid, ticks, name)
    if told is not None:
        found.busy_since_ns, found.turns = told
    if found.busy_since_ns == 0 and state == "S":
        return found  # it waits, as most do: its times are of no interest
    times = read_proc(pid, "schedstat").split()
    if len(times) >= 2:
        found.cpu_ns, found.queued_ns = int(times[0]), int(times[1])
    if state in "SD":
        found.is_frozen = _is_frozen(pid)
    return found


def _state(pid: int) -> "tuple[str, int]":
    text = read_proc(pid, "stat")
    fields = text[text.rfind(")") + 2 :].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", 0)


def _is_frozen(pid: int) -> bool:
    """Whether the process's cgroup is frozen: where it hangs in the kernel says so, of either version of cgroups."""
    where = read_proc(pid, "wchan") + read_proc(pid, "stack")
    return "freezer" in where or "refrigerator" in where or "cgroup_enter_frozen" in where


def catches_usr1(pid: int) -> bool:
    """Whether SIGUSR1 is caught: a process that does not would die of it. Source: proc_pid_status(5), SigCgt."""
    for line in read_proc(pid, "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) & SIGUSR1_CAUGHT)
    return False


def where_in_kernel(pid: int) -> str:
    """Where a process waits in the kernel, as far as we may see it: the function, the system call, the stack."""
    parts = []
    for name in ("wchan", "syscall", "stack"):
        text = read_proc(pid, name).strip()
        if text and text not in ("0", "running"):
            parts.append(f"{name}: {text}")
    return "\n".join(parts)


def memory_stall_percent(text: "str | None" = None) -> float:
    """Of the last ten seconds, how much every task of the host waited for memory; 0 where the kernel does not tell.

    Source: PSI, /proc/pressure/memory, line `full` (Linux 4.20).
    """
    if text is None:
        try:
            with open("/proc/pressure/memory", encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:
            return 0.0
    for line in text.splitlines():
        if line.startswith("full avg10="):
            try:
                return float(line.split()[1].partition("=")[2])
            except ValueError:
                return 0.0
    return 0.0


def read_proc(pid: int, name: str) -> str:
    """A file of /proc/PID; empty when it cannot be read, or the process is gone."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except (OSError, ValueError):
        return ""


# --- the stack a shim writes into its log when it gets SIGUSR1

LOG = "shim.log"
STACK_MAX_BYTES = 16384


def log_end(bundle: str) -> int:
    """Where the shim's own log ends now."""
    try:
        return os.stat(os.path.join(bundle, LOG)).st_size
    except OSError:
        return 0


def stack_since(bundle: str, offset: int) -> str:
    """The stack that was written to the shim's log after ``offset``; empty as long as there is none.

    Where containerd reads the shim's log there is no file, and the stack is in containerd's.
    """
    if log_end(bundle) < offset:  # rotated meanwhile
        offset = 0
    try:
        fd = os.open(os.path.join(bundle, LOG), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        text = os.pread(fd, STACK_MAX_BYTES, offset).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
    return stack_in(text)


def stack_in(text: str) -> str:
    """The last stack of faulthandler's in a text: its heading, and the frames below it. Pure."""
    found: list[str] = []
    for line in text.splitlines():
        if line.endswith("(most recent call first):"):
            if line.startswith("Current thread"):
                found = []
            found.append(line)
        elif found and line.startswith("  "):
            found.append(line)
    return "\n".join(found)

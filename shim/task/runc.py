"""The driver of runc and whatever speaks its command line. Every call has a deadline; errors are runc's own words."""

import json
import os

from shim.bundle import read_file, remove
from shim.core.steps import DeadlinePassed, Exited, Spawn
from shim.errors import failed_precondition, invalid_argument, unknown
from ttrpc.errors import StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.core.reaper import Reaper
    from shim.core.steps import Handler
    from ttrpc.api.runc import CheckpointOptions

DEFAULT_BINARY = "runc"
DEFAULT_ROOT = "/run/containerd/runc"

# Deadlines: a call that takes longer is taken for stuck, its process group is killed and the caller told. Typical times
# are 10-50 ms; what makes a healthy call slow is named.
CREATE_S = 120.0  # createRuntime hooks (CNI, GPU set-up) and a cold page cache
START_S = 60.0  # startContainer and poststart hooks
EXEC_S = 60.0  # a starved cgroup: the new process is already inside it
DELETE_S = 60.0  # poststop hooks; runc retries a busy cgroup for some seconds
PAUSE_S = 30.0  # freezing waits for every task of the container to reach the freezer
KILL_S = 20.0  # --all freezes the cgroup first
UPDATE_S = 20.0
LIST_S = 10.0
CHECKPOINT_S = 600.0  # memory to disk
# After SIGKILL a process ends unless it is stuck in the kernel (state D).
KILLED_S = 5.0

# runc appends to its log for ever; it is emptied when longer than this before a call.
LOG_MAX_BYTES = 64 * 1024
OUTPUT_MAX_BYTES = 4 * 1024 * 1024


class Runc:
    """One container's runtime: which binary, root directory and switches. Owns a process only during a call."""

    __slots__ = ("binary", "bundle_path", "criu_path", "id", "root", "systemd_cgroup")

    def __init__(
        self,
        bundle_path: str,
        container_id: str,
        *,
        binary: str,
        root: str,
        systemd_cgroup: bool = False,
        criu_path: str = "",
    ) -> None:
        self.bundle_path = bundle_path
        self.id = container_id
        self.binary = binary or DEFAULT_BINARY
        self.root = root
        self.systemd_cgroup = systemd_cgroup
        self.criu_path = criu_path

    def global_arguments(self, log_path: str) -> list[str]:
        """The arguments before the command. Pure."""
        arguments = [self.binary, "--root", self.root, "--log", log_path, "--log-format", "json"]
        if self.criu_path:
            arguments += ["--criu", self.criu_path]
        if self.systemd_cgroup:
            arguments.append("--systemd-cgroup")
        return arguments

    def call(
        self,
        reaper: "Reaper",
        verb: str,
        *arguments: str,
        deadline_s: float,
        stdio: "tuple[int | None, int | None, int | None] | None" = None,
        log_path: "str | None" = None,
        input_bytes: "bytes | None" = None,
    ) -> "Handler":
        """Run one command to its end; the value is what it printed (nothing when ``stdio`` is given).

        Raises: UNKNOWN "OCI runtime <verb> failed: …"; FailedPrecondition when the binary is missing.
        """
        log_path = log_path or os.path.join(self.bundle_path, "log.json")
        log_start = _begin_log(log_path)
        argv = [*self.global_arguments(log_path), *arguments]
        output_fd = error_fd = input_fd = None
        try:
            if stdio is None:
                output_fd = os.memfd_create("stdout", os.MFD_CLOEXEC)
                error_fd = os.memfd_create("stderr", os.MFD_CLOEXEC)
                if input_bytes is not None:
                    input_fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
                    os.pwrite(input_fd, input_bytes, 0)
                stdio = (input_fd, output_fd, error_fd)
            try:
                pid = yield Spawn(argv, stdio=stdio)
            except OSError as error:
                raise self.cannot_run(error) from None
            status = yield from self._wait(reaper, pid, verb, deadline_s)
            output = os.pread(output_fd, OUTPUT_MAX_BYTES, 0) if output_fd is not None else b""
            complaint = os.pread(error_fd, OUTPUT_MAX_BYTES, 0) if error_fd is not None else b""
        finally:
            for fd in (output_fd, error_fd, input_fd):
                if fd is not None:
                    os.close(fd)
        if status != 0:
            raise failure(verb, status, _read_from(log_path, log_start), complaint)
        return output

    def is_running(self, reaper: "Reaper") -> "Handler":
        """Whether the runtime itself takes the container for running; when it cannot say, it is not."""
        return (yield from self.status(reaper)) == "running"

    def status(self, reaper: "Reaper") -> "Handler":
        """What the runtime takes the container for: created, running, paused, stopped; empty when it cannot say."""
        try:
            output = yield from self.call(reaper, "state", "state", self.id, deadline_s=LIST_S)
            return str(json.loads(output).get("status"))
        except (StatusError, ValueError, AttributeError):
            return ""

    def was_started(self) -> bool:
        """Whether the user's program of a container that is over was ever begun; when that cannot be said, not.

        Source: runc, container_linux.go: `start` opens the FIFO `exec.fifo` in the state directory and removes it.
        """
        directory = os.path.join(self.root, self.id)
        return os.path.isdir(directory) and not os.path.lexists(os.path.join(directory, "exec.fifo"))

    def _wait(self, reaper: "Reaper", pid: int, verb: str, deadline_s: float) -> "Handler":
        try:
            return (yield Exited(pid, deadline_s=deadline_s))
        except DeadlinePassed:
            reaper.kill_group(pid)
        try:
            yield Exited(pid, deadline_s=KILLED_S)
        except DeadlinePassed:
            pass  # stuck in the kernel; the reaper takes it whenever it ends
        raise unknown(f"OCI runtime {verb} failed: {self.binary} did not end within {deadline_s:g} s and was killed")

    def cannot_run(self, error: OSError) -> StatusError:
        """The binary could not be started at all."""
        if isinstance(error, FileNotFoundError):
            where = "at that path" if "/" in self.binary else "in $PATH"
            return failed_precondition(
                f"OCI runtime {self.binary!r} was not found {where}: install it, or name another with --runtime"
            )
        return failed_precondition(f"OCI runtime {self.binary!r} cannot be run: {error.strerror or error}")


def checkpoint_arguments(path: str, options: "CheckpointOptions", work_dir: str) -> list[str]:
    """The arguments of `runc checkpoint`. Pure."""
    arguments = ["checkpoint", "--image-path", path, "--work-path", options.work_path or work_dir]
    switches = {
        "--tcp-established": options.open_tcp,
        "--ext-unix-sk": options.external_unix_sockets,
        "--shell-job": options.terminal,
        "--file-locks": options.file_locks,
        "--leave-running": not options.exit,
    }
    arguments += [switch for switch, is_set in switches.items() if is_set]
    for name in options.empty_namespaces:
        arguments += ["--empty-ns", name]
    if options.cgroups_mode:
        arguments += ["--manage-cgroups-mode", options.cgroups_mode]
    return arguments


def check_binary(name: str) -> None:
    """A runtime is a name looked up in $PATH or an absolute path. Raises: InvalidArgument."""
    if "\0" in name or ("/" in name and not os.path.isabs(name)):
        raise invalid_argument(f"runtime {name!r} must be a bare name or an absolute path")


def find_binary(name: str, search_path: str) -> str:
    """Where a binary would be found, or the name itself when nowhere: for reports only, exec looks for itself."""
    if "/" not in name:
        for directory in search_path.split(os.pathsep):
            path = os.path.join(directory, name)
            if directory and os.access(path, os.X_OK):
                return path
    return name


def failure(verb: str, status: int, log: bytes, complaint: bytes) -> StatusError:
    """What a failed call is told as: the last error of its log, else its words on stderr, else how it ended. Pure."""
    words = last_error(log) or complaint.decode(errors="replace").strip()[-2000:]
    if not words:
        code = os.waitstatus_to_exitcode(status)
        words = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
    return unknown(f"OCI runtime {verb} failed: {words}")


def last_error(log: bytes) -> str:
    """The message of the last line of level error in a log of JSON lines; empty when there is none. Pure."""
    for line in reversed(log.splitlines()):
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic") and entry.get("msg"):
            return str(entry["msg"]).strip()
    return ""


def is_gone(error: StatusError) -> bool:
    """Whether runc failed because its container or the process is no more: for delete and kill that is no failure."""
    words = error.message
    return "does not exist" in words or "no such process" in words or "process already finished" in words


def is_not_running(error: StatusError) -> bool:
    """Whether runc refused to signal because the container is not running any more."""
    return is_gone(error) or "container not running" in error.message


def has_not_frozen(error: StatusError) -> bool:
    """Whether runc gave up waiting for the kernel to freeze everybody, and let them go. Source: runc, fs/freezer.go."""
    return "unable to freeze" in error.message


def _begin_log(path: str) -> int:
    """Where the words of the next call will begin."""
    try:
        size = os.stat(path).st_size
        if size > LOG_MAX_BYTES:
            remove(path)
            return 0
        return size
    except OSError:
        return 0


def _read_from(path: str, start: int) -> bytes:
    try:
        return read_file(path)[start:]
    except (OSError, ValueError):
        return b""

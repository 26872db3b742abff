"""`delete`: clean up behind a shim that is gone, and say how its container ended. Standard library only: it is run
after every container, also after a perfectly ordinary end, with the daemon waiting.
"""

import json
import os
import select
import signal
import time

from shim.bundle import Bundle, read_file, remove
from shim.core import kernel
from shim.keeper.orphans import read_note
from shim.recovery import pins
from shim.recovery.successor import DOOMED
from shim.task import mounts
from shim.task.exits import DRAIN_S, SOURCE_KEEPER, WRITE_S, Exit, ExitStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.params import Params

# containerd gives us 5 s for everything, our own start among it, and then removes the bundle.
WHOLE_S = 4.0
RUNC_S = 3.0
# A shim that lives puts the exit on disk, if its container has just ended: before that it is not to end. Then it ends.
RECORD_S, END_S = DRAIN_S + WRITE_S, 1.0
KILLED_STATUS = 128 + signal.SIGKILL
DEFAULT_ROOT = "/run/containerd/runc"


def delete(params: "Params", report: "Any") -> bytes:
    """Kill and forget what is left of the container; the value is a serialised DeleteResponse.

    The status is the real one if the shim had put it on disk; only a container killed here is reported as killed.
    ``report`` is given what could not be cleaned up. Raises: OSError, ValueError when the bundle cannot be read at all.
    """
    deadline = time.monotonic() + WHOLE_S
    bundle = Bundle(params.bundle)
    state = bundle.read_state() or {}
    # First: nobody is to come to this container any more, and nobody else looks after it if the time does not suffice.
    if params.socket_path:
        remove(params.socket_path)
    if state.get("state") != "deleted":
        _remove_container(params, bundle, report)
        _end_shim(state, bundle, report, deadline)
        _unmount(bundle, report)
        _sweep(bundle, report)
    _unpin(params, report)
    record = _read_exit(bundle, report)
    if record is not None and state.get("incarnation") in (None, record.incarnation):
        return response(record.pid, record.status, record.exited_at_ns)
    noted = _read_note(bundle, state.get("init"), state.get("boot_id"))
    if noted is not None:
        return response(noted.pid, noted.status, noted.exited_at_ns)
    try:
        pid = bundle.read_pid(bundle.file("init.pid"))
    except (OSError, ValueError):
        pid = 0
    return response(pid, KILLED_STATUS, time.time_ns())


def _read_exit(bundle: Bundle, report: "Any") -> "Exit | None":
    try:
        return ExitStore(bundle.exits_dir).read()
    except (OSError, ValueError) as error:
        report(f"the exit record cannot be read: {error}")
        return None


def _read_note(bundle: Bundle, init: "Any", boot_id: "Any") -> "Exit | None":
    """How init ended as the keeper saw it, to which it fell when its shim died."""
    if not isinstance(init, dict):
        return None
    note = read_note(bundle.path, init.get("pid"), init.get("start_ticks"), boot_id)
    if note is None:
        return None
    ended = Exit(container_id="", exec_id="", pid=note["pid"], exited_at_ns=note["exited_at_ns"], source=SOURCE_KEEPER)
    ended.set_wait_status(note["wait_status"])
    return ended


def _remove_container(params: "Params", bundle: Bundle, report: "Any") -> None:
    """`runc delete --force` with the options of Create; nothing was created if they were never written."""
    try:
        options = json.loads(read_file(bundle.file("options.json")))
        binary = read_file(bundle.file("runtime")).decode() or "runc"
    except FileNotFoundError:
        return
    root = os.path.join(options.get("root") or DEFAULT_ROOT, params.namespace)
    argv = [binary, "--root", root, "--log", bundle.file("log.json"), "--log-format", "json"]
    if options.get("systemd_cgroup"):
        argv.append("--systemd-cgroup")
    problem = run([*argv, "delete", "--force", params.id], RUNC_S, params.environment)
    if problem:
        report(f"{binary} delete --force {params.id}: {problem}")


def run(argv: "list[str]", deadline_s: float, environment: "dict[str, str]") -> str:
    """Run a program to its end; what went wrong, or nothing. Blocks: at most the deadline."""
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    try:
        pid = os.posix_spawnp(argv[0], argv, environment, file_actions=null, setpgroup=0, setsigdef=[signal.SIGPIPE])
    except OSError as error:
        return error.strerror or str(error)
    if not ends_within(pid, deadline_s):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return f"not done within {deadline_s:g} s"
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else f"exit status {code}"


def ends_within(pid: int, deadline_s: float) -> bool:
    """Whether a child ends in time; it is not reaped. Blocks: at most that long."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(deadline_s * 1000))
    finally:
        os.close(pidfd)


def _end_shim(state: "dict[str, Any]", bundle: Bundle, report: "Any", whole_deadline: float) -> None:
    """A shim that lives on without its socket has nothing to live for now; first it may put the exit on disk."""
    pid, ticks = state.get("shim_pid"), state.get("shim_start_ticks")
    if not isinstance(pid, int) or pid == os.getpid():
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The pidfd is of whoever has the pid now: only the start time tells that it is our shim (law: no bare pids).
        if kernel.start_ticks(pid) != ticks or state.get("boot_id") != kernel.boot_id():
            return
        _await_exit(bundle, report, min(time.monotonic() + RECORD_S, whole_deadline))
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        # Killed, it gets no successor: whoever had us run removes the bundle next.
        if not poll.poll(max(0.0, min(END_S, whole_deadline - time.monotonic())) * 1000):
            report(f"shim {pid} does not end, killing it")
            os.close(os.open(bundle.file(DOOMED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass  # it ended by itself
    finally:
        os.close(pidfd)


def _await_exit(bundle: Bundle, report: "Any", deadline: float) -> None:
    while _read_exit(bundle, report) is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _unpin(params: "Params", report: "Any") -> None:
    try:
        pins.unpin_all(params.socket_path)
    except OSError as error:
        report(f"the pin of its exit status stays: {error}")


def _sweep(bundle: Bundle, report: "Any") -> None:
    from shim.streams import console  # after an ordinary end it is not needed

    try:
        console.sweep(bundle.io_dir)
    except OSError as error:
        report(f"a console directory stays: {error}")


def _unmount(bundle: Bundle, report: "Any") -> None:
    try:
        mounts.unmount_all(bundle.rootfs)
    except OSError as error:
        report(f"cannot unmount {bundle.rootfs}: {error.strerror}")


def response(pid: int, status: int, exited_at_ns: int) -> bytes:
    """containerd.task.v2.DeleteResponse {1 pid, 2 exit_status, 3 exited_at}, written without protobuf. Pure."""
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    stamp = _field(1, seconds) + _field(2, nanos)
    return _field(1, pid) + _field(2, status) + b"\x1a" + bytes([len(stamp)]) + stamp


def _field(number: int, value: int) -> bytes:
    """One varint field; zero is not written, as proto3 has it."""
    if value == 0:
        return b""
    out = bytearray([number << 3])
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

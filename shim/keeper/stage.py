"""Where lives are rehearsed: one shim, its only client, keeper and containerd, and a runtime that runs nothing.

Every call of the runtime succeeds at once, and leaves a child of ours that waits for its pipe to be closed. There is no
cgroup, nobody is signalled, and nothing is written but in the stage's folder. What is played is in rehearsal.py.
"""

import json
import os
import socket
import time

from shim import faults
from shim.cgroup import cgroups
from shim.cgroup.oom import OomWatch
from shim.core.shimlog import ShimLog
from shim.core.steps import Signal, Spawn
from shim.keeper.copy import pack, put_on, receive
from shim.params import Params
from shim.recovery import takeover
from shim.recovery.spares import NAME_MAX_BYTES, PIN, PINNED
from shim.serving.serve import Shim
from ttrpc.api.pulse import NAME, OF_KEEPER
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.service import find_method
from ttrpc.wire_events import MessageReceived, RequestReceived, ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from google.protobuf.message import Message

    from shim.cgroup.cgroups import CgroupPaths
    from shim.task.process import Process
    from ttrpc.wire_events import Event

    Client: TypeAlias = "tuple[socket.socket, Connection]"

TASK = "containerd.task.v2.Task"
ID = "rehearsal"
STEP_S = 10.0  # nobody waits for it
VARIABLE = "SHIMD_STAGE"  # is set and taken away again, as what a caller has and the keeper has not
NO_PID = 1 << 23  # above any pid there can be (PID_MAX_LIMIT is 2^22)
PROCESS = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]}
SPEC = {"ociVersion": "1.0.2", "process": PROCESS, "linux": {"namespaces": [{"type": "pid"}]}}
OUTPUT = b"a line of output\nand another one\n" * 4


class Stage:
    """Owns one shim on a bundle of its own, its only client, and the processes it takes for the container's.

    ``has_listener``: containerd's event service is played too.
    """

    def __init__(self, bundle: str, *, has_listener: bool = False) -> None:
        os.mkdir(bundle, 0o700)
        with open(os.path.join(bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump(SPEC, file)
        self.bundle = bundle
        self._path = os.path.join(bundle, "socket")
        self.events = _listen(os.path.join(bundle, "events")) if has_listener else None
        self.uplinks: list[tuple[socket.socket, Connection]] = []
        self.keeper, shims_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.shim = self._make_shim(shims_end.detach())
        self.shim.parts.find_cgroup = self._find_cgroup
        self.shim.parts.pin = _no_pin
        self.start = self.shim.reaper.start
        self.shim.reaper.start = self._run_runtime  # type: ignore[method-assign]  # the stage plays the runtime
        self.runs = 0
        self.parent_pid = os.getppid()
        self._connect()
        self.answers: dict[int, bytes] = {}
        self.ends: list[int] = []
        self.terminals: list[int] = []  # the processes' ends

    def _make_shim(self, fd: int) -> Shim:
        """As a copy does once it was told which container's it is: keeper/copy.py, serve.py."""
        events = os.path.join(self.bundle, "events") if self.events is not None else ""
        environment = {"PATH": "/bin", VARIABLE: "1"}
        params = Params(
            namespace=ID, id=ID, bundle=self.bundle, socket_path=self._path, events_address=events,
            environment=environment,
        )  # fmt: skip
        mask = os.umask(0o022)
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        lock_fd = os.open(self.bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        handover = pack(params, mask, [(VARIABLE, "1"), (VARIABLE, None)], None)
        with _listen(self._path) as listener:
            socket.send_fds(self.keeper, [handover], [listener.fileno(), lock_fd])
        os.close(lock_fd)
        self.keeper.setblocking(False)
        try:
            params, link, listener_fd = put_on(*receive(fd), fd)
        finally:
            os.umask(mask)
            os.fchdir(here)
            os.close(here)
        self.lock_fd = link.lock_fd  # a shim's is closed by its end
        faults.arm(params.environment)
        played = Shim(listener_fd, params, ShimLog(self.bundle, ID), link)
        played.begin_pulse()
        return played

    def look_at_keeper(self) -> None:
        """Under containerd a shim does, once a minute. Here the keeper's pulse is its own."""
        if self.shim.rejoin.watch is not None:
            path = os.path.join(self.bundle, "keeper")
            os.symlink(os.path.join(self.bundle, NAME), path + OF_KEEPER)
            self.shim.rejoin.watch.rehearse(path)

    def _connect(self) -> None:
        self.connection = Connection(CALLER)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.client.connect(self._path)
        self.client.setblocking(False)

    # --- the runtime

    def _run_runtime(self, step: "Spawn") -> int:
        """A call that has succeeded already, and did what runc does: a pid file, a process that writes."""
        if not self.runs:
            self._fail_to_start(step)
        self.runs += 1
        pid = NO_PID + self.runs
        ended = Signal()
        ended.fire(0)
        self.shim.reaper._unasked[pid] = ended
        if "state" in step.argv:
            os.write(step.stdio[1] or 0, b'{"status": "running"}')
        if "--pid-file" in step.argv:
            with open(step.argv[step.argv.index("--pid-file") + 1], "w", encoding="ascii") as file:
                file.write(str(self._make_process()))
            for fd in step.stdio[1:]:
                if fd is not None:
                    os.write(fd, OUTPUT)
            if "--console-socket" in step.argv:
                self._send_terminal(step.argv[step.argv.index("--console-socket") + 1])
        return pid

    def _send_terminal(self, path: str) -> None:
        """As runc does; something is written there."""
        master_fd, slave_fd = os.openpty()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
            console.connect(path)
            socket.send_fds(console, [b"/dev/pts/0"], [master_fd])
        os.close(master_fd)
        os.write(slave_fd, OUTPUT)
        self.terminals.append(slave_fd)

    def _fail_to_start(self, step: "Spawn") -> None:
        """All of a start but a program."""
        try:
            self.start(Spawn((f"{self.bundle}/nothing", *step.argv[1:]), stdio=step.stdio, more=step.more))
        except FileNotFoundError:
            pass  # as it should be

    def _make_process(self) -> int:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            for fd in (write_fd, *self.ends):
                os.close(fd)
            os.read(read_fd, 1)
            os._exit(0)
        os.close(read_fd)
        self.ends.append(write_fd)
        return pid

    def _find_cgroup(self, _pid: int) -> "CgroupPaths":
        """Look for one, and watch it: our own, of which the container is to know nothing."""
        paths = cgroups.find(os.getpid())
        try:
            watch = OomWatch(self.shim.loop, paths, lambda _count: None)
            watch.count()
            watch.close()
        finally:
            paths.close()
        raise FileNotFoundError("there is no cgroup on the stage")

    def _play_keeper(self) -> None:
        """Say that what was asked is done; nothing is."""
        try:
            while word := self.keeper.recv(NAME_MAX_BYTES):
                if word.startswith(PIN):
                    self.keeper.send(PINNED)
        except OSError:
            pass  # nothing more was asked

    def _play_containerd(self) -> None:
        """Take every event."""
        try:
            if self.events is not None:
                sock, _ = self.events.accept()
                sock.setblocking(False)
                self.uplinks.append((sock, Connection(CALLEE)))
        except BlockingIOError:
            pass
        for sock, connection in self.uplinks:
            try:
                received = connection.receive_bytes(sock.recv(65536))
            except BlockingIOError:
                continue
            for event in received:
                if isinstance(event, RequestReceived):
                    sock.send(connection.send_response(event.stream_id, None))

    def end_process(self) -> None:
        """Let the newest process exit, which has the terminal if there is one."""
        while self.terminals:
            os.close(self.terminals.pop())
        os.close(self.ends.pop())

    def take_over(self) -> "Process":
        """Have the container taken over as from a dead shim; the value is init as it was before. Raises: as `settle`.

        Its streams are closed for that, and its processes are no known children any more.
        """
        tasks = self.shim.tasks
        before, state = tasks.container, self.shim.parts.bundle.read_state()
        assert before is not None
        assert state is not None
        for process in before.processes():
            self.shim.reaper._known.pop(process.pid, None)
            process.close(self.shim.parts)
        self.shim.loop.spawn(takeover.begin(tasks, state))
        self._run_until(lambda: tasks.restoring is None)
        return before.init

    # --- the client

    def change_connection(
        self, other: "tuple[socket.socket, Connection] | None" = None
    ) -> "tuple[socket.socket, Connection]":
        """Go on with another one, a new one if none is given; the value is the one until now."""
        before = (self.client, self.connection)
        if other is None:
            self._connect()
        else:
            self.client, self.connection = other
        return before

    def begin(self, method: str, request: "Message", service: str = TASK) -> int:
        found = find_method(service, method)
        stream_id, data = self.connection.send_request(found.shape, found.prefix, request.SerializeToString())
        self.client.send(data)
        return stream_id

    def say(self, stream_id: int, message: "Message") -> None:
        """One more message on a stream."""
        self.client.send(self.connection.send_message(stream_id, message.SerializeToString()))

    def settle(self, stream_id: int) -> bytes:
        """Run the shim until this call is answered.

        Raises: TimeoutError; InterruptedError when the keeper is gone; OSError for an answer that is an error.
        """
        self._run_until(lambda: stream_id in self.answers)
        return self.answers.pop(stream_id)

    def _run_until(self, is_done: "Callable[[], bool]") -> None:
        deadline = time.monotonic() + STEP_S
        while not is_done():
            if os.getppid() != self.parent_pid:
                raise InterruptedError("the keeper is gone")
            if time.monotonic() > deadline:
                raise TimeoutError("the shim does not answer")
            self.shim.loop.run_once(0.01)
            self._play_keeper()
            self._play_containerd()
            try:
                events = self.connection.receive_bytes(self.client.recv(65536))
            except BlockingIOError:
                continue
            for event in events:
                self._take(event)

    def _take(self, event: "Event") -> None:
        if isinstance(event, ResponseReceived):
            if event.status is not None:
                raise OSError(f"the shim answers {event.status}")
            self.answers[event.stream_id] = event.payload or b""
        elif isinstance(event, MessageReceived):
            self.answers[event.stream_id] = event.payload

    def call(self, method: str, request: "Message", service: str = TASK) -> bytes:
        return self.settle(self.begin(method, request, service))

    def close(self) -> None:
        while self.ends:
            self.end_process()
        self.client.close()
        self.shim.close()
        self.shim.log.close()
        self.keeper.close()
        os.close(self.lock_fd)
        for sock, _ in self.uplinks:
            sock.close()
        if self.events is not None:
            self.events.close()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(2)
    listener.setblocking(False)
    return listener


def _no_pin(_pidfd: int, _path: str) -> None:
    """Nothing is mounted for a play."""

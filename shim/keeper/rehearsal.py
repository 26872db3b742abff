"""The life of a container played through in the keeper, so that its shims find their code as a long life leaves it.

CPython writes into code it runs for the first times: counters, specialised instructions, caches of types and dicts.
Each page it writes to is a shim's own from then on. Played through before the template is forked, these pages stay
shared. What remains is reference counts; bench/keeper.py says what is saved.

On the stage no runtime is run: every call of it succeeds at once, and leaves a child of ours that waits for its pipe to
be closed. There is no cgroup, nobody is signalled, and nothing is written but in the stage's folder.

Two lives come before the others, to learn which code a life runs; that is then put together, see keeper/memory.py.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
import time

from shim import faults
from shim.cgroup import cgroups
from shim.cgroup.oom import OomWatch
from shim.core.shimlog import ShimLog
from shim.core.steps import Signal, Spawn
from shim.keeper.copy import pack, put_on, receive
from shim.keeper.memory import gather
from shim.params import Params
from shim.recovery.spares import NAME_MAX_BYTES, PIN, PINNED
from shim.serving.serve import Shim
from shim.serving.shimservice import SERVICE
from ttrpc.api import runc, shim, task, wkt
from ttrpc.connection import CALLEE, CALLER, Connection
from ttrpc.service import find_method
from ttrpc.wire_events import MessageReceived, RequestReceived, ResponseReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from google.protobuf.message import Message

    from shim.cgroup.cgroups import CgroupPaths
    from ttrpc.wire_events import Event

TASK = "containerd.task.v2.Task"
ID = "rehearsal"
# Code is specialised after it ran eight times; what runs once in a life needs as many lives, of either kind.
LIVES = 18
FIRST_LIVES = 2  # one of each kind: see Stage.play
MEMORY = "/dev/shm"  # noqa: S108 - a life is mostly waiting for the disk elsewhere; the folder made in it is ours alone
FOLDER = "shimd-stage-"  # not `shimd-rehearsal-`: an older version sweeps those by pid
YOUNG_S = 60.0  # a folder that is made is locked in no time
STEP_S = 10.0  # nobody waits for it
VARIABLE = "SHIMD_STAGE"  # is set and taken away again, as what a caller has and the keeper has not
NO_PID = 1 << 23  # above any pid there can be (PID_MAX_LIMIT is 2^22)
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
PROCESS = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]}
SPEC = {"ociVersion": "1.0.2", "process": PROCESS, "linux": {"namespaces": [{"type": "pid"}]}}
OUTPUT = b"a line of output\nand another one\n" * 4


def rehearse_in_memory(folder: str, kept: "list[bytes]") -> str:
    """Rehearse, in a file system in memory where there is one; what came of it, for the log. Never fails.

    What is added to ``kept`` has to live as long as the code.
    """
    lives = os.environ.get("SHIMD_KEEPER_LIVES", "")
    count = int(lives) if lives.isdigit() else LIVES
    parent = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else folder
    path = os.path.join(parent, f"{FOLDER}{os.getpid()}-{os.urandom(4).hex()}")
    started = time.monotonic()
    lock_fd = -1
    try:
        _sweep(parent)
        os.mkdir(path, 0o700)
        lock_fd = _lock(path)
        if count:
            gather(codes_of(path, FIRST_LIVES), kept)
        rehearse(path, count)
    except Exception as error:  # noqa: BLE001 - shims only share less
        return f"the rehearsal failed: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock_fd >= 0:
            os.close(lock_fd)
    return f"{count} lives rehearsed in {(time.monotonic() - started) * 1000:.0f} ms"


def _sweep(parent: str) -> None:
    """Remove what rehearsals left that were killed: nobody holds their lock. Others may be of another PID namespace."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if not name.startswith(FOLDER):
            continue
        try:
            if time.time() - os.stat(path).st_mtime > YOUNG_S:
                os.close(_lock(path))
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # in use, or gone


def _lock(path: str) -> int:
    """Raises: BlockingIOError when another has it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def codes_of(folder: str, lives: int) -> "set[CodeType]":
    """The code of every function that runs in such lives. Blocks and raises as `rehearse`."""
    codes: set[CodeType] = set()
    sys.setprofile(lambda frame, event, _argument: codes.add(frame.f_code) if event == "call" else None)
    try:
        rehearse(folder, lives, "first-")
    finally:
        sys.setprofile(None)
    return codes


def rehearse(folder: str, lives: int, prefix: str = "") -> None:
    """Play lives through. Blocks: some milliseconds for each. Raises: whatever goes wrong on the stage."""
    for number in range(lives):
        is_containerds = bool(number % 2)
        stage = Stage(os.path.join(folder, prefix + str(number)), has_listener=is_containerds)
        try:
            stage.play(with_fifos=is_containerds)
        finally:
            stage.close()


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
        if "--pid-file" in step.argv:
            with open(step.argv[step.argv.index("--pid-file") + 1], "w", encoding="ascii") as file:
                file.write(str(self._make_process()))
            for fd in step.stdio[1:]:
                if fd is not None:
                    os.write(fd, OUTPUT)
        return pid

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
        """Let the newest process exit."""
        os.close(self.ends.pop())

    # --- the client

    def begin(self, method: str, request: "Message", service: str = TASK) -> int:
        found = find_method(service, method)
        stream_id, data = self.connection.send_request(found.shape, found.prefix, request.SerializeToString())
        self.client.send(data)
        return stream_id

    def settle(self, stream_id: int) -> bytes:
        """Run the shim until this call is answered.

        Raises: TimeoutError; InterruptedError when the keeper is gone; OSError for an answer that is an error.
        """
        deadline = time.monotonic() + STEP_S
        while stream_id not in self.answers:
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
        return self.answers.pop(stream_id)

    def _take(self, event: "Event") -> None:
        if isinstance(event, ResponseReceived):
            if event.status is not None:
                raise OSError(f"the shim answers {event.status}")
            self.answers[event.stream_id] = event.payload or b""
        elif isinstance(event, MessageReceived):
            self.answers[event.stream_id] = event.payload

    def call(self, method: str, request: "Message", service: str = TASK) -> bytes:
        return self.settle(self.begin(method, request, service))

    # --- the play

    def play(self, *, with_fifos: bool) -> None:
        """Create to Shutdown: with containerd's FIFOs and no follower, or with a log file and our daemon following."""
        stdout, stderr, readers = self._open_output(with_fifos)
        options = wkt.pack(runc.Options(root=self.bundle))
        create = task.CreateTaskRequest(id=ID, bundle=self.bundle, stdout=stdout, stderr=stderr, options=options)
        follows = self.begin("Follow", shim.FollowRequest(), SERVICE)
        follower = (self.client, self.connection)
        self._connect()  # what streamed is served otherwise: ttrpc/kept_connection.py
        self.call("Create", create)
        self.call("State", task.StateRequest(id=ID))
        self.call("Connect", task.ConnectRequest(id=ID))
        self.call("Info", shim.InfoRequest(), SERVICE)
        waits = self.begin("Wait", task.WaitRequest(id=ID))
        self.call("Start", task.StartRequest(id=ID))
        for exec_id in ("e1", "e2"):
            self._play_exec(exec_id, stdout if with_fifos else "")
        self.end_process()
        self.settle(waits)
        caller = (self.client, self.connection)
        self.client, self.connection = follower
        self.settle(follows)
        self.client.close()
        self.client, self.connection = caller
        self.answers.clear()
        self.call("Delete", task.DeleteRequest(id=ID))
        self._acknowledge()
        self.call("Shutdown", task.ShutdownRequest(id=ID))
        for fd in readers:
            os.close(fd)

    def _play_exec(self, exec_id: str, stdout: str) -> None:
        spec = wkt.any_of(PROCESS_URL, json.dumps(PROCESS).encode())
        self.call("Exec", task.ExecProcessRequest(id=ID, exec_id=exec_id, stdout=stdout, spec=spec))
        waits = self.begin("Wait", task.WaitRequest(id=ID, exec_id=exec_id))
        self.call("Start", task.StartRequest(id=ID, exec_id=exec_id))
        self.call("State", task.StateRequest(id=ID, exec_id=exec_id))
        self.end_process()
        self.settle(waits)
        self.call("Delete", task.DeleteRequest(id=ID, exec_id=exec_id))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Where events are forwarded, containerd does."""
        if self.events is not None:
            return
        self.call("Ack", shim.AckRequest(seq=self.shim.parts.journal.last_seq), SERVICE)

    def _open_output(self, with_fifos: bool) -> "tuple[str, str, list[int]]":
        """Where the container writes, and the fds that read there."""
        if not with_fifos:
            log = f"log://{self.bundle}/output?format=json&max-size=1000000&max-files=3"
            return log, log, []
        paths = [os.path.join(self.bundle, name) for name in ("stdout", "stderr")]
        for path in paths:
            os.mkfifo(path, 0o600)
        return paths[0], paths[1], [os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) for path in paths]

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

"""The life of a container played through in the keeper, so that its shims find their code as a long life leaves it.

CPython writes into code it runs for the first times: counters, specialised instructions, caches of types and dicts.
Each page it writes to is a shim's own from then on. Played through before the template is forked, these pages stay
shared. What remains is reference counts; bench/keeper.py says what is saved. Where it is played: stage.py.

Two lives come before the others, to learn which code a life runs; that is then put together, see keeper/memory.py.
"""

import fcntl
import json
import os
import shutil
import sys
import time

from shim.keeper.memory import gather
from shim.keeper.stage import ID, OUTPUT, PROCESS, Stage
from shim.serving.shimservice import SERVICE
from ttrpc.api import runc, shim, task, wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

# Code is specialised after it ran eight times; what runs once in a life needs as many lives, of either kind.
LIVES = 18
FIRST_LIVES = 2  # one of each kind: see `rehearse`
PHASES = 5  # see `play`
MEMORY = "/dev/shm"  # noqa: S108 - a life is mostly waiting for the disk elsewhere; the folder made in it is ours alone
FOLDER = "shimd-stage-"  # not `shimd-rehearsal-`: an older version sweeps those by pid
YOUNG_S = 60.0  # a folder that is made is locked in no time
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LOG_OPTIONS = "format=json&max-size=1000000&max-files=3"


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


def codes_of(folder: str, lives: int) -> "list[CodeType]":
    """The code of every function that runs in such lives, in the order of the phases of a life in which it first does.

    Blocks and raises as `rehearse`.
    """
    phases: list[dict[CodeType, None]] = [{} for _ in range(PHASES)]

    def enter(phase: int) -> None:
        codes = phases[phase]
        sys.setprofile(lambda frame, event, _argument: codes.setdefault(frame.f_code) if event == "call" else None)

    try:
        rehearse(folder, lives, "first-", enter)
    finally:
        sys.setprofile(None)
    return list(dict.fromkeys(code for codes in phases for code in codes))


def rehearse(folder: str, lives: int, prefix: str = "", enter: "Callable[[int], None]" = lambda _phase: None) -> None:
    """Play lives through, containerd's and our daemon's in turn. Blocks: some milliseconds for each.

    ``enter`` is told which phase begins. Raises: whatever goes wrong on the stage; ProcessLookupError when our parent,
    for whom it is done, has ended.
    """
    parent = os.getppid()
    for number in range(lives):
        if os.getppid() != parent:
            raise ProcessLookupError("nobody is left to rehearse for")
        enter(0)
        is_containerds = bool(number % 2)
        stage = Stage(os.path.join(folder, prefix + str(number)), has_listener=is_containerds)
        try:
            for phase, _ in enumerate(play(stage, with_fifos=is_containerds), 1):
                enter(phase)
        finally:
            stage.close()


def play(stage: Stage, *, with_fifos: bool) -> "Iterator[None]":
    """Create to Shutdown: with containerd's FIFOs and no follower, or with a log file and our daemon following.

    There are execs with the same streams, and one that a client attaches to: with a terminal, or with pipes.
    Yields where a phase ends: what comes then not every shim does, or not for a long time.
    """
    stdout, stderr, readers = _open_output(stage, with_fifos)
    options = wkt.pack(runc.Options(root=stage.bundle))
    create = task.CreateTaskRequest(id=ID, bundle=stage.bundle, stdout=stdout, stderr=stderr, options=options)
    follows = stage.begin("Follow", shim.FollowRequest(), SERVICE)
    follower = stage.change_connection()  # what streamed is served otherwise: ttrpc/kept_connection.py
    stage.call("Create", create)
    stage.call("State", task.StateRequest(id=ID))
    stage.call("Connect", task.ConnectRequest(id=ID))
    stage.call("Info", shim.InfoRequest(), SERVICE)
    stage.look_at_keeper()
    waits = stage.begin("Wait", task.WaitRequest(id=ID))
    stage.call("Start", task.StartRequest(id=ID))
    yield
    _play_exec(stage, "e1", stdout if with_fifos else "")
    _play_exec(stage, "e2", stdout if with_fifos else "")
    yield
    _play_attached(stage, "e3", with_fifos)
    yield
    init = stage.take_over()
    waits_again = stage.begin("Wait", task.WaitRequest(id=ID))
    stage.end_process()
    stage.settle(waits_again)
    assert stage.shim.tasks.container is not None
    init.told.fire(stage.shim.tasks.container.init.exit)
    stage.settle(waits)
    yield
    caller = stage.change_connection(follower)
    stage.settle(follows)
    stage.client.close()
    stage.change_connection(caller)
    stage.answers.clear()
    stage.call("Delete", task.DeleteRequest(id=ID))
    _acknowledge(stage)
    stage.call("Shutdown", task.ShutdownRequest(id=ID))
    for fd in readers:
        os.close(fd)


def _play_exec(stage: Stage, exec_id: str, stdout: str) -> None:
    spec = wkt.any_of(PROCESS_URL, json.dumps(PROCESS).encode())
    stage.call("Exec", task.ExecProcessRequest(id=ID, exec_id=exec_id, stdout=stdout, spec=spec))
    waits = stage.begin("Wait", task.WaitRequest(id=ID, exec_id=exec_id))
    stage.call("Start", task.StartRequest(id=ID, exec_id=exec_id))
    stage.call("State", task.StateRequest(id=ID, exec_id=exec_id))
    stage.end_process()
    stage.settle(waits)
    stage.call("Delete", task.DeleteRequest(id=ID, exec_id=exec_id))
    _acknowledge(stage)


def _play_attached(stage: Stage, exec_id: str, has_terminal: bool) -> None:
    """A client types and reads, on a connection of its own; it ends with the process."""
    stdout = f"log://{stage.bundle}/{exec_id}?{LOG_OPTIONS}" if has_terminal else "attach:"
    spec = wkt.any_of(PROCESS_URL, json.dumps({**PROCESS, "terminal": has_terminal}).encode())
    request = task.ExecProcessRequest(
        id=ID, exec_id=exec_id, stdin="attach:", stdout=stdout, stderr="" if has_terminal else stdout,
        terminal=has_terminal, spec=spec,
    )  # fmt: skip
    stage.call("Exec", request)
    caller = stage.change_connection()
    opening = shim.AttachOpen(exec_id=exec_id, stdin=True, output=True, replay_bytes=1000, input_id=1)
    attached = stage.begin("Attach", shim.AttachInput(open=opening), SERVICE)
    stage.settle(attached)
    client = stage.change_connection(caller)
    waits = stage.begin("Wait", task.WaitRequest(id=ID, exec_id=exec_id))
    stage.call("Start", task.StartRequest(id=ID, exec_id=exec_id))
    stage.call("ResizePty", task.ResizePtyRequest(id=ID, exec_id=exec_id, width=80, height=24))
    stage.change_connection(client)
    stage.say(attached, shim.AttachInput(resize=shim.Resize(width=100, height=30)))
    stage.say(attached, shim.AttachInput(stdin=OUTPUT))
    stage.settle(attached)
    stage.change_connection(caller)
    stage.call("CloseIO", task.CloseIORequest(id=ID, exec_id=exec_id, stdin=True))
    stage.end_process()
    stage.settle(waits)
    client[0].close()
    stage.call("Delete", task.DeleteRequest(id=ID, exec_id=exec_id))
    _acknowledge(stage)


def _acknowledge(stage: Stage) -> None:
    """Where events are forwarded, containerd does."""
    if stage.events is None:
        stage.call("Ack", shim.AckRequest(seq=stage.shim.parts.journal.last_seq), SERVICE)


def _open_output(stage: Stage, with_fifos: bool) -> "tuple[str, str, list[int]]":
    """Where the container writes, and the fds that read there."""
    if not with_fifos:
        log = f"log://{stage.bundle}/output?{LOG_OPTIONS}"
        return log, log, []
    paths = [os.path.join(stage.bundle, name) for name in ("stdout", "stderr")]
    for path in paths:
        os.mkfifo(path, 0o600)
    return paths[0], paths[1], [os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) for path in paths]

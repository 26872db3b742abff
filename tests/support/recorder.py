"""A recorder between containerd and its shims: sees every run of the shim's program, every call and every event.

A wrapper with the shim's name, first in containerd's PATH, tells the recorder about each run. It gives the shim another
socket for its events, and moves the shim's own socket aside to listen in its place. Both ends of both sockets believe
they talk to each other.

Any frame can be held on its way (`Recorder.hold`), so that a test acts exactly between two steps of an operation.
"""

import contextlib
import json
import os
import selectors
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.support.transcript import Entry, unpacked, values
from ttrpc.api import wkt
from ttrpc.envelope import decode_request, decode_response
from ttrpc.frames import REQUEST, RESPONSE, Frame, FrameReader, pack_header
from ttrpc.service import methods
from ttrpc.status import Code

READ_BYTES = 256 << 10
HOLD_S = 30.0
ASIDE = ".r"  # the end of a shim's socket's name while we listen under its own

# Isolated and without site: the wrapper's own start-up is in the way of every container.
WRAPPER = """\
#!{python} -IS
import json, os, select, socket, sys

real, control = {real!r}, {control!r}
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(control)
except OSError:
    os.execv(real, [real, *sys.argv[1:]])
talk = link.makefile("rwb")

def ask(**words):
    talk.write(json.dumps(words).encode() + b"\\n")
    talk.flush()
    return json.loads(talk.readline())

given = b"".join(iter(lambda: os.read(0, 65536), b""))
env = dict(os.environ)
answer = ask(argv=sys.argv[1:], stdin=given.hex(), env=env, cwd=os.getcwd(), same=os.fstat(1) == os.fstat(2))
if answer["events"] and env.get("TTRPC_ADDRESS"):
    env["TTRPC_ADDRESS"] = answer["events"]
pipes = [os.pipe() for _ in range(3)]
os.write(pipes[0][1], given)
ends = (pipes[0][0], pipes[1][1], pipes[2][1])
moves = [(os.POSIX_SPAWN_DUP2, end, fd) for fd, end in enumerate(ends)]
pid = os.posix_spawn(real, [real, *sys.argv[1:]], env, file_actions=moves)
for fd in (*pipes[0], pipes[1][1], pipes[2][1]):
    os.close(fd)
said = {{pipes[1][0]: b"", pipes[2][0]: b""}}
left = list(said)
while left:
    for fd in select.select(left, [], [])[0]:
        part = os.read(fd, 65536)
        said[fd] += part
        if not part:
            left.remove(fd)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
out, err = said.values()
ask(exit=status, stdout=out.hex(), stderr=err.hex())
os.write(1, out)
os.write(2, err)
os._exit(status if status >= 0 else 128 - status)
"""


class Hold:
    """One step to be held: a frame, or a run of the shim's program. The test waits for it, acts, and lets it go."""

    def __init__(self, method: str, when: str) -> None:
        self.method = method
        self.when = when
        self.is_reached = threading.Event()
        self.is_released = False
        self.is_dropped = False

    def wait(self) -> None:
        assert self.is_reached.wait(HOLD_S), f"no {self.when} of {self.method} came within {HOLD_S:g} s"


class Recorder:
    """Owns: a thread, the sockets it listens on, the wrappers. `entries` is appended to by the thread only."""

    def __init__(self, folder: str, shims: tuple[str, ...]) -> None:
        self.folder = folder
        self.bin = os.path.join(folder, "rec")
        self.entries: list[Entry] = []
        self.refused = 0  # connections to whom nobody answers
        self._holds: list[Hold] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: os.read(self._wake_read, 4096))
        self._links: set[Link] = set()
        self._answers: list[tuple[Hold, Callable[[], None]]] = []  # to wrappers that are held
        self._listeners: list[socket.socket] = []
        self._aside: list[str] = []
        self._is_stopping = False
        self._control = self._listen(os.path.join(folder, "control"), self._accept_wrapper)
        self._make_wrappers(shims)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def _make_wrappers(self, shims: tuple[str, ...]) -> None:
        os.makedirs(self.bin, exist_ok=True)
        for name in shims:
            real = shutil.which(name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
            assert real is not None, f"{name} is not installed"
            path = os.path.join(self.bin, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(WRAPPER.format(python=os.path.realpath(sys.executable), real=real, control=self._control))
            os.chmod(path, 0o755)

    # --- for the test -------------------------------------------------------------------------------------------------

    def hold(self, method: str, when: str = "reply") -> Hold:
        """Hold the next request or reply of a method until `release`.

        Methods: "Create" and so on; "Forward /tasks/exit"; "start" and "delete" for the shim's program.
        """
        hold = Hold(method, when)
        self._holds.append(hold)
        return hold

    def release(self, hold: Hold, *, drop: bool = False) -> None:
        """Let it go on, or (`drop`, frames only) never arrive: the sender died before it was sent."""
        hold.is_dropped = drop
        hold.is_released = True
        self._wake()

    def asked(self, name: str) -> int:
        """How often a method was called so far."""
        return sum(entry.name == name for entry in list(self.entries))

    def open_calls(self, name: str) -> int:
        """How many calls of a method are not answered yet."""
        return sum(entry.name == name and not entry.ended for entry in list(self.entries))

    def delivered(self, kind: str = "event") -> list[Entry]:
        """The calls that were answered without an error, in the order they were made."""
        return [entry for entry in list(self.entries) if entry.kind == kind and entry.ended and not entry.error]

    def close(self) -> None:
        self._is_stopping = True
        self._wake()
        self._thread.join()
        for link in list(self._links):
            link.close()
        for listener in self._listeners:
            listener.close()
        for path in self._aside:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def text(self) -> str:
        return "\n".join(map(str, self.entries))

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    def _run(self) -> None:
        while not self._is_stopping:
            for key, mask in self._selector.select():
                key.data(mask)
            for link in list(self._links):
                link.pump()
            for item in [item for item in self._answers if item[0].is_released]:
                self._answers.remove(item)
                item[1]()

    def _listen(self, path: str, accept: Callable[[socket.socket], None]) -> str:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: accept(listener.accept()[0]))
        return path

    def _accept_link(self, client: socket.socket, container: str, upstream: str) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(upstream)
        except OSError:  # as the caller would have seen it: nobody there
            self.refused += 1
            client.close()
            server.close()
            return
        self._links.add(Link(self, client, server, container))

    def _accept_wrapper(self, sock: socket.socket) -> None:
        """Talk with one run of the wrapper: JSON lines, a question and an answer each."""
        talk = sock.makefile("rwb")
        entry = Entry(len(self.entries), "exec", "", "")
        self.entries.append(entry)

        def answer(_: int) -> None:
            line = talk.readline()
            if not line:
                self._selector.unregister(sock)
                talk.close()
                sock.close()
                return
            words = json.loads(line)
            is_start = "argv" in words
            reply = self._told_start(entry, words) if is_start else self._told_end(entry, words)
            hold = self._held(entry, "request" if is_start else "reply")
            if hold is None:
                send(reply)
            else:
                self._answers.append((hold, lambda: send(reply)))
                hold.is_reached.set()

        def send(reply: dict[str, Any]) -> None:
            with contextlib.suppress(OSError, ValueError):
                talk.write(json.dumps(reply).encode() + b"\n")
                talk.flush()

        self._selector.register(sock, selectors.EVENT_READ, answer)

    def _told_start(self, entry: Entry, words: dict[str, Any]) -> dict[str, Any]:
        argv: list[str] = words["argv"]
        entry.name = argv[-1]
        entry.container = argv[argv.index("-id") + 1] if "-id" in argv else "-"
        options = wkt.Any()
        given = bytes.fromhex(words["stdin"])
        if given:
            options.ParseFromString(given)
        entry.request = {"argv": argv, "stdin": unpacked(options) if given else None, "one pipe": words["same"]}
        entry.notes = {"cwd": words["cwd"], **words["env"]}
        events = ""
        if words["env"].get("TTRPC_ADDRESS"):
            upstream = words["env"]["TTRPC_ADDRESS"]
            path = os.path.join(self.folder, f"events-{entry.order}")
            events = self._listen(path, lambda client: self._accept_link(client, entry.container, upstream))
        return {"events": events}

    def _told_end(self, entry: Entry, words: dict[str, Any]) -> dict[str, Any]:
        out = bytes.fromhex(words["stdout"])
        if entry.name == "start" and words["exit"] == 0:
            self._take_over(out.decode().strip().removeprefix("unix://"), entry.container)
            answer: Any = out.decode()
        elif entry.name == "delete" and words["exit"] == 0:
            reply = methods("containerd.task.v2.Task")["Delete"].output()
            reply.ParseFromString(out)
            answer = values(reply)
        else:
            answer = out.decode(errors="replace")
        entry.answer = {"exit": words["exit"], "stdout": answer, "stderr": bool(words["stderr"])}
        entry.notes["stderr"] = bytes.fromhex(words["stderr"]).decode(errors="replace")
        entry.ended = True
        return {}

    def _take_over(self, path: str, container: str) -> None:
        """Listen where the shim does, with the shim's own socket moved aside; its address stays what it was."""
        aside = path + ASIDE
        if os.path.exists(aside):  # a second container of the same shim
            return
        os.rename(path, aside)
        self._aside.append(aside)
        self._listen(path, lambda client: self._accept_link(client, container, aside))

    # --- what passes --------------------------------------------------------------------------------------------------

    def seen(self, link: "Link", frame: Frame) -> Hold | None:
        """Note a frame; returns the hold that wants it."""
        if frame.type == REQUEST and frame.data is not None:
            entry = self._seen_request(link, frame)
            return self._held(entry, "request")
        entry_of = link.calls.get(frame.stream_id)
        if frame.type == RESPONSE and frame.data is not None and entry_of is not None:
            self._seen_response(entry_of, frame.data)
            return self._held(entry_of, "reply")
        return None

    def _seen_request(self, link: "Link", frame: Frame) -> Entry:
        assert frame.data is not None
        request = decode_request(frame.data)
        message = methods(request.service)[request.method].input()
        message.ParseFromString(request.payload or b"")
        entry = Entry(len(self.entries), "call", link.container, request.method, values(message))
        if request.method == "Forward":
            entry.kind = "event"
            entry.name = f"Forward {message.envelope.topic}"
            entry.request = unpacked(message.envelope.event)
        entry.notes = {"service": request.service, "timeout": str(bool(request.timeout_ns)), **dict(request.metadata)}
        link.calls[frame.stream_id] = entry
        self.entries.append(entry)
        return entry

    def _seen_response(self, entry: Entry, data: bytes) -> None:
        status, payload = decode_response(data)
        if status is not None:
            entry.error = f"{Code(status.code).name}: {status.message}"
        else:
            message = methods(entry.notes["service"])[entry.name.partition(" ")[0]].output()
            message.ParseFromString(payload or b"")
            entry.answer = values(message)
        entry.ended = True

    def _held(self, entry: Entry, when: str) -> Hold | None:
        for hold in self._holds:
            if hold.when == when and hold.method == entry.name:
                self._holds.remove(hold)
                return hold
        return None


class Link:
    """One connection through the recorder: two sockets, and frames on their way in both directions."""

    def __init__(self, recorder: Recorder, client: socket.socket, server: socket.socket, container: str) -> None:
        self.recorder = recorder
        self.container = container
        self.calls: dict[int, Entry] = {}
        self.ways = (Way(client, server), Way(server, client))
        for way in self.ways:
            way.source.setblocking(False)
            recorder._selector.register(way.source, selectors.EVENT_READ, self._reader(way))

    def _reader(self, way: "Way") -> Callable[[int], None]:
        def read(_: int) -> None:
            try:
                data = way.source.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                way.is_ended = True
                self.recorder._selector.unregister(way.source)
                return
            for frame in way.frames.feed(data):
                way.queue.append((frame, self.recorder.seen(self, frame)))

        return read

    def pump(self) -> None:
        """Pass on what is not held; end both ways once one has ended and nothing is left of it."""
        for way in self.ways:
            way.pump()
        if any(way.is_ended and not way.queue for way in self.ways):
            self.close()

    def close(self) -> None:
        self.recorder._links.discard(self)
        for way in self.ways:
            with contextlib.suppress(KeyError, ValueError):
                self.recorder._selector.unregister(way.source)
            way.source.close()


class Way:
    """One direction of a link. Frames queue while one is held; ttrpc's are small and few, so writing may block."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.frames = FrameReader()
        self.queue: list[tuple[Frame, Hold | None]] = []
        self.is_ended = False

    def pump(self) -> None:
        while self.queue:
            frame, hold = self.queue[0]
            if hold is not None and not hold.is_released:
                hold.is_reached.set()
                return
            del self.queue[0]
            if hold is not None and hold.is_dropped:
                continue
            assert frame.data is not None
            data = pack_header(frame.length, frame.stream_id, frame.type, frame.flags) + frame.data
            try:
                self.sink.setblocking(True)
                self.sink.sendall(data)
            except OSError:
                self.is_ended = True
                self.queue.clear()
            finally:
                with contextlib.suppress(OSError):
                    self.sink.setblocking(False)

"""One script of operations on one runtime, and the notes of what came of it.

A scenario is a function of a `Play`. Everything it does through the play is noted under a label: exit codes, outputs,
error words, states; the harness adds the sequence of events and what was left on the machine. The same scenario is
played on the Go shim and on ours, and the two lists of notes are compared (compare.py).

Notes hold no pids, times or paths of the run, so that two plays of one scenario on one runtime note the same.
"""

import hashlib
import json
import os
import pty
import re
import termios
from collections.abc import Callable
from typing import Any

from tests.interop.eventwatch import EventWatch, told
from tests.support.containerdbox import Client, ContainerdBox, Result, listed
from tests.support.grpcapi import GrpcApi, Refused
from tests.support.recorder import Recorder
from tests.support.transcript import Entry, normalised, values
from tests.support.waiting import wait_until
from ttrpc.blocking import BlockingClient
from ttrpc.errors import StatusError
from ttrpc.service import methods
from ttrpc.status import Code

WAIT_FOR_GO = "until [ -e /tmp/go ]; do sleep 0.01; done"  # in a container; see `Play.make_file`
TASK = "containerd.task.v2.Task"
LONGEST_TEXT = 2000  # longer output is noted as its size and hash
SETTLE_S = 10.0
CLEAN_S = 6.0  # what is still there then stays
FOREVER = ("/bin/sleep", "1000")
SHIM = re.compile(
    r"shim:(\S+) -namespace [^\s,;]+|\S+/containerd-shim-runc-v2 -namespace \S+ -id (\S+) -address [^,;]+"
)


class Play:
    """Owns: what it opens here (clients, terminals, connections); the box is lent."""

    def __init__(self, runtime: str, box: ContainerdBox, recorder: Recorder | None = None) -> None:
        self.runtime = runtime
        self.box = box
        self.recorder = recorder
        self.notes: list[tuple[str, Any]] = []
        self.replace = [
            (box.bundles, "<bundles>"),
            (box.fifo_dir, "<fifos>"),
            (box.folder, "<box>"),
            (box.namespace, "<ns>"),
            (runtime, "<runtime>"),
        ]
        self._closing: list[Callable[[], None]] = []
        self.api = GrpcApi(box.address, box.namespace)
        self._closing.append(self.api.close)
        self.events = EventWatch(box)
        self._closing.append(self.events.close)

    def close(self) -> None:
        while self._closing:
            self._closing.pop()()

    # --- notes --------------------------------------------------------------------------------------------------------

    def note(self, label: str, value: Any) -> None:
        self.notes.append((label, self.plain(value)))

    def plain(self, value: Any) -> Any:
        """The value without what is this run's alone; long texts as size and hash."""
        if isinstance(value, bytes):
            if len(value) > LONGEST_TEXT:
                return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}"
            value = value.decode(errors="replace")
        if isinstance(value, str):
            return normalised(value, self.replace)
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item) for item in value]
        return value

    def note_result(self, label: str, result: Result) -> Result:
        noted: dict[str, Any] = {"exit": result.exit}
        if result.out:
            noted["out"] = result.out
        if result.err:
            noted["err"] = re.sub(r'time="[^"]*" ', "", result.complaint)
        self.note(label, noted)
        return result

    # --- ctr ----------------------------------------------------------------------------------------------------------

    def ctr(self, label: str, *args: str, stdin: bytes | None = None) -> Result:
        return self.note_result(label, self.box.ctr(*args, stdin=stdin))

    def run_args(self, container: str, command: tuple[str, ...], options: tuple[str, ...]) -> list[str]:
        self.box.ids.add(container)
        fifos = ("--fifo-dir", self.box.fifo_dir)
        return ["run", "--runtime", self.runtime, *fifos, *options, "--rootfs", self.box.rootfs, container, *command]

    def run(self, container: str, *command: str, options: tuple[str, ...] = (), stdin: bytes | None = None) -> Result:
        """`ctr run`, to the end of the command."""
        return self.ctr(f"run {container}", *self.run_args(container, command, options), stdin=stdin)

    def start(self, container: str, *command: str, options: tuple[str, ...] = ()) -> Result:
        """`ctr run --detach`, without a command one that sleeps."""
        args = self.run_args(container, command or FOREVER, ("--detach", *options))
        return self.ctr(f"run -d {container}", *args)

    def run_open(self, container: str, *command: str, options: tuple[str, ...] = ()) -> Client:
        """`ctr run` as a client that stays."""
        return self.client(*self.run_args(container, command, options))

    def exec_args(
        self, container: str, exec_id: str, command: tuple[str, ...], options: tuple[str, ...] = ()
    ) -> list[str]:
        fifos = ("--fifo-dir", self.box.fifo_dir)
        return ["tasks", "exec", "--exec-id", exec_id, *fifos, *options, container, *command]

    def exec(
        self,
        container: str,
        exec_id: str,
        *command: str,
        options: tuple[str, ...] = (),
        stdin: bytes | None = None,
    ) -> Result:
        """`ctr tasks exec`, to the end of the command."""
        args = self.exec_args(container, exec_id, command, options)
        return self.ctr(f"exec {container}/{exec_id}", *args, stdin=stdin)

    def client(self, *args: str, stdin: bytes | None = None, terminal: int | None = None) -> Client:
        """A ctr command that goes on; it is killed at the end of the play at the latest."""
        client = self.box.ctr_open(*args, stdin=stdin, terminal=terminal)
        self._closing.append(client.close)
        return client

    def terminal(self) -> "Terminal":
        terminal = Terminal()
        self._closing.append(terminal.close)
        return terminal

    def kill(self, container: str, signal: str = "KILL", *options: str) -> Result:
        return self.ctr(f"kill -s {signal} {container}", "tasks", "kill", "-s", signal, *options, container)

    def remove(self, *containers: str) -> None:
        """End and delete what is left of the containers; notes nothing, for it is not the scenario's subject."""
        for container in containers:
            self.box.ctr("tasks", "rm", "--force", container)
            self.box.ctr("containers", "rm", container)

    # --- gRPC ---------------------------------------------------------------------------------------------------------

    def create(self, container: str, *command: str, **fields: Any) -> Any:
        """The record and the task, not started: what `ctr` cannot do. Returns the reply or None."""
        self.box.ids.add(container)
        words = ("containers", "create", "--runtime", self.runtime, "--rootfs", self.box.rootfs, container)
        made = self.box.ctr(*words, *(command or FOREVER))
        assert made.exit == 0, made.complaint
        return self.tasks("Create", container_id=container, **fields)

    def tasks(self, name: str, label: str = "", **fields: Any) -> Any:
        """A call of containerd's Tasks service, noted. Returns the reply, or None when it was refused."""
        words = " ".join(str(fields[key]) for key in ("container_id", "exec_id") if key in fields)
        label = label or f"Tasks.{name} {words}"
        try:
            reply = self.api.tasks(name, **fields)
        except Refused as refused:
            self.note(label, f"{refused.kind}: {refused.words}")
            return None
        self.note(label, values(reply))
        return reply

    def state(self, container: str, exec_id: str = "") -> Any:
        """What containerd says of a process now, not noted; None when it knows none."""
        try:
            return self.api.tasks("Get", container_id=container, exec_id=exec_id).process
        except Refused:
            return None

    def note_state(self, container: str, exec_id: str = "") -> None:
        self.tasks("Get", f"state of {container} {exec_id}".strip(), container_id=container, exec_id=exec_id)

    def pid_of(self, container: str, exec_id: str = "") -> int:
        return int(self.state(container, exec_id).pid)

    def wait_stopped(self, container: str, exec_id: str = "") -> None:
        def is_stopped() -> bool:
            state = self.state(container, exec_id)
            return (
                state is not None
                and type(state).DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[state.status].name
                == "STOPPED"
            )

        wait_until(is_stopped, deadline_s=SETTLE_S, what=f"{container} {exec_id} to stop")

    # --- the shim itself ----------------------------------------------------------------------------------------------

    def wire(self, label: str, container: str, name: str, **fields: Any) -> Any:
        """A call straight to the shim's socket, noted with its code. Returns the reply, or None when refused."""
        request = methods(TASK)[name].input(**fields)
        with BlockingClient.connect(self.box.socket_of(container)) as shim:
            try:
                reply = shim.call(TASK, name, request, timeout_s=SETTLE_S)
            except StatusError as error:
                self.note(label, f"{Code(error.code).name}: {error.message}")
                return None
        self.note(label, values(reply))
        return reply

    # --- inside -------------------------------------------------------------------------------------------------------

    def wait_file(self, name: str) -> None:
        """Wait until something in a container made /tmp/NAME: how scripts inside say where they are."""
        path = os.path.join(self.box.rootfs, "tmp", name)
        wait_until(lambda: os.path.exists(path), deadline_s=SETTLE_S, what=f"the container to make /tmp/{name}")

    def make_file(self, name: str) -> None:
        """Make /tmp/NAME for a script inside that waits for it."""
        with open(os.path.join(self.box.rootfs, "tmp", name), "w", encoding="utf-8"):
            pass

    def read_file(self, name: str) -> bytes:
        with open(os.path.join(self.box.rootfs, "tmp", name), "rb") as file:
            return file.read()

    # --- the recorder -------------------------------------------------------------------------------------------------

    @property
    def tape(self) -> Recorder:
        """The recorder of a scenario that asked for one."""
        assert self.recorder is not None, "the scenario is not recorded"
        return self.recorder

    def owed(self) -> set[str]:
        """The events that the shims' answers so far promise."""
        return {line for entry in self.tape.delivered("call") for line in owed_for(entry)}

    def delivered(self) -> list[str]:
        """Those that arrived, in order, each at its first time."""
        return list(dict.fromkeys(line_of(entry) for entry in self.tape.delivered()))

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self, order: str) -> None:
        """Note the events and what is left, once nothing is on its way any more."""
        last: list[str] = []

        def is_clean() -> bool:
            last[:] = [SHIM.sub(r"shim of \g<1>\g<2>", re.sub(r"process \d+", "process", str(self.box.leftovers())))]
            return last == ["nothing"]

        try:
            wait_until(is_clean, deadline_s=CLEAN_S, what="everything to be gone")
        except AssertionError:
            pass  # noted below, and compared
        self.note("left behind", last[0])
        if order != "unwatched":
            self.note("folders of fifos left behind", len(list(listed(self.box.fifo_dir))))
            self.note("events", self.events.seen(order))


def line_of(entry: Entry) -> str:
    """A forwarded event as the subscribers' line for it."""
    (fields,) = entry.request.values()
    return told(entry.name.removeprefix("Forward "), fields)


def owed_for(call: Entry) -> list[str]:
    """The events that must have happened when this call was answered so."""
    container, exec_id = call.request.get("id", ""), call.request.get("exec_id", "")
    who = f"{container}/{exec_id}" if exec_id else container
    match call.name:
        case "Create":
            return [f"create {who}"]
        case "Start":
            return [f"exec-started {who}" if exec_id else f"start {who}"]
        case "Exec":
            return [f"exec-added {who}"]
        case "Pause" | "Resume":
            return [f"{call.name.lower()}d {who}"]
        case "Delete" if call.answer.get("exited_at") == "<time>":
            status = call.answer.get("exit_status", 0)
            return [f"exit {who} = {status}", *([] if exec_id else [f"delete {who} = {status}"])]
    return []


class Terminal:
    """A pty pair: `tty` is for a client, we hold the master. Owns: both ends."""

    def __init__(self) -> None:
        self._master, self.tty = pty.openpty()
        os.set_blocking(self._master, False)
        self._seen = b""

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.tty, (rows, columns))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    @property
    def seen(self) -> bytes:
        """All that was shown so far."""
        try:
            while part := os.read(self._master, 65536):
                self._seen += part
        except (BlockingIOError, OSError):
            pass
        return self._seen

    @property
    def shown(self) -> bytes:
        """The same without ctr's complaint that it came too late to set the size."""
        return b"".join(line for line in self.seen.splitlines(keepends=True) if b"resize pty" not in line)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text.encode() in self.seen, deadline_s=SETTLE_S, what=f"the terminal to show {text!r}")

    def close(self) -> None:
        os.close(self._master)
        os.close(self.tty)


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)

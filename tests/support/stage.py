"""A stage for the shim's handlers: a real loop with a clock of ours, and a reaper where the test plays runc and kernel.

stage.ask(creation.create(container, request))       a handler begins
pid = stage.runc("create")                           it has called `runc create`
stage.write_pid(11)                                  runc wrote the pid file
stage.ends(pid, 0)                                   runc ends, the handler goes on
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from shim.bundle import Bundle
from shim.core import kernel
from shim.core.loop import Loop
from shim.core.steps import Signal
from shim.params import Params
from shim.serving.journal import Cursor, Journal
from shim.serving.parts import Parts
from shim.streams.stdio import StdioRequest
from shim.task import creation, execs
from shim.task.container import Container
from shim.task.exits import Exit, ExitStore
from ttrpc.api import runc, shim, task

RUNC_PID = 1000  # of the first call; pids of the container are below
INIT, EXEC = 11, 21
PROCESS = json.dumps({"args": ["true"], "cwd": "/"}).encode()


class StagedReaper:
    """Knows which programs were started and lets the test say how they end."""

    def __init__(self) -> None:
        self.started: dict[int, tuple[str, ...]] = {}
        self.outputs: dict[int, int] = {}
        self.signals: dict[int, Signal] = {}
        self.adopted: dict[int, Signal] = {}
        self.killed_groups: list[int] = []
        self.taken: list[int] = []
        self.holds = 0
        self.missing = False

    def start(self, step: Any) -> int:
        if self.missing:
            raise FileNotFoundError(2, "No such file or directory")
        pid = RUNC_PID + len(self.started)
        self.started[pid] = step.argv
        self.outputs[pid] = step.stdio[1]
        self.signals[pid] = Signal()
        return pid

    def exit_signal(self, pid: int) -> Signal:
        return self.signals[pid]

    def adopt(self, pid: int) -> Signal:
        assert self.holds, "a pid may be adopted only while strangers are held"
        return self.adopted.setdefault(pid, Signal())

    def take(self, pid: int) -> None:
        self.taken.append(pid)

    def hold(self) -> None:
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1

    def kill_group(self, pid: int) -> None:
        self.killed_groups.append(pid)


class StagedStdio:
    """Streams of nothing; the test says how long draining takes."""

    def __init__(self, stage: "Stage", name: str) -> None:
        self.stage = stage
        self.name = name
        self.console_socket = None
        self.calls: list[str] = []
        self.drained = Signal()
        self.drained.fire()
        self.drain_error: Exception | None = None
        self.log_bytes = self.dropped_bytes = self.attached = 0
        self.is_stdin_ended, self.program = False, None

    def open(self) -> None:
        self.calls.append("open")

    def prepare(self) -> Iterator[Any]:
        yield from ()

    def finish(self) -> Iterator[Any]:
        yield from ()

    def child_ends(self) -> tuple[None, None, None]:
        return (None, None, None)

    def started(self) -> None:
        self.calls.append("started")

    def close_stdin(self) -> None:
        self.calls.append("close_stdin")

    def drain(self, deadline_s: float = 2.0) -> Iterator[Any]:
        from shim.core.steps import Fired

        self.calls.append("drain")
        yield Fired(self.drained)
        if self.drain_error is not None:
            raise self.drain_error

    def exited(self, record: Any) -> None:
        self.calls.append("exited")

    def close(self) -> None:
        self.calls.append("close")


class StagedExits(ExitStore):
    """The real store, which can be told to refuse; `writes` are the records that got to disk."""

    __slots__ = ("refuse", "writes")

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.refuse = False
        self.writes: list[Exit] = []

    def write(self, record: Exit) -> None:
        if self.refuse:
            raise OSError(28, "No space left on device")
        super().write(record)
        self.writes.append(record)


class StagedLog:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    debug = info = warning = error = note

    def failure(self, what: str, error: BaseException) -> None:
        self.lines.append(f"{what}: {error!r}")


class StagedOom:
    def __init__(self) -> None:
        self.kills = 0

    def count(self) -> int:
        return self.kills

    def close(self) -> None:
        pass


class StagedCgroup:
    """Stands for a container's cgroup; `shim.cgroup.cgroups` is replaced where it is asked about its members."""

    def close(self) -> None:
        pass


class Stage:
    """Owns the bundle folder's journal and the loop. `close` it."""

    def __init__(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.reaper = StagedReaper()
        self.loop.reaper = self.reaper  # type: ignore[assignment]
        self.exits = StagedExits(os.path.join(folder, "exits"))
        self.log = StagedLog()
        self.oom = StagedOom()
        self.streams: dict[str, StagedStdio] = {}
        self.signalled: list[tuple[int, int]] = []
        self.signalled_all: list[int] = []
        self.bundle = Bundle(folder)
        self.bundle.make_directories()
        self.parts = Parts(
            Params(namespace="test", id="c1", bundle=folder),
            loop=self.loop,
            reaper=self.reaper,  # type: ignore[arg-type]
            bundle=self.bundle,
            journal=Journal(os.path.join(folder, "journal")),
            exits=self.exits,
            log=self.log,  # type: ignore[arg-type]
            boot_id="boot",
            incarnation="one",
            make_stdio=self._make_stdio,
            find_cgroup=lambda _pid: StagedCgroup(),
            watch_oom=lambda _paths, _on_oom: self.oom,
        )
        monkeypatch.setattr(kernel, "open_pidfd", lambda pid: None)
        monkeypatch.setattr(kernel, "start_ticks", lambda pid: pid * 10)
        monkeypatch.setattr(kernel, "send_signal", lambda fd, pid, signum: self.signalled.append((pid, signum)))
        monkeypatch.setattr(
            "shim.task.ending.cgroups.kill_all", lambda _paths, signum: self.signalled_all.append(signum)
        )
        monkeypatch.setattr("shim.task.ending.time.monotonic", lambda: self.now)
        monkeypatch.setattr("shim.task.container.cgroups.pids", lambda _paths: [])

    def _make_stdio(self, process: Any, _uid: int, _gid: int) -> Any:
        made = self.streams[process.name] = StagedStdio(self, process.name)
        return made

    def container(self, *, shares_pids: bool = False) -> Container:
        return Container(self.parts, runc.Options(), StdioRequest(), shares_pids=shares_pids)

    # --- the play

    def ask(self, handler: Any) -> "Asked":
        asked = Asked()
        self.loop.spawn(handler, asked.ended)
        self.turn()
        return asked

    def turn(self) -> None:
        """Let everything happen that can happen now."""
        for _ in range(10):
            self.loop.run_once(0)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def running_calls(self) -> list[tuple[int, tuple[str, ...]]]:
        return [(pid, argv) for pid, argv in self.reaper.started.items() if not self.reaper.signals[pid].fired]

    def runc(self, verb: str) -> int:
        """The pid of the one call of this verb that is under way."""
        found = [pid for pid, argv in self.running_calls() if verb in argv]
        assert len(found) == 1, f"expected one runc {verb}, under way are {self.running_calls()}"
        return found[0]

    def ends(self, pid: int, status: int = 0, *, output: bytes = b"") -> None:
        """A program of ours ends with this wait status, having printed this."""
        if output:
            os.write(self.reaper.outputs[pid], output)
        self.reaper.signals[pid].fire(status)
        self.turn()

    def does(self, verb: str) -> None:
        """runc does what it was asked for."""
        self.ends(self.runc(verb))

    def fails(self, verb: str, message: str, *, exec_id: str = "") -> None:
        """runc fails with these words in its log."""
        log = self.bundle.file("execs", f"{exec_id}.log.json") if exec_id else self.bundle.file("log.json")
        with open(log, "a", encoding="utf-8") as file:
            file.write('{"level":"error","msg":"%s"}\n' % message)
        self.ends(self.runc(verb), 1 << 8)

    def write_pid(self, pid: int, exec_id: str = "") -> None:
        path = self.bundle.file("execs", f"{exec_id}.pid") if exec_id else self.bundle.file("init.pid")
        with open(path, "w", encoding="ascii") as file:
            file.write(str(pid))

    def dies(self, pid: int, status: int = 9) -> None:
        """A process of the container is reaped."""
        self.reaper.adopted.setdefault(pid, Signal()).fire(status)
        self.turn()

    # --- what is told

    def records(self) -> list[Any]:
        found = self.parts.journal.read(Cursor(), 1000)
        return [shim.JournalRecord.FromString(payload) for _, payload in found]

    def told(self) -> list[str]:
        """The topics so far, exits with whose they are."""
        names = []
        for record in self.records():
            name = record.topic.removeprefix("/tasks/")
            names.append(f"{name} {record.exit.exec_id or 'init'}" if name == "exit" else name)
        return names

    def close(self) -> None:
        self.parts.journal.close()
        self.loop.close()


class Asked:
    """How a handler ended, if it did."""

    def __init__(self) -> None:
        self.is_done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def ended(self, value: Any, error: BaseException | None) -> None:
        self.is_done, self.value, self.error = True, value, error

    def result(self) -> Any:
        """Its value. Raises: what it raised; AssertionError while it waits."""
        assert self.is_done, "the handler is still waiting"
        if self.error is not None:
            raise self.error
        return self.value


# --- acts that many plays begin with


def created(stage: Stage, **options: Any) -> Container:
    container = stage.container(**options)
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    stage.write_pid(INIT)
    stage.does("create")
    assert asked.result() == INIT
    return container


def started(stage: Stage, **options: Any) -> Container:
    container = created(stage, **options)
    asked = stage.ask(container.start())
    stage.does("start")
    assert asked.result() == INIT
    return container


def with_exec(stage: Stage, container: Container, exec_id: str = "e1", pid: int = EXEC) -> None:
    execs.add(container, exec_id, StdioRequest(), PROCESS)
    asked = stage.ask(execs.start(container, container.execs[exec_id]))
    stage.write_pid(pid, exec_id)
    stage.does("exec")
    assert asked.result() == pid

"""What the fake daemon runs: a plain process of the host with the streams a shim would give it."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
import time
from typing import Any

from tests.support.threadserver import Call
from ttrpc.api import process, shim, wkt
from ttrpc.errors import StatusError
from ttrpc.status import Code


class FakeProcess:
    """Init or exec. Its output goes to the log and to whoever is attached; its end is told once all of it was read."""

    def __init__(self, owner: Any, exec_id: str, args: list[str], env: list[str], request: Any) -> None:
        self.owner = owner
        self.exec_id = exec_id
        self.args = args
        self.env = dict(entry.split("=", 1) for entry in env)
        self.terminal = bool(request.terminal)
        self.stdin, self.stdout, self.stderr = request.stdin, request.stdout, request.stderr
        self.status = process.CREATED
        self.pid = 0
        self.exit_status = 0
        self.over = threading.Event()
        self.log: list[Any] = []
        self.resources = b""
        self.record: Any = None
        self.is_status_lost = False  # as if the shim had died: the end is known, the status not
        self._attached: list[Call] = []
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._master = -1
        self._threads: list[threading.Thread] = []

    def start(self) -> int:
        """Run it. Raises: StatusError as runc words it when it cannot be executed."""
        if self.status != process.CREATED:
            raise StatusError(Code.UNKNOWN, "cannot start a running process")
        slave = -1
        if self.terminal:
            self._master, slave = os.openpty()
        pipe = slave if self.terminal else subprocess.PIPE
        try:
            self._popen = subprocess.Popen(
                self.args,
                stdin=pipe if self.stdin or self.terminal else subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                env={**self.env, "SHIMD_TEST_RUN": os.environ.get("SHIMD_TEST_RUN", "")},
                start_new_session=True,
                bufsize=0,
            )
        except FileNotFoundError:
            words = f'OCI runtime start failed: exec: "{self.args[0]}": executable file not found in $PATH'
            raise StatusError(Code.UNKNOWN, words) from None
        finally:
            if slave >= 0:
                os.close(slave)
        self.pid = self._popen.pid
        self.status = process.RUNNING
        readers = [(self._master, "stdout")] if self.terminal else []
        for name in () if self.terminal else ("stdout", "stderr"):
            readers.append((getattr(self._popen, name).fileno(), name))
        self._threads = [threading.Thread(target=self._copy, args=reader) for reader in readers]
        for thread in self._threads:
            thread.start()
        waiter = threading.Thread(target=self._reap)
        self._threads.append(waiter)
        waiter.start()
        return self.pid

    def _copy(self, fd: int, name: str) -> None:
        while True:
            try:
                data = os.read(fd, 65536)
            except OSError:
                return
            if not data:
                return
            stream = shim.LOG_STREAM_STDOUT if name == "stdout" else shim.LOG_STREAM_STDERR
            with self._lock:
                self.log.append(shim.LogRecord(at=wkt.timestamp(time.time_ns()), stream=stream, data=data))
                attached = list(self._attached)
            for call in attached:
                call.send(shim.AttachOutput(**{name: data}))

    def _reap(self) -> None:
        assert self._popen is not None
        code = self._popen.wait()
        for thread in self._threads[:-1]:
            thread.join()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._master >= 0:
            os.close(self._master)
        record = shim.ExitRecord(container_id=self.owner.id, exec_id=self.exec_id, pid=self.pid)
        record.exited_at.CopyFrom(wkt.timestamp(time.time_ns()))
        if self.is_status_lost:
            code = 255  # what containerd's messages say for it
        else:
            record.source = shim.EXIT_SOURCE_WAITID
            setattr(record, "signal" if code < 0 else "code", abs(code))
        self.exit_status = 128 - code if code < 0 else code
        self.status = process.STOPPED
        self.owner.exited(record)
        with self._lock:
            self.record = record
            self.over.set()

    def attach(self, call: Call, wanted: Any) -> None:
        """Serve one attach stream until the process or the caller is gone."""
        with self._lock:
            call.send(shim.AttachOutput(opened=shim.AttachOpened(terminal=self.terminal)))
            if wanted.output:
                self._attached.append(call)
        reader = threading.Thread(target=self._feed, args=(call,))
        reader.start()
        while call.is_open and not self.over.wait(0.02):
            pass
        with self._lock:
            if call in self._attached:
                self._attached.remove(call)
        if self.record is not None:
            call.send(shim.AttachOutput(exited=self.record))
        call.messages.put(None)
        reader.join()

    def _feed(self, call: Call) -> None:
        while (message := call.messages.get()) is not None:
            kind = message.WhichOneof("input")
            if kind == "stdin":
                self._write(message.stdin)
            elif kind == "close_stdin" and self._popen is not None and self._popen.stdin is not None:
                self._popen.stdin.close()
            elif kind == "resize" and self._master >= 0:
                size = struct.pack("HHHH", message.resize.height, message.resize.width, 0, 0)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._master >= 0:
                os.write(self._master, data)
            elif self._popen is not None and self._popen.stdin is not None:
                self._popen.stdin.write(data)

    def kill(self, number: int) -> None:
        """Raises: StatusError NotFound when it has ended."""
        if self.status == process.STOPPED:
            raise StatusError(Code.NOT_FOUND, "process already finished")
        if self._popen is None:
            self.status = process.STOPPED
            self.over.set()
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # reaped, and about to be told
            raise StatusError(Code.NOT_FOUND, "process already finished") from None

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)
        self.status = process.PAUSED

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)
        self.status = process.RUNNING

    def end(self) -> None:
        """Kill it and wait for every thread."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            for thread in self._threads:
                thread.join(10)

    def as_message(self) -> Any:
        """As Tasks.Get answers."""
        made = process.Process(container_id=self.owner.id, id=self.exec_id or self.owner.id, pid=self.pid)
        made.status, made.terminal, made.exit_status = self.status, self.terminal, self.exit_status
        made.stdin, made.stdout, made.stderr = self.stdin, self.stdout, self.stderr
        if self.record is not None:
            made.exited_at.CopyFrom(self.record.exited_at)
        return made

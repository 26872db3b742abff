"""One process's standard streams, whatever they are connected to. SHIM.md tells the forms a URI takes."""

import os

from shim.bundle import remove
from shim.core import pipes
from shim.errors import failed_precondition, unknown
from shim.recovery.spares import Share
from shim.streams import targets
from shim.streams.attach import RETURN_S, Hub
from shim.streams.backlog import Backlog
from shim.streams.clientpaths import open_output
from shim.streams.inputs import Inputs
from shim.streams.jsonlines import STDERR, STDOUT
from shim.streams.logfile import LogFile
from shim.streams.logprogram import LogProgram
from shim.streams.logs import LogFollower
from shim.streams.outlets import PipeSink
from shim.streams.pumps import Pump
from shim.streams.spool import Book
from shim.streams.stdin import Stdin
from shim.streams.targets import ATTACH, BINARY, CLIENT, FILE, JSON, LOG, NOTHING
from shim.streams.targets import StdioRequest as StdioRequest
from shim.streams.terminal import LIFTED, Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.core.loop import Loop
    from shim.core.steps import Handler
    from shim.recovery.spares import Spares
    from shim.streams.targets import Target
    from ttrpc.api.shim import AttachOpen, ExitRecord, LogsRequest
    from ttrpc.server_call import ServerCall


class Stdio:
    """Owns every fd of one process's streams.

    Order: open → prepare → (spawn with child_ends or console_socket) → receive_console → started → its exit → drain →
    exited → finish → close. attach, close_stdin and resize may come at any time; what comes early is remembered.

    ``direct``: a client's FIFO is handed to the process itself, so nothing is copied and nothing depends on this shim.
    Not so for execs: whoever an exec leaves behind would hold the client's FIFO open for ever, so there we copy.
    """

    def __init__(
        self,
        loop: "Loop",
        io_dir: str,
        name: str,
        request: StdioRequest,
        *,
        uid: int = 0,
        gid: int = 0,
        direct: bool = True,
        labels: "dict[str, str] | None" = None,
        report: "Callable[[str], None]" = lambda _line: None,
        spares: "Spares | None" = None,
        on_change: "Callable[[], None]" = lambda: None,
    ) -> None:
        self.terminal = request.terminal
        self._loop = loop
        self._prefix = os.path.join(io_dir, name)
        self._request = request
        self._uid = uid
        self._gid = gid
        self._direct = direct
        self._labels = labels or {}  # the environment of a log program
        self._report = report
        self._spares = Share(spares, name)
        self._reopens = False
        self.keeps_fifos = False  # of a process that was not started yet: what is in them is its own
        self._source: Target = targets.Target(NOTHING)
        self._out: Target = targets.Target(NOTHING)
        self._child: list[int | None] = [None, None, None]
        self._fifos: list[str] = []
        self.pumps: list[Pump] = []
        self.sinks: list[PipeSink] = []
        self.log: LogFile | None = None
        self._book: Book | None = None  # of a JSON log
        self._backlog: Backlog | None = None  # of what attach clients alone get
        self.program: LogProgram | None = None
        self.hub: Hub | None = None
        self._on_change = on_change  # of what a successor must know
        self.input = Stdin(loop, self._spares, on_change)
        self.inputs = Inputs(loop, self.input.outlet, self.close_stdin, self.resize)
        self._terminal = Terminal(loop, self._spares) if request.terminal else None
        self._started = False
        self._exit_record: ExitRecord | None = None
        self._closed_dropped_bytes = 0
        self._closed = False

    @property
    def console_socket(self) -> "str | None":
        """Where the runtime is to send the terminal; None when it has, or there is none."""
        return self._terminal.socket_path if self._terminal is not None else None

    # --- counters

    @property
    def log_bytes(self) -> int:
        """Output taken from the process."""
        return sum(pump.taken_bytes for pump in self.pumps)

    @property
    def dropped_bytes(self) -> int:
        """Output which nobody and nothing kept."""
        kept_by_ring_only = self.hub is not None and self._out.kind == ATTACH
        lost = self.hub.lost_bytes if self.hub is not None and kept_by_ring_only else 0
        takers = (self.log, self.program)
        return lost + sum(taker.dropped_bytes for taker in takers if taker is not None) + self._closed_dropped_bytes

    @property
    def attached(self) -> int:
        return self.hub.attached if self.hub is not None else 0

    @property
    def is_stdin_ended(self) -> bool:
        return self.input.is_ended

    # --- opening

    def open(self, *, reopens: bool = False) -> None:
        """Make ready what the process will be given; or, with ``reopens``, what it was given by a shim that died.

        FIFOs are found by their names, which live as long as somebody has them open: the process, or the keeper. Where
        a client's FIFO is gone, so is the client. A terminal has no name: only the keeper can have kept it.
        Raises: StatusError InvalidArgument for a URI which cannot be, or names something that is not there;
        FailedPrecondition for a log that another process writes. Nothing is left open then.
        """
        request = self._request
        if reopens:
            self._reopens = self._started = True
        self.input.outlet.recover()
        self._source, self._out, err = targets.parse_all(
            request.stdin, request.stdout, request.stderr, terminal=self.terminal
        )
        try:
            if self._out.kind in (LOG, FILE):
                self._book = Book(self._prefix, reopens=reopens) if self._out.format == JSON else None
                self.log = LogFile(self._loop, self._out, report=self._report, book=self._book)
                self.log.open()
            elif self._out.kind == BINARY:
                self.program = LogProgram(self._loop, self._out, self._labels, self._report)
                self.program.on_change = self._on_change
            self._make_hub(err)
            if self._terminal is not None:
                self._open_terminal(self._terminal)
            else:
                if reopens:
                    self.input.reopen(self._source, self._fifo)
                else:
                    self._child[0] = self.input.open(self._source, self._fifo)
                self._child[1] = self._open_output(STDOUT, self._out)
                self._child[2] = self._open_output(STDERR, err)
        except OSError as error:
            self.close()
            raise unknown(f"stdio {self._prefix}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _make_hub(self, err: "Target") -> None:
        log = self.log
        if log is not None and not log.is_json:
            self.hub = Hub(terminal=self.terminal, keep=False, log=log)
        elif log is not None or self.terminal or ATTACH in (self._source.kind, self._out.kind, err.kind):
            if log is None and ATTACH in (self._out.kind, err.kind):
                self._backlog = self._make_backlog()
            book = self._backlog.book if self._backlog is not None else self._book
            # A client's terminal is not remembered: what passes through our memory is what a kill costs.
            keep = not (self.terminal and self._out.kind in (CLIENT, BINARY))
            self.hub = Hub(terminal=self.terminal, keep=keep, book=book)
            if self._reopens and self.hub.recover():
                self._loop.call_later(RETURN_S, self.hub.expect_nobody)

    def _make_backlog(self) -> "Backlog | None":
        """None on a full disk: then clients that come back are told that something may be missing."""
        try:
            return Backlog(Book(self._prefix, reopens=self._reopens))
        except OSError as error:
            self._report(f"{self._prefix}: output is not kept for clients that come back: {error.strerror}")
            return None

    def _open_terminal(self, terminal: Terminal) -> None:
        """Open the client's FIFOs, which are copied from and to, and the socket on which the terminal comes."""
        if self.program is not None or (self._out.kind == CLIENT and not self._is_gone(self._out.path)):
            fd = self._open_terminal_output()
            os.set_blocking(fd, False)
            self.sinks.append(PipeSink(self._loop, fd, self._spares, STDOUT))
        if self._source.kind == CLIENT and not self._is_gone(self._source.path):
            self.input.open_for_terminal(self._source.path)
        hand_path = f"{self._prefix}.hand"
        lost_bytes = terminal.open(self._fifo(LIFTED), hand_path, reopens=self._reopens)
        if self._reopens and not terminal.is_there:
            self._report(f"{self._prefix}: its terminal was lost with the shim before this one")
        if lost_bytes:
            words = f"up to {lost_bytes} bytes of the terminal's output lost: its shim was killed"
            self._report(f"{self._prefix}: {words}")
            self._closed_dropped_bytes += lost_bytes
            if self.log is not None:
                self.log.mark(words.encode())
            remove(hand_path)

    def _open_terminal_output(self) -> int:
        """What takes the terminal's output, for writing."""
        if self.program is None:
            return open_output(STDOUT, self._out.path)
        path = self._fifo(STDOUT)
        return self.program.pipe(STDOUT, path, reopens=self._reopens) or pipes.open_child_output(path)

    def _is_gone(self, path: str) -> bool:
        return self._reopens and not os.path.exists(path)

    def _open_output(self, stream: str, target: "Target") -> "int | None":
        """The fd the process gets as this stream; what copies from it, if anything does, is a pump."""
        if target.kind == NOTHING:
            return None
        sink: LogFile | Backlog | PipeSink | None = self.log or self._backlog
        if target.kind == CLIENT:
            if self._reopens and (self._direct or self._is_gone(target.path)):
                return None
            fd = open_output(stream, target.path)
            if self._direct or not pipes.is_fifo(fd):
                os.set_blocking(fd, True)
                return fd
            sink = PipeSink(self._loop, fd, self._spares, stream)
            self.sinks.append(sink)
        path = self._fifo(stream)
        if self.program is not None:
            return self.program.pipe(stream, path, reopens=self._reopens)
        child_fd = None
        if not self._reopens:
            child_fd = pipes.open_child_output(path)
            pipes.enlarge(child_fd)
        hub = None if target.kind == CLIENT else self.hub
        source_fd = pipes.open_read_end(path)
        self._spares.hold(stream, source_fd)
        self.pumps.append(pump := Pump(self._loop, source_fd, stream, sink, hub))
        pump.on_end = lambda: self._spares.drop(stream, source_fd)
        return child_fd

    def _fifo(self, stream: str) -> str:
        path = f"{self._prefix}.{stream}"
        if not ((self._reopens or self.keeps_fifos) and os.path.exists(path)):
            pipes.make_fifo(path, uid=self._uid, gid=self._gid)
        self._fifos.append(path)
        return path

    def prepare(self) -> "Handler":
        """Right before the start: open a client's input, run its log program. Raises: see open, LogProgram.prepare.

        Not with `open`: `ctr` begins to copy when its FIFO is opened, and loses the end of a short input that comes
        before its Exec is answered.
        """
        if self._source.kind == CLIENT and not self.terminal and self._child[0] is None:
            self._child[0] = self.input.open_client(self._source.path, self._uid, self._gid)
        if self.program is not None:
            yield from self.program.prepare()

    # --- handing over

    def child_ends(self) -> "tuple[int | None, int | None, int | None]":
        """What the process gets as its fds 0, 1, 2; None is /dev/null. All None with a terminal."""
        return self._child[0], self._child[1], self._child[2]

    def receive_console(self) -> "Handler":
        """Take the terminal from the runtime. Raises: StatusError FailedPrecondition when none comes."""
        assert self._terminal is not None, "only with terminal"
        yield from self._terminal.receive()

    def started(self) -> None:
        """The process has its ends: close ours, and let the copying begin."""
        self._started = True
        self._close_child_ends()
        if self._terminal is not None:
            sink: LogFile | Backlog | PipeSink | None = self.sinks[0] if self.sinks else self.log or self._backlog
            self.pumps.append(self._terminal.connect(self.input.connect_terminal, sink, self.hub))
        for pump in self.pumps:
            pump.start()

    # --- while it runs

    def close_stdin(self) -> None:
        """Give the process the end of its input, after what is on its way. A terminal has no such end."""
        self.input.end()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, now or when it comes. Without a terminal nothing happens."""
        if self._terminal is not None:
            self._terminal.resize(width, height)

    def attach(self, call: "ServerCall", opening: "AttachOpen") -> None:
        """Serve one attach stream, from its open message on.

        Raises: StatusError FailedPrecondition when the process was created without what the client asks for.
        """
        hub = self.hub
        if hub is None:
            raise failed_precondition(
                "nothing to attach to: its streams belong to the client that named them at creation; "
                "create it with attach: or log:// streams"
            )
        if opening.stdin and self._source.kind != ATTACH:
            raise failed_precondition("its stdin is not open to attach clients: create it with -i (stdin attach:)")
        if opening.output and not self._feeds_attached_output():
            raise failed_precondition("its output goes to the FIFO its creator named: create it with attach: or log://")
        client = hub.add(call, opening, self.inputs.accepted(opening))
        if call.is_open:
            self.inputs.serve(call, client)

    def _feeds_attached_output(self) -> bool:
        return self.terminal or self._out.kind in (ATTACH, LOG, FILE) or self._request.stderr == "attach:"

    def follow_logs(self, call: "ServerCall", request: "LogsRequest") -> None:
        """Serve the log, oldest first, and with ``follow`` until the process has exited.

        Raises: StatusError FailedPrecondition when this process has no log of ours.
        """
        if self._out.kind != LOG or self.log is None or self._closed:
            raise failed_precondition("no log: its output goes elsewhere; create it with a log:// stdout")
        LogFollower(self._loop, self.log, call, request, over=self._exit_record is not None)

    # --- the end

    def drain(self, deadline_s: float) -> "Handler":
        """After the exit: move on what the process wrote before it, for at most this long.

        A process it left behind may write on: only what was there when it exited is waited for.
        """
        if self.hub is not None:
            self.hub.release()
        deadline = self._loop.clock() + deadline_s
        for pump in list(self.pumps):
            yield from pump.drain(deadline, by_mark=not self.terminal)

    def exited(self, exit_record: "ExitRecord") -> None:
        """Tell attach clients and log followers, each after what it has still to get."""
        self._exit_record = exit_record
        if self.hub is not None:
            self.hub.exited(exit_record)
        if self.log is not None:
            for follower in list(self.log.followers):
                follower.log_ended()

    def finish(self) -> "Handler":
        """Before the streams of a dead process are closed: a log program has read all of it and ended. Idempotent."""
        if self.program is not None:
            for sink in self.sinks:  # the terminal's, whose output was passed on at the exit
                sink.end(STDOUT)
            yield from self.program.end()

    def close(self) -> None:
        """Let go of everything. Idempotent. Clients that still read what is queued for them are served to their end."""
        if self._closed:
            return
        self._closed = True
        for what in (STDOUT, STDERR):
            self._spares.drop(what)
        self._close_child_ends()
        if self.hub is not None and self._exit_record is None:
            self.hub.cut_all("the process is gone")
        self.input.close()
        for pump in self.pumps:
            self._close_pump(pump)
        if self._terminal is not None:
            self._terminal.close()
            for sink in self.sinks if not self.pumps else ():
                sink.close()
        if self.log is not None:
            for follower in list(self.log.followers):
                follower.log_ended()
            self.log.close()
        if self._backlog is not None:
            self._backlog.book.close()
        if self.program is not None:
            self.program.close()
        for path in self._fifos:
            remove(path)

    def _close_pump(self, pump: Pump) -> None:
        if not self._started:  # nothing ran: what is there are the runtime's words, which the caller is told
            pump.abandon()
            return
        pump.finish()
        if isinstance(pump.sink, PipeSink):
            pump.linger(pump.sink.close)
        elif self.terminal:
            pump.abandon()
        else:
            self._closed_dropped_bytes += pump.unread_bytes() if self.log is not None else 0
            pump.abandon()

    def _close_child_ends(self) -> None:
        for index, fd in enumerate(self._child):
            if fd is not None:
                os.close(fd)
                self._child[index] = None

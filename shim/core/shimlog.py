"""The shim's own log: lines to containerd's `log` FIFO, or to a small bundle file. Never blocks, never raises."""

import os
import stat
import time

TYPE_CHECKING = False

# Two files of this size are kept: enough for the last weeks of a healthy shim, harmless in a small state directory.
FILE_MAX_BYTES = 256 * 1024
# One line's text; a longer one is cut. PIPE_BUF (pipe(7)) keeps what several shims write to one FIFO from mixing.
TEXT_MAX = 2000


class ShimLog:
    """Owns the log's fd. Lines are logfmt, as containerd's own: ``time=… level=… msg="…" id=…``."""

    def __init__(self, bundle: str, container_id: str, *, debug: bool = False, name: str = "shim.log") -> None:
        self._name = name
        self._container_id = container_id
        self._debug = debug
        self._path: str | None = None
        self._size = 0
        self.dropped = 0
        self.fd = -1
        self._open(bundle)

    def _open(self, bundle: str) -> None:
        fifo = os.path.join(bundle, "log")
        try:
            if stat.S_ISFIFO(os.stat(fifo).st_mode):
                # Both ends, so that neither a reader not yet there nor one gone makes the open or a write fail.
                self.fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                return
        except OSError:
            pass
        self._path = os.path.join(bundle, self._name)
        self._reopen()

    def _reopen(self) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
            self._size = os.fstat(fd).st_size
        except OSError:
            return
        if self.fd >= 0:
            os.dup2(fd, self.fd, inheritable=False)  # the number stays: faulthandler was given it
            os.close(fd)
        else:
            self.fd = fd

    def debug(self, message: str) -> None:
        if self._debug:
            self._write("debug", message)

    def info(self, message: str) -> None:
        self._write("info", message)

    def warning(self, message: str) -> None:
        self._write("warning", message)

    def error(self, message: str) -> None:
        self._write("error", message)

    def failure(self, what: str, error: BaseException) -> None:
        """An error nobody else is told of, with where it came from."""
        import traceback  # only now: a shim without bugs never needs it

        self._write("error", what + ": " + "".join(traceback.format_exception(error)))

    def _write(self, level: str, message: str) -> None:
        now_ns = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
        text = message if len(message) <= TEXT_MAX else message[:TEXT_MAX] + "…"
        text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lost = f" dropped={self.dropped}" if self.dropped else ""
        line = '%s.%09dZ level=%s msg="%s" id=%s%s\n' % (
            "time=" + stamp,
            now_ns % 1_000_000_000,
            level,
            text,
            self._container_id,
            lost,
        )
        data = line.encode(errors="replace")
        if self._path is not None and self._size + len(data) > FILE_MAX_BYTES:
            self._rotate()
        try:
            os.write(self.fd, data)
        except OSError:  # nobody reads the FIFO, or the disk is full: the container is worth more than this line
            self.dropped += 1
        else:
            self._size += len(data)
            self.dropped = 0

    def _rotate(self) -> None:
        assert self._path is not None
        try:
            os.rename(self._path, self._path + ".1")
        except OSError:
            pass
        self._reopen()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

"""Exit records: what is known of an exit, on disk before anyone is told. `delete` reads them when the shim is dead."""

import json
import os

from shim.bundle import RESERVE_BYTES, read_file, remove, sync_directory, write_fully

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.api.shim import ExitRecord

# ExitSource of shim.proto.
SOURCE_UNKNOWN, SOURCE_WAITID, SOURCE_KEEPER, SOURCE_PIDFD = 0, 1, 2, 3
# What a caller is told of an exit nobody knows the status of: no code a program would choose.
UNKNOWN_STATUS = 255
VERSION = 1
# How long an exit waits for the output that came before it. What the process wrote is in its pipes when it is reaped;
# only a reader who does not read can take longer. Until then there is no record: whoever waits for one waits longer.
DRAIN_S = 2.0
# From then on, for the record: a disk that is busy.
WRITE_S = 0.5


class Ended:
    """How a process ended: its wait status or None when nobody knows, how we know, and when that was."""

    __slots__ = ("at_ns", "source", "status")

    def __init__(self, status: "int | None", source: int, at_ns: int) -> None:
        self.status = status
        self.source = source
        self.at_ns = at_ns


class Exit:
    """One process's end. Exactly one of code and signal is set, unless the source is unknown: then neither."""

    __slots__ = (
        "boot_id", "code", "container_id", "core_dumped", "exec_id", "exited_at_ns", "incarnation", "oom", "pid",
        "seq", "signal", "source", "start_ticks", "started_at_ns",
    )  # fmt: skip

    def __init__(
        self,
        *,
        container_id: str,
        exec_id: str,
        pid: int,
        exited_at_ns: int,
        code: "int | None" = None,
        signal: "int | None" = None,
        source: int = SOURCE_WAITID,
        seq: int = 0,
        oom: bool = False,
        core_dumped: bool = False,
        started_at_ns: "int | None" = None,
        start_ticks: int = 0,
        boot_id: str = "",
        incarnation: str = "",
    ) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.pid = pid
        self.exited_at_ns = exited_at_ns
        self.code = code
        self.signal = signal
        self.source = source
        self.seq = seq
        self.oom = oom
        self.core_dumped = core_dumped
        self.started_at_ns = started_at_ns
        self.start_ticks = start_ticks
        self.boot_id = boot_id
        self.incarnation = incarnation

    @property
    def status(self) -> int:
        """The one number of containerd's API: the code, or 128 + signal; the only place that adds them."""
        if self.signal is not None:
            return 128 + self.signal
        return self.code if self.code is not None else UNKNOWN_STATUS

    def set_wait_status(self, status: int) -> None:
        """Take code, signal and core from a status of wait(2)."""
        if os.WIFEXITED(status):
            self.code = os.WEXITSTATUS(status)
        else:
            self.signal = os.WTERMSIG(status)
            self.core_dumped = os.WCOREDUMP(status)

    def to_json(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return (json.dumps({"version": VERSION, **fields}) + "\n").encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Exit":
        """Raises: ValueError when it is no exit record of a version we know."""
        fields: Any = json.loads(raw)
        if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
            raise ValueError("not an exit record of a known version")
        try:
            return cls(**{name: value for name, value in fields.items() if name in cls.__slots__})
        except TypeError as error:
            raise ValueError(f"not an exit record: {error}") from None

    def to_message(self) -> "ExitRecord":
        from ttrpc.api import shim, wkt

        made = shim.ExitRecord(
            container_id=self.container_id,
            exec_id=self.exec_id,
            seq=self.seq,
            pid=self.pid,
            source=self.source,  # type: ignore[arg-type]  # an open enum: any number is allowed
            oom=self.oom,
            core_dumped=self.core_dumped,
            exited_at=wkt.timestamp(self.exited_at_ns),
            pid_start_ticks=self.start_ticks,
            boot_id=self.boot_id,
            incarnation=self.incarnation,
        )
        if self.started_at_ns is not None:
            made.started_at.CopyFrom(wkt.timestamp(self.started_at_ns))
        if self.code is not None:
            made.code = self.code
        if self.signal is not None:
            made.signal = self.signal
        return made


def record_name(exec_id: str) -> str:
    """The file of a process's record: init's cannot be taken by an exec of that name."""
    return f"exec.{exec_id}.json" if exec_id else "init.json"


class ExitStore:
    """Owns the files of one bundle's `exits` directory."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def _file(self, exec_id: str) -> str:
        return os.path.join(self.path, record_name(exec_id))

    def reserve(self, exec_id: str) -> None:
        """Set disk space aside for a record, so that `write` needs none. Raises: OSError when there is none left."""
        fd = os.open(self._file(exec_id) + ".new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_fully(fd, b" " * RESERVE_BYTES)
        except OSError:
            remove(self._file(exec_id) + ".new")
            raise
        finally:
            os.close(fd)

    def write(self, record: Exit) -> None:
        """Put a record on disk: content, name and directory are synced when this returns.

        Blocks: for the disk. Raises: OSError; the reserved space is kept for the next try.
        """
        final = self._file(record.exec_id)
        raw = record.to_json()
        # Blanks after the JSON fill the reserve: the blocks are written over, none is asked for.
        raw += b" " * (RESERVE_BYTES - len(raw) - 1) + b"\n"
        fd = os.open(final + ".new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_fully(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(final + ".new", final)
        sync_directory(self.path)

    def read(self, exec_id: str = "") -> "Exit | None":
        """A record as written, or None. Raises: ValueError when the file is damaged."""
        try:
            return Exit.from_json(read_file(self._file(exec_id), 4 * RESERVE_BYTES))
        except FileNotFoundError:
            return None

    def forget(self, exec_id: str) -> None:
        """Remove a deleted process's record and its reserve."""
        remove(self._file(exec_id))
        remove(self._file(exec_id) + ".new")

"""The bundle directory: the shim's interface on disk. Names of its files, and how they are read and replaced."""

import json
import os
import stat

from shim.errors import failed_precondition, invalid_argument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ID_MAX = 76
# A runtime spec is tens of kilobytes; more than this is a mistake or an attack on our memory.
SPEC_MAX_BYTES = 16 * 1024 * 1024
STATE_VERSION = 1
# Set aside for an exit record (under 600 bytes), so that a full disk cannot keep an exit from being written.
RESERVE_BYTES = 4096
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def is_valid_id(text: str) -> bool:
    """containerd's rule for ids: letters and digits, single '.', '_' or '-' between them, at most 76 characters."""
    if not text or len(text) > ID_MAX or not text.isascii():
        return False
    after_separator = True
    for character in text:
        if character.isalnum():
            after_separator = False
        elif character in "._-" and not after_separator:
            after_separator = True
        else:
            return False
    return not after_separator


def require_id(text: str, what: str) -> None:
    """Raises: InvalidArgument when the text is no id."""
    if not is_valid_id(text):
        raise invalid_argument(
            f"{what} {text!r} is not a valid id: letters and digits, single '.', '_' or '-' between, at most {ID_MAX}"
        )


def write_replacing(path: str, data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Write a file so that a reader sees the old or the new content, never a part.

    Durable: content and name are on disk when this returns; blocks as long as that takes.
    Raises: OSError; nothing is left behind then.
    """
    temporary = path + ".new"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            write_fully(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def write_fully(fd: int, data: "bytes | bytearray") -> None:
    """Write all of it. Raises: OSError, with a part written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: str) -> None:
    """Put a directory's entries on disk: a rename is durable only after this (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a file that may not exist."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def read_file(path: str, limit: int = SPEC_MAX_BYTES) -> bytes:
    """A regular file's content; a FIFO in its place does not make us wait.

    Raises: OSError; ValueError when it is no regular file or longer than the limit.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if found.st_size > limit:
            raise ValueError(f"{path} has {found.st_size} bytes, more than {limit}")
        parts = []
        # Room for what is there, and for the end of it: a megabyte would be mapped, touched and unmapped each time.
        while part := os.read(fd, min(1 << 20, found.st_size + 256)):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


class Bundle:
    """Paths of one bundle, and its small files. Owns no fd; files that others own (journal, exits) are only named."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """Raises: InvalidArgument unless it is an absolute path of a directory owned by us."""
        if not os.path.isabs(self.path):
            raise invalid_argument(f"bundle path {self.path!r} is not absolute")
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise invalid_argument(f"bundle {self.path} cannot be used: {error.strerror}") from None
        if not stat.S_ISDIR(found.st_mode):
            raise invalid_argument(f"bundle {self.path} is not a directory")
        if found.st_uid != os.geteuid():
            raise invalid_argument(f"bundle {self.path} belongs to uid {found.st_uid}, not to us ({os.geteuid()})")

    def check_is(self, path: str) -> None:
        """Raises: InvalidArgument unless a request's bundle is this one, by whatever path."""
        asked = Bundle(path)
        asked.check()
        if not os.path.samefile(path, self.path):
            raise invalid_argument(f"this shim was started in bundle {self.path}, not in {path}")

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def rootfs(self) -> str:
        return self.file("rootfs")

    @property
    def io_dir(self) -> str:
        return self.file("io")

    @property
    def exits_dir(self) -> str:
        return self.file("exits")

    @property
    def execs_dir(self) -> str:
        return self.file("execs")

    def make_directories(self) -> None:
        """The directories of ours that everything else may count on."""
        for path in (self.io_dir, self.exits_dir, self.execs_dir):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass

    def read_spec(self) -> "dict[str, Any]":
        """config.json, as far as it is JSON at all; runc judges the rest.

        Raises: FailedPrecondition when it is missing, InvalidArgument when it is no JSON object.
        """
        path = self.file("config.json")
        try:
            raw = read_file(path)
        except FileNotFoundError:
            raise failed_precondition(f"{path} is missing: write the OCI runtime spec there before Create") from None
        except (OSError, ValueError) as error:
            raise invalid_argument(f"{path} cannot be read: {error}") from None
        return parse_object(raw, path)

    def read_pid(self, name: str) -> int:
        """The pid runc wrote. Raises: OSError or ValueError when there is none."""
        return int(read_file(name, 64))

    def write_json(self, name: str, value: object, *, mode: int = 0o600) -> None:
        write_replacing(self.file(name), _to_json(value).encode(), mode=mode)

    def read_state(self) -> "dict[str, Any] | None":
        """state.json of this or an earlier shim; None when there is none we can read and understand."""
        try:
            return self.find_state()
        except (OSError, ValueError):
            return None

    def find_state(self) -> "dict[str, Any] | None":
        """The same; None only when there is none.

        Raises: OSError when it cannot be read now; ValueError when it is not understood.
        """
        try:
            raw = read_file(self.file("state.json"))
        except FileNotFoundError:
            return None
        state = json.loads(raw)
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise ValueError(f"{self.file('state.json')} is not a state of version {STATE_VERSION}")
        return state


def parse_object(raw: bytes, what: str, wrong: "Callable[[str], Exception]" = invalid_argument) -> "dict[str, Any]":
    """JSON text that must be an object. Raises: InvalidArgument (or ``wrong``) naming where it breaks."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise wrong(f"{what} is not valid JSON: {error}; write it anew") from None
    if not isinstance(value, dict):
        raise wrong(f"{what} must be a JSON object, not {type(value).__name__}")
    return value

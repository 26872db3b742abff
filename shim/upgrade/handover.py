"""What passes from a shim to the code that goes on in the same process, and how that code is executed.

A memory file of JSON; the fds it names are open in the process. What this release does not know in it is ignored; what
is added to it must be optional. VERSION rises when a reader that does not know of a change would do wrong.
"""

import binascii
import fcntl
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

VERSION = 1
FD = 3  # where the dry run finds it
# A process's title lies where its arguments were: this many bytes of padding hold an id and a namespace of 76 each.
TITLE_BYTES = 256
# The text Python executes. It is the old code's: whatever is wrong with the new one, this knows the way back.
_CODE = """\
import os, sys
sys.path[:] = dict.fromkeys([*{paths!r}, *sys.path])
back = {back!r}
try:
    from shim.resume import main
    code = main({fd!r}, sys.argv[2:])
except BaseException as error:
    if not back:
        raise
    os.execv(back[0], back + [f"{{type(error).__name__}}: {{error}}"[:1000]])
sys.exit(code)
"""
_CHECK = """\
import sys
sys.path[:] = dict.fromkeys([*{paths!r}, *sys.path])
from shim.resume import check
sys.exit(check({fd!r}))
"""


def write(handover: "dict[str, Any]") -> int:
    """The memory file's fd, the caller's. Raises: OSError."""
    fd = create()
    try:
        fill(fd, handover)
    except OSError:
        os.close(fd)
        raise
    return fd


def create() -> int:
    """An empty memory file, the caller's: to be filled when it is where it should be. Raises: OSError."""
    return os.memfd_create("shimd-handover", os.MFD_CLOEXEC)


def fill(fd: int, handover: "dict[str, Any]") -> None:
    """Raises: OSError."""
    view = memoryview(json.dumps({**handover, "version": VERSION}, default=_plain).encode())
    at = 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], at)


def read(fd: int) -> "dict[str, Any]":
    """Raises: ValueError for one of another version, or none; OSError."""
    raw = b""
    while part := os.pread(fd, 1 << 20, len(raw)):
        raw += part
    handover = json.loads(raw, object_hook=_bytes_again)
    if not isinstance(handover, dict) or handover.get("version") != VERSION:
        found = handover.get("version") if isinstance(handover, dict) else None
        raise ValueError(f"the handover is of version {found}; this program reads {VERSION}")
    return handover


def copy(fd: int) -> int:
    """One of what is handed on, which nobody inherits; below 0 of none."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd >= 0 else -1


def _plain(data: bytes) -> "dict[str, str]":
    return {"base64": binascii.b2a_base64(data, newline=False).decode("ascii")}


def _bytes_again(value: "dict[str, Any]") -> "Any":
    return binascii.a2b_base64(value["base64"]) if len(value) == 1 and "base64" in value else value


def command(python: str, paths: "Sequence[str]", fd: int, back: "Sequence[str]" = ()) -> "list[str]":
    """The command line of the code that goes on, and with ``back`` the way back when it fails. Pure."""
    code = _CODE.format(paths=list(paths), back=list(back), fd=fd)
    return [python, "-I", "-S", "-c", code, " " * TITLE_BYTES]


def check_command(python: str, paths: "Sequence[str]") -> "list[str]":
    """The command line of its dry run. Pure."""
    return [python, "-I", "-S", "-c", _CHECK.format(paths=list(paths), fd=FD)]

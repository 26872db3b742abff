"""`-info`: what containerd 2.x asks before it uses a runtime: its name and version, and what the runtime below can do.

stdin is an Any of runtime options or empty, stdout a serialised containerd.types.RuntimeInfo: 1 name, 2 version
(1 version, 2 revision), 3 options, 4 features; written without protobuf.
"""

import json
import os
import signal

from shim.actions.bootstrap import OPTIONS_URL, wire_fields
from shim.actions.delete import ends_within
from shim.version import REVISION, VERSION

NAME = "io.containerd.shimd.v2"
FEATURES_URL = b"types.containerd.io/opencontainers/runtime-spec/1/features/Features"
FEATURES_S = 5.0


class NoRuntime(Exception):
    """The runtime binary is not there: containers could not run."""


def runtime_info(options: bytes, environment: "dict[str, str]") -> bytes:
    """The answer. A runtime that cannot tell its features (they are new in runc 1.1) has none in it.

    Blocks: for the runtime, at most FEATURES_S. Raises: NoRuntime.
    """
    fields = wire_fields(options)
    binary = ""
    if fields.get(1, b"").rsplit(b"/", 1)[-1] == OPTIONS_URL:
        binary = wire_fields(fields.get(2, b"")).get(6, b"").decode(errors="replace")
    features = read_features(binary or "runc", environment)
    version = _field(1, VERSION.encode()) + _field(2, REVISION.encode())
    answer = _field(1, NAME.encode()) + _field(2, version)
    if 1 in fields:
        answer += _field(3, options)
    if features:
        answer += _field(4, _field(1, FEATURES_URL) + _field(2, features))
    return answer


def read_features(binary: str, environment: "dict[str, str]") -> bytes:
    """What `runc features` says, as JSON; empty when it says nothing of that kind. Raises: NoRuntime."""
    out_fd = os.memfd_create("features", os.MFD_CLOEXEC)
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, out_fd, 1),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    ]
    try:
        spawn = os.posix_spawn if "/" in binary else os.posix_spawnp
        pid = spawn(binary, [binary, "features"], environment, file_actions=actions, setsigdef=[signal.SIGPIPE])
        if not ends_within(pid, FEATURES_S):
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        said = os.pread(out_fd, 1 << 20, 0)
        return json.dumps(json.loads(said), separators=(",", ":")).encode() if status == 0 else b""
    except OSError as error:
        raise NoRuntime(f"cannot run {binary!r}: {error.strerror}") from None
    except ValueError:
        return b""
    finally:
        os.close(out_fd)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    length, size = len(value), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + size + value

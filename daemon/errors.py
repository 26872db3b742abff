"""Named errors of the daemon: each carries one kind, and a sentence that says what to do next.

Handlers raise them as they are: a StatusError is the wire's own error, so nothing is translated twice.
"""

import errno
import os

from ttrpc.errors import (
    StatusError,
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    resource_exhausted,
    unimplemented,
    unknown,
)
from ttrpc.status import Code

__all__ = [
    "StoreFailed",
    "StoreFull",
    "aborted",
    "already_exists",
    "failed_precondition",
    "from_os_error",
    "invalid_argument",
    "not_found",
    "resource_exhausted",
    "unavailable",
    "unimplemented",
    "unknown",
]


class StoreFull(StatusError):
    """The file system under the store has no room (or hit a quota). Nothing was changed; reads go on."""

    def __init__(self, path: str) -> None:
        super().__init__(Code.RESOURCE_EXHAUSTED, f"no space left for {path}: free some, then try again")


class StoreFailed(StatusError):
    """The store refused for a reason that is not the caller's: I/O error, damage, a lock that never came free."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(Code.INTERNAL, f"store {path}: {reason}")


def unavailable(message: str) -> StatusError:
    return StatusError(Code.UNAVAILABLE, message)


def aborted(message: str) -> StatusError:
    return StatusError(Code.ABORTED, message)


_OS_KINDS = {
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENOMEM: Code.RESOURCE_EXHAUSTED,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EROFS: Code.PERMISSION_DENIED,
}


def from_os_error(what: str, error: OSError) -> StatusError:
    """The system's refusal as ours: this is the border."""
    number = error.errno or 0
    return StatusError(_OS_KINDS.get(number, Code.INTERNAL), f"{what}: {os.strerror(number) if number else error}")

"""The kinds of refusal a shim knows, as one-line constructors; the codes are those of containerd's own runc shim."""

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
    "already_exists",
    "failed_precondition",
    "internal",
    "invalid_argument",
    "not_found",
    "resource_exhausted",
    "unimplemented",
    "unknown",
]


def internal(message: str) -> StatusError:
    """A bug of ours or a file we cannot read back."""
    return StatusError(Code.INTERNAL, message)

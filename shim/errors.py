"""The kinds of refusal a shim knows, as one-line constructors; the codes are those of containerd's own runc shim."""

from ttrpc.errors import StatusError
from ttrpc.status import Code


def invalid_argument(message: str) -> StatusError:
    """The request can never succeed as it is."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """No such container, exec, or process any more."""
    return StatusError(Code.NOT_FOUND, message)


def already_exists(message: str) -> StatusError:
    """The id is taken."""
    return StatusError(Code.ALREADY_EXISTS, message)


def failed_precondition(message: str) -> StatusError:
    """Not in this state, or not on this machine as it is."""
    return StatusError(Code.FAILED_PRECONDITION, message)


def resource_exhausted(message: str) -> StatusError:
    """A bound of ours was reached."""
    return StatusError(Code.RESOURCE_EXHAUSTED, message)


def unimplemented(message: str) -> StatusError:
    """We do not do this."""
    return StatusError(Code.UNIMPLEMENTED, message)


def unknown(message: str) -> StatusError:
    """What containerd's shim answers with an error of no class: runc's failures and wrong states among them."""
    return StatusError(Code.UNKNOWN, message)


def internal(message: str) -> StatusError:
    """A bug of ours or a file we cannot read back."""
    return StatusError(Code.INTERNAL, message)

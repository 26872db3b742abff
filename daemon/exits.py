"""An exit as containerd's API tells it: one number. The only place of the daemon that adds 128 to a signal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttrpc.api.shim import ExitRecord

# What a caller is told of an exit nobody knows the status of; the record's source says that it is none.
UNKNOWN_STATUS = 255


def exit_status(record: "ExitRecord") -> int:
    """The code, or 128 + signal; 255 when neither is known."""
    if record.HasField("signal"):
        return 128 + record.signal
    return record.code if record.HasField("code") else UNKNOWN_STATUS


def known_status(record: "ExitRecord") -> int | None:
    """As `exit_status`, but None when nobody knows."""
    return exit_status(record) if record.HasField("signal") or record.HasField("code") else None

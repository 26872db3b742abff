"""A place in a log: which file, and where in it. Shims tell it; clients ask to go on there, or look it up there."""

import binascii
import os

from ttrpc.api import shim

# So much of a file tells it from another one that has the inode of a removed one.
HEAD_BYTES = 64


def log_place(fd: int, offset: int) -> "shim.LogPlace":
    """Where a log goes on, in this file of it."""
    head = os.pread(fd, min(HEAD_BYTES, offset), 0)
    return shim.LogPlace(inode=os.fstat(fd).st_ino, offset=offset, head_bytes=len(head), head_crc=binascii.crc32(head))


def is_file_of(fd: int, place: "shim.LogPlace") -> bool:
    """Whether the place is in this file."""
    found = os.fstat(fd)
    if found.st_ino != place.inode or found.st_size < place.offset or place.head_bytes > HEAD_BYTES:
        return False
    return binascii.crc32(os.pread(fd, place.head_bytes, 0)) == place.head_crc

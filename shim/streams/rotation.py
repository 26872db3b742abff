"""Rotation by size: path → path.1 → path.2 …, the oldest dropped. No byte is in two files, and none in none."""

import contextlib
import fcntl
import os

from shim import faults
from shim.core.pipes import CHUNK_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_PAGE_BYTES = 4096
FRESH = ".rotating"  # the suffix of a new file until it is in its place


def rotated_path(path: str, age: int) -> str:
    """The name of the file ``age`` rotations old; 0 is the active one."""
    return path if age == 0 else f"{path}.{age}"


def rotate(path: str, max_files: int, open_file: "Callable[[str], int]") -> "tuple[int, int]":
    """Rename the active file away; answers with the fd of an empty one in its place, and the age now taken anew.

    Files up to that age are one older; one which had it, the oldest, is gone.
    Order: the new file is made first, so that a disk without room for it changes nothing; then names move, oldest
    first. A kill in between leaves every byte under one of the names: at worst with a gap, which the next one fills.
    Raises: OSError with the active file as it was.
    """
    tidy(path)
    faults.point("rotate.begun")
    fresh = path + FRESH
    fd = open_file(fresh)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ages = set(existing_ages(path))
        taken = 1
        while taken in ages and taken < max_files - 1:
            taken += 1
        taken = min(taken, max_files - 1)
        faults.point("rotate.made")
        for age in range(taken, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(rotated_path(path, age - 1), rotated_path(path, age))
        faults.point("rotate.moved")
        os.rename(fresh, path)  # with max_files 1 the old file ends here
    except BaseException:
        os.close(fd)
        raise
    return fd, taken


def tidy(path: str) -> None:
    """Remove the empty file which a kill in the middle of a rotation leaves."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + FRESH)


def existing_ages(path: str) -> "list[int]":
    """The ages of the log's files that are there now, oldest first; 0 is the active one."""
    directory, name = os.path.split(path)
    found = []
    for entry in os.listdir(directory):
        suffix = entry[len(name) + 1 :]
        if entry == name:
            found.append(0)
        elif entry.startswith(name + ".") and suffix.isascii() and suffix.isdigit() and suffix[0] != "0":
            found.append(int(suffix))
    found.sort(reverse=True)
    return found


def existing_files(path: str) -> "list[str]":
    """The same as paths."""
    return [rotated_path(path, age) for age in existing_ages(path)]


def splice_bytes(room_bytes: int) -> int:
    """How much raw output to move at most into a file with this much room left.

    Whole chunks up to the one that fills it; from then on a page at a time, in search of one that ends a line.
    """
    return -(-room_bytes // CHUNK_BYTES) * CHUNK_BYTES if room_bytes > 0 else _PAGE_BYTES


def room_cut(batch: bytes, room_bytes: int, *, at_start: bool) -> int:
    """How much of a batch of whole records belongs into a file with this much room left; 0 asks for a new file.

    Never cuts a record. A record larger than a whole file gets a file of its own.
    """
    if len(batch) <= room_bytes:
        return len(batch)
    cut = batch.rfind(b"\n", 0, room_bytes) + 1 if room_bytes > 0 else 0
    if cut == 0 and at_start:
        cut = batch.find(b"\n") + 1 or len(batch)
    return cut

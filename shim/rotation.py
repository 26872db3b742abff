"""Rotation by size: path → path.1 → path.2 …, the oldest dropped. No byte is in two files, and none in none."""

import contextlib
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def rotated_path(path: str, age: int) -> str:
    """The name of the file ``age`` rotations old; 0 is the active one."""
    return path if age == 0 else f"{path}.{age}"


def rotate(path: str, max_files: int, open_file: "Callable[[str], int]") -> int:
    """Rename the active file away and answer with the fd of an empty one in its place.

    Order: the new file is made first, so that a disk without room for it changes nothing; then the oldest names move.
    A kill in between leaves every byte under one of the names, at worst with an empty ``path.new`` beside.
    Raises: OSError with the active file as it was.
    """
    fresh = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    fd = open_file(fresh)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for age in range(max_files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(rotated_path(path, age - 1), rotated_path(path, age))
        os.rename(fresh, path)  # with max_files 1 the old file ends here
    except BaseException:
        os.close(fd)
        raise
    return fd


def existing_files(path: str) -> "list[str]":
    """The log's files that are there now, oldest first, the active one last."""
    found = []
    age = 0
    while os.path.exists(rotated_path(path, age)):
        found.append(rotated_path(path, age))
        age += 1
    found.reverse()
    return found


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

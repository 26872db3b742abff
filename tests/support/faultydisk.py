"""A file system whose disk fails with EIO when told to, and heals when told to: ext4 on a loop device made shorter.

What was written before stays readable from memory; what must reach the disk beyond the first blocks fails, as with a
disk that has gone bad. It needs no device-mapper and no FUSE. Sources: loop(4), LOOP_SET_STATUS64; ext4(5), errors=.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile

SIZE_BYTES = 32 << 20
# The file system's own blocks, and those of a file that fills the room up to here, are before this; all else is behind.
GOOD_BYTES = 4 << 20
FILLER_BYTES = 8 << 20
GET_STATUS64, SET_STATUS64 = 0x4C05, 0x4C04
STATUS64_BYTES, SIZE_LIMIT_OFFSET = 232, 32


class FaultyDisk:
    """Owns an image, its loop device and its mount at `path`; leaving it heals and removes them."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="disk")
        self.path = f"{self.folder}/m"
        self._device = ""
        self._device_fd = -1

    def __enter__(self) -> "FaultyDisk":
        missing = [tool for tool in ("mkfs.ext4", "losetup") if shutil.which(tool) is None]
        assert not missing, f"this test needs {' and '.join(missing)} (Debian: e2fsprogs, mount)"
        image = f"{self.folder}/image"
        os.mkdir(self.path)
        with open(image, "wb") as file:
            file.truncate(SIZE_BYTES)
        # Without a journal an error stays with what it hit; one group of blocks, so that its map is always in memory.
        _run(
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "1024", "-O", "^has_journal,^resize_inode,^64bit",
            "-E", "lazy_itable_init=0,nodiscard", "-m", "0", image,
        )  # fmt: skip
        self._device = _run("losetup", "-f", "--show", image)
        self._device_fd = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        _run("mount", "-o", "errors=continue", self._device, self.path)
        with open(f"{self.path}/filler", "wb") as file:
            file.write(b"x" * FILLER_BYTES)
            file.flush()
            os.fsync(file.fileno())
        return self

    def fail(self) -> None:
        """From here on what is to be on the disk cannot get there."""
        self._limit(GOOD_BYTES)

    def heal(self) -> None:
        """As before."""
        self._limit(0)

    def turn_read_only(self) -> None:
        """What ext4 does when it finds an error; until it is mounted anew. Source: sysfs, ext4's trigger_fs_error."""
        _run("mount", "-o", "remount,errors=remount-ro", self.path)
        name = os.path.basename(self._device)
        with open(f"/sys/fs/ext4/{name}/trigger_fs_error", "w", encoding="utf-8") as file:
            file.write("a test wants it read-only")
        with open("/proc/self/mounts", encoding="utf-8") as file:
            (line,) = [line for line in file if f" {self.path} " in line]
        assert "ro" in line.split()[3].replace("emergency_ro", "ro").split(","), line

    def _limit(self, size: int) -> None:
        status = bytearray(STATUS64_BYTES)
        fcntl.ioctl(self._device_fd, GET_STATUS64, status)
        struct.pack_into("=Q", status, SIZE_LIMIT_OFFSET, size)
        fcntl.ioctl(self._device_fd, SET_STATUS64, bytes(status))

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.heal()
        os.close(self._device_fd)
        subprocess.run(["umount", "-R", self.path], check=False, capture_output=True)
        _run("losetup", "-d", self._device)
        shutil.rmtree(self.folder)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

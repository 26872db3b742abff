"""Read files of a container's root filesystem without ever leaving it. Standard library only."""

import errno
import os
import stat

# A passwd file is kilobytes; whoever hands us gigabytes wants to hurt.
FILE_LIMIT_BYTES = 1 << 20
# As the kernel: more links than this in one path are a loop. Source: path_resolution(7), MAXSYMLINKS.
LINKS_MAX = 40


def read_rootfs_file(rootfs: str, path: str, limit_bytes: int = FILE_LIMIT_BYTES) -> str:
    """A regular file's text, with ``path`` and every link on the way resolved as if ``rootfs`` were ``/``.

    Each step opens one component below the directory it holds open, never following a link itself, so neither a link
    nor a rename while we look leads out. This is what openat2(RESOLVE_IN_ROOT) does, without needing kernel 5.6.

    Raises: FileNotFoundError and other OSErrors; ValueError for what is no regular file, or is too long.
    """
    fd = _open_beneath(rootfs, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} in {rootfs} is no regular file")
        # The O_PATH fd cannot be read; opening it through /proc cannot be redirected.
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > limit_bytes:
        raise ValueError(f"{path} in {rootfs} is longer than {limit_bytes} bytes")
    return content.decode("utf-8", "surrogateescape")


def passwd_and_group(rootfs: str) -> "tuple[str, str]":
    """The texts `parse_user` looks names up in; a missing file is an empty one."""
    texts = []
    for path in ("/etc/passwd", "/etc/group"):
        try:
            texts.append(read_rootfs_file(rootfs, path))
        except (FileNotFoundError, NotADirectoryError):
            texts.append("")
    return texts[0], texts[1]


def _open_beneath(rootfs: str, path: str) -> int:
    """An O_PATH fd of what ``path`` names inside ``rootfs``. The caller closes it."""
    directories = [os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    todo = path.split("/")[::-1]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                # We go back over our own open directories: the kernel's ".." could be moved under us.
                if len(directories) > 1:
                    os.close(directories.pop())
                continue
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directories[-1])
            directories.append(fd)
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink("", dir_fd=fd)
                os.close(directories.pop())
                if target.startswith("/"):
                    while len(directories) > 1:
                        os.close(directories.pop())
                todo += target.split("/")[::-1]
        return directories.pop()
    finally:
        for each in directories:
            os.close(each)

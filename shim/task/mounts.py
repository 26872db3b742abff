"""Mount lists as containerd sends them: options become flags and data; mounted in order, undone on failure."""

import errno
import os

from shim.errors import invalid_argument, unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

# Source: mount(2) and linux/mount.h.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = 0x10, 0x20, 0x40, 0x80
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 0x400, 0x800, 0x1000, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x20000, 0x40000, 0x80000, 0x100000
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 0x200000, 0x1000000, 0x2000000
UMOUNT_NOFOLLOW, MNT_DETACH = 0x8, 0x2

# option → (flag, whether the option sets or clears it)
FLAGS = {
    "async": (MS_SYNCHRONOUS, False), "atime": (MS_NOATIME, False), "bind": (MS_BIND, True), "defaults": (0, True),
    "dev": (MS_NODEV, False), "diratime": (MS_NODIRATIME, False), "dirsync": (MS_DIRSYNC, True),
    "exec": (MS_NOEXEC, False), "lazytime": (MS_LAZYTIME, True), "mand": (MS_MANDLOCK, True),
    "noatime": (MS_NOATIME, True), "nodev": (MS_NODEV, True), "nodiratime": (MS_NODIRATIME, True),
    "noexec": (MS_NOEXEC, True), "nomand": (MS_MANDLOCK, False), "norelatime": (MS_RELATIME, False),
    "nostrictatime": (MS_STRICTATIME, False), "nosuid": (MS_NOSUID, True), "rbind": (MS_BIND | MS_REC, True),
    "relatime": (MS_RELATIME, True), "remount": (MS_REMOUNT, True), "ro": (MS_RDONLY, True), "rw": (MS_RDONLY, False),
    "strictatime": (MS_STRICTATIME, True), "suid": (MS_NOSUID, False), "sync": (MS_SYNCHRONOUS, True),
}  # fmt: skip
# Propagation is a mount(2) call of its own: it may not be combined with the others.
PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE, "rslave": MS_SLAVE | MS_REC, "unbindable": MS_UNBINDABLE, "runbindable": MS_UNBINDABLE | MS_REC,
}  # fmt: skip
# These need more than mount(2); refusing them beats mounting something else than was asked for.
UNSUPPORTED = ("loop", "uidmap=", "gidmap=", "X-containerd.")
# mount(2) copies at most one page of data.
DATA_MAX_BYTES = 4095
# More than this many mounts stacked on one target is no plan of anybody's.
STACK_MAX = 64


class MountPlan:
    """What one mount asks of mount(2)."""

    __slots__ = ("data", "flags", "propagation", "source", "target", "type")

    def __init__(self, kind: str, source: str, target: str, options: "Iterable[str]") -> None:
        self.type = kind
        self.source = source
        self.target = target
        self.flags = 0
        self.propagation: list[int] = []
        data = []
        for option in options:
            if option in FLAGS:
                flag, is_set = FLAGS[option]
                self.flags = self.flags | flag if is_set else self.flags & ~flag
            elif option in PROPAGATION:
                self.propagation.append(PROPAGATION[option])
            elif option.startswith(UNSUPPORTED):
                raise invalid_argument(f"mount option {option!r} of {source} is not supported by this shim")
            else:
                data.append(option)
        if kind in ("bind", "rbind"):
            self.flags |= MS_BIND | (MS_REC if kind == "rbind" else 0)
        self.data = ",".join(data)


def plan(mounts: "Sequence[Any]", rootfs: str) -> list[MountPlan]:
    """The mounts of a Create request on the rootfs, in their order. Pure.

    Raises: InvalidArgument for an option we cannot honour, or a target that leaves the rootfs.
    """
    planned = []
    for mount in mounts:
        inner = os.path.normpath("/" + mount.target).lstrip("/") if mount.target else ""
        target = os.path.join(rootfs, inner) if inner else rootfs
        planned.append(MountPlan(mount.type, mount.source, target, mount.options))
    return planned


def mount_all(plans: "Sequence[MountPlan]", rootfs: str) -> None:
    """Mount in order; when one fails, what was mounted here is undone.

    Blocks: as long as the filesystems take. Raises: UNKNOWN with the mount and the kernel's words.
    """
    for done, one in enumerate(plans):
        try:
            _mount(one)
        except OSError as error:
            if done:
                unmount_all(rootfs)
            what = f"{one.type or 'none'} {one.source} on {one.target}"
            raise unknown(f"failed to mount rootfs component {what}: {os.strerror(error.errno or 0)}") from None


def _mount(one: MountPlan) -> None:
    source, data, directory = one.source, one.data, None
    if len(data) > DATA_MAX_BYTES and one.type == "overlay":
        directory, data = shorten_overlay(data)
    if len(data) > DATA_MAX_BYTES:
        raise OSError(errno.E2BIG, "the mount's options are longer than a page")
    if directory is None:
        mount(source, one.target, one.type, one.flags, data)
    else:
        # Lower directories may be relative to the working directory, and this process has a single thread.
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.chdir(directory)
            mount(source, one.target, one.type, one.flags, data)
        finally:
            os.fchdir(here)
            os.close(here)
    for flag in one.propagation:
        mount("", one.target, "", flag, "")
    if one.flags & MS_BIND and one.flags & ~(MS_BIND | MS_REC):
        # mount(2): a bind mount ignores every other flag, they need a remount.
        mount("", one.target, "", one.flags | MS_REMOUNT, "")


def shorten_overlay(data: str) -> "tuple[str | None, str]":
    """Make lower directories relative to their common parent: (the directory to stand in, the shorter data)."""
    options = data.split(",")
    for index, option in enumerate(options):
        if option.startswith("lowerdir="):
            lowers = option.removeprefix("lowerdir=").split(":")
            if len(lowers) < 2 or not all(lower.startswith("/") for lower in lowers):
                break
            parent = os.path.commonpath(lowers)
            options[index] = "lowerdir=" + ":".join(os.path.relpath(lower, parent) for lower in lowers)
            return parent, ",".join(options)
    return None, data


def unmount_all(target: str) -> int:
    """Unmount everything stacked on a path, lazily where it is busy; answers with how many there were.

    Raises: OSError other than "not a mount point" and "no such path".
    """
    for done in range(STACK_MAX):
        try:
            unmount(target, UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return done
            if error.errno != errno.EBUSY:
                raise
            unmount(target, UMOUNT_NOFOLLOW | MNT_DETACH)
    return STACK_MAX


_library: "Any" = None


def libc() -> "Any":
    """ctypes and the C library, for what CPython has no function for. Half a megabyte in a shim without a keeper.

    Loaded once: ctypes makes a class for each.
    """
    global _library
    import ctypes

    if _library is None:
        _library = ctypes.CDLL(None, use_errno=True)
    return ctypes, _library


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """One mount(2). Raises: OSError."""
    ctypes, library = libc()
    parts = [text.encode() for text in (source or "none", target, kind or "none")]
    if library.mount(*parts, ctypes.c_ulong(flags), data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(target: str, flags: int = 0) -> None:
    """One umount2(2). Raises: OSError."""
    ctypes, library = libc()
    if library.umount2(target.encode(), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)

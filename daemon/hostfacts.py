"""What a spec needs to know about this machine: capabilities it can grant, devices it has, files to share."""

import os
import stat

from daemon import spec_caps
from daemon.spec import HOST_NETWORK_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Below /dev but not devices of the machine: the container has its own of these.
_OWN_TREES = ("pts", "shm", "mqueue", "fd", ".lxc", ".lxd-mounts", ".udev")
_OWN_NODES = ("console", "ptmx", "tty", "null", "zero", "full", "random", "urandom")


def capabilities(status_path: str = "/proc/self/status") -> "tuple[str, ...]":
    """What this process could pass on: runc cannot give a container more than its own bounding set holds."""
    with open(status_path, encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapBnd:"):
                return spec_caps.from_mask(int(line.split()[1], 16))
    return spec_caps.ALL


def devices(root: str = "/dev") -> "list[dict[str, Any]]":
    """Every device node of the host as an OCI device: what ``--privileged`` opens to the container."""
    found: list[dict[str, Any]] = []
    for directory, names, files in os.walk(root):
        if directory == root:
            names[:] = [name for name in names if name not in _OWN_TREES]
        names.sort()
        for name in sorted(files):
            if directory == root and name in _OWN_NODES:
                continue
            node = device(os.path.join(directory, name))
            if node is not None:
                found.append(node)
    return found


def device(path: str) -> "dict[str, Any] | None":
    """One device node as an OCI device; None when the path is none (or is gone: /dev changes as we look)."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else None
    if kind is None:
        return None
    return {
        "path": path,
        "type": kind,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def host_network_files() -> "tuple[str, ...]":
    """The files of `HOST_NETWORK_FILES` this host has: binding a missing one would fail the container."""
    return tuple(path for path in HOST_NETWORK_FILES if os.path.exists(path))

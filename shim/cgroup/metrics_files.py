"""Control files as attributes: cgroupspy's controllers and file types, reading below a directory we hold open.

Why cgroupspy so: its controllers and file types say what is in a file, and that is all that is taken of it. Its nodes
and trees are left alone: they find cgroups by walking all of them, know v1 only, read by path (a new cgroup of the same
name would answer for the old one) and bring in `logging`, 1.3 of the 1.5 MB the whole package costs a process.
A whole v1 answer, 30 files, takes 0.47 ms so, 0.23 ms of which bare reads would take as well (2 cores, CPython 3.11).
Imported at the first Stats call, not before.
"""

import errno
import os

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import BaseFileInterface

from shim.cgroup.cgroups import read_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    # (major, minor, operation or "", value): one count of one block device.
    BlockCount: TypeAlias = "tuple[int, int, str, int]"

UNLIMITED = 2**64 - 1  # how "max" travels in containerd's v2 metrics
RDMA_UNLIMITED = 2**32 - 1
# A file that is not there (a controller or kernel feature is missing), may not be read, or has nothing to say: PSI that
# is switched off answers EOPNOTSUPP, the removed kernel memory limits EOPNOTSUPP or EINVAL.
_ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV)


class HeldController(Controller):  # type: ignore[misc]  # cgroupspy has no types
    """A controller of one cgroup, read through its directory's fd. Borrows the fd."""

    def __init__(self, directory_fd: int) -> None:
        self.directory_fd = directory_fd

    def get_property(self, filename: bytes) -> str:
        return read_at(self.directory_fd, filename).strip()

    def get(self, name: str) -> "Any":
        """The value of one of the files named in the class; None when this cgroup has no such file."""
        try:
            return getattr(self, name)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def names(self) -> "list[str]":
        """The files of this cgroup, for those whose names hold a size or a device."""
        try:
            return sorted(os.listdir(self.directory_fd))
        except FileNotFoundError:
            return []

    def number(self, filename: str) -> "int | None":
        """A file that is not named in the class, holding one number or ``max``."""
        try:
            return _number(self.get_property(filename.encode()))
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise


def _number(text: str) -> int:
    return UNLIMITED if text == "max" else int(text)


class LimitFile(BaseFileInterface):  # type: ignore[misc]
    """One number, or ``max``."""

    def sanitize_get(self, value: str) -> int:
        return _number(value)


class PairsFile(BaseFileInterface):  # type: ignore[misc]
    """Lines of ``name number``, as cgroupspy's DictFile; but an empty file is an empty dict, odd lines are skipped."""

    def sanitize_get(self, value: str) -> "dict[str, int]":
        pairs = (line.split(" ") for line in value.splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


class PressureFile(BaseFileInterface):  # type: ignore[misc]
    """PSI: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``, then ``full``. Source: kernel, accounting/psi.rst."""

    def sanitize_get(self, value: str) -> "dict[str, dict[str, float]]":
        stalls = {}
        for line in value.splitlines():
            kind, *fields = line.split()
            stalls[kind] = {name: float(number) for name, _, number in (field.partition("=") for field in fields)}
        return stalls


class NestedFile(BaseFileInterface):  # type: ignore[misc]
    """Lines of ``device key=value key=value``: io.stat, rdma.current. A value of ``max`` is kept as `UNLIMITED`."""

    def sanitize_get(self, value: str) -> "dict[str, dict[str, int]]":
        devices = {}
        for line in value.splitlines():
            device, *fields = line.split()
            pairs = (field.partition("=") for field in fields)
            devices[device] = {
                name: _number(number) for name, _, number in pairs if number == "max" or number.isdigit()
            }
        return devices


class BlockFile(BaseFileInterface):  # type: ignore[misc]
    """v1's counts per block device: ``8:0 Read 4096`` or ``8:0 4096``; the line ``Total`` sums them and is left out."""

    def sanitize_get(self, value: str) -> "list[BlockCount]":
        counts = []
        for line in value.splitlines():
            device, *rest = line.split()
            major, colon, minor = device.partition(":")
            if colon and rest and rest[-1].isdigit():
                counts.append((int(major), int(minor), rest[0] if len(rest) == 2 else "", int(rest[-1])))
        return counts


class RdmaController(HeldController):
    """The same in v1 and v2."""

    current = NestedFile("rdma.current", readonly=True)
    limit = NestedFile("rdma.max", readonly=True)

    def fill(self, into: "Any") -> bool:
        """Into a RdmaStat of either version. Whether there was anything."""
        current, limit = self.get("current"), self.get("limit")
        if current is None or limit is None:
            return False
        for devices, entries in ((current, into.current), (limit, into.limit)):
            for device, counts in devices.items():
                entries.add(
                    device=device,
                    hca_handles=min(counts.get("hca_handle", 0), RDMA_UNLIMITED),
                    hca_objects=min(counts.get("hca_object", 0), RDMA_UNLIMITED),
                )
        return True


def huge_page_sizes(names: "list[str]", suffix: str) -> "list[str]":
    """The page sizes among file names like ``hugetlb.2MB.current``; reservations (``.rsvd.``) are another count."""
    sizes = [
        name[len("hugetlb.") : -len(suffix)] for name in names if name.startswith("hugetlb.") and name.endswith(suffix)
    ]
    return [size for size in sizes if "." not in size]


def block_device_path(major: int, minor: int) -> str:
    """``/dev/sda`` by number; empty for one that has no node (an overlay, a network file system)."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return ""

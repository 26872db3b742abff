"""The code a keeper has in memory: all of it imported before the first fork, and known to be what is on disk."""

import _thread
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    Stamp: TypeAlias = "tuple[int, int, int] | None"

ABOVE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TREES = {"shim": os.path.join(ABOVE, "shim"), "ttrpc": os.path.join(ABOVE, "ttrpc")}
SUFFIXES = (".py", ".binpb")
# Of what is not ours, what a shim stands on: an upgrade of one of these wants a new keeper, too.
BORROWED = ("os", "_prctl", "cgroupspy", "google.protobuf", "google._upb._message")
# Tools, clients, and the daemon's side.
NOT_A_SHIMS = (
    "shim.launcher", "ttrpc.api.generate", "ttrpc.blocking", "ttrpc.blocking_stream",
    "ttrpc.aio", "ttrpc.aio_client", "ttrpc.aio_server", "ttrpc.aio_kept", "ttrpc.aio_stream", "ttrpc.aio_wire",
)  # fmt: skip


def preload() -> None:
    """Import every module and make every message class a shim may ever use.

    A shim that imported later would pay for it alone, and might find the files of another version.
    """
    _stand_in_for_threading()
    for name in ("prctl", "traceback", "encodings.ascii", *our_modules()):
        __import__(name)
    from ttrpc.api.descriptors import make_shim_classes

    make_shim_classes()
    if isinstance(sys.modules["threading"], _Locks):
        del sys.modules["threading"]


class _Locks(type(sys)):  # type: ignore[misc]  # the type of modules, without importing types for it
    """The two names protobuf takes from threading."""

    Lock, RLock = staticmethod(_thread.allocate_lock), _thread.RLock


def _stand_in_for_threading() -> None:
    """Have protobuf get its locks without the threading module: its fork hook would cost each shim 0.4 MB.

    A hook cannot be taken back (os.register_at_fork), and it runs in every child. Nothing here has threads; who imports
    threading after `preload` gets the real one.
    """
    if "threading" not in sys.modules:
        sys.modules["threading"] = _Locks("threading")


def our_modules() -> "Iterator[str]":
    """The names of all modules of shim and ttrpc that are a shim's."""
    for package, tree in TREES.items():
        for path in files(tree):
            name = f"{package}.{path[len(tree) + 1 : -3].replace('/', '.')}"
            if path.endswith(".py") and not os.path.basename(path).startswith("__") and name not in NOT_A_SHIMS:
                yield name


def files(tree: str) -> "Iterator[str]":
    """The paths of all files of code below a directory. Raises: OSError when it is none."""
    with os.scandir(tree) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.endswith(SUFFIXES):
            yield entry.path
        elif entry.name.isidentifier() and not entry.name.startswith("__") and entry.is_dir():
            yield from files(entry.path)


class Edition:
    """The files this process' code came from, as they were when it was made: make it before importing them."""

    def __init__(self) -> None:
        self._files = {path: stamp(path) for path in self._paths()}

    def _paths(self) -> "Iterator[str]":
        yield sys.executable
        for tree in TREES.values():
            yield from files(tree)

    def watch_borrowed(self) -> None:
        """Add the libraries, which are found only by importing them."""
        for name in BORROWED:
            path = getattr(sys.modules.get(name), "__file__", None)
            if path is not None:
                self._files[path] = stamp(path)

    def changed(self) -> str:
        """A file that is not what it was; empty when there is none. A new file shows by those that import it."""
        for path, before in self._files.items():
            if stamp(path) != before:
                return path
        return ""


def stamp(path: str) -> "Stamp":
    """What changes when a file is written or replaced; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

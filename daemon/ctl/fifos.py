"""The FIFOs that carry a process's streams under a shim that is not ours, as containerd's clients make them.

STATE/fifo/NAMESPACE/CONTAINER/init.stdin, …; an exec's are named after it. They stay as long as the process may be
attached to again, and go with it.
"""

import contextlib
import os
import shutil
import stat

from daemon.ctl.labels import Stdio

FOLDER = "fifo"


def folder_of(state_dir: str, namespace: str, container_id: str) -> str:
    """Where a container's FIFOs lie."""
    return os.path.join(state_dir, FOLDER, namespace, container_id)


class Fifos:
    """One process's FIFOs. Owns their files from `make` to `remove`, and our ends of the output until they are taken.

    Order: `make` before Create, which waits for somebody who reads.
    """

    def __init__(self, folder: str, exec_id: str = "", *, stdin: bool, terminal: bool) -> None:
        path = os.path.join(folder, f"exec.{exec_id}" if exec_id else "init")
        self._folder = folder
        self.stdio = Stdio(
            f"{path}.stdin" if stdin else "",
            f"{path}.stdout",
            "" if terminal else f"{path}.stderr",
            terminal=terminal,
        )
        self._outputs: dict[int, int] = {}

    @classmethod
    def of(cls, stdio: Stdio) -> "Fifos":
        """Those of a process that runs, to attach to it: somebody else's to remove. Raises: OSError."""
        made = cls("", stdin=False, terminal=False)
        made.stdio = stdio
        made._outputs = open_outputs(stdio)
        return made

    def make(self) -> None:
        """Make the files; what an earlier process of that name left is replaced. Raises: OSError."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._unlink()
        for path in self._paths():
            os.mkfifo(path, 0o600)
        self._outputs = open_outputs(self.stdio)

    def take_outputs(self) -> dict[int, int]:
        """Our ends of the output, which are the caller's from here on: fd → stream of ours."""
        taken, self._outputs = self._outputs, {}
        return taken

    def remove(self) -> None:
        """Remove the files, and the folders if nothing else is in them. Idempotent."""
        self._unlink()
        for fd in self.take_outputs():
            os.close(fd)
        remove_folder(self._folder, only_empty=True)

    def _unlink(self) -> None:
        for path in self._paths():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _paths(self) -> list[str]:
        return [path for path in (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr) if path]


def open_outputs(stdio: Stdio) -> dict[int, int]:
    """Open the reading ends: fd → stream of ours it goes to. fifo(7): without blocking, whoever has the other end."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    return {os.open(path, flags): stream for path, stream in ((stdio.stdout, 1), (stdio.stderr, 2)) if path}


def remove_folder(folder: str, *, only_empty: bool = False) -> None:
    """Remove a container's folder with what is in it, then its namespace's if that was the last."""
    if not only_empty:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        os.rmdir(os.path.dirname(folder))


def are_there(stdio: Stdio) -> bool:
    """Whether a process's output is a FIFO that can be opened again."""
    try:
        return stdio.stdout.startswith("/") and stat.S_ISFIFO(os.stat(stdio.stdout).st_mode)
    except OSError:
        return False

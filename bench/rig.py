"""The ground a measurement stands on: a private folder, a root file system, two daemons, nothing left afterwards."""

import abc
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from tests.support import leaks
from tests.support.adopted import Adopted
from tests.support.rootfs import make_rootfs
from tests.support.waiting import wait_until

FOREVER = ("/bin/sleep", "1000000")
# Made by containerd and ctr wherever they are told to work; taken away again if they were not there and are empty.
FIXED_FOLDERS = ("/run/containerd/s", "/run/containerd/fifo", "/run/containerd/runc", "/run/containerd")
START_DEADLINE_S = 30.0
CALL_DEADLINE_S = 60.0  # for one command; a measurement that takes longer is a finding, not a number


class CommandFailed(Exception):
    """A command of a measurement did not do its job."""


@dataclass
class Rig:
    """Owns the folder, the namespace's cgroups and every process started under it; `rig()` gives them back."""

    session: leaks.Session
    rootfs: str

    @property
    def folder(self) -> str:
        return self.session.folder

    @property
    def namespace(self) -> str:
        """Unlike any other on the machine, and so are the cgroups named after it."""
        return self.session.tag


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """Make the ground, and take everything away again however the measurement ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    leaks.sweep_stale()
    fixed = [path for path in FIXED_FOLDERS if not os.path.exists(path)]
    session = leaks.begin()
    try:
        yield Rig(session, make_rootfs(os.path.join(session.folder, "rootfs")))
    finally:
        leaks.end(session)
        for path in fixed:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def command(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command to its end.

    Raises: CommandFailed with its own words.
    """
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=CALL_DEADLINE_S, stdin=subprocess.DEVNULL
    )
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def program(name: str) -> str:
    """One of our own programs, from the environment this Python runs in; or another from PATH."""
    own = os.path.join(os.path.dirname(sys.executable), name)
    found = own if os.access(own, os.X_OK) else shutil.which(name)
    if found is None:
        raise CommandFailed(f"{name} is not installed: make setup (containerd: .ci/setup.sh bench)")
    return found


@dataclass(eq=False)
class Daemon(abc.ABC):
    """What both daemons have: a process, a socket, containers with a shim each. Subclasses say how to ask."""

    rig: Rig
    process: subprocess.Popen[bytes] | Adopted | None = None
    made: list[str] = field(default_factory=list)

    name = ""

    @property
    def folder(self) -> str:
        return os.path.join(self.rig.folder, self.name)

    @property
    def namespace(self) -> str:
        """Where its containers are. ctr and Go name cgroups after it: two containerds at once need one each."""
        return self.rig.namespace

    @property
    def state_dir(self) -> str:
        return os.path.join(self.folder, "state")

    @property
    @abc.abstractmethod
    def socket_path(self) -> str:
        """The socket whose answer means: it serves."""

    @abc.abstractmethod
    def argv(self) -> list[str]:
        """How to start it."""

    def environment(self) -> dict[str, str]:
        """What it and its shims are started with."""
        return dict(os.environ)

    @abc.abstractmethod
    def client(self, *words: str) -> list[str]:
        """A command line of its client."""

    @abc.abstractmethod
    def run_words(self, container: str, *argv: str) -> list[str]:
        """The client's words for: run detached."""

    @abc.abstractmethod
    def run_and_remove_words(self, container: str, *argv: str) -> list[str]:
        """The client's words for: run, wait, remove."""

    @abc.abstractmethod
    def exec_words(self, container: str, number: int, *argv: str) -> list[str]:
        """The client's words for: one more process in it."""

    @abc.abstractmethod
    def running(self) -> dict[str, int]:
        """Container → pid of every task now running."""

    @abc.abstractmethod
    def shim_pid(self, container: str) -> int:
        """The pid of its shim."""

    @abc.abstractmethod
    def remove(self, container: str) -> None:
        """Kill and forget one container."""

    # --- the same for both -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process; returns at once. `wait_serving` waits."""
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self.environment()
            )

    def wait_serving(self) -> None:
        """Wait until its socket takes a connection.

        Raises: CommandFailed with the daemon's last words.
        """
        try:
            wait_until(self.is_serving, deadline_s=START_DEADLINE_S, what=f"{self.name} to serve")
        except AssertionError as late:
            raise CommandFailed(f"{late}; it says: {self.last_words()}") from None

    def last_words(self) -> str:
        """The end of its log."""
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()[-3000:]

    def is_serving(self) -> bool:
        """Whether the socket takes a connection; a daemon that ended is told with its last words."""
        if self.process is not None and self.process.poll() is not None:
            raise CommandFailed(f"{self.name} ended with {self.process.returncode}: {self.last_words()}")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.socket_path)
            except OSError:
                return False
        return True

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, *words: str, check: bool = True) -> str:
        """What its client answers."""
        return command(*self.client(*words), check=check).stdout

    def run(self, container: str, *argv: str) -> None:
        """Start one container that stays."""
        self.made.append(container)
        command(*self.run_words(container, *(argv or FOREVER)))

    def bundle_file(self, container: str, name: str) -> str:
        """The text of a file in the bundle; containerd's layout for both."""
        parts = ("io.containerd.runtime.v2.task", self.namespace, container, name)
        with open(os.path.join(self.state_dir, *parts), encoding="ascii") as file:
            return file.read().strip()

    def shim_socket(self, container: str) -> str:
        """The path of its shim's socket."""
        return self.bundle_file(container, "address").removeprefix("unix://")

    def __enter__(self) -> Self:
        os.makedirs(self.state_dir, exist_ok=True)
        command("mount", "-t", "tmpfs", "-o", "mode=0711", "tmpfs", self.state_dir)  # as /run is, where both have it
        self.start()
        self.wait_serving()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was made while the daemon can still help, then end it; `rig()` takes the rest."""
        for container in self.made:
            with contextlib.suppress(CommandFailed, subprocess.TimeoutExpired, KeyboardInterrupt):
                self.remove(container)
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.kill()
        command("umount", "--lazy", self.state_dir, check=False)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started_s = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started_s

"""A real containerd in a box: its own socket, root and state in one folder, killed at will, gone without a trace.

The box's containerd resolves runtime names with our shim's folder first in its PATH, so `io.containerd.shimd.v2` is our
`containerd-shim-shimd-v2` and `io.containerd.runc.v2` Debian's. Containers run in a namespace of the box's own, because
two things lie outside its folder whatever we configure: runc's state (/run/containerd/runc/<namespace>) and the shims'
sockets (/run/containerd/s/<hash of address, namespace and id>).
"""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support import leaks
from tests.support.waiting import wait_until

GO_RUNTIME = "io.containerd.runc.v2"
OUR_RUNTIME = "io.containerd.shimd.v2"
OUR_SHIM = "containerd-shim-shimd-v2"
KEEPER = "shimd-keeper"
KEEPERS = (KEEPER, "shimd-template")  # it, and what it forks shims from: they stay, to be quick the next time
BOX_MARK = "SHIMD_INTEROP_BOX"  # in the environment of everything the box starts, the shims included
BOOT_S = 20.0
CALL_S = 30.0  # no ctr command takes longer than that, even on a crowded machine
GONE_S = 10.0

RUNC_ROOT = "/run/containerd/runc"
SOCKET_ROOT = "/run/containerd/s"
NEEDED = ("containerd", "ctr", "containerd-shim-runc-v2", "runc", "busybox")

# cri wants networks, opt makes /opt/containerd, restart would start what we stopped, the snapshotters are unused.
CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{address}"
[debug]
  level = "{level}"
"""


def missing_programs() -> list[str]:
    """What this machine lacks to run containerd."""
    return [name for name in NEEDED if shutil.which(name) is None]


def our_shim_folder() -> str:
    """Where our shim's program is installed: beside the interpreter that runs the tests, or in PATH."""
    beside = os.path.dirname(sys.executable)
    if os.path.exists(os.path.join(beside, OUR_SHIM)):
        return beside
    found = shutil.which(OUR_SHIM)
    return os.path.dirname(found) if found else beside


def make_rootfs(folder: str) -> str:
    """A root file system of one static busybox and its names. Returns the folder."""
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    shutil.copy(shutil.which("busybox") or "busybox", os.path.join(folder, "bin/busybox"))
    applets = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in set(applets) - {"busybox"}:
        os.symlink("busybox", os.path.join(folder, "bin", applet))
    return folder


@dataclass(frozen=True)
class Result:
    """What one command gave."""

    exit: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def complaint(self) -> str:
        return self.err.decode(errors="replace").strip()


@dataclass
class Leftovers:
    """What is on the machine after the last container was deleted, by kind."""

    processes: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    bundles: list[str] = field(default_factory=list)
    runc: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {', '.join(found)}" for kind, found in vars(self).items() if found) or "nothing"


class ContainerdBox:
    """Owns: the daemon, its folder, its namespace's cgroups and runc state, the shims and containers in it."""

    def __init__(
        self,
        folder: str,
        namespace: str,
        *,
        path_first: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        level: str = "info",
        config: str = CONFIG,
    ) -> None:
        self.folder = folder
        self.namespace = namespace
        self.address = os.path.join(folder, "c.sock")
        self.bundles = os.path.join(folder, "state/io.containerd.runtime.v2.task", namespace)
        self.fifo_dir = os.path.join(folder, "f")
        self.rootfs = os.path.join(folder, "rootfs")
        self.ids: set[str] = set()  # of containers that were run here, for finding their sockets
        self.daemon: subprocess.Popen[bytes] | None = None
        self.env = os.environ | {BOX_MARK: folder} | dict(env or {})
        # A keeper of the box's own: it serves whoever finds it, and would outlive the box.
        self.keeper_cgroup = f"{namespace}.shimd-keeper"
        self.env |= {
            "SHIMD_KEEPER": os.environ.get("SHIMD_KEEPER") or os.path.join(folder, "k"),
            "SHIMD_KEEPER_CGROUP": self.keeper_cgroup,
        }
        self.env["PATH"] = os.pathsep.join([*path_first, our_shim_folder(), os.environ.get("PATH", os.defpath)])
        with open(os.path.join(folder, "config.toml"), "w", encoding="utf-8") as file:
            file.write(config.format(folder=folder, address=self.address, level=level))
        if not os.path.exists(self.rootfs):
            make_rootfs(self.rootfs)

    # --- the daemon ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon. Blocks: until it serves."""
        assert self.daemon is None, "containerd runs already"
        with open(os.path.join(self.folder, "containerd.log"), "ab") as log:
            self.daemon = subprocess.Popen(
                ["containerd", "--config", os.path.join(self.folder, "config.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        wait_until(self.is_serving, deadline_s=BOOT_S, what="containerd to serve")

    def is_serving(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, f"containerd ended at once:\n{self.log()[-2000:]}"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.address)
            return self.ctr("version", timeout_s=5).exit == 0
        return False

    def kill(self) -> None:
        """SIGKILL the daemon: the shims and containers know nothing of it. Blocks: until it is gone."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def restart(self) -> None:
        """SIGKILL the daemon and start it again. Blocks: until it serves."""
        self.kill()
        self.start()

    def log(self) -> str:
        with open(os.path.join(self.folder, "containerd.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    # --- commands ------------------------------------------------------------------------------------------------

    def ctr_argv(self, *args: str) -> list[str]:
        return ["ctr", "--address", self.address, "--namespace", self.namespace, *args]

    def ctr(self, *args: str, stdin: bytes | None = None, timeout_s: float = CALL_S) -> Result:
        """Run one ctr command to its end. Raises: TimeoutExpired (the command is killed)."""
        with self.ctr_open(*args, stdin=stdin) as client:
            return client.finish(timeout_s)

    def ctr_open(self, *args: str, stdin: bytes | None = None, terminal: int | None = None) -> "Client":
        """Start a ctr command that goes on; `terminal` is a tty to be its stdin, stdout and stderr."""
        return Client(self.ctr_argv(*args), self.env, self.folder, stdin, terminal)

    def socket_of(self, container: str) -> str:
        """Where containerd's rule puts the shim's socket, and `ctr shim` looks for it."""
        name = hashlib.sha256(f"{self.address}/{self.namespace}/{container}".encode()).hexdigest()
        return os.path.join(SOCKET_ROOT, name)

    def bundle_of(self, container: str) -> str:
        return os.path.join(self.bundles, container)

    # --- what is there ---------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """The box's living processes but our own children (the daemon, clients): shims and what they started."""
        found = {}
        for pid in leaks.pids():
            with contextlib.suppress(OSError, IndexError):
                state, parent = leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:2]
                marks = leaks.read(f"/proc/{pid}/environ").split("\0")
                if state != "Z" and int(parent) != os.getpid() and f"{BOX_MARK}={self.folder}" in marks:
                    found[pid] = leaks.read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
        return found

    def cgroups(self) -> list[str]:
        """The cgroups of the box's containers, deepest first."""
        found = []
        for root in leaks.cgroup_roots():
            found += [folder for folder, _, _ in os.walk(os.path.join(root, self.namespace))]
        return sorted(found, reverse=True)

    def container_pids(self) -> list[int]:
        found: set[int] = set()
        for folder in self.cgroups():
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in leaks.read(os.path.join(folder, "cgroup.procs")).split())
        return sorted(found)

    def leftovers(self) -> Leftovers:
        """What containers that were all deleted should not have left behind."""
        found = Leftovers()
        found.processes = [text for text in self.processes().values() if not text.startswith(KEEPERS)]
        found.processes += [f"container process {pid}" for pid in self.container_pids()]
        found.mounts = [path for path in leaks.mounts() if path.startswith(self.folder)]
        found.cgroups = [path for path in self.cgroups() if os.path.basename(path) != self.namespace]
        found.sockets = [path for path in map(self.socket_of, sorted(self.ids)) if os.path.exists(path)]
        found.bundles = sorted(listed(self.bundles))
        found.runc = sorted(listed(os.path.join(RUNC_ROOT, self.namespace)))
        return found

    # --- the end ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End everything in the box and remove every trace of it. Idempotent."""
        if self.daemon is not None:
            self.kill()
        runc_root = os.path.join(RUNC_ROOT, self.namespace)
        # The shims go first: one that sees its container die would go on and do things about it.
        kill_while(self.processes)
        for container in listed(runc_root):
            subprocess.run(
                ["runc", "--root", runc_root, "delete", "--force", container], check=False, capture_output=True
            )
        kill_while(lambda: dict.fromkeys(self.container_pids(), ""))
        for path in sorted((path for path in leaks.mounts() if path.startswith(self.folder)), reverse=True):
            subprocess.run(["umount", "-l", path.partition(" (")[0]], check=False, capture_output=True)
        wait_until(self._remove_cgroups, deadline_s=GONE_S, what="the box's cgroups to be empty")
        shutil.rmtree(runc_root, ignore_errors=True)
        for path in map(self.socket_of, self.ids):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_cgroups(self) -> bool:
        keepers = [os.path.join(root, self.keeper_cgroup) for root in leaks.cgroup_roots()]
        for folder in [*self.cgroups(), *keepers]:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not self.cgroups() and not any(map(os.path.exists, keepers))


class Client:
    """One running command; its output goes to files, so it never waits for us to read. Owns: the process."""

    def __init__(
        self, argv: list[str], env: Mapping[str, str], folder: str, stdin: bytes | None, terminal: int | None
    ) -> None:
        self.argv = argv
        self._out, self._err = (open_nameless(folder) for _ in range(2))
        stdio: tuple[int, int, int]
        given = -1
        if terminal is not None:
            stdio = (terminal, terminal, terminal)
        else:
            given = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if stdin is None else open_nameless(folder, stdin)
            stdio = (given, self._out, self._err)
        self.process = subprocess.Popen(argv, stdin=stdio[0], stdout=stdio[1], stderr=stdio[2], env=env)
        if given >= 0:
            os.close(given)

    @property
    def out(self) -> bytes:
        """What it printed so far."""
        return read_all(self._out)

    @property
    def err(self) -> bytes:
        return read_all(self._err)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def finish(self, timeout_s: float = CALL_S) -> Result:
        """Wait for its end. Raises: TimeoutExpired."""
        return Result(self.process.wait(timeout_s), self.out, self.err)

    def kill(self) -> None:
        """SIGKILL it, as a client that vanishes. ctr forwards gentler signals to the container."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for fd in (self._out, self._err):
            if fd >= 0:
                os.close(fd)
        self._out = self._err = -1

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_nameless(folder: str, content: bytes = b"") -> int:
    """A file without a name, at its beginning, holding `content`. Source: open(2), O_TMPFILE."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_all(fd: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(fd, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def listed(folder: str) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ()


def kill_while(find: "object") -> None:
    """SIGKILL what `find` finds until it finds nothing: each may have been starting another."""
    assert callable(find)

    def is_empty() -> bool:
        found = find()
        for pid in found:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in find():  # still the one we meant
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        return not found

    wait_until(is_empty, deadline_s=GONE_S, what="the box's processes to die")


@contextlib.contextmanager
def open_box(folder: str, namespace: str, **options: object) -> Iterator[ContainerdBox]:
    """A running containerd; everything in it is gone afterwards."""
    box = ContainerdBox(folder, namespace, **options)  # type: ignore[arg-type]
    try:
        box.start()
        yield box
    finally:
        box.stop()

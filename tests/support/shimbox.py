"""A bundle, a real shim started by its own `start`, and a blocking client on it.

with ShimBox(["sleep", "100"]) as box:
    box.create(); box.start(); box.kill(9); assert box.wait().exit_status == 137
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from tests.support import leaks
from tests.support.rootfs import make_rootfs
from tests.support.waiting import wait_until
from ttrpc.api import runc, shim, task, wkt
from ttrpc.blocking import BlockingClient

TASK = "containerd.task.v2.Task"
SHIM = "shimd.shim.v1.Shim"
NAMESPACE = "test"
CALL_S = 20.0
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT", "CAP_MKNOD"]


def make_spec(args: Sequence[str], rootfs: str, cgroup: str, *, terminal: bool = False) -> dict[str, Any]:
    """A small OCI spec for a busybox container; change it before `create` as the test needs."""
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    return {
        "ociVersion": "1.0.2",
        "process": make_process(args, terminal=terminal),
        "root": {"path": rootfs, "readonly": False},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=666"],
            },
        ],
        "linux": {"namespaces": namespaces, "cgroupsPath": cgroup, "resources": {}},
    }


def make_process(args: Sequence[str], *, terminal: bool = False) -> dict[str, Any]:
    """The process object of a spec, or of an exec."""
    return {
        "args": list(args),
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"],
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    }


class ShimBox:
    """Owns a folder with bundle, rootfs, runc root and socket directory, and the shim in it; leaving it ends all.

    Nothing is started by the constructor but the folder; `create` starts the shim when `launch` was not called.
    """

    def __init__(
        self,
        args: Sequence[str] = ("sleep", "1000"),
        *,
        container_id: str = "box",
        terminal: bool = False,
        bundle_root: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.id = container_id
        self.folder = tempfile.mkdtemp(prefix="box")
        self.bundle = os.path.join(bundle_root or self.folder, self.id)
        self.sockets = os.path.join(self.folder, "s")
        self.runc_root = os.path.join(self.folder, "runc")
        self.rootfs = make_rootfs(os.path.join(self.folder, "rootfs"))
        # Named after the run's folder, by which the leak check knows a cgroup as ours.
        self.cgroup_parent = (
            f"/{os.path.basename(os.environ.get('TMPDIR', self.folder))}-{os.path.basename(self.folder)}"
        )
        self.cgroup = f"{self.cgroup_parent}/{self.id}"
        self.terminal = terminal
        self.spec = make_spec(args, self.rootfs, self.cgroup, terminal=terminal)
        self.environment = {**os.environ, "SHIMD_SOCKET_DIR": self.sockets, **(environment or {})}
        self.address = ""
        self.shim_pid = 0
        self._client: BlockingClient | None = None
        self._more_clients: list[BlockingClient] = []
        os.makedirs(self.bundle, mode=0o700)

    # --- the command line

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", "shim", "-namespace", NAMESPACE, "-address", f"{self.folder}/none.sock",
            "-publish-binary", "/bin/true", "-id", self.id, *arguments,
        ]  # fmt: skip

    def run_shim(
        self, *arguments: str, stdin: bytes = b"", cwd: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shim action as containerd does: in the bundle, to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.bundle,
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=30,
        )

    def launch(self, *, stdin: bytes = b"") -> str:
        """`start`: the address it printed, with the shim listening there."""
        self.write_spec()
        done = self.run_shim("start", stdin=stdin)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        assert done.stderr == b""
        self.address = done.stdout.decode()
        self.shim_pid = int(self.read("shim.pid"))
        return self.address

    def write_spec(self) -> None:
        with open(os.path.join(self.bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.spec, file)

    # --- files

    def path(self, *names: str) -> str:
        return os.path.join(self.bundle, *names)

    def read(self, *names: str) -> str:
        with open(self.path(*names), encoding="utf-8") as file:
            return file.read()

    # --- calls

    @property
    def client(self) -> BlockingClient:
        if self._client is None:
            self._client = BlockingClient.connect(self.address)
        return self._client

    def connect(self) -> BlockingClient:
        """One more connection, closed with the box."""
        client = BlockingClient.connect(self.address)
        self._more_clients.append(client)
        return client

    def call(self, method: str, request: Any, *, service: str = TASK, timeout_s: float = CALL_S) -> Any:
        return self.client.call(service, method, request, timeout_s=timeout_s)

    def create(self, *, stdin: str = "", stdout: str = "", stderr: str = "", **fields: Any) -> Any:
        if not self.address:
            self.launch()
        options = fields.pop("options", None) or runc.Options(root=self.runc_root)
        request = task.CreateTaskRequest(
            id=self.id, bundle=self.bundle, stdin=stdin, stdout=stdout, stderr=stderr, terminal=self.terminal,
            options=wkt.pack(options), **fields,
        )  # fmt: skip
        return self.call("Create", request)

    def start(self, exec_id: str = "") -> Any:
        return self.call("Start", task.StartRequest(id=self.id, exec_id=exec_id))

    def state(self, exec_id: str = "") -> Any:
        return self.call("State", task.StateRequest(id=self.id, exec_id=exec_id))

    def kill(self, signum: int, exec_id: str = "", *, everyone: bool = False) -> Any:
        return self.call("Kill", task.KillRequest(id=self.id, exec_id=exec_id, signal=signum, all=everyone))

    def wait(self, exec_id: str = "") -> Any:
        return self.call("Wait", task.WaitRequest(id=self.id, exec_id=exec_id))

    def wait_later(self, exec_id: str = "", *, client: BlockingClient | None = None) -> Any:
        """A Wait that is under way; its `receive` gives the answer."""
        return (client or self.client).open_stream(TASK, "Wait", task.WaitRequest(id=self.id, exec_id=exec_id))

    def attach(self, exec_id: str = "", *, client: BlockingClient | None = None, **opening: Any) -> Any:
        """An attach stream, open, on a connection of its own or this client's. ``opening``: fields of AttachOpen."""
        stream = (client or self.connect()).open_stream(SHIM, "Attach")
        stream.send(shim.AttachInput(open=shim.AttachOpen(exec_id=exec_id, **opening)))
        assert stream.receive(timeout_s=CALL_S).HasField("opened")
        return stream

    def delete(self, exec_id: str = "") -> Any:
        return self.call("Delete", task.DeleteRequest(id=self.id, exec_id=exec_id))

    def exec_request(self, exec_id: str, args: Sequence[str], *, terminal: bool = False, **streams: Any) -> Any:
        process = json.dumps(make_process(args, terminal=terminal)).encode()
        url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        return task.ExecProcessRequest(
            id=self.id, exec_id=exec_id, terminal=terminal, spec=wkt.any_of(url, process), **streams
        )

    def add_exec(self, exec_id: str, args: Sequence[str], *, terminal: bool = False, **streams: Any) -> Any:
        return self.call("Exec", self.exec_request(exec_id, args, terminal=terminal, **streams))

    def run_exec(self, exec_id: str, args: Sequence[str], **streams: str) -> Any:
        """Exec, Start, Wait, Delete: what Delete answered."""
        self.add_exec(exec_id, args, **streams)
        self.start(exec_id)
        self.wait(exec_id)
        return self.delete(exec_id)

    def shutdown(self) -> None:
        self.call("Shutdown", task.ShutdownRequest(id=self.id))

    def info(self) -> Any:
        return self.call("Info", shim.InfoRequest(), service=SHIM)

    def ack(self, seq: int) -> None:
        self.call("Ack", shim.AckRequest(seq=seq), service=SHIM)

    def events(self, until: str | Callable[[Any], bool], *, after_seq: int = 0, timeout_s: float = CALL_S) -> list[Any]:
        """The journal's records up to the first of a topic, or the first for which the condition holds."""
        is_last = (lambda record: record.topic == until) if isinstance(until, str) else until
        found = []
        with contextlib.closing(BlockingClient.connect(self.address)) as client:
            stream = client.open_stream(SHIM, "Follow", shim.FollowRequest(after_seq=after_seq))
            deadline = time.monotonic() + timeout_s
            while (record := stream.receive(timeout_s=max(0.0, deadline - time.monotonic()))) is not None:
                found.append(record)
                if is_last(record):
                    return found
        raise AssertionError(f"the stream ended before {until}; it had {[record.topic for record in found]}")

    def last_exit(self) -> Any:
        """The newest exit record that was told."""
        return self.events("/tasks/exit")[-1].exit

    def let_go(self) -> None:
        """What a container of the tests waits for: a file `go` in its root."""
        with open(os.path.join(self.rootfs, "go"), "w", encoding="utf-8"):
            pass

    # --- the end

    def is_shim_alive(self) -> bool:
        """A zombie that nobody has reaped yet is dead enough."""
        try:
            stat = leaks.read(f"/proc/{self.shim_pid}/stat")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    def kill_shim(self) -> None:
        """SIGKILL, as the OOM killer would; connections to it are forgotten."""
        os.kill(self.shim_pid, signal.SIGKILL)
        self.wait_for_shim_end()
        self.disconnect()

    def disconnect(self) -> None:
        """Close every connection; the next call makes a new one."""
        for client in (self._client, *self._more_clients):
            if client is not None:
                client.close()
        self._client = None
        self._more_clients.clear()

    def replace_shim(self) -> None:
        """Kill the shim and have `start` raise its successor."""
        self.kill_shim()
        self.launch()

    def wait_for_shim_end(self, *, deadline_s: float = 10.0) -> None:
        wait_until(lambda: not self.is_shim_alive(), deadline_s=deadline_s, what="the shim to end")

    def _has_ended_when_told(self) -> bool:
        """A successor knows the end of its container once PID 1 has reaped it, and ignores SIGTERM until then."""
        if self.is_shim_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.shim_pid, signal.SIGTERM)
        return not self.is_shim_alive()

    def close(self) -> None:
        """End the container and the shim however they are, and remove the folder."""
        self.disconnect()
        subprocess.run(
            ["runc", "--root", os.path.join(self.runc_root, NAMESPACE), "delete", "--force", self.id],
            capture_output=True,
            check=False,
        )
        if self.is_shim_alive():
            try:
                wait_until(self._has_ended_when_told, what="the shim to end")
            except AssertionError:
                os.kill(self.shim_pid, signal.SIGKILL)
                self.wait_for_shim_end()
                raise
        for place in (self.path("rootfs"), os.path.join(self.sockets, "pins")):
            subprocess.run(["umount", "-R", "-l", place], capture_output=True, check=False)
        for root in leaks.cgroup_roots():
            with contextlib.suppress(OSError):
                os.rmdir(root + self.cgroup)
            with contextlib.suppress(OSError):
                os.rmdir(root + self.cgroup_parent)
        shutil.rmtree(self.folder)
        shutil.rmtree(self.bundle, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()


@contextlib.contextmanager
def running(args: Sequence[str] = ("sleep", "1000"), **streams: str) -> Iterator[ShimBox]:
    """A box whose container runs already."""
    with ShimBox(args) as box:
        box.create(**streams)
        box.start()
        yield box

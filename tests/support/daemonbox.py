"""A real shimd in a box: its own root and state directories, killed and started at will, gone without a trace.

with DaemonBox() as box:
    box.run("c1", "sleep", "100")
    box.kill(); box.start()
    assert box.task("c1").status == RUNNING
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.support.adopted import Adopted
from tests.support.rootfs import make_rootfs
from tests.support.shimbox import make_process, make_spec
from tests.support.waiting import wait_until
from ttrpc.api import containers, process, shimd, tasks, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

CONTAINERS = "containerd.services.containers.v1.Containers"
TASKS = "containerd.services.tasks.v1.Tasks"
SHIMD = "shimd.v1.Shimd"
RUNTIME = "io.containerd.shimd.v2"
GO_RUNTIME = "io.containerd.runc.v2"
NAMESPACE = "default"
CALL_S = 30.0
BOOT_S = 20.0
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"


# What systemd does with a socket it has kept: sd_listen_fds(3).
HAND_OVER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='shimd');"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class DaemonBox:
    """Owns a folder with root, state and rootfs, and the daemon on it; leaving it ends every container in it."""

    def __init__(self, *, config: str = "", environ: Mapping[str, str] | None = None, autostart: bool = True) -> None:
        self.folder = tempfile.mkdtemp(prefix="d")
        self.root, self.state = f"{self.folder}/root", f"{self.folder}/state"
        self.config_path, self.log_path = f"{self.folder}/config.toml", f"{self.folder}/log"
        self.rootfs = make_rootfs(f"{self.folder}/rootfs")
        self.environ = dict(environ or {})
        self.daemon: subprocess.Popen[bytes] | Adopted | None = None
        self.stored: list[int] = []  # the sockets the daemon had its supervisor keep; handed to the next start
        self._client: BlockingClient | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.bind(f"{self.folder}/notify")
        with open(self.config_path, "w", encoding="utf-8") as file:
            file.write(f'root_dir = "{self.root}"\nstate_dir = "{self.state}"\nlog.level = "debug"\n{config}\n')
        # Named after the run's folder, by which the leak check knows a cgroup as ours.
        run = os.path.basename(os.environ.get("TMPDIR", self.folder))
        self.cgroup_parent = f"/{run}-{os.path.basename(self.folder)}"
        if autostart:
            self.start()

    def __enter__(self) -> "DaemonBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the daemon

    @property
    def address(self) -> str:
        return f"{self.state}/shimd.sock.ttrpc"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon", "run", "--config", self.config_path, *arguments]

    def spawn(self, environ: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a daemon process without waiting for anything; its log goes to the box's."""
        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
        variables = {**os.environ, "PATH": path, **self.environ, **(environ or {})}
        variables["NOTIFY_SOCKET"] = f"{self.folder}/notify"
        command = self.command()
        if self.stored:
            command = [sys.executable, "-c", HAND_OVER, str(self.stored[0]), *command]
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, pass_fds=self.stored[:1]
            )

    def start(self, environ: Mapping[str, str] | None = None, *, recovered: bool = True) -> None:
        """Start it and wait until it says READY; with ``recovered`` until it has decided about every task."""
        assert self.daemon is None, "it runs already"
        self._forget_told()
        self.daemon = self.spawn(environ)
        self.wait_told("READY=1")
        if recovered:
            wait_until(lambda: not self.info().recovering, deadline_s=BOOT_S, what="recovery")

    def _forget_told(self) -> None:
        """What earlier processes have told is not about the next one."""
        self._notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notify.recv(4096)

    def wait_told(self, word: str) -> None:
        """Wait until the daemon has told its supervisor this."""
        self._notify.settimeout(BOOT_S)
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._notify, 4096, 4, socket.MSG_CMSG_CLOEXEC)
                told = data.decode()
                self.stored += fds
            except TimeoutError:
                raise AssertionError(f"the daemon did not say {word}; its log:\n{self.log()}") from None
            if word in told.split("\n"):
                return

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """End the daemon and nothing else; returns its exit code."""
        assert self.daemon is not None
        self.daemon.send_signal(signum)
        return self.gone()

    def gone(self) -> int:
        """Wait for a daemon that is about to end."""
        assert self.daemon is not None
        code = self.daemon.wait(timeout=CALL_S)
        self.daemon = None
        self.disconnect()
        return code

    def restart(self, environ: Mapping[str, str] | None = None) -> None:
        self.kill()
        self.start(environ)

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()[-20000:]

    def upgraded(self, pid: int) -> None:
        """Another process is the daemon now: the old one ends well, the new one is ours from here on."""
        assert self.daemon is not None
        assert self.daemon.wait(timeout=CALL_S) == 0
        self.replaced(pid)

    def replaced(self, pid: int) -> None:
        """Take another process for the daemon; the old one has been waited for."""
        self.daemon = Adopted(pid)

    # --- calls

    @property
    def client(self) -> BlockingClient:
        if self._client is None:
            self._client = BlockingClient.connect(self.address)
        return self._client

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def call(self, service: str, method: str, request: Any, *, ns: str = NAMESPACE, timeout_s: float = CALL_S) -> Any:
        try:
            return self.client.call(
                service, method, request, timeout_s=timeout_s, metadata={"containerd-namespace-ttrpc": ns}
            )
        except ConnectionLost:
            self.disconnect()
            raise

    def tasks(self, method: str, request: Any, **options: Any) -> Any:
        return self.call(TASKS, method, request, **options)

    def info(self) -> "shimd.InfoResponse":
        return self.call(SHIMD, "Info", shimd.InfoRequest())

    # --- what tests do with containers

    def spec(self, container_id: str, args: Sequence[str], **changes: Any) -> dict[str, Any]:
        made = make_spec(args, self.rootfs, f"{self.cgroup_parent}/{container_id}")
        made.update(changes)
        return made

    def create_container(
        self,
        container_id: str,
        *args: str,
        labels: Mapping[str, str] | None = None,
        spec: bytes | None = None,
        runtime: str = RUNTIME,
    ) -> Any:
        made = containers.Container(id=container_id, labels=dict(labels or {}))
        made.runtime.name = runtime
        raw = spec if spec is not None else json.dumps(self.spec(container_id, args)).encode()
        made.spec.CopyFrom(wkt.any_of(SPEC_URL, raw))
        return self.call(CONTAINERS, "Create", containers.CreateContainerRequest(container=made))

    def create_task(self, container_id: str, *, log: bool = True, is_foreign: bool = False) -> int:
        path = self.log_file(container_id)
        stdout = "" if not log else f"file://{path}" if is_foreign else f"log://{path}?format=raw"
        request = tasks.CreateTaskRequest(container_id=container_id, stdout=stdout, stderr=stdout)
        return self.tasks("Create", request).pid

    def start_task(self, container_id: str, exec_id: str = "") -> int:
        return self.tasks("Start", tasks.StartRequest(container_id=container_id, exec_id=exec_id)).pid

    def run(self, container_id: str, *args: str, labels: Mapping[str, str] | None = None) -> int:
        """Create and start; returns init's pid."""
        self.create_container(container_id, *args, labels=labels)
        self.create_task(container_id)
        return self.start_task(container_id)

    def run_foreign(
        self, container_id: str, *args: str, labels: Mapping[str, str] | None = None, **changes: Any
    ) -> int:
        """The same under containerd's own shim."""
        spec = json.dumps(self.spec(container_id, args, **changes)).encode()
        self.create_container(container_id, labels=labels, spec=spec, runtime=GO_RUNTIME)
        self.create_task(container_id, is_foreign=True)
        return self.start_task(container_id)

    def add_exec(self, container_id: str, exec_id: str, *args: str) -> None:
        request = tasks.ExecProcessRequest(container_id=container_id, exec_id=exec_id)
        request.spec.CopyFrom(wkt.any_of(PROCESS_URL, json.dumps(make_process(args)).encode()))
        self.tasks("Exec", request)

    def exec(self, container_id: str, exec_id: str, *args: str) -> int:
        """Add and start; returns its pid."""
        self.add_exec(container_id, exec_id, *args)
        return self.start_task(container_id, exec_id)

    def task(self, container_id: str, exec_id: str = "") -> "process.Process":
        return self.tasks("Get", tasks.GetRequest(container_id=container_id, exec_id=exec_id)).process

    def wait(self, container_id: str, exec_id: str = "") -> "tasks.WaitResponse":
        return self.tasks("Wait", tasks.WaitRequest(container_id=container_id, exec_id=exec_id))

    def signal(self, container_id: str, signum: int = signal.SIGKILL) -> None:
        self.tasks("Kill", tasks.KillRequest(container_id=container_id, signal=signum))

    def delete_task(self, container_id: str) -> "tasks.DeleteResponse":
        return self.tasks("Delete", tasks.DeleteTaskRequest(container_id=container_id))

    def delete_container(self, container_id: str) -> None:
        self.call(CONTAINERS, "Delete", containers.DeleteContainerRequest(id=container_id))

    def shim(self, container_id: str) -> "shimd.ShimRecord":
        (found,) = self.call(SHIMD, "Shims", shimd.ShimsRequest(container_id=container_id)).shims
        return found

    def exits(self, container_id: str = "", exec_id: str | None = None) -> "list[Any]":
        request = shimd.ExitsRequest(container_id=container_id)
        if exec_id is not None:
            request.exec_id = exec_id
        return list(self.call(SHIMD, "Exits", request).exits)

    def events(self, *filters: str, after_seq: int = 0) -> "list[Any]":
        """All stored events that a filter passes, oldest first."""
        request = shimd.EventsRequest(after_seq=after_seq, filters=filters, all_namespaces=True)
        stream = self.client.open_stream(SHIMD, "Events", request, timeout_s=CALL_S)
        with contextlib.closing(stream):
            return list(stream)

    def topics(self, container_id: str) -> list[str]:
        """What was told of one container's task, in order."""
        passing = f"event.container_id=={container_id}"
        return [event.topic for event in self.events(passing) if event.topic.startswith("/tasks/")]

    def log_file(self, container_id: str) -> str:
        return f"{self.root}/logs/{NAMESPACE}/{container_id}/output.log"

    def output(self, container_id: str) -> str:
        try:
            with open(self.log_file(container_id), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def bundle(self, container_id: str) -> str:
        return f"{self.state}/io.containerd.runtime.v2.task/{NAMESPACE}/{container_id}"

    def lose(self, container_id: str, shim_pid: int, init_pid: int) -> None:
        """Kill shim and init, and take away what a successor would need: the task is lost for good."""
        os.unlink(os.path.join(self.bundle(container_id), "state.json"))
        os.kill(shim_pid, signal.SIGKILL)
        os.kill(init_pid, signal.SIGKILL)

    def let_go(self) -> None:
        """What a container of the tests waits for: a file `go` in its root."""
        with open(f"{self.rootfs}/go", "w", encoding="utf-8"):
            pass

    # --- the end

    def close(self) -> None:
        """End every container, the daemon and the folder; what survives that is the leak check's to find."""
        try:
            if self.daemon is None or self.daemon.poll() is not None:
                self.daemon = None
                self.disconnect()
                self.start()
            self._clear()
            self.kill(signal.SIGTERM)
        finally:
            if self.daemon is not None:
                self.daemon.kill()
                self.daemon.wait()
            self.disconnect()
            self._notify.close()
            for fd in self.stored:
                os.close(fd)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._remove_cgroups()

    def _clear(self) -> None:
        """Delete every task of every namespace there is, by the API alone."""
        deadline_s = 30.0

        def is_empty() -> bool:
            found = self.call(SHIMD, "Shims", shimd.ShimsRequest(all_namespaces=True)).shims
            for one in found:
                with contextlib.suppress(StatusError):
                    self._end_one(one.namespace, one.container_id)
            return not found

        wait_until(is_empty, deadline_s=deadline_s, what="every task to be deleted")

    def _end_one(self, ns: str, container_id: str) -> None:
        labels = {"containerd.io/restart.explicitly-stopped": "true"}
        update = containers.UpdateContainerRequest(container=containers.Container(id=container_id, labels=labels))
        update.update_mask.paths.append("labels.containerd.io/restart.explicitly-stopped")
        with contextlib.suppress(StatusError):
            self.call(CONTAINERS, "Update", update, ns=ns)
        try:
            self.tasks("Kill", tasks.KillRequest(container_id=container_id, signal=signal.SIGKILL, all=True), ns=ns)
        except StatusError as error:
            if error.code != Code.NOT_FOUND:
                raise
        self.tasks("Wait", tasks.WaitRequest(container_id=container_id), ns=ns, timeout_s=10.0)
        self.tasks("Delete", tasks.DeleteTaskRequest(container_id=container_id), ns=ns)

    def _remove_cgroups(self) -> None:
        """runc removes a container's cgroup, not the parent it made for it."""
        for base in ("/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())):
            with contextlib.suppress(OSError):
                os.rmdir(base + self.cgroup_parent)


def restart_labels(policy: str) -> dict[str, str]:
    """What a client puts on a container that is to be restarted."""
    return {"containerd.io/restart.status": "running", "containerd.io/restart.policy": policy}


@contextlib.contextmanager
def refused(code: Code, words: str = "") -> Iterator[None]:
    """What is done within is refused with this kind, and the message has these words."""
    try:
        yield
    except StatusError as error:
        found = error
    else:
        raise AssertionError(f"was not refused; expected {code.name}")
    if found.code != code or words not in found.message:
        raise AssertionError(f"expected {code.name} with {words!r}, not {found!r}")

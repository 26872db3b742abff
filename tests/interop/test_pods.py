"""Pods: containerd's CRI asks for one shim for all containers of a pod, and gets one for each. All else is as usual."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import image, leaks
from tests.support.containerdbox import CONFIG, GO_RUNTIME, OUR_RUNTIME, OUR_SHIM, ContainerdBox, our_shim_folder
from tests.support.criapi import EXITED, NODE, RUNNING, CriApi
from tests.support.waiting import wait_until

NAMESPACE = "k8s.io"  # the CRI's own
PAUSE = "localhost/pause:1"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
SETTLE_S = 20.0

CRI = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{folder}}/cni"
    conf_dir = "{{folder}}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "shimd"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.shimd]
    runtime_type = "{runtime}"
    {more}
"""
# How a config.toml can name our shim: as a type of its own, or by putting it in the place of runc's, whose options it
# then gets (to any other type the CRI gives none but a path).
OPTIONS = """[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.shimd.options]
      NoNewKeyring = true"""
RUNTIMES = {"type": (OUR_RUNTIME, ""), "place": (GO_RUNTIME, OPTIONS)}

pytestmark = pytest.mark.long


def pod_cgroup() -> str:
    """The pod's own, which a kubelet makes and removes; by its name the leak check knows it for ours."""
    return "/" + os.path.basename(os.environ["TMPDIR"])


def remove_pod_cgroup() -> None:
    for root in leaks.cgroup_roots():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(root + pod_cgroup())


class Pod:
    """A sandbox on the host's network and the containers in it, as a kubelet would have them."""

    def __init__(self, box: ContainerdBox, cri: CriApi, *, has_options: bool) -> None:
        self.box = box
        self.cri = cri
        self.has_options = has_options
        self.logs = os.path.join(box.folder, "logs")
        self.config: dict[str, Any] = {
            "metadata": {"name": "pod", "uid": "uid", "namespace": "default"},
            "log_directory": self.logs,
            "linux": {
                "cgroup_parent": pod_cgroup(),
                "security_context": {"namespace_options": {"network": NODE}},
            },
        }
        self.id = self.cri.call("RunPodSandbox", config=self.config, runtime_handler="shimd").pod_sandbox_id

    def start(self, name: str, *command: str) -> str:
        config = {
            "metadata": {"name": name},
            "image": {"image": image.NAME},
            "command": command,
            "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"network": NODE}}},
        }
        made = self.cri.call("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        self.cri.call("StartContainer", container_id=made.container_id)
        return str(made.container_id)

    def status(self, container: str) -> Any:
        return self.cri.call("ContainerStatus", container_id=container).status

    def wait_exited(self, container: str) -> Any:
        wait_until(lambda: self.status(container).state == EXITED, deadline_s=SETTLE_S, what="the container to end")
        return self.status(container)

    def execute(self, container: str, *command: str) -> tuple[int, bytes, bytes]:
        done = self.cri.call("ExecSync", container_id=container, cmd=command, timeout=10)
        return done.exit_code, done.stdout, done.stderr

    def log(self, name: str) -> list[str]:
        """The lines of a container's log, without their times."""
        with contextlib.suppress(FileNotFoundError):
            return [line.split(" ", 1)[1] for line in leaks.read(os.path.join(self.logs, f"{name}.log")).splitlines()]
        return []

    def shims(self) -> dict[str, int]:
        """Container → its shim."""
        found = {}
        for container in os.listdir(self.box.bundles):
            found[container] = int(leaks.read(os.path.join(self.box.bundle_of(container), "shim.pid")))
        return found


@pytest.fixture(params=RUNTIMES)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    folder = tempfile.mkdtemp(prefix="i")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        runtime, more = RUNTIMES[request.param]
        programs = os.path.join(folder, "bin")
        os.mkdir(programs)
        if runtime == GO_RUNTIME:
            os.symlink(os.path.join(our_shim_folder(), OUR_SHIM), os.path.join(programs, "containerd-shim-runc-v2"))
        cri = CRI.format(pause=PAUSE, runtime=runtime, more=more)
        config = CONFIG.replace('"io.containerd.grpc.v1.cri", ', "") + cri
        box = ContainerdBox(folder, NAMESPACE, config=config, path_first=[programs])
        stack.callback(remove_pod_cgroup)
        stack.callback(box.stop)
        box.start()
        for name, command in ((image.NAME, "/bin/sh"), (PAUSE, "/bin/sleep 1000000")):
            path = os.path.join(folder, "image.tar")
            image.write_image(path, box.rootfs, name=name, command=command.split())
            imported = box.ctr("images", "import", "--snapshotter", "native", path)
            assert imported.exit == 0, imported.complaint
        api = CriApi(box.address)
        stack.callback(api.close)
        api.wait_ready()
        try:
            yield Pod(box, api, has_options=bool(more))
        except BaseException as error:
            error.add_note(box.log()[-4000:])
            raise


def test_a_pod_lives_on_a_shim_for_each_of_its_containers(pod: Pod) -> None:
    """Logs, execs, exit codes, a restart of containerd, and an end that leaves nothing."""
    first = pod.start("first", "sh", "-c", "echo begins; trap 'echo ends; exit 5' TERM; while :; do sleep 0.05; done")
    second = pod.start("second", "sh", "-c", "echo to-out; echo to-err >&2; exit 3")

    ended = pod.wait_exited(second)
    assert (ended.exit_code, ended.reason) == (3, "Error")
    assert ended.finished_at > 0
    assert sorted(pod.log("second")) == ["stderr F to-err", "stdout F to-out"]
    spec = json.loads(leaks.read(os.path.join(pod.box.bundle_of(first), "config.json")))
    assert spec["annotations"][SANDBOX_ID] == pod.id
    shims = pod.shims()
    assert {pod.id, first} <= set(shims)
    options = json.loads(leaks.read(os.path.join(pod.box.bundle_of(first), "options.json")))
    assert bool(options.get("no_new_keyring")) == pod.has_options
    assert len(set(shims.values())) == len(shims)

    assert pod.execute(first, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    pod.box.restart()
    pod.cri.wait_ready()
    wait_until(lambda: pod.status(first).state == RUNNING, deadline_s=SETTLE_S, what="the CRI to know it again")
    assert pod.execute(first, "sh", "-c", "echo again") == (0, b"again\n", b"")

    pod.cri.call("StopContainer", container_id=first, timeout=10)
    assert pod.wait_exited(first).exit_code == 5
    assert pod.log("first")[-1] == "stdout F ends"
    for container in (first, second):
        pod.cri.call("RemoveContainer", container_id=container)
    pod.cri.call("StopPodSandbox", pod_sandbox_id=pod.id)
    pod.cri.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    wait_until(lambda: not pod.box.leftovers(), deadline_s=SETTLE_S, what="everything to be gone")


def test_the_death_of_one_shim_is_not_the_pods(pod: Pod) -> None:
    """With a shim for the whole pod it would be."""
    first = pod.start("first", "sleep", "1000")
    second = pod.start("second", "sleep", "1000")
    os.kill(pod.shims()[first], 9)

    assert pod.wait_exited(first).exit_code != 0
    assert pod.status(second).state == RUNNING
    assert pod.execute(second, "echo", "alive") == (0, b"alive\n", b"")
    pod.cri.call("StopPodSandbox", pod_sandbox_id=pod.id)
    pod.cri.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    # containerd has not always run the `delete` of the killed one by now, which takes its container's pin away.
    wait_until(lambda: not pod.box.leftovers(), deadline_s=SETTLE_S, what="everything to be gone")

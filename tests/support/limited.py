"""A container of real runc with small limits, and its cgroups."""

import json
import os
import shutil
import subprocess
import tempfile
from typing import Any

from shim.cgroup import cgroups
from tests.support import leaks
from tests.support.keeperbox import remove_cgroup
from tests.support.waiting import wait_until

MEMORY_BYTES = 32 << 20
PIDS = 20
# The least the kernel takes, less than a process gets on the most crowded machine: so who wants more is throttled there
QUOTA_US, PERIOD_US = 1_000, 100_000


class Container:
    """Owns one container of runc with small limits; `close` leaves nothing of it."""

    def __init__(self, script: str, *, quota_us: int = PERIOD_US // 2) -> None:
        self.quota_us = quota_us
        self.folder = tempfile.mkdtemp(prefix="cg")
        # Named after the run's folder, so that the leak check knows our cgroups.
        self.cgroup = f"/{os.path.basename(os.environ['TMPDIR'])}-cg/c1"
        os.makedirs(f"{self.folder}/rootfs/bin")
        shutil.copy(shutil.which("busybox") or "", f"{self.folder}/rootfs/bin/busybox")
        for path in ("proc", "dev"):
            os.mkdir(f"{self.folder}/rootfs/{path}")
        with open(f"{self.folder}/config.json", "w", encoding="utf-8") as file:
            json.dump(self.spec(script), file)
        self.runc("create", "--bundle", self.folder, "--pid-file", f"{self.folder}/pid", "c1")
        self.pid = int(leaks.read(f"{self.folder}/pid"))
        self.paths = cgroups.find(self.pid)

    def spec(self, script: str) -> dict[str, Any]:
        return {
            "ociVersion": "1.0.2",
            "process": {"args": ["/bin/busybox", "sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["size=64m"]},
            ],
            "linux": {
                "cgroupsPath": self.cgroup,
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "ipc")],
                "resources": {
                    "memory": {"limit": MEMORY_BYTES, "swap": MEMORY_BYTES},
                    "pids": {"limit": PIDS},
                    "cpu": {"quota": self.quota_us, "period": PERIOD_US},
                },
            },
        }

    def runc(self, *arguments: str, check: bool = True) -> None:
        log = f"{self.folder}/log"
        command = ["runc", "--root", f"{self.folder}/runc", "--log", log, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert not check or done.returncode == 0, leaks.read(log)

    def start(self) -> None:
        self.runc("start", "c1")

    def close(self) -> None:
        self.paths.close()
        self.runc("delete", "--force", "c1", check=False)
        # runc gives up when a throttled process takes its time to end.
        for root in leaks.cgroup_roots():
            for path in (root + self.cgroup, root + os.path.dirname(self.cgroup)):
                wait_until(lambda path=path: remove_cgroup(path), what="the container to be gone")  # type: ignore[misc]
        shutil.rmtree(self.folder)

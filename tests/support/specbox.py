"""Containers of real runc from specs we build, in a folder of their own."""

import json
import os
import shutil
import subprocess
import tempfile
from typing import Any

from daemon import hostfacts, spec
from daemon.spec import SpecOptions
from tests.support import leaks

RUN_DEADLINE_S = 30
APPLETS = "sh id cat mount unshare hostname env pwd touch ls grep tty stty sleep readlink"


def make_rootfs(path: str) -> None:
    """The smallest root filesystem with a shell and a few users."""
    for name in ("bin", "etc", "tmp", "srv"):
        os.makedirs(f"{path}/{name}")
    shutil.copy(shutil.which("busybox") or "", f"{path}/bin/busybox")
    for applet in APPLETS.split():
        os.symlink("busybox", f"{path}/bin/{applet}")
    with open(f"{path}/etc/passwd", "w", encoding="ascii") as file:
        file.write("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n")
    with open(f"{path}/etc/group", "w", encoding="ascii") as file:
        file.write("root:x:0:\nweb:x:1001:\nvideo:x:44:web\n")


class Machine:
    """Owns a folder with one root filesystem, runc's state and bundles; `close` leaves nothing of them."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="spec")
        self.rootfs = f"{self.folder}/rootfs"
        # Named after the run's folder, so that the leak check knows our cgroups.
        self.namespace = f"{os.path.basename(os.environ['TMPDIR'])}-spec"
        self.count = 0
        make_rootfs(self.rootfs)

    def runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", f"{self.folder}/runc", *arguments]

    def bundle(self, *args: str, **options: Any) -> str:
        """A new bundle for this command; its path ends in the container's id."""
        self.count += 1
        container_id = f"c{self.count}"
        path = f"{self.folder}/{container_id}"
        os.mkdir(path)
        built = spec.build(
            SpecOptions(
                **{
                    "namespace": self.namespace,
                    "container_id": container_id,
                    "args": args,
                    "rootfs": self.rootfs,
                    "host_capabilities": hostfacts.capabilities(),
                    "host_network_files": hostfacts.host_network_files(),
                    **options,
                }
            )
        )
        assert spec.validate(built) == []
        with open(f"{path}/config.json", "w", encoding="utf-8") as file:
            json.dump(built, file)
        return path

    def run(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script in a container of these options, to its end."""
        return self.run_bundle(self.bundle("/bin/sh", "-c", script, **options))

    def run_bundle(self, path: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.runc("run", "--bundle", path, os.path.basename(path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_DEADLINE_S,
        )
        assert "runc run failed" not in done.stderr, done.stderr
        return done

    def run_detached(self, *arguments: str) -> None:
        """A runc command whose container stays; its streams would stay open with it, so it gets none of ours."""
        log = f"{self.folder}/log"
        done = subprocess.run(
            [*self.runc("--log", log), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=RUN_DEADLINE_S,
        )
        assert done.returncode == 0, leaks.read(log)

    def close(self) -> None:
        for number in range(1, self.count + 1):
            subprocess.run(self.runc("delete", "--force", f"c{number}"), capture_output=True, check=False)
        for root in leaks.cgroup_roots():
            if os.path.isdir(f"{root}/{self.namespace}"):
                os.rmdir(f"{root}/{self.namespace}")
        shutil.rmtree(self.folder)


def status_field(text: str, name: str) -> str:
    """A field of /proc/self/status as the container printed it."""
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))

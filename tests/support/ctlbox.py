"""A real daemon and shimctl on it, in a namespace whose cgroups go with it.

with CtlBox() as box:
    assert box.run("--rm", "--", "echo", "hi").stdout == "hi\n"
"""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.support.daemonbox import DaemonBox
from tests.support.shimctl import Shimctl

_count = itertools.count(1)


class CtlBox:
    """Owns a daemon box, and the parent cgroups of its namespace: runc makes them and leaves them."""

    def __init__(self, *, config: str = "", environ: Mapping[str, str] | None = None) -> None:
        # Named after the run's folder, by which the leak check knows what is ours.
        self.namespace = f"{os.path.basename(os.environ['TMPDIR'])}-{next(_count)}"
        self.daemon = DaemonBox(config=config, environ=environ)
        self.ctl = Shimctl("--address", self.daemon.address, "--state", self.daemon.state, "-n", self.namespace)
        self._cgroups = [f"{base}/{self.namespace}" for base in _cgroup_bases()]

    def __enter__(self) -> "CtlBox":
        for path in self._cgroups:
            os.mkdir(path)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.daemon.close()
        finally:
            for path in self._cgroups:
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    @property
    def rootfs(self) -> str:
        return self.daemon.rootfs

    def run(
        self, *words: str, given: str = "", env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """`shimctl run` on the box's root filesystem, to its end."""
        return self.ctl.run("run", "--rootfs", self.rootfs, *words, given=given, env=env)

    def start(self, *words: str, **streams: Any) -> "subprocess.Popen[bytes]":
        """`shimctl run` on the box's root filesystem, left running."""
        return self.ctl.start("run", "--rootfs", self.rootfs, *words, **streams)

    def detached(self, container_id: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """A container in the background; remove it with `remove`."""
        return self.ctl.output("run", "-d", "--rootfs", self.rootfs, *options, container_id, "--", *words).strip()

    def remove(self, *container_ids: str) -> None:
        self.ctl.output("rm", "-f", *container_ids)

    def ids(self) -> set[str]:
        """Every container there is."""
        return set(self.ctl.output("ps", "-aq").split())

    def log_folder(self, container_id: str) -> str:
        return f"{self.daemon.root}/logs/{self.namespace}/{container_id}"


def _cgroup_bases() -> list[str]:
    """Where each hierarchy is mounted; links such as cpu → cpu,cpuacct lead to the same one."""
    root = "/sys/fs/cgroup"
    if os.path.exists(f"{root}/cgroup.controllers"):
        return [root]
    return [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]

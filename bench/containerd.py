"""The peer: Debian's containerd with its Go shim, private to one run."""

import os

from bench.rig import CommandFailed, Daemon, command, program
from tests.support import leaks

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
"""


class Containerd(Daemon):
    """A containerd of our own, driven by ctr. Its shims' sockets lie in /run/containerd/s: that is compiled into it."""

    name = "containerd"

    @property
    def socket_path(self) -> str:
        return os.path.join(self.folder, "c.sock")

    def argv(self) -> list[str]:
        path = os.path.join(self.folder, "config.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(folder=self.folder))
        return [program("containerd"), "--config", path]

    def client(self, *words: str) -> list[str]:
        return [program("ctr"), "--address", self.socket_path, "--namespace", self.namespace, *words]

    @property
    def rootfs_words(self) -> list[str]:
        # --seccomp: our containers have a filter by default, ctr's must be asked for one
        return ["--seccomp", "--runc-root", os.path.join(self.folder, "runc"), "--rootfs", self.rig.rootfs]

    def runtime_words(self) -> list[str]:
        """Which shim; containerd's own unless a subclass says otherwise."""
        return []

    def run_words(self, container: str, *argv: str) -> list[str]:
        log = f"file://{self.folder}/{container}.log"
        return self.client(
            "run", "--detach", *self.runtime_words(), "--log-uri", log, *self.rootfs_words, container, *argv
        )

    def run_and_remove_words(self, container: str, *argv: str) -> list[str]:
        return self.client("run", "--rm", *self.runtime_words(), *self.rootfs_words, container, *argv)

    def exec_words(self, container: str, number: int, *argv: str) -> list[str]:
        return self.client("tasks", "exec", "--exec-id", f"e{number}", container, *argv)

    def running(self) -> dict[str, int]:
        rows = [line.split() for line in self.ask("tasks", "list").splitlines()[1:]]
        return {row[0]: int(row[1]) for row in rows if row[2] == "RUNNING"}

    def shim_pid(self, container: str) -> int:
        """Found by its command line: this shim leaves no pid file."""
        for pid, command_line in leaks.processes(self.rig.session).items():
            if command_line.split()[1:] == self.shim_arguments(container):
                return pid
        raise CommandFailed(f"{container} has no shim")

    def shim_arguments(self, container: str) -> list[str]:
        """What containerd gives a shim to serve with."""
        return ["-namespace", self.namespace, "-id", container, "-address", self.socket_path]

    def remove(self, container: str) -> None:
        command(*self.client("tasks", "delete", "--force", container), check=False)
        command(*self.client("containers", "delete", container), check=False)

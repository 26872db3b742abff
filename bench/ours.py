"""Our side: shimd and shimctl, private to one run."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench.rig import Daemon, command, program
from tests.support.adopted import Adopted
from ttrpc.api import shimd
from ttrpc.blocking import BlockingClient

CONFIG = ""  # the defaults are what is measured


class Shimd(Daemon):
    """A shimd of our own, driven by shimctl."""

    name = "shimd"

    @property
    def socket_path(self) -> str:
        return os.path.join(self.state_dir, "shimd.sock.ttrpc")

    def argv(self) -> list[str]:
        path = os.path.join(self.folder, "config.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(CONFIG)
        return [
            program("shimd"),
            "--config",
            path,
            "--state",
            self.state_dir,
            "--root",
            os.path.join(self.folder, "root"),
        ]

    def client(self, *words: str) -> list[str]:
        return [program("shimctl"), "--address", self.socket_path, "--namespace", self.rig.namespace, *words]

    def run_words(self, container: str, *argv: str) -> list[str]:
        return self.client("run", "-d", "--rootfs", self.rig.rootfs, "--name", container, "--", *argv)

    def run_and_remove_words(self, container: str, *argv: str) -> list[str]:
        return self.client("run", "--rm", "--rootfs", self.rig.rootfs, "--name", container, "--", *argv)

    def exec_words(self, container: str, number: int, *argv: str) -> list[str]:
        return self.client("exec", container, *argv)

    def running(self) -> dict[str, int]:
        rows = json.loads(self.ask("ps", "--json"))
        return {row["id"]: row["pid"] for row in rows if row["state"] == "running"}

    def shim_pid(self, container: str) -> int:
        return int(self.bundle_file(container, "shim.pid"))

    def remove(self, container: str) -> None:
        command(*self.client("rm", "-f", container), check=False)

    def upgrade(self) -> float:
        """Have the same program take our daemon's place; returns the gap in ms, as it tells it."""
        assert self.process is not None
        told = json.loads(self.ask("daemon", "upgrade", "--json"))
        self.process.wait()
        self.process = Adopted(told["to_pid"])
        return float(told["gap_ms"])

    @property
    def metadata(self) -> dict[str, str]:
        """What a call carries: the namespace."""
        return {"containerd-namespace-ttrpc": self.rig.namespace}

    @contextmanager
    def api(self) -> Iterator[BlockingClient]:
        """A connection to the daemon."""
        with BlockingClient.connect(self.socket_path) as client:
            yield client

    def info(self) -> "shimd.InfoResponse":
        """What the daemon says about itself."""
        with self.api() as client:
            answer: shimd.InfoResponse = client.call("shimd.v1.Shimd", "Info", shimd.InfoRequest())
            return answer

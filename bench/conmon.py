"""Another peer for logs alone: conmon, podman's monitor, around the same runc."""

import json
import os
import shutil

from bench.rig import Rig, command, program
from tests.support.waiting import wait_until


class Conmon:
    """One container under conmon. Owns its bundle; conmon and the container end by themselves."""

    def __init__(self, rig: Rig, name: str, *argv: str) -> None:
        self.name = name
        self.folder = os.path.join(rig.folder, f"conmon-{name}")
        self.runc = [program("runc"), "--root", os.path.join(rig.folder, "conmon-runc")]
        os.makedirs(self.folder)
        command(*self.runc, "spec", "--bundle", self.folder)
        path = os.path.join(self.folder, "config.json")
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
        spec["process"] |= {"args": list(argv), "terminal": False}
        spec["root"] = {"path": rig.rootfs, "readonly": False}
        spec["linux"]["cgroupsPath"] = f"/{rig.namespace}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(spec, file)

    @property
    def log(self) -> str:
        """Its log, in Kubernetes' line format: a stamp and a stream with each line, as our JSON lines have."""
        return os.path.join(self.folder, "log")

    def start(self) -> int:
        """Create and start; returns the container's pid."""
        pid_file = os.path.join(self.folder, "pid")
        command(
            *(program("conmon"), "--cid", self.name, "--cuuid", self.name, "--bundle", self.folder),
            *("--runtime", self.runc[0], "--runtime-arg", "--root", "--runtime-arg", self.runc[2]),
            *("--container-pidfile", pid_file, "--log-path", f"k8s-file:{self.log}"),
            *("--exit-dir", self.folder, "--socket-dir-path", self.folder),
        )
        wait_until(lambda: os.path.exists(pid_file), what="runc, started by conmon, to create the container")
        wait_until(lambda: command(*self.runc, "start", self.name, check=False).returncode == 0, what="its start")
        with open(pid_file, encoding="ascii") as file:
            return int(file.read())

    def remove(self) -> None:
        """Forget the container and its files."""
        command(*self.runc, "delete", "--force", self.name, check=False)
        shutil.rmtree(self.folder)

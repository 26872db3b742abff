"""What all slots of a storm share: the daemon, the truth, the follower, the tally; and where evidence is kept."""

import contextlib
import os
import shutil
import threading
from collections import Counter

from bench.ours import Shimd
from bench.storm.follower import Follower
from bench.storm.tally import Tally
from bench.storm.truth import Truth, log_files

KEPT_MAX = 4  # containers of each fault whose evidence is kept
COPY_MAX_BYTES = 8 << 20  # of one file


class Field:
    """Owns the folder of evidence, which is made with the first failure."""

    def __init__(self, daemon: Shimd, follower: Follower, seed: int, pace_s: float, kinds: frozenset[str]) -> None:
        self.daemon = daemon
        self.follower = follower
        self.seed = seed
        self.pace_s = pace_s
        self.kinds = kinds
        self.truth = Truth(daemon.rig.rootfs)
        self.tally = Tally()
        self.over = threading.Event()
        self.evidence = ""
        self.kept: set[str] = set()  # containers whose evidence is
        self._kept_of: Counter[str] = Counter()
        self.keeper_deaths: list[float] = []  # when a keeper was killed, by time.time
        self._shim_logs: dict[str, int] = {}
        self._lock = threading.Lock()

    def hold_shim_log(self, container: str) -> None:
        """Keep the shim's log open from here on: a delete takes the file away, and it may be that which fails."""
        path = os.path.join(self.bundle(container), "shim.log")
        with contextlib.suppress(OSError):
            self._shim_logs[container] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def let_go(self, container: str) -> None:
        """Nothing more is to be found out about this one."""
        fd = self._shim_logs.pop(container, -1)
        if fd >= 0:
            os.close(fd)

    def bundle(self, container: str) -> str:
        return os.path.join(
            self.daemon.state_dir, "io.containerd.runtime.v2.task", self.daemon.rig.namespace, container
        )

    def log_path(self, name: str) -> str:
        """Where a container or an exec logs."""
        return os.path.join(self.daemon.folder, "root", "logs", self.daemon.rig.namespace, name, "output.log")

    def fail(self, count: str, container: str, words: str, number: int = 1) -> None:
        """Count a fault of a container, say so, and keep what there is to see of it."""
        self.tally.fail(count, words, number)
        print(f"  {count}: {words}", flush=True)
        with self._lock:
            if container in self.kept or self._kept_of[count] >= KEPT_MAX:
                return
            self.kept.add(container)
            self._kept_of[count] += 1
            if not self.evidence:
                self.evidence = f"/tmp/storm-{self.seed}-{os.getpid()}"
                os.makedirs(self.evidence, exist_ok=True)
        try:
            self._keep(container, words)
        except OSError as error:
            print(f"  evidence of {container}: {error}", flush=True)

    def _keep(self, container: str, words: str) -> None:
        target = os.path.join(self.evidence, container)
        os.makedirs(target, exist_ok=True)
        copy_files(self.bundle(container), os.path.join(target, "bundle"))
        fd = self._shim_logs.get(container, -1)
        if fd >= 0:
            with open(os.path.join(target, "shim.log"), "wb") as log:
                log.write(os.pread(fd, COPY_MAX_BYTES, 0))
        for path in log_files(self.log_path(container)):
            copy_files(path, os.path.join(target, os.path.basename(path)))
        copy_files(os.path.join(self.daemon.folder, "log"), os.path.join(target, "daemon.log"))
        keepers = os.path.join(self.daemon.state_dir, "shimd-keeper")
        copy_files(keepers, os.path.join(target, "keeper"))
        with open(os.path.join(target, "why"), "w", encoding="utf-8") as file:
            file.write(f"{words}\n\nevents (topic, exec, incarnation):\n")
            file.writelines(f"  {told}\n" for told in tuple(self.follower.topics.get(container, ())))
            for key, records in tuple(self.follower.exits.items()):
                if key[0] == container:
                    file.write(f"\nexit {key}:\n{records}\n")


def copy_files(source: str, target: str) -> None:
    """Regular files, folders and all; what goes meanwhile is gone."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            if name != "rootfs":
                copy_files(os.path.join(source, name), os.path.join(target, name))
    elif os.path.isfile(source):
        try:
            if os.path.getsize(source) <= COPY_MAX_BYTES:
                shutil.copyfile(source, target)
            else:
                with open(source, "rb") as file, open(target, "wb") as copy:
                    file.seek(-COPY_MAX_BYTES, os.SEEK_END)
                    copy.write(file.read())
        except FileNotFoundError:
            pass

"""Our shim as a containerd user installs it, in a containerd of its own; the peer is the same with the Go shim."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from bench.containerd import Containerd
from bench.rig import command
from shim import launcher
from tests.support.keeperbox import READY
from tests.support.leaks import read
from tests.support.waiting import wait_until
from ttrpc.api import task, wkt
from ttrpc.blocking import BlockingClient

RUNTIME = "io.containerd.shimd.v2"
TASK = "containerd.task.v2.Task"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
TRUE = b'{"args":["/bin/true"],"cwd":"/","env":["PATH=/bin"]}'
EXEC_S = 30.0
REPORT_S = 10.0


class ShimdUnderContainerd(Containerd):
    """A second containerd whose containers are started with our runtime: the lean launcher, and a keeper that is warm.

    Owns besides: the folder with the program, and the keeper, which `rig()` ends.
    """

    name = "ours"

    @property
    def namespace(self) -> str:
        return f"{self.rig.namespace}.{self.name}"

    @property
    def keeper_folder(self) -> str:
        return os.path.join(self.folder, "keeper")

    def environment(self) -> dict[str, str]:
        programs = os.path.join(self.folder, "bin")
        os.makedirs(programs, exist_ok=True)
        launcher.install(programs)
        return {
            **os.environ,
            "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath))),
            "SHIMD_KEEPER": self.keeper_folder,
            "SHIMD_KEEPER_CGROUP": f"{self.rig.namespace}.keeper",
        }

    def runtime_words(self) -> list[str]:
        return ["--runtime", RUNTIME]

    def shim_pid(self, container: str) -> int:
        return int(self.bundle_file(container, "shim.pid"))

    def __enter__(self) -> Self:
        super().__enter__()
        command(*self.run_and_remove_words("warm", "/bin/true"))
        wait_until(self._is_warm, what="the keeper's template")
        return self

    def _is_warm(self) -> bool:
        return READY.search(read(os.path.join(self.keeper_folder, "keeper.log"))) is not None


def exec_on_all(sockets: Sequence[str], container: str, numbers: range, report: Callable[[str], None]) -> None:
    """Many execs of `true` in this container of each of these shims, all shims at once; says how far they are.

    Blocks: until all are done. Raises: the first failure of any; KeyboardInterrupt, once the execs under way are over.
    """
    is_over = threading.Event()
    done = [0] * len(sockets)
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for _ in exec_many(sockets[index], container, numbers):
                done[index] += 1
                if is_over.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)
            is_over.set()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sockets))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(REPORT_S)
                if thread.is_alive():
                    report(f"execs {' and '.join(map(str, done))} of {len(numbers)}")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def exec_many(socket_path: str, container: str, numbers: range) -> Iterator[int]:
    """Many execs of `true` through the shim's own socket, as containerd would ask for them, one after the other.

    Yields each one's number when it is over and deleted.
    """
    with BlockingClient.connect(socket_path) as client:
        for number in numbers:
            exec_id = f"m{number}"
            request = task.ExecProcessRequest(id=container, exec_id=exec_id, spec=wkt.any_of(PROCESS_URL, TRUE))
            client.call(TASK, "Exec", request, timeout_s=EXEC_S)
            client.call(TASK, "Start", task.StartRequest(id=container, exec_id=exec_id), timeout_s=EXEC_S)
            ended = client.call(TASK, "Wait", task.WaitRequest(id=container, exec_id=exec_id), timeout_s=EXEC_S)
            assert ended.exit_status == 0, f"exec {number} ended with {ended.exit_status}"
            client.call(TASK, "Delete", task.DeleteRequest(id=container, exec_id=exec_id), timeout_s=EXEC_S)
            yield number

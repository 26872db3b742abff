"""A client of the daemon that knows nothing of anybody's death: it asks again, after a look at what was done."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from bench.ours import Shimd
from ttrpc.api import containers, process, tasks
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, DeadlineExceeded, StatusError
from ttrpc.status import Code

CONTAINERS = "containerd.services.containers.v1.Containers"
TASKS = "containerd.services.tasks.v1.Tasks"
SHIMD = "shimd.v1.Shimd"

PATIENCE_S = 180.0  # for one thing to be done, however often somebody dies over it
CALL_S = 60.0
PAUSE_S = 0.05
# The call was cut: it may have taken effect, or still be under way.
CUT = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED})
GONE = frozenset({Code.NOT_FOUND})

Answer = TypeVar("Answer")


class Cut(Exception):
    """The answer was lost."""


class Stuck(Exception):
    """Something was not done within our patience."""


class Asker:
    """One thread's client. Owns a connection, made anew whenever it breaks; counts the calls that were cut."""

    def __init__(self, daemon: Shimd) -> None:
        self.daemon = daemon
        self.cut_calls = 0
        self._client: BlockingClient | None = None

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def once(self, service: str, method: str, request: Any, *, timeout_s: float = CALL_S) -> Any:
        """One call, sent once. Raises: Cut, when its answer is lost; StatusError."""
        try:
            if self._client is None:
                self._client = BlockingClient.connect(self.daemon.socket_path)
            return self._client.call(service, method, request, timeout_s=timeout_s, metadata=self.daemon.metadata)
        except (ConnectionLost, DeadlineExceeded, OSError) as error:
            self.close()
            self.cut_calls += 1
            raise Cut(f"{method}: {error}") from None
        except StatusError as error:
            if error.code in CUT:
                self.cut_calls += 1
                raise Cut(f"{method}: {error}") from None
            raise

    def settle(
        self, what: str, attempt: Callable[[], Answer], look: Callable[[], Answer | None] = lambda: None
    ) -> Answer:
        """Do something once: ask, and after a lost answer look whether it was done before asking again.

        Raises: StatusError when it is refused without an answer having been lost before; Stuck.
        """
        ends_at = time.monotonic() + PATIENCE_S
        was_cut = False
        while True:
            try:
                return attempt()
            except Cut as cut:
                was_cut, last = True, str(cut)
            except StatusError as error:
                if not was_cut:
                    raise
                last = str(error)
            if time.monotonic() > ends_at:
                raise Stuck(f"{what}: not done within {PATIENCE_S:g} s: {last}")
            time.sleep(PAUSE_S)
            try:
                found = look()
            except (Cut, StatusError):
                continue  # asked again, and looked at again
            if found is not None:
                return found

    def ask(self, service: str, method: str, request: Any, *, timeout_s: float = CALL_S) -> Any:
        """A call that may be repeated harmlessly. Raises: StatusError, Stuck."""
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.once(service, method, request, timeout_s=timeout_s)
            except Cut as cut:
                if time.monotonic() > ends_at:
                    raise Stuck(f"not done within {PATIENCE_S:g} s: {cut}") from None
            time.sleep(PAUSE_S)

    # --- what a life needs

    def task(self, container: str, exec_id: str = "") -> "process.Process | None":
        """A task or exec as it is now; None: there is none. Raises: Stuck, StatusError."""
        try:
            request = tasks.GetRequest(container_id=container, exec_id=exec_id)
            found: process.Process = self.ask(TASKS, "Get", request).process
        except StatusError as error:
            if error.code in GONE:
                return None
            raise
        return found

    def create_container(self, record: "containers.Container") -> None:
        def attempt() -> bool:
            self.once(CONTAINERS, "Create", containers.CreateContainerRequest(container=record))
            return True

        def look() -> bool | None:
            self.once(CONTAINERS, "Get", containers.GetContainerRequest(id=record.id))
            return True  # the name is nobody else's

        self.settle("Containers.Create", attempt, look)

    def create_task(self, request: "tasks.CreateTaskRequest") -> int:
        def look() -> int | None:
            found = self.task(request.container_id)
            return int(found.pid) if found is not None and found.pid else None

        return self.settle("Create", lambda: int(self.once(TASKS, "Create", request).pid), look)

    def start(self, container: str, exec_id: str = "") -> int:
        request = tasks.StartRequest(container_id=container, exec_id=exec_id)

        def look() -> int | None:
            found = self.task(container, exec_id)
            return int(found.pid) if found is not None and found.status not in (process.CREATED, 0) else None

        return self.settle(f"Start {exec_id}", lambda: int(self.once(TASKS, "Start", request).pid), look)

    def add_exec(self, request: "tasks.ExecProcessRequest") -> None:
        def attempt() -> bool:
            self.once(TASKS, "Exec", request)
            return True

        def look() -> bool | None:
            return True if self.task(request.container_id, request.exec_id) is not None else None

        self.settle("Exec", attempt, look)

    def switch(self, container: str, method: str, wanted: int) -> None:
        """Pause or resume."""
        made = tasks.PauseTaskRequest if method == "Pause" else tasks.ResumeTaskRequest

        def attempt() -> bool:
            self.once(TASKS, method, made(container_id=container))
            return True

        def look() -> bool | None:
            found = self.task(container)
            return True if found is not None and found.status == wanted else None

        self.settle(method, attempt, look)

    def kill(self, container: str, signum: int) -> None:
        """SIGTERM or SIGKILL: harmless twice."""
        request = tasks.KillRequest(container_id=container, signal=signum)
        try:
            self.ask(TASKS, "Kill", request)
        except StatusError as error:
            if error.code not in GONE:
                raise

    def wait(self, container: str, exec_id: str = "") -> int:
        """The exit status. Blocks: as long as the process lives, and our patience."""
        request = tasks.WaitRequest(container_id=container, exec_id=exec_id)
        return int(self.ask(TASKS, "Wait", request).exit_status)

    def delete(self, method: str, request: Any, service: str = TASKS) -> None:
        """Deleting twice is harmless."""
        try:
            self.ask(service, method, request)
        except StatusError as error:
            if error.code not in GONE:
                raise

"""One cell of the kill matrix: a container's whole life, led by a client that goes on after whatever dies under it.

The client knows no more than any client: after an error it looks what became of its request, and asks again when that
was not done. At the end nothing may be missing, doubled or left.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from daemon.ctl.attachment import Attachment
from tests.support.daemonbox import CONTAINERS, PROCESS_URL, SPEC_URL
from tests.support.matrixbox import DAEMON, KEEPER, RUNC, SHIM, MatrixBox, Strike
from tests.support.shimbox import make_process
from tests.support.waiting import wait_until
from ttrpc.api import containers, mount, process, shim, tasks, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError, TtrpcError
from ttrpc.status import Code

RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
# Lines of 64 bytes, numbered, until it is told to go; what is typed goes to a file.
PROGRAM = """
exec 3<&0; cat <&3 >/c/in &
i=0
while [ ! -e /c/go ]; do
    echo "line $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    i=$((i+1)); usleep 2000
done
echo "last $i"
exit 42
"""
TTY_PROGRAM = PROGRAM.replace("exec 3<&0; cat <&3 >/c/in &", "stty raw -echo")
WHOLE_LIFE = [
    "create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete",
]  # fmt: skip
SCHEMES = {
    "raw": "format=raw&max-size=4096&max-files=1000",
    "json": "format=json&max-size=16384&max-files=1000",
    "tty": "format=json&max-size=65536&max-files=1000",
}
# What a client is told of a task whose shim died under the call, or is being looked for.
PASSING = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.FAILED_PRECONDITION)
LOST = (ConnectionLost, ConnectionError, FileNotFoundError)
TRIES = 4
TYPING_S = 3.0
SETTLE_S = 10.0
UNKNOWN = 255  # containerd's number for a status nobody knows; ours has no code then


class Life:
    """Leads one container through its life, with one strike on the way. `errors` are the client's, in order."""

    def __init__(self, box: MatrixBox, name: str, victims: tuple[str, ...], *, scheme: str = "raw") -> None:
        self.box, self.id, self.scheme, self.victims = box, name, scheme, victims
        self.hooks: dict[str, list[dict[str, object]]] = {}
        self.rootfs = f"{box.folder}/r-{name}"
        self.log = f"{box.folder}/l-{name}/log"
        self.errors: list[str] = []
        self.pids: dict[str, int] = {}
        self.strike: Strike | None = None
        self.types_input = False
        self.upgrades = False
        self.may_miss_exec = False
        self.may_lose_output = False
        self.waits_for_strike = False
        self.late_trap = ""  # laid when nothing else is under way
        self.loses_shim = False  # before the strike, which then falls on what comes after
        self.before = set(box.left_of(name))  # by a cell that failed

    # --- a client that goes on

    def settle(self, what: str, act: Callable[[], Any], is_done: Callable[[], bool]) -> None:
        """Do something; when that fails, look whether it is done before doing it again."""

        def is_settled() -> bool:
            try:
                act()
                return True
            except LOST as error:
                self._expect(what, error, DAEMON)
            except StatusError as error:
                self._expect(what, error, "")
            self.box.disconnect()
            return is_done()

        wait_until(is_settled, deadline_s=SETTLE_S, what=f"{what} to be done")

    def _expect(self, what: str, error: Exception, victim: str) -> None:
        """An error is in order only when something died; of a runc that was killed it says so."""
        if "unable to freeze" in str(error):
            return  # runc on the first version of cgroups gives up on a busy machine
        assert self.strike is not None, f"{what}: {error}"
        assert self.strike.has_struck.wait(30.0), f"{what} fails before the strike: {error}"
        if self.strike.failure is not None:
            raise self.strike.failure
        self.errors.append(f"{what}: {error}")
        assert victim != DAEMON or DAEMON in self.victims, f"{what}: nobody killed the daemon: {error}"
        assert set(self.victims) - {KEEPER}, f"{what} notices the death of the keeper: {error}"
        assert self.victims != (RUNC,) or "failed: " in str(error), f"not runc's words: {error}"

    def look(self, question: Callable[[], Any]) -> Any:
        """Ask something that may be asked any number of times; None when it is not there."""
        answers: list[Any] = []

        def is_answered() -> bool:
            try:
                answers.append(question())
            except LOST as error:
                self._expect("look", error, DAEMON)
                self.box.disconnect()
            except StatusError as error:
                if error.code == Code.NOT_FOUND:
                    answers.append(None)
                elif error.code not in PASSING:
                    raise
            return bool(answers)

        wait_until(is_answered, deadline_s=20.0, what="an answer")
        return answers[0]

    def status(self, exec_id: str = "") -> int | None:
        found = self.look(lambda: self.box.task(self.id, exec_id))
        return None if found is None else int(found.status)

    # --- a life

    def make(self) -> None:
        """The record and what it stands on."""
        box = self.box
        os.makedirs(os.path.dirname(self.log))
        for name in "cuw":
            os.makedirs(f"{self.rootfs}/{name}")
        args = ["sh", "-c", TTY_PROGRAM if self.scheme == "tty" else PROGRAM]
        spec = box.spec(self.id, args)
        spec["process"]["terminal"] = self.scheme == "tty"
        spec["root"]["path"] = "rootfs"
        spec["mounts"].append(
            {"destination": "/c", "type": "bind", "source": f"{self.rootfs}/c", "options": ["bind", "rw"]}
        )
        if self.hooks:
            spec["hooks"] = self.hooks
        made = containers.Container(id=self.id)
        made.runtime.name = "io.containerd.shimd.v2"
        made.spec.CopyFrom(wkt.any_of(SPEC_URL, json.dumps(spec).encode()))
        box.call(CONTAINERS, "Create", containers.CreateContainerRequest(container=made))

    def create(self) -> None:
        out = f"log://{self.log}?{SCHEMES[self.scheme]}"
        request = tasks.CreateTaskRequest(container_id=self.id, stdin="attach:", stdout=out)
        request.stderr = "" if self.scheme == "tty" else out
        request.terminal = self.scheme == "tty"
        layers = f"lowerdir={self.box.rootfs},upperdir={self.rootfs}/u,workdir={self.rootfs}/w"
        request.rootfs.append(mount.Mount(type="overlay", source="overlay", options=layers.split(",")))
        self.settle("create", lambda: self.box.tasks("Create", request), lambda: self.status() == process.CREATED)
        assert self.status() == process.CREATED
        self.pids["init"] = self.look(lambda: self.box.task(self.id)).pid

    def start(self) -> None:
        self.settle("start", lambda: self.box.start_task(self.id), lambda: self.status() == process.RUNNING)

    def exec(self) -> None:
        box = self.box
        request = tasks.ExecProcessRequest(container_id=self.id, exec_id="e1")
        request.spec.CopyFrom(wkt.any_of(PROCESS_URL, json.dumps(make_process(["sh", "-c", "exit 3"])).encode()))
        self.settle("exec", lambda: box.tasks("Exec", request), lambda: self.status("e1") is not None)
        self.settle("start e1", lambda: box.start_task(self.id, "e1"), lambda: self.status("e1") != process.CREATED)
        self.wait("e1", 3, *((UNKNOWN,) if self.may_miss_exec else ()))
        gone = tasks.DeleteProcessRequest(container_id=self.id, exec_id="e1")
        self.settle("delete e1", lambda: box.tasks("DeleteProcess", gone), lambda: self.status("e1") is None)

    def wait(self, exec_id: str, *expected: int) -> None:
        codes: list[int] = []
        self.settle(f"wait {exec_id}", lambda: codes.append(self.box.wait(self.id, exec_id).exit_status), lambda: False)
        assert len(codes) == 1
        assert codes[0] in expected, f"exit status of {exec_id or 'init'}: {codes}"

    def pause(self) -> None:
        one = tasks.PauseTaskRequest(container_id=self.id)
        self.settle("pause", lambda: self.box.tasks("Pause", one), lambda: self.status() == process.PAUSED)
        two = tasks.ResumeTaskRequest(container_id=self.id)
        self.settle("resume", lambda: self.box.tasks("Resume", two), lambda: self.status() == process.RUNNING)

    def update(self) -> None:
        request = tasks.UpdateTaskRequest(container_id=self.id)
        resources = {"memory": {"limit": 64 << 20}}
        request.resources.CopyFrom(wkt.any_of(RESOURCES_URL, json.dumps(resources).encode()))
        self.settle("update", lambda: self.box.tasks("Update", request), lambda: False)

    def lose_shim(self) -> None:
        """A first kill: what a keeper and a successor do then is what the strike falls on."""
        first = self.box.shim_pids(self.id)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        if not self.waits_for_strike:
            wait_until(lambda: {*self.box.shim_pids(self.id)} - {*first}, what="a successor")

    def type(self) -> None:
        """Attach, and type a word: it arrives once, whoever is killed meanwhile."""
        path = f"{self.rootfs}/c/in"
        gaps: list[str] = []
        for _ in range(TRIES):
            address = self.look(lambda: self.box.shim(self.id)).address
            attachment = Attachment(address, shim.AttachOpen(stdin=True, output=True), metadata={}, on_gap=gaps.append)
            try:
                attachment.open()
                break
            except (OSError, TtrpcError) as error:
                self._expect("attach", error, "")
        with contextlib.closing(attachment):
            attachment.send(b"word\n")
            # Nobody else has the other end of its stdin: that ends with keeper and shim, as SHIM.md says.
            may_end = {KEEPER, SHIM} <= {*self.victims}
            try:
                wait_until(
                    lambda: (self._hear(attachment), read(path))[1],
                    deadline_s=TYPING_S if may_end else SETTLE_S,
                    what="the word",
                )
            except (TtrpcError, AssertionError):
                if not may_end:
                    raise
        if may_end:
            return
        assert read(path) == b"word\n", read(path)
        assert gaps == []

    @staticmethod
    def _hear(attachment: Attachment) -> None:
        attachment.pump_nowait()
        with contextlib.suppress(BlockingIOError):
            while attachment.receive_nowait() is not None:
                pass

    def upgrade(self) -> None:
        """Have the shim go on as the same code anew, asked once: it does, or is followed by a successor."""
        try:
            with BlockingClient.connect(self.look(lambda: self.box.shim(self.id)).address) as client:
                request = shim.UpgradeRequest(patience_ms=20_000)
                client.call("shimd.shim.v1.Shim", "Upgrade", request, timeout_s=60.0)
        except (OSError, TtrpcError) as error:
            self._expect("upgrade", error, "")

    def end(self) -> None:
        with open(f"{self.rootfs}/c/go", "w", encoding="utf-8"):
            pass
        if self.late_trap and not self.waits_for_strike and self.strike is not None:
            assert self.strike.has_struck.wait(20.0), "the step was never reached"
        self.wait("", 42)

    def is_deleted(self) -> bool:
        return self.status() is None

    def delete(self) -> None:
        def again() -> None:
            try:
                self.box.delete_task(self.id)
            except StatusError as error:
                if error.code != Code.NOT_FOUND:
                    raise

        self.settle("delete", again, self.is_deleted)
        assert self.is_deleted()

    # --- what must hold

    def check_alive(self) -> None:
        """The same process, wherever it was started."""
        found = self.look(lambda: self.box.task(self.id))
        assert found is not None, "the task is gone"
        assert found.pid == self.pids["init"], f"it is another process: {found.pid}, was {self.pids['init']}"
        assert found.status == process.RUNNING, f"its status is {found.status}"
        assert os.path.exists(f"/proc/{found.pid}"), "its process is gone"

    def check_output(self) -> None:
        """Every line, once, in order."""
        folder, name = os.path.split(self.log)
        ages = sorted((int(entry[len(name) + 1 :] or 0), entry) for entry in os.listdir(folder))
        text = b"".join(read(os.path.join(folder, entry)) for _, entry in reversed(ages))
        if self.scheme != "raw":
            text = "".join(json.loads(line)["log"] for line in text.splitlines()).encode()
        lines = text.decode().splitlines()
        if self.may_lose_output:
            whole = [int(line.split()[1]) for line in lines if len(line.split()) == 3 or line.startswith("last ")]
            assert whole == sorted(set(whole)), "out of order, or twice"
            assert len(lines) - len(whole) <= 2, "more than the ends of what is missing are torn"
            return
        last = int(lines[-1].removeprefix("last ")) if lines and lines[-1].startswith("last ") else -1
        expected = [*(f"line {number} {'x' * 56}" for number in range(last)), f"last {last}"]
        wrong = [(at, *pair) for at, pair in enumerate(zip(lines, expected, strict=False)) if pair[0] != pair[1]][:3]
        assert lines == expected, f"{len(lines)} lines, {len(expected)} expected, {wrong}, the end is {lines[-2:]}"

    def check_told(self) -> None:
        """Every event once, in order; every exit stored once, and exact."""
        told = [topic.rpartition("/")[2] for topic in self.look(lambda: self.box.topics(self.id))]
        undone = sum(error.startswith("create:") for error in self.errors)
        while undone and told[:2] == ["create", "create"]:  # of a create that was told before it was undone
            undone -= 1
            del told[0]
        assert told == WHOLE_LIFE, f"told: {told}"
        exits = [(one.exec_id, one.code if one.HasField("code") else None) for one in self.box.exits(self.id)]
        if self.may_miss_exec and exits[:1] == [("e1", None)]:
            exits[0] = ("e1", 3)
        assert exits == [("e1", 3), ("", 42)], f"exits stored: {exits}"


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def lead(life: Life) -> None:
    """All of it. Raises: AssertionError with what does not hold."""
    life.make()
    life.create()
    life.start()
    life.check_alive()
    life.exec()
    life.pause()
    life.update()
    if life.types_input:
        life.type()
    if life.upgrades:
        life.upgrade()
    if life.late_trap and life.waits_for_strike:
        life.box.lay(life.late_trap)
    if life.loses_shim:
        life.lose_shim()
    if life.late_trap and not life.waits_for_strike:
        life.box.lay(life.late_trap)
    if life.waits_for_strike and life.strike is not None:
        assert life.strike.has_struck.wait(20.0), "the step was never reached"
    life.check_alive()
    life.end()
    life.check_output()
    life.delete()


def finish(life: Life) -> None:
    """After the strike: nothing missing, doubled or left."""
    life.check_told()
    life.look(lambda: life.box.delete_container(life.id))
    last: list[str] = []

    def is_clean() -> bool:
        last[:] = sorted(set(life.box.left_of(life.id)) - life.before)
        return not last

    try:
        wait_until(is_clean, deadline_s=2.0, what="nothing to be left")
    except AssertionError:
        raise AssertionError(f"left: {last}") from None

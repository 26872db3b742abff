"""Log programs (binary://) of real containers: what they are given, how they end, and what their death does not do."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import leaks
from tests.support.shimbox import NAMESPACE, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import runc
from ttrpc.errors import StatusError
from ttrpc.status import Code

# Writes down what it was given, says that it is ready by closing fd 5, and copies until the end of both streams.
COPIER = """#!/bin/sh
echo "$@" >>{base}.args
env | grep -v -e ^PWD= -e ^OLDPWD= -e ^SHLVL= -e ^_= | sort >>{base}.env
ls /proc/$$/fd >>{base}.fds
echo $$ >>{base}.pid
exec 5>&-
cat <&4 >>{base}.err &
cat <&3 >>{base}.out
wait
>>{base}.end
"""


class Logged:
    """A box, and a log program of the test's own in its folder."""

    def __init__(self, box: ShimBox, script: str = COPIER) -> None:
        self.box = box
        self.base = os.path.join(box.folder, "logger")
        with open(self.base, "w", encoding="utf-8") as file:
            file.write(script.format(base=self.base))
        os.chmod(self.base, 0o755)

    def uri(self, query: str = "", scheme: str = "binary") -> str:
        return f"{scheme}://{self.base}" + (f"?{query}" if query else "")

    def create(self, query: str = "", scheme: str = "binary", **fields: Any) -> None:
        self.box.create(stdout=self.uri(query, scheme), stderr=self.uri(query, scheme), **fields)

    def said(self, what: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return leaks.read(f"{self.base}.{what}")
        return ""

    def pids(self) -> list[int]:
        return [int(pid) for pid in self.said("pid").split()]

    def is_alive(self) -> bool:
        pids = self.pids()
        return bool(pids) and os.path.exists(f"/proc/{pids[-1]}")


@contextlib.contextmanager
def logged(script: str, *command: str, terminal: bool = False) -> Iterator[Logged]:
    with ShimBox(["sh", "-c", *command], terminal=terminal) as box:
        yield Logged(box, script)


def test_a_program_is_given_what_containerds_shim_gives_it() -> None:
    """Arguments of the query, two variables, the two streams and a word to say; nothing else, and nothing of ours."""
    with logged(COPIER, "echo out; echo err >&2; exit 3") as play:
        play.create("one=1&two=a%20b+c&flag")
        play.box.start()
        assert play.box.wait().exit_status == 3
        play.box.delete()

        assert play.said("args") == "one 1 two a b c flag \n"
        assert play.said("env") == f"CONTAINER_ID=box\nCONTAINER_NAMESPACE={NAMESPACE}\n"
        found = set(map(int, play.said("fds").split()))
        assert found - {10, 11} == {0, 1, 2, 3, 4, 5}  # the shell keeps its script and its stdout at 10 and 11
        assert (play.said("out"), play.said("err")) == ("out\n", "err\n")


def test_all_output_is_with_the_program_when_delete_answers() -> None:
    """It ended by itself, at the end of its input, and was not asked to."""
    with logged(COPIER, "yes 0123456789 | head -c 3000000") as play:
        play.create()
        play.box.start()
        play.box.wait()
        play.box.delete()

        assert len(play.said("out")) == 3_000_000
        assert os.path.exists(f"{play.base}.end")
        assert not play.is_alive()


def test_an_exec_has_a_program_of_its_own() -> None:
    """Known by the exec's id, as containerd's shim has it."""
    with logged(COPIER, "sleep 1000") as play:
        play.box.create()
        play.box.start()
        done = play.box.run_exec("e1", ["sh", "-c", "echo from-exec; exit 4"], stdout=play.uri(), stderr=play.uri())

        assert done.exit_status == 4
        assert play.said("out") == "from-exec\n"
        assert f"CONTAINER_ID=e1\nCONTAINER_NAMESPACE={NAMESPACE}\n" == play.said("env")
        assert not play.is_alive()


def test_a_terminal_is_logged_too() -> None:
    with logged(COPIER, "tty; echo to-stderr >&2", terminal=True) as play:
        play.create()
        play.box.start()
        play.box.wait()
        play.box.delete()

        with open(f"{play.base}.out", "rb") as file:
            assert file.read() == b"/dev/pts/0\r\nto-stderr\r\n"


READY_BY_BYTE = "#!/bin/sh\necho $$ >>{base}.pid\necho >&5\nexec cat <&3 >>{base}.out\n"
READY_LATE = "#!/bin/sh\nuntil [ -e {base}.go ]; do sleep 0.01; done\nexec 5>&-\nexec cat <&3 >>{base}.out\n"
NEVER_READY = "#!/bin/sh\necho $$ >>{base}.pid\nexec 5>&-\nexec cat <&3 >>{base}.out\n"


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_byte_says_ready(scheme: str) -> None:
    with logged(READY_BY_BYTE, "echo out") as play:
        play.create(scheme=scheme)
        play.box.start()
        play.box.wait()
        play.box.delete()

        assert play.said("out") == "out\n"


def test_create_waits_until_the_program_is_ready() -> None:
    with logged(READY_LATE, "echo out") as play:
        play.box.launch()
        asked = play.box.connect().open_stream(
            "containerd.task.v2.Task", "Create", create_request(play.box, play.uri())
        )
        assert play.box.call("Connect", connect_request()).task_pid == 0
        with open(f"{play.base}.go", "w", encoding="ascii"):
            pass
        assert asked.receive(timeout_s=20).pid > 0
        play.box.start()
        play.box.wait()
        play.box.delete()

        assert play.said("out") == "out\n"


def create_request(box: ShimBox, stdout: str) -> Any:
    from ttrpc.api import task, wkt

    options = wkt.pack(runc.Options(root=box.runc_root))
    return task.CreateTaskRequest(id=box.id, bundle=box.bundle, stdout=stdout, options=options)


def connect_request() -> Any:
    from ttrpc.api import task

    return task.ConnectRequest(id="box")


def test_a_program_that_must_say_so_and_does_not_fails_the_create() -> None:
    """And is ended; the next Create can be tried."""
    with logged(NEVER_READY, "echo out") as play:
        with pytest.raises(StatusError, match="did not say that it is ready"):
            play.create(scheme="binary-v2")
        wait_until(lambda: not play.is_alive(), what="the program to be ended")
        assert os.listdir(play.box.path("io")) == []
        play.create(scheme="binary")
        play.box.start()
        play.box.wait()
        play.box.delete()

        assert play.said("out") == "out\n"


@pytest.mark.parametrize("path", ["/no/such/logger", "/etc/hostname", "/"])
def test_a_program_that_cannot_be_run_is_the_callers_mistake(path: str) -> None:
    with ShimBox() as box:
        with pytest.raises(StatusError) as refusal:
            box.create(stdout=f"binary://{path}")

        assert refusal.value.code == Code.INVALID_ARGUMENT
        assert path in refusal.value.message
        assert os.listdir(box.path("io")) == []
        box.create()


# --- its death


STEPS = "for i in 1 2 3; do until [ -e /go$i ]; do sleep 0.01; done; echo step $i; done; exit 7"


def step(play: Logged, number: int) -> None:
    with open(os.path.join(play.box.rootfs, f"go{number}"), "w", encoding="ascii"):
        pass


def test_a_program_that_dies_is_started_again_and_the_container_never_knew() -> None:
    with logged(COPIER, STEPS) as play:
        play.create()
        play.box.start()
        step(play, 1)
        wait_until(lambda: play.said("out") == "step 1\n", what="the first step to be logged")
        first = play.pids()[0]
        os.kill(-first, signal.SIGKILL)
        step(play, 2)
        wait_until(lambda: play.said("out") == "step 1\nstep 2\n", what="the second step to be logged")
        step(play, 3)
        assert play.box.wait().exit_status == 7
        play.box.delete()

        assert play.said("out") == "step 1\nstep 2\nstep 3\n"
        assert len(play.pids()) == 2
        assert "was killed by signal 9: starting it again" in play.box.read("shim.log")


def test_what_its_death_left_unread_is_read_by_its_successor() -> None:
    """Also when the container has ended meanwhile: the shim keeps the FIFO."""
    wait_first = "#!/bin/sh\necho $$ >>{base}.pid\nexec 5>&-\nuntil [ -e {base}.go ]; do sleep 0.01; done\n"
    with logged(wait_first + "exec cat <&3 >>{base}.out\n", "echo all of it; exit 7") as play:
        play.create()
        play.box.start()
        assert play.box.wait().exit_status == 7
        os.kill(play.pids()[0], signal.SIGKILL)
        with open(f"{play.base}.go", "w", encoding="ascii"):
            pass
        play.box.delete()

        wait_until(lambda: play.said("out") == "all of it\n", what="the output to be logged")


def test_a_program_that_cannot_live_holds_nobody_up() -> None:
    """More than every pipe holds: the container comes to its end, and what was lost is counted."""
    with logged("#!/bin/sh\nexit 1\n", "yes 0123456789 | head -c 9000000; exit 7") as play:
        play.create()
        play.box.start()

        assert play.box.wait().exit_status == 7
        wait_until(lambda: play.box.info().dropped_bytes >= 7_000_000, what="the loss to be counted")
        assert "again and again: output is dropped" in play.box.read("shim.log")
        play.box.delete()
        assert play.box.info().dropped_bytes == 9_000_000


def test_a_program_that_waits_to_be_asked_is_asked() -> None:
    """At Delete, and after it has read everything."""
    patient = "#!/bin/sh\necho $$ >>{base}.pid\ntrap '>{base}.asked; exit 0' TERM\nexec 5>&-\ncat <&3 >>{base}.out\n"
    with logged(patient + "while :; do sleep 0.02; done\n", "echo out") as play:
        play.create()
        play.box.start()
        play.box.wait()
        play.box.delete()

        assert os.path.exists(f"{play.base}.asked")
        assert play.said("out") == "out\n"
        assert not play.is_alive()


def test_who_an_exec_leaves_behind_can_write_on() -> None:
    """The program of the exec is gone then: nobody keeps it, and nobody dies or waits for it."""
    script = "(for i in $(seq 100000); do echo line $i; done; >/left-behind-is-done) & echo main; exit 0"
    with logged(COPIER, "sleep 1000") as play:
        play.box.create()
        play.box.start()
        os.kill(play.box.shim_pid, 0)
        play.box.run_exec("e1", ["sh", "-c", script], stdout=play.uri(), stderr=play.uri())

        done = os.path.join(play.box.rootfs, "left-behind-is-done")
        wait_until(lambda: os.path.exists(done), deadline_s=20, what="the one left behind to have written all")
        assert not play.is_alive()


def test_nothing_of_it_is_left_in_the_shim() -> None:
    with logged(COPIER, "sleep 1000") as play:
        play.box.create()
        play.box.start()
        before = fds(play.box.shim_pid)
        for number in range(5):
            play.box.run_exec(f"e{number}", ["echo", "x"], stdout=play.uri(), stderr=play.uri())

        assert play.said("out") == "x\n" * 5
        wait_until(lambda: fds(play.box.shim_pid) == before, what="the last of its descriptors to be closed")
        assert json.loads(play.box.read("state.json"))["init"]["stdout"] == ""


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))

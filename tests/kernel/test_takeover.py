"""A shim is killed, and its successor goes on: the same container, every byte, the exact status, each event once.

Here `start` raises the successor, as the daemon has it done where there is no keeper.
"""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from shim.core import pidfds
from tests.support.shimbox import ShimBox, running
from tests.support.waiting import wait_until
from ttrpc.api import shim
from ttrpc.errors import StatusError
from ttrpc.status import Code

COUNT = 400
WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
# Writes numbered lines for two seconds, and stays until it is let go: with it would go what no shim has read yet.
WRITER = ["sh", "-c", f"i=0; while [ $i -lt {COUNT} ]; do echo line $i; i=$((i+1)); usleep 5000; done; {WAITER[2]}"]
LINES = [f"line {number}" for number in range(COUNT)]
SOURCES = {shim.EXIT_SOURCE_WAITID, shim.EXIT_SOURCE_PIDFD, shim.EXIT_SOURCE_KEEPER}
# Without a keeper nobody but a newer kernel knows how a dead shim's process ended (Linux 6.15).
KEEPS = pidfds.keeps_exit_status()
NOTHING = (0, shim.EXIT_SOURCE_UNKNOWN)


def known(status: int) -> int:
    return status if KEEPS else 255


@pytest.fixture
def box() -> Iterator[ShimBox]:
    with ShimBox(WAITER) as box:
        yield box


def topics(box: ShimBox) -> list[str]:
    return [record.topic.rpartition("/")[2] for record in box.events("/tasks/exit")]


def exits(box: ShimBox, exec_id: str = "") -> list[shim.ExitRecord]:
    found = [record.exit for record in box.events(lambda record: record.HasField("exit") and not record.exit.exec_id)]
    return [record for record in found if record.pid and record.exec_id == exec_id]


# --- states


def test_created_container_is_started_by_the_successor(box: ShimBox) -> None:
    pid = box.create().pid
    box.replace_shim()
    assert box.state().pid == pid
    assert box.start().pid == pid
    box.let_go()

    assert box.wait().exit_status == known(42)
    assert topics(box) == ["create", "start", "exit"]
    assert box.delete().exit_status == known(42)


def test_container_survives_any_number_of_shims_and_its_status_is_exact(box: ShimBox) -> None:
    box.create()
    box.start()
    pid, incarnation = box.state().pid, box.info().incarnation
    for _ in range(5):
        box.replace_shim()
        assert (box.state().pid, box.info().incarnation) == (pid, incarnation)
    box.let_go()

    assert box.wait().exit_status == known(42)
    assert topics(box) == ["create", "start", "exit"]
    (record,) = exits(box)
    assert (record.code, record.source) == ((42, shim.EXIT_SOURCE_PIDFD) if KEEPS else NOTHING)
    assert record.started_at.seconds


def test_signal_that_ended_it_is_told_as_one(box: ShimBox) -> None:
    box.create()
    box.start()
    box.replace_shim()
    box.kill(signal.SIGKILL)

    assert box.wait().exit_status == known(137)
    (record,) = exits(box)
    assert (record.signal, record.source) == ((signal.SIGKILL, shim.EXIT_SOURCE_PIDFD) if KEEPS else NOTHING)


def test_container_that_ends_while_nothing_of_ours_lives_has_its_exact_status(box: ShimBox) -> None:
    """No shim, no keeper, no daemon, reaped by a stranger: the pin knows."""
    box.create()
    box.start()
    pid = box.state().pid
    box.kill_shim()
    box.let_go()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="PID 1 to reap it")
    box.launch()

    assert box.wait().exit_status == known(42)
    (record,) = exits(box)
    assert (record.code, record.source) == ((42, shim.EXIT_SOURCE_PIDFD) if KEEPS else NOTHING)
    assert box.delete().exit_status == known(42)
    assert not os.path.exists(os.path.join(box.sockets, "pins"))


def test_without_a_pin_it_is_unknown_and_never_a_guess(box: ShimBox) -> None:
    box.create()
    box.start()
    pid = box.state().pid
    box.kill_shim()
    os.system(f"umount -R {box.sockets}/pins")
    box.let_go()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="PID 1 to reap it")
    box.launch()

    assert box.wait().exit_status == 255
    (record,) = exits(box)
    assert record.source == shim.EXIT_SOURCE_UNKNOWN
    assert not record.HasField("code")
    assert not record.HasField("signal")


def test_exit_told_before_is_not_told_again() -> None:
    with ShimBox(["sh", "-c", "exit 3"]) as box:
        box.create()
        box.start()
        assert box.wait().exit_status == 3
        box.replace_shim()

        assert box.wait().exit_status == 3
        assert topics(box) == ["create", "start", "exit"]
        with pytest.raises(StatusError) as error:
            box.kill(9)
        assert error.value.code == Code.NOT_FOUND
        assert box.delete().exit_status == 3


def test_paused_container_stays_paused_and_is_resumed(box: ShimBox) -> None:
    from ttrpc.api import task

    box.create()
    box.start()
    box.call("Pause", task.PauseRequest(id=box.id))
    box.replace_shim()
    assert box.state().status == 4  # PAUSED
    box.call("Resume", task.ResumeRequest(id=box.id))
    assert box.state().status == 2
    box.let_go()

    assert box.wait().exit_status == known(42)
    assert topics(box) == ["create", "start", "paused", "resumed", "exit"]


# --- execs


def test_exec_is_taken_over_with_its_exact_status(box: ShimBox) -> None:
    box.create()
    box.start()
    box.add_exec("e1", ["sh", "-c", "while [ ! -e /e ]; do usleep 10000; done; exit 7"])
    box.add_exec("added", ["sh", "-c", "exit 8"])
    pid = box.start("e1").pid
    box.run_exec("done", ["sh", "-c", "exit 9"])
    box.replace_shim()
    assert box.state("e1").pid == pid
    with open(os.path.join(box.rootfs, "e"), "w", encoding="utf-8"):
        pass
    assert box.wait("e1").exit_status == known(7)
    box.start("added")
    assert box.wait("added").exit_status == 8
    assert box.delete("e1").exit_status == known(7)
    box.replace_shim()
    with pytest.raises(StatusError) as error:
        box.state("e1")
    assert error.value.code == Code.NOT_FOUND
    assert box.wait("added").exit_status == 8
    box.let_go()

    assert box.wait().exit_status == known(42)
    told = [record.exit.exec_id for record in box.events(lambda r: r.HasField("exit") and not r.exit.exec_id)]
    assert [exec_id for exec_id in told if exec_id] == ["done", "e1", "added"]


# --- streams


@pytest.mark.parametrize("query", ["format=raw", "format=raw&max-size=4096&max-files=100"])
def test_raw_log_is_complete_to_the_byte(query: str) -> None:
    with ShimBox(WRITER) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdout=f"log://{log}?{query}")
        box.start()
        for _ in range(6):
            box.replace_shim()
        box.let_go()

        assert box.wait().exit_status == known(42)
        names = sorted((name for name in os.listdir(box.folder) if name.startswith("c.log")), key=_age, reverse=True)
        text = "".join(_read(os.path.join(box.folder, name)) for name in names)
        assert text.splitlines() == LINES


def _age(name: str) -> int:
    return int(name.rpartition(".")[2]) if name[-1].isdigit() else 0


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def test_json_log_goes_on(box: ShimBox) -> None:
    with ShimBox(WRITER) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdout=f"log://{log}")
        box.start()
        for _ in range(6):
            box.replace_shim()
        box.let_go()

        assert box.wait().exit_status == known(42)
        records = [json.loads(line) for line in _read(log).splitlines()]
        assert "".join(record["log"] for record in records).splitlines() == LINES


def test_clients_fifos_do_not_notice(box: ShimBox) -> None:
    """The container has them itself; what the shim holds is only what keeps stdin from ending."""
    with ShimBox(["sh", "-c", "while read line; do echo got $line; done; exit 42"]) as box:
        fifos = {name: os.path.join(box.folder, name) for name in ("in", "out")}
        for path in fifos.values():
            os.mkfifo(path)
        out = os.open(fifos["out"], os.O_RDWR | os.O_NONBLOCK)
        source = os.open(fifos["in"], os.O_RDWR | os.O_NONBLOCK)
        try:
            box.create(stdin=fifos["in"], stdout=fifos["out"])
            box.start()
            for word in (b"one", b"two", b"three"):
                os.write(source, word + b"\n")
                box.replace_shim()
            assert box.state().status == 2  # answered once it has taken over
            os.close(source)
            source = -1
            assert box.state().status == 2, "stdin is kept open"
            from ttrpc.api import task

            box.call("CloseIO", task.CloseIORequest(id=box.id, stdin=True))
            assert box.wait().exit_status == known(42)
            assert os.read(out, 4096) == b"got one\ngot two\ngot three\n"
        finally:
            for fd in (out, source):
                if fd >= 0:
                    os.close(fd)


def test_stdin_that_was_closed_stays_closed() -> None:
    with running(WAITER, stdin="attach:", stdout="attach:") as box:
        from ttrpc.api import task

        box.call("CloseIO", task.CloseIORequest(id=box.id, stdin=True))
        box.replace_shim()
        assert json.loads(box.read("state.json"))["init"]["stdin_closed"]
        assert not [fd for fd in os.listdir(f"/proc/{box.shim_pid}/fd") if _link(box, fd).endswith("init.stdin")]
        box.let_go()
        assert box.wait().exit_status == known(42)


def _link(box: ShimBox, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{box.shim_pid}/fd/{fd}")
    except FileNotFoundError:
        return ""


# --- the bundle


def test_doomed_bundle_is_not_taken_over(box: ShimBox) -> None:
    box.create()
    box.kill_shim()
    with open(box.path("doomed"), "w", encoding="utf-8"):
        pass
    box.launch()
    with pytest.raises(StatusError) as error:
        box.state()
    assert error.value.code == Code.NOT_FOUND


def test_task_of_another_boot_is_not_taken_over(box: ShimBox) -> None:
    box.create()
    box.kill_shim()
    state = json.loads(box.read("state.json"))
    state["boot_id"] = "another"
    with open(box.path("state.json"), "w", encoding="utf-8") as file:
        json.dump(state, file)
    box.launch()
    with pytest.raises(StatusError) as error:
        box.state()
    assert error.value.code == Code.NOT_FOUND

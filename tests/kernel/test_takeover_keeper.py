"""The keeper raises the successor of a shim that is killed: nobody asked for it, and no connection is refused."""

import errno
import os
import signal
import socket
import threading

from tests.support.keptbox import KeptBox, is_running
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost

SHIM = "shimd.shim.v1.Shim"
ECHO = ["sh", "-c", "while read line; do echo got $line; done; exit 42"]
WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]


def test_successor_is_there_unasked_and_the_keeper_knows_the_status() -> None:
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        pid = box.state().pid
        for _ in range(5):
            dead = box.shim_pid
            box.kill_shim()
            assert box.shim_pid != dead
            assert box.state().pid == pid
        box.let_go()

        assert box.wait().exit_status == 42
        assert (box.last_exit().code, box.last_exit().source) == (42, shim.EXIT_SOURCE_KEEPER)
        assert [record.seq for record in box.events("/tasks/exit")] == [1, 2, 3]
        assert box.delete().exit_status == 42
        box.shutdown()
        box.wait_for_shim_end()
        assert not [name for name in os.listdir(box.bundle) if name.startswith("keeper-exit")]


def test_exit_while_no_shim_lives_is_exact_and_its_last_words_are_kept() -> None:
    """The keeper is stopped, so that no successor comes; the FIFO's content lives on in what the keeper holds."""
    words = "x" * 1000
    with KeptBox(["sh", "-c", f"while [ ! -e /go ]; do usleep 10000; done; echo {words}; exit 42"]) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdout=f"log://{log}?format=raw")
        box.start()
        pid, keeper = box.state().pid, box.keeper_pid
        os.kill(keeper, signal.SIGSTOP)
        os.kill(box.shim_pid, signal.SIGKILL)
        box.disconnect()
        box.let_go()
        wait_until(lambda: not is_running(pid), what="the container to end")
        os.kill(keeper, signal.SIGCONT)

        assert box.wait().exit_status == 42
        box.find_shim()
        assert box.last_exit().source == shim.EXIT_SOURCE_KEEPER
        with open(log, encoding="utf-8") as file:
            assert file.read() == words + "\n"


def test_attached_stdin_never_ends_by_a_shims_death() -> None:
    with KeptBox(ECHO) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdin="attach:", stdout=f"log://{log}?format=raw")
        box.start()
        for word in (b"one\n", b"two\n", b"three\n"):
            box.kill_shim()
            box.attach(client=box.client, stdin=True).send(shim.AttachInput(stdin=word))
            wait_until(lambda word=word: b"got " + word in _read(log), what="the echo")
        box.call("CloseIO", task.CloseIORequest(id=box.id, stdin=True))

        assert box.wait().exit_status == 42
        assert _read(log) == b"got one\ngot two\ngot three\n"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_terminal_lives_on() -> None:
    with KeptBox(ECHO, terminal=True) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdin="attach:", stdout=f"log://{log}?format=raw")
        box.start()
        box.add_exec("e1", ["sh", "-c", "read line; exit 7"], terminal=True, stdin="attach:", stdout="attach:")
        box.start("e1")
        for word in (b"one\n", b"two\n"):
            box.kill_shim()
            _type(box, "", word)
            wait_until(lambda word=word: b"got " + word.strip() in _read(log), what="the echo")
        assert box.state("e1").status == 2
        _type(box, "e1", b"x\n")
        assert box.wait("e1").exit_status == 7
        _type(box, "", b"\x04")

        assert box.wait().exit_status == 42


def _type(box: KeptBox, exec_id: str, text: bytes) -> None:
    box.attach(exec_id, stdin=True).send(shim.AttachInput(stdin=text))


def test_no_connection_is_refused_between_the_two() -> None:
    """A client that connects while no shim lives waits for the successor."""
    with KeptBox() as box:
        box.create()
        address, over, refused, answered = box.address, threading.Event(), [], []

        def ask() -> None:
            while not over.is_set():
                try:
                    with BlockingClient.connect(address) as client:
                        client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=10)
                        answered.append(1)
                except ConnectionLost as error:
                    if "broke" not in str(error) and "closed" not in str(error):
                        refused.append(error)
                except OSError as error:
                    refused.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            for _ in range(10):
                box.kill_shim()
        finally:
            over.set()
            asker.join()
        assert refused == []
        assert answered


def test_keeper_and_shim_killed_together_leave_it_to_start_and_the_pin() -> None:
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        pid = box.state().pid
        os.kill(box.keeper_pid, signal.SIGKILL)
        os.kill(box.shim_pid, signal.SIGKILL)
        box.disconnect()
        box.let_go()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="PID 1 to reap it")
        wait_until(lambda: not is_running(box.shim_pid), what="the shim to be gone")
        box.launch()

        assert box.wait().exit_status == 42
        assert box.last_exit().source == shim.EXIT_SOURCE_PIDFD


def test_shim_that_dies_in_a_doomed_bundle_has_no_successor() -> None:
    with KeptBox() as box:
        box.create()
        with open(box.path("doomed"), "w", encoding="utf-8"):
            pass
        os.kill(box.shim_pid, signal.SIGKILL)
        box.wait_for_shim_end()
        wait_until(lambda: is_refused(box), what="the keeper to let go of the socket")


def is_refused(box: KeptBox) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(box.address.removeprefix("unix://")) == errno.ECONNREFUSED


def test_a_successor_that_cannot_take_over_is_given_up_and_start_may_try() -> None:
    with KeptBox() as box:
        box.create()
        state = box.read("state.json")
        with open(box.path("state.json"), "w", encoding="utf-8") as file:
            file.write(state.replace('"shares_pids"', '"else"'))
        os.kill(box.shim_pid, signal.SIGKILL)
        wait_until(lambda: "given up" in box.keeper_log(), what="the keeper to give up")
        assert box.keeper_log().count("raising a successor") == 1 + 5
        box.disconnect()
        with open(box.path("state.json"), "w", encoding="utf-8") as file:
            file.write(state)
        box.launch()

        assert box.state().status == 1

"""The keeper is killed at any time, and protection comes back: living shims get themselves another and refill it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess

import pytest

from shim import launch
from shim.core import pidfds
from shim.params import Params
from shim.recovery.rejoin import pack_adoption
from tests.support import leaks
from tests.support.keeperbox import KeeperBox, copy_of_the_code, is_running, keepers_in, replace_text
from tests.support.keptbox import KeptBox
from tests.support.shimbox import NAMESPACE, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim
from ttrpc.errors import ConnectionLost

SHIM = "shimd.shim.v1.Shim"
COUNTER = ["sh", "-c", "i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; usleep 1000; done; exit 42"]
ECHO = ["sh", "-c", "while read line; do echo got $line; done; exit 42"]
WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]

PINS = pytest.mark.skipif(not pidfds.keeps_exit_status(), reason="Linux 6.15: below it nothing is pinned")


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write_line(box: KeptBox, text: bytes) -> None:
    box.attach(stdin=True).send(shim.AttachInput(stdin=text))


def count_fds(pids: list[int]) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


# --- killed, and back


def test_a_shim_that_lost_its_keeper_gets_another_which_raises_its_successor() -> None:
    """Log complete, status exact, however often both are killed in turn."""
    with KeptBox(COUNTER) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdout=f"log://{log}?format=raw")
        box.start()
        pid = box.state().pid
        for _ in range(3):
            dead = box.keeper_pid
            box.kill_keeper()
            box.wait_refilled(but=dead)
            before = box.shim_pid
            box.kill_shim()
            assert box.shim_pid != before
            assert box.state().pid == pid
        box.let_go()

        assert box.wait().exit_status == 42
        assert box.last_exit().code == 42
        lines = [int(line) for line in read(log).split()]
        assert lines == list(range(1, len(lines) + 1))
        assert [record.seq for record in box.events("/tasks/exit")] == [1, 2, 3]


def test_a_terminals_master_is_in_the_next_keeper() -> None:
    with KeptBox(ECHO, terminal=True) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdin="attach:", stdout=f"log://{log}?format=raw")
        box.start()
        for word in ("one", "two"):
            dead = box.keeper_pid
            box.kill_keeper()
            box.wait_refilled(but=dead)
            box.kill_shim()
            write_line(box, word.encode() + b"\n")
            wait_until(lambda word=word: f"got {word}" in read(log), what="the echo")  # type: ignore[misc]
        write_line(box, b"\x04")

        assert box.wait().exit_status == 42


def test_a_terminal_outlives_a_shim_that_dies_before_the_next_keeper_has_read_its_request() -> None:
    """Master and what was lifted are in the connection, for the shim that is started then."""
    with KeptBox(["sh", "-c", f"trap 'echo >/hup' HUP; stty raw; {COUNTER[2]}"], terminal=True) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdout=f"log://{log}?format=raw")
        box.start()
        wait_until(lambda: os.path.exists(log) and read(log), what="output")
        (path,) = [entry.path for entry in os.scandir(box.keepers) if "." not in entry.name]
        box.kill_keeper()
        keeper = wait_until(lambda: starting_keepers(path), what="the next keeper")[0]
        os.kill(keeper, signal.SIGSTOP)  # while it imports
        wait_until(lambda: read("/proc/net/unix").count(path) > 1, what="the shim to have asked it")
        ShimBox.kill_shim(box)
        os.kill(keeper, signal.SIGCONT)
        box.launch()
        box.let_go()

        assert box.wait().exit_status == 42
        assert not os.path.exists(os.path.join(box.rootfs, "hup"))
        lines = [int(line) for line in read(log).split()]
        assert lines == list(range(1, len(lines) + 1))
        assert "its terminal was lost" not in box.read("shim.log")


def starting_keepers(path: str) -> list[int]:
    """Those that do not yet call themselves so."""
    found = []
    for pid in leaks.pids():
        with contextlib.suppress(OSError):
            words = leaks.read(f"/proc/{pid}/cmdline").split("\0")
            if path in words and is_running(pid):
                found.append(pid)
    return found


def test_an_attached_stdin_is_in_the_next_keeper() -> None:
    with KeptBox(ECHO) as box:
        log = os.path.join(box.folder, "c.log")
        box.create(stdin="attach:", stdout=f"log://{log}?format=raw")
        box.start()
        dead = box.keeper_pid
        box.kill_keeper()
        box.wait_refilled(but=dead)
        box.kill_shim()
        write_line(box, b"one\n")
        wait_until(lambda: "got one" in read(log), what="the echo")
        box.kill(9)

        assert box.wait().exit_status == 137


def test_a_shim_that_was_started_cold_is_looked_after_once_there_is_a_keeper() -> None:
    """Also when that one is started later, and by nobody but the shim."""
    with KeptBox(WAITER) as box:
        os.mkdir(box.keepers, 0o777)
        os.chmod(box.keepers, 0o777)
        box.create()
        box.start()
        assert "started without the keeper" in box.read("shim.log")
        os.chmod(box.keepers, 0o700)
        box.wait_refilled()
        box.kill_shim()
        assert "taking over from shim" in box.read("shim.log")
        box.let_go()

        assert box.wait().exit_status == 42


# --- both


def revived(box: KeptBox) -> bool:
    """Whether a shim serves; if none does, `start` is run once, as the daemon would."""
    try:
        box.find_shim()
    except (OSError, ConnectionLost):  # its keeper may have died while it made this one
        box.disconnect()
        box.run_shim("start")
        return False
    return True


def test_keeper_then_shim_in_quick_succession() -> None:
    """Nobody may be left who could raise a successor: then `start` does, and the next keeper has its shim."""
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        pid = box.state().pid
        for _ in range(3):
            dead = box.keeper_pid
            os.kill(dead, signal.SIGKILL)
            os.kill(box.shim_pid, signal.SIGKILL)
            box.disconnect()
            wait_until(lambda dead=dead: not is_running(dead), what="the keeper to be gone")  # type: ignore[misc]
            wait_until(lambda: not is_running(box.shim_pid), what="the shim to be gone")
            wait_until(lambda: revived(box), deadline_s=30, what="a successor")
            assert box.state().pid == pid
        box.let_go()

        assert box.wait().exit_status == 42


def test_shim_then_keeper_in_quick_succession() -> None:
    """The successor may be forked, half-way or not begun when its keeper dies."""
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        pid = box.state().pid
        for _ in range(3):
            dead, before = box.keeper_pid, box.shim_pid
            os.kill(before, signal.SIGKILL)
            os.kill(dead, signal.SIGKILL)
            box.disconnect()
            wait_until(lambda dead=dead: not is_running(dead), what="the keeper to be gone")  # type: ignore[misc]
            wait_until(lambda before=before: not is_running(before), what="the shim to be gone")  # type: ignore[misc]
            wait_until(lambda: revived(box), deadline_s=30, what="a successor")
            assert box.state().pid == pid
            wait_until(lambda: box.keeper_pids(), what="a keeper")
        box.let_go()

        assert box.wait().exit_status == 42


# --- many


def test_keeper_killed_again_and_again() -> None:
    times = int(os.environ.get("SHIMD_KEEPER_KILLS", "12"))
    with KeeperBox() as keeper, keeper.shim(WAITER) as box:
        box.create()
        box.start()
        bundles = [keeper.bundle(f"c{number}") for number in range(4)]
        for bundle in bundles:
            bundle.start()
        shims = [box.shim_pid, *(bundle.shim_pid for bundle in bundles)]
        assert [bundle.info().pid for bundle in bundles] == shims[1:]
        fds = count_fds(shims)
        for _ in range(times):
            dead = keeper.pid
            keeper.kill()
            keeper.wait_refilled(*shims, but=dead)
        assert len(keeper.pids()) == times + 1
        now = count_fds(shims)
        assert [number for number, count in enumerate(now) if count > fds[number]] == []
        os.kill(box.shim_pid, signal.SIGKILL)
        box.disconnect()
        box.shim_pid = box.info().pid
        assert box.shim_pid not in shims
        box.let_go()

        assert box.wait().exit_status == 42


def test_twenty_shims_lose_their_keeper_at_once_and_start_one() -> None:
    with KeeperBox() as keeper:
        bundles = [keeper.bundle(f"c{number}") for number in range(20)]
        for bundle in bundles:
            bundle.start()
        shims = [bundle.shim_pid for bundle in bundles]
        before = keeper.pids()  # on a busy machine one may have been taken for sick
        for pid in keepers_in(keeper.directory):
            os.kill(pid, signal.SIGKILL)
        now = keeper.wait_refilled(*shims, but=before[-1])

        assert keeper.pids() == [*before, now]
        assert keepers_in(keeper.directory) == [now]
        assert [bundle.info().pid for bundle in bundles] == shims


# --- rules


def test_a_shim_that_ended_in_order_has_no_successor_in_the_next_keeper() -> None:
    with KeptBox(WAITER) as box:
        box.create()
        box.start()
        dead = box.keeper_pid
        box.kill_keeper()
        box.wait_refilled(but=dead)
        box.let_go()
        assert box.wait().exit_status == 42
        box.delete()
        box.shutdown()
        box.wait_for_shim_end()

        assert "raising a successor" not in box.keeper_log()


def test_nobody_is_looked_after_in_a_bundle_that_is_not_its_own() -> None:
    """Whoever asks is our own user; what it cannot show is refused, and the shim that is there is harmed by nothing."""
    with KeptBox(WAITER) as box:
        box.create()
        (path,) = [entry.path for entry in os.scandir(box.keepers) if "." not in entry.name]
        bundle_fd, null_fd = os.open(box.bundle, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
        params = Params(
            namespace=NAMESPACE, id=box.id, bundle=box.bundle, socket_path=box.address.removeprefix("unix://")
        )
        request = pack_adoption(params)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            answers = [
                ask(path, request),
                ask(path, request, null_fd, null_fd),
                ask(path, request, listener.fileno(), bundle_fd),
                ask(path, request.replace(b'"state_version": 1', b'"state_version": 99'), null_fd, bundle_fd),
                ask(path, request.replace(box.id.encode(), b"../x"), null_fd, bundle_fd),
                ask(path, request[:-1], null_fd, bundle_fd),
            ]
        finally:
            listener.close()
            os.close(bundle_fd)
            os.close(null_fd)

        assert [outcome for outcome, _ in answers] == [launch.REFUSED] * 6
        words = ["instead of listener and lock", "its lock is not that", "another shim holds", "version 99", "", "no"]
        assert [(word, text) for word, (_, text) in zip(words, answers, strict=True) if word not in text] == []
        before = box.shim_pid
        box.kill_shim()
        assert box.shim_pid != before


def ask(path: str, request: bytes, *fds: int) -> tuple[bytes, str]:
    """What a keeper answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(path)
        socket.send_fds(connection, [request], fds)
        fields = connection.recv(65536).split(b"\0", 2)
        return fields[1], fields[2].decode()


def test_the_shims_of_an_old_keeper_go_to_the_new_one_when_it_dies() -> None:
    """Until then the old one has them; the successor is of the new code, and reads the old one's state."""
    code = copy_of_the_code()
    with KeeperBox(python_path=code) as keeper, keeper.shim(WAITER) as box:
        try:
            box.create()
            box.start()
            pid, old = box.state().pid, keeper.wait_ready()
            replace_text(os.path.join(code, "shim", "version.py"), 'VERSION = "0.1.0"', 'VERSION = "9.9.9"')
            after = keeper.bundle("after")
            after.start()
            assert keeper.pid != old
            assert keeper.is_alive(old)
            os.kill(old, signal.SIGKILL)
            keeper.wait_refilled(box.shim_pid)
            before = box.shim_pid
            os.kill(before, signal.SIGKILL)
            box.disconnect()
            box.shim_pid = box.info().pid

            assert box.shim_pid != before
            assert (box.info().version, box.state().pid) == ("9.9.9", pid)
            box.let_go()
            assert box.wait().exit_status == 42
        finally:
            shutil.rmtree(code)


# --- everything


@PINS
def test_an_execs_status_survives_the_death_of_everybody_who_could_reap_it() -> None:
    """Its pin has it. One whose exit is told has none any more."""
    with KeptBox() as box:
        box.create()
        box.start()
        box.add_exec("e1", WAITER)
        pid = box.start("e1").pid
        assert box.run_exec("e2", ["sh", "-c", "exit 7"]).exit_status == 7
        init = box.state().pid
        wait_until(lambda: pinned(box) == {init, pid}, what="the pins of init and the exec that runs")
        os.kill(box.keeper_pid, signal.SIGKILL)
        os.kill(box.shim_pid, signal.SIGKILL)
        box.disconnect()
        wait_until(lambda: not is_running(box.shim_pid), what="the shim to be gone")
        box.let_go()
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="PID 1 to reap it")
        wait_until(lambda: revived(box), deadline_s=30, what="a successor")

        assert box.wait("e1").exit_status == 42
        exits = box.call("Exits", shim.ExitsRequest(), service=SHIM).exits
        (record,) = [each for each in exits if each.exec_id == "e1"]
        assert (record.code, record.source) == (42, shim.EXIT_SOURCE_PIDFD)
        wait_until(lambda: pinned(box) == {init}, what="its pin to be taken away")


@PINS
def test_a_pin_that_a_dead_keeper_was_to_take_away_is_taken_away_by_the_next() -> None:
    """It was told that the exec's exit is on disk, and killed before it did anything about it."""
    with KeptBox() as box:
        box.create()
        box.start()
        box.add_exec("e1", WAITER)
        pid = box.start("e1").pid
        init, keeper = box.state().pid, box.keeper_pid
        wait_until(lambda: pinned(box) == {init, pid}, what="the pins of init and the exec that runs")
        os.kill(keeper, signal.SIGSTOP)
        box.let_go()
        assert box.wait("e1").exit_status == 42
        assert pinned(box) == {init, pid}
        box.kill_keeper()
        box.wait_refilled(but=keeper)

        wait_until(lambda: pinned(box) == {init}, what="the pin to be taken away")


@PINS
def test_a_shim_is_told_that_a_pin_failed() -> None:
    """It tries itself; where it cannot either, its log says whose exit status is not kept, and why."""
    with KeptBox() as box:
        box.create()
        box.start()
        init, place = box.state().pid, os.path.join(box.sockets, "pins")
        wait_until(lambda: pinned(box) == {init}, what="the pin of init")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        box.add_exec("e1", WAITER)
        box.start("e1")
        (said,) = [line for line in box.read("shim.log").splitlines() if "status of exec.e1 is not pinned" in line]
        assert said.count("Read-only file system") == 2
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        box.add_exec("e2", WAITER)
        pid = box.start("e2").pid
        assert pinned(box) == {init, pid}
        box.let_go()
        assert [box.wait(name).exit_status for name in ("e1", "e2")] == [42, 42]


def pinned(box: KeptBox) -> set[int]:
    return {int(name.split("-")[1]) for name in os.listdir(os.path.join(box.sockets, "pins"))}

"""The keeper missing, sick, out of date or killed: a `start` works all the same, and nobody who lives is harmed."""

import json
import os
import shutil
import signal
import socket
import threading
import time

import pytest

from shim import faults, launch
from tests.support import leaks
from tests.support.keeperbox import KeeperBox, copy_of_the_code, finish, parent_of, replace_text, state_of
from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import task

COLD = "started without the keeper"
UNTIL_TOLD = ["sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 42"]


# --- killed


def test_a_killed_keeper_harms_nobody_and_the_next_start_gets_another() -> None:
    with KeeperBox() as keeper, keeper.shim(["sleep", "1000"]) as box:
        box.create()
        box.start()
        first = keeper.pid
        assert keeper.is_parent_of(box.shim_pid)
        keeper.kill()

        assert box.state().status == 2
        assert box.run_exec("e1", ["sh", "-c", "exit 7"]).exit_status == 7
        bundle = keeper.bundle("c1")
        bundle.start()
        assert bundle.info().pid == bundle.shim_pid
        assert keeper.is_parent_of(bundle.shim_pid)
        assert keeper.pid != first
        box.kill(9)
        assert box.wait().exit_status == 137


@pytest.mark.parametrize("step", ["claimed", "published", "answered", "handed"])
def test_a_keeper_killed_while_it_hands_over_leaves_no_start_without_a_shim(step: str) -> None:
    """Answered is not begun: the copy that was promised may have got nothing. One that has listener and lock serves."""
    with KeeperBox() as keeper:
        traps = os.path.join(keeper.folder, "traps")
        os.mkdir(traps)
        keeper.environment |= {"SHIMD_SHIM_FAULTS": traps, "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
        keeper.bundle("first").start()
        first = keeper.wait_ready()
        os.close(os.open(f"{traps}/keeper.{step}", os.O_CREAT | os.O_WRONLY))
        bundle = keeper.bundle("c1")
        bundle.start()

        assert bundle.info().pid == bundle.shim_pid
        assert not keeper.is_alive(first)
        assert COLD not in bundle.read("shim.log")


def test_a_keeper_that_hangs_up_and_listens_a_little_longer_is_followed_by_another() -> None:
    """A process that is killed closes its files one after the other: connections first, the listener last."""
    with KeeperBox() as keeper:
        path = launch.keeper_path({b"SHIMD_KEEPER": os.fsencode(keeper.directory)})
        os.mkdir(keeper.directory, 0o700)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
            dying.bind(path)
            dying.listen()

            def die() -> None:
                for _ in range(6):  # asked, looked at and asked again, twice
                    dying.accept()[0].close()
                dying.close()

            dies = threading.Thread(target=die)
            dies.start()
            bundle = keeper.bundle("c1")
            bundle.start()
            dies.join()

        assert bundle.info().pid == bundle.shim_pid
        assert keeper.is_parent_of(bundle.shim_pid)
        assert COLD not in bundle.read("shim.log")


def test_a_template_that_dies_is_made_anew() -> None:
    """Even of one that is killed again and again a start notices nothing."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        os.kill(keeper.template(), signal.SIGKILL)
        for number in range(6):
            bundle = keeper.bundle(f"c{number}")
            bundle.start()
            assert keeper.is_parent_of(bundle.shim_pid)
            assert bundle.info().pid == bundle.shim_pid

        assert "making another" in keeper.log()
        assert len(keeper.pids()) == 1


def test_copies_that_die_while_they_wait_are_replaced() -> None:
    with KeeperBox() as keeper:
        shim = keeper.bundle("first")
        shim.start()
        keeper.wait_ready()
        wait_until(lambda: len(keeper.children()) == 4, what="template, two spares, and the shim")
        for pid in set(keeper.children()) - {keeper.template(), shim.shim_pid}:
            os.kill(pid, signal.SIGKILL)
        bundle = keeper.bundle("c1")
        bundle.start()

        assert bundle.info().pid == bundle.shim_pid
        wait_until(lambda: len(keeper.children()) == 5, what="two spares again")


def test_the_socket_of_a_shim_whose_bundle_is_gone_goes_with_it() -> None:
    """No `delete` comes any more that would remove it, and no `start` that would replace it."""
    with KeeperBox() as keeper, keeper.shim(["sleep", "1000"]) as box:
        box.create()
        os.rename(box.bundle, box.bundle + ".gone")  # as containerd removes one
        os.kill(box.shim_pid, signal.SIGKILL)

        wait_until(lambda: os.listdir(box.sockets) == [], what="the socket to be gone")
        os.rename(box.bundle + ".gone", box.bundle)
        assert "raising a successor" not in keeper.log()


# --- sick


def test_a_stopped_keeper_is_given_up_and_replaced() -> None:
    """The shim starts cold and says why; what the old keeper was asked has no effect when it goes on."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        sick = keeper.wait_ready()
        wait_until(lambda: len(keeper.children()) == 4, what="template, two spares, and the shim")
        (path,) = keeper.sockets()
        os.link(path, keeper.folder + "/old")
        os.utime(path, (0, 0))  # a new one would not be replaced
        os.kill(sick, signal.SIGSTOP)
        bundle = keeper.bundle("c1")
        began = time.monotonic()
        bundle.start()
        assert time.monotonic() - began < launch.ANSWER_S + 5

        pid = bundle.info().pid
        assert parent_of(pid) != sick
        assert f"{COLD}: it does not answer within 2 s" in bundle.read("shim.log")
        after = keeper.bundle("c2")
        after.start()
        assert len(keeper.pids()) == 2
        assert keeper.is_parent_of(after.shim_pid)
        children = set(leaks.read(f"/proc/{sick}/task/{sick}/children").split())
        os.kill(sick, signal.SIGCONT)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
            last.connect(keeper.folder + "/old")
            last.send(b"everybody before me has been read")
            assert b"refused" in last.recv(4096)
        assert set(leaks.read(f"/proc/{sick}/task/{sick}/children").split()) == children
        assert (bundle.shim_pid, bundle.info().pid) == (pid, pid)


def test_a_new_keeper_that_is_slow_is_not_replaced() -> None:
    """On a machine that has more to do than it can each new one would be slower still, and be replaced in turn."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        slow = keeper.wait_ready()
        (path,) = keeper.sockets()
        os.utime(path)
        os.kill(slow, signal.SIGSTOP)
        bundle = keeper.bundle("c1")
        bundle.start()
        assert bundle.info().pid == bundle.shim_pid
        assert f"{COLD}: it does not answer within 6 s, but is new" in bundle.read("shim.log")
        os.kill(slow, signal.SIGCONT)
        after = keeper.bundle("c2")
        after.start()

        assert keeper.is_parent_of(after.shim_pid)
        assert keeper.pids() == [slow]


def test_a_stuck_template_is_a_sick_keeper_for_as_long_as_it_lasts() -> None:
    """Shims that wait for a copy in vain are given back in time: bundle and address are free for the cold start."""
    with KeeperBox() as keeper:
        keeper.bundle("first").start()
        keeper.wait_ready()
        template = keeper.template()
        wait_until(lambda: len(keeper.children()) == 4, what="template, two spares, and the shim")
        os.kill(template, signal.SIGSTOP)
        bundles = [keeper.bundle(f"c{number}") for number in range(4)]
        for process in [bundle.begin() for bundle in bundles]:
            finish(process)
        said = [COLD in bundle.read("shim.log") for bundle in bundles if bundle.info()]
        os.kill(template, signal.SIGCONT)

        # Two had a copy that waited; one of the template before may still have been dying when they were counted.
        assert (len(said), said.count(True) >= 2) == (4, True)
        last = keeper.bundle("last")
        last.start()
        assert keeper.is_parent_of(last.shim_pid)


# --- missing, and not to be had


def test_where_no_keeper_can_be_started_shims_start_cold_and_say_why() -> None:
    with KeeperBox() as keeper:
        os.mkdir(keeper.directory, 0o777)
        os.chmod(keeper.directory, 0o777)
        bundle = keeper.bundle("c1")
        bundle.start()

        assert bundle.info().pid == bundle.shim_pid
        assert f"{COLD}: {keeper.directory} is not ours alone" in bundle.read("shim.log")


def test_a_keeper_that_cannot_import_is_no_harm() -> None:
    """A broken installation of what only the keeper needs: the socket it leaves behind refuses, shims start cold."""
    with KeeperBox(python_path=copy_of_the_code()) as keeper:
        code = keeper.environment["PYTHONPATH"]
        try:
            with open(os.path.join(code, "shim", "keeper/keeper.py"), "w", encoding="ascii") as file:
                file.write("raise ImportError('half an upgrade')\n")
            bundle = keeper.bundle("c1")
            bundle.start()

            assert bundle.info().pid == bundle.shim_pid
            assert COLD in bundle.read("shim.log")
            assert keeper.pids() == []
        finally:
            shutil.rmtree(code)


# --- out of date


def test_changed_code_gets_a_keeper_of_its_own_and_the_old_one_ends_with_its_last_shim() -> None:
    with KeeperBox(python_path=copy_of_the_code()) as keeper:
        code = keeper.environment["PYTHONPATH"]
        try:
            before = keeper.bundle("before")
            before.start()
            old = keeper.wait_ready()
            replace_text(os.path.join(code, "shim", "version.py"), 'VERSION = "0.1.0"', 'VERSION = "9.9.9"')
            after = keeper.bundle("after")
            after.start()

            assert keeper.pid != old
            assert keeper.is_parent_of(after.shim_pid)
            assert (before.info().version, after.info().version) == ("0.1.0", "9.9.9")
            assert COLD not in after.read("shim.log")
            assert keeper.is_alive(old)
            before.close()
            wait_until(lambda: not keeper.is_alive(old), what="the old keeper to end")
            assert "version.py has changed" in keeper.log()
            assert after.info().pid == after.shim_pid
        finally:
            shutil.rmtree(code)


# --- what dead shims leave


def test_the_keeper_notes_how_a_container_ended_whose_shim_is_dead() -> None:
    """Init falls to it with its shim's death; the note has the exact status, and `delete` answers with it."""
    with KeeperBox() as keeper, keeper.shim(UNTIL_TOLD) as box:
        box.create()
        box.start()
        init = box.state().pid
        _doom(box)
        os.kill(box.shim_pid, signal.SIGKILL)
        wait_until(lambda: parent_of(init) == keeper.pid, what="init to fall to the keeper")
        _go(box)
        note = json.loads(wait_until(lambda: _read(box.path(f"keeper-exit.{init}")), what="the note"))

        assert (note["pid"], note["wait_status"], note["shim_pid"]) == (init, 42 << 8, box.shim_pid)
        done = box.run_shim("-bundle", box.bundle, "delete")
        answer = task.DeleteResponse.FromString(done.stdout)
        assert (answer.pid, answer.exit_status) == (init, 42)
        assert answer.exited_at.ToNanoseconds() == note["exited_at_ns"]


def test_an_exec_whose_shim_is_dead_is_noted_too() -> None:
    with KeeperBox() as keeper, keeper.shim(["sleep", "1000"]) as box:
        box.create()
        box.start()
        box.add_exec("e1", UNTIL_TOLD)
        pid = box.start("e1").pid
        _doom(box)
        os.kill(box.shim_pid, signal.SIGKILL)
        wait_until(lambda: parent_of(pid) == keeper.pid, what="the exec to fall to the keeper")
        _go(box)

        note = json.loads(wait_until(lambda: _read(box.path(f"keeper-exit.{pid}")), what="the note"))
        assert note["wait_status"] == 42 << 8


def test_a_shim_and_its_container_killed_at_once_are_told_apart() -> None:
    """However the kernel orders the two deaths, the keeper knows whose the orphan was."""
    with KeeperBox() as keeper, keeper.shim(["sleep", "1000"]) as box:
        box.create()
        box.start()
        init = box.state().pid
        os.kill(keeper.pid, signal.SIGSTOP)
        _doom(box)
        os.kill(box.shim_pid, signal.SIGKILL)
        wait_until(lambda: parent_of(init) == keeper.pid, what="init to fall to the keeper")
        os.kill(init, signal.SIGKILL)
        wait_until(lambda: state_of(init) == "Z", what="init to die")
        os.kill(keeper.pid, signal.SIGCONT)

        note = json.loads(wait_until(lambda: _read(box.path(f"keeper-exit.{init}")), what="the note"))
        assert note["wait_status"] == signal.SIGKILL


def _doom(box: ShimBox) -> None:
    """Have no successor raised: it would take the note."""
    with open(box.path("doomed"), "w", encoding="ascii"):
        pass


def _go(box: ShimBox) -> None:
    with open(os.path.join(box.rootfs, "go"), "w", encoding="ascii"):
        pass


def _read(path: str) -> str:
    try:
        return leaks.read(path)
    except FileNotFoundError:
        return ""

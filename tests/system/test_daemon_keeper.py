"""The daemon starts the keeper and notices its end; the keeper does not notice the daemon's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.shims import keeping
from shim import faults, launch
from tests.support.daemonbox import DaemonBox
from tests.support.keeperbox import end_keepers, is_running, keepers_in, looked_after, parent_of
from tests.support.waiting import wait_until

# Its own place, and its cgroup left as it is.
KEPT = {"SHIMD_KEEPER": "", "SHIMD_KEEPER_CGROUP": ""}
FIELD_SESSION = 3  # of proc_pid_stat(5), after the name


def directory(box: DaemonBox) -> str:
    return f"{box.state}/shimd-keeper"


def keepers(box: DaemonBox) -> list[int]:
    return keepers_in(directory(box)) if os.path.isdir(directory(box)) else []


def serving(box: DaemonBox, *, but: int = 0) -> int:
    """The one keeper, once the daemon knows it."""

    def found() -> int:
        pids = [pid for pid in keepers(box) if pid != but]
        return pids[0] if len(pids) == 1 and f"pid={pids[0]}" in box.log().partition("a keeper serves")[2] else 0

    return wait_until(found, deadline_s=30, what="the daemon's keeper")


def session_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[FIELD_SESSION])


@pytest.fixture
def box() -> Iterator[DaemonBox]:
    with DaemonBox(environ=KEPT) as made:
        try:
            yield made
        finally:
            made._clear()
            end_keepers(directory(made))


def test_the_words_are_those_of_the_keeper() -> None:
    assert keeping.WATCH.split(b"\0", 2)[:2] == [launch.MAGIC, launch.WATCH]
    assert (keeping.OK, keeping.STALE) == (launch.OK, launch.STALE)


def test_the_daemon_starts_a_keeper_that_is_not_its_own(box: DaemonBox) -> None:
    """In a session of its own and not its child: killed with nobody, and found again."""
    keeper = serving(box)
    assert box.daemon is not None
    assert session_of(keeper) == keeper
    assert parent_of(keeper) != box.daemon.pid
    box.restart()
    assert serving(box) == keeper
    assert box.kill(signal.SIGTERM) == 0
    assert is_running(keeper)
    box.start()


def test_a_keeper_that_dies_is_followed_by_another(box: DaemonBox) -> None:
    for _ in range(3):
        dead = serving(box)
        os.kill(dead, signal.SIGKILL)
        assert serving(box, but=dead) != dead
    assert len(keepers(box)) == 1


def test_a_keeper_that_is_stopped_is_continued() -> None:
    """It would hold the locks of all its shims, and raise no successor of one that dies, for as long as that lasts."""
    with DaemonBox(environ=KEPT, config="wedged.after_s = 0.2") as box:
        try:
            pid = box.run("c1", "sleep", "1000")
            keeper, dead = serving(box), box.shim("c1").pid
            os.kill(keeper, signal.SIGSTOP)
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda: box.shim("c1").pid not in (0, dead), what="a successor")

            assert box.task("c1").pid == pid
            assert "the keeper is wedged" in box.log()
            assert keepers(box) == [keeper]
            box.signal("c1")
            assert box.wait("c1").exit_status == 137
        finally:
            box._clear()
            end_keepers(directory(box))


def test_a_keeper_that_hangs_is_killed_and_its_shims_get_another(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "keeper.held")  # there it loops for ever, as a bug would
    traps = {"SHIMD_SHIM_FAULTS": str(tmp_path), "SHIMD_SHIM_FAULTS_ARMED": faults.ARMED}
    with DaemonBox(environ={**KEPT, **traps}, config="wedged.after_s = 0.5\nwedged.grace_s = 0.5") as box:
        try:
            keeper = serving(box)
            box.run("c1", "sleep", "1000")
            another, shim_pid = serving(box, but=keeper), box.shim("c1").pid
            wait_until(lambda: shim_pid in looked_after(read_log(box), another), what="the shim to be looked after")

            assert not is_running(keeper)
            assert "killing a keeper that hangs" in box.log()
        finally:
            box._clear()
            end_keepers(directory(box))


def test_a_container_outlives_keeper_and_shim_in_turn(box: DaemonBox) -> None:
    box.create_container("c1", "sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42")
    box.create_task("c1")
    pid = box.start_task("c1")
    dead, before = serving(box), box.shim("c1").pid
    assert parent_of(before) == dead
    os.kill(dead, signal.SIGKILL)
    keeper = serving(box, but=dead)
    wait_until(lambda: before in looked_after(read_log(box), keeper), what="the new keeper to have the shim")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: box.shim("c1").pid not in (0, before), what="the successor")
    assert parent_of(box.shim("c1").pid) == keeper
    assert box.task("c1").pid == pid
    with open(f"{box.rootfs}/go", "w", encoding="ascii"):
        pass

    assert box.wait("c1").exit_status == 42


def read_log(box: DaemonBox) -> str:
    with open(f"{directory(box)}/keeper.log", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("how", ["configuration", "environment"])
def test_switched_off_there_is_no_keeper_and_shims_start_all_the_same(how: str) -> None:
    off = how == "environment"
    config = "" if off else "keeper.enabled = false"
    with DaemonBox(config=config, environ={**KEPT, **({"SHIMD_KEEPER": "off"} if off else {})}) as box:
        box.run("c1", "sleep", "1000")
        assert box.shim("c1").pid
        assert not os.path.exists(directory(box))

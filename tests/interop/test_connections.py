"""Real containerd, and a shim that is killed again and again: containerd notices nothing, for its connection stays.

The Go shim's containerd takes the closed connection for the end of the container: it runs `delete`, which kills it.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.interop.conftest import OURS, open_play
from tests.interop.play import Play
from tests.support.waiting import wait_until
from ttrpc.api import shim
from ttrpc.blocking import BlockingClient

UNTIL_GO = ("/bin/sh", "-c", "touch /tmp/here; while [ ! -e /tmp/go ]; do usleep 10000; done; exit 42")
UNTIL_SAID = ("/bin/sh", "-c", "touch /tmp/exec; while [ ! -e /tmp/said ]; do usleep 10000; done; echo done; exit 7")
RUNNING = 2
PATIENCE_S = 60.0


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """A play with a keeper, in which containerd talks to the shim itself: no recorder has connections of its own."""
    monkeypatch.delenv("SHIMD_KEEPER", raising=False)
    monkeypatch.setenv("SHIMD_RELIEF_S", "0.1")
    with open_play(OURS, is_recorded=False) as play:
        yield play


def kill_shim(play: Play, container: str) -> None:
    """SIGKILL, and back when its successor is known."""
    path = os.path.join(play.box.bundle_of(container), "shim.pid")
    dead = read(path)
    os.kill(int(dead), signal.SIGKILL)
    wait_until(lambda: read(path) not in ("", dead), deadline_s=PATIENCE_S, what="a successor")


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def assert_unnoticed(play: Play, container: str, pid: int) -> None:
    state = play.state(container)
    assert (state.pid, state.status) == (pid, RUNNING)
    assert "shim disconnected" not in play.box.log()
    assert "cleaning up dead shim" not in play.box.log()
    assert not os.path.exists(os.path.join(play.box.bundle_of(container), "ended"))


def test_containerd_does_not_notice_that_a_shim_is_killed(direct: Play) -> None:
    """While it is idle, while a Wait is pending, while an exec runs; the statuses are exact."""
    play = direct
    client = play.run_open("c1", *UNTIL_GO, options=("--null-io",))
    play.wait_file("here")
    wait_until(lambda: (state := play.state("c1")) is not None and state.status == RUNNING, what="the container to run")
    pid = play.pid_of("c1")
    for _ in range(3):
        kill_shim(play, "c1")
        assert_unnoticed(play, "c1", pid)

    during = play.client(*play.exec_args("c1", "e1", UNTIL_SAID))
    play.wait_file("exec")
    kill_shim(play, "c1")
    assert_unnoticed(play, "c1", pid)
    play.make_file("said")
    done = during.finish(PATIENCE_S)
    assert (done.exit, done.out) == (7, b"done\n"), done.complaint

    after = play.exec("c1", "e2", "/bin/sh", "-c", "echo after; exit 3")
    assert (after.exit, after.out) == (3, b"after\n"), after.complaint
    kill_shim(play, "c1")
    play.make_file("go")

    assert client.finish(PATIENCE_S).exit == 42, client.err
    play.remove("c1")


def upgrade_shim(play: Play, container: str) -> None:
    """Have the shim go on in place, and back when a copy of the keeper's template has followed it."""
    bundle = play.box.bundle_of(container)
    pid = read(os.path.join(bundle, "shim.pid"))
    with BlockingClient.connect(read(os.path.join(bundle, "address")).removeprefix("unix://")) as client:
        request = shim.UpgradeRequest(patience_ms=60_000)
        assert client.call("shimd.shim.v1.Shim", "Upgrade", request, timeout_s=120).pause_us > 0
    wait_until(
        lambda: read(os.path.join(bundle, "shim.pid")) not in ("", pid), deadline_s=PATIENCE_S, what="a copy to follow"
    )


def test_containerd_does_not_notice_that_a_shim_is_upgraded(direct: Play) -> None:
    """While a Wait is pending, while an exec runs with its streams; events come through, the statuses are exact."""
    play = direct
    client = play.run_open("c1", *UNTIL_GO, options=("--null-io",))
    play.wait_file("here")
    wait_until(lambda: (state := play.state("c1")) is not None and state.status == RUNNING, what="the container to run")
    pid = play.pid_of("c1")
    upgrade_shim(play, "c1")
    assert_unnoticed(play, "c1", pid)

    during = play.client(*play.exec_args("c1", "e1", UNTIL_SAID))
    play.wait_file("exec")
    upgrade_shim(play, "c1")
    upgrade_shim(play, "c1")
    assert_unnoticed(play, "c1", pid)
    play.make_file("said")
    done = during.finish(PATIENCE_S)
    assert (done.exit, done.out) == (7, b"done\n"), done.complaint
    play.make_file("go")

    assert client.finish(PATIENCE_S).exit == 42, client.err
    play.remove("c1")


def test_a_shim_killed_during_an_exec_s_start(direct: Play) -> None:
    """`ctr tasks exec` in a row, and a kill somewhere in each: every one ends as it should."""
    play = direct
    play.start("c1", options=("--null-io",))
    pid = play.pid_of("c1")
    for number in range(4):
        client = play.client(*play.exec_args("c1", f"e{number}", ("/bin/sh", "-c", f"sleep 0.3; exit {number + 1}")))
        kill_shim(play, "c1")
        done = client.finish(PATIENCE_S)
        assert done.exit == number + 1, done.complaint
        assert_unnoticed(play, "c1", pid)

    play.kill("c1")
    play.wait_stopped("c1")
    assert play.state("c1").exit_status == 137
    play.remove("c1")


def test_an_attached_client_gets_everything(direct: Play) -> None:
    """`ctr tasks attach` over kills of the shim: output and exit status come through."""
    play = direct
    lines = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 10000; done; exit 5"
    client = play.run_open("c1", "/bin/sh", "-c", f"touch /tmp/here; {lines}")
    play.wait_file("here")
    pid = play.pid_of("c1")
    for _ in range(2):
        kill_shim(play, "c1")
        assert_unnoticed(play, "c1", pid)

    done = client.finish(PATIENCE_S)
    assert done.exit == 5, done.complaint
    assert done.text.splitlines() == [f"line {number}" for number in range(400)]
    play.remove("c1")


def test_a_person_at_a_terminal_notices_nothing(direct: Play) -> None:
    """`ctr run -t` over kills of the shim: every line is shown, and what is typed arrives, each once."""
    play, terminal = direct, direct.terminal()
    script = """stty -echo; touch /tmp/here; i=0
        while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); usleep 10000; done
        echo ready; while read word; do echo got $word; [ $word != end ] || exit 5; done"""
    client = play.client(*play.run_args("c1", ("/bin/sh", "-c", script), ("--tty",)), terminal=terminal.tty)
    play.wait_file("here")
    pid = play.pid_of("c1")
    for number in range(4):
        terminal.type(f"word{number}\n")
        kill_shim(play, "c1")
        assert_unnoticed(play, "c1", pid)
    terminal.type("end\n")
    terminal.wait_for("got end")

    assert client.finish(PATIENCE_S).exit == 5
    shown = [line.strip() for line in terminal.seen.decode().splitlines() if line.strip()]
    lines = [*(f"line {number}" for number in range(300)), "ready"]
    assert shown == [*lines, *(f"got word{number}" for number in range(4)), "got end"]
    play.remove("c1")

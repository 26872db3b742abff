"""What our shim does under real containerd and the Go shim does not: nothing to compare, so it is said outright."""

import os
import signal

import pytest

from tests.interop.play import Play
from tests.interop.scenarios.execs import exec_spec
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
MORE_THAN_GO_TRIES = 8  # the Go shim gives an event up after six tries
LIMIT_BYTES = 32 << 20

pytestmark = pytest.mark.long


def test_an_end_of_stdin_told_before_the_start_is_kept(play: Play) -> None:
    """CloseIO that comes before Start: the Go shim forgets it, and the exec waits for input for ever."""
    play.start("c1", options=("--null-io",))
    fifo = os.path.join(play.box.folder, "stdin")
    os.mkfifo(fifo)
    play.tasks("Exec", container_id="c1", exec_id="e1", spec=exec_spec("/bin/cat"), stdin=fifo)

    play.tasks("CloseIO", container_id="c1", exec_id="e1", stdin=True)
    play.tasks("Start", container_id="c1", exec_id="e1")

    play.wait_stopped("c1", "e1")
    assert play.state("c1", "e1").exit_status == 0
    play.remove("c1")


def test_a_short_input_of_an_exec_comes_with_its_end(play: Play) -> None:
    """`ctr` has read all of it before its Exec is answered, if the shim opens the FIFO that early, and tells nobody.

    (Of an input that is empty `ctr` never tells the end: it has read that before anybody could open anything.)
    """
    play.start("c1", options=("--null-io",))

    for number, text in enumerate((b"a line\n", b"x") * 5):
        result = play.exec("c1", f"e{number}", SHELL, "-c", "cat; exit 3", stdin=text)
        assert (result.exit, result.out) == (3, text)

    play.remove("c1")


def test_no_exit_is_lost_however_long_containerd_is_away(play: Play) -> None:
    """More failures than the Go shim tries; the events come in their order once containerd is back."""
    play.start("c1", options=("--null-io",))
    pid = play.pid_of("c1")
    play.box.kill()
    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: play.tape.refused >= MORE_THAN_GO_TRIES, deadline_s=60, what="the shim to try that often")
    play.box.start()
    wait_until(lambda: "exit c1 = 137" in play.delivered(), deadline_s=30, what="the exit to be told")

    assert play.delivered() == ["create c1", "start c1", "exit c1 = 137"]
    play.remove("c1")


def test_events_keep_their_order_over_a_restart(play: Play) -> None:
    """An event that could not be delivered is not overtaken by those after it."""
    play.start("c1", options=("--null-io",))
    hold = play.tape.hold("Forward /tasks/paused", "request")
    play.ctr("pause", "tasks", "pause", "c1")
    hold.wait()
    play.box.kill()
    play.tape.release(hold, drop=True)
    play.box.start()
    play.ctr("resume", "tasks", "resume", "c1")
    play.kill("c1")
    play.wait_stopped("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    wait_until(lambda: "delete c1 = 137" in play.delivered(), deadline_s=30, what="the deletion to be told")

    assert play.delivered() == ["create c1", "start c1", "paused c1", "resumed c1", "exit c1 = 137", "delete c1 = 137"]


def test_execs_exit_before_their_init(play: Play) -> None:
    """However they died: subscribers hear of every exec's exit first."""
    play.start("c1", options=("--null-io",))
    for number in range(5):
        play.ctr("exec", *play.exec_args("c1", f"e{number}", ("/bin/sleep", "1000"), ("--detach",)))

    play.kill("c1")
    play.events.wait_for("exit c1 = 137")

    exits = [line for line in play.events.lines() if line.startswith("exit")]
    assert sorted(exits[:-1]) == [f"exit c1/e{number} = 137" for number in range(5)]
    assert exits[-1] == "exit c1 = 137"
    play.remove("c1")


def test_out_of_memory_is_told_before_the_exit_it_caused(play: Play) -> None:
    """The OOM event and the exit are one story, in its order."""
    play.run("c1", "/bin/tail", "/dev/zero", options=("--memory-limit", str(LIMIT_BYTES), "--null-io"))
    play.events.wait_for("exit c1 = 137")

    lines = play.events.lines()
    assert lines.index("oom c1") < lines.index("exit c1 = 137")
    play.remove("c1")


def test_a_shim_nobody_gave_a_container_goes_by_itself(play: Play) -> None:
    """containerd dies between `start` and Create, and does not come back: the Go shim stays for ever."""
    hold = play.tape.hold("Create", "request")
    client = play.run_open("c1", "/bin/true", options=("--detach", "--null-io"))
    hold.wait()
    play.box.kill()
    client.kill()
    play.tape.release(hold, drop=True)

    wait_until(lambda: not play.box.leftovers().processes, deadline_s=90, what="the shim to end")
    assert not play.box.leftovers().sockets

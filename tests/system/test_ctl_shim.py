"""`shimctl shim …`: everything it does, with the daemon dead."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish, lines, read_until
from tests.support.waiting import wait_until


@pytest.fixture
def box() -> Iterator[CtlBox]:
    """A container, and then no daemon."""
    with CtlBox() as made:
        made.detached("web", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo hi; while :; do sleep 0.05; done")
        wait_until(lambda: made.ctl.output("logs", "web") == "hi\n", what="its first words")
        made.daemon.kill()
        yield made


def test_list_and_state(box: CtlBox) -> None:
    (found,) = [
        each for each in json.loads(box.ctl.output("shim", "list", "--json")) if each["namespace"] == box.namespace
    ]

    assert (found["id"], found["health"], found["state"]["status"]) == ("web", "serving", "running")
    assert box.ctl.output("shim", "list", "-q") == "web\n"
    row = lines(box.ctl.output("shim", "list"))[1].split()
    assert row[:2] == [box.namespace, "web"]
    assert str(found["pid"]) in row
    state = json.loads(box.ctl.output("shim", "state", "web"))
    assert state["state"]["pid"] == found["state"]["pid"]
    assert state["shim"]["container_id"] == "web"


def test_exec_logs_kill_wait_delete(box: CtlBox) -> None:
    assert box.ctl.output("shim", "exec", "-i", "web", "cat", given="through\n") == "through\n"
    assert box.ctl.output("shim", "exec", "-e", "X=1", "web", "sh", "-c", "echo $X; exit 9", code=9) == "1\n"
    assert box.ctl.run("shim", "exec", "web", "nope").returncode == 127
    assert box.ctl.output("shim", "logs", "web") == "hi\n"
    assert box.ctl.output("shim", "logs", "--tail", "0", "web") == ""
    refused = box.ctl.run("shim", "delete", "web")
    assert refused.returncode == 1
    assert "delete -f web" in refused.stderr

    follower = box.ctl.start("shim", "logs", "-f", "web")
    assert follower.stdout is not None
    read_until(follower.stdout.fileno(), b"hi\n")
    waiter = box.ctl.start("shim", "wait", "web")
    box.ctl.output("shim", "kill", "-s", "TERM", "web")

    assert finish(waiter)[:2] == (3, b"3\n")
    assert finish(follower)[:2] == (0, b"bye\n")
    (ended,) = json.loads(box.ctl.output("shim", "state", "web"))["exits"]
    assert (ended["exit_code"], ended["source"]) == (3, "waitid")
    assert "exit status 3" in box.ctl.output("shim", "delete", "web")
    wait_until(lambda: not os.path.exists(ended_shim(box)), what="the shim to end")


def ended_shim(box: CtlBox) -> str:
    path = f"{box.daemon.state}/io.containerd.runtime.v2.task/{box.namespace}/web/shim.pid"
    if not os.path.exists(path):
        return "/nowhere"
    with open(path, encoding="ascii") as file:
        return f"/proc/{file.read().strip()}"


def test_delete_by_force_and_the_daemon_s_return(box: CtlBox) -> None:
    """The daemon finds the task gone, tells its exit, and goes on."""
    box.ctl.output("shim", "delete", "--force", "web")
    box.daemon.start()

    assert box.ctl.output("ps", "-q") == ""
    assert box.ctl.output("wait", "web", code=137) == "137\n"
    box.remove("web")
    assert box.ctl.output("shim", "list", "-q") == ""


def test_detached_exec_is_killed_by_its_id(box: CtlBox) -> None:
    exec_id = box.ctl.output("shim", "exec", "-d", "web", "sleep", "100").strip()
    box.ctl.output("shim", "kill", "--exec", exec_id, "web")

    assert box.ctl.output("shim", "wait", "--exec", exec_id, "web", code=137) == "137\n"
    assert json.loads(box.ctl.output("shim", "state", "--exec", exec_id, "web"))["state"]["status"] == "stopped"


def test_kill_all(box: CtlBox) -> None:
    box.ctl.output("shim", "exec", "-d", "web", "sleep", "100")
    box.ctl.output("shim", "kill", "--all", "web")

    assert box.ctl.output("shim", "wait", "web", code=137) == "137\n"


def test_a_shim_that_does_not_answer_is_listed_as_such(box: CtlBox) -> None:
    import signal

    pid = json.loads(box.ctl.output("shim", "list", "--json"))[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        (found,) = json.loads(box.ctl.output("shim", "list", "--json"))
        assert (found["health"], found["id"]) == ("unreachable", "web")
        assert f"shim {pid}, state T" in found["reason"]
    finally:
        os.kill(pid, signal.SIGCONT)


def test_one_that_is_not_there_and_a_directory_that_is_not(box: CtlBox) -> None:
    done = box.ctl.run("shim", "state", "missing")

    assert done.returncode == 1
    assert "shimctl shim list" in done.stderr
    assert lines(box.ctl.output("shim", "list", "--state", "/nowhere"))[1:] == []
    assert box.ctl.run("shim", "wait", "missing").returncode == 125
    assert box.ctl.run("shim", "state", "../../etc").returncode == 1


def test_the_daemon_s_own_commands_say_how_to_start_it(box: CtlBox) -> None:
    done = box.ctl.run("--reconnect", "0.2", "ps")

    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "shimctl shim list" in done.stderr


def test_stack_of_a_shim_that_waits_and_of_one_that_is_stopped(box: CtlBox) -> None:
    import signal

    told = box.ctl.output("shim", "stack", "web")
    assert "most recent call first" in told
    assert "run_once" in told
    pid = json.loads(box.ctl.output("shim", "list", "--json"))[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        told = box.ctl.output("shim", "stack", "web")
        assert f"shim {pid}, state T" in told
        assert "most recent call first" not in told
    finally:
        os.kill(pid, signal.SIGCONT)
    missing = box.ctl.run("shim", "stack", "missing")
    assert (missing.returncode, "no bundle" in missing.stderr) == (1, True)

"""`shimctl shim upgrade`: one shim, all of them, with the daemon up and down; the daemon takes no pause for a loss."""

import contextlib
import json
import os
import signal
import socket
from typing import Any

import pytest

from tests.support.codetree import CodeTree
from tests.support.ctlbox import CtlBox
from tests.support.daemonbox import SHIMD
from tests.support.keeperbox import end_keepers
from tests.support.shimctl import Shimctl, finish
from tests.support.waiting import wait_until
from ttrpc.api import shimd

COUNT = int(os.environ.get("SHIMD_TEST_UPGRADED_SHIMS", "4"))
PROGRAM = ("sh", "-c", "trap 'exit 42' TERM; n=0; while :; do echo line $n; n=$((n+1)); usleep 20000; done")
GO = ("--runtime", "io.containerd.runc.v2")


def upgraded(box: CtlBox, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    found = json.loads(box.ctl.output("shim", "upgrade", "--json", *words, code=code))
    return {each["id"]: each for each in found}


def pids(box: CtlBox) -> dict[str, tuple[int, int]]:
    """Of every container: its shim's and its own."""
    found = json.loads(box.ctl.output("shim", "list", "--json"))
    return {each["id"]: (each["pid"], each["state"]["pid"]) for each in found}


def test_all_at_once_and_nobody_notices() -> None:
    """With the daemon up: events of waits, logs to the line, no loss on its side; a foreign shim is skipped."""
    with CtlBox() as box:
        names = [f"c{number}" for number in range(COUNT)]
        for name in names:
            box.detached(name, *PROGRAM)
        box.detached("go", "sleep", "1000", options=GO)
        waiters = {name: box.ctl.start("wait", name) for name in names}
        before = pids(box)
        dry = upgraded(box, "--all", "--dry-run")
        assert {dry[name]["result"] for name in names} == {"could"}
        found = upgraded(box, "--all", "--parallel", "3")

        assert {found[name]["result"] for name in names} == {"upgraded"}
        assert all(found[name]["pause_ms"] > 0 for name in names)
        assert (found["go"]["result"], found["go"]["reason"]) == ("skipped", "its shim is not shimd's")
        assert pids(box) == before
        assert "upgraded" in box.ctl.output("shim", "upgrade", "c0")
        assert box.ctl.output("shim", "exec", "c0", "echo", "hi") == "hi\n"
        for name in names:
            box.ctl.output("kill", "-s", "TERM", name)
            assert finish(waiters[name])[:2] == (42, b"42\n")
            lines = box.ctl.output("logs", name).splitlines()
            assert lines == [f"line {number}" for number in range(len(lines))]
            ended = json.loads(box.ctl.output("inspect", name))
            assert '"waitid"' in json.dumps(ended)
        told = box.daemon.log()
        assert "raised" not in told
        assert " ERROR " not in told
        box.ctl.output("kill", "go")
        for name in (*names, "go"):
            wait_until(lambda name=name: name not in running(box), what="its end")  # type: ignore[misc]
            box.remove(name)


def test_the_daemon_learns_who_the_shim_is_now() -> None:
    """Some time after an upgrade a copy of the keeper's template follows the shim: another pid, and nothing else."""
    with CtlBox() as box, contextlib.ExitStack() as stack:
        keepers = f"{box.daemon.folder}/k"
        stack.callback(end_keepers, keepers)
        box.daemon.environ |= {"SHIMD_RELIEF_S": "0.1", "SHIMD_KEEPER_LIVES": "1"}
        box.daemon.environ |= {"SHIMD_KEEPER": keepers, "SHIMD_KEEPER_CGROUP": ""}
        box.daemon.restart()
        box.detached("one", *PROGRAM)
        waits = box.ctl.start("wait", "one")
        shim_pid, pid = pids(box)["one"]
        upgraded(box, "one")
        wait_until(lambda: pids(box)["one"][0] != shim_pid, deadline_s=60, what="a copy to follow")

        wait_until(lambda: known_pid(box) == pids(box)["one"][0], what="the daemon to know it")
        assert pids(box)["one"][1] == pid
        assert box.ctl.output("exec", "one", "echo", "hi") == "hi\n"
        box.ctl.output("kill", "-s", "TERM", "one")
        assert finish(waits)[:2] == (42, b"42\n")
        assert "raised" not in box.daemon.log()
        box.remove("one")


def known_pid(box: CtlBox) -> int:
    """Of the only shim, as the daemon has it."""
    (shim,) = box.daemon.call(SHIMD, "Shims", shimd.ShimsRequest(all_namespaces=True)).shims
    return int(shim.pid)


def running(box: CtlBox) -> list[str]:
    return box.ctl.output("ps", "-q").split()


def test_with_the_daemon_down_and_to_code_that_will_not_do() -> None:
    """A failure is told with its reason and the exit code 1; the old code goes on."""
    with CtlBox() as box:
        box.detached("one", "sleep", "1000")
        box.daemon.kill()
        assert upgraded(box, "one")["one"]["result"] == "upgraded"
        wrong = box.ctl.run("shim", "upgrade", "--python", "/nowhere/python", "one")
        assert (wrong.returncode, "cannot be run" in wrong.stderr) == (1, True)
        tree = CodeTree(box.daemon.folder, "9.9.0")
        tree.edit("shim/bundle.py", "STATE_VERSION = 1", "STATE_VERSION = 2")
        failing = box.ctl.run("shim", "upgrade", "--json", "--code", tree.path, "one")
        (outcome,) = json.loads(failing.stdout)
        assert (failing.returncode, outcome["result"]) == (1, "failed")
        assert "the state is of version 1; 9.9.0 reads 2" in outcome["reason"]
        assert box.ctl.output("shim", "exec", "one", "echo", "hi") == "hi\n"
        box.daemon.start()
        assert "one" in running(box)
        box.ctl.output("kill", "one")
        wait_until(lambda: "one" not in running(box), what="its end")
        box.remove("one")


@pytest.mark.parametrize("words", [(), ("--all", "one"), ("--parallel", "0", "one")])
def test_what_does_not_go_together_is_a_usage_error(words: tuple[str, ...]) -> None:
    with CtlBox() as box:
        assert box.ctl.run("shim", "upgrade", *words).returncode == 2


def test_ctrl_c_begins_no_other_and_waits_for_none(short_dir: str) -> None:
    """Of shims that answer nobody: those under way are left to themselves, and what is done is told."""
    ctl = Shimctl("--state", short_dir)
    with contextlib.ExitStack() as stack:
        for number in range(3):
            bundle, path = f"{short_dir}/io.containerd.runtime.v2.task/ns/c{number}", f"{short_dir}/{number}"
            os.makedirs(bundle)
            with open(f"{bundle}/address", "w", encoding="utf-8") as file:
                file.write(f"unix://{path}")
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.bind(path)
            silent.listen()
            silent.settimeout(30)
            if number == 0:
                first = silent
        asked = ctl.start("shim", "upgrade", "--all", "--parallel", "1")
        stack.enter_context(first.accept()[0])
        asked.send_signal(signal.SIGINT)
        code, out, err = finish(asked)
    assert code == 130
    assert b"interrupted: 0 of 3 are done" in err
    assert b"Traceback" not in err + out

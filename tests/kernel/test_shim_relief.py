"""A shim whose memory is all its own ends, and a copy of the keeper's template goes on: nobody notices but `ps`."""

import hashlib
import json
import os
import signal
from typing import Any

import pytest

from shim.core import pidfds
from tests.support import leaks
from tests.support.codetree import CodeTree
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.errors import ConnectionLost

pytestmark = pytest.mark.skipif(not pidfds.keeps_exit_status(), reason="Linux 6.15: below it a shim stays as it is")

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
# Of what another machine may make of the 3.5 and 11.4 MB here.
SMALL_KB, LARGE_KB = 6000, 9000


def relieved(args: list[str] = WAITER, **options: Any) -> KeptBox:
    """A box whose shims are relieved as soon as they are large and all is quiet."""
    box = KeptBox(args, **options)
    box.environment |= {"SHIMD_RELIEF_S": "0.01", "SHIMD_KEEPER_LIVES": "1"}  # nobody waits for a long rehearsal
    return box


def upgrade(box: KeptBox, **fields: Any) -> None:
    box.call("Upgrade", shim.UpgradeRequest(patience_ms=60_000, **fields), service=SHIM, timeout_s=120)


def wait_relieved(box: KeptBox) -> None:
    """Until another process is the shim. The connection goes on."""
    before = box.shim_pid
    wait_until(lambda: box.info().pid != before, deadline_s=60, what="a copy to follow")
    box.find_shim()


def private_kb(pid: int) -> int:
    rollup = leaks.read(f"/proc/{pid}/smaps_rollup")
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


def exits(box: KeptBox) -> list[tuple[str, int]]:
    return [(each.exit.exec_id, each.exit.code) for each in box.events("/tasks/exit") if each.HasField("exit")]


def topics(box: KeptBox) -> list[str]:
    told = box.events(lambda each: each.exit.exec_id == "" and each.exit.pid)
    return [each.topic.rpartition("/")[2] for each in told]


def arm(box: KeptBox, point: str) -> str:
    """Lay a trap; the path by which it is known that somebody fell into it."""
    trap = os.path.join(box.folder, "traps")
    os.makedirs(trap, exist_ok=True)
    box.environment |= {"SHIMD_SHIM_FAULTS": trap, "SHIMD_SHIM_FAULTS_ARMED": "yes-kill-me"}
    return os.path.join(trap, point)


def is_sprung(trap: str) -> bool:
    folder, name = os.path.split(trap)
    return any(each.startswith(f"{name}.hit.") for each in os.listdir(folder))


# --- what goes on


def test_after_an_upgrade_a_copy_of_the_template_goes_on() -> None:
    with relieved() as box:
        pid = box.create(stdout=f"log://{box.folder}/log?format=json").pid
        box.start()
        box.add_exec("e", ["sh", "-c", "while [ ! -e /over ]; do usleep 10000; done; exit 7"])
        box.start("e")
        before, waits, exec_waits = box.info(), box.wait_later(), box.wait_later("e")
        upgrade(box)
        wait_relieved(box)
        after = box.info()

        assert (after.incarnation, after.started_at, after.log_bytes, after.version) == (
            before.incarnation, before.started_at, before.log_bytes, before.version,
        )  # fmt: skip
        assert box.state().pid == pid
        assert private_kb(box.shim_pid) < SMALL_KB
        assert "is relieved" in box.keeper_log()
        with open(os.path.join(box.rootfs, "over"), "w", encoding="utf-8"):
            pass
        assert exec_waits.receive(timeout_s=20).exit_status == 7
        box.let_go()
        assert waits.receive(timeout_s=20).exit_status == 42
        assert topics(box) == ["create", "start", "exec-added", "exec-started", "exit", "exit"]
        assert exits(box) == [("e", 7)]
        assert box.delete("e").exit_status == 7
        assert box.delete().exit_status == 42
        box.shutdown()


def test_a_shim_that_was_started_cold_becomes_small_once_there_is_a_keeper() -> None:
    with relieved() as box:
        os.mkdir(box.keepers, 0o777)
        os.chmod(box.keepers, 0o777)
        pid = box.create().pid
        box.start()
        assert private_kb(box.shim_pid) > LARGE_KB
        os.chmod(box.keepers, 0o700)
        wait_relieved(box)

        assert private_kb(box.shim_pid) < SMALL_KB
        assert box.state().pid == pid
        box.let_go()
        assert box.wait().exit_status == 42
        assert box.last_exit().code == 42


def test_a_copy_of_a_template_that_has_not_rehearsed_yet_is_relieved_too() -> None:
    """Those of a keeper's first second; one of those that come later is not."""
    with relieved() as box:
        box.create()
        box.start()
        wait_relieved(box)
        first = box.shim_pid
        box.kill_shim()

        assert box.shim_pid != first
        assert box.keeper_log().count("is relieved") == 1
        assert "this shim stays as large" not in box.read("shim.log").rpartition("taking over")[2]
        box.let_go()
        assert box.wait().exit_status == 42


def test_a_keeper_of_the_new_code_is_found_and_keeps_it_from_there_on() -> None:
    """The old keeper's copies would be the old code: it is left for one that is started for this."""
    with relieved() as box:
        tree = CodeTree(box.folder, "9.7.0")
        pid = box.create().pid
        box.start()
        (old,) = box.keeper_pids()
        upgrade(box, paths=tree.paths)
        wait_relieved(box)
        assert (box.info().version, len(box.keeper_pids())) == ("9.7.0", 2)
        assert private_kb(box.shim_pid) < SMALL_KB
        box.kill_shim()
        assert box.info().version == "9.7.0"
        assert old in box.keeper_pids()
        assert box.state().pid == pid
        box.let_go()

        assert box.wait().exit_status == 42
        assert box.last_exit().code == 42


def test_what_only_its_memory_had_goes_along() -> None:
    """Input a process has no room for yet, and that it is to end then; half a line of a terminal; the ring."""
    script = "printf 'half a '; while [ ! -e /end ]; do usleep 10000; done; echo line"
    with relieved(["sh", "-c", script], terminal=True) as box:
        box.create(stdout=f"log://{box.folder}/log?format=json")
        box.start()
        wait_until(lambda: box.info().log_bytes >= 7, what="half a line")
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), "attach:")
        box.add_exec("e", ["sh", "-c", "echo early; while [ ! -e /go ]; do usleep 10000; done; md5sum"], **streams)
        data, client = b"0123456789abcdef" * 10000, box.connect()
        stream = box.attach("e", client=client, stdin=True, output=True)
        box.start("e")
        stream.send(shim.AttachInput(stdin=data))
        assert stream.receive(timeout_s=20).stdout == b"early\n"
        client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=20)  # comes after it
        box.call("CloseIO", task.CloseIORequest(id=box.id, exec_id="e", stdin=True))
        upgrade(box)
        wait_relieved(box)
        again = box.attach("e", output=True, replay_bytes=1000)
        box.let_go()
        told = b""
        while (message := again.receive(timeout_s=20)) is not None:
            told += message.stdout

        assert told == b"early\n%s  -\n" % hashlib.md5(data).hexdigest().encode()
        with open(os.path.join(box.rootfs, "end"), "w", encoding="utf-8"):
            pass
        assert box.wait().exit_status == 0
        assert [json.loads(line)["log"] for line in leaks.read(f"{box.folder}/log").splitlines()] == ["half a line\r\n"]


@pytest.mark.parametrize("form", ["json", "raw"])
def test_numbered_lines_at_full_speed(form: str) -> None:
    script = "i=1; while [ ! -e /go ]; do seq $((i*1000)) $((i*1000+999)); i=$((i+1)); usleep 2000; done; exit 42"
    with relieved(["sh", "-c", script]) as box:
        path = f"{box.folder}/log"
        box.create(stdout=f"log://{path}?format={form}&max-size=1073741824")
        box.start()
        for _ in range(2):
            upgrade(box)
            wait_relieved(box)
        box.let_go()

        assert box.wait().exit_status == 42
        lines = leaks.read(path).splitlines()
        if form == "json":
            lines = [json.loads(line)["log"].rstrip() for line in lines]
        assert lines == [str(number) for number in range(1000, 1000 + len(lines))]
        assert len(lines) % 1000 == 0
        assert box.info().log_bytes == sum(len(line) + 1 for line in lines)
        assert box.info().dropped_bytes == 0


def test_who_is_attached_or_follows_notices_nothing() -> None:
    """One types and is answered, one follows the log, over the same connections; who follows events comes back."""
    with relieved(["sh", "-c", "while read line; do echo got $line; done; exit 42"]) as box:
        log = f"log://{box.folder}/log?format=json"
        box.create(stdin="attach:", stdout=log, stderr=log)
        box.start()
        attach = box.attach(stdin=True, output=True)
        logs = box.connect().open_stream(SHIM, "Logs", shim.LogsRequest(follow=True))
        follow = box.connect().open_stream(SHIM, "Follow", shim.FollowRequest())
        assert [follow.receive(timeout_s=20).seq for _ in range(2)] == [1, 2]
        for number in range(2):
            attach.send(shim.AttachInput(stdin=b"%d\n" % number))
            assert attach.receive(timeout_s=20).stdout == b"got %d\n" % number
            assert b"got %d" % number in logs.receive(timeout_s=20).data
            upgrade(box)
            wait_relieved(box)
        attach.send(shim.AttachInput(close_stdin=True))

        assert attach.receive(timeout_s=20).exited.code == 42
        with pytest.raises(ConnectionLost):
            follow.receive(timeout_s=20)
        assert logs.receive(timeout_s=20) is None


def test_a_log_program_goes_on_reading() -> None:
    """It is the same one, and gets all of both streams; what it was given is nobody else's."""
    with relieved(["sh", "-c", "echo before; while [ ! -e /go ]; do usleep 10000; done; echo after; exit 42"]) as box:
        program, said = f"{box.folder}/logger", f"{box.folder}/said"
        with open(program, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\necho $$ >>{said}.pid\nexec 5>&-\ncat <&4 &\ncat <&3 >>{said}\nwait\n")
        os.chmod(program, 0o755)
        box.create(stdout=f"binary://{program}", stderr=f"binary://{program}")
        box.start()
        wait_until(lambda: os.path.exists(said) and leaks.read(said) == "before\n", what="the first line")
        upgrade(box)
        wait_relieved(box)
        box.let_go()
        assert box.wait().exit_status == 42
        assert box.delete().exit_status == 42

        assert leaks.read(said) == "before\nafter\n"
        assert len(leaks.read(f"{said}.pid").split()) == 1


def test_it_is_the_copy_that_restarts_the_container() -> None:
    with relieved() as box:
        box.create()
        terms = {"first_pause_ms": 10, "longest_pause_ms": 60_000, "reset_after_ms": 10_000, "max_restarts": 1}
        box.call("SetRestart", shim.SetRestartRequest(policy="on-failure", **terms), service=SHIM)
        pid = box.start().pid
        upgrade(box)
        wait_relieved(box)
        box.let_go()
        told = box.events("/shimd/restart-gave-up")

        assert [each.exit.code for each in told if each.HasField("exit")] == [42, 42]
        assert [each.seq for each in told] == list(range(1, len(told) + 1))
        assert box.state().pid != pid


def test_nothing_it_has_is_inherited_by_what_it_starts() -> None:
    with relieved() as box:
        box.create(stdin="attach:", stdout="attach:", stderr="attach:")
        box.start()
        upgrade(box)
        wait_relieved(box)
        inherited = {
            fd: os.readlink(f"/proc/{box.shim_pid}/fd/{fd}")
            for fd in os.listdir(f"/proc/{box.shim_pid}/fd")
            if int(fd) > 2 and not is_close_on_exec(box.shim_pid, fd)
        }
        assert inherited == {}
        box.kill_shim()
        assert all(is_close_on_exec(box.shim_pid, fd) for fd in os.listdir(f"/proc/{box.shim_pid}/fd") if int(fd) > 2)
        box.let_go()
        assert box.wait().exit_status == 42


def is_close_on_exec(pid: int, fd: str) -> bool:
    flags = leaks.read(f"/proc/{pid}/fdinfo/{fd}").partition("flags:")[2].split()[0]
    return bool(int(flags, 8) & os.O_CLOEXEC)


# --- when it is not done


def test_while_the_keeper_is_dead_the_shim_goes_on_as_it_is() -> None:
    """It is killed when it has agreed already; the next one does it."""
    with relieved() as box:
        trap = arm(box, "relief.begun")
        box.create()
        box.start()
        os.mkfifo(trap, 0o600)
        upgrade(box)
        wait_until(lambda: is_sprung(trap), deadline_s=60, what="it to begin")
        box.kill_keeper()
        with open(f"{trap}.hit.{box.shim_pid}", "wb"):
            pass
        assert box.info().pid == box.shim_pid
        wait_relieved(box)
        box.let_go()

        assert box.wait().exit_status == 42
        assert box.last_exit().code == 42


@pytest.mark.parametrize("point", ["relief.begun", "relief.told", "relief.received"])
def test_killed_on_the_way(point: str) -> None:
    """As after any death: the shim, or the copy that was about to follow it, has a successor."""
    with relieved() as box:
        trap = arm(box, point)
        pid = box.create().pid
        box.start()
        waits = box.wait_later()
        with open(trap, "w", encoding="ascii"):
            pass
        try:
            upgrade(box)
        except ConnectionLost:
            box.disconnect()
        wait_until(lambda: is_sprung(trap), deadline_s=60, what="the kill")
        wait_until(lambda: box.read("shim.pid") not in ("", str(box.shim_pid)), what="a successor")
        box.find_shim()
        assert box.state().pid == pid
        box.let_go()

        assert waits.receive(timeout_s=20).exit_status == 42
        assert box.last_exit().code == 42
        assert topics(box) == ["create", "start", "exit"]


def test_signals_that_come_meanwhile_do_not_end_it() -> None:
    with relieved() as box:
        trap = arm(box, "relief.told")
        box.create()
        box.start()
        os.mkfifo(trap, 0o600)
        upgrade(box)
        wait_until(lambda: is_sprung(trap), deadline_s=60, what="it to be about to end")
        for signum in (signal.SIGTERM, signal.SIGINT):
            os.kill(box.shim_pid, signum)
        with open(f"{trap}.hit.{box.shim_pid}", "wb"):
            pass
        wait_relieved(box)
        box.let_go()

        assert box.wait().exit_status == 42

"""A running shim goes on as other code, in place: nothing is lost, and whatever is wrong with the new, the old goes on.

SHIMD_TEST_SHIM_UPGRADES: how often in a row.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.core import pipes
from tests.support import leaks
from tests.support.codetree import CodeTree
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, TASK, ShimBox
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code

WAITER = ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 42"]
UPGRADES = int(os.environ.get("SHIMD_TEST_SHIM_UPGRADES", "5"))
POINTS = ("begun", "checked", "saved", "frozen", "executed", "restored", "thawed")


@pytest.fixture
def box() -> Iterator[KeptBox]:
    with KeptBox(WAITER) as box:
        yield box


def upgrade(box: ShimBox, *, patience_s: float = 60.0, **fields: Any) -> Any:
    request = shim.UpgradeRequest(patience_ms=int(patience_s * 1000), **fields)
    return box.call("Upgrade", request, service=SHIM, timeout_s=120)


def refused(box: ShimBox, **fields: Any) -> str:
    """Why it is not done; the shim is the same one, and at work."""
    before = box.info()
    with pytest.raises(StatusError) as error:
        upgrade(box, **fields)
    assert error.value.code == Code.FAILED_PRECONDITION
    after = box.info()
    assert (after.pid, after.version, after.started_at) == (before.pid, before.version, before.started_at)
    return error.value.message


def exit_of(box: ShimBox, exec_id: str = "") -> shim.ExitRecord:
    told = box.events(lambda record: record.HasField("exit") and not record.exit.exec_id)
    records = [each.exit for each in told if each.HasField("exit")]
    (record,) = [each for each in records if each.exec_id == exec_id]
    return record


# --- what goes on


def test_same_process_same_children_same_connection(box: KeptBox) -> None:
    pid = box.create().pid
    box.start()
    shim_pid, incarnation, waits = box.shim_pid, box.info().incarnation, box.wait_later()
    found = upgrade(box, dry_run=True)
    assert (found.to_version, found.pause_us) == (box.info().version, 0)
    assert "container running" in found.found
    answer = upgrade(box)

    assert 0 < answer.pause_us < 30_000_000
    assert (box.info().pid, box.info().incarnation, box.state().pid) == (shim_pid, incarnation, pid)
    title = leaks.read(f"/proc/{shim_pid}/cmdline")
    assert title.startswith(f"shim:{box.id} -namespace")
    box.let_go()
    assert waits.receive(timeout_s=20).exit_status == 42
    record = exit_of(box)
    assert (record.code, record.source) == (42, shim.EXIT_SOURCE_WAITID)
    assert [each.topic.rpartition("/")[2] for each in box.events("/tasks/exit")] == ["create", "start", "exit"]
    assert box.delete().exit_status == 42
    box.shutdown()


def test_from_one_installation_to_another_and_back(box: KeptBox) -> None:
    tree = CodeTree(box.folder, "9.1.0")
    old = box.create() and box.info().version
    answer = upgrade(box, paths=tree.paths)
    assert (answer.from_version, answer.to_version, box.info().version) == (old, "9.1.0", "9.1.0")
    box.start()
    assert box.run_exec("e", ["sh", "-c", "exit 3"]).exit_status == 3
    here = CodeTree(box.folder, "9.0.0")
    answer = upgrade(box, paths=here.paths)
    assert (answer.from_version, box.info().version) == ("9.1.0", "9.0.0")
    box.let_go()

    assert box.wait().exit_status == 42
    assert exit_of(box).source == shim.EXIT_SOURCE_WAITID


def test_without_a_keeper_too() -> None:
    with ShimBox(WAITER, environment={"SHIMD_KEEPER": "off"}) as box:
        box.create()
        box.start()
        waits = box.wait_later()
        upgrade(box)
        box.let_go()
        assert waits.receive(timeout_s=20).exit_status == 42
        assert exit_of(box).source == shim.EXIT_SOURCE_WAITID


def test_before_there_is_a_container(box: KeptBox) -> None:
    box.launch()
    assert upgrade(box).found == "no container yet"
    assert box.create().pid


def test_one_after_the_other_costs_neither_fds_nor_memory(box: KeptBox) -> None:
    box.create(stdout=f"log://{box.folder}/log?format=json")
    box.start()
    shim_pid, waits = box.shim_pid, box.wait_later()
    used = []
    for _ in range(UPGRADES):
        upgrade(box)
        box.info()  # what was open for the way back is closed by then
        used.append((len(os.listdir(f"/proc/{shim_pid}/fd")), private_kb(shim_pid)))
    box.let_go()

    assert waits.receive(timeout_s=20).exit_status == 42
    assert len({fds for fds, _ in used[1:]}) == 1, used
    assert used[-1][1] <= used[1][1] * 1.1, used


def private_kb(pid: int) -> int:
    rollup = leaks.read(f"/proc/{pid}/smaps_rollup")
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private"))


def test_the_keeper_raises_a_successor_afterwards_as_before(box: KeptBox) -> None:
    box.create()
    box.start()
    waits = box.wait_later()
    upgrade(box)
    os.kill(box.shim_pid, signal.SIGKILL)
    box.let_go()

    assert waits.receive(timeout_s=20).exit_status == 42
    box.find_shim()


# --- streams


@pytest.mark.parametrize("form", ["json", "raw"])
def test_numbered_lines_at_full_speed(form: str) -> None:
    """One upgrade in the first half of them, however long that takes, and more in the other."""
    half = "[ $i -ne 30 ] || while [ ! -e /go ]; do usleep 10000; done"
    lines_of_i = "seq $((i*10000)) $((i*10000+9999))"
    script = f"i=1; while [ $i -le 60 ]; do {lines_of_i}; {half}; i=$((i+1)); usleep 20000; done; exit 42"
    with KeptBox(["sh", "-c", script]) as box:
        path = f"{box.folder}/log"
        box.create(stdout=f"log://{path}?format={form}&max-size=4194304&max-files=20")
        box.start()
        waits, count = box.wait_later(), 0
        while box.state().status == 2:
            upgrade(box)
            box.let_go()
            count += 1

        assert waits.receive(timeout_s=60).exit_status == 42
        assert count >= 2
        names = order([name for name in os.listdir(box.folder) if name.startswith("log")])
        lines = "".join(leaks.read(f"{box.folder}/{name}") for name in names).splitlines()
        if form == "json":
            lines = [json.loads(line)["log"].rstrip() for line in lines]
        assert lines == [str(number) for number in range(10000, 610000)]
        assert box.info().log_bytes == sum(len(line) + 1 for line in lines)
        assert box.info().dropped_bytes == 0


def order(names: list[str]) -> list[str]:
    """Rotated files, oldest first."""
    return sorted(names, key=lambda name: -int(name.rpartition(".")[2]) if "." in name else 0)


@pytest.mark.parametrize("terminal", [False, True])
def test_an_exec_is_talked_to_throughout(box: KeptBox, terminal: bool) -> None:
    box.create()
    box.start()
    streams = {name: f"{box.folder}/{name}" for name in ("stdin", "stdout")}
    for path in streams.values():
        os.mkfifo(path)
    to_it, from_it = (os.open(path, os.O_RDWR) for path in streams.values())
    script = 'while read line; do echo got $line; [ "$line" != end ] || exit 7; done'
    box.add_exec("e", ["sh", "-c", script], terminal=terminal, **streams)
    box.start("e")
    waits, heard = box.wait_later("e"), b""
    for number in range(3):
        os.write(to_it, b"before %d\n" % number)
        upgrade(box)
        os.write(to_it, b"after %d\n" % number)
        while b"got after %d" % number not in heard:
            heard += os.read(from_it, 4096)
    os.write(to_it, b"end\n")

    assert waits.receive(timeout_s=20).exit_status == 7
    heard += os.read(from_it, 4096)
    told = [line.strip() for line in heard.split(b"\n") if line.startswith(b"got")]
    expected = [b"got %s %d" % (when, number) for number in range(3) for when in (b"before", b"after")]
    assert told == [*expected, b"got end"]
    os.close(to_it)
    os.close(from_it)
    assert exits_told(box, "e") == [(7, shim.EXIT_SOURCE_WAITID)]
    assert box.delete("e").exit_status == 7


def exits_told(box: ShimBox, exec_id: str) -> list[tuple[int, int]]:
    records = box.events(lambda record: record.HasField("exit") and record.exit.exec_id == exec_id)
    return [(each.exit.code, each.exit.source) for each in records if each.exit.exec_id == exec_id and each.exit.pid]


def test_input_that_was_not_read_yet_and_an_unfinished_line_of_a_terminal() -> None:
    """What is only in the shim's memory goes along: more than a pipe holds for an exec, half a line, the ring."""
    with KeptBox(
        ["sh", "-c", "printf 'half a '; while [ ! -e /end ]; do usleep 10000; done; echo line"], terminal=True
    ) as box:
        box.create(stdout=f"log://{box.folder}/log?format=json")
        box.start()
        wait_until(lambda: box.info().log_bytes >= 7, what="half a line")
        box.add_exec(
            "e",
            ["sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; md5sum"],
            stdin="attach:",
            stdout="attach:",
            stderr="attach:",
        )
        data, client = b"0123456789abcdef" * 10000, box.connect()
        stream = box.attach("e", client=client, stdin=True, output=True)
        box.start("e")
        stream.send(shim.AttachInput(stdin=data))
        client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=20)  # comes after it
        upgrade(box)
        box.call("CloseIO", task.CloseIORequest(id=box.id, exec_id="e", stdin=True))
        upgrade(box)
        again = box.attach("e", output=True, replay_bytes=1000)
        box.let_go()
        told = b""
        while (message := again.receive(timeout_s=20)) is not None:
            told += message.stdout

        with open(os.path.join(box.rootfs, "end"), "w", encoding="utf-8"):
            pass
        assert box.wait().exit_status == 0
        assert hashlib.md5(data).hexdigest().encode() in told
        assert [json.loads(line)["log"] for line in leaks.read(f"{box.folder}/log").splitlines()] == ["half a line\r\n"]


def test_older_code_waits_for_a_terminals_client_that_does_not_read(tmp_path: Path) -> None:
    """It would not read what was lifted from the terminal and has no room in the client's FIFO; newer code does."""
    os.mkfifo(tmp_path / "client")
    client = os.open(tmp_path / "client", os.O_RDWR | os.O_NONBLOCK)
    script = "while [ ! -e /go ]; do usleep 10000; done; seq 1 2000; while [ ! -e /end ]; do usleep 10000; done"
    lifted = -1
    try:
        with KeptBox(["sh", "-c", script], terminal=True) as box:
            older = CodeTree(box.folder, "0.0.9")
            older.edit("shim/resume.py", ', "lifts": 1', "")
            box.create(stdout=str(tmp_path / "client"))
            box.start()
            lifted = os.open(box.path("io", "init.lifted"), os.O_RDONLY | os.O_NONBLOCK)
            in_the_way = fill(client)
            box.let_go()
            wait_until(lambda: pipes.waiting_bytes(lifted), what="output to be lifted")
            why = refused(box, paths=older.paths, patience_s=5)  # which limits the check, too
            assert re.search(r"busy: \d+ bytes of init's terminal wait for its client", why)
            upgrade(box)
            assert pipes.waiting_bytes(lifted)
            expected = b"".join(b"%d\r\n" % number for number in range(1, 2001))
            seen = drain(client, in_the_way + len(expected))
            assert seen[in_the_way:] == expected
            upgrade(box, paths=older.paths)
            assert box.info().version == "0.0.9"
            with open(os.path.join(box.rootfs, "end"), "w", encoding="utf-8"):
                pass
            assert box.wait().exit_status == 0
    finally:
        os.close(client)
        if lifted >= 0:
            os.close(lifted)


def fill(fifo: int) -> int:
    """Write until there is no room; how much that was."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += os.write(fifo, b"x" * 4096)
    return count


def drain(fifo: int, count: int) -> bytes:
    seen = b""

    def is_all() -> bool:
        nonlocal seen
        with contextlib.suppress(BlockingIOError):
            seen += os.read(fifo, 65536)
        return len(seen) >= count

    wait_until(is_all, deadline_s=60, what="all of it")
    return seen


# --- exits and calls meanwhile


def test_exits_while_nobody_looks_are_exact(box: KeptBox) -> None:
    """The shim stands still right after the execve; everything that can end, ends."""
    trap = arm(box)
    box.create()
    box.start()
    box.add_exec("e", ["sh", "-c", "while [ ! -e /over ]; do usleep 10000; done; exit 9"])
    box.start("e")
    pid, exec_pid = box.state().pid, box.state("e").pid
    os.mkfifo(f"{trap}/upgrade.executed")
    asked = box.connect().open_stream(SHIM, "Upgrade", shim.UpgradeRequest(patience_ms=60000))
    waits = [box.connect().open_stream(TASK, "Wait", task.WaitRequest(id=box.id, exec_id=name)) for name in ("", "e")]
    wait_until(lambda: os.path.exists(f"{trap}/upgrade.executed.hit.{box.shim_pid}"), what="the execve")
    with open(os.path.join(box.rootfs, "over"), "w", encoding="utf-8"):
        pass
    wait_until(lambda: state_letter(exec_pid) == "Z", what="the exec to end")
    late = box.connect().open_stream(TASK, "State", task.StateRequest(id=box.id))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # heeded later; a default action would end it
        os.kill(box.shim_pid, signum)
    with open(f"{trap}/upgrade.executed.hit.{box.shim_pid}", "wb"):
        pass

    assert asked.receive(timeout_s=60).pause_us > 0
    assert late.receive(timeout_s=60).pid == pid
    assert waits[1].receive(timeout_s=60).exit_status == 9
    assert exits_told(box, "e") == [(9, shim.EXIT_SOURCE_WAITID)]
    assert "SIGTERM is ignored" in box.read("shim.log")
    box.let_go()
    assert waits[0].receive(timeout_s=60).exit_status == 42
    assert exit_of(box).source == shim.EXIT_SOURCE_WAITID


def state_letter(pid: int) -> str:
    return leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


def arm(box: ShimBox) -> str:
    """The folder in which a trap is laid."""
    trap = os.path.join(box.folder, "traps")
    os.mkdir(trap)
    box.environment |= {"SHIMD_SHIM_FAULTS": trap, "SHIMD_SHIM_FAULTS_ARMED": "yes-kill-me"}
    return trap


def test_calls_that_come_meanwhile_are_answered_each_once(box: KeptBox) -> None:
    box.create()
    box.start()
    over, failures, count = threading.Event(), [], [0]

    def ask() -> None:
        client = box.connect()
        while not over.is_set():
            try:
                client.call(TASK, "State", task.StateRequest(id=box.id), timeout_s=60)
                name = f"e{count[0]}"
                count[0] += 1
                client.call(TASK, "Exec", box.exec_request(name, ["true"]), timeout_s=60)
                client.call(TASK, "Start", task.StartRequest(id=box.id, exec_id=name), timeout_s=60)
                client.call(TASK, "Wait", task.WaitRequest(id=box.id, exec_id=name), timeout_s=60)
                client.call(TASK, "Delete", task.DeleteRequest(id=box.id, exec_id=name), timeout_s=60)
            except (StatusError, ConnectionLost, OSError) as error:
                failures.append(error)
                return

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(4):
            upgrade(box)
    finally:
        over.set()
        asker.join()
    assert failures == []
    assert count[0] >= 2
    sequence = [each.seq for each in box.events(lambda record: record.seq == box.info().journal_seq)]
    assert sequence == list(range(1, len(sequence) + 1))


# --- what is wrong


def test_a_program_that_is_not_there_or_nonsense(box: KeptBox) -> None:
    box.create()
    assert "No such file" in refused(box, python="/nowhere/python")
    assert "Permission denied" in refused(box, python="/etc/passwd")
    assert "cannot go on from here" in refused(box, python="/bin/false")
    assert "check says" in refused(box, python="/bin/true")
    assert "No module named" in refused(box, paths=["/nowhere"])
    with pytest.raises(StatusError, match="absolute"):
        upgrade(box, python="python3")


def test_code_that_cannot_read_the_state_or_hangs(box: KeptBox) -> None:
    """An unknown format is refused before anything is touched, be it of the state, the journal or the handover."""
    box.create()
    tree = CodeTree(box.folder, "9.2.0")
    before = box.read("state.json")
    tree.edit("shim/bundle.py", "STATE_VERSION = 1", "STATE_VERSION = 2")
    assert "the state is of version 1; 9.2.0 reads 2" in refused(box, paths=tree.paths)
    tree.edit("shim/bundle.py", "STATE_VERSION = 2", "STATE_VERSION = 1")
    tree.edit("shim/serving/journal.py", "\nVERSION = 1", "\nVERSION = 2")
    assert "the journal has version 1" in refused(box, paths=tree.paths)
    tree.edit("shim/serving/journal.py", "\nVERSION = 2", "\nVERSION = 1")
    tree.edit("shim/upgrade/handover.py", "\nVERSION = 1", "\nVERSION = 2")
    assert "the handover is of version 1" in refused(box, paths=tree.paths)
    tree.edit("shim/upgrade/handover.py", "\nVERSION = 2", "\nVERSION = 1")
    tree.edit("shim/streams/pumps.py", "def discard", "def discard(:")
    assert "SyntaxError" in refused(box, paths=tree.paths)
    tree.edit("shim/streams/pumps.py", "def discard(:", "import time; time.sleep(1000)\ndef discard")
    assert "within 1.5 s" in refused(box, paths=tree.paths, patience_s=1.5)
    assert box.read("state.json") == before
    assert box.start().pid


def test_code_that_fails_after_the_execve_hands_back(box: KeptBox) -> None:
    box.create()
    box.start()
    waits = box.wait_later()
    tree = CodeTree(box.folder, "9.3.0")
    tree.edit(
        "shim/recovery/takeover.py",
        "    container.oom_at = carried",
        "    raise RuntimeError('too new')\n    container.oom_at = carried",
    )
    assert "RuntimeError: too new" in refused(box, paths=tree.paths)
    tree.edit("shim/resume.py", '    carried["failed"] =', '    raise SystemExit(3)\n    carried["failed"] =')
    assert "SystemExit: 3" in refused(box, paths=tree.paths)
    assert "Wait" not in box.read("shim.log")
    box.let_go()

    assert waits.receive(timeout_s=20).exit_status == 42
    assert exit_of(box).source == shim.EXIT_SOURCE_WAITID


def test_code_that_dies_after_the_execve_has_a_successor(box: KeptBox) -> None:
    box.create()
    box.start()
    waits = box.wait_later()
    tree = CodeTree(box.folder, "9.4.0")
    tree.edit("shim/resume.py", '    carried["failed"] =', '    os._exit(3)\n    carried["failed"] =')
    with pytest.raises(StatusError, match="another took over"):
        upgrade(box, paths=tree.paths)
    assert box.info().version != "9.4.0"
    box.find_shim()
    box.let_go()

    assert waits.receive(timeout_s=20).exit_status == 42
    assert exit_of(box).code == 42


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_step(point: str) -> None:
    with KeptBox(WAITER) as box:
        trap = arm(box)
        pid = box.create().pid
        box.start()
        waits = box.wait_later()
        with open(f"{trap}/upgrade.{point}", "w", encoding="ascii"):
            pass
        dead = box.shim_pid
        try:
            upgrade(box)
        except (StatusError, ConnectionLost) as error:
            assert "another took over" in str(error)  # noqa: PT017 - it may as well be answered
        wait_until(lambda: os.path.exists(f"{trap}/upgrade.{point}.hit.{dead}"), what="the kill")
        wait_until(lambda: box.read("shim.pid") not in ("", str(dead)), what="a successor")
        assert box.state().pid == pid
        box.find_shim()
        box.let_go()
        assert waits.receive(timeout_s=20).exit_status == 42
        assert exit_of(box).code == 42


def test_busy_is_refused_and_what_is_under_way_ends_as_it_would(box: KeptBox) -> None:
    """A runtime call that takes long: nothing is cut short for an upgrade."""
    slow = os.path.join(box.folder, "slow")
    with open(slow, "w", encoding="ascii") as file:
        waiting = f"while [ ! -e {box.folder}/begin ]; do sleep 0.05; done"
        file.write(f'#!/bin/sh\ncase "$*" in *" start "*) {waiting};; esac\nexec runc "$@"\n')
    os.chmod(slow, 0o755)
    from ttrpc.api import runc

    box.create(options=runc.Options(root=box.runc_root, binary_name=slow))
    client = box.connect()
    started = client.open_stream(TASK, "Start", task.StartRequest(id=box.id))
    wait_until(lambda: "start" in children_of(box.shim_pid), what="the runtime")
    # On a crowded machine the new code may not be read in these two seconds, which is refused first.
    wait_until(lambda: "busy: under way is Start" in refused(box, patience_s=2), deadline_s=60, what="the reason")
    with open(f"{box.folder}/begin", "w", encoding="ascii"):
        pass
    assert upgrade(box).pause_us > 0
    assert started.receive(timeout_s=20).pid == box.state().pid


def children_of(pid: int) -> str:
    found = leaks.read(f"/proc/{pid}/task/{pid}/children").split()
    return " ".join(leaks.read(f"/proc/{child}/cmdline").replace("\0", " ") for child in found)


def test_a_deleted_container_is_not_worth_it(box: KeptBox) -> None:
    box.create()
    box.start()
    box.let_go()
    box.wait()
    box.delete()
    assert "about to end" in refused(box)
    box.shutdown()

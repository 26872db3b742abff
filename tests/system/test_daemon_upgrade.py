"""An upgrade of the daemon: nobody is refused, nothing is lost or done twice, and a bad program changes nothing.

SHIMD_TEST_UPGRADES says how many in a row under load (3; the promise is 20).
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.faults import ARMED, POINTS
from daemon.store import schema
from daemon.version import VERSION
from tests.support.callers import CALL_S, Callers, fresh
from tests.support.ctlbox import CtlBox
from tests.support.daemonbox import NAMESPACE, SHIMD, TASKS
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until
from ttrpc.api import events_service, process, shimd, tasks, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost

UPGRADES = int(os.environ.get("SHIMD_TEST_UPGRADES", "3"))
EVENTS = "containerd.services.events.v1.Events"
METADATA = {"containerd-namespace-ttrpc": NAMESPACE}


@pytest.fixture
def box() -> Iterator[CtlBox]:
    with CtlBox() as made:
        yield made


def upgrade(box: CtlBox, *words: str) -> "dict[str, Any]":
    """Upgrade by shimctl; the box has the new process then."""
    said: dict[str, Any] = json.loads(box.ctl.output("daemon", "upgrade", "--json", *words))
    box.daemon.upgraded(said["to_pid"])
    return said


def pid_of(box: CtlBox) -> int:
    assert box.daemon.daemon is not None
    return box.daemon.daemon.pid


def program(box: CtlBox, name: str, code: str) -> str:
    """An executable Python program in the box's folder."""
    path = f"{box.daemon.folder}/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable}\nimport os, sys, time\nsys.path.insert(0, {os.getcwd()!r})\n{code}\n")
    os.chmod(path, 0o755)
    return path


LATER = """\
from daemon.store import schema
from daemon import version, check, predecessor
check.VERSION = predecessor.VERSION = "9.9"
step = schema.Step("CREATE TABLE later (x TEXT) STRICT;", oldest_reader={oldest_reader})
schema.MIGRATIONS += (step,)
schema.VERSION += 1
from daemon.__main__ import main
{more}
sys.exit(main())
"""


def later(box: CtlBox, *, may_go_back: bool, more: str = "") -> str:
    """A release to come, whose store has one table more."""
    oldest_reader = schema.VERSION if may_go_back else schema.VERSION + 1
    return program(box, "later", LATER.format(oldest_reader=oldest_reader, more=more))


def here(box: CtlBox) -> str:
    """This release, as a program of its own."""
    return program(box, "here", "from daemon.__main__ import main\nsys.exit(main())")


# --- it works


def test_the_same_program_takes_over(box: CtlBox) -> None:
    """Another pid, the same containers; steps, version and the longest wait are told; the lock names the new one."""
    box.detached("web", "sleep", "1000")
    before = pid_of(box)
    done = box.ctl.run("daemon", "upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert [line.split()[0].rstrip(":") for line in told] == ["checked", "started", "ready", "handing", "upgraded"]
    assert re.search(rf"shimd \S+ → \S+, pid {before} → \d+; new connections waited \d+ ms at most", told[-1])
    info = box.daemon.info()
    assert info.pid != before
    box.daemon.upgraded(info.pid)
    with open(f"{box.daemon.root}/shimd.lock", encoding="ascii") as lock:
        assert lock.read() == f"{info.pid}\n"
    wait_until(lambda: not box.daemon.info().recovering, what="recovery")
    assert box.daemon.info().adopted == 1
    assert box.ctl.output("exec", "web", "echo", "hi") == "hi\n"


def test_a_dry_run_changes_nothing(box: CtlBox) -> None:
    """It says what would be; the same process serves on."""
    before = pid_of(box)
    said = box.ctl.output("daemon", "upgrade", "--dry-run")
    assert f"the store keeps its schema {schema.VERSION}" in said
    assert "nothing was changed" in said
    found = json.loads(box.ctl.output("daemon", "upgrade", "--dry-run", "--json", "--program", here(box)))
    assert (found["to_version"], found["schema"]) == (VERSION, schema.VERSION)
    assert box.daemon.info().pid == before
    assert not box.daemon.info().HasField("last_upgrade")


def test_the_supervisor_is_told_which_process_is_the_main_one(box: CtlBox) -> None:
    """By the old one before it goes, by the new one when it is ready."""
    said = upgrade(box)
    told = f"MAINPID={said['to_pid']}"
    box.daemon.wait_told(told)
    assert box.daemon.info().pid == said["to_pid"]


def test_a_kept_connection_goes_on_in_the_new_process(box: CtlBox) -> None:
    """Idle, in the middle of a request, with a Wait open, with events followed: its client does not notice."""
    box.daemon.run("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 7")
    with contextlib.ExitStack() as stack:
        idle, half, waiting, following = (
            stack.enter_context(BlockingClient.connect(box.daemon.address)) for _ in range(4)
        )
        before = idle.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S)
        stream = following.open_stream(SHIMD, "Events", shimd.EventsRequest(follow=True, all_namespaces=True))
        seen = [stream.receive(timeout_s=CALL_S).seq for _ in range(before.newest_event_seq)]
        outcome: list[int] = []
        waiter = threading.Thread(target=lambda: outcome.append(wait_c1(waiting)))
        waiter.start()
        box.daemon.disconnect()
        upgrade(box)
        after = idle.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S)
        assert after.pid == pid_of(box) != before.pid
        assert half.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S).pid == after.pid
        with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
            pass
        waiter.join(CALL_S)
        assert outcome == [7]
        newest = idle.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S).newest_event_seq
        while seen[-1] < newest:
            seen.append(stream.receive(timeout_s=CALL_S).seq)
        assert seen == list(range(1, newest + 1))


def wait_c1(client: BlockingClient) -> int:
    request = tasks.WaitRequest(container_id="c1")
    return int(client.call(TASKS, "Wait", request, timeout_s=CALL_S, metadata=METADATA).exit_status)


# --- under load


def publish(client: BlockingClient, number: int) -> None:
    event = wkt.any_of("t", str(number).encode())
    client.call(EVENTS, "Publish", events_service.PublishRequest(topic="/load/call", event=event), metadata=METADATA)


@pytest.mark.timeout(600)
def test_upgrades_in_a_row_under_load(box: CtlBox) -> None:
    """No connection refused, no call failed, no event lost or doubled, every follower goes on, the same containers."""
    daemon = box.daemon
    pids = {name: daemon.run(name, "sleep", "1000") for name in ("c1", "c2")}
    box.detached("web", "sh", "-c", "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); sleep 0.05; done")
    followers = {name: box.ctl.start(*words) for name, words in FOLLOWING.items()}
    attached = box.start("-i", "echo", "--", "sh", "-c", "while read x; do echo got $x; done; exit 6")
    assert attached.stdin is not None
    attached.stdin.write(b"one\n")
    read_until(_out(attached), b"got one\n")
    log = read_until(_out(followers["logs"]), b"line 0\n")
    daemon.disconnect()
    callers, gaps = Callers(daemon.address), []
    kept = [BlockingClient.connect(daemon.address) for _ in range(3)]
    sent: list[int] = []

    def publish_next() -> None:
        publish(kept[1], len(sent))
        sent.append(len(sent))

    try:
        callers.start("fresh", lambda: fresh(daemon.address))
        callers.start(
            "kept", lambda: kept[0].call(TASKS, "Get", tasks.GetRequest(container_id="c1"), metadata=METADATA)
        )
        callers.start("publish", publish_next)
        callers.start("shimctl", lambda: box.ctl.output("ps", "-a"))
        for _ in range(UPGRADES):
            gaps.append(upgrade(box)["gap_ms"])
    finally:
        callers.finish()
        for client in kept:
            client.close()
    assert callers.failures == []
    assert min(callers.counts[name] for name in ("fresh", "kept", "publish", "shimctl")) >= UPGRADES
    numbers = [int(event.event.value) for event in daemon.events("topic==/load/call")]
    assert numbers == sent
    wait_until(lambda: not daemon.info().recovering, what="recovery", deadline_s=CALL_S)
    assert {name: daemon.task(name).pid for name in pids} == pids
    attached.stdin.write(b"two\n")
    read_until(_out(attached), b"got two\n")
    code, _, err = finish(attached)
    assert (code, err) == (6, b"")
    box.ctl.output("kill", "web")
    assert finish(followers["wait"])[:2] == (137, b"137\n")
    log += finish(followers["logs"])[1]
    lines = [line.split()[1] for line in log.decode().splitlines()]
    assert lines == [str(number) for number in range(int(lines[-1]) + 1)]
    told = read_until(_out(followers["events"]), b"/tasks/exit container_id=web id=web")
    followers["events"].send_signal(signal.SIGINT)
    told += finish(followers["events"])[1]
    seqs = [int(line.split()[0]) for line in told.decode().splitlines()]
    assert seqs == list(range(1, len(seqs) + 1))
    print(json.dumps({"upgrades": UPGRADES, "calls": callers.counts, "gap_ms": [round(gap) for gap in gaps]}))  # noqa: T201


FOLLOWING = {
    "wait": ["wait", "web"],
    "logs": ["logs", "-f", "web"],
    "events": ["events", "--since", "0", "--follow", "-A"],
}


def _out(started: "subprocess.Popen[bytes]") -> int:
    assert started.stdout is not None
    return started.stdout.fileno()


# --- restarted by systemd


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_socket_that_systemd_keeps_refuses_nobody(number: int) -> None:
    """FDSTORE=1: who connects while no daemon is there waits for the next one; shimctl fails not once."""
    with CtlBox(environ={"FDSTORE": "4"}) as box:
        (fd,) = box.daemon.stored
        inode = os.stat(box.daemon.address).st_ino
        callers = Callers(box.daemon.address)
        callers.start("shimctl", lambda: box.ctl.output("ps", "-a"))
        callers.start("connect", callers.connect_only)
        try:
            for round_number in range(2):
                assert box.daemon.kill(number) in (0, -number)
                with BlockingClient.connect(box.daemon.address) as waiting:
                    box.daemon.start()
                    assert waiting.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S).pid == pid_of(box)
                before = callers.counts.get("shimctl", 0)
                wait_until(
                    lambda before=before: callers.failures or callers.counts.get("shimctl", 0) > before,  # type: ignore[misc]
                    what=f"shimctl after round {round_number}",
                    deadline_s=CALL_S,
                )
        finally:
            callers.finish()
        assert callers.failures == []
        assert os.stat(box.daemon.address).st_ino == inode
        assert box.daemon.stored == [fd]
        upgrade(box)
        assert os.stat(box.daemon.address).st_ino == inode


# --- schemas, both directions


def test_to_a_later_schema_and_back(box: CtlBox) -> None:
    """A later release migrates; this one can work with the outcome, and is told so beforehand."""
    box.detached("web", "sleep", "1000")
    new = later(box, may_go_back=True)
    said = box.ctl.output("daemon", "upgrade", "--dry-run", "--program", new)
    assert f"goes from {schema.VERSION} to {schema.VERSION + 1}" in said
    assert f"programs that know schema {schema.VERSION} or later can take it back" in said
    said = upgrade(box, "--program", new)
    assert (said["from_version"], said["to_version"]) == (VERSION, "9.9")
    assert schema.examine(f"{box.daemon.root}/shimd.db") == (schema.VERSION + 1, schema.VERSION)
    said = upgrade(box, "--program", here(box))
    assert said["to_version"] == VERSION
    assert schema.examine(f"{box.daemon.root}/shimd.db").schema == schema.VERSION + 1
    assert box.ctl.output("exec", "web", "echo", "hi") == "hi\n"


def test_no_way_back_is_said_before_anything_is_touched(box: CtlBox) -> None:
    """A schema that this release cannot read: its check refuses, and the later release serves on."""
    new = later(box, may_go_back=False)
    assert "there is no way back" in box.ctl.output("daemon", "upgrade", "--dry-run", "--program", new)
    upgrade(box, "--program", new)
    for words in ((), ("--dry-run",)):
        done = box.ctl.run("daemon", "upgrade", "--program", here(box), *words)
        assert done.returncode == 1
        assert f"has schema {schema.VERSION + 1}, this release knows up to {schema.VERSION}" in done.stderr
    assert box.daemon.info().pid == pid_of(box)
    check = subprocess.run([*box.daemon.command(), "--check"], capture_output=True, text=True, timeout=CALL_S)
    assert (check.returncode, f"has schema {schema.VERSION + 1}" in check.stderr) == (1, True)
    upgrade(box, "--program", new)
    box.daemon.kill()
    os.rename(schema.backup_path(f"{box.daemon.root}/shimd.db", schema.VERSION), f"{box.daemon.root}/shimd.db")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{box.daemon.root}/shimd.db{suffix}")
    box.daemon.start()


def test_a_store_migrated_by_one_that_dies_is_put_back(box: CtlBox) -> None:
    """The later release dies after it changed the store beyond this one's knowledge: the copy it made is taken."""
    box.detached("web", "sleep", "1000")
    more = "from daemon import faults\nfaults.point = lambda name: os._exit(9) if name == 'successor.loaded' else None"
    done = box.ctl.run("daemon", "upgrade", "--program", later(box, may_go_back=False, more=more))
    assert done.returncode == 1
    assert "the new program died: exit code 9" in done.stderr
    assert schema.examine(f"{box.daemon.root}/shimd.db") == (schema.VERSION, schema.VERSION)
    assert box.daemon.info().pid == pid_of(box)
    assert box.ctl.output("exec", "web", "echo", "hi") == "hi\n"


# --- programs that will not do

BAD = {
    "missing": (None, "cannot be started"),
    "refuses": ("sys.exit('shimd: not on this machine')", "refuses: not on this machine"),
    "is another program": ("print('hello')", "does not answer --check as shimd does"),
    "hangs in its check": ("time.sleep(1000)", "--check did not end within"),
    "dies at its start": ("if '--check=json' not in sys.argv: sys.exit(3)", "died at its start: exit code 3"),
    "hangs at its start": ("if '--check=json' not in sys.argv: time.sleep(1000)", "was not ready within"),
    "hangs with the store": (
        "from daemon import faults; faults.point = lambda name: time.sleep(1000 * (name == 'successor.loaded'))",
        "did not serve within",
    ),
    "dies with the store": (
        "from daemon import faults; faults.point = lambda at: os._exit(4) if at == 'successor.store_opened' else None",
        "the new program died: exit code 4",
    ),
    "dies when it has got everything": (
        "from daemon import faults; faults.point = lambda name: os._exit(5) if name == 'successor.committed' else None",
        "the new program died: exit code 5",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_program_that_will_not_do_changes_nothing(kind: str) -> None:
    """The reason is told, the same process serves on, waits and idle connections with it, and a good one follows."""
    code, words = BAD[kind]
    limits = "timeouts.upgrade_s = 3\ntimeouts.handover_s = 3" if kind.startswith("hangs") else ""
    with CtlBox(config=limits) as box:
        box.daemon.run("c1", "sleep", "1000")
        path = f"{box.daemon.folder}/nowhere"
        if code is not None:
            path = program(box, "bad", f"{code}\nfrom daemon.__main__ import main\nsys.exit(main())")
        box.daemon.disconnect()
        done = box.ctl.run("daemon", "upgrade", "--program", path)
        assert done.returncode == 1
        assert words in done.stderr
        info = box.daemon.info()
        assert info.pid == pid_of(box)
        wait_until(lambda: not box.daemon.info().recovering, what="recovery")
        assert box.daemon.task("c1").status == process.RUNNING
        box.daemon.disconnect()
        wait_until(lambda: upgraded(box), deadline_s=60, what="a good one to follow, within the same limits")
        assert box.daemon.task("c1").status == process.RUNNING


def upgraded(box: CtlBox) -> bool:
    """Whether an upgrade succeeds; on a crowded machine it may take longer than it is given."""
    with contextlib.suppress(AssertionError):
        return bool(upgrade(box))
    return False


def test_an_upgrade_that_is_interrupted_changes_nothing(box: CtlBox) -> None:
    """Ctrl-C while the new program starts: it is ended, the old one serves on."""
    path = program(
        box,
        "slow",
        "if '--check=json' not in sys.argv: time.sleep(1000)\nfrom daemon.__main__ import main\nsys.exit(main())",
    )
    process = box.ctl.start("daemon", "upgrade", "--program", path)
    said = read_until(_out(process), b"started: ")
    while not said.endswith(b"\n"):
        said += os.read(_out(process), 100)
    (pid,) = re.findall(rb"started: pid (\d+)", said)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, b""), out
    wait_until(lambda: not os.path.exists(f"/proc/{int(pid)}"), what="its end")
    assert box.daemon.info().pid == pid_of(box)
    upgrade(box)


# --- SIGKILL at each step


def armed(point: str) -> dict[str, str]:
    return {"SHIMD_FAULTS": f"{point}=kill", "SHIMD_FAULTS_ARMED": ARMED}


UPGRADE_POINTS = [point for point in POINTS if point.startswith(("upgrade.", "successor."))]


@pytest.mark.parametrize("point", UPGRADE_POINTS)
def test_one_daemon_is_left_or_can_be_started(point: str) -> None:
    """Whichever process dies, wherever: one serves, or none does and the next start is a clean one."""
    with CtlBox(environ=armed(point)) as box:
        pid = box.daemon.run("c1", "sleep", "1000")
        box.daemon.disconnect()
        before = pid_of(box)
        asked = box.ctl.start("--reconnect", "3", "daemon", "upgrade")
        code, _, _ = finish(asked)
        box.daemon.environ.clear()
        assert box.daemon.daemon is not None
        serving = pid_serving(box)
        if serving is None:
            wait_until(lambda: box.daemon.daemon.poll() is not None, what="the old one's end")  # type: ignore[union-attr]
            box.daemon.gone()
            box.daemon.start()
        elif serving != before:
            wait_until(lambda: box.daemon.daemon.poll() is not None, what="the old one's end")  # type: ignore[union-attr]
            box.daemon.daemon.wait()
            box.daemon.replaced(serving)
        assert (serving is None) == (point in LEAVE_NONE), serving
        if serving == before:
            assert code == 1
        wait_until(lambda: not box.daemon.info().recovering, what="recovery")
        assert box.daemon.task("c1").pid == pid


# Only one process is there, not yet or no longer two.
LEAVE_NONE = ("upgrade.checked", "upgrade.spawned", "successor.serving")


def pid_serving(box: CtlBox) -> int | None:
    """Who answers; None when nobody is there to answer."""
    try:
        return int(box.daemon.info().pid)
    except (ConnectionLost, ConnectionError, FileNotFoundError):
        return None

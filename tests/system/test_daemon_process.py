"""The daemon as a process: its command line, one per directory, its socket, its end, its disk full."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from daemon.__main__ import EXIT_CONFIG
from tests.support.daemonbox import CALL_S, SHIMD, TASKS, DaemonBox, refused, restart_labels
from tests.support.waiting import wait_until
from ttrpc.api import events_service, process, shimd, tasks, wkt
from ttrpc.blocking import BlockingClient
from ttrpc.errors import ConnectionLost, StatusError
from ttrpc.status import Code


def shimd_command(*arguments: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **(environ or {})})


# --- the command line


def test_config_commands(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The printed default passes the check; a mistake is named with its line and exit code 1; the unit is printed."""
    folder = tmp_path_factory.mktemp("config")
    default = shimd_command("config", "default")
    good = folder / "good.toml"
    good.write_text(default.stdout)
    assert shimd_command("config", "check", str(good)).stdout == f"{good}: ok\n"
    bad = folder / "bad.toml"
    bad.write_text("[recovery]\nparalel = 3\n")
    done = shimd_command("config", "check", str(bad))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"shimd: {bad}:2: recovery.paralel: no such key in [recovery]; did you mean parallel?\n"
    assert "KillMode=process" in shimd_command("config", "unit").stdout
    assert shimd_command("version").stdout.startswith("shimd ")
    assert "config" in shimd_command("--help").stdout
    assert shimd_command("nonsense").returncode == 2


def test_what_cannot_start_says_why_and_exits_with_1_or_78(short_dir: str) -> None:
    """A path that is no directory, a socket path that is taken; 78 where a new try would find the same: a fault point
    that is not there, a directory that cannot be used.
    """
    options = ["--root", f"{short_dir}/root", "--state", f"{short_dir}/state"]
    with open(f"{short_dir}/file", "w", encoding="utf-8"):
        pass
    done = shimd_command("run", "--root", f"{short_dir}/file/x", "--state", f"{short_dir}/state")
    assert (done.returncode, f"{short_dir}/file" in done.stderr) == (1, True)
    done = shimd_command("run", *options, "--address", f"{short_dir}/file")
    assert done.returncode == 1
    assert "is no socket" in done.stderr
    faults = {"SHIMD_FAULTS": "no.such=kill", "SHIMD_FAULTS_ARMED": "yes-kill-me"}
    done = shimd_command("run", *options, environ=faults)
    assert done.returncode == EXIT_CONFIG
    assert "no.such" in done.stderr
    done = shimd_command("run", "--root", f"{short_dir}/root", "--state", "/" + "x" * 60)
    assert done.returncode == EXIT_CONFIG
    assert "at most 40 bytes" in done.stderr


# --- one per directory


def test_a_second_daemon_is_refused(box: DaemonBox) -> None:
    """On the same state directory or the same root directory; the first one is named and goes on."""
    assert box.daemon is not None
    pid = str(box.daemon.pid)
    for root, state in ((box.root, box.state), (box.root, f"{box.folder}/other"), (f"{box.folder}/other", box.state)):
        done = shimd_command("run", "--root", root, "--state", state, "--address", f"{box.folder}/other.sock")
        assert done.returncode == 1
        assert f"in use by shimd with pid {pid}" in done.stderr
    assert str(box.info().pid) == pid


def test_a_daemon_starts_where_one_was_killed(box: DaemonBox) -> None:
    """The locks died with it, its socket is stale and is replaced."""
    assert stat.S_IMODE(os.stat(box.address).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(box.state).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{box.root}/shimd.db").st_mode) == 0o600
    before = os.stat(box.address).st_ino
    box.kill()
    assert os.path.exists(box.address)
    box.start()
    assert os.stat(box.address).st_ino != before or box.info().pid
    assert box.info().state_dir == box.state


def test_a_socket_somebody_serves_is_not_taken(short_dir: str) -> None:
    """Not ours to remove."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{short_dir}/sock")
        other.listen()
        done = shimd_command(
            "run", "--root", f"{short_dir}/r", "--state", f"{short_dir}/s", "--address", f"{short_dir}/sock"
        )
    assert done.returncode == 1
    assert "served by another program" in done.stderr


def test_a_peer_of_another_user_is_turned_away(box: DaemonBox) -> None:
    """Whatever the socket's mode says: ttrpc has no other authentication."""
    os.chmod(box.state, 0o711)
    os.chmod(box.address, 0o666)
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.settimeout(10); s.connect(sys.argv[1]); sys.exit(0 if s.recv(1) == b'' else 1)"
    )
    # From within the directory: the folders above it are private to the tests.
    command = ["python3", "-S", "-c", code, os.path.basename(box.address)]
    assert subprocess.run(command, timeout=20, cwd=box.state).returncode == 0


# --- supervised by systemd


def test_socket_activation(short_dir: str) -> None:
    """A socket handed over (LISTEN_FDS) is served and left in place at the end; nothing is lost between daemons."""
    path = f"{short_dir}/given.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);" \
            "os.environ['LISTEN_PID'] = str(os.getpid()); os.environ['LISTEN_FDS'] = '1';" \
            "os.execv(sys.executable, [sys.executable, '-m', 'daemon', 'run', *sys.argv[2:]])"  # fmt: skip
        for _ in range(2):
            # Before the daemon is there: the connection waits in the backlog.
            with BlockingClient.connect(path, timeout_s=5) as client:
                command = [sys.executable, "-c", code, str(listener.fileno())]
                command += ["--root", f"{short_dir}/r", "--state", f"{short_dir}/s"]
                with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL) as daemon:
                    info = client.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=20)
                    assert info.pid == daemon.pid
                    daemon.terminate()
                    assert daemon.wait(timeout=20) == 0
            assert os.path.exists(path)
        assert not os.path.exists(f"{short_dir}/s/shimd.sock.ttrpc")


def test_the_watchdog_is_fed_while_the_loop_turns() -> None:
    """WATCHDOG=1 well within the interval, and STOPPING=1 at the end."""
    with DaemonBox(environ={"WATCHDOG_USEC": "300000"}) as box:
        for _ in range(3):
            box.wait_told("WATCHDOG=1")
        assert box.daemon is not None
        box.daemon.send_signal(signal.SIGTERM)
        box.wait_told("STOPPING=1")
        assert box.gone() == 0


# --- its end


def test_sigterm_leaves_containers_and_answers_what_is_under_way(box: DaemonBox) -> None:
    """A create under way is finished; a Wait is cut, not answered; exit code 0; the container runs on."""
    pid = box.run("c1", "sleep", "1000")
    box.create_container("c2", "sleep", "1000")
    outcome: list[object] = []

    def create() -> None:
        with BlockingClient.connect(box.address) as client:
            metadata = {"containerd-namespace-ttrpc": "default"}
            request = tasks.CreateTaskRequest(container_id="c2")
            outcome.append(client.call(TASKS, "Create", request, timeout_s=20, metadata=metadata).pid)

    def wait() -> None:
        with BlockingClient.connect(box.address) as client:
            metadata = {"containerd-namespace-ttrpc": "default"}
            try:
                client.call(TASKS, "Wait", tasks.WaitRequest(container_id="c1"), timeout_s=20, metadata=metadata)
            except (ConnectionLost, StatusError) as error:
                outcome.append(error)

    threads = [threading.Thread(target=wait), threading.Thread(target=create)]
    for thread in threads:
        thread.start()
    wait_until(lambda: "c2" in [one.container_id for one in shims(box)], what="the create to be under way")
    began = time.monotonic()
    assert box.kill(signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, int) for one in outcome) == 1
    assert sum(isinstance(one, ConnectionLost) for one in outcome) == 1
    assert not os.path.exists(box.address)
    assert os.path.exists(f"/proc/{pid}")
    box.start()
    assert box.task("c1").status == process.RUNNING
    assert box.task("c2").status == process.CREATED


def shims(box: DaemonBox) -> "list[shimd.ShimRecord]":
    return list(box.call(SHIMD, "Shims", shimd.ShimsRequest()).shims)


def test_sigint_is_as_good(box: DaemonBox) -> None:
    """Ctrl-C in a terminal ends the daemon only."""
    pid = box.run("c1", "sleep", "1000")
    assert box.kill(signal.SIGINT) == 0
    assert os.path.exists(f"/proc/{pid}")


# --- a full disk


@pytest.fixture
def small_root() -> Iterator[DaemonBox]:
    """A box whose root directory is a tmpfs of 2 MiB."""
    made = DaemonBox(autostart=False)
    os.makedirs(made.root)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", made.root], check=True)
    try:
        made.start()
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{made.root}/ballast")
        try:
            made.close()
        finally:
            subprocess.run(["umount", made.root], check=True)
            os.rmdir(made.root)
            os.rmdir(made.folder)


def fill(box: DaemonBox) -> None:
    with open(f"{box.root}/ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def fill_store(box: DaemonBox) -> None:
    """Also the room the store has already taken: until it refuses."""
    event = wkt.any_of("t", os.urandom(30000))
    request = events_service.PublishRequest(topic="/fill/up", event=event)
    while True:
        try:
            box.call("containerd.services.events.v1.Events", "Publish", request)
        except StatusError as error:
            if error.code != Code.RESOURCE_EXHAUSTED:
                raise
            return


def test_a_full_disk_is_said_clearly_and_loses_nothing(small_root: DaemonBox) -> None:
    """Writes are refused, reads go on, an exit waits in its shim and is stored once there is room."""
    box = small_root
    box.create_container("c1", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; exit 42")
    box.create_task("c1", log=False)
    box.start_task("c1")
    box.create_container("c2", "sleep", "1000")
    wait_until(lambda: box.topics("c1") == ["/tasks/create", "/tasks/start"], what="its start to be stored")
    fill(box)
    fill_store(box)
    with refused(Code.RESOURCE_EXHAUSTED, "no space left"):
        box.create_container("c3", "true")
    with refused(Code.RESOURCE_EXHAUSTED, "no space left"):
        box.create_task("c2", log=False)
    assert not os.path.exists(box.bundle("c2"))
    assert box.task("c1").status == process.RUNNING
    with open(f"{box.rootfs}/go", "w", encoding="utf-8"):
        pass
    wait_until(lambda: box.task("c1").status == process.STOPPED, what="its end")
    assert box.task("c1").exit_status == 42
    wait_until(lambda: "cannot be stored" in box.shim("c1").reason, what="the shim to be shown as waiting")
    assert box.exits("c1") == []
    os.unlink(f"{box.root}/ballast")
    assert box.wait("c1").exit_status == 42
    assert box.topics("c1") == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    box.create_task("c2", log=False)
    box.restart()
    assert box.task("c2").status == process.CREATED
    assert [record.code for record in box.exits("c1")] == [42]


FILLER = """\
#!{python}
import contextlib, os, sys
sys.path.insert(0, {source!r})
from daemon import faults
from daemon.__main__ import main

def fill_up(at):
    if at == "successor.taken":
        with open({ballast!r}, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 512)
        os._exit(4)

faults.point = fill_up
sys.exit(main())
"""


def test_a_disk_that_is_full_when_an_upgrade_has_failed_ends_no_daemon(small_root: DaemonBox) -> None:
    """Nobody has the store then, and others take its room: the old one waits, and so do its callers."""
    box = small_root
    init_pid = box.run("c1", "sleep", "1000")
    ballast, path = f"{box.root}/ballast", f"{box.folder}/filler"
    with open(path, "w", encoding="utf-8") as file:
        file.write(FILLER.format(python=sys.executable, source=os.getcwd(), ballast=ballast))
    os.chmod(path, 0o755)
    assert box.daemon is not None
    before = box.daemon.pid
    with contextlib.suppress(ConnectionLost):
        list(box.client.open_stream(SHIMD, "Upgrade", shimd.UpgradeRequest(id="u1", program=path), timeout_s=CALL_S))
    wait_until(lambda: "cannot be opened again" in box.log(), what="the old one to have tried")
    os.unlink(ballast)
    box.disconnect()
    info = box.info()
    assert (info.pid, info.last_upgrade.id, info.last_upgrade.done) == (before, "u1", False)
    assert box.task("c1").pid == init_pid


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    """`shimd 2>&1 | less`, a journal that hangs: the daemon serves on, and says later what is missing."""
    box = DaemonBox(autostart=False)
    os.mkfifo(box.log_path)
    reader = os.open(box.log_path, os.O_RDWR | os.O_NONBLOCK)
    try:
        box.start()
        for _ in range(1000):
            box.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=10)
        os.read(reader, 1 << 20)
        box.info()
        assert b"lines of it are lost" in os.read(reader, 1 << 20)
        os.unlink(box.log_path)
        open(box.log_path, "wb").close()
    finally:
        box.close()
        os.close(reader)


def test_ordinary_lives_leave_nothing_in_the_log_that_would_worry_anybody() -> None:
    with DaemonBox() as box:
        for number in range(10):
            name = f"c{number}"
            box.run(name, "true")
            assert box.wait(name).exit_status == 0
            box.delete_task(name)
        told = [line for line in box.log().splitlines() if " WARNING " in line or " ERROR " in line]
        assert told == []
        assert "by policy" not in box.log()


def test_logs_in_json_carry_what_is_being_done() -> None:
    """One object per line, with namespace, id and call."""
    with DaemonBox(config='log.format = "json"') as box:
        box.run("c1", "true", labels=restart_labels("no"))
        box.wait("c1")
        lines = [json.loads(line) for line in box.log().splitlines()]
    starts = [line for line in lines if line.get("call") == "Start"]
    assert starts
    assert {(line["ns"], line["id"]) for line in starts} == {("default", "c1")}
    assert {line["level"] for line in lines} <= {"debug", "info"}

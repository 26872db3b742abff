"""The reaper and the driver of runc on real processes, in a process of their own that is a subreaper."""

import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from shim.core import kernel
from shim.task import runc
from shim.core.loop import Loop
from shim.core.reaper import NotOurChild, Reaper
from shim.core.steps import DeadlinePassed, Exited, Sleep, Spawn
from shim.core.wakeup import Wakeup
from ttrpc.errors import StatusError

kernel.become_subreaper()
strays = []
loop = Loop()
reaper = loop.reaper = Reaper(dict(os.environ, NOTIFY_SOCKET="/x"), lambda pid, status: strays.append((pid, status)))
wakeup = Wakeup(loop, {signal.SIGCHLD: reaper.reap})

def play(handler):
    ended = []
    def done(value, error):
        ended.append((value, error))
        loop.stop()
    loop.spawn(handler, done)
    if not ended:
        loop.run()
    value, error = ended[0]
    if error is not None:
        raise error
    return value

def sh(script, **more):
    pid = yield Spawn(["sh", "-c", script], **more)
    return (yield Exited(pid, deadline_s=10))
"""


def run(script: str, folder: str = "") -> str:
    """Run a script after the prelude; its asserts are the test."""
    code = PRELUDE + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_statuses_are_those_of_wait() -> None:
    run("""
        assert os.waitstatus_to_exitcode(play(sh("exit 7"))) == 7
        assert os.waitstatus_to_exitcode(play(sh("kill -9 $$"))) == -9
        assert play(sh("true")) == 0
    """)


def test_children_get_null_streams_default_signals_and_no_fds_of_ours() -> None:
    out = run("""
        read_fd, write_fd = os.pipe()
        os.dup2(read_fd, 77)  # inheritable on purpose: dup2's default in C, not in Python
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        keep = os.dup(1)
        script = "readlink /proc/self/fd/0; ls /proc/self/fd; grep SigIgn /proc/self/status; echo [$NOTIFY_SOCKET]"
        assert play(sh(script, stdio=(None, keep, None))) == 0
    """)
    lines = out.split()
    assert lines[0] == "/dev/null"
    assert lines[-1] == "[]"
    ignored = int(lines[lines.index("SigIgn:") + 1], 16)
    assert not ignored & (1 << 12), "SIGPIPE is not ignored in children"


def test_process_group_is_killed_whole() -> None:
    run("""
        def handler():
            pid = yield Spawn(["sh", "-c", "sleep 1000 & sleep 1000"])
            while len(open(f"/proc/{pid}/task/{pid}/children").read().split()) < 2:
                yield Sleep(0.01)
            reaper.kill_group(pid)
            status = yield Exited(pid, deadline_s=5)
            assert os.WTERMSIG(status) == 9
            while not strays:  # the other sleep is reparented to us
                yield Sleep(0.01)
        play(handler())
    """)


def test_orphan_is_kept_while_held_then_adopted_exactly() -> None:
    """Its pid is known only after the one who made it ended, as with `runc exec --detach`."""
    run("""
        def handler():
            read_fd, write_fd = os.pipe()
            reaper.hold()
            pid = yield Spawn(["sh", "-c", "sh -c 'sleep 0.05; exit 5' & echo $!"], stdio=(None, write_fd, None))
            yield Exited(pid, deadline_s=5)
            orphan = int(os.read(read_fd, 100))
            while open(f"/proc/{orphan}/stat").read().split()[2] != "Z":
                yield Sleep(0.01)
            assert strays == []
            told = []
            reaper.adopt(orphan).subscribe(told.append)
            assert kernel.open_pidfd(orphan) is not None
            assert kernel.start_ticks(orphan) > 0
            reaper.release()
            assert [os.waitstatus_to_exitcode(status) for status in told] == [5]
            reaper.take(orphan)
            assert not os.path.exists(f"/proc/{orphan}")
        play(handler())
    """)


def test_zombie_of_an_adopted_child_stays_until_it_is_taken() -> None:
    """Whoever is the next subreaper would get it, and its status, with our death. Others behind it are not kept."""
    run("""
        def handler():
            read_fd, write_fd = os.pipe()
            reaper.hold()
            # They outlive their parent, which might reap them itself otherwise.
            wait = "while kill -0 '$$' 2>/dev/null; do sleep 0.01; done"
            script = f"sh -c '{wait}; exit 5' & echo $!; sh -c '{wait}; exit 6' &"
            pid = yield Spawn(["sh", "-c", script], stdio=(None, write_fd, None))
            yield Exited(pid, deadline_s=5)
            orphan = int(os.read(read_fd, 100))
            told = []
            reaper.adopt(orphan).subscribe(told.append)
            reaper.release()
            while not told:
                yield Sleep(0.01)
            for code in range(3):
                assert os.waitstatus_to_exitcode((yield from sh(f"exit {code}"))) == code
            assert open(f"/proc/{orphan}/stat").read().split()[2] == "Z"
            reaper.take(orphan)
            reaper.take(orphan)
            while not strays:
                yield Sleep(0.01)
            assert [os.waitstatus_to_exitcode(status) for status in told] == [5]
            assert [os.waitstatus_to_exitcode(status) for _, status in strays] == [6]
            assert not os.path.exists(f"/proc/{orphan}")
        play(handler())
    """)


def test_one_that_is_taken_before_it_ends_is_reaped_then() -> None:
    run("""
        def handler():
            read_fd, write_fd = os.pipe()
            reaper.hold()
            pid = yield Spawn(["sh", "-c", "sleep 1000 & echo $!"], stdio=(None, write_fd, None))
            yield Exited(pid, deadline_s=5)
            orphan = int(os.read(read_fd, 100))
            ended = reaper.adopt(orphan)
            reaper.release()
            reaper.take(orphan)
            os.kill(orphan, 9)
            while not ended.fired:
                yield Sleep(0.01)
            assert not os.path.exists(f"/proc/{orphan}")
        play(handler())
    """)


def test_known_children_are_told_while_strangers_are_held() -> None:
    run("""
        def handler():
            reaper.hold()
            pid = yield Spawn(["sh", "-c", "sh -c 'sleep 0.05; exit 5' & :"])
            yield Exited(pid, deadline_s=5)
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                yield Sleep(0.01)  # what it left is the first the kernel shows us from now on
            for code in range(3):
                assert os.waitstatus_to_exitcode((yield from sh(f"exit {code}"))) == code
            assert strays == []
            reaper.release()
            assert [os.waitstatus_to_exitcode(status) for _, status in strays] == [5]
        play(handler())
    """)


def test_only_children_can_be_adopted() -> None:
    run("""
        refused = []
        for pid in (1, os.getpid(), 2 ** 22):
            try:
                reaper.adopt(pid)
            except NotOurChild:
                refused.append(pid)
        assert refused == [1, os.getpid(), 2 ** 22]
    """)


def test_many_exits_at_once_are_each_told() -> None:
    run("""
        def handler(code):
            pid = yield Spawn(["sh", "-c", f"exit {code}"])
            return (yield Exited(pid))
        results = {}
        def done(code):
            def note(value, error):
                results[code] = os.waitstatus_to_exitcode(value)
                if len(results) == 200:
                    loop.stop()
            return note
        for code in range(200):
            loop.spawn(handler(code), done(code))
        loop.run()
        assert results == {code: code for code in range(200)}
    """)


def test_missing_program_is_an_error_of_the_step() -> None:
    run("""
        def handler():
            try:
                yield Spawn(["no-such-program"])
            except FileNotFoundError:
                return "told"
        assert play(handler()) == "told"
    """)


def test_runtime_that_hangs_is_killed_at_its_deadline(tmp_path: Path) -> None:
    """With whatever it started in its process group; the words say which runtime and how long."""
    run(
        """
        folder = sys.argv[1]
        hung = os.path.join(folder, "hung")
        with open(hung, "w") as file:
            file.write(f"#!/bin/sh\\nsleep 1000 & echo $! > {folder}/pid\\nwait\\n")
        os.chmod(hung, 0o755)
        made = runc.Runc(folder, "c1", binary=hung, root=folder)
        try:
            play(made.call(reaper, "state", "state", "c1", deadline_s=0.3))
        except StatusError as error:
            assert error.message == f"OCI runtime state failed: {hung} did not end within 0.3 s and was killed", error
        else:
            raise AssertionError
        helper = int(open(f"{folder}/pid").read())
        def until_gone():
            while os.path.exists(f"/proc/{helper}"):
                yield Sleep(0.01)
        play(until_gone())
    """,
        str(tmp_path),
    )


def test_runtimes_output_and_input(tmp_path: Path) -> None:
    run(
        """
        folder = sys.argv[1]
        echo = os.path.join(folder, "echo")
        with open(echo, "w") as file:
            file.write("#!/bin/sh\\ncat; echo noise >&2; [ $# -eq 7 ] || exit 3\\n")
        os.chmod(echo, 0o755)
        made = runc.Runc(folder, "c1", binary=echo, root=folder)
        assert play(made.call(reaper, "x", "x", deadline_s=5, input_bytes=b"hello")) == b"hello"
        before = len(os.listdir("/proc/self/fd"))
        try:
            play(made.call(reaper, "x", "x", "y", deadline_s=5))
        except StatusError as error:
            assert error.message == "OCI runtime x failed: noise", error
        else:
            raise AssertionError
        assert len(os.listdir("/proc/self/fd")) == before
    """,
        str(tmp_path),
    )


def test_pid_identity() -> None:
    run("""
        assert kernel.start_ticks(os.getpid()) == kernel.start_ticks(os.getpid())
        assert len(kernel.boot_id()) == 36
        try:
            kernel.start_ticks(2 ** 22)
        except ProcessLookupError:
            pass
        else:
            raise AssertionError
    """)

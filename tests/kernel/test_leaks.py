"""The leak check finds what it is there to find, and removes it; each test cleans up by the very function it checks."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import prctl
import pytest

from tests.support import leaks
from tests.support.source import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Places


@pytest.fixture
def session() -> leaks.Session:
    """The session these tests run in, seen as one that has the machine to itself."""
    folder = os.environ["TMPDIR"]
    return leaks.Session(os.environ[leaks.MARK], folder, is_alone=True)


@pytest.fixture
def found_after(session: leaks.Session) -> Iterator[Callable[[Callable[[], object]], leaks.Leaks]]:
    """Do something and tell what it left."""
    made: list[leaks.Leaks] = []

    def act(do: Callable[[], object]) -> leaks.Leaks:
        before = leaks.look(session)
        do()
        made.append(leaks.compare(session, before, leaks.look(session)))
        return made[-1]

    yield act
    for found in made:
        leaks.clear(session, found)


def test_a_daemonised_process_is_known_by_its_environment(found_after, session) -> None:
    """A grandchild in its own session, fallen to another parent, is still ours."""

    def daemonise() -> None:
        subprocess.run(["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &"], check=True)
        wait_until(lambda: "sleep 1000" in leaks.processes(session).values(), what="the grandchild")

    found = found_after(daemonise)

    assert list(found.processes.values()) == ["sleep 1000"]


def test_a_child_nobody_waited_for_is_told(found_after) -> None:
    def leave_zombie() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT), what="the child's end")

    found = found_after(leave_zombie)

    assert list(found.processes.values()) == ["a child nobody waited for"]


def test_a_mount_and_its_folder_are_told(found_after) -> None:
    path = tempfile.mkdtemp(prefix="m")

    found = found_after(lambda: subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True))

    assert [path] == found.mounts
    leaks.clear(leaks.Session("", os.environ["TMPDIR"], is_alone=True), found)
    os.rmdir(path)


def test_cgroups_are_told_with_all_their_children(found_after, session: leaks.Session) -> None:
    root = leaks.cgroup_roots()[0]
    path = os.path.join(root, session.tag, "inner")

    found = found_after(lambda: os.makedirs(path))

    assert [os.path.dirname(path), path] == found.cgroups


def test_an_open_descriptor_is_told(found_after) -> None:
    opened: list[int] = []

    found = found_after(lambda: opened.append(os.open("/dev/null", os.O_RDONLY)))

    assert [f"{opened[0]} → /dev/null"] == found.fds
    os.close(opened[0])


def test_what_would_change_the_life_of_later_tests_is_told_and_undone(found_after, session) -> None:
    """A subreaper gets orphans it never waits for, and what it starts may wait for signals that are blocked."""

    def change() -> None:
        prctl.set_child_subreaper(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    try:
        found = found_after(change)
        leaks.clear(session, found)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    assert found.traits == ["blocks the signals 0000000000010000", "is a child subreaper"]
    assert not prctl.get_child_subreaper()


def test_an_interrupted_run_ends_quietly(short_dir: str) -> None:
    """A person's Ctrl-C leaves the test where it stands: that is no leak to be told with a traceback."""
    path = f"{short_dir}/test_it.py"
    with open(path, "w", encoding="ascii") as file:
        file.write(
            "import os, signal, tempfile\n"
            "def test_it():\n    tempfile.mkdtemp()\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        )
    words = ["-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", short_dir, path]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert "KeyboardInterrupt" in done.stdout
    assert "left behind" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_clearing_ends_what_was_found(session: leaks.Session) -> None:
    before = leaks.look(session)
    child = subprocess.Popen(["sleep", "1000"])
    path = tempfile.mkdtemp(prefix="m")

    leaks.remove(session, before, leaks.compare(session, before, leaks.look(session)))

    assert not leaks.compare(session, before, leaks.look(session))
    assert not os.path.exists(path)
    child.returncode = -9  # reaped by clear, behind the object's back


def test_a_killed_session_is_swept_by_the_next_one() -> None:
    """Nobody holds its lock any more."""
    folder = a_session("dead")

    assert [folder] == leaks.sweep_stale()
    assert not os.path.exists(folder)


def test_a_living_session_is_not_swept() -> None:
    """Also one of another PID namespace: its lock tells."""
    folder = a_session("living")
    with open(os.path.join(folder, leaks.OWNER), encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leaks.sweep_stale() == []
    assert leaks.sweep_stale() == [folder]


def a_session(name: str) -> str:
    """The folder of a run."""
    folder = os.path.join(os.environ["TMPDIR"], leaks.FOLDER_PREFIX + name)
    os.mkdir(folder)
    with open(os.path.join(folder, leaks.OWNER), "w", encoding="ascii") as file:
        file.write(f"run-of-the-{name}")
    return folder


def test_workers_see_nothing_of_each_other_and_what_each_leaves_is_told(short_dir: str) -> None:
    """Two files on two workers. One starts what outlives it, the other waits for that, and never sees it.

    The folders that each has of its own are on the machine afterwards only if they were before.
    """
    for name, text in WORKERS.items():
        with open(f"{short_dir}/{name}", "w", encoding="ascii") as file:
            file.write(text.replace("PLACE", short_dir))
    words = ["-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
    machine = 'mount -t tmpfs tmpfs /run; mkdir /run/netns; c=0; "$@" || c=$?; echo /run has: $(ls /run); exit $c'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", machine, "sh",
         sys.executable, *words, "--rootdir", short_dir, short_dir],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "2 passed, 1 error" in done.stdout
    assert "left behind:\nprocess" in done.stdout
    assert "sleep 4242" in done.stdout
    assert "left behind by the whole run" in done.stdout, "the fixture of a module is looked at in the end"
    remains = set(done.stdout.rpartition("/run has:")[2].split())
    assert remains - {"mount"} == {"netns"}, "mount(8) has a file of its own in /run/mount"


def test_folders_that_workers_mount_on_stay_for_a_run_beside(short_dir: str) -> None:
    """Whoever made them takes them away, unless another run has them, or they are in use by now."""
    mine, used, there = paths = [f"{short_dir}/{name}" for name in ("mine", "used", "there")]
    os.mkdir(there)
    first = Places(paths)
    beside = Places(paths)
    first.close()
    assert [path for path in paths if os.path.isdir(path)] == paths
    beside.close()
    os.rmdir(mine)
    os.rmdir(used)

    alone = Places(paths)
    os.mkdir(f"{used}/by-a-program")
    alone.close()
    assert [path for path in paths if os.path.isdir(path)] == [used, there]


WORKERS = {
    "test_a.py": """
import os, pytest, subprocess, tempfile
@pytest.fixture(scope="module")
def kept():
    return subprocess.Popen(["setsid", "-f", "sleep", "4243"]).wait()
def test_it(kept):
    subprocess.run(["setsid", "-f", "sleep", "4242"], check=True)
    open("PLACE/there", "w").close()
""",
    "test_b.py": """
import os
from tests.support.waiting import wait_until
from tests.support.workers import Places
def test_it():
    wait_until(lambda: os.path.exists("PLACE/there"), what="the other")
    commands = [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()]
    assert not [each for each in commands if "424" in each]
    assert len(commands) < 8
""",
}

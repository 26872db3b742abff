"""A keeper of one test's own, and bundles whose `start` asks it.

with KeeperBox() as keeper, keeper.shim() as box:
    box.launch(); assert keeper.is_parent_of(box.shim_pid)
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from shim.keeper import rehearsal, spawn, template
from tests.support import leaks
from tests.support.shimbox import NAMESPACE, ShimBox
from tests.support.waiting import wait_until
from ttrpc.blocking import BlockingClient

SERVING = re.compile(r'msg="serving at \S+ pid=(\d+);')
ADOPTED = re.compile(r'msg="looking after shim (\d+) of [^"]*" id=keeper-(\d+)')
BEGINS = spawn.command("")[4].rsplit("; ", 2)[1].encode()  # in the title of one that is importing still
READY = re.compile(r'msg="template \d+ is ready: [^"]*" id=keeper-(\d+)')


class KeeperBox:
    """Owns the keepers' directory, every keeper in it, their cgroup, and the bundles of `bundle`; close ends all."""

    def __init__(self, *, python_path: str = "") -> None:
        self.folder = tempfile.mkdtemp(prefix="k")
        self.directory = os.path.join(self.folder, "k")
        run = os.path.basename(os.environ.get("TMPDIR", self.folder))
        self.cgroup = f"{run}-{os.path.basename(self.folder)}"
        self.environment = {
            "SHIMD_KEEPER": self.directory,
            "SHIMD_KEEPER_CGROUP": self.cgroup,
            "SHIMD_SOCKET_DIR": os.path.join(self.folder, "s"),
            **({"PYTHONPATH": python_path} if python_path else {}),
        }
        self.started: list[Bundle] = []

    # --- shims

    def shim(self, *args: Any, **options: Any) -> ShimBox:
        """A box whose `start` asks this keeper."""
        environment = {**self.environment, **options.pop("environment", {})}
        environment.pop("SHIMD_SOCKET_DIR")
        return ShimBox(*args, environment=environment, **options)

    def bundle(self, name: str) -> "Bundle":
        """Less than a box: a directory that is enough for a shim without a container."""
        bundle = Bundle(self, name)
        self.started.append(bundle)
        return bundle

    # --- the keeper

    def log(self) -> str:
        try:
            return leaks.read(os.path.join(self.directory, "keeper.log"))
        except FileNotFoundError:
            return ""

    def pids(self) -> list[int]:
        """Every keeper there was, the newest last."""
        return [int(pid) for pid in SERVING.findall(self.log())]

    @property
    def pid(self) -> int:
        return self.pids()[-1]

    def is_ready(self) -> bool:
        return bool(self.pids()) and str(self.pid) in READY.findall(self.log())

    def wait_ready(self) -> int:
        """Until the newest keeper's template has rehearsed; its pid.

        From here on both get a processor when they want one: a keeper without one for 2 s is taken for sick, which is
        not what a test on a crowded machine is about. A forked shim gets its caller's priority.
        """
        wait_until(self.is_ready, deadline_s=60, what="the template")
        for pid in (self.pid, self.template()):
            os.setpriority(os.PRIO_PROCESS, pid, -20)
        return self.pid

    def is_alive(self, pid: int | None = None) -> bool:
        return state_of(self.pid if pid is None else pid) not in ("", "Z")

    def is_parent_of(self, pid: int) -> bool:
        """Waits for the process in between to end, which forked it and has nothing more to do."""
        try:
            return wait_until(lambda: parent_of(pid) == self.pid, deadline_s=2, what="the parent to be the keeper")
        except AssertionError:
            return False

    def wait_refilled(self, *shim_pids: int, but: int = 0) -> int:
        """Until the newest keeper, another than ``but``, looks after all these shims; its pid."""

        def is_refilled() -> bool:
            return self.pid != but and set(shim_pids) <= looked_after(self.log(), self.pid)

        wait_until(is_refilled, deadline_s=30, what="a keeper to look after the shims")
        return self.pid

    def children(self) -> list[int]:
        return [int(pid) for pid in leaks.read(f"/proc/{self.pid}/task/{self.pid}/children").split()]

    def template(self) -> int:
        """The template in use: of its kind the one that itself has nobody waiting for a word."""
        return int(re.findall(r"template (\d+) is ready", self.log())[-1])

    def sockets(self) -> list[str]:
        names = os.listdir(self.directory) if os.path.isdir(self.directory) else []
        return [os.path.join(self.directory, name) for name in names if "." not in name]

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """End the newest keeper."""
        pid = self.pid
        os.kill(pid, signum)
        wait_until(lambda: not self.is_alive(pid), what="the keeper to end")

    # --- the end

    def close(self) -> None:
        for bundle in self.started:
            bundle.close()
        end_keepers(self.directory, signal.SIGTERM)
        for root in leaks.cgroup_roots():
            path = os.path.join(root, self.cgroup)
            if os.path.isdir(path):
                wait_until(lambda path=path: remove_cgroup(path), what="the keeper's cgroup to be empty")  # type: ignore[misc]
        shutil.rmtree(self.folder)

    def __enter__(self) -> "KeeperBox":
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()


class Bundle:
    """A bundle directory without a root file system."""

    def __init__(self, keeper: KeeperBox, name: str) -> None:
        self.keeper = keeper
        self.id = name
        self.path = os.path.join(keeper.folder, name)
        os.mkdir(self.path, 0o700)
        with open(os.path.join(self.path, "config.json"), "w", encoding="utf-8") as file:
            json.dump({"ociVersion": "1.0.2"}, file)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "shim", *self.arguments(*words)]

    def arguments(self, *words: str) -> list[str]:
        return ["-namespace", NAMESPACE, "-address", f"{self.keeper.folder}/none.sock", "-id", self.id, *words]

    def begin(self, *, prefix: Sequence[str] = (), **options: Any) -> "subprocess.Popen[bytes]":
        """`start`, not waited for."""
        environment = {**os.environ, **self.keeper.environment, **options.pop("environment", {})}
        return subprocess.Popen(
            [*prefix, *self.command("start")], cwd=self.path, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def start(self, **options: Any) -> str:
        """`start` to its end: the address."""
        return finish(self.begin(**options))

    def read(self, name: str) -> str:
        return leaks.read(os.path.join(self.path, name))

    @property
    def shim_pid(self) -> int:
        return int(self.read("shim.pid"))

    @property
    def address(self) -> str:
        return self.read("address")

    def info(self) -> Any:
        from ttrpc.api import shim

        with BlockingClient.connect(self.address) as client:
            return client.call("shimd.shim.v1.Shim", "Info", shim.InfoRequest(), timeout_s=20)

    def close(self) -> None:
        """End the shim, if there is one."""
        try:
            pid = self.shim_pid
        except FileNotFoundError:
            return
        if state_of(pid) not in ("", "Z") and leaks.read(f"/proc/{pid}/comm").startswith("shim"):
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: state_of(pid) in ("", "Z"), what="the shim to end")


def finish(process: "subprocess.Popen[bytes]", *, timeout_s: float = 30.0) -> str:
    """What a `start` printed. Raises: AssertionError with its words when it failed."""
    out, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, out.decode()
    return out.decode()


def state_of(pid: int) -> str:
    """The letter of proc_pid_stat(5); empty when there is no such process."""
    try:
        return leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    return int(leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])


def open_files(pid: int) -> list[str]:
    """What every fd of a process is, sockets and pipes by kind, in the order of the numbers."""
    found = []
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        found.append(target.partition(":[")[0] if ":[" in target else target)
    return found


def remove_cgroup(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def looked_after(log: str, keeper_pid: int) -> set[int]:
    """The shims a keeper took that it had not forked, by its log."""
    return {int(pid) for pid, keeper in ADOPTED.findall(log) if int(keeper) == keeper_pid}


def end_keepers(directory: str, signum: int = signal.SIGKILL) -> None:
    """End every keeper that has its socket there, and have none start any more: shims without one would do that."""
    if os.path.isdir(directory):
        os.chmod(directory, 0o777)  # others could write there now: no keeper takes that
        for name in os.listdir(directory):
            if name.endswith(".lock"):
                with open(os.path.join(directory, name), "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # who was about to start one has done it
    copies: set[int] = set()
    while pids := keepers_in(directory):
        for pid in pids:
            copies |= copies_of(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signum)
            wait_until(lambda pid=pid: not is_running(pid), what="the keeper to be gone")  # type: ignore[misc]
    wait_until(
        lambda: not any(map(is_running, copies)) and not left_by_keepers(directory),
        deadline_s=60, what="its copies to notice, when they have rehearsed",
    )  # fmt: skip


def left_by_keepers(directory: str) -> list[int]:
    """Copies of keepers of the same folder that are dead: a test has killed them, and nobody waits for these."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_left(int(name), directory)]


def is_left(pid: int, directory: str) -> bool:
    try:
        if not is_copy(pid) or os.path.dirname(directory) not in leaks.read(f"/proc/{pid}/environ"):
            return False
        while (pid := parent_of(pid)) > 1:
            if leaks.read(f"/proc/{pid}/cmdline").startswith("shimd-keeper "):
                return False
    except OSError:  # it has ended
        return False
    return True


def copies_of(keeper_pid: int) -> set[int]:
    """The copies of itself a keeper has: the template, which is called a shim while it rehearses, and who waits."""
    found, waiting = set(), [keeper_pid]
    while waiting:
        pid = waiting.pop()
        try:
            below = [int(each) for each in leaks.read(f"/proc/{pid}/task/{pid}/children").split()]
        except OSError:
            continue
        for each in below:
            with contextlib.suppress(OSError):
                if is_copy(each):
                    found.add(each)
                    waiting.append(each)
    return found


def is_copy(pid: int) -> bool:
    """Raises: OSError when it is gone."""
    return leaks.read(f"/proc/{pid}/cmdline").startswith((template.NAME, f"shim:{rehearsal.ID} "))


def keepers_in(directory: str) -> list[int]:
    """Every process that serves a socket there as keeper, or is about to: its path is in its title."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                title = file.read()
        except OSError:
            continue
        if name.isdigit() and os.fsencode(directory) + b"/" in title and is_running(int(name)):
            is_keeper = title.startswith(b"shimd-keeper ") or BEGINS in title
            found += [int(name)] if is_keeper else []
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def copy_of_the_code() -> str:
    """A folder with our packages, for a test that changes them; the caller removes it."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = tempfile.mkdtemp(prefix="code-")
    for package in ("shim", "ttrpc"):
        shutil.copytree(os.path.join(root, package), os.path.join(path, package))
    return path


def replace_text(path: str, old: str, new: str) -> None:
    """Change a file as an installer does: by another in its place."""
    text = leaks.read(path)
    assert old in text
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))
    os.rename(path + ".new", path)

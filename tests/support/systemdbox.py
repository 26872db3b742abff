"""A real systemd in a box: PID 1 of namespaces of its own, with the units a test puts there, and shimctl in it.

with SystemdBox() as box:
    box.install("shimd.service", box.unit("service"))
    box.systemctl("start", "shimd")
    assert box.show("shimd", "ActiveState") == "active"

What is in it has pids of its own: those are used here throughout, and `read("/proc/PID/…")` reads the box's.
"""

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from tests.support import leaks, systemdboot
from tests.support.rootfs import make_rootfs
from tests.support.shimctl import Shimctl
from tests.support.waiting import wait_until
from ttrpc.blocking import BlockingClient

# What a machine must have, and the Debian package that brings it.
NEEDED = {
    systemdboot.SYSTEMD: "systemd",
    "/lib/systemd/systemd-journald": "systemd",
    "/usr/bin/systemctl": "systemd",
    "/usr/bin/systemd-run": "systemd",
    "/usr/bin/nsenter": "util-linux",
}
DISTRIBUTION_UNITS = "/lib/systemd/system"
OF_DISTRIBUTION = ("systemd-journald.service", "systemd-journald.socket")
TARGETS = ("box", "basic", "sysinit", "sockets", "multi-user", "shutdown", "umount", "network", "local-fs")
SOCKET = "/run/shimd/shimd.sock.ttrpc"
# What a test may leave: units, and folders beside the configuration's.
OWN_UNITS = ("shimd.socket", "shimd.service", "shimd-keeper.service", "shimd-keeper-*.scope")
OWN_FOLDERS = ("/run/shimd", "/run/other", "/run/containerd", "/run/runc", "/var/lib/shimd", "/etc/shimd")
OF_BOOT = ("systemd", "systemd-journal")
CALL_S = 60.0
BOOT_S = 60.0
INSIDE = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")


def missing_programs() -> list[str]:
    """What this machine lacks to boot a systemd in a box, in words."""
    return [f"{path} (apt-get install {name})" for path, name in NEEDED.items() if not os.path.exists(path)]


class SystemdBox:
    """Owns: the namespaces and every process in them, the cgroups they are in, and a folder. There is no D-Bus: what
    works here works early at a boot, and on a machine that has none.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="y")
        self.rootfs = make_rootfs(f"{self.folder}/rootfs")
        self.programs = os.path.dirname(sys.executable)
        # Named after the run's folder, by which the leak check knows a cgroup as ours.
        run = os.path.basename(os.environ.get("TMPDIR", self.folder))
        self.cgroup = f"{run}-{os.path.basename(self.folder)}"
        os.mkdir(f"{self.folder}/units")
        for name in TARGETS:
            self.write_unit(f"{name}.target", "[Unit]\nDefaultDependencies=no\n")
        for name in OF_DISTRIBUTION:
            os.symlink(f"{DISTRIBUTION_UNITS}/{name}", f"{self.folder}/units/{name}")
        with open(f"{self.folder}/boot.log", "ab") as log:
            self._unshare = subprocess.Popen(
                [sys.executable, systemdboot.__file__, self.cgroup, self.folder],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._cursor = ""  # of the journal, where this test's part of it begins
        self.pid = 0  # of PID 1, as seen from here
        try:
            self.pid = wait_until(self._find_pid_1, deadline_s=BOOT_S, what="systemd to be PID 1")
            wait_until(self._is_up, deadline_s=BOOT_S, what="systemd to be up")
            # PID 1 logs to the journal once its service runs; the socket alone would have it begin with our first line.
            self.systemctl("start", "systemd-journald.socket", "systemd-journald.service")
            self.systemctl("log-target", "journal-or-kmsg")
        except BaseException as error:
            error.add_note(f"systemd's own words: {self.boot_log()}")
            self.close()
            raise

    def __enter__(self) -> "SystemdBox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_pid_1(self) -> int:
        assert self._unshare.poll() is None, f"it ended at once: {self.boot_log()}"
        for word in leaks.read(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").split():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{word}/exe").endswith("/systemd"):
                    return int(word)
        return 0

    def _is_up(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def boot_log(self) -> str:
        return leaks.read(f"{self.folder}/boot.log")

    # --- commands in the box

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *INSIDE, "--", *words]

    def run(self, *words: str, environ: "dict[str, str] | None" = None) -> "subprocess.CompletedProcess[str]":
        """A command in the box, to its end."""
        env = {**os.environ, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", **(environ or {})}
        return subprocess.run(
            self.argv(*words), capture_output=True, text=True, env=env, timeout=CALL_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def output(self, *words: str, code: int = 0) -> str:
        """What a command prints that must end with this exit code. Raises: AssertionError with what it said."""
        done = self.run(*words)
        assert code == done.returncode, f"{' '.join(words)} ended with {done.returncode}: {done.stderr or done.stdout}"
        return done.stdout

    def systemctl(self, *words: str, code: int = 0) -> str:
        return self.output("systemctl", *words, code=code)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).strip()

    def journal(self, unit: str) -> str:
        """All that was said of and by a unit since the box was cleared."""
        since = (f"--after-cursor={self._cursor}",) if self._cursor else ()
        self.run("journalctl", "--sync")
        return self.output("journalctl", "--no-pager", "-o", "cat", "-u", unit, *since)

    # --- units

    def write_unit(self, name: str, text: str) -> None:
        path = f"{self.folder}/units/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def install(self, **texts: str) -> None:
        """Put units there, `shimd_service="…"` for shimd.service, and have systemd read them."""
        for name, text in texts.items():
            self.write_unit(name.replace("__", "/").replace("_", "."), text)
        self.systemctl("daemon-reload")

    def unit(self, which: str, *options: str) -> str:
        """What `shimd config unit` prints in the box."""
        return self.output(f"{self.programs}/shimd", "config", "unit", *options, which)

    def configure(self, text: str) -> None:
        self.write("/etc/shimd/config.toml", text)

    # --- what is in it

    def path(self, path: str) -> str:
        """Where a path of the box is for us. Source: proc_pid_root(5)."""
        return f"/proc/{self.pid}/root{path}"

    def read(self, path: str) -> str:
        return leaks.read(self.path(path))

    def write(self, path: str, text: str) -> None:
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "w", encoding="utf-8") as file:
            file.write(text)

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self.path("/proc")) if name.isdigit()]

    def command_lines(self) -> str:
        """Of all processes, one a line."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found.append(self.read(f"/proc/{pid}/cmdline").replace("\0", " ").strip())
        return "\n".join(found)

    def cgroup_of(self, pid: int) -> str:
        """Where systemd has a process, from the box's root: its own hierarchy, or the only one."""
        for line in self.read(f"/proc/{pid}/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("name=systemd", ""):
                return path.partition(f"/{self.cgroup}")[2] or "/"
        raise AssertionError(f"process {pid} is in no cgroup of systemd's")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self.output("kill", f"-{int(number)}", str(pid))

    # --- shimd in it

    @property
    def address(self) -> str:
        """Where its socket is for us: a unix socket is found by its file, in whichever mount namespace."""
        return self.path(SOCKET)

    def connect(self) -> BlockingClient:
        return BlockingClient.connect(self.address, timeout_s=CALL_S)

    @property
    def ctl(self) -> Shimctl:
        return Shimctl(prefix=self.argv())

    def main_pid(self, unit: str = "shimd") -> int:
        return int(self.show(unit, "MainPID"))

    def spawn(self, *words: str) -> "subprocess.Popen[bytes]":
        """A command in the box, left running; it is the caller's to end."""
        return subprocess.Popen(self.argv(*words), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def program(self, name: str, text: str) -> str:
        """A shell script that can be run in the box; its path."""
        path = f"{self.folder}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n{text}\n")
        os.chmod(path, 0o755)
        return path

    def let_go(self) -> None:
        """What a container of the tests waits for: a file `go` in its root."""
        with open(f"{self.rootfs}/go", "w", encoding="utf-8"):
            pass

    # --- between two tests

    def clear(self) -> None:
        """As after the boot: no process, container, unit or file of ours. Nothing is asked, all is killed."""
        self.run("systemctl", "stop", "--no-block", *OWN_UNITS)
        wait_until(self._kill_all, deadline_s=BOOT_S, what="the box's processes to die")
        for line in reversed(self.read("/proc/1/mountinfo").splitlines()):
            if line.split()[4].startswith(OWN_FOLDERS):
                self.output("umount", "-l", line.split()[4])
        for path in OWN_FOLDERS:
            shutil.rmtree(self.path(path), ignore_errors=True)
        wait_until(
            lambda: not self._remove_cgroups("default/*"), deadline_s=BOOT_S, what="the containers' cgroups to go"
        )
        for name in os.listdir(f"{self.folder}/units"):
            if name.startswith("shimd"):
                path = f"{self.folder}/units/{name}"
                (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.rootfs}/go")
        self.systemctl("daemon-reload")
        self.run("systemctl", "stop", *OWN_UNITS)
        self.systemctl("reset-failed")
        self._cursor = self.output("journalctl", "-n", "0", "--show-cursor").rpartition("cursor: ")[2].strip()

    def _kill_all(self) -> bool:
        """Everything but what was there after the boot. True when there is nothing."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                state = self.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
                if state != "Z" and self.read(f"/proc/{pid}/comm").strip() not in OF_BOOT:
                    found.append(str(pid))
        if found:
            self.run("kill", "-KILL", *found)
        return not found

    # --- the end

    def close(self) -> None:
        """Everything in it ends with its PID 1; then its cgroups can go."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()
        wait_until(lambda: not self._remove_cgroups(""), deadline_s=BOOT_S, what="the box's cgroups to be empty")
        shutil.rmtree(self.folder)

    def _remove_cgroups(self, below: str) -> list[str]:
        """Remove what can be removed; returns what is left."""
        tops = [top for root in leaks.cgroup_roots() for top in glob.glob(os.path.join(root, self.cgroup, below))]
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return [top for top in tops if os.path.isdir(top)]

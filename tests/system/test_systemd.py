"""Under a real systemd: PID 1 of namespaces of its own (tests/support/systemdbox.py), with the units we ship.

One boot serves the whole file; each test brings its units, and takes its containers and units away.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

import pytest

from daemon.__main__ import EXIT_CONFIG
from daemon.faults import ARMED
from daemon.store import schema
from tests.support import leaks
from tests.support.callers import CALL_S, SHIMD, Callers, fresh
from tests.support.shimctl import Shimctl, finish
from tests.support.systemdbox import SOCKET, SystemdBox, missing_programs
from tests.support.waiting import wait_until
from ttrpc.api import shimd

BOTH = pytest.mark.parametrize("units", [("service", "socket"), ("service",)], ids=["socket", "fdstore"])
ARMED_LINE = f"Environment=SHIMD_FAULTS_ARMED={ARMED}"


@pytest.fixture(scope="module")
def booted() -> Iterator[SystemdBox]:
    missing = missing_programs()
    if missing:
        pytest.fail(f"this machine lacks {', '.join(missing)}; `make dev` installs it", pytrace=False)
    before = machine()
    with SystemdBox() as made:
        assert machine() == before
        yield made
    assert machine() == before


def machine() -> list[object]:
    """What a systemd that took the machine for its own would change: settings, and the place of the cgroups."""
    settings = ("kernel/hostname", "kernel/core_pattern", "fs/nr_open", "fs/file-max", "net/unix/max_dgram_qlen")
    mounts = [line for line in leaks.read("/proc/self/mountinfo").splitlines() if "cgroup" in line]
    return [[leaks.read(f"/proc/sys/{name}") for name in settings], mounts, sorted(os.listdir("/sys/fs/cgroup"))]


@pytest.fixture
def box(booted: SystemdBox) -> Iterator[SystemdBox]:
    try:
        yield booted
    finally:
        booted.clear()


class Installed:
    """shimd by the units we ship, started, with one running container."""

    def __init__(self, box: SystemdBox, units: tuple[str, ...], drop_in: str = "") -> None:
        self.box = box
        box.install(**{f"shimd_{which}": box.unit(which) for which in units})
        if drop_in:
            box.install(shimd_service_d__test_conf=drop_in)
        box.systemctl("start", "shimd")
        self.daemon = box.main_pid()

    @property
    def ctl(self) -> Shimctl:
        return self.box.ctl

    def run(self, name: str, *words: str) -> int:
        """A container in the background; its pid, 0 when it is over."""
        self.ctl.output("run", "-d", "--rootfs", self.box.rootfs, name, "--", *words)
        return self.pid_of(name)

    def pid_of(self, name: str) -> int:
        (line,) = [line for line in self.ctl.output("ps", "-a").splitlines() if line.split()[0] == name]
        word = line.split()[-1]
        return int(word) if word.isdigit() else 0

    def info(self) -> "shimd.InfoResponse":
        return fresh(self.box.address)

    def processes(self) -> dict[str, int]:
        """The keeper and the shims in the box, by their titles; those that rehearse or wait are left out."""
        found = {}
        for pid in self.box.pids():
            with contextlib.suppress(OSError):
                words = self.box.read(f"/proc/{pid}/cmdline").replace("\0", " ").split()
                if words and words[0].startswith(("shim:", "shimd-keeper")) and words[0] != "shim:rehearsal":
                    found[words[0]] = pid
        return found

    def keeper_is_there(self) -> bool:
        return "shimd-keeper" in self.processes()

    def lost(self, before: dict[str, int]) -> dict[str, int]:
        """Of these processes, those that are others now; one that the keeper has relieved is not (SHIM.md, Relief)."""
        relieved = re.findall(r"shim (\d+) of \S+ is relieved", self.box.read("/run/shimd/shimd-keeper/keeper.log"))
        now = self.processes()
        return {n: pid for n, pid in before.items() if now.get(n) != pid and not (n in now and str(pid) in relieved)}

    def is_healthy(self) -> bool:
        """The unit and the daemon agree about who serves."""
        info = self.info()
        return not info.recovering and info.pid == self.box.main_pid()


# --- start, stop, restart


@BOTH
def test_active_means_that_the_api_answers(box: SystemdBox, units: tuple[str, ...]) -> None:
    """`systemctl start` returns when a call is answered, by the main process; the socket is private, and so is what it
    lies in. No configuration file is needed.
    """
    made = Installed(box, units)
    assert made.info().pid == made.daemon
    assert box.show("shimd", "ActiveState") == "active"
    assert os.stat(box.address).st_mode & 0o777 == 0o600
    assert os.stat(box.path(os.path.dirname(SOCKET))).st_mode & 0o777 == 0o700
    assert box.show("shimd", "NFileDescriptorStore") == ("0" if "socket" in units else "1")
    assert box.read(f"/proc/{made.daemon}/comm") == "shimd\n"
    wait_until(lambda: box.show("shimd", "StatusText").startswith("serving "), what="the status")
    box.systemctl("stop", "shimd")
    if "socket" in units:  # without a unit that refers to it nothing is remembered of it
        assert box.show("shimd", "StatusText") == "stopped; containers run on"
    assert (box.show("shimd", "Result"), box.show("shimd", "ActiveState")) == ("success", "inactive")


@BOTH
def test_no_end_of_the_daemon_is_the_containers(box: SystemdBox, units: tuple[str, ...]) -> None:
    """Stopped, restarted, killed: keeper, shims and containers are the same processes, no exit status is lost, and
    nobody who connects meanwhile is refused.
    """
    made = Installed(box, units, "[Service]\nRestartSec=50ms\n")
    wait_until(made.keeper_is_there, what="the keeper")
    web = made.run("web", "sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done")
    before = made.processes()
    callers = Callers(box.address)
    callers.start("connect", callers.connect_only)
    callers.start("shimctl", lambda: (made.ctl.output("ps", "-a"), callers.stop.wait(0.2)))
    seen = {made.daemon}
    try:
        for number, end in enumerate(("reload", "kill", "restart")):
            made.run(f"c{number}", "sh", "-c", f"sleep 0.3; exit {10 + number}")
            if end == "kill":
                pid = box.main_pid()
                box.kill(pid)
                wait_until(lambda pid=pid: box.main_pid() not in (0, pid), what="Restart=")  # type: ignore[misc]
            else:
                box.systemctl(end, "shimd")
            wait_until(made.is_healthy, what=f"the daemon after {end}")
            seen.add(made.info().pid)
            assert made.ctl.run("wait", f"c{number}").stdout.strip() == str(10 + number)
    finally:
        callers.finish()
    assert callers.failures == []
    assert len(seen) == 4
    assert box.show("shimd", "ActiveState") == "active"
    assert made.pid_of("web") == web
    assert made.lost(before) == {}
    numbers = made.ctl.output("logs", "web").split()
    assert numbers == [str(one) for one in range(1, len(numbers) + 1)]


def test_what_ends_while_the_unit_is_stopped_is_known_afterwards(box: SystemdBox) -> None:
    """`systemctl stop` leaves everything; the shim keeps the exit for the next start."""
    made = Installed(box, ("service",))
    made.run("c", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 7")
    box.systemctl("stop", "shimd")
    assert box.main_pid() == 0
    box.let_go()
    wait_until(lambda: "exit 7" not in box.command_lines(), what="the container to end")
    box.systemctl("start", "shimd")
    assert made.ctl.run("wait", "c").stdout.strip() == "7"


def test_a_client_starts_the_daemon_by_its_socket(box: SystemdBox) -> None:
    """Only the socket unit is started; who connects is served by a daemon that was not there."""
    box.install(shimd_service=box.unit("service"), shimd_socket=box.unit("socket"))
    box.systemctl("start", "shimd.socket")
    assert box.main_pid() == 0
    assert fresh(box.address).pid == box.main_pid()
    box.systemctl("stop", "shimd.socket", "shimd.service")
    assert not os.path.exists(box.address)


def test_systemd_itself_may_be_replaced(box: SystemdBox) -> None:
    """`systemctl daemon-reexec`: the same main process, and the socket in its store is handed out all the same."""
    made = Installed(box, ("service",))
    box.systemctl("daemon-reexec")
    assert box.main_pid() == made.daemon
    inode = os.stat(box.address).st_ino
    box.systemctl("restart", "shimd")
    assert os.stat(box.address).st_ino == inode
    assert made.info().pid == box.main_pid() != made.daemon


# --- upgrade


@BOTH
def test_an_upgrade_is_followed(box: SystemdBox, units: tuple[str, ...]) -> None:
    """By shimctl or a reload: MAINPID goes along, the unit stays active, the watchdog is fed, restart and stop work."""
    made = Installed(box, units, "[Service]\nWatchdogSec=5\n")
    web = made.run("web", "sleep", "1000")
    pids = [made.daemon]
    for command in (["shimctl", "daemon", "upgrade"], ["systemctl", "reload", "shimd"]):
        box.output(*(f"{box.programs}/{command[0]}" if command[0] == "shimctl" else command[0], *command[1:]))
        pids.append(made.info().pid)
        wait_until(lambda: box.main_pid() == pids[-1], what="MAINPID")
        wait_until(made.is_healthy, what="recovery")
        assert box.show("shimd", "ActiveState") == "active"
        assert box.read(f"/proc/{pids[-1]}/comm") == "shimd\n"
        wait_until(lambda: f"main process pid={pids[-1]}" in box.journal("shimd"), what="systemd to have it as its own")
    assert box.main_pid() == pids[-1]
    assert len(set(pids)) == 3
    fed = box.show("shimd", "WatchdogTimestampMonotonic")
    wait_until(lambda: box.show("shimd", "WatchdogTimestampMonotonic") != fed, what="the watchdog to be fed")
    assert box.show("shimd", "NRestarts") == "0"
    box.systemctl("stop", "shimd")
    assert "shimd run" not in box.command_lines()
    box.systemctl("start", "shimd")
    wait_until(made.is_healthy, what="the daemon after a stop and a start")
    assert made.pid_of("web") == web


def test_an_upgraded_daemon_is_given_its_time_to_stop(box: SystemdBox) -> None:
    """To systemd a main process that was named to it is a guest, which it kills without waiting: not this one."""
    runc = box.program("runc-slow", 'case "$*" in *" create "*) sleep 1;; esac; exec runc "$@"')
    box.configure(f'[runtimes."io.containerd.shimd.v2"]\nrunc = "{runc}"\n')
    made = Installed(box, ("service", "socket"))
    made.ctl.output("daemon", "upgrade")
    is_own = f"main process pid={box.main_pid()}"
    wait_until(lambda: is_own in box.journal("shimd"), what="systemd to have it as its own")
    with made.ctl.start("run", "-d", "--rootfs", box.rootfs, "web", "--", "sleep", "1000") as started:
        wait_until(lambda: runc in box.command_lines(), what="runc create")
        box.systemctl("restart", "shimd")
        code, _, errors = finish(started)
    assert (code, errors) == (0, b"")
    assert "SIGKILL" not in box.journal("shimd")
    assert made.pid_of("web") > 0


def test_an_upgrade_that_fails_is_a_failed_reload_and_nothing_else(box: SystemdBox) -> None:
    """The new program cannot read the configuration: the old one serves on, and the unit stays active."""
    made = Installed(box, ("service",))
    box.configure("nonsense = 1\n")
    box.systemctl("reload", "shimd", code=1)
    assert "unknown key" in box.journal("shimd") or "nonsense" in box.journal("shimd")
    assert box.show("shimd", "ActiveState") == "active"
    assert made.info().pid == box.main_pid() == made.daemon


@pytest.mark.parametrize("point", ["upgrade.committed", "upgrade.told", "successor.committed", "successor.serving"])
def test_whoever_dies_in_an_upgrade_the_unit_has_one_daemon(box: SystemdBox, point: str) -> None:
    """The old process or the new one killed at the hand-over: one daemon serves, and it is the main process."""
    fault = f"{ARMED_LINE}\nEnvironment=SHIMD_FAULTS={point}=kill\n"
    made = Installed(box, ("service", "socket"), f"[Service]\nRestartSec=50ms\n{fault}")
    web = made.run("web", "sleep", "1000")
    made.ctl.run("daemon", "upgrade")
    wait_until(lambda: box.show("shimd", "ActiveState") == "active" and made.is_healthy(), what="one daemon")
    wait_until(lambda: box.command_lines().count("shimd run") == 1, what="the other one to be gone")
    assert made.pid_of("web") == web
    box.systemctl("stop", "shimd")
    wait_until(lambda: "shimd run" not in box.command_lines(), what="it to stop")
    assert box.main_pid() == 0


def test_a_daemon_that_hangs_is_replaced_by_the_watchdog(box: SystemdBox) -> None:
    """Stopped by a signal it feeds no watchdog: systemd aborts it and starts another, under the same container."""
    made = Installed(box, ("service", "socket"), "[Service]\nWatchdogSec=2\n")
    web = made.run("web", "sleep", "1000")
    box.kill(made.daemon, signal.SIGSTOP)
    wait_until(lambda: box.main_pid() not in (0, made.daemon), what="another main process")
    wait_until(made.is_healthy, what="the new daemon")
    assert made.pid_of("web") == web
    assert "Watchdog timeout" in box.journal("shimd")


# --- cgroups and limits


def test_keeper_shims_and_containers_are_not_in_the_units_cgroup(box: SystemdBox) -> None:
    """So its limits are not theirs, and neither is what is done to all of it: only the daemon dies, and comes back."""
    made = Installed(box, ("service",), "[Service]\nMemoryMax=100M\nTasksMax=20\n")
    wait_until(made.keeper_is_there, what="the keeper")
    wait_until(lambda: "shimd.service" not in box.cgroup_of(made.processes()["shimd-keeper"]), what="its scope")
    web = made.run("web", "sh", "-c", "for i in $(seq 40); do sleep 1000 & done; wait")
    before = made.processes()
    assert [box.cgroup_of(pid) for pid in before.values()] == [box.cgroup_of(before["shimd-keeper"])] * len(before)
    scope = box.cgroup_of(before["shimd-keeper"]).rpartition("/")[2]
    assert re.fullmatch(r"shimd-keeper-\d+\.scope", scope)
    assert (box.show(scope, "TasksMax"), box.show(scope, "TimeoutStopUSec")) == ("infinity", "10s")
    assert "shimd.service" not in box.cgroup_of(web)
    done = made.ctl.run(
        "run", "--rm", "--rootfs", box.rootfs, "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1"
    )
    assert (done.returncode, "1+0 records out" in done.stderr) == (0, True)
    wait_until(lambda: box.command_lines().count("sleep 1000") == 41, what="all of the container's processes")
    box.systemctl("kill", "--signal=KILL", "shimd")
    wait_until(lambda: box.main_pid() not in (0, made.daemon), what="Restart=")
    wait_until(made.is_healthy, what="the daemon")
    assert made.lost(before) == {}
    assert made.pid_of("web") == web


@pytest.fixture
def readme_keeper(box: SystemdBox) -> SystemdBox:
    """The README's unit for the keeper, for the directory of our daemon's shims."""
    with open("README.md", encoding="utf-8") as file:
        (text,) = re.findall(r"called `shimd-keeper.service`:\n\n```\n(.*?)```", file.read(), re.DOTALL)
    assert "/usr/local/bin/" in text
    text = text.replace("/usr/local/bin/", f"{box.programs}/")
    box.install(**{"shimd-keeper_service": f"{text}\n[Service]\nEnvironment=SHIMD_SOCKET_DIR=/run/shimd/s\n"})
    box.systemctl("start", "shimd-keeper")
    return box


def test_the_keepers_own_unit_waits_for_its_turn(readme_keeper: SystemdBox) -> None:
    """Stopped, its shims start another keeper; started again it waits behind that one, and is never failed."""
    box = readme_keeper
    made = Installed(box, ("service",))
    wait_until(lambda: made.processes().get("shimd-keeper") == box.main_pid("shimd-keeper"), what="the unit's keeper")
    web = made.run("web", "sleep", "1000")
    shim = made.processes()["shim:web"]
    assert box.cgroup_of(shim).endswith("/shimd-keeper.service")
    killed = [0, box.main_pid("shimd-keeper")]
    box.systemctl("stop", "shimd-keeper")
    wait_until(lambda: made.processes().get("shimd-keeper", 0) not in killed, what="the shims' own keeper")
    box.systemctl("start", "shimd-keeper")
    wait_until(lambda: "waiting for its end" in box.journal("shimd-keeper"), what="the unit to wait")
    killed.append(made.processes()["shimd-keeper"])
    assert box.main_pid("shimd-keeper") not in killed
    box.kill(killed[-1])
    wait_until(lambda: made.processes().get("shimd-keeper", 0) not in killed, what="another keeper")
    assert (box.show("shimd-keeper", "ActiveState"), box.show("shimd-keeper", "NRestarts")) == ("active", "0")
    assert (made.lost({"shim:web": shim}), made.pid_of("web")) == ({}, web)


# --- what cannot start


def failed(box: SystemdBox) -> str:
    """Start a unit that does not come up; its journal once it is given up."""
    box.install(shimd_service=box.unit("service"))
    box.systemctl("start", "shimd", code=1)
    wait_until(lambda: box.show("shimd", "ActiveState") == "failed", what="the unit to be given up")
    return box.journal("shimd")


def test_a_bad_configuration_fails_at_once_and_for_good(box: SystemdBox) -> None:
    """Our words are in the journal and in the status; no second try."""
    units = box.unit("service")
    box.configure("root_dir = 7\n")
    box.install(shimd_service=units)
    box.systemctl("start", "shimd", code=1)
    wait_until(lambda: box.show("shimd", "ActiveState") == "failed", what="the unit to be given up")
    assert (box.show("shimd", "ExecMainStatus"), box.show("shimd", "NRestarts")) == (str(EXIT_CONFIG), "0")
    assert "shimd: /etc/shimd/config.toml:1: root_dir:" in box.journal("shimd")
    assert box.show("shimd", "StatusText").startswith("did not start: /etc/shimd/config.toml:1")
    assert "status=78/CONFIG" in box.journal("shimd")
    assert "did not start: /etc/shimd/config.toml:1" in box.run("systemctl", "status", "shimd").stdout
    box.configure("")
    box.systemctl("start", "shimd")
    assert fresh(box.address).pid == box.main_pid()


def test_a_store_of_a_later_release_fails_at_once_and_for_good(box: SystemdBox) -> None:
    """It is left as it is."""
    Installed(box, ("service",))
    box.systemctl("stop", "shimd")
    assert of_store(box, f"PRAGMA user_version = {schema.VERSION + 5}") == "None"
    assert of_store(box, f"DELETE FROM meta WHERE key = '{schema.OLDEST_READER_KEY}'") == "None"
    said = failed(box)
    assert (box.show("shimd", "ExecMainStatus"), box.show("shimd", "NRestarts")) == (str(EXIT_CONFIG), "0")
    assert f"schema {schema.VERSION + 5}" in said
    assert of_store(box, "PRAGMA user_version") == f"({schema.VERSION + 5},)"


def of_store(box: SystemdBox, statement: str) -> str:
    """What a statement on the daemon's store answers, from within the box: SQLite goes by whole paths."""
    code = (
        "import sqlite3, sys; store = sqlite3.connect('/var/lib/shimd/shimd.db', isolation_level=None);"
        "print(store.execute(sys.argv[1]).fetchone())"
    )
    return box.output(sys.executable, "-c", code, statement).strip()


def test_directories_in_use_are_tried_until_they_are_free(box: SystemdBox) -> None:
    """Another daemon holds them, which may end, in a year if need be: nobody has to look, and who connects waits."""
    other = box.spawn(f"{box.programs}/shimd", "--address", "/run/shimd/other.sock")
    wait_until(lambda: os.path.exists(box.path("/run/shimd/other.sock")), what="the other daemon")
    ten_times_faster = "[Unit]\nStartLimitIntervalSec=6\n[Service]\nRestartSec=200ms\n"
    box.install(shimd_service=box.unit("service"), shimd_socket=box.unit("socket"))
    box.install(shimd_service_d__test_conf=ten_times_faster)
    box.systemctl("start", "shimd", code=1)
    waiting = box.connect()
    try:
        # More often than a start limit of systemd's default, or of an earlier release, would have let it.
        wait_until(
            lambda: int(box.show("shimd", "NRestarts")) > 11, deadline_s=60, what="it to be tried again and again"
        )
        assert "in use by shimd with pid" in box.journal("shimd")
        box.kill(int(box.read("/run/shimd/shimd.lock")), signal.SIGTERM)
        assert other.wait(CALL_S) == 0
        info = waiting.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S)
        assert info.pid == box.main_pid()
    finally:
        waiting.close()


def test_a_client_that_waits_does_not_have_what_cannot_start_tried_for_ever(box: SystemdBox) -> None:
    """systemd starts the unit for whoever is at its socket, failed or not; the start limit ends that."""
    box.install(shimd_service=box.unit("service"), shimd_socket=box.unit("socket"))
    box.configure("root_dir = 7\n")
    box.install(shimd_service_d__test_conf="[Unit]\nStartLimitBurst=3\n")
    box.systemctl("start", "shimd.socket")
    with contextlib.suppress(ConnectionError):
        box.connect().close()
    with contextlib.suppress(ConnectionError, FileNotFoundError), box.connect():
        wait_until(lambda: box.show("shimd.socket", "ActiveState") == "failed", what="the socket to be given up")
    assert box.show("shimd.socket", "Result") == "service-start-limit-hit"
    assert (box.show("shimd", "ActiveState"), box.show("shimd", "NRestarts")) == ("failed", "0")
    assert box.journal("shimd").count("shimd: /etc/shimd/config.toml:1: root_dir:") == 3


# --- the units themselves


def test_systemd_finds_nothing_wrong_with_our_units(box: SystemdBox) -> None:
    """`systemd-analyze verify` has no word to say."""
    box.install(shimd_service=box.unit("service", "--state", "/run/a b"), shimd_socket=box.unit("socket"))
    paths = [f"{box.folder}/units/shimd.{which}" for which in ("service", "socket")]
    done = box.run("systemd-analyze", "verify", *paths)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_as_exposed_as_its_containers_need(box: SystemdBox) -> None:
    """What systemd could take from the daemon it would take from every container as well: see daemon/DESIGN.md."""
    box.install(shimd_service=box.unit("service"))
    said = box.output("systemd-analyze", "security", "--no-pager", "shimd.service")
    found = re.search(r"Overall exposure level for shimd.service: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= 9.6
    inherited = ("NoNewPrivileges", "PrivateMounts", "PrivateDevices", "ProtectKernelModules", "RestrictNamespaces~")
    for name in inherited:
        assert box.show("shimd", name.rstrip("~")) in ("no", "18446744073709551615", "")

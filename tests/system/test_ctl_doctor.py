"""`shimctl doctor`: each defect is planted, named and repaired; nothing healthy is harmed; the second run is clean."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shim.recovery import pins
from tests.support import leaks
from tests.support.ctlbox import CtlBox
from tests.support.daemonbox import GO_RUNTIME
from tests.support.keeperbox import end_keepers, keepers_in, looked_after, state_of
from tests.support.pty import Person
from tests.support.waiting import wait_until

# What a test machine may have of itself; every other finding counts.
OF_THE_MACHINE = {"feature", "disk", "inotify", "files", "pids", "clock", "no-keeper"}


@pytest.fixture
def box() -> Iterator[CtlBox]:
    """A healthy container, and daemons that leave a stopped shim to the doctor."""
    with CtlBox(config="wedged.after_s = 0") as made:
        made.detached("web", "sh", "-c", "while :; do echo beat; sleep 0.1; done")
        yield made


def examine(box: CtlBox, *options: str) -> "dict[str, Any]":
    done = box.ctl.run("doctor", "--json", "--config", box.daemon.config_path, *options)
    assert done.returncode in (0, 3, 4), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    worst = {"error": 4, "warning": 3}
    assert done.returncode == max((worst.get(each["severity"], 0) for each in found["findings"]), default=0)
    return found


def checks(report: "dict[str, Any]", part: str = "findings") -> "list[str]":
    return sorted(each["check"] for each in report[part] if each["check"] not in OF_THE_MACHINE)


def is_well(box: CtlBox, pid: int) -> bool:
    """Whether the healthy container is as it was and its log grows."""

    def written() -> int:
        return sum(entry.stat().st_size for entry in os.scandir(box.log_folder("web")))

    before = written()
    wait_until(lambda: written() > before, what="another beat")
    return state_of(pid) not in ("", "Z")


def init_pid(box: CtlBox) -> int:
    with open(f"{bundles(box)}/web/init.pid", encoding="ascii") as file:
        return int(file.read())


def shim_pid(box: CtlBox, name: str = "web") -> int:
    with open(f"{bundles(box)}/{name}/shim.pid", encoding="ascii") as file:
        return int(file.read())


def bundles(box: CtlBox) -> str:
    return f"{box.daemon.state}/io.containerd.runtime.v2.task/{box.namespace}"


# --- planting


def plant_bundle(box: CtlBox, name: str) -> str:
    """A bundle of nobody's, with something mounted in it."""
    path = f"{bundles(box)}/{name}"
    os.makedirs(f"{path}/rootfs", mode=0o700)
    with open(f"{path}/config.json", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write("{}")
    subprocess.run(["mount", "-t", "tmpfs", "shimd-test", f"{path}/rootfs"], check=True)
    return path


def plant_socket(path: str, kind: int) -> str:
    """What a listener leaves that was killed."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
    return path


def plant_pin(box: CtlBox) -> str:
    """The pin of a process that is over and whose container nobody knows."""
    process = subprocess.Popen(["sleep", "1000"])
    pidfd = os.pidfd_open(process.pid)
    path = pins.pin_path(f"{box.daemon.state}/s/{'f' * 64}", process.pid, 7)
    try:
        pins.pin(pidfd, path)
    finally:
        os.close(pidfd)
        process.kill()
        process.wait()
    return path


def plant_shim(box: CtlBox) -> int:
    """A shim in a bundle that nobody has on record."""
    path = f"{bundles(box)}/lost"
    os.makedirs(path, mode=0o700)
    with open(f"{path}/config.json", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write("{}")
    argv = [sys.executable, "-m", "shim", "-namespace", box.namespace, "-address", f"{box.daemon.state}/shimd.sock"]
    environment = {**os.environ, "SHIMD_SOCKET_DIR": f"{box.daemon.state}/s"}
    subprocess.run([*argv, "-id", "lost", "start"], cwd=path, env=environment, check=True, stdin=subprocess.DEVNULL)
    return shim_pid(box, "lost")


def plant_cgroup(box: CtlBox) -> list[str]:
    """Of a container that ran here and is gone."""
    box.detached("gone", "true")
    box.ctl.output("wait", "gone")
    box.remove("gone")
    paths = [f"{root}/{box.namespace}/gone" for root in leaks.cgroup_roots()]
    for path in paths:
        with contextlib.suppress(FileExistsError):
            os.makedirs(path)
    return paths


# --- the tests


@pytest.mark.parametrize("is_up", [True, False])
def test_each_defect_is_named_and_repaired_and_the_second_run_is_clean(box: CtlBox, is_up: bool) -> None:
    pid, away = init_pid(box), [] if is_up else ["daemon"]
    cgroups = plant_cgroup(box)
    if not is_up:
        box.daemon.kill()
    assert checks(examine(box)) == sorted([*away, "leaked-cgroup"])
    lost = plant_shim(box)
    planted = [
        plant_bundle(box, "ghost"),
        plant_bundle(box, ".cut.0123abcd"),
        plant_socket(f"{box.daemon.state}/s/{'e' * 64}", socket.SOCK_STREAM),
        plant_socket(f"{box.daemon.state}/shimd-keeper/1-2", socket.SOCK_SEQPACKET),
        plant_pin(box),
        *cgroups,
    ]
    os.chmod(f"{bundles(box)}/web/config.json", 0o644)
    named = [
        *away,
        *("cut-removal", "dead-pin", "leaked-cgroup", "orphan-bundle", "orphan-shim"),
        *("permissions", "stale-keeper", "stale-socket"),
    ]

    first = examine(box)
    assert checks(first) == sorted(named)
    assert all(each["means"] and each["do"] for each in first["findings"])
    assert all(os.path.lexists(path) for path in planted), "it only looks"
    fixed = examine(box, "--fix")
    assert [each for each in fixed["fixed"] if each["failure"]] == []
    assert set(checks(fixed, "fixed")) == set(named) - {"daemon"}
    assert checks(fixed) == away
    assert [path for path in planted if os.path.lexists(path)] == []
    assert state_of(lost) in ("", "Z")
    assert checks(examine(box)) == away
    assert examine(box, "--fix")["fixed"] == []
    assert is_well(box, pid)


def test_a_shim_is_called_unprotected_only_while_no_keeper_has_it(box: CtlBox) -> None:
    """Of two shims one was started without a keeper. The other's is killed, and the next one adopts it."""
    directory = f"{box.daemon.state}/k"
    box.daemon.kill()
    box.daemon.start({"SHIMD_KEEPER": directory, "SHIMD_KEEPER_CGROUP": ""})
    try:
        box.detached("kept", "sleep", "1000")
        (keeper,) = keepers_in(directory)
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: shim_pid(box, "kept") in adopted(directory, but=keeper), what="another keeper to have it")
        assert unprotected(box) == [f"{box.namespace}/web"]
    finally:
        box.daemon._clear()
        end_keepers(directory)


def unprotected(box: CtlBox) -> "list[str]":
    """Whose shims the doctor says no keeper looks after."""
    named = [each["subject"] for each in examine(box)["findings"] if each["check"] == "no-keeper"]
    return ", ".join(named).split(", ") if named else []


def adopted(directory: str, *, but: int) -> "set[int]":
    """The shims that the keepers after this one have adopted."""
    with open(f"{directory}/keeper.log", encoding="utf-8") as file:
        log = file.read()
    return {shim for keeper in keepers_in(directory) if keeper != but for shim in looked_after(log, keeper)}


def test_a_container_of_a_foreign_shim_is_as_well_as_ours(box: CtlBox) -> None:
    box.detached("go", "sleep", "1000", options=("--runtime", GO_RUNTIME))
    assert checks(examine(box)) == []
    box.daemon.kill()
    assert checks(examine(box)) == ["daemon"]
    box.daemon.start()


def test_a_stopped_shim_is_named_and_continued(box: CtlBox) -> None:
    pid = shim_pid(box)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(pid) == "T", what="the stop")
        assert checks(examine(box)) == ["wedged-shim"]
        assert checks(examine(box, "--fix")) == []
        assert state_of(pid) != "T"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_container_without_its_shim_is_named_and_left_to_the_daemon(box: CtlBox) -> None:
    pid = init_pid(box)
    box.daemon.kill()
    os.kill(shim_pid(box), signal.SIGKILL)
    wait_until(lambda: state_of(shim_pid(box)) in ("", "Z"), what="the shim to be gone")

    assert checks(examine(box, "--fix")) == ["daemon", "watched"]
    assert state_of(pid) not in ("", "Z")
    box.daemon.start()
    wait_until(lambda: checks(examine(box)) == [], what="the successor")
    assert is_well(box, pid)


def test_what_lives_without_a_record_is_named_and_never_touched(box: CtlBox) -> None:
    """The store is lost, or another's: whose container that is nobody can tell."""
    pid = init_pid(box)
    box.daemon.kill()
    with contextlib.closing(sqlite3.connect(f"{box.daemon.root}/shimd.db")) as store:
        rows = store.execute("SELECT * FROM tasks").fetchall()
        store.execute("DELETE FROM tasks")
        store.commit()
    assert checks(examine(box, "--fix")) == ["daemon", "orphan-shim"]
    os.kill(shim_pid(box), signal.SIGKILL)
    wait_until(lambda: state_of(shim_pid(box)) in ("", "Z"), what="the shim to be gone")
    assert checks(examine(box, "--fix")) == ["daemon", "orphan-container"]
    assert state_of(pid) not in ("", "Z")
    with contextlib.closing(sqlite3.connect(f"{box.daemon.root}/shimd.db")) as store:
        store.executemany(f"INSERT INTO tasks VALUES ({', '.join('?' * len(rows[0]))})", rows)
        store.commit()
    box.daemon.start()
    assert is_well(box, pid)


def test_a_damaged_store_and_a_wrong_configuration_are_said(box: CtlBox) -> None:
    box.daemon.kill()
    path = f"{box.daemon.root}/shimd.db"
    with open(path, "rb") as file:
        whole = file.read()
    with contextlib.suppress(FileNotFoundError):
        os.rename(path + "-wal", path + "-wal.kept")
    with open(path, "wb") as file:
        file.write(b"not SQLite, " * 1000)
    with open(box.daemon.config_path, encoding="utf-8") as file:
        config = file.read()
    try:
        found = examine(box, "--fix")
        assert checks(found) == ["daemon", "store"]
        with open(box.daemon.config_path, "a", encoding="utf-8") as file:
            file.write("recovery.paralel = 3\n")
        found = examine(box, "--root", box.daemon.root)
        assert "config" in checks(found)
        assert any("did you mean parallel" in each["what"] for each in found["findings"])
    finally:
        with open(path, "wb") as file:
            file.write(whole)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + "-wal.kept", path + "-wal")
        with open(box.daemon.config_path, "w", encoding="utf-8") as file:
            file.write(config)


def test_for_people_it_explains_and_fits_the_terminal(box: CtlBox) -> None:
    path = plant_socket(f"{box.daemon.state}/s/{'e' * 64}", socket.SOCK_STREAM)
    told = box.ctl.run("doctor")
    assert "stale-socket" in told.stdout
    assert f"\n      rm {path}\n" in told.stdout
    assert "--fix does so" in told.stdout
    assert told.returncode == 3
    with Person(box.ctl.argv("doctor"), {**os.environ, "TERM": "dumb"}, columns=72) as person:
        seen = person.sees(b"; --fix repairs").decode()
    long = [line.strip() for line in seen.splitlines() if len(line) > 72]
    assert [line for line in long if max(map(len, line.split())) < 60] == [], "only a path may be longer"
    fixed = box.ctl.run("doctor", "--fix")
    assert fixed.stdout.startswith(f"fixed: remove {path}\n")
    assert fixed.returncode == 0
    assert box.ctl.run("doctor", "--fix").stdout.startswith("there is nothing here that --fix repairs\n")

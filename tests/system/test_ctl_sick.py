"""A container whose shim does not move, or is gone: said clearly and soon, and `rm -f` ends it all the same."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.waiting import wait_until
from ttrpc.api import shim, shimd

RUNTIMES = ["io.containerd.shimd.v2", "io.containerd.runc.v2"]


@pytest.fixture
def box() -> Iterator[CtlBox]:
    with CtlBox(config=f"{PATIENT}\nwedged.after_s = 0  # a stopped shim is to stay stopped") as made:
        yield made


PATIENT, IMPATIENT = "timeouts.call_s = 3.0", "timeouts.call_s = 0.5"


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def number(box: CtlBox, path: str, name: str = "sick") -> int:
    return int(box.ctl.output("inspect", "--part", path, name))


def test_what_cannot_be_done_is_said_in_time(box: CtlBox) -> None:
    """Each command ends within seconds, names the shim, and tells what to do."""
    box.detached("sick", "sleep", "1000")
    shim_pid = number(box, "shim.pid")
    box.daemon.kill()
    with open(box.daemon.config_path, "r+", encoding="utf-8") as file:
        text = file.read().replace(PATIENT, IMPATIENT)
        file.seek(0)
        file.truncate()
        file.write(text)
    box.daemon.start()
    wait_until(lambda: box.ctl.output("inspect", "--part", "shim.health", "sick") == "serving\n", what="its adoption")
    os.kill(shim_pid, signal.SIGSTOP)
    try:
        for words in (("rm",), ("stop", "-t", "0"), ("kill",), ("pause",), ("exec", "sick", "true")):
            began = time.monotonic()
            done = box.ctl.run(*words, *(() if words[0] == "exec" else ("sick",)))
            assert done.returncode in (1, 125), words
            assert "its shim did not answer" in done.stderr, done.stderr
            assert time.monotonic() - began < 10
        assert "shimctl rm -f sick" in box.ctl.run("rm", "sick").stderr
    finally:
        os.kill(shim_pid, signal.SIGCONT)
    box.remove("sick")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_rm_f_ends_a_container_whose_shim_is_stopped(box: CtlBox, runtime: str, is_restarted: bool) -> None:
    """With every process, the shim, mounts, cgroups and records; found sick while the daemon ran, or at its start."""
    script = "sleep 1000 & setsid sleep 1000 & sleep 1000"
    box.detached("sick", "sh", "-c", script, options=("--runtime", runtime))
    init, shim_pid = number(box, "task.pid"), number(box, "shim.pid")
    os.kill(shim_pid, signal.SIGSTOP)
    if is_restarted:
        box.daemon.restart()
    began = time.monotonic()
    assert box.ctl.output("rm", "-f", "sick") == "sick\n"
    assert time.monotonic() - began < 20
    assert not is_alive(init)
    assert not is_alive(shim_pid)
    assert box.ids() == set()
    (record,) = box.daemon.call("shimd.v1.Shimd", "Exits", shimd.ExitsRequest(), ns=box.namespace).exits
    if runtime.endswith(".runc.v2"):
        assert record.source == shim.EXIT_SOURCE_UNKNOWN
    else:  # a successor knows
        assert (record.signal, record.source) == (signal.SIGKILL, shim.EXIT_SOURCE_PIDFD)
    box.detached("sick", "true")  # the id is free


def test_rm_f_ends_a_container_without_a_shim(box: CtlBox) -> None:
    """Also a paused one. Ours would get another shim."""
    box.detached("sick", "sh", "-c", "sleep 1000 & sleep 1000", options=("--runtime", RUNTIMES[1]))
    init, shim_pid = number(box, "task.pid"), number(box, "shim.pid")
    box.ctl.output("pause", "sick")
    os.kill(shim_pid, signal.SIGKILL)
    wait_until(lambda: "runs on" in box.ctl.output("daemon", "info"), what="the loss to be noticed")
    assert is_alive(init)
    assert box.ctl.output("rm", "-f", "sick") == "sick\n"
    assert not is_alive(init)
    assert box.ids() == set()


def test_rm_f_of_several_leaves_the_others(box: CtlBox) -> None:
    """One sick, one well, one created, one over; and one that stays."""
    for name in ("sick", "well", "stays"):
        box.detached(name, "sleep", "1000")
    box.detached("over", "true")
    box.ctl.output("create", "--rootfs", box.rootfs, "created", "--", "true")
    box.ctl.output("wait", "over")
    stays = number(box, "task.pid", "stays")
    os.kill(number(box, "shim.pid"), signal.SIGSTOP)
    assert set(box.ctl.output("rm", "-f", "sick", "well", "over", "created").split()) == {
        "sick", "well", "over", "created",
    }  # fmt: skip
    assert box.ids() == {"stays"}
    assert is_alive(stays)

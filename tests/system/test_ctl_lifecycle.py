"""stop, kill, pause, resume, wait, rm and update on real containers."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish
from tests.support.waiting import wait_until

OBEDIENT = "trap 'echo bye; exit 5' TERM; trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def box() -> Iterator[CtlBox]:
    with CtlBox() as made:
        yield made


def ready(box: CtlBox, name: str, script: str, *options: str) -> None:
    """A container in the background that has set its traps."""
    box.detached(name, "sh", "-c", script, options=options)
    wait_until(lambda: "ready" in box.ctl.output("logs", name), what=f"{name} to be ready")


def test_stop_asks_and_waits(box: CtlBox) -> None:
    ready(box, "polite", OBEDIENT)
    try:
        assert box.ctl.output("stop", "polite") == "polite\n"
        assert box.ctl.output("wait", "polite", code=5) == "5\n"
        assert box.ctl.output("logs", "polite") == "ready\nbye\n"
        assert box.ctl.output("stop", "polite") == "polite\n"  # stopped already is stopped
    finally:
        box.remove("polite")


def test_stop_uses_the_container_s_own_signal(box: CtlBox) -> None:
    ready(box, "own", OBEDIENT, "--stop-signal", "USR1")
    try:
        box.ctl.output("stop", "own")
        box.ctl.output("wait", "own", code=6)
        assert box.ctl.output("inspect", "--part", "exits.-1.exit_code", "own") == "6\n"
    finally:
        box.remove("own")


def test_stop_kills_after_the_grace(box: CtlBox) -> None:
    ready(box, "stubborn", STUBBORN)
    try:
        began = time.monotonic()
        box.ctl.output("stop", "-t", "0.5", "stubborn")

        assert 0.5 <= time.monotonic() - began < 8
        assert box.ctl.output("wait", "stubborn", code=137) == "137\n"
    finally:
        box.remove("stubborn")


def test_stop_with_another_signal_and_several_at_once(box: CtlBox) -> None:
    """The grace is shared: three that ignore it take it once, not three times."""
    for name in ("a", "b", "c"):
        ready(box, name, STUBBORN)
    try:
        began = time.monotonic()
        assert box.ctl.output("stop", "--time", "1", "--signal", "TERM", "a", "b", "c").split() == ["a", "b", "c"]
        assert time.monotonic() - began < 6
    finally:
        box.remove("a", "b", "c")


def test_stop_all(box: CtlBox) -> None:
    ready(box, "one", OBEDIENT)
    ready(box, "two", OBEDIENT)
    try:
        assert set(box.ctl.output("stop", "--all").split()) == {"one", "two"}
        assert box.ctl.output("ps", "-q") == ""
    finally:
        box.remove("one", "two")


def test_stop_of_a_paused_container_lets_it_react(box: CtlBox) -> None:
    ready(box, "frozen", OBEDIENT)
    try:
        box.ctl.output("pause", "frozen")
        box.ctl.output("stop", "frozen")
        assert box.ctl.output("wait", "frozen", code=5) == "5\n"
    finally:
        box.remove("frozen")


def test_stop_ends_a_restart_policy_and_start_resumes_it(box: CtlBox) -> None:
    ready(box, "kept", OBEDIENT, "--restart", "always")
    try:
        box.ctl.output("stop", "kept")
        assert "Exited (5)" in box.ctl.output("ps", "-a")
        box.ctl.output("start", "kept")
        box.ctl.output("kill", "kept")
        wait_until(lambda: "kept" in box.ctl.output("ps", "-q", "--filter", "status=running"), what="the restart")
    finally:
        box.remove("kept")


def test_kill_with_a_signal_by_name_and_number(box: CtlBox) -> None:
    ready(box, "target", OBEDIENT)
    try:
        assert box.ctl.run("kill", "-s", "NONSENSE", "target").returncode == 2
        assert box.ctl.output("kill", "-s", "usr1", "target") == "target\n"
        box.ctl.output("wait", "target", code=6)
        done = box.ctl.run("kill", "--signal", "9", "target")
        assert done.returncode == 1
        assert "already finished" in done.stderr
    finally:
        box.remove("target")


def test_kill_all_reaches_every_process(box: CtlBox) -> None:
    ready(box, "crowd", "sleep 100 & echo ready; trap '' TERM; wait; echo child gone; sleep 100")
    try:
        box.ctl.output("kill", "--all", "-s", "TERM", "crowd")
        wait_until(lambda: "child gone" in box.ctl.output("logs", "crowd"), what="the child to end")
    finally:
        box.remove("crowd")


def test_pause_and_resume(box: CtlBox) -> None:
    box.detached("counter", "sh", "-c", "while :; do echo tick; sleep 0.02; done")
    try:
        assert box.ctl.output("pause", "counter") == "counter\n"
        assert "(paused)" in box.ctl.output("ps")
        at_pause = box.ctl.output("logs", "counter")
        assert at_pause == box.ctl.output("logs", "counter")
        assert box.ctl.run("exec", "counter", "true").returncode == 125
        box.ctl.output("resume", "counter")
        wait_until(lambda: len(box.ctl.output("logs", "counter")) > len(at_pause), what="it to go on")
        assert box.ctl.run("resume", "counter").returncode == 1
    finally:
        box.remove("counter")


def test_wait_for_several_gives_each_code_and_the_first_that_is_not_0(box: CtlBox) -> None:
    for name, code in (("w0", "0"), ("w3", "3"), ("w4", "4")):
        box.detached(name, "sh", "-c", f"exit {code}")
    try:
        assert box.ctl.output("wait", "w0", "w3", "w4", code=3) == "0\n3\n4\n"
    finally:
        box.remove("w0", "w3", "w4")


def test_wait_is_answered_from_the_records_when_the_task_is_gone(box: CtlBox) -> None:
    box.run("--rm", "past", "--", "sh", "-c", "exit 8")

    assert box.ctl.output("wait", "past", code=8) == "8\n"


def test_wait_for_nothing_is_an_error_of_its_own_code(box: CtlBox) -> None:
    done = box.ctl.run("wait", "never-was")

    assert done.returncode == 125
    assert "never-was" in done.stderr


def test_wait_goes_on_until_the_end(box: CtlBox) -> None:
    ready(box, "slow", OBEDIENT)
    try:
        waiter = box.ctl.start("wait", "slow")
        box.ctl.output("kill", "-s", "TERM", "slow")
        assert finish(waiter)[:2] == (5, b"5\n")
    finally:
        box.remove("slow")


def test_rm_refuses_what_runs_unless_forced(box: CtlBox) -> None:
    box.detached("alive", "sleep", "100")
    done = box.ctl.run("rm", "alive")

    assert done.returncode == 1
    assert "rm -f alive" in done.stderr
    assert box.ctl.output("rm", "-f", "alive") == "alive\n"
    assert box.ids() == set()
    assert not os.path.exists(box.log_folder("alive"))


def test_rm_of_what_is_stopped_created_or_paused(box: CtlBox) -> None:
    box.run("stopped", "--", "true")
    box.ctl.output("create", "--rootfs", box.rootfs, "created", "--", "true")
    box.detached("paused", "sleep", "100")
    box.ctl.output("pause", "paused")

    assert box.ctl.output("rm", "stopped", "created") == "stopped\ncreated\n"
    assert box.ctl.run("rm", "paused").returncode == 1
    assert box.ctl.output("rm", "--force", "paused") == "paused\n"
    assert box.ids() == set()


def test_rm_of_one_that_is_not_there_does_not_keep_the_others(box: CtlBox) -> None:
    box.run("there", "--", "true")
    done = box.ctl.run("rm", "missing", "there")

    assert (done.returncode, done.stdout) == (1, "there\n")
    assert "no container 'missing'" in done.stderr


def test_update_changes_the_cgroup_and_the_record(box: CtlBox) -> None:
    box.detached("changing", "sleep", "100", options=("--memory", "64m"))
    try:
        box.ctl.output("update", "--memory", "32m", "--pids-limit", "9", "--cpu-shares", "512", "changing")
        usage = box.ctl.output("stats", "--no-stream", "--json", "changing")

        assert '"memory_limit": 33554432' in usage
        assert '"pids_limit": 9' in usage
        resources = box.ctl.output("inspect", "--part", "container.spec.linux.resources", "changing")
        assert '"limit": 33554432' in resources
        assert '"shares": 512' in resources
    finally:
        box.remove("changing")


def test_update_of_the_other_limits(box: CtlBox) -> None:
    box.detached("tuned", "sleep", "100")
    try:
        box.ctl.output("update", "--cpus", "0.5", "--cpuset-cpus", "0", "-m", "64m", "--memory-swap", "64m", "tuned")
        resources = box.ctl.output("inspect", "--part", "container.spec.linux.resources", "tuned")
        assert all(text in resources for text in ('"quota": 50000', '"cpus": "0"', '"swap": 67108864'))
    finally:
        box.remove("tuned")


def test_update_of_a_stopped_container_is_for_its_next_start(box: CtlBox) -> None:
    box.run("idle", "--", "true")
    try:
        box.ctl.output("update", "--restart", "unless-stopped", "--label", "team=web", "--memory", "16m", "idle")
        labels = box.ctl.output("inspect", "--part", "container.labels", "idle")
        assert '"containerd.io/restart.policy": "unless-stopped"' in labels
        assert '"team": "web"' in labels
        assert box.ctl.run("update", "idle").returncode == 2
    finally:
        box.remove("idle")

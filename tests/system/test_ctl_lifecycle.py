"""stop, kill, pause, resume, wait, rm and update on real containers."""

import os
import time

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish
from tests.support.waiting import wait_until

OBEDIENT = "trap 'echo bye; exit 5' TERM; trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done"


def ready(ctlbox: CtlBox, name: str, script: str, *options: str) -> None:
    """A container in the background that has set its traps."""
    ctlbox.detached(name, "sh", "-c", script, options=options)
    wait_until(lambda: "ready" in ctlbox.ctl.output("logs", name), what=f"{name} to be ready")


def test_stop_asks_and_waits(ctlbox: CtlBox) -> None:
    ready(ctlbox, "polite", OBEDIENT)
    try:
        assert ctlbox.ctl.output("stop", "polite") == "polite\n"
        assert ctlbox.ctl.output("wait", "polite", code=5) == "5\n"
        assert ctlbox.ctl.output("logs", "polite") == "ready\nbye\n"
        assert ctlbox.ctl.output("stop", "polite") == "polite\n"  # stopped already is stopped
    finally:
        ctlbox.remove("polite")


def test_stop_uses_the_container_s_own_signal(ctlbox: CtlBox) -> None:
    ready(ctlbox, "own", OBEDIENT, "--stop-signal", "USR1")
    try:
        ctlbox.ctl.output("stop", "own")
        ctlbox.ctl.output("wait", "own", code=6)
        assert ctlbox.ctl.output("inspect", "--part", "exits.-1.exit_code", "own") == "6\n"
    finally:
        ctlbox.remove("own")


def test_stop_kills_after_the_grace(ctlbox: CtlBox) -> None:
    ready(ctlbox, "stubborn", STUBBORN)
    try:
        began = time.monotonic()
        ctlbox.ctl.output("stop", "-t", "0.5", "stubborn")

        assert 0.5 <= time.monotonic() - began < 8
        assert ctlbox.ctl.output("wait", "stubborn", code=137) == "137\n"
    finally:
        ctlbox.remove("stubborn")


def test_stop_with_another_signal_and_several_at_once(ctlbox: CtlBox) -> None:
    """The grace is shared: three that ignore it take it once, not three times."""
    for name in ("a", "b", "c"):
        ready(ctlbox, name, STUBBORN)
    try:
        began = time.monotonic()
        assert ctlbox.ctl.output("stop", "--time", "1", "--signal", "TERM", "a", "b", "c").split() == ["a", "b", "c"]
        assert time.monotonic() - began < 6
    finally:
        ctlbox.remove("a", "b", "c")


def test_stop_all(ctlbox: CtlBox) -> None:
    ready(ctlbox, "one", OBEDIENT)
    ready(ctlbox, "two", OBEDIENT)
    try:
        assert set(ctlbox.ctl.output("stop", "--all").split()) == {"one", "two"}
        assert ctlbox.ctl.output("ps", "-q") == ""
    finally:
        ctlbox.remove("one", "two")


def test_stop_of_a_paused_container_lets_it_react(ctlbox: CtlBox) -> None:
    ready(ctlbox, "frozen", OBEDIENT)
    try:
        ctlbox.ctl.output("pause", "frozen")
        ctlbox.ctl.output("stop", "frozen")
        assert ctlbox.ctl.output("wait", "frozen", code=5) == "5\n"
    finally:
        ctlbox.remove("frozen")


def test_stop_ends_a_restart_policy_and_start_resumes_it(ctlbox: CtlBox) -> None:
    ready(ctlbox, "kept", OBEDIENT, "--restart", "always")
    try:
        ctlbox.ctl.output("stop", "kept")
        assert "Exited (5)" in ctlbox.ctl.output("ps", "-a")
        ctlbox.ctl.output("start", "kept")
        ctlbox.ctl.output("kill", "kept")
        wait_until(lambda: "kept" in ctlbox.ctl.output("ps", "-q", "--filter", "status=running"), what="the restart")
    finally:
        ctlbox.remove("kept")


def test_kill_with_a_signal_by_name_and_number(ctlbox: CtlBox) -> None:
    ready(ctlbox, "target", OBEDIENT)
    try:
        assert ctlbox.ctl.run("kill", "-s", "NONSENSE", "target").returncode == 2
        assert ctlbox.ctl.output("kill", "-s", "usr1", "target") == "target\n"
        ctlbox.ctl.output("wait", "target", code=6)
        done = ctlbox.ctl.run("kill", "--signal", "9", "target")
        assert done.returncode == 1
        assert "already finished" in done.stderr
    finally:
        ctlbox.remove("target")


def test_kill_all_reaches_every_process(ctlbox: CtlBox) -> None:
    ready(ctlbox, "crowd", "sleep 100 & echo ready; trap '' TERM; wait; echo child gone; sleep 100")
    try:
        ctlbox.ctl.output("kill", "--all", "-s", "TERM", "crowd")
        wait_until(lambda: "child gone" in ctlbox.ctl.output("logs", "crowd"), what="the child to end")
    finally:
        ctlbox.remove("crowd")


def test_pause_and_resume(ctlbox: CtlBox) -> None:
    ctlbox.detached("counter", "sh", "-c", "while :; do echo tick; sleep 0.02; done")
    try:
        assert ctlbox.ctl.output("pause", "counter") == "counter\n"
        assert "(paused)" in ctlbox.ctl.output("ps")
        at_pause = ctlbox.ctl.output("logs", "counter")
        assert at_pause == ctlbox.ctl.output("logs", "counter")
        assert ctlbox.ctl.run("exec", "counter", "true").returncode == 125
        ctlbox.ctl.output("resume", "counter")
        wait_until(lambda: len(ctlbox.ctl.output("logs", "counter")) > len(at_pause), what="it to go on")
        assert ctlbox.ctl.run("resume", "counter").returncode == 1
    finally:
        ctlbox.remove("counter")


def test_wait_for_several_gives_each_code_and_the_first_that_is_not_0(ctlbox: CtlBox) -> None:
    for name, code in (("w0", "0"), ("w3", "3"), ("w4", "4")):
        ctlbox.detached(name, "sh", "-c", f"exit {code}")
    try:
        assert ctlbox.ctl.output("wait", "w0", "w3", "w4", code=3) == "0\n3\n4\n"
    finally:
        ctlbox.remove("w0", "w3", "w4")


def test_wait_is_answered_from_the_records_when_the_task_is_gone(ctlbox: CtlBox) -> None:
    ctlbox.run("--rm", "past", "--", "sh", "-c", "exit 8")

    assert ctlbox.ctl.output("wait", "past", code=8) == "8\n"


def test_wait_for_nothing_is_an_error_of_its_own_code(ctlbox: CtlBox) -> None:
    done = ctlbox.ctl.run("wait", "never-was")

    assert done.returncode == 125
    assert "never-was" in done.stderr


def test_wait_answers_for_those_that_are_there_and_tells_of_the_others(ctlbox: CtlBox) -> None:
    for name, code in (("w0", "0"), ("w3", "3")):
        ctlbox.detached(name, "sh", "-c", f"exit {code}")
    try:
        done = ctlbox.ctl.run("wait", "never-was", "w3", "nor-this", "w0")
        assert (done.returncode, done.stdout) == (125, "3\n0\n")
        assert [line.split()[5] for line in done.stderr.splitlines() if line.startswith("shimctl: nothing to")] == [
            "never-was",
            "nor-this",
        ]
    finally:
        ctlbox.remove("w0", "w3")


def test_wait_goes_on_until_the_end(ctlbox: CtlBox) -> None:
    ready(ctlbox, "slow", OBEDIENT)
    try:
        waiter = ctlbox.ctl.start("wait", "slow")
        ctlbox.ctl.output("kill", "-s", "TERM", "slow")
        assert finish(waiter)[:2] == (5, b"5\n")
    finally:
        ctlbox.remove("slow")


def test_rm_refuses_what_runs_unless_forced(ctlbox: CtlBox) -> None:
    ctlbox.detached("alive", "sleep", "100")
    done = ctlbox.ctl.run("rm", "alive")

    assert done.returncode == 1
    assert "rm -f alive" in done.stderr
    assert ctlbox.ctl.output("rm", "-f", "alive") == "alive\n"
    assert ctlbox.ids() == set()
    assert not os.path.exists(ctlbox.log_folder("alive"))


def test_rm_of_what_is_stopped_created_or_paused(ctlbox: CtlBox) -> None:
    ctlbox.run("stopped", "--", "true")
    ctlbox.ctl.output("create", "--rootfs", ctlbox.rootfs, "created", "--", "true")
    ctlbox.detached("paused", "sleep", "100")
    ctlbox.ctl.output("pause", "paused")

    assert ctlbox.ctl.output("rm", "stopped", "created") == "stopped\ncreated\n"
    assert ctlbox.ctl.run("rm", "paused").returncode == 1
    assert ctlbox.ctl.output("rm", "--force", "paused") == "paused\n"
    assert ctlbox.ids() == set()


def test_rm_of_one_that_is_not_there_does_not_keep_the_others(ctlbox: CtlBox) -> None:
    ctlbox.run("there", "--", "true")
    done = ctlbox.ctl.run("rm", "missing", "there")

    assert (done.returncode, done.stdout) == (1, "there\n")
    assert "no container 'missing'" in done.stderr


def test_update_changes_the_cgroup_and_the_record(ctlbox: CtlBox) -> None:
    ctlbox.detached("changing", "sleep", "100", options=("--memory", "64m"))
    try:
        ctlbox.ctl.output("update", "--memory", "32m", "--pids-limit", "9", "--cpu-shares", "512", "changing")
        usage = ctlbox.ctl.output("stats", "--no-stream", "--json", "changing")

        assert '"memory_limit": 33554432' in usage
        assert '"pids_limit": 9' in usage
        resources = ctlbox.ctl.output("inspect", "--part", "container.spec.linux.resources", "changing")
        assert '"limit": 33554432' in resources
        assert '"shares": 512' in resources
    finally:
        ctlbox.remove("changing")


def test_update_of_the_other_limits(ctlbox: CtlBox) -> None:
    ctlbox.detached("tuned", "sleep", "100")
    try:
        ctlbox.ctl.output("update", "--cpus", "0.5", "--cpuset-cpus", "0", "-m", "64m", "--memory-swap", "64m", "tuned")
        resources = ctlbox.ctl.output("inspect", "--part", "container.spec.linux.resources", "tuned")
        assert all(text in resources for text in ('"quota": 50000', '"cpus": "0"', '"swap": 67108864'))
    finally:
        ctlbox.remove("tuned")


def test_update_of_a_stopped_container_is_for_its_next_start(ctlbox: CtlBox) -> None:
    ctlbox.run("idle", "--", "true")
    try:
        ctlbox.ctl.output("update", "--restart", "unless-stopped", "--label", "team=web", "--memory", "16m", "idle")
        labels = ctlbox.ctl.output("inspect", "--part", "container.labels", "idle")
        assert '"containerd.io/restart.policy": "unless-stopped"' in labels
        assert '"team": "web"' in labels
        assert ctlbox.ctl.run("update", "idle").returncode == 2
    finally:
        ctlbox.remove("idle")

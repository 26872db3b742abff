"""Kill, pause, resume, ps, metrics, update, and running out of memory."""

import json
import os
import signal

from tests.interop.play import Play
from tests.interop.scenario import scenario
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
LIMIT_BYTES = 32 << 20


@scenario(short=True)
def kill_what_is_not_there(play: Play) -> None:
    """Killing what has finished, was deleted, or never was: the same refusals."""
    play.start("c1")
    play.ctr("kill an unknown exec", "tasks", "kill", "--exec-id", "nobody", "c1")
    play.kill("c1")
    play.wait_stopped("c1")
    play.kill("c1")
    play.kill("c1", "TERM", "--all")
    play.ctr("kill an exec of a dead container", "tasks", "kill", "--exec-id", "nobody", "c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.kill("c1")
    play.kill("unknown")
    play.remove("c1")


@scenario()
def kill_with_odd_signals(play: Play) -> None:
    """Signal 0, numbers without a name, and numbers that are none."""
    play.start("c1")
    for number in (0, 64, 65, 4096):
        play.tasks("Kill", f"Kill with {number}", container_id="c1", signal=number)
        if number == 64:  # SIGRTMAX: init has no handler, so it is exempt
            play.note_state("c1")
    play.remove("c1")


@scenario(order="by process")
def kill_everyone(play: Play) -> None:
    """`kill --all` reaches the execs too."""
    play.start("c1", SHELL, "-c", "trap 'exit 3' TERM; >/tmp/ready; while :; do sleep 0.01; done")
    play.wait_file("ready")
    client = play.client(*play.exec_args("c1", "e1", (SHELL, "-c", ">/tmp/e1; exec sleep 1000")))
    play.wait_file("e1")
    play.kill("c1", "TERM", "--all")
    play.note("the exec's exit is a signal's", client.finish().exit in (128 + signal.SIGTERM, 128 + signal.SIGKILL))
    play.wait_stopped("c1")
    play.note_state("c1")
    play.events.wait_for("exit c1 = 3")
    play.tasks("Delete", container_id="c1")
    play.remove("c1")


@scenario(short=True)
def pause_and_resume(play: Play) -> None:
    """Pause, resume, and both where they may not be."""
    play.start("c1", SHELL, "-c", "while :; do echo x >>/tmp/count; done")
    play.wait_file("count")
    play.ctr("resume what is not paused", "tasks", "resume", "c1")
    play.ctr("pause", "tasks", "pause", "c1")
    play.note_state("c1")
    before = len(play.read_file("count"))
    play.ctr("pause again", "tasks", "pause", "c1")
    play.ctr("list", "tasks", "ps", "nobody")
    play.note("it stands still", len(play.read_file("count")) == before)
    play.ctr("resume", "tasks", "resume", "c1")
    wait_until(lambda: len(play.read_file("count")) > before, what="the container to go on")
    play.note_state("c1")
    play.kill("c1")
    play.wait_stopped("c1")
    play.ctr("pause what has ended", "tasks", "pause", "c1")
    play.ctr("resume what has ended", "tasks", "resume", "c1")
    play.remove("c1")


@scenario()
def kill_while_paused(play: Play) -> None:
    """A paused container that is killed dies, without being resumed by hand."""
    play.start("c1")
    play.ctr("pause", "tasks", "pause", "c1")
    play.tasks("Delete", "Delete while paused", container_id="c1")
    play.kill("c1")
    play.wait_stopped("c1")
    play.note_state("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.remove("c1")


@scenario()
def state_of_an_exec_while_paused(play: Play) -> None:
    """The execs of a paused container count as paused."""
    play.start("c1")
    play.ctr("exec -d", *play.exec_args("c1", "e1", ("/bin/sleep", "1000"), ("--detach",)))
    play.ctr("pause", "tasks", "pause", "c1")
    play.note_state("c1", "e1")
    play.ctr("resume", "tasks", "resume", "c1")
    play.note_state("c1", "e1")
    play.ctr("kill", "tasks", "kill", "-s", "KILL", "--exec-id", "e1", "c1")
    play.wait_stopped("c1", "e1")
    play.remove("c1")


@scenario(order="by process")
def processes(play: Play) -> None:
    """`tasks ps` and ListPids: every process, the execs' roots with their names."""
    play.start("c1", SHELL, "-c", "sleep 1000 & sleep 1000 & >/tmp/ready; wait")
    play.wait_file("ready")
    play.ctr("exec -d", *play.exec_args("c1", "e1", (SHELL, "-c", "sleep 1000 & >/tmp/e1; wait"), ("--detach",)))
    play.wait_file("e1")
    reply = play.api.tasks("ListPids", container_id="c1")
    named = {entry.info.value[2:].decode() for entry in reply.processes if entry.info.value}
    play.note("processes", len(reply.processes))
    play.note("with details of", sorted(named))
    play.note("the details' type", sorted({entry.info.type_url for entry in reply.processes}))
    pids = {entry.pid for entry in reply.processes}
    assert {play.pid_of("c1"), play.pid_of("c1", "e1")} <= pids
    table = play.box.ctr("tasks", "ps", "c1").text.splitlines()
    play.note("rows of ctr", len(table))
    play.kill("c1")
    play.wait_stopped("c1")
    play.ctr("ps of what has ended", "tasks", "ps", "c1")
    play.remove("c1")


@scenario()
def metrics(play: Play) -> None:
    """`tasks metrics`: the same groups and fields, and the numbers that do not depend on the moment."""
    script = "dd if=/dev/zero of=/tmp/file bs=1M count=1 2>/dev/null; >/tmp/ready; exec sleep 1000"
    play.start("c1", SHELL, "-c", script, options=("--memory-limit", str(LIMIT_BYTES)))
    play.wait_file("ready")
    found = json.loads(play.box.ctr("tasks", "metrics", "--format", "json", "c1").out)
    play.note("groups", dict(steady(found)))
    play.note("limit", found["memory"]["usage"]["limit"])
    play.note("pids", found["pids"])
    play.note("processors", len(found["cpu"]["usage"]["per_cpu"]))
    play.ctr("metrics of nobody", "tasks", "metrics", "nobody")
    play.kill("c1")
    play.wait_stopped("c1")
    gone = play.box.ctr("tasks", "metrics", "c1")
    play.note("metrics of what has ended", gone.exit)
    play.remove("c1")


def steady(found: dict[str, object]) -> list[tuple[str, object]]:
    """The groups by name, with their fields. Which of memory's are zero, and so not written, is of the moment."""
    groups = {name: sorted(group) for name, group in found.items() if isinstance(group, dict)}
    return [(name, None if name in ("memory", "blkio") else group) for name, group in sorted(groups.items())]


@scenario()
def update(play: Play) -> None:
    """Update: limits change, bad resources are refused, and so is the update of what has ended."""
    play.start("c1", options=("--memory-limit", str(LIMIT_BYTES)))
    for label, value in (
        ("Update", json.dumps({"memory": {"limit": 2 * LIMIT_BYTES}, "cpu": {"shares": 512}}).encode()),
        ("Update with nothing", b"{}"),
        ("Update with what no cgroup takes", json.dumps({"memory": {"limit": 1}}).encode()),
    ):
        fields = {"type_url": RESOURCES_URL, "value": value}
        play.tasks("Update", label, container_id="c1", resources=fields)
        play.note("limit", memory_limit(play, "c1"))
    play.kill("c1")
    play.wait_stopped("c1")
    fields = {"type_url": RESOURCES_URL, "value": b"{}"}
    play.tasks("Update", "Update of what has ended", container_id="c1", resources=fields)
    play.remove("c1")


def memory_limit(play: Play, container: str) -> int:
    found = json.loads(play.box.ctr("tasks", "metrics", "--format", "json", container).out)
    return int(found["memory"]["usage"]["limit"])


@scenario(order="unwatched")
def out_of_memory(play: Play) -> None:
    """An exec that takes too much is killed and the container hears of it; so is an init."""
    play.start("c1", options=("--memory-limit", str(LIMIT_BYTES)))
    play.exec("c1", "e1", SHELL, "-c", "tail /dev/zero")
    play.events.wait_for("oom c1")
    play.note_state("c1")
    play.run("c2", "/bin/tail", "/dev/zero", options=("--memory-limit", str(LIMIT_BYTES)))
    play.remove("c1", "c2")


@scenario()
def died_by_other_hands(play: Play) -> None:
    """An init that somebody kills from outside, with no call to anyone: seen, told, exact."""
    play.start("c1")
    os.kill(play.pid_of("c1"), signal.SIGKILL)
    play.wait_stopped("c1")
    play.note_state("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.remove("c1")

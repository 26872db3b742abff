"""containerd is killed and started again: between any two steps of an operation, and while things happen.

The recorder holds one request or reply, or one run of the shim's program; containerd is killed; what was held is
dropped (a request that was never sent) or let go (a reply nobody is there to hear); containerd is started again. What
it then says of the container, whether it can be ended and deleted, and which events came through, is compared.
"""

import os
import signal
from collections.abc import Callable

from tests.interop.play import WAIT_FOR_GO, Play
from tests.interop.scenario import scenario
from tests.support.containerdbox import Client
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
DELIVERY_S = 15.0


def run(play: Play) -> Client:
    return play.run_open("c1", "/bin/sleep", "1000", options=("--detach", "--null-io"))


def execute(play: Play) -> Client:
    return play.client(*play.exec_args("c1", "e1", ("/bin/sleep", "1000"), ("--detach",)))


def tasks(*words: str) -> Callable[[Play], Client]:
    return lambda play: play.client("tasks", *words, "c1")


def nothing(play: Play) -> None:
    pass


def running(play: Play) -> None:
    play.start("c1", options=("--null-io",))


def paused(play: Play) -> None:
    running(play)
    play.ctr("pause", "tasks", "pause", "c1")


def stopped(play: Play) -> None:
    running(play)
    play.kill("c1")
    play.wait_stopped("c1")


# What there is before, what a client asks for, and the steps of that: calls to the shim, and runs of its program.
OPERATIONS: dict[str, tuple[Callable[[Play], None], Callable[[Play], Client], tuple[str, ...]]] = {
    "run": (nothing, run, ("start", "Create", "Start")),
    "exec": (running, execute, ("Exec", "Start")),
    "pause": (running, tasks("pause"), ("Pause",)),
    "resume": (paused, tasks("resume"), ("Resume",)),
    "kill": (running, tasks("kill", "-s", "KILL"), ("Kill",)),
    "rm": (stopped, tasks("rm"), ("Delete", "Shutdown", "delete")),
}


def restart_at(
    before: Callable[[Play], None], ask: Callable[[Play], Client], step: str, when: str
) -> Callable[[Play], None]:
    def script(play: Play) -> None:
        before(play)
        hold = play.tape.hold(step, when)
        client = ask(play)
        hold.wait()
        play.box.kill()
        client.kill()
        is_call = step[0].isupper()
        play.tape.release(hold, drop=is_call and when == "request")
        if not is_call:
            wait_until(lambda: not play.tape.open_calls(step), what=f"the shim's program to {step}")
        play.box.start()
        play.events.subscribe()
        play.note_state("c1")
        play.note_state("c1", "e1")
        end(play)

    script.__name__ = f"restart_at_{'' if step[0].isupper() else 'program_'}{step.lower()}_{when}"
    script.__doc__ = f"containerd is killed at the {when} of {step}."
    return script


def end(play: Play) -> None:
    """End and delete the container, whatever is left of it, and see that every event of it came through."""
    play.note("kill", play.box.ctr("tasks", "kill", "-s", "KILL", "c1").exit)
    if play.state("c1") is not None:
        play.wait_stopped("c1")
        play.note("status", play.state("c1").exit_status)
    play.note("delete", play.box.ctr("tasks", "rm", "c1").exit)
    play.note_state("c1")
    play.remove("c1")
    note_events(play)


def note_events(play: Play) -> None:
    """Which events the shims owed for what they had answered, and never delivered before they were gone."""
    lost: set[str] = set()

    def is_over() -> bool:
        lost.clear()
        lost.update(play.owed() - set(play.delivered()))
        return not lost or not play.box.processes()

    wait_until(is_over, deadline_s=DELIVERY_S, what="the events to be delivered or their shim to end")
    play.note("events lost", sorted(lost))


for name, (before, ask, steps) in OPERATIONS.items():
    for step in steps:
        for when in ("request", "reply"):
            made = restart_at(before, ask, step, when)
            if name == "exec" and step == "Start":
                made.__name__ = f"restart_at_exec_start_{when}"
            scenario(order="unwatched", recorded=True)(made)


@scenario(order="unwatched", recorded=True, short=True)
def restart_while_running(play: Play) -> None:
    """containerd is killed and started: the container ran on, execs work, its end is told."""
    running(play)
    pid = play.pid_of("c1")
    play.box.restart()
    play.events.subscribe()
    play.note("the same process", play.pid_of("c1") == pid)
    play.note_state("c1")
    play.exec("c1", "e1", SHELL, "-c", "echo hello; exit 3")
    end(play)


@scenario(order="unwatched", recorded=True)
def exit_while_down(play: Play) -> None:
    """The container ends while containerd is down: status and event are there afterwards."""
    running(play)
    pid = play.pid_of("c1")
    play.box.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="init to be reaped")
    play.box.start()
    play.events.subscribe()
    play.wait_stopped("c1")
    play.note_state("c1")
    end(play)


@scenario(order="unwatched", recorded=True)
def exec_exit_while_down(play: Play) -> None:
    """An exec ends while containerd is down: its status is there afterwards, and it can be deleted."""
    running(play)
    script = f"{WAIT_FOR_GO}; exit 11"
    play.ctr("exec -d", *play.exec_args("c1", "e1", (SHELL, "-c", script), ("--detach",)))
    pid = play.pid_of("c1", "e1")
    play.box.kill()
    play.make_file("go")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the exec to be reaped")
    play.box.start()
    play.events.subscribe()
    play.wait_stopped("c1", "e1")
    play.note_state("c1", "e1")
    play.tasks("DeleteProcess", container_id="c1", exec_id="e1")
    end(play)


@scenario(order="unwatched", recorded=True)
def output_while_down(play: Play) -> None:
    """The container writes while containerd is down; the client that attaches afterwards gets it all."""
    script = f"{WAIT_FOR_GO}; yes 0123456789 | head -c 50000; >/tmp/done; exec sleep 1000"
    play.start("c1", SHELL, "-c", script)
    play.box.kill()
    play.make_file("go")
    play.wait_file("done")
    play.box.start()
    play.events.subscribe()
    client = play.client("tasks", "attach", "c1")
    wait_until(lambda: len(client.out) >= 50_000, what="the attached client to get it all")
    play.kill("c1")
    play.note_result("attach", client.finish())
    play.remove("c1")


@scenario(order="unwatched", recorded=True)
def restarted_many_times(play: Play) -> None:
    """containerd is killed ten times in a row, with containers of every state."""
    play.create("made")
    for container in ("runs", "sleeps", "ended"):
        play.start(container, options=("--null-io",))
    play.ctr("pause", "tasks", "pause", "sleeps")
    play.kill("ended")
    play.wait_stopped("ended")
    for _ in range(10):
        play.box.restart()
    play.events.subscribe()
    for container in ("made", "runs", "sleeps", "ended"):
        play.note_state(container)
    play.ctr("resume", "tasks", "resume", "sleeps")
    play.remove("made", "runs", "sleeps", "ended")
    note_events(play)

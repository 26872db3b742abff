"""Call by call: what containerd asks of the shim and hears from it, and what the shim tells it, all life long.

Every distinct call of a phase is a note: its name and request are the label, the answers to it the value. Which
containerd asks twice, and what it asks in parallel, is its own affair and no part of the comparison.
"""

from typing import Any

from tests.interop.play import WAIT_FOR_GO, Play
from tests.interop.scenario import scenario
from tests.support.transcript import Entry, brief
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
UNANSWERED = ("Wait", "Shutdown")  # until there is an exit; because the shim may be gone first


class Phases:
    """Cuts the recorder's entries into phases."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.begin = 0

    def end(self, name: str) -> None:
        """Note the calls since the last phase. Blocks: until all of them were answered, but those that wait."""
        tape = self.play.tape

        def is_quiet() -> bool:
            return all(entry.ended or entry.name in UNANSWERED for entry in list(tape.entries)[self.begin :])

        wait_until(is_quiet, what=f"the calls of {name} to be answered")
        entries = list(tape.entries)[self.begin :]
        self.begin += len(entries)
        answers: dict[str, set[str]] = {}
        for entry in entries:
            if entry.name == "CloseIO":  # ctr makes this call if it finds the end of its stdin late enough
                continue
            answers.setdefault(f"{name}: {asked(entry)}", set()).add(answered(entry))
        for label, found in sorted(answers.items()):
            self.play.note(self.play.plain(label), sorted(found))


def asked(entry: Entry) -> str:
    """A call without what only ctr and containerd decide: the options they have for one runtime and not for another."""
    request = dict(entry.request)
    request.pop("options", None)
    if entry.kind == "exec":
        request.pop("stdin", None)
    if "spec" in request:
        request["spec"] = "<a process>"
    return f"{entry.kind} {entry.name} {brief(request)}"


def answered(entry: Entry) -> str:
    answer: Any = entry.answer
    if entry.name == "Shutdown":
        return "answered or not"
    if isinstance(answer, dict):
        # Warnings on stderr are for containerd's log; a version is nothing the Go shim has.
        answer = {key: value for key, value in answer.items() if key not in ("stderr", "version")}
    return entry.error or (brief(answer) if entry.ended else "no answer yet")


@scenario(order="unwatched", recorded=True, short=True)
def calls_of_a_short_life(play: Play) -> None:
    """`ctr run --rm`, call by call."""
    phases = Phases(play)
    client = play.run_open("c1", SHELL, "-c", f"{WAIT_FOR_GO}; echo hi; exit 3", options=("--rm",))
    wait_until(lambda: play.tape.asked("Wait"), what="the client to wait")
    wait_until(lambda: not play.tape.open_calls("Start"), what="the container to run")
    phases.end("run")
    play.make_file("go")
    play.note_result("run", client.finish())
    wait_until(lambda: "delete c1 = 3" in play.delivered(), what="the last event")
    phases.end("the end")


@scenario(order="unwatched", recorded=True)
def calls_of_a_long_life(play: Play) -> None:
    """Run, exec, pause, resume, ps, kill, delete, call by call."""
    phases = Phases(play)
    play.start("c1")
    wait_until(lambda: "start c1" in play.delivered(), what="the start to be told")
    phases.end("run")
    play.ctr("exec -d", *play.exec_args("c1", "e1", ("/bin/sleep", "1000"), ("--detach",)))
    wait_until(lambda: "exec-started c1/e1" in play.delivered(), what="the exec's start to be told")
    phases.end("exec")
    play.exec("c1", "e2", "/bin/no-such-program")
    wait_until(lambda: "exec-added c1/e2" in play.delivered(), what="the exec to be told")
    phases.end("exec of nothing")
    play.ctr("pause", "tasks", "pause", "c1")
    wait_until(lambda: "paused c1" in play.delivered(), what="the pause to be told")
    phases.end("pause")
    play.ctr("resume", "tasks", "resume", "c1")
    wait_until(lambda: "resumed c1" in play.delivered(), what="the resume to be told")
    phases.end("resume")
    play.ctr("kill e1", "tasks", "kill", "-s", "KILL", "--exec-id", "e1", "c1")
    wait_until(lambda: "exit c1/e1 = 137" in play.delivered(), what="the exec's exit to be told")
    phases.end("kill the exec")
    play.ctr("rm e1", "tasks", "rm", "--exec-id", "e1", "c1")
    phases.end("delete the exec")
    play.kill("c1", "TERM")
    play.kill("c1")
    wait_until(lambda: "exit c1 = 137" in play.delivered(), what="the exit to be told")
    phases.end("kill")
    play.ctr("delete", "tasks", "rm", "c1")
    wait_until(lambda: "delete c1 = 137" in play.delivered(), what="the deletion to be told")
    phases.end("delete")
    play.remove("c1")


@scenario(order="unwatched", recorded=True)
def calls_of_a_failure(play: Play) -> None:
    """`ctr run` of a program that is not there, call by call."""
    phases = Phases(play)
    play.box.ctr(*play.run_args("c1", ("/bin/no-such-program",), ("--null-io",)))
    wait_until(lambda: play.tape.asked("delete"), what="containerd to clean up")
    phases.end("run")
    play.remove("c1")

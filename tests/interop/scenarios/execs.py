"""`ctr tasks exec` in its forms, and what happens to execs when their container is not well."""

import json
import os

from tests.interop.play import WAIT_FOR_GO, Play
from tests.interop.scenario import scenario
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
MANY = 50
MANY_S = 120.0  # they take 5 s on a machine with nothing else to do


@scenario(short=True)
def exec_to_the_end(play: Play) -> None:
    """An exec's output and exit code come back; the container runs on."""
    play.start("c1")
    for code in (0, 1, 42, 255):
        result = play.exec("c1", f"e{code}", SHELL, "-c", f"echo out{code}; echo err{code} >&2; exit {code}")
        assert (result.exit, result.out, result.err) == (code, b"out%d\n" % code, b"err%d\n" % code)
    play.exec("c1", "dies", SHELL, "-c", "kill -9 $$")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def exec_stdin(play: Play) -> None:
    """A file goes through an exec whole: the end of input, told before Start, is not lost."""
    play.start("c1")
    text = b"".join(b"line %d\n" % number for number in range(30_000))
    assert play.exec("c1", "e1", "/bin/cat", stdin=text).out == text
    play.remove("c1")


@scenario(short=True)
def exec_of_nothing(play: Play) -> None:
    """An input that is empty: `ctr` tells its end too early, too late or never. Somebody does; then it is read."""
    play.start("c1")
    client = play.client(*play.exec_args("c1", "e1", (SHELL, "-c", f"{WAIT_FOR_GO}; cat; exit 3")), stdin=b"")
    wait_until(lambda: (exec_ := play.state("c1", "e1")) is not None and exec_.pid, what="the exec to run")
    play.note_state("c1", "e1")
    play.tasks("CloseIO", container_id="c1", exec_id="e1", stdin=True)
    play.make_file("go")
    play.note_result("e1", client.finish())
    play.remove("c1")


@scenario()
def exec_flood(play: Play) -> None:
    """Megabytes of an exec's output arrive to the byte."""
    play.start("c1")
    result = play.exec("c1", "e1", SHELL, "-c", "yes 0123456789 | head -c 3000000; exit 6")
    assert len(result.out) == 3_000_000
    play.remove("c1")


@scenario()
def exec_with_a_terminal(play: Play) -> None:
    """`exec -t`: a terminal with the client's size; typed input is read."""
    play.start("c1")
    terminal = play.terminal()
    terminal.resize(30, 90)
    script = "tty >/dev/null && echo is-a-tty; echo ready; read a; echo got:$a; exit 8"
    args = play.exec_args("c1", "e1", (SHELL, "-c", script), ("--tty",))
    client = play.client(*args, terminal=terminal.tty)
    terminal.wait_for("ready")
    terminal.type("typed\n")
    play.note("exit", client.finish().exit)
    play.note("shown", terminal.shown)
    play.remove("c1")


@scenario(short=True)
def exec_a_missing_program(play: Play) -> None:
    """runc's words for an exec that cannot begin come through; its name is free again, the container unharmed."""
    play.start("c1")
    result = play.exec("c1", "e1", "/bin/no-such-program")
    assert b"no such file" in result.err
    play.exec("c1", "e1", "/bin/true")
    play.exec("c1", "e2", "/bin/true", options=("--cwd", "/no/such/folder"))
    play.note_state("c1")
    play.remove("c1")


@scenario()
def exec_detached(play: Play) -> None:
    """A detached exec is seen, refuses its name to another, is killed by name, and keeps its status until deleted."""
    play.start("c1")
    play.ctr("exec -d", *play.exec_args("c1", "e1", ("/bin/sleep", "1000"), ("--detach",)))
    play.note_state("c1", "e1")
    play.exec("c1", "e1", "/bin/true")
    play.ctr("kill e1", "tasks", "kill", "-s", "TERM", "--exec-id", "e1", "c1")
    play.wait_stopped("c1", "e1")
    play.note_state("c1", "e1")
    play.ctr("kill e1 again", "tasks", "kill", "-s", "TERM", "--exec-id", "e1", "c1")
    play.ctr("delete e1", "tasks", "rm", "--exec-id", "e1", "c1")
    play.note_state("c1", "e1")
    play.tasks("DeleteProcess", container_id="c1", exec_id="e1")
    play.remove("c1")


@scenario()
def exec_where_none_may_be(play: Play) -> None:
    """Execs in a container that is created, paused, stopped, deleted or unknown are refused."""
    play.create("made")
    play.exec("made", "e1", "/bin/true")
    play.start("paused")
    play.ctr("pause", "tasks", "pause", "paused")
    play.exec("paused", "e1", "/bin/true")
    play.ctr("resume", "tasks", "resume", "paused")
    play.start("dead")
    play.kill("dead")
    play.wait_stopped("dead")
    play.exec("dead", "e1", "/bin/true")
    play.ctr("delete", "tasks", "rm", "dead")
    play.exec("dead", "e1", "/bin/true")
    play.exec("unknown", "e1", "/bin/true")
    play.remove("made", "paused", "dead")


@scenario()
def exec_added_only(play: Play) -> None:
    """An exec that was never started: its state, its refusals, and that it can be deleted."""
    play.start("c1")
    spec = exec_spec("/bin/true")
    play.tasks("Exec", container_id="c1", exec_id="e1", spec=spec)
    play.note_state("c1", "e1")
    play.tasks("Exec", "Exec again", container_id="c1", exec_id="e1", spec=spec)
    play.tasks("Kill", container_id="c1", exec_id="e1", signal=9)
    play.tasks("ResizePty", container_id="c1", exec_id="e1", width=80, height=24)
    play.tasks("CloseIO", container_id="c1", exec_id="e1", stdin=True)
    play.tasks("DeleteProcess", container_id="c1", exec_id="e1")
    play.tasks("Start", container_id="c1", exec_id="e1")
    play.note_state("c1", "e1")
    play.tasks("Exec", "Exec without a name", container_id="c1", exec_id="", spec=spec)
    play.tasks("Exec", "Exec with a bad name", container_id="c1", exec_id="a/b", spec=spec)
    play.remove("c1")


@scenario()
def exec_while_running(play: Play) -> None:
    """A running exec: started twice, deleted too early, killed, deleted, deleted twice."""
    play.start("c1")
    play.tasks("Exec", container_id="c1", exec_id="e1", spec=exec_spec("/bin/sleep", "1000"))
    play.tasks("Start", container_id="c1", exec_id="e1")
    play.tasks("Start", "Start again", container_id="c1", exec_id="e1")
    play.tasks("DeleteProcess", "Delete too early", container_id="c1", exec_id="e1")
    play.tasks("ResizePty", container_id="c1", exec_id="e1", width=80, height=24)
    play.tasks("Kill", container_id="c1", exec_id="e1", signal=15)
    play.tasks("Wait", container_id="c1", exec_id="e1")
    play.tasks("Kill", "Kill what ended", container_id="c1", exec_id="e1", signal=15)
    play.tasks("Start", "Start what ended", container_id="c1", exec_id="e1")
    play.tasks("DeleteProcess", container_id="c1", exec_id="e1")
    play.tasks("DeleteProcess", "Delete again", container_id="c1", exec_id="e1")
    play.tasks("Wait", "Wait for what was deleted", container_id="c1", exec_id="e1")
    play.remove("c1")


@scenario(order="by process")
def many_execs_at_once(play: Play) -> None:
    """Fifty execs at the same time: each gets its own output and its own exit code."""
    play.start("c1")
    clients = [
        play.client(*play.exec_args("c1", f"e{number}", (SHELL, "-c", f"echo out{number}; exit {number}")))
        for number in range(MANY)
    ]
    results = [client.finish(MANY_S) for client in clients]
    play.note("exits", [result.exit for result in results])
    whole = sum(result.out == b"out%d\n" % number for number, result in enumerate(results))
    play.note("outputs that came whole", whole)
    play.note_state("c1")
    play.remove("c1")


@scenario(order="by process")
def execs_die_with_their_container(play: Play) -> None:
    """Execs end with their init; every one's exit is told, and the clients get theirs."""
    play.start("c1")
    clients = [play.client(*play.exec_args("c1", f"e{n}", (SHELL, "-c", f">/tmp/e{n}; sleep 1000"))) for n in range(3)]
    for number in range(3):
        play.wait_file(f"e{number}")
    play.kill("c1")
    for number, client in enumerate(clients):
        play.note_result(f"e{number}", client.finish())
    play.wait_stopped("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.remove("c1")


@scenario()
def grandchild_keeps_the_output(play: Play) -> None:
    """An exec leaves a process behind that holds its stdout: the exec ends all the same, the other lives on."""
    play.start("c1")
    script = "(trap '' HUP; >/tmp/started; sleep 1000) & until [ -e /tmp/started ]; do :; done; echo said; exit 9"
    assert play.exec("c1", "e1", SHELL, "-c", script).out == b"said\n"
    play.exec("c1", "e2", SHELL, "-c", "pgrep -f 'sleep 1000' | wc -l")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def grandchild_of_init(play: Play) -> None:
    """A process init did not start itself, killed with init; its output up to then is there."""
    result = play.run("c1", SHELL, "-c", "(sleep 1000 & echo from-child); echo from-init; exit 2", options=("--rm",))
    assert sorted(result.out.split()) == [b"from-child", b"from-init"]


@scenario()
def exec_as_somebody(play: Play) -> None:
    """`exec --user`, `--cwd` and the environment reach the process."""
    with open(os.path.join(play.box.rootfs, "etc/passwd"), "w", encoding="utf-8") as file:
        file.write("root:x:0:0::/:/bin/sh\nsomebody:x:1234:5678::/tmp:/bin/sh\n")
    play.start("c1", options=("--env", "PATH=/bin", "--env", "WORD=from-the-container"))
    play.exec("c1", "e1", "/bin/id", options=("--user", "1234"))
    play.exec("c1", "e2", "/bin/pwd", options=("--cwd", "/tmp"))
    play.exec("c1", "e3", "/bin/env")
    play.exec("c1", "e4", SHELL, "-c", "echo written >&1; echo also >/dev/stdout", options=("--user", "1234"))
    play.remove("c1")


def exec_spec(*command: str) -> dict[str, object]:
    """The Any with an OCI process that Exec takes, as fields."""

    process = {"args": list(command), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
    return {"type_url": url, "value": json.dumps(process).encode()}

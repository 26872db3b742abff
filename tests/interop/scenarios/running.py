"""`ctr run` in its forms: foreground, detached, with a terminal, with files and floods for stdio."""

import hashlib
import os

from tests.interop.play import Play
from tests.interop.scenario import scenario
from tests.support.waiting import wait_until

FLOOD_BYTES = 10_000_000
SHELL = "/bin/sh"


@scenario(short=True)
def run_to_the_end(play: Play) -> None:
    """A command runs in the foreground; its output, error output and exit code come back."""
    result = play.run("c1", SHELL, "-c", "echo out; echo err >&2; exit 3")
    assert (result.exit, result.out, result.err) == (3, b"out\n", b"err\n")
    play.note_state("c1")
    play.ctr("list", "containers", "ls", "-q")
    play.remove("c1")


@scenario(short=True)
def run_and_remove(play: Play) -> None:
    """`run --rm` leaves no task and no record."""
    play.run("c1", "/bin/true", options=("--rm",))
    play.note_state("c1")
    play.ctr("list", "containers", "ls", "-q")


@scenario(short=True)
def run_detached(play: Play) -> None:
    """A detached container is listed, killed, stays as stopped with its status, and is deleted."""
    play.start("c1")
    play.note_state("c1")
    play.kill("c1", "TERM")  # init has no handler for it, and init is exempt: nothing happens
    play.kill("c1")
    play.wait_stopped("c1")
    play.note_state("c1")
    play.ctr("delete task", "tasks", "rm", "c1")
    play.note_state("c1")
    play.ctr("delete container", "containers", "rm", "c1")


@scenario()
def exit_codes(play: Play) -> None:
    """Exit codes and deaths by signal arrive as they are, 128 + signal for the latter."""
    for code in (0, 1, 2, 126, 127, 128, 137, 255):
        assert play.run("c1", SHELL, "-c", f"exit {code}", options=("--rm",)).exit == code
    for name in ("TERM", "KILL", "SEGV", "USR1"):
        # A child of the shell dies by the signal (init itself is exempt from its own), and the shell passes that on.
        play.run("c1", SHELL, "-c", f"(kill -{name} $(cut -d' ' -f4 /proc/self/stat)); {SHELL} -c 'kill -{name} $$'",
                 options=("--rm",))  # fmt: skip


@scenario()
def killed_by_each_signal(play: Play) -> None:
    """A container killed from outside reports 128 + signal."""
    for name in ("KILL", "TERM", "INT", "USR2"):
        trap = "" if name == "KILL" else f"trap 'trap - {name}; exit 9' {name}; "
        play.start("c1", SHELL, "-c", f"{trap}>/tmp/ready; while :; do sleep 0.01; done")
        play.wait_file("ready")
        os.unlink(os.path.join(play.box.rootfs, "tmp/ready"))
        play.kill("c1", name)
        play.wait_stopped("c1")
        play.note_state("c1")
        play.ctr("delete", "tasks", "rm", "c1")
        play.remove("c1")


@scenario()
def run_with_a_terminal(play: Play) -> None:
    """`run -t`: one stream, a size, input and an end of input typed by hand."""
    terminal = play.terminal()
    terminal.resize(33, 101)
    script = "tty >/dev/null && echo is-a-tty; echo ready; read a; echo got:$a; stty size; exit 5"
    args = play.run_args("c1", (SHELL, "-c", script), ("--rm", "--tty"))
    client = play.client(*args, terminal=terminal.tty)
    terminal.wait_for("ready")
    terminal.type("hello\n")
    play.note("exit", client.finish().exit)
    play.note("shown", terminal.shown)
    assert b"got:hello" in terminal.seen


@scenario()
def resize_reaches_the_terminal(play: Play) -> None:
    """A new window size of the client is the container's."""
    terminal = play.terminal()
    terminal.resize(24, 80)
    script = "echo ready; until [ \"$(stty size)\" = '40 120' ]; do sleep 0.01; done; echo resized"
    client = play.client(*play.run_args("c1", (SHELL, "-c", script), ("--rm", "--tty")), terminal=terminal.tty)
    terminal.wait_for("ready")
    terminal.resize(40, 120)
    client.process.send_signal(28)  # SIGWINCH: the tty is not ctr's controlling one, so nobody else sends it
    terminal.wait_for("resized")
    play.note("exit", client.finish().exit)


@scenario(short=True)
def stdin_from_a_file(play: Play) -> None:
    """A file as stdin goes through whole, and its end is seen."""
    text = b"".join(b"line %d\n" % number for number in range(40_000))
    result = play.run("c1", "/bin/cat", options=("--rm",), stdin=text)
    assert result.out == text


@scenario()
def stdin_nobody_reads(play: Play) -> None:
    """A command that ends without reading its stdin ends all the same."""
    play.run("c1", SHELL, "-c", "exit 4", options=("--rm",), stdin=b"x" * 300_000)


@scenario()
def flood_of_output(play: Play) -> None:
    """Ten megabytes on stdout and some on stderr arrive to the byte."""
    flood = f"yes 0123456789abcdef | head -c {FLOOD_BYTES}"
    result = play.run("c1", SHELL, "-c", f"{flood}; yes E | head -c 100000 >&2; echo end", options=("--rm",))
    line = b"0123456789abcdef\n"
    whole = (line * (FLOOD_BYTES // len(line) + 1))[:FLOOD_BYTES] + b"end\n"
    assert hashlib.sha256(result.out).hexdigest() == hashlib.sha256(whole).hexdigest()
    assert len(result.err) == 100_000


@scenario()
def output_without_an_end_of_line(play: Play) -> None:
    """What is written last, without a newline, by a process that dies at once, is not lost."""
    for _ in range(5):
        assert play.run("c1", SHELL, "-c", "printf abc; kill -9 $$; printf def", options=("--rm",)).out == b"abcdef"


@scenario(short=True)
def run_a_missing_program(play: Play) -> None:
    """runc's words for a program that is not there come through; the record stays, no task does."""
    result = play.run("c1", "/bin/no-such-program")
    assert b"no such file" in result.err
    play.note_state("c1")
    play.ctr("list", "containers", "ls", "-q")
    play.remove("c1")


@scenario()
def run_what_cannot_be_run(play: Play) -> None:
    """Programs that are folders, not executable, or no program at all; a folder to work in that is not there."""
    play.run("c1", "/bin")
    play.run("c2", "/etc/nothing")
    path = os.path.join(play.box.rootfs, "tmp/garbage")
    with open(path, "wb") as file:
        file.write(b"\x01\x02garbage")
    play.run("c3", "/tmp/garbage")
    os.chmod(path, 0o755)
    play.run("c4", "/tmp/garbage")
    play.run("c5", "/bin/true", options=("--cwd", "/bin/sh"))
    play.remove("c1", "c2", "c3", "c4", "c5")


@scenario()
def name_taken(play: Play) -> None:
    """A second container of the same name is refused; the first is unharmed."""
    play.start("c1")
    play.run("c1", "/bin/true")
    play.tasks("Create", container_id="c1")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def stdio_to_nowhere(play: Play) -> None:
    """`--null-io`: the container's output goes to /dev/null, its input is at its end."""
    play.run("c1", SHELL, "-c", "echo lost; read line || exit 7", options=("--rm", "--null-io"))


@scenario()
def log_to_a_file(play: Play) -> None:
    """`--log-uri file://`: both streams are appended to the file, made with its folders when missing."""
    path = os.path.join(play.box.folder, "logs/deep/c1.log")
    for word in ("first", "second"):
        play.start("c1", SHELL, "-c", f"echo {word}; echo {word}-error >&2", options=("--log-uri", f"file://{path}"))
        play.wait_stopped("c1")
        play.note_state("c1")
        play.ctr("delete", "tasks", "rm", "c1")
        play.remove("c1")
    with open(path, "rb") as file:
        play.note("log", sorted(file.read().splitlines()))
    play.note("mode of the log", oct(os.stat(path).st_mode & 0o777))


@scenario()
def log_through_a_program(play: Play) -> None:
    """`--log-uri binary://`: the program gets the streams on fd 3 and 4, says ready on 5, and sees their end."""
    log = os.path.join(play.box.folder, "logged")
    program = os.path.join(play.box.folder, "logger")
    with open(program, "w", encoding="utf-8") as file:
        file.write(
            f"#!/bin/sh\ntrap '' TERM\nenv | grep CONTAINER_ | sort >{log}.env\necho \"$@\" >{log}.args\n"
            f"exec 6>&5 5>&- 6>&-\ncat <&3 >{log}.out & cat <&4 >{log}.err & exec 3<&- 4<&-\nwait\n>{log}.end\n"
        )
    os.chmod(program, 0o755)
    uri = f"binary://{program}?key=value"
    play.start("c1", SHELL, "-c", "echo to-out; echo to-err >&2; exit 2", options=("--log-uri", uri))
    play.wait_stopped("c1")
    play.note_state("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    wait_until(lambda: os.path.exists(f"{log}.end"), what="the logger to end")
    for name in ("env", "args", "out", "err"):
        with open(f"{log}.{name}", "rb") as file:
            play.note(f"the logger's {name}", file.read())
    play.remove("c1")


@scenario()
def log_uri_nobody_knows(play: Play) -> None:
    """A log URI of an unknown scheme, and a logger that is not there, are refused; nothing stays behind."""
    play.start("c1", options=("--log-uri", "gopher://somewhere"))
    play.start("c2", options=("--log-uri", "binary:///no/such/logger"))
    play.start("c3", options=("--log-uri", "file:///proc/no-such-folder/log"))
    play.remove("c1", "c2", "c3")

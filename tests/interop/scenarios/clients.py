"""Clients that come and go: attached, killed in the middle, coming back, never reading."""

import contextlib
import os
import signal

from tests.interop.play import WAIT_FOR_GO, Play
from tests.interop.scenario import scenario
from tests.support.containerdbox import Client, listed
from tests.support.waiting import wait_until

SHELL = "/bin/sh"
FLOOD_BYTES = 1_000_000  # well over what pipes and FIFOs hold
LINE = b"0123456789abcdef\n"


def wait_output(client: Client, text: bytes) -> None:
    wait_until(lambda: text in client.out, what=f"the client to show {text!r}")


def attach(play: Play, container: str) -> Client:
    """`ctr tasks attach`. Blocks: until it has the container's output open, or has had it and ended."""
    client = play.client("tasks", "attach", container)
    fds = f"/proc/{client.process.pid}/fd"

    def has_output() -> bool:
        for fd in listed(fds):
            with contextlib.suppress(OSError):
                if os.readlink(os.path.join(fds, fd)).endswith(f"{container}-stdout"):
                    return True
        return not client.is_running

    wait_until(has_output, what="the client to open the output")
    return client


@scenario(short=True)
def client_vanishes(play: Play) -> None:
    """A foreground client is killed; the container goes on, and another client attaches and gets the rest."""
    client = play.run_open("c1", SHELL, "-c", f"echo one; {WAIT_FOR_GO}; echo two; exit 5")
    wait_output(client, b"one\n")
    client.kill()
    play.note_state("c1")
    second = attach(play, "c1")
    play.make_file("go")
    play.note_result("attach", second.finish())
    play.note_state("c1")
    play.remove("c1")


@scenario()
def client_vanishes_and_nobody_comes(play: Play) -> None:
    """A foreground client is killed; the container ends by itself, and its status is there."""
    client = play.run_open("c1", SHELL, "-c", f"echo one; {WAIT_FOR_GO}; echo two; exit 5")
    wait_output(client, b"one\n")
    client.kill()
    play.make_file("go")
    play.wait_stopped("c1")
    play.note_state("c1")
    play.ctr("delete", "tasks", "rm", "c1")
    play.remove("c1")


@scenario()
def flood_while_nobody_reads(play: Play) -> None:
    """The client is killed, then comes a flood: it waits, whole and in order, for the one who attaches."""
    script = f"echo one; {WAIT_FOR_GO}; yes {LINE.decode().strip()} | head -c {FLOOD_BYTES}; >/tmp/done; exit 7"
    client = play.run_open("c1", SHELL, "-c", script)
    wait_output(client, b"one\n")
    client.kill()
    play.make_file("go")
    play.note_state("c1")
    second = attach(play, "c1")
    play.note_result("attach", second.finish())
    assert second.process.returncode == 7
    play.remove("c1")


@scenario()
def client_vanishes_in_the_flood(play: Play) -> None:
    """The client is killed in the middle of a flood: what the next one reads is its unbroken end."""
    lines = "while [ $i -lt $end ]; do echo line $i; i=$((i+1)); done"
    script = f"i=0; end=51; {lines}; {WAIT_FOR_GO}; end=20000; {lines}; exit 7"
    client = play.run_open("c1", SHELL, "-c", script)
    wait_output(client, b"line 50\n")
    client.process.send_signal(signal.SIGSTOP)  # so that it is sure to be in the middle: the flood is held up by it
    play.make_file("go")
    client.kill()
    second = attach(play, "c1")
    play.note("exit", second.finish().exit)
    lines = second.out.splitlines()
    first = int(lines[1].split()[1])  # the first may be the rest of one
    play.note("its unbroken end", lines[1:] == [b"line %d" % number for number in range(first, 20000)])
    play.remove("c1")


@scenario()
def terminal_client_vanishes(play: Play) -> None:
    """The client of a terminal is killed; the next one has the terminal."""
    terminal = play.terminal()
    script = "echo ready; while read a; do echo got:$a; [ $a = end ] && exit 6; done"
    client = play.client(*play.run_args("c1", (SHELL, "-c", script), ("--tty",)), terminal=terminal.tty)
    terminal.wait_for("ready")
    terminal.type("first\n")
    terminal.wait_for("got:first")
    client.kill()
    play.note_state("c1")
    second = play.terminal()
    attached = play.client("tasks", "attach", "c1", terminal=second.tty)
    second.type("second\n")
    second.wait_for("got:second")
    second.type("end\n")
    play.note("exit", attached.finish().exit)
    play.remove("c1")


@scenario()
def exec_client_vanishes(play: Play) -> None:
    """The client of an exec is killed; the exec goes on to its end, and can be deleted."""
    play.start("c1")
    script = f"echo one; {WAIT_FOR_GO}; echo two; exit 5"
    client = play.client(*play.exec_args("c1", "e1", (SHELL, "-c", script)))
    wait_output(client, b"one\n")
    client.kill()
    play.note_state("c1", "e1")
    play.make_file("go")
    play.wait_stopped("c1", "e1")
    play.note_state("c1", "e1")
    play.tasks("DeleteProcess", container_id="c1", exec_id="e1")
    play.note_state("c1")
    play.remove("c1")


@scenario()
def signals_of_the_client(play: Play) -> None:
    """`ctr run` passes its signals on to the container."""
    script = "trap 'echo caught; exit 12' TERM; trap 'echo winch; trap \"\" WINCH' WINCH; while :; do sleep 0.01; done"
    client = play.run_open("c1", SHELL, "-c", script, options=("--rm",))

    def has_passed() -> bool:
        """ctr begins to pass signals on some time after the start; this one does nothing to it before."""
        client.process.send_signal(signal.SIGWINCH)
        return client.out == b"winch\n"

    wait_until(has_passed, what="a signal to be passed on")
    client.process.send_signal(signal.SIGTERM)
    play.note_result("run", client.finish())


@scenario()
def stdin_closed_by_its_reader(play: Play) -> None:
    """The container closes its stdin and lives on; the client's flood into it ends nothing."""
    play.run("c1", SHELL, "-c", "read a; exec <&-; echo got:$a; exit 3", options=("--rm",), stdin=b"word\n" * 100_000)


@scenario(recorded=True)
def two_clients(play: Play) -> None:
    """Two clients wait for one container: both get its exit code."""
    play.start("c1", SHELL, "-c", f"{WAIT_FOR_GO}; exit 9", options=("--null-io",))
    clients = [play.client("tasks", "attach", "c1") for _ in range(2)]
    recorder = play.recorder
    assert recorder is not None
    wait_until(lambda: recorder.asked("Wait") >= len(clients), what="both clients to wait")
    play.make_file("go")
    # Both delete it at the end, so one of them is told that there is nothing to delete.
    play.note("exits", sorted(client.finish().exit for client in clients))
    play.remove("c1")

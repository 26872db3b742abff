"""Terminals: run, exec and attach at a real pseudo-terminal, from which they can be let go of."""

import signal
import subprocess
import termios

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.pty import Person
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until


def at_terminal(ctlbox: CtlBox, *words: str, columns: int = 80, rows: int = 24) -> Person:
    return Person(ctlbox.ctl.argv(*words), ctlbox.ctl.env, columns=columns, rows=rows)


def shell(ctlbox: CtlBox, *options: str, name: str = "shell") -> Person:
    return at_terminal(ctlbox, "run", "--rootfs", ctlbox.rootfs, "-t", "-i", *options, name, "--", "sh")


def test_a_shell_at_a_terminal(ctlbox: CtlBox) -> None:
    with shell(ctlbox, "--rm") as person:
        person.sees(b"/ # ")
        person.types(b"echo $((40 + 2)); tty\n")
        person.sees(b"42\r\n/dev/")
        person.types(b"exit 6\n")

        assert person.code() == 6
        assert person.is_restored
    assert ctlbox.ids() == set()


def test_keys_go_to_the_container_not_to_us(ctlbox: CtlBox) -> None:
    """Ctrl-C interrupts what runs in the container's terminal; shimctl stays."""
    with shell(ctlbox, "--rm") as person:
        person.sees(b"/ # ")
        person.types(b"sleep 100\n")
        person.sees(b"sleep 100\r\n")
        wait_until(lambda: "sleep 100" in ctlbox.ctl.output("top", "shell"), what="the program to run")
        person.types(b"\x03")
        person.sees(b"/ # ")
        person.types(b"exit\n")

        assert person.code() == 130


def test_the_container_has_the_terminal_s_size_and_follows_it(ctlbox: CtlBox) -> None:
    with at_terminal(
        ctlbox, "run", "--rm", "--rootfs", ctlbox.rootfs, "-it", "sized", "--", "sh", columns=97, rows=31
    ) as person:
        person.sees(b"/ # ")
        person.types(b"stty size\n")
        person.sees(b"31 97")
        person.resizes(120, 40)

        def has_followed() -> bool:
            person.types(b"stty size\n")
            return b"40 120" in person.sees(b"/ # ")

        wait_until(has_followed, what="the new size")
        person.types(b"exit\n")
        assert person.code() == 0


def test_a_terminal_without_input(ctlbox: CtlBox) -> None:
    """-t alone: the container has a terminal, ours is not touched; also without one."""
    assert ctlbox.run("--rm", "-t", "--", "sh", "-c", "test -t 1 && echo yes").stdout == "yes\n"
    with at_terminal(ctlbox, "run", "--rm", "--rootfs", ctlbox.rootfs, "--tty", "--", "tty") as person:
        person.sees(b"/dev/")
        assert person.code() == 0
        assert person.is_restored


def test_input_without_a_terminal_of_ours_is_refused(ctlbox: CtlBox) -> None:
    done = ctlbox.run("--rm", "-t", "-i", "--", "sh")

    assert done.returncode == 125
    assert "leave out -t" in done.stderr


def test_let_go_attach_again_and_end(ctlbox: CtlBox) -> None:
    with shell(ctlbox) as person:
        person.sees(b"/ # ")
        person.types(b"echo marker-$((1 + 1))\n")
        person.sees(b"marker-2")
        person.types(b"\x10\x11")
        person.sees(b"runs on")
        assert person.code() == 0
        assert person.is_restored
    with at_terminal(ctlbox, "attach", "shell") as person:
        person.sees(b"marker-2")  # the last lines come again
        person.types(b"exit 7\n")
        assert person.code() == 7
        assert person.is_restored
    ctlbox.remove("shell")


def test_other_detach_keys_and_the_usual_ones_are_the_container_s_then(ctlbox: CtlBox) -> None:
    with shell(ctlbox, "--detach-keys", "ctrl-a,d") as person:
        person.sees(b"/ # ")
        person.types(b"\x10\x11echo still-$((2 + 1))\n")
        person.sees(b"still-3")
        person.types(b"\x01d")
        assert person.code() == 0
    with at_terminal(ctlbox, "attach", "--detach-keys", "ctrl-]", "--no-replay", "shell") as person:
        person.types(b"echo again-$((2 + 2))\n")
        person.sees(b"again-4")
        person.types(b"\x1d")
        assert person.code() == 0
    ctlbox.remove("shell")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_us_restores_the_terminal_and_leaves_the_container(ctlbox: CtlBox, number: signal.Signals) -> None:
    with shell(ctlbox) as person:
        person.sees(b"/ # ")
        assert not person.settings[3] & termios.ICANON
        person.command.send_signal(number)

        assert person.code() == 128 + number
        assert person.is_restored
    assert ctlbox.ctl.output("ps", "-q").split() == ["shell"]
    ctlbox.remove("shell")


def test_exec_at_a_terminal(ctlbox: CtlBox) -> None:
    ctlbox.detached("host", "sleep", "100")
    with at_terminal(ctlbox, "exec", "-t", "-i", "host", "sh", columns=91) as person:
        person.sees(b"/ # ")
        person.types(b"stty size\n")
        person.sees(b"24 91")
        person.types(b"exit 5\n")

        assert person.code() == 5
        assert person.is_restored
    with at_terminal(ctlbox, "exec", "--tty", "host", "tty") as person:
        person.sees(b"/dev/pts/")
        assert person.code() == 0
    with at_terminal(ctlbox, "exec", "-it", "--detach-keys", "ctrl-x", "host", "sh") as person:
        person.sees(b"/ # ")
        person.types(b"\x18")
        person.sees(b"runs on")
        assert person.code() == 0
    ctlbox.remove("host")


# --- attach without a terminal


def test_attach_sees_the_output_and_gets_the_code(ctlbox: CtlBox) -> None:
    ctlbox.detached("source", "sh", "-c", "trap 'exit 3' TERM; while :; do echo tick; sleep 0.05; done")
    process = ctlbox.ctl.start("attach", "source")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"tick\n")
    ctlbox.ctl.output("kill", "-s", "TERM", "source")

    assert finish(process)[0] == 3
    ctlbox.remove("source")


def test_attach_gives_input_unless_told_not_to(ctlbox: CtlBox) -> None:
    ctlbox.detached("listener", "sh", "-c", "while read x; do echo got $x; done; exit 4", options=("-i",))
    watching = ctlbox.ctl.start("attach", "--no-stdin", "listener")
    wait_until(lambda: '"attached": 1' in ctlbox.ctl.output("shim", "state", "listener"), what="the one who watches")
    assert ctlbox.ctl.output("attach", "listener", given="one\n", code=4) == "got one\n"

    assert finish(watching)[:2] == (4, b"got one\n")
    ctlbox.remove("listener")


def test_ctrl_c_ends_the_attachment_only_unless_signals_are_passed_on(ctlbox: CtlBox) -> None:
    ctlbox.detached("target", "sh", "-c", "trap 'exit 3' INT; while :; do echo tick; sleep 0.05; done")
    process = ctlbox.ctl.start("attach", "target")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"tick\n")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert ctlbox.ctl.output("ps", "-q").split() == ["target"]

    process = ctlbox.ctl.start("attach", "--sig-proxy", "target")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"tick\n")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 3
    ctlbox.remove("target")


def test_who_reads_too_slowly_misses_output_and_is_told(ctlbox: CtlBox) -> None:
    """The container is not held up by him; his exit code is right all the same."""
    script = "read go; yes | head -c 30000000; echo END; read go; exit 4"
    ctlbox.detached("loud", "sh", "-c", script, options=("-i",))
    slow = ctlbox.ctl.start("attach", "--no-stdin", "loud")
    wait_until(lambda: '"attached": 1' in ctlbox.ctl.output("shim", "state", "loud"), what="the slow reader")
    typist = ctlbox.ctl.start("attach", "--no-replay", "loud", stdout=subprocess.DEVNULL)
    assert typist.stdin is not None
    typist.stdin.write(b"go\n")
    wait_until(lambda: ctlbox.ctl.output("logs", "--tail", "1", "loud") == "END\n", deadline_s=30, what="the last line")
    typist.stdin.write(b"go\n")

    assert finish(typist)[0] == 4
    code, out, err = finish(slow)
    assert code == 4
    assert b"bytes missed); attaching again" in err
    assert len(out) < 30_000_000
    ctlbox.remove("loud")


def test_attach_to_what_does_not_run(ctlbox: CtlBox) -> None:
    ctlbox.run("over", "--", "true")
    done = ctlbox.ctl.run("attach", "over")

    assert done.returncode == 125
    assert "not running" in done.stderr
    ctlbox.remove("over")

"""shimctl on containers under containerd's own shim: streams through FIFOs and files, the same exit codes."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.pty import Person
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until

GO = ("--runtime", "io.containerd.runc.v2")


@pytest.fixture(scope="module")
def box(ctlbox: CtlBox) -> Iterator[CtlBox]:
    yield ctlbox
    assert ctlbox.ids() == set()
    assert not os.path.exists(f"{ctlbox.daemon.state}/fifo/{ctlbox.namespace}")


def test_run_passes_streams_and_the_exit_code(box: CtlBox) -> None:
    """Input from a pipe to its end, both outputs apart, nothing left."""
    done = box.run("--rm", "-i", *GO, "--", "sh", "-c", "cat; echo err >&2; exit 7", given="one\ntwo\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "one\ntwo\n", "err\n")
    assert box.run("--rm", *GO, "--", "no-such-program").returncode == 127


def test_a_megabyte_goes_through(box: CtlBox) -> None:
    """To the byte, in both directions."""
    given = "".join(f"{number:07d}\n" for number in range(1 << 17))
    done = box.run("--rm", "-i", *GO, "--", "cat", given=given)
    assert done.stdout == given


def test_signals_are_passed_on(box: CtlBox) -> None:
    """And what it does then is its own affair."""
    running = box.start("--rm", *GO, "--", "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    assert running.stdout is not None
    read_until(running.stdout.fileno(), b"ready")
    running.send_signal(signal.SIGTERM)
    assert finish(running)[0] == 5


def test_the_daemon_may_be_killed_meanwhile() -> None:
    """The shim is asked for the end, so nothing is missed here; and the daemon has it on record, too."""
    with CtlBox() as box:
        running = box.start("--name", "meanwhile", "-i", *GO, "--", "cat")
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"before\n")
        read_until(running.stdout.fileno(), b"before")
        box.daemon.kill()
        running.stdin.write(b"after\n")
        read_until(running.stdout.fileno(), b"after")
        box.daemon.start()
        assert finish(running)[0] == 0
        assert box.ctl.output("wait", "meanwhile") == "0\n"
        box.remove("meanwhile")


def test_in_the_background_it_writes_a_file(box: CtlBox) -> None:
    """Which logs reads, and follows to the end. That shim copies each stream by itself, so one is awaited first."""
    waits = "while [ ! -e /{} ]; do sleep 0.02; done"
    script = f"echo one >&2; {waits.format('mid')}; echo two; {waits.format('on')}; echo three"
    box.detached("web", "sh", "-c", script, options=GO)
    wait_until(lambda: box.ctl.output("logs", "web") == "one\n", what="its first line")
    with open(f"{box.rootfs}/mid", "w", encoding="utf-8"):
        pass
    wait_until(lambda: box.ctl.output("logs", "web") == "one\ntwo\n", what="its output")
    assert box.ctl.output("logs", "--tail", "1", "web") == "two\n"
    following = box.ctl.start("logs", "-f", "--tail", "1", "web")
    assert following.stdout is not None
    read_until(following.stdout.fileno(), b"two\n")
    with open(f"{box.rootfs}/on", "w", encoding="utf-8"):
        pass
    assert finish(following)[:2] == (0, b"three\n")
    assert box.ctl.output("wait", "web") == "0\n"
    box.ctl.output("start", "web")
    wait_until(lambda: box.ctl.output("logs", "web").count("three") == 2, what="another run")
    box.remove("web")
    assert not os.path.exists(box.log_folder("web"))


def test_execs(box: CtlBox) -> None:
    """With input, with a code, in the background; top and stats see them."""
    box.detached("c1", "sleep", "1000", options=GO)
    try:
        assert box.ctl.output("exec", "-i", "c1", "sh", "-c", "cat; exit 4", given="in\n", code=4) == "in\n"
        exec_id = box.ctl.output("exec", "-d", "c1", "sleep", "500").strip()
        assert exec_id in box.ctl.output("top", "c1")
        assert "c1" in box.ctl.output("stats", "--no-stream", "c1")
        box.ctl.output("kill", "--exec", exec_id, "c1")
        assert box.ctl.output("wait", "--exec", exec_id, "c1", code=137) == "137\n"
        assert box.ctl.output("exec", "c1", "no-such-program", code=127) == ""
        box.ctl.output("pause", "c1")
        assert box.ctl.output("inspect", "--part", "task.status", "c1") == "paused\n"
        box.ctl.output("resume", "c1")
        assert box.ctl.output("shim", "exec", "c1", "echo", "direct") == "direct\n"
        assert '"status": "running"' in box.ctl.output("shim", "state", "c1")
        assert "serving" in box.ctl.output("shim", "list")
    finally:
        box.ctl.output("stop", "-t", "0", "c1")
        box.remove("c1")


def test_a_terminal_is_let_go_of_and_attached_to_again(box: CtlBox) -> None:
    """Its size is ours, the keys let go, and another attaches to the same FIFOs."""
    argv = box.ctl.argv("run", "--rootfs", box.rootfs, "-t", "-i", *GO, "--name", "shell", "sh")
    with Person(argv, box.ctl.env, columns=90, rows=33) as person:
        person.types(b"stty size\r")
        person.sees(b"33 90")
        person.types(b"\x10\x11")  # ctrl-p ctrl-q
        person.sees(b"runs on")
        assert person.code() == 0
        assert person.is_restored
    with Person(box.ctl.argv("attach", "shell"), box.ctl.env) as person:
        person.types(b"echo a''gain\r")
        person.sees(b"again")
        person.types(b"exit 6\r")
        assert person.code() == 6
    box.remove("shell")


def test_start_with_us_or_without(box: CtlBox) -> None:
    """A created container is started with FIFOs for who stays, with its file for who does not."""
    box.ctl.output("create", "--rootfs", box.rootfs, *GO, "job", "--", "sh", "-c", "echo here; exit 3")
    assert box.ctl.output("start", "-a", "job", code=3) == "here\n"
    box.ctl.output("start", "job")
    assert box.ctl.output("wait", "job", code=3) == "3\n"
    assert box.ctl.output("logs", "job") == "here\n"
    box.remove("job")


@pytest.mark.parametrize(
    "options", [("-d", "-i"), ("-d", "-t"), ("--restart", "always"), ("-d", "--log-opt", "max-size=1m")]
)
def test_what_only_our_shim_can_do_is_refused(box: CtlBox, options: tuple[str, ...]) -> None:
    """Before anything is made, saying what to do instead."""
    done = box.run(*options, *GO, "--", "true")
    assert done.returncode == 125
    assert "shimd's" in done.stderr


def test_both_kinds_side_by_side(box: CtlBox) -> None:
    """ps lists them alike."""
    box.detached("ours", "sleep", "1000")
    box.detached("theirs", "sleep", "1000", options=GO)
    try:
        lines = box.ctl.output("ps").splitlines()
        assert len(lines) == 3
        assert "containerd-shim-runc-v2" in box.ctl.output("daemon", "info")
    finally:
        box.remove("ours", "theirs")

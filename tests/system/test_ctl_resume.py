"""The daemon dies while shimctl is at work. With a fake one, at every call; with the real one, by SIGKILL."""

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.fakedaemon import FakeDaemon
from tests.support.shimctl import Shimctl, finish, lines, read_until
from tests.support.threadserver import AFTER, BEFORE
from tests.support.waiting import wait_until
from ttrpc.errors import StatusError
from ttrpc.status import Code

# --- a fake daemon that loses its connections at a call, before or after it took effect


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    with FakeDaemon() as made:
        yield made


def ctl_of(fake: FakeDaemon) -> Shimctl:
    return Shimctl("--address", fake.address, "--reconnect", "5")


def effects(fake: FakeDaemon, topic: str) -> int:
    return len([each for each in fake.events if each.topic == topic])


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("method", ["Info", "Create", "Shims", "Start", "Get", "Delete"])
def test_a_run_goes_through_whatever_call_is_lost(fake: FakeDaemon, method: str, when: str) -> None:
    """Create and Delete are lost at the container's record; the exit code and output are those of one run."""
    fake.lose(method, when)
    done = ctl_of(fake).run("run", "--rm", "--rootfs", "/", "web", "--", "sh", "-c", "echo once; exit 3")

    assert (done.returncode, done.stdout, done.stderr) == (3, "once\n", "")
    assert effects(fake, "/containers/create") == 1
    assert effects(fake, "/tasks/exit") == 1
    assert fake.containers == {}
    assert fake.tasks == {}


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("method", ["Exec", "Start", "Get", "DeleteProcess"])
def test_an_exec_goes_through_whatever_call_is_lost(fake: FakeDaemon, method: str, when: str) -> None:
    ctl = ctl_of(fake)
    ctl.output("run", "-d", "--rootfs", "/", "web", "--", "sleep", "100")
    fake.lose(method, when)
    done = ctl.run("exec", "web", "sh", "-c", "echo once; exit 3")

    assert (done.returncode, done.stdout, done.stderr) == (3, "once\n", "")
    assert effects(fake, "/tasks/exit") == 1
    assert fake.tasks["web"].execs == {}


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("List", ["ps", "-a"]),
        ("ListStream", ["ps", "-a"]),
        ("Exits", ["inspect", "web"]),
        ("Metrics", ["stats", "--no-stream"]),
        ("ListPids", ["top", "web"]),
        ("Version", ["version"]),
        ("Pause", ["pause", "web"]),
        ("Update", ["update", "--memory", "64m", "web"]),
        ("Kill", ["kill", "web"]),
        ("Kill", ["stop", "web"]),
        ("Wait", ["stop", "web"]),
        ("Events", ["events", "--since", "0"]),
        ("Delete", ["rm", "-f", "web"]),
    ],
)
def test_every_other_command_too(fake: FakeDaemon, method: str, when: str, words: list[str]) -> None:
    ctl = ctl_of(fake)
    ctl.output("run", "-d", "--rootfs", "/", "web", "--", "sleep", "100")
    fake.lose(method, when)
    done = ctl.run(*words)

    assert (done.returncode, done.stderr) == (0, "")
    assert method not in fake.server.losses


def test_events_are_told_once_across_a_loss(fake: FakeDaemon) -> None:
    ctl = ctl_of(fake)
    ctl.output("run", "--rootfs", "/", "one", "--", "true")
    process = ctl.start("events", "--since", "0", "--follow", "--json")
    assert process.stdout is not None
    got = read_until(process.stdout.fileno(), b"/tasks/exit")
    fake.server.lose_connections()
    ctl.output("run", "--rootfs", "/", "two", "--", "true")
    got += read_until(process.stdout.fileno(), b"two", deadline_s=10)
    process.send_signal(signal.SIGINT)
    _, rest, _ = finish(process)

    numbers = [json.loads(line)["seq"] for line in lines((got + rest).decode())]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_signal_that_may_have_arrived_is_not_sent_again(fake: FakeDaemon) -> None:
    ctl = ctl_of(fake)
    ctl.output("run", "-d", "--rootfs", "/", "web", "--", "sh", "-c", "trap : USR1; while :; do sleep 0.05; done")
    fake.lose("Kill", AFTER)
    done = ctl.run("kill", "-s", "USR1", "web")

    assert done.returncode == 1
    assert "may have arrived or not" in done.stderr
    assert fake.calls.count("Kill") == 1


# --- a daemon that is away for long


def test_a_long_absence_is_told_once_and_waited_out(fake: FakeDaemon) -> None:
    fake.server.die()
    process = ctl_of(fake).start("ps", "-q")
    assert process.stderr is not None
    told = read_until(process.stderr.fileno(), b"waiting up to 5 s")
    fake.server.start()
    code, _, rest = finish(process)

    assert code == 0
    assert (told + rest).count(b"shimctl:") == 1


def test_a_daemon_that_stays_away_is_an_error_with_what_to_do(fake: FakeDaemon) -> None:
    fake.server.die()
    done = Shimctl("--address", fake.address, "--reconnect", "0.3").run("run", "--rootfs", "/", "--", "true")

    assert done.returncode == 125
    assert "does not answer" in done.stderr
    assert "systemctl start shimd" in done.stderr


def test_a_socket_that_was_never_there_is_not_waited_for(short_dir: str) -> None:
    done = Shimctl("--address", f"{short_dir}/no/such.sock").run("ps")

    assert done.returncode == 1
    assert "is not running: no socket" in done.stderr


def test_what_was_made_is_taken_back_when_a_later_step_fails(fake: FakeDaemon) -> None:
    fake.fail["Start"] = StatusError(Code.UNKNOWN, "OCI runtime start failed: it would not")
    done = ctl_of(fake).run("run", "--rootfs", "/", "web", "--", "true")

    assert done.returncode == 125
    assert done.stderr == "shimctl: OCI runtime start failed: it would not\n"
    assert fake.containers == {}
    assert fake.tasks == {}


def test_what_cannot_be_taken_back_is_named(fake: FakeDaemon) -> None:
    fake.fail["Start"] = StatusError(Code.UNKNOWN, "it would not")
    fake.fail["Kill"] = StatusError(Code.UNAVAILABLE, "the shim does not answer")
    done = ctl_of(fake).run("run", "--rootfs", "/", "web", "--", "true")

    assert done.returncode == 125
    assert "could not undo the task" in done.stderr
    assert "shimctl rm -f web" in done.stderr
    assert "it would not" in done.stderr


def test_an_interrupt_in_the_making_takes_it_back_too(fake: FakeDaemon) -> None:
    """SIGTERM while the task is being created; the signal's own exit code."""
    process = ctl_of(fake).start("run", "--rootfs", "/", "web", "--", "sleep", "100")
    wait_until(lambda: "Shims" in fake.calls, what="the making")
    process.send_signal(signal.SIGTERM)
    code, _, _ = finish(process)

    assert code == 143
    assert fake.containers == {} or fake.tasks["web"].init.exit_status == 143


def test_rm_that_fails_does_not_replace_the_exit_code(fake: FakeDaemon) -> None:
    process = Shimctl("--address", fake.address, "--reconnect", "0.3").start(
        *("run", "--rm", "-i", "--rootfs", "/", "web", "--", "sh", "-c", "echo up; read x; exit 7")
    )
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"up\n")
    fake.server.die()
    code, _, err = finish(process, given=b"go\n")

    assert code == 7
    assert b"could not remove web" in err
    assert b"shimctl rm -f web" in err


def test_a_status_nobody_knows_is_unknown(fake: FakeDaemon) -> None:
    """No number is made up: 123 for run and wait, `unknown` in ps and on wait's output."""
    ctl = ctl_of(fake)
    process = ctl.start("run", "-i", "--rootfs", "/", "web", "--", "sh", "-c", "echo up; read x; exit 7")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"up\n")
    fake.tasks["web"].init.is_status_lost = True
    code, _, err = finish(process, given=b"go\n")

    assert code == 123
    assert b"how is not known" in err
    assert ctl.output("wait", "web", code=123) == "unknown\n"
    assert "Exited (unknown)" in ctl.output("ps", "-a")
    assert json.loads(ctl.output("ps", "-a", "--json"))[0]["exit_code"] is None
    assert "code=unknown source=unknown" in ctl.output("events", "--since", "0")


# --- a real daemon, killed


@pytest.fixture
def box() -> Iterator[CtlBox]:
    with CtlBox() as made:
        yield made


def test_a_foreground_run_does_not_notice_the_daemon_s_death(box: CtlBox) -> None:
    """Input, output, exit code and --rm, with the daemon killed and started again in the middle."""
    process = box.start("--rm", "-i", "web", "--", "sh", "-c", "while read x; do echo got $x; done; exit 6")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    read_until(process.stdout.fileno(), b"got one\n")
    box.daemon.kill()
    process.stdin.write(b"two\n")
    read_until(process.stdout.fileno(), b"got two\n")
    box.daemon.start()
    process.stdin.write(b"three\n")
    code, out, err = finish(process)

    assert (code, out, err) == (6, b"got three\n", b"")
    assert box.ids() == set()


def test_an_exec_that_ends_while_the_daemon_is_down_has_its_exit_code(box: CtlBox) -> None:
    box.detached("host", "sleep", "100")
    process = box.ctl.start("exec", "-i", "host", "sh", "-c", "echo up; read x; exit 7")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"up\n")
    box.daemon.kill()
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    box.daemon.start()

    assert finish(process)[0] == 7


def test_signals_reach_the_container_with_the_daemon_down(box: CtlBox) -> None:
    process = box.start("web", "--", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"up\n")
    box.daemon.kill()
    process.send_signal(signal.SIGTERM)

    assert finish(process)[0] == 3
    box.daemon.start()
    assert box.ctl.output("wait", "web", code=3) == "3\n"


def test_wait_events_and_logs_go_on_over_a_restart(box: CtlBox) -> None:
    box.detached("web", "sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done")
    followers = {name: box.ctl.start(*words) for name, words in FOLLOWING.items()}
    read_until(_out(followers["logs"]), b"up\n")
    read_until(_out(followers["events"]), b"/tasks/start")
    box.daemon.kill()
    box.ctl.output("shim", "kill", "-s", "TERM", "web")
    box.daemon.start()

    assert finish(followers["wait"])[:2] == (4, b"4\n")
    assert finish(followers["logs"])[:2] == (0, b"bye\n")
    assert b"code=4 source=waitid" in read_until(_out(followers["events"]), b"/tasks/exit container_id=web id=web")
    followers["events"].send_signal(signal.SIGINT)
    finish(followers["events"])


FOLLOWING = {
    "wait": ["wait", "web"],
    "logs": ["logs", "-f", "web"],
    "events": ["events", "--since", "0", "--follow"],
}


def _out(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


# Fault points of the daemon at which it dies during the run of one container, each in a box of its own.
POINTS = (
    "containers.create.before_commit",
    "containers.create.committed",
    "exec.before_call",
    "exec.called",
    "containers.delete.before_commit",
    "containers.delete.committed",
)


@pytest.mark.parametrize("point", POINTS)
def test_run_exec_and_rm_go_through_a_daemon_killed_at_a_step(point: str) -> None:
    """The daemon kills itself at the step and is started again; each command ends as if nothing had been."""
    faulty = {"SHIMD_FAULTS": f"{point}=kill", "SHIMD_FAULTS_ARMED": "yes-kill-me"}
    with CtlBox(environ=faulty) as box:
        steps = (
            (["run", "-d", "--rootfs", box.rootfs, "web", "--", "sleep", "100"], 0),
            (["exec", "web", "sh", "-c", "exit 5"], 5),
            (["rm", "-f", "web"], 0),
        )
        box.daemon.environ.clear()
        deaths = 0
        for words, code in steps:
            process = box.ctl.start(*words)
            wait_until(lambda p=process: p.poll() is not None or _has_died(box), what="an end or a death")  # type: ignore[misc]
            if process.poll() is None and _has_died(box):
                deaths += 1
                box.daemon.gone()
                box.daemon.start()
            assert finish(process)[0] == code
        assert deaths == 1
        assert box.ids() == set()
        assert [each.topic for each in box.daemon.events() if each.topic.startswith("/containers/")] == [
            "/containers/create",
            "/containers/delete",
        ]


def _has_died(box: CtlBox) -> bool:
    return box.daemon.daemon is not None and box.daemon.daemon.poll() is not None

"""`shimctl exec` on a real container."""

import json
import os
import signal

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def box(ctlbox: CtlBox) -> CtlBox:
    ctlbox.detached("host", "sleep", "1000", options=("-e", "FROM=container", "--hostname", "inside"))
    return ctlbox


def test_streams_and_exit_code(box: CtlBox) -> None:
    done = box.ctl.run("exec", "host", "sh", "-c", "echo out; echo err >&2; exit 9")

    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


def test_the_dashes_are_welcome(box: CtlBox) -> None:
    assert box.ctl.output("exec", "host", "--", "hostname") == "inside\n"


def test_input_and_its_end(box: CtlBox) -> None:
    given = "x" * 300_000 + "\n"

    assert box.ctl.output("exec", "-i", "host", "cat", given=given) == given
    assert box.ctl.output("exec", "--interactive", "host", "wc", "-c", given=given).strip() == "300001"
    assert box.ctl.output("exec", "host", "wc", "-c", given=given).strip() == "0"


def test_it_starts_as_the_container_did_unless_told_otherwise(box: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    path = os.path.join(tmp_path, "env")
    with open(path, "w", encoding="ascii") as file:
        file.write("B=file\n")

    assert box.ctl.output("exec", "host", "sh", "-c", "echo $FROM; pwd; id -u") == "container\n/\n0\n"
    options = ("-e", "A=1", "--env", "FROM=us", "--env-file", path, "--cwd", "/tmp", "--user", "1000:1001")
    script = "echo $A $B $FROM; pwd; id -u; id -g"
    assert box.ctl.output("exec", *options, "host", "sh", "-c", script) == "1 file us\n/tmp\n1000\n1001\n"
    assert box.ctl.output("exec", "-w", "/etc", "-u", "root", "host", "pwd") == "/etc\n"


def test_rights_are_the_container_s_unless_privileged(box: CtlBox) -> None:
    def effective(*options: str) -> int:
        return int(box.ctl.output("exec", *options, "host", "grep", "CapEff", "/proc/self/status").split()[1], 16)

    assert not effective() & 1 << 12  # CAP_NET_ADMIN
    assert effective("--cap-add", "net_admin") == effective() | 1 << 12
    assert effective("--privileged") & 1 << 12


@pytest.mark.parametrize(("command", "code"), [("nope", 127), ("/nope", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_be_run(box: CtlBox, command: str, code: int) -> None:
    done = box.ctl.run("exec", "host", command)

    assert code == done.returncode
    assert done.stderr.startswith("shimctl: ")


def test_a_container_that_does_not_run(box: CtlBox) -> None:
    assert box.ctl.run("exec", "missing", "true").returncode == 125
    assert "no container 'missing'" in box.ctl.run("exec", "missing", "true").stderr


def test_detached_it_goes_on_and_is_known_by_its_id(box: CtlBox) -> None:
    exec_id = box.ctl.output(
        "exec", "-d", "host", "sh", "-c", "trap 'exit 4' TERM; echo > /tmp/up; while :; do sleep 0.05; done"
    )
    exec_id = exec_id.strip()
    box.ctl.output("exec", "host", "sh", "-c", "until test -e /tmp/up; do sleep 0.01; done")

    assert exec_id in [each["exec_id"] for each in json.loads(box.ctl.output("top", "--json", "host"))]
    box.ctl.output("kill", "-s", "TERM", "--exec", exec_id, "host")
    assert box.ctl.output("wait", "--exec", exec_id, "host", code=4) == "4\n"


def test_signals_are_passed_on(box: CtlBox) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    process = box.ctl.start("exec", "host", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    process.send_signal(signal.SIGINT)

    assert finish(process)[:2] == (3, b"caught\n")


def test_a_reader_that_leaves_ends_the_exec(box: CtlBox) -> None:
    process = box.ctl.start("exec", "host", "yes")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"y\n")
    process.stdout.close()
    process.stdout = None

    assert finish(process)[0] == 141
    wait_until(lambda: "yes" not in box.ctl.output("top", "host"), what="the exec to end")


def test_an_ended_exec_is_forgotten_by_its_shim(box: CtlBox) -> None:
    before = json.loads(box.ctl.output("shim", "state", "host"))["shim"]["processes"]
    for _ in range(3):
        box.ctl.output("exec", "host", "true")

    assert before == json.loads(box.ctl.output("shim", "state", "host"))["shim"]["processes"]


def test_what_does_not_go_together(box: CtlBox) -> None:
    assert box.ctl.run("exec", "-d", "-i", "host", "cat").returncode == 125
    assert box.ctl.run("exec", "-t", "-i", "host", "cat").returncode == 125
    assert "say where and what" in box.ctl.run("exec", "host").stderr

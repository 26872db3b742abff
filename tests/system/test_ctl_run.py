"""`shimctl run`, `create` and `start` on real containers: streams, exit codes, what options do, what is undone."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def box() -> Iterator[CtlBox]:
    with CtlBox() as made:
        yield made


def sh(box: CtlBox, script: str, *options: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return box.run("--rm", *options, "--", "sh", "-c", script, given=given)


# --- streams and exit codes


def test_output_and_errors_come_apart_and_the_exit_code_through(box: CtlBox) -> None:
    done = sh(box, "echo out; echo err >&2; exit 42")

    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_input_reaches_the_container_to_the_byte_and_its_end_too(box: CtlBox) -> None:
    given = "".join(f"line {n}\n" for n in range(50_000))

    done = box.run("--rm", "-i", "--", "md5sum", given=given)
    echoed = box.run("--rm", "-i", "--", "cat", given=given)

    import hashlib

    assert done.stdout.split()[0] == hashlib.md5(given.encode()).hexdigest()
    assert echoed.stdout == given


def test_without_i_the_container_has_no_input(box: CtlBox) -> None:
    assert sh(box, "wc -c", given="not for it").stdout.strip() == "0"


def test_much_output_comes_complete(box: CtlBox) -> None:
    done = sh(box, "head -c 20000000 /dev/zero")

    assert len(done.stdout) == 20_000_000


def test_a_reader_that_leaves_ends_a_container_run_with_rm(box: CtlBox) -> None:
    """`shimctl run --rm … yes | head -1`: nothing is left, and no traceback either."""
    process = box.start("--rm", "--name", "endless", "yes")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"y\n")
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)

    assert code == 141
    assert b"Traceback" not in err
    assert box.ids() == set()


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["nope"], 127, "not found"),
        (["/nope"], 127, "no such file"),
        (["/etc/passwd"], 126, "permission denied"),
        (["/etc"], 126, ""),
    ],
)
def test_a_program_that_cannot_be_run(box: CtlBox, command: list[str], code: int, says: str) -> None:
    """Docker's codes, the runtime's words, and nothing left of the container."""
    done = box.run("--name", "broken", *command)

    assert code == done.returncode
    assert says in done.stderr
    assert box.ids() == set()
    assert not os.path.exists(box.log_folder("broken"))


def test_a_signal_ends_in_128_and_its_number(box: CtlBox) -> None:
    process = box.start("--rm", "--name", "victim", "sleep", "100")
    wait_until(lambda: box.ctl.output("ps", "-q", "--filter", "status=running") == "victim\n", what="it to run")
    box.ctl.output("kill", "victim")

    assert finish(process)[0] == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_signals_are_passed_on(box: CtlBox, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = box.start(
        "--rm", "--", "sh", "-c", f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    process.send_signal(number)
    code, out, _ = finish(process)

    assert (code, out) == (3, f"got {name}\n".encode())


def test_the_third_interrupt_gives_up_on_a_container_that_ignores_them(box: CtlBox) -> None:
    """With --rm it is killed and removed, because that was promised."""
    process = box.start("--rm", "--", "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        read_until(process.stdout.fileno(), b"no\n")
    process.send_signal(signal.SIGINT)

    assert finish(process)[0] == 130
    assert box.ids() == set()


# --- what options do inside

INSIDE = [
    (["-e", "GREETING=hi"], "echo $GREETING", "hi"),
    (["--env", "PATH"], "echo ${PATH:+set}", "set"),
    (["--cwd", "/tmp"], "pwd", "/tmp"),
    (["--workdir", "/etc"], "pwd", "/etc"),
    (["-u", "65534:65533"], "id -u; id -g", "65534\n65533"),
    (["--user", "root"], "id -un", "root"),
    (["--hostname", "lighthouse"], "hostname", "lighthouse"),
    (["--name", "by-its-id"], "hostname", "by-its-id"),
    (["--mount", "type=tmpfs,dst=/scratch"], "touch /scratch/x && echo yes", "yes"),
    (["--mount", "type=bind,src=/etc,dst=/host,ro"], "touch /host/x 2>&1 | grep -c Read-only", "1"),
    (["-v", "/usr:/u:ro"], "test -d /u/bin && echo yes", "yes"),
    (["--read-only"], "touch /x 2>&1 | grep -c Read-only", "1"),
    (["--cap-drop", "ALL"], "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
    (["--cap-drop", "ALL", "--cap-add", "kill"], "grep CapEff /proc/self/status", "CapEff:\t0000000000000020"),
    (["--privileged"], "grep -c 'CapEff:.0000000000000000' /proc/self/status || true", "0"),
    (["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj", "500"),
    (["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn", "100\n200"),
    (["--net", "none"], "ls /sys/class/net | wc -l", "1"),
    (["--security-opt", "no-new-privileges=false"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0"),
    (["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
    (["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    (["--runtime", "/usr/sbin/runc"], "echo ran", "ran"),
    (["--log-driver", "none"], "echo unlogged", "unlogged"),
    (["--annotation", "a=b", "--label", "c=d"], "echo named", "named"),
]


@pytest.mark.parametrize(("options", "script", "shown"), INSIDE, ids=[" ".join(row[0]) for row in INSIDE])
def test_an_option_seen_from_inside(box: CtlBox, options: list[str], script: str, shown: str) -> None:
    done = sh(box, script, *options)

    assert (done.stdout.strip(), done.returncode) == (shown, 0), done.stderr


def test_an_env_file(box: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    path = os.path.join(tmp_path, "env")
    with open(path, "w", encoding="ascii") as file:
        file.write("# comment\nA=1\nB=two words\n")

    assert sh(box, "echo $A; echo $B", "--env-file", path).stdout == "1\ntwo words\n"


def test_the_host_s_network_is_shared_when_asked(box: CtlBox) -> None:
    ours = str(len(os.listdir("/sys/class/net")))

    assert sh(box, "ls /sys/class/net | wc -l", "--net", "host").stdout.strip() == ours


def cgroup_file(box: CtlBox, controller: str, container_id: str, name: str) -> str:
    for base in (f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup"):
        path = f"{base}/{box.namespace}/{container_id}/{name}"
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                return file.read().strip()
    raise AssertionError(f"no {name} of {container_id}")


def is_v1() -> bool:
    return not os.path.exists("/sys/fs/cgroup/cgroup.controllers")


@pytest.mark.parametrize(
    ("options", "controller", "v1", "v2", "value"),
    [
        (("--memory", "32m"), "memory", "memory.limit_in_bytes", "memory.max", str(32 << 20)),
        (("-m", "32m"), "memory", "memory.limit_in_bytes", "memory.max", str(32 << 20)),
        (("--cpus", "0.5"), "cpu", "cpu.cfs_quota_us", "cpu.max", "50000"),
        (("--cpu-shares", "512"), "cpu", "cpu.shares", "cpu.weight", "512"),
        (("--cpuset-cpus", "0"), "cpuset", "cpuset.cpus", "cpuset.cpus", "0"),
        (("--pids-limit", "17"), "pids", "pids.max", "pids.max", "17"),
    ],
)
def test_a_limit_is_the_cgroup_s(
    box: CtlBox, options: tuple[str, ...], controller: str, v1: str, v2: str, value: str
) -> None:
    box.detached("limited", "sleep", "100", options=options)
    try:
        found = cgroup_file(box, controller, "limited", v1 if is_v1() else v2)
        assert found.startswith(value) or not is_v1()
    finally:
        box.remove("limited")


def test_memory_and_swap_together(box: CtlBox) -> None:
    options = ("--memory", "32m", "--memory-swap", "64m")
    done = box.run("-d", *options, "swapping", "--", "sleep", "100")
    if done.returncode and "swap" in done.stderr:
        pytest.skip("this kernel does not account swap")
    try:
        assert "67108864" in box.ctl.output(
            "inspect", "--part", "container.spec.linux.resources.memory.swap", "swapping"
        )
    finally:
        box.remove("swapping")


# --- in the background


def test_detached_prints_the_id_and_goes_on(box: CtlBox) -> None:
    done = box.run("-d", "--", "sleep", "100")
    name = done.stdout.strip()
    try:
        assert done.returncode == 0
        assert len(name.split("-")) == 3  # a made-up name
        assert box.ctl.output("ps", "-q").split() == [name]
    finally:
        box.remove(name)


def test_an_id_that_is_taken_is_refused_with_what_to_do(box: CtlBox) -> None:
    box.detached("taken", "sleep", "100")
    try:
        done = box.run("-d", "taken", "--", "true")

        assert done.returncode == 125
        assert "shimctl rm taken" in done.stderr
        assert box.ctl.output("ps", "-q").split() == ["taken"]
    finally:
        box.remove("taken")


@pytest.mark.parametrize("runtime", ["io.containerd.shimd.v2", "io.containerd.runc.v2"])
def test_in_the_background_the_daemon_removes_it(box: CtlBox, runtime: str) -> None:
    """Container, task and log, at its end; whoever waits or follows gets all there was."""
    script = "echo 0; while [ ! -e /over ]; do sleep 0.02; done; seq 3000; exit 3"
    box.detached("gone", "sh", "-c", script, options=("--rm", "--runtime", runtime))
    waiting, following = box.ctl.start("wait", "gone"), box.ctl.start("logs", "-f", "gone")
    assert following.stdout is not None
    read_until(following.stdout.fileno(), b"0\n")
    assert waiting.poll() is None
    with open(f"{box.rootfs}/over", "w", encoding="utf-8"):
        pass
    try:
        assert finish(waiting)[:2] == (3, b"3\n")
        wait_until(lambda: "gone" not in box.ids(), what="its removal")
        assert box.ctl.output("wait", "gone", code=3) == "3\n"
        assert not os.path.exists(box.log_folder("gone"))
        assert finish(following)[1] == "".join(f"{number}\n" for number in range(1, 3001)).encode()
    finally:
        os.unlink(f"{box.rootfs}/over")


def test_what_cannot_start_in_the_background_is_removed(box: CtlBox) -> None:
    """As without --rm."""
    assert box.run("-d", "--rm", "--", "no-such-program").returncode == 127
    assert box.ids() == set()


def test_a_restart_policy_starts_it_again(box: CtlBox) -> None:
    box.detached("again", "sh", "-c", "echo run; exit 1", options=("--restart", "on-failure:2"))
    try:
        wait_until(lambda: box.ctl.output("logs", "again") == "run\n" * 3, what="three runs in one log")
        wait_until(lambda: "Exited (1)" in box.ctl.output("ps", "-a"), what="the policy to give up")
        assert box.ctl.output("inspect", "--part", "shim.restarts", "again").strip() == "2"
    finally:
        box.remove("again")


# --- create and start


def test_a_created_container_waits_for_its_start(box: CtlBox) -> None:
    box.ctl.output("create", "--rootfs", box.rootfs, "later", "--", "sh", "-c", "echo done; exit 4")
    try:
        assert "Created" in box.ctl.output("ps", "-a")
        assert box.ctl.output("logs", "later") == ""
        assert box.ctl.output("start", "later") == "later\n"
        assert box.ctl.output("wait", "later", code=4) == "4\n"
        assert box.ctl.output("logs", "later") == "done\n"
    finally:
        box.remove("later")


def test_a_stopped_container_is_started_again_with_the_same_log(box: CtlBox) -> None:
    box.ctl.output("create", "--rootfs", box.rootfs, "twice", "--", "sh", "-c", "echo run")
    try:
        for _ in range(2):
            box.ctl.output("start", "twice")
            box.ctl.output("wait", "twice")
        assert box.ctl.output("logs", "twice") == "run\nrun\n"
    finally:
        box.remove("twice")


def test_start_a_stays_and_passes_the_code(box: CtlBox) -> None:
    box.ctl.output("create", "-i", "--rootfs", box.rootfs, "asked", "--", "sh", "-c", "read x; echo got $x; exit 7")
    try:
        assert box.ctl.output("start", "-a", "-i", "asked", given="word\n", code=7) == "got word\n"
    finally:
        box.remove("asked")


def test_starting_what_runs_changes_nothing(box: CtlBox) -> None:
    box.detached("busy", "sleep", "100")
    try:
        pid = box.ctl.output("inspect", "--part", "task.pid", "busy")
        assert box.ctl.output("start", "busy") == "busy\n"
        assert pid == box.ctl.output("inspect", "--part", "task.pid", "busy")
        assert box.ctl.run("start", "-a", "busy").returncode == 125
    finally:
        box.remove("busy")


def test_a_program_that_is_not_there_is_told_by_create_too(box: CtlBox) -> None:
    done = box.ctl.run("create", "--rootfs", box.rootfs, "--name", "broken", "nope")

    assert done.returncode == 127
    assert box.ids() == set()


# --- bundles


def test_a_bundle_runs_as_its_config_says(box: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    bundle = os.fspath(tmp_path)
    spec = box.daemon.spec("unused", ["sh", "-c", "echo from the bundle; exit 9"])
    spec["root"]["path"] = os.path.relpath(box.rootfs, bundle)
    spec["linux"].pop("cgroupsPath")
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(spec, file)

    assert box.ctl.output("run", "--rm", "--bundle", bundle, "from-bundle", code=9) == "from the bundle\n"
    assert box.ctl.output("run", "--rm", "--bundle", bundle, "-e", "X=5", "--", "sh", "-c", "echo $X") == "5\n"


def test_a_bad_bundle_is_told_with_the_place(box: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    with open(os.path.join(tmp_path, "config.json"), "w", encoding="utf-8") as file:
        file.write('{"ociVersion": "1.0.2", "process": {"args": [], "cwd": "x"}}')
    done = box.ctl.run("run", "--bundle", os.fspath(tmp_path))

    assert done.returncode == 125
    assert "process.args" in done.stderr
    assert "process.cwd" in done.stderr


# --- no daemon


def test_without_a_daemon_it_says_how_to_start_one(box: CtlBox) -> None:
    done = box.ctl.run("run", "--address", "/nowhere/shimd.sock.ttrpc", "--rootfs", box.rootfs, "--", "true")

    assert done.returncode == 125
    assert "not running" in done.stderr
    assert "systemctl start shimd" in done.stderr

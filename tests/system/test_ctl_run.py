"""`shimctl run`, `create` and `start` on real containers: streams, exit codes, what options do, what is undone."""

import json
import os
import signal
import subprocess

import pytest

from tests.support.ctlbox import CtlBox
from tests.support.shimctl import finish, read_until
from tests.support.waiting import wait_until


def sh(ctlbox: CtlBox, script: str, *options: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return ctlbox.run("--rm", *options, "--", "sh", "-c", script, given=given)


# --- streams and exit codes


def test_output_and_errors_come_apart_and_the_exit_code_through(ctlbox: CtlBox) -> None:
    done = sh(ctlbox, "echo out; echo err >&2; exit 42")

    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_input_reaches_the_container_to_the_byte_and_its_end_too(ctlbox: CtlBox) -> None:
    given = "".join(f"line {n}\n" for n in range(50_000))

    done = ctlbox.run("--rm", "-i", "--", "md5sum", given=given)
    echoed = ctlbox.run("--rm", "-i", "--", "cat", given=given)

    import hashlib

    assert done.stdout.split()[0] == hashlib.md5(given.encode()).hexdigest()
    assert echoed.stdout == given


def test_without_i_the_container_has_no_input(ctlbox: CtlBox) -> None:
    assert sh(ctlbox, "wc -c", given="not for it").stdout.strip() == "0"


def test_much_output_comes_complete(ctlbox: CtlBox) -> None:
    done = sh(ctlbox, "head -c 20000000 /dev/zero")

    assert len(done.stdout) == 20_000_000


def test_a_reader_that_leaves_ends_a_container_run_with_rm(ctlbox: CtlBox) -> None:
    """`shimctl run --rm … yes | head -1`: nothing is left, and no traceback either."""
    process = ctlbox.start("--rm", "--name", "endless", "yes")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"y\n")
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)

    assert code == 141
    assert b"Traceback" not in err
    assert ctlbox.ids() == set()


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["nope"], 127, "not found"),
        (["/nope"], 127, "no such file"),
        (["/etc/passwd"], 126, "permission denied"),
        (["/etc"], 126, ""),
    ],
)
def test_a_program_that_cannot_be_run(ctlbox: CtlBox, command: list[str], code: int, says: str) -> None:
    """Docker's codes, the runtime's words, and nothing left of the container."""
    done = ctlbox.run("--name", "broken", *command)

    assert code == done.returncode
    assert says in done.stderr
    assert ctlbox.ids() == set()
    assert not os.path.exists(ctlbox.log_folder("broken"))


def test_a_signal_ends_in_128_and_its_number(ctlbox: CtlBox) -> None:
    process = ctlbox.start("--rm", "--name", "victim", "sleep", "100")
    wait_until(lambda: ctlbox.ctl.output("ps", "-q", "--filter", "status=running") == "victim\n", what="it to run")
    ctlbox.ctl.output("kill", "victim")

    assert finish(process)[0] == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_signals_are_passed_on(ctlbox: CtlBox, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = ctlbox.start(
        "--rm", "--", "sh", "-c", f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    process.send_signal(number)
    code, out, _ = finish(process)

    assert (code, out) == (3, f"got {name}\n".encode())


def test_the_third_interrupt_gives_up_on_a_container_that_ignores_them(ctlbox: CtlBox) -> None:
    """With --rm it is killed and removed, because that was promised."""
    process = ctlbox.start("--rm", "--", "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"ready\n")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        read_until(process.stdout.fileno(), b"no\n")
    process.send_signal(signal.SIGINT)

    assert finish(process)[0] == 130
    assert ctlbox.ids() == set()


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
def test_an_option_seen_from_inside(ctlbox: CtlBox, options: list[str], script: str, shown: str) -> None:
    done = sh(ctlbox, script, *options)

    assert (done.stdout.strip(), done.returncode) == (shown, 0), done.stderr


def test_an_env_file(ctlbox: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    path = os.path.join(tmp_path, "env")
    with open(path, "w", encoding="ascii") as file:
        file.write("# comment\nA=1\nB=two words\n")

    assert sh(ctlbox, "echo $A; echo $B", "--env-file", path).stdout == "1\ntwo words\n"


def test_the_host_s_network_is_shared_when_asked(ctlbox: CtlBox) -> None:
    ours = str(len(os.listdir("/sys/class/net")))

    assert sh(ctlbox, "ls /sys/class/net | wc -l", "--net", "host").stdout.strip() == ours


def cgroup_file(ctlbox: CtlBox, controller: str, container_id: str, name: str) -> str:
    for base in (f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup"):
        path = f"{base}/{ctlbox.namespace}/{container_id}/{name}"
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
    ctlbox: CtlBox, options: tuple[str, ...], controller: str, v1: str, v2: str, value: str
) -> None:
    ctlbox.detached("limited", "sleep", "100", options=options)
    try:
        found = cgroup_file(ctlbox, controller, "limited", v1 if is_v1() else v2)
        assert found.startswith(value) or not is_v1()
    finally:
        ctlbox.remove("limited")


def test_memory_and_swap_together(ctlbox: CtlBox) -> None:
    options = ("--memory", "32m", "--memory-swap", "64m")
    done = ctlbox.run("-d", *options, "swapping", "--", "sleep", "100")
    if done.returncode and "swap" in done.stderr:
        pytest.skip("this kernel does not account swap")
    try:
        assert "67108864" in ctlbox.ctl.output(
            "inspect", "--part", "container.spec.linux.resources.memory.swap", "swapping"
        )
    finally:
        ctlbox.remove("swapping")


# --- in the background


def test_detached_prints_the_id_and_goes_on(ctlbox: CtlBox) -> None:
    done = ctlbox.run("-d", "--", "sleep", "100")
    name = done.stdout.strip()
    try:
        assert done.returncode == 0
        assert len(name.split("-")) == 3  # a made-up name
        assert ctlbox.ctl.output("ps", "-q").split() == [name]
    finally:
        ctlbox.remove(name)


def test_an_id_that_is_taken_is_refused_with_what_to_do(ctlbox: CtlBox) -> None:
    ctlbox.detached("taken", "sleep", "100")
    try:
        done = ctlbox.run("-d", "taken", "--", "true")

        assert done.returncode == 125
        assert "shimctl rm taken" in done.stderr
        assert ctlbox.ctl.output("ps", "-q").split() == ["taken"]
    finally:
        ctlbox.remove("taken")


@pytest.mark.parametrize("runtime", ["io.containerd.shimd.v2", "io.containerd.runc.v2"])
def test_in_the_background_the_daemon_removes_it(ctlbox: CtlBox, runtime: str) -> None:
    """Container, task and log, at its end; whoever waits or follows gets all there was."""
    script = "echo 0; while [ ! -e /over ]; do sleep 0.02; done; seq 3000; exit 3"
    ctlbox.detached("gone", "sh", "-c", script, options=("--rm", "--runtime", runtime))
    waiting, following = ctlbox.ctl.start("wait", "gone"), ctlbox.ctl.start("logs", "-f", "gone")
    assert following.stdout is not None
    read_until(following.stdout.fileno(), b"0\n")
    assert waiting.poll() is None
    with open(f"{ctlbox.rootfs}/over", "w", encoding="utf-8"):
        pass
    try:
        assert finish(waiting)[:2] == (3, b"3\n")
        wait_until(lambda: "gone" not in ctlbox.ids(), what="its removal")
        assert ctlbox.ctl.output("wait", "gone", code=3) == "3\n"
        assert not os.path.exists(ctlbox.log_folder("gone"))
        assert finish(following)[1] == "".join(f"{number}\n" for number in range(1, 3001)).encode()
    finally:
        os.unlink(f"{ctlbox.rootfs}/over")


def test_what_cannot_start_in_the_background_is_removed(ctlbox: CtlBox) -> None:
    """As without --rm."""
    assert ctlbox.run("-d", "--rm", "--", "no-such-program").returncode == 127
    assert ctlbox.ids() == set()


def test_a_restart_policy_starts_it_again(ctlbox: CtlBox) -> None:
    ctlbox.detached("again", "sh", "-c", "echo run; exit 1", options=("--restart", "on-failure:2"))
    try:
        wait_until(lambda: ctlbox.ctl.output("logs", "again") == "run\n" * 3, what="three runs in one log")
        wait_until(lambda: "Exited (1)" in ctlbox.ctl.output("ps", "-a"), what="the policy to give up")
        assert ctlbox.ctl.output("inspect", "--part", "shim.restarts", "again").strip() == "2"
    finally:
        ctlbox.remove("again")


# --- create and start


def test_a_created_container_waits_for_its_start(ctlbox: CtlBox) -> None:
    ctlbox.ctl.output("create", "--rootfs", ctlbox.rootfs, "later", "--", "sh", "-c", "echo done; exit 4")
    try:
        assert "Created" in ctlbox.ctl.output("ps", "-a")
        assert ctlbox.ctl.output("logs", "later") == ""
        assert ctlbox.ctl.output("start", "later") == "later\n"
        assert ctlbox.ctl.output("wait", "later", code=4) == "4\n"
        assert ctlbox.ctl.output("logs", "later") == "done\n"
    finally:
        ctlbox.remove("later")


def test_a_stopped_container_is_started_again_with_the_same_log(ctlbox: CtlBox) -> None:
    ctlbox.ctl.output("create", "--rootfs", ctlbox.rootfs, "twice", "--", "sh", "-c", "echo run")
    try:
        for _ in range(2):
            ctlbox.ctl.output("start", "twice")
            ctlbox.ctl.output("wait", "twice")
        assert ctlbox.ctl.output("logs", "twice") == "run\nrun\n"
    finally:
        ctlbox.remove("twice")


def test_start_a_stays_and_passes_the_code(ctlbox: CtlBox) -> None:
    ctlbox.ctl.output(
        "create", "-i", "--rootfs", ctlbox.rootfs, "asked", "--", "sh", "-c", "read x; echo got $x; exit 7"
    )
    try:
        assert ctlbox.ctl.output("start", "-a", "-i", "asked", given="word\n", code=7) == "got word\n"
    finally:
        ctlbox.remove("asked")


def test_starting_what_runs_changes_nothing(ctlbox: CtlBox) -> None:
    ctlbox.detached("busy", "sleep", "100")
    try:
        pid = ctlbox.ctl.output("inspect", "--part", "task.pid", "busy")
        assert ctlbox.ctl.output("start", "busy") == "busy\n"
        assert pid == ctlbox.ctl.output("inspect", "--part", "task.pid", "busy")
        assert ctlbox.ctl.run("start", "-a", "busy").returncode == 125
    finally:
        ctlbox.remove("busy")


def test_a_program_that_is_not_there_is_told_by_create_too(ctlbox: CtlBox) -> None:
    done = ctlbox.ctl.run("create", "--rootfs", ctlbox.rootfs, "--name", "broken", "nope")

    assert done.returncode == 127
    assert ctlbox.ids() == set()


# --- bundles


def test_a_bundle_runs_as_its_config_says(ctlbox: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    bundle = os.fspath(tmp_path)
    spec = ctlbox.daemon.spec("unused", ["sh", "-c", "echo from the bundle; exit 9"])
    spec["root"]["path"] = os.path.relpath(ctlbox.rootfs, bundle)
    spec["linux"].pop("cgroupsPath")
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(spec, file)

    assert ctlbox.ctl.output("run", "--rm", "--bundle", bundle, "from-bundle", code=9) == "from the bundle\n"
    assert ctlbox.ctl.output("run", "--rm", "--bundle", bundle, "-e", "X=5", "--", "sh", "-c", "echo $X") == "5\n"


def test_a_bad_bundle_is_told_with_the_place(ctlbox: CtlBox, tmp_path: "os.PathLike[str]") -> None:
    with open(os.path.join(tmp_path, "config.json"), "w", encoding="utf-8") as file:
        file.write('{"ociVersion": "1.0.2", "process": {"args": [], "cwd": "x"}}')
    done = ctlbox.ctl.run("run", "--bundle", os.fspath(tmp_path))

    assert done.returncode == 125
    assert "process.args" in done.stderr
    assert "process.cwd" in done.stderr


# --- no daemon


def test_without_a_daemon_it_says_how_to_start_one(ctlbox: CtlBox) -> None:
    done = ctlbox.ctl.run("run", "--address", "/nowhere/shimd.sock.ttrpc", "--rootfs", ctlbox.rootfs, "--", "true")

    assert done.returncode == 125
    assert "not running" in done.stderr
    assert "systemctl start shimd" in done.stderr

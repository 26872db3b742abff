"""What `daemon.spec` builds means to real runc and the real kernel what the options say."""

import json
import os
import pty
import select
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon import hostfacts, rootfs, spec
from daemon.spec import ExecOptions
from tests.support import leaks
from tests.support.specbox import RUN_DEADLINE_S, Machine, status_field

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


@pytest.fixture
def run(machine: Machine) -> Run:
    return machine.run


def mask_of(names: list[str]) -> int:
    return sum(1 << hostfacts.spec_caps.ALL.index(name) for name in names)


def test_user_and_supplementary_groups(machine: Machine) -> None:
    user = spec.parse_user("web", *rootfs.passwd_and_group(machine.rootfs))

    done = machine.run("id; cat /proc/self/status", user=user)

    assert done.stdout.startswith("uid=1000(web) gid=1001(web) groups=44(video)")
    assert status_field(done.stdout, "CapEff") == "0" * 16


def test_capabilities(run: Run) -> None:
    """The kernel's own mask, against the names in the spec."""
    plain = run("cat /proc/self/status").stdout
    changed = run("cat /proc/self/status", cap_add=["SYS_TIME"], cap_drop=["ALL"]).stdout

    default = [name for name in hostfacts.spec_caps.DEFAULT if name in hostfacts.capabilities()]
    for field in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status_field(plain, field), 16) == mask_of(default)
        assert int(status_field(changed, field), 16) == mask_of(["CAP_SYS_TIME"])
    assert status_field(plain, "CapInh") == "0" * 16
    assert status_field(plain, "NoNewPrivs") == "1"


def test_new_privileges_may_be_allowed(machine: Machine) -> None:
    """Then runc puts the filter in place before it drops to the user, and must not trip over it."""
    user = spec.parse_user("web", *rootfs.passwd_and_group(machine.rootfs))

    done = machine.run("cat /proc/self/status; id -u", user=user, no_new_privileges=False)

    assert (status_field(done.stdout, "NoNewPrivs"), status_field(done.stdout, "Seccomp")) == ("0", "2")
    assert done.stdout.splitlines()[-1] == "1000"


def test_environment_directory_hostname_and_arguments(machine: Machine) -> None:
    path = machine.bundle(
        "/bin/sh", "-c", 'pwd; hostname; echo "$1"; env', "sh", "a b", cwd="/srv", hostname="tester", env=["A=x y"]
    )

    lines = machine.run_bundle(path).stdout.splitlines()

    assert lines[:3] == ["/srv", "tester", "a b"]
    assert {"A=x y", "HOME=/root", spec.DEFAULT_PATH} <= set(lines[3:])


def test_default_mounts_are_there_and_closed(run: Run) -> None:
    done = run(
        "mount; touch /run/x /dev/shm/x && echo written; touch /sys/x /proc/sys/kernel/x; cat /proc/kcore; ls /dev"
    )

    types = {line.split()[2]: line.split()[4] for line in done.stdout.splitlines() if " type " in line}
    assert {
        "/proc": "proc",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/dev/mqueue": "mqueue",
        "/sys": "sysfs",
        "/run": "tmpfs",
    }.items() <= types.items()
    assert any(path.startswith("/sys/fs/cgroup") for path in types)
    assert "written" in done.stdout
    assert "/sys/x: Read-only file system" in done.stderr
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx"} <= set(done.stdout.split())


def test_the_cgroup_mount_is_read_only(run: Run) -> None:
    v1 = os.path.isdir("/sys/fs/cgroup/memory")
    done = run("echo 1 > /sys/fs/cgroup/" + ("memory/cgroup.procs" if v1 else "cgroup.procs"))

    assert "Read-only file system" in done.stderr


def test_bind_and_tmpfs_mounts(machine: Machine) -> None:
    host = f"{machine.folder}/host"
    os.mkdir(host)
    mounts = [
        spec.parse_mount(f"{host}:/srv/rw"),
        spec.parse_mount(f"type=bind,src={host},dst=/srv/ro,ro"),
        spec.parse_mount("type=tmpfs,dst=/srv/mem,size=1m,mode=700"),
    ]

    done = machine.run("touch /srv/rw/new; ls /srv/ro; touch /srv/ro/x; grep /srv/mem /proc/mounts", mounts=mounts)

    assert os.listdir(host) == ["new"]
    assert done.stdout.startswith("new\n")
    assert "/srv/ro/x: Read-only file system" in done.stderr
    assert "nosuid,nodev,noexec" in done.stdout
    assert "size=1024k,mode=700" in done.stdout


def test_a_read_only_root(machine: Machine) -> None:
    done = machine.run("touch /tmp/x; touch /run/x && echo run", read_only=True)

    assert "/tmp/x: Read-only file system" in done.stderr
    assert done.stdout == "run\n"
    assert os.listdir(f"{machine.rootfs}/tmp") == []


def limits(machine: Machine, **options: Any) -> dict[str, str]:
    """The limits the kernel has for a container that was created but not started."""
    path = machine.bundle("/bin/sh", **options)
    name = os.path.basename(path)
    machine.run_detached("create", "--bundle", path, "--pid-file", f"{path}/pid", name)
    found = {}
    for root in leaks.cgroup_roots():
        folder = f"{root}/{machine.namespace}/{name}"
        for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "pids.max", "cpu.max",
                     "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "cpuset.cpus"):  # fmt: skip
            if os.path.exists(f"{folder}/{file}"):
                found[file] = leaks.read(f"{folder}/{file}").strip()
    with open(f"{path}/pid", encoding="ascii") as file:
        found["oom_score_adj"] = leaks.read(f"/proc/{int(file.read())}/oom_score_adj").strip()
    return found


def test_limits_reach_the_cgroups(machine: Machine) -> None:
    quota_us, period_us = spec.parse_cpus("0.5")

    found = limits(
        machine,
        memory_bytes=spec.parse_memory("64m"),
        pids_limit=33,
        cpu_quota_us=quota_us,
        cpu_period_us=period_us,
        cpuset_cpus="0",
        oom_score_adj=500,
    )

    assert found["pids.max"] == "33"
    assert found["oom_score_adj"] == "500"
    assert found.get("memory.limit_in_bytes", found.get("memory.max")) == str(64 << 20)
    assert found["cpuset.cpus"] == "0"
    if "cpu.max" in found:
        assert found["cpu.max"] == "50000 100000"
    else:
        assert (found["cpu.cfs_quota_us"], found["cpu.cfs_period_us"]) == ("50000", "100000")


def test_shares_and_swap(machine: Machine) -> None:
    found = limits(machine, memory_bytes=64 << 20, memory_swap_bytes=96 << 20, cpu_shares=512)

    if "cpu.shares" not in found or "memory.memsw.limit_in_bytes" not in found:
        pytest.skip("shares and swap as such are cgroup v1's; runc translates them on v2")
    assert found["cpu.shares"] == "512"
    assert found["memory.memsw.limit_in_bytes"] == str(96 << 20)


def test_resource_limits_of_processes(run: Run) -> None:
    done = run("cat /proc/self/limits", rlimits=[spec.parse_rlimit("nofile=100:200"), spec.parse_rlimit("core=0")])

    assert [line.split()[3:5] for line in done.stdout.splitlines() if "open files" in line] == [["100", "200"]]


def test_the_own_network_has_only_a_loopback(run: Run) -> None:
    done = run("readlink /proc/self/ns/net; ls /sys/class/net")

    assert done.stdout.splitlines()[-1] == "lo"
    assert os.readlink("/proc/self/ns/net") not in done.stdout


def test_the_hosts_network(run: Run) -> None:
    done = run("ls -l /proc/self/ns/net; cat /etc/hosts", net="host")

    assert os.readlink("/proc/self/ns/net") in done.stdout
    for path in hostfacts.host_network_files():
        if path == "/etc/hosts":
            assert leaks.read(path) in done.stdout


def test_privileged(run: Run) -> None:
    done = run(
        "cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted; unshare -m true && echo unshared; "
        "ls /dev; grep /sys /proc/mounts",
        privileged=True,
        devices=hostfacts.devices(),
    )

    assert int(status_field(done.stdout, "CapEff"), 16) == mask_of(list(hostfacts.capabilities()))
    assert (status_field(done.stdout, "Seccomp"), status_field(done.stdout, "NoNewPrivs")) == ("0", "0")
    assert {"mounted", "unshared"} <= set(done.stdout.split())
    assert {os.path.basename(each["path"]) for each in hostfacts.devices()} & set(done.stdout.split())
    assert "sysfs /sys sysfs rw" in done.stdout


def test_a_terminal(machine: Machine) -> None:
    """runc passes the pty of its own on; what the program sees is a terminal of its own."""
    path = machine.bundle("/bin/sh", "-c", "tty; echo $TERM; stty size", terminal=True)
    master, slave = pty.openpty()

    process = subprocess.Popen(
        machine.runc("run", "--bundle", path, os.path.basename(path)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    while select.select([master], [], [], RUN_DEADLINE_S)[0]:
        try:
            seen += os.read(master, 4096)
        except OSError:  # EIO: the other side is closed
            break
    os.close(master)

    assert process.wait(timeout=RUN_DEADLINE_S) == 0
    assert seen.split()[:2] == [b"/dev/pts/0", b"xterm"]


def test_exec_as_somebody_else(machine: Machine) -> None:
    path = machine.bundle("/bin/sleep", "60", env=["A=1"])
    name = os.path.basename(path)
    machine.run_detached("run", "--detach", "--bundle", path, name)
    with open(f"{path}/config.json", encoding="utf-8") as file:
        base = json.load(file)["process"]
    user = spec.parse_user("web:video", *rootfs.passwd_and_group(machine.rootfs))
    wanted = ExecOptions(
        args=["/bin/sh", "-c", "id; pwd; env; cat /proc/self/status"], user=user, cwd="/srv", env=["B=2"]
    )
    with open(f"{path}/process.json", "w", encoding="utf-8") as file:
        json.dump(spec.exec_process(base, wanted), file)

    done = subprocess.run(
        machine.runc("exec", "--process", f"{path}/process.json", name),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_DEADLINE_S,
    )

    lines = done.stdout.splitlines()
    assert lines[:2] == ["uid=1000(web) gid=44(video)", "/srv"]
    assert {"A=1", "B=2"} <= set(lines)
    assert status_field(done.stdout, "Seccomp") == "2"


def test_a_mount_made_on_the_host_later_shows_in_a_slave(machine: Machine) -> None:
    """With rslave it does, with the default (rprivate) it does not."""
    host = f"{machine.folder}/host"
    os.mkdir(host)
    subprocess.run(["mount", "--bind", host, host], check=True)
    try:
        subprocess.run(["mount", "--make-shared", host], check=True)
        mounts = [spec.parse_mount(f"{host}:/srv/slave:rslave"), spec.parse_mount(f"{host}:/srv/own")]
        path = machine.bundle("/bin/sleep", "60", mounts=mounts)
        name = os.path.basename(path)
        machine.run_detached("run", "--detach", "--bundle", path, name)

        os.mkdir(f"{host}/later")
        subprocess.run(["mount", "-t", "tmpfs", "later", f"{host}/later"], check=True)
        table = subprocess.run(
            machine.runc("exec", name, "/bin/cat", "/proc/mounts"), capture_output=True, text=True, check=True
        )

        assert "later /srv/slave/later" in table.stdout
        assert "/srv/own/later" not in table.stdout
    finally:
        subprocess.run(["umount", "-R", host], check=True)

"""What `daemon.spec` builds means to real runc and the real kernel what the options say."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daemon import hostfacts, rootfs, spec
from daemon.spec import ExecOptions, SpecOptions
from tests.support import leaks

RUN_DEADLINE_S = 30
APPLETS = "sh id cat mount unshare hostname env pwd touch ls grep tty stty sleep readlink"

Run = Callable[..., subprocess.CompletedProcess[str]]


def make_rootfs(path: str) -> None:
    """The smallest root filesystem with a shell and a few users."""
    for name in ("bin", "etc", "tmp", "srv"):
        os.makedirs(f"{path}/{name}")
    shutil.copy(shutil.which("busybox") or "", f"{path}/bin/busybox")
    for applet in APPLETS.split():
        os.symlink("busybox", f"{path}/bin/{applet}")
    with open(f"{path}/etc/passwd", "w", encoding="ascii") as file:
        file.write("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n")
    with open(f"{path}/etc/group", "w", encoding="ascii") as file:
        file.write("root:x:0:\nweb:x:1001:\nvideo:x:44:web\n")


class Machine:
    """Owns a folder with one root filesystem, runc's state and bundles; `close` leaves nothing of them."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="spec")
        self.rootfs = f"{self.folder}/rootfs"
        # Named after the run's folder, so that the leak check knows our cgroups.
        self.namespace = f"{os.path.basename(os.environ['TMPDIR'])}-spec"
        self.count = 0
        make_rootfs(self.rootfs)

    def runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", f"{self.folder}/runc", *arguments]

    def bundle(self, *args: str, **options: Any) -> str:
        """A new bundle for this command; its path ends in the container's id."""
        self.count += 1
        container_id = f"c{self.count}"
        path = f"{self.folder}/{container_id}"
        os.mkdir(path)
        built = spec.build(
            SpecOptions(
                **{
                    "namespace": self.namespace,
                    "container_id": container_id,
                    "args": args,
                    "rootfs": self.rootfs,
                    "host_capabilities": hostfacts.capabilities(),
                    "host_network_files": hostfacts.host_network_files(),
                    **options,
                }
            )
        )
        assert spec.validate(built) == []
        with open(f"{path}/config.json", "w", encoding="utf-8") as file:
            json.dump(built, file)
        return path

    def run(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script in a container of these options, to its end."""
        return self.run_bundle(self.bundle("/bin/sh", "-c", script, **options))

    def run_bundle(self, path: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.runc("run", "--bundle", path, os.path.basename(path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_DEADLINE_S,
        )
        assert "runc run failed" not in done.stderr, done.stderr
        return done

    def run_detached(self, *arguments: str) -> None:
        """A runc command whose container stays; its streams would stay open with it, so it gets none of ours."""
        log = f"{self.folder}/log"
        done = subprocess.run(
            [*self.runc("--log", log), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=RUN_DEADLINE_S,
        )
        assert done.returncode == 0, leaks.read(log)

    def close(self) -> None:
        for number in range(1, self.count + 1):
            subprocess.run(self.runc("delete", "--force", f"c{number}"), capture_output=True, check=False)
        for root in leaks.cgroup_roots():
            if os.path.isdir(f"{root}/{self.namespace}"):
                os.rmdir(f"{root}/{self.namespace}")
        shutil.rmtree(self.folder)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


@pytest.fixture
def run(machine: Machine) -> Run:
    return machine.run


def status_field(text: str, name: str) -> str:
    """A field of /proc/self/status as the container printed it."""
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))


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


# --- the system-call filter -------------------------------------------------------------------------------------------

# Calls that need no capability to be refused or let through by the kernel itself: (name, number on x86_64, arguments).
PROBES = {
    "io_uring_setup": (425, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "unshare NEWUSER": (272, 0x10000000),
    "socket VSOCK": (41, 40, 1, 0),
    "socket VSOCK, high bits set": (41, 40 | 1 << 40, 1, 0),
    "socket UNIX": (41, 1, 1, 0),
    "getpid": (39,),
}
PROBE_SCRIPT = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
out = {}
for name, call in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(each) for each in call])
    out[name] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(out))
"""


def probe(machine: Machine, **options: Any) -> dict[str, int]:
    """Each probe's errno (0: it went through), called by this very Python inside a container."""
    needed = {
        os.path.realpath(path) for path in (sys.base_prefix, "/lib", "/lib64", "/usr/lib") if os.path.exists(path)
    }
    mounts = [spec.parse_mount(f"{path}:{path}:ro") for path in sorted(needed)]
    links = {path for path in ("/lib", "/lib64") if os.path.islink(path)}
    for path in links:
        os.symlink(os.readlink(path), f"{machine.rootfs}{path}")
    python = os.path.realpath(sys.executable)
    bundle = machine.bundle(python, "-I", "-S", "-c", PROBE_SCRIPT, json.dumps(PROBES), mounts=mounts, **options)
    done = machine.run_bundle(bundle)
    for path in links:
        os.unlink(f"{machine.rootfs}{path}")
    assert done.returncode == 0, done.stderr
    errnos: dict[str, int] = json.loads(done.stdout)
    return errnos


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probes are x86_64's numbers")
def test_the_filter_refuses_what_the_kernel_would_allow(machine: Machine) -> None:
    confined = probe(machine)
    unconfined = probe(machine, seccomp="unconfined")

    eperm, enosys = 1, 38
    assert confined == {
        "io_uring_setup": eperm,
        "add_key": eperm,
        "clone3": enosys,
        "unshare NEWUSER": eperm,
        "socket VSOCK": eperm,
        "socket VSOCK, high bits set": eperm,
        "socket UNIX": 0,
        "getpid": 0,
    }
    for name in ("add_key", "unshare NEWUSER", "socket VSOCK"):
        assert unconfined[name] != eperm, name
    assert unconfined["clone3"] != enosys


def test_root_may_mount_and_unshare_only_with_the_capability(run: Run) -> None:
    """SYS_ADMIN opens them; without it both the kernel and the filter say no."""
    script = "unshare -m true && echo unshared; mount -t tmpfs x /tmp && echo mounted; grep Seccomp: /proc/self/status"

    assert run(script).stdout.split() == ["Seccomp:", "2"]
    assert run(script, cap_add=["SYS_ADMIN"]).stdout.split() == ["unshared", "mounted", "Seccomp:", "2"]
    assert run(script, seccomp="unconfined").stdout.split() == ["Seccomp:", "0"]

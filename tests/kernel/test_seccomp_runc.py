"""The default system-call filter as runc and libseccomp put it in place: what it stops, and what it lets through."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from daemon import spec
from tests.support.specbox import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


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


def test_root_may_mount_and_unshare_only_with_the_capability(machine: Machine) -> None:
    """SYS_ADMIN opens them; without it both the kernel and the filter say no."""
    script = "unshare -m true && echo unshared; mount -t tmpfs x /tmp && echo mounted; grep Seccomp: /proc/self/status"

    assert machine.run(script).stdout.split() == ["Seccomp:", "2"]
    assert machine.run(script, cap_add=["SYS_ADMIN"]).stdout.split() == ["unshared", "mounted", "Seccomp:", "2"]
    assert machine.run(script, seccomp="unconfined").stdout.split() == ["Seccomp:", "0"]

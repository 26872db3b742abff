"""Each thing a runtime would choke on is found, at its JSON path, with what to do."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from daemon import spec
from daemon.spec import SpecOptions

GOOD = spec.build(SpecOptions(namespace="ns", container_id="c1", args=["sh"], machine="x86_64"))


def problems(change: Callable[[dict[str, Any]], object]) -> list[str]:
    made = copy.deepcopy(GOOD)
    change(made)
    return spec.validate(made)


def setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change that puts the value at a dotted path; numbers index lists, making objects on the way."""

    def change(made: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        at: Any = made
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        at[int(last) if isinstance(at, list) else last] = value

    return change


def without(path: str) -> Callable[[dict[str, Any]], None]:
    def change(made: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        at: Any = made
        for key in parents:
            at = at[key]
        del at[last]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("ociVersion"), 'ociVersion: is missing; add "ociVersion": "1.0.2"'),
        (setting("ociVersion", "2.0"), "ociVersion: '2.0' is not supported"),
        (without("process"), "process: is missing"),
        (setting("process.args", []), "process.args: is empty"),
        (setting("process.args", [""]), "process.args[0]: is an empty string"),
        (setting("process.args", ["a", "b\0"]), "process.args[1]: contains a NUL byte"),
        (setting("process.cwd", "tmp"), "process.cwd: 'tmp' is not absolute"),
        (without("process.cwd"), "process.cwd: '' is not absolute"),
        (setting("process.env", ["A"]), "process.env[0]: 'A' is no NAME=value"),
        (setting("process.env", ["A=1", "=1"]), "process.env[1]: '=1' is no NAME=value"),
        (setting("process.user.uid", 2**32 - 1), "process.user.uid: 4294967295 is too large"),
        (setting("process.oomScoreAdj", 1001), "process.oomScoreAdj: 1001 is out of range"),
        (
            setting("process.capabilities.bounding", ["NET_ADMIN"]),
            "process.capabilities.bounding[0]: 'NET_ADMIN' is no capability (did you mean 'CAP_NET_ADMIN'?)",
        ),
        (
            setting("process.capabilities.effective", ["CAP_SYS_TIME"]),
            "process.capabilities.effective: CAP_SYS_TIME is not in permitted",
        ),
        (
            setting("process.rlimits", [{"type": "NOFILE", "soft": 1, "hard": 1}]),
            "process.rlimits[0].type: 'NOFILE' is no resource limit (did you mean 'RLIMIT_NOFILE'?)",
        ),
        (
            setting("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
            "process.rlimits[0].soft: exceeds",
        ),
        (
            setting("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2),
            "process.rlimits[1].type: RLIMIT_CORE is there twice",
        ),
        (without("root"), "root.path: is missing"),
        (setting("root.path", ""), "root.path: is missing"),
        (setting("mounts", [{"type": "tmpfs", "destination": "t"}]), "mounts[0].destination: 't' is not absolute"),
        (setting("mounts", [{"type": "tmpfs", "destination": "/."}]), "mounts[0].destination: is / itself"),
        (
            setting("mounts", [{"type": "bind", "destination": "/t", "source": "/s", "options": ["ro"]}]),
            'mounts[0].options: a bind mount needs "bind" or "rbind" here',
        ),
        (setting("mounts", [{"destination": "/t", "options": ["rbind"]}]), "mounts[0].source: is missing"),
        (setting("mounts", [{"destination": "/t", "source": "t"}]), "mounts[0].type: is missing"),
        (setting("hooks.prestart", [{"path": "hook"}]), "hooks.prestart[0].path: 'hook' is not absolute"),
        (
            setting("hooks.poststop", [{"path": "/h", "timeout": 0}]),
            "hooks.poststop[0].timeout: must be more than zero",
        ),
        (setting("hooks.poststop", [{"path": "/h", "env": ["A"]}]), "hooks.poststop[0].env[0]: 'A' is no NAME=value"),
        (setting("linux.maskedPaths", ["proc"]), "linux.maskedPaths[0]: 'proc' is not absolute"),
        (setting("linux.cgroupsPath", "/a/../b"), "linux.cgroupsPath: contains '..'"),
        (setting("linux.devices", [{"path": "/d", "type": "x"}]), "linux.devices[0].type: 'x' is none of"),
        (setting("linux.devices", [{"type": "c"}]), "linux.devices[0].path: None is not absolute"),
        (setting("linux.resources.memory.limit", 0), "linux.resources.memory.limit: 0 is no limit"),
        (setting("linux.resources.memory", {"swap": 5}), "linux.resources.memory.swap: needs memory.limit"),
        (setting("linux.resources.memory", {"limit": 9, "swap": 5}), "linux.resources.memory.swap: is less than"),
        (setting("linux.resources.memory.swappiness", 101), "linux.resources.memory.swappiness: must be 0 to 100"),
        (setting("linux.resources.cpu.quota", 50), "linux.resources.cpu.quota: 50 is too little"),
        (setting("linux.resources.cpu.period", 50), "linux.resources.cpu.period: 50 is out of range"),
        (setting("linux.resources.cpu.cpus", "0-"), "linux.resources.cpu.cpus: '0-' is no list of numbers"),
        (setting("linux.resources.cpu.mems", "a"), "linux.resources.cpu.mems: 'a' is no list of numbers"),
        (setting("linux.resources.devices.0.access", "rwx"), "linux.resources.devices[0].access: 'rwx' may only"),
        (setting("linux.resources.devices.0.type", "x"), "linux.resources.devices[0].type: 'x' is none of"),
        (setting("linux.seccomp.defaultAction", "ALLOW"), "linux.seccomp.defaultAction: 'ALLOW' is no action"),
        (setting("linux.seccomp.syscalls.0.names", []), "linux.seccomp.syscalls[0].names: is empty"),
        (setting("linux.seccomp.syscalls.0.action", "SCMP_ACT_LOG"), "linux.seccomp.syscalls[0].errnoRet: only"),
        (
            setting("linux.seccomp.syscalls.1.args", [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]),
            "linux.seccomp.syscalls[1].args[0].index",
        ),
        (
            setting("linux.seccomp.syscalls.1.args", [{"index": 1, "value": 1, "op": "SCMP_CMP_EGE"}]),
            "linux.seccomp.syscalls[1].args[0].op: 'SCMP_CMP_EGE' is no comparison (did you mean",
        ),
        (setting("linux.namespaces.0.type", "net"), "linux.namespaces[0].type: 'net' is no namespace"),
        (setting("linux.namespaces.1.type", "pid"), "linux.namespaces[1].type: pid is there twice"),
        (setting("linux.namespaces.0.path", "ns"), "linux.namespaces[0].path: 'ns' is not absolute"),
        (setting("linux.namespaces", []), 'hostname: needs a namespace of its own; add {"type": "uts"}'),
        (setting("linux.namespaces", [{"type": "uts"}]), "linux.maskedPaths: needs a namespace of its own"),
        (setting("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}]), "linux.uidMappings: needs"),
        (setting("linux.sysctl", {"kernel.hostname": "x"}), "linux.sysctl.kernel.hostname: set the spec's hostname"),
        (setting("linux.sysctl", {"vm.swappiness": "1"}), "linux.sysctl.vm.swappiness: belongs to no namespace"),
    ],
)
def test_each_mistake_is_found_at_its_path(change: Callable[[dict[str, Any]], None], says: str) -> None:
    found = problems(change)

    assert any(each.startswith(says) for each in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting("process.args", "sh"), "process.args: must be a list, but is 'sh'"),
        (setting("process.args", ["sh", 1]), "process.args[1]: must be a string, but is 1"),
        (setting("process.args", ["sh", None]), "process.args[1]: is null; remove it"),
        (setting("process.user", "root"), "process.user: must be an object, but is 'root'"),
        (setting("process.user.uid", -1), "process.user.uid: must be a whole number, not negative, but is -1"),
        (setting("process.terminal", "yes"), "process.terminal: must be true or false, but is 'yes'"),
        (setting("linux.resources.cpu.quota", "1"), "linux.resources.cpu.quota: must be a whole number, but is '1'"),
        (setting("linux.resources.cpu.quota", True), "linux.resources.cpu.quota: must be a whole number, but is True"),
        (setting("annotations", {"a": 1}), "annotations.a: must be a string, but is 1"),
        (
            setting("linux.resources.rdma", {"mlx": {"hcaHandles": "x"}}),
            "linux.resources.rdma.mlx.hcaHandles: must be a whole number, not negative, but is 'x'",
        ),
    ],
)
def test_a_wrong_type_is_named_and_nothing_else_is_looked_at(
    change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    assert [expected] == problems(change)


@pytest.mark.parametrize("value", [None, [], "spec", 5])
def test_no_object_at_all(value: object) -> None:
    assert spec.validate(value) == ["spec: must be a JSON object; a bundle's config.json is one"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting("mount", []), "mount: a runtime ignores this key (did you mean 'mounts'?)"),
        (setting("process.arg", []), "process.arg: a runtime ignores this key (did you mean 'args'?)"),
        (setting("linux.resources.memory.limits", 1), "linux.resources.memory.limits: a runtime ignores this key"),
    ],
)
def test_a_misspelt_key_is_named(change: Callable[[dict[str, Any]], None], says: str) -> None:
    assert any(each.startswith(says) for each in problems(change))


def test_keys_of_later_versions_pass() -> None:
    """A runtime ignores what it does not know; so do we, unless it looks like a slip."""
    assert problems(setting("linux.somethingOfNextYear", {"x": 1})) == []


def test_null_counts_as_absent() -> None:
    """Specs written by Go programs hold nulls for empty lists."""
    assert problems(setting("linux.devices", None)) == []
    assert problems(setting("process.rlimits", None)) == []


def test_sysctls_of_an_own_namespace_pass() -> None:
    own = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1", "fs.mqueue.msg_max": "5"}

    assert problems(setting("linux.sysctl", own)) == []


def test_an_empty_object_names_what_it_needs() -> None:
    assert [each.partition(":")[0] for each in spec.validate({})] == ["ociVersion", "process", "root.path"]

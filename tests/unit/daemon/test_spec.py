"""Options become a runtime spec."""

import ast
from typing import Any

import pytest

from daemon import seccomp, spec, spec_caps, spec_mounts, spec_parse
from daemon.spec import ExecOptions, SpecError, SpecOptions, User


def build(**more: Any) -> dict[str, Any]:
    return spec.build(
        SpecOptions(**{"namespace": "ns", "container_id": "c1", "args": ["sh"], "machine": "x86_64", **more})
    )


def namespaces(made: dict[str, Any]) -> set[str]:
    return {each["type"] for each in made["linux"]["namespaces"]}


def test_a_plain_container() -> None:
    made = build()

    assert {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": spec_caps.as_process_field(spec_caps.resolve(spec_caps.DEFAULT)),
        "noNewPrivileges": True,
        "oomScoreAdj": 0,
    } == made["process"]
    assert made["root"] == {"path": "rootfs", "readonly": False}
    assert made["hostname"] == "c1"
    assert made["linux"]["cgroupsPath"] == "/ns/c1"
    assert {"pid", "ipc", "uts", "mount", "cgroup", "network"} == namespaces(made)
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "annotations" not in made


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"privileged": True},
        {"net": "host"},
        {"terminal": True, "user": User(5, 6, (7,)), "read_only": True},
        {"memory_bytes": 2**26, "memory_swap_bytes": 2**27, "cpu_quota_us": 5000, "cpuset_cpus": "0-1"},
        {"rlimits": [spec.parse_rlimit("core=0")], "stop_signal": "QUIT", "annotations": {"a": "b"}},
        {"mounts": [spec.parse_mount("/a:/b:ro"), spec.parse_mount("type=tmpfs,dst=/t")]},
    ],
)
def test_what_is_built_is_valid(more: dict[str, Any]) -> None:
    assert spec.validate(build(**more)) == []


def test_own_environment_overrides_the_default_in_place() -> None:
    made = build(env=["A=1", "PATH=/mine", "A=2"], terminal=True)

    assert made["process"]["env"] == ["PATH=/mine", "TERM=xterm", "A=2"]


def test_limits_become_resources() -> None:
    made = build(
        memory_bytes=100,
        memory_swap_bytes=200,
        cpu_quota_us=50_000,
        cpu_period_us=100_000,
        cpu_shares=512,
        cpuset_cpus="0",
        cpuset_mems="0",
        pids_limit=10,
    )["linux"]["resources"]

    del made["devices"]
    assert made == {
        "memory": {"limit": 100, "swap": 200},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0", "mems": "0"},
        "pids": {"limit": 10},
    }


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"args": []}, "nothing to run"),
        ({"args": [""]}, "nothing to run"),
        ({"cwd": "tmp"}, "working directory 'tmp'"),
        ({"net": "bridge"}, "net 'bridge'"),
        ({"seccomp": "off"}, "seccomp 'off'"),
        ({"memory_swap_bytes": 5}, "needs a memory limit"),
        ({"memory_bytes": 5, "memory_swap_bytes": 4}, "cannot be less"),
        ({"stop_signal": "HALT"}, "signal 'HALT'"),
        ({"cap_add": ["fly"]}, "capability 'fly'"),
    ],
)
def test_what_cannot_be_met_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build(**more)


def test_privileged_opens_everything() -> None:
    made = build(privileged=True, devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}])
    linux, mounts = made["linux"], {each["destination"]: each["options"] for each in made["mounts"]}

    assert list(spec_caps.ALL) == made["process"]["capabilities"]["effective"]
    assert not made["process"]["noNewPrivileges"]
    assert {"maskedPaths", "readonlyPaths", "seccomp"} & set(linux) == set()
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "rw" in mounts["/sys"]
    assert "rw" in mounts["/sys/fs/cgroup"]
    assert linux["devices"][0]["path"] == "/dev/fuse"


def test_privileged_takes_what_the_host_has() -> None:
    made = build(privileged=True, host_capabilities=("CAP_CHOWN", "CAP_KILL"))

    assert made["process"]["capabilities"]["bounding"] == ["CAP_CHOWN", "CAP_KILL"]


def test_a_single_device_is_made_and_allowed() -> None:
    linux = build(devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}])["linux"]

    rule = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
    assert [{"allow": False, "access": "rwm"}, rule] == linux["resources"]["devices"]


def test_the_hosts_network_brings_its_name_resolution_along() -> None:
    made = build(net="host", host_network_files=("/etc/hosts",))

    assert "network" not in namespaces(made)
    assert {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "ro"]} in made[
        "mounts"
    ]


def test_a_network_namespace_by_path() -> None:
    made = build(net="/run/netns/blue")

    assert {"type": "network", "path": "/run/netns/blue"} in made["linux"]["namespaces"]
    assert "/etc/hosts" not in [each["destination"] for each in made["mounts"]]


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([], None),
        (["/a:/b"], None),
        (["/a:/b:rslave", "/c:/d"], "rslave"),
        (["/a:/b:rslave", "/c:/d:rshared"], "rshared"),
    ],
)
def test_the_root_propagates_as_far_as_its_mounts_need(mounts: list[str], expected: str | None) -> None:
    made = build(mounts=[spec.parse_mount(each) for each in mounts])

    assert made["linux"].get("rootfsPropagation") == expected


def test_the_stop_signal_travels_as_the_image_specs_annotation() -> None:
    assert build(stop_signal="QUIT", annotations={"a": "b"})["annotations"] == {
        "org.opencontainers.image.stopSignal": "QUIT",
        "a": "b",
    }


def test_the_filter_follows_the_capabilities() -> None:
    def refused(made: dict[str, Any]) -> set[str]:
        return set(made["linux"]["seccomp"]["syscalls"][0]["names"])

    assert "mount" in refused(build())
    assert "mount" not in refused(build(cap_add=["SYS_ADMIN"]))


def test_the_filter_can_be_left_out_or_replaced() -> None:
    own = {"defaultAction": "SCMP_ACT_LOG"}

    assert "seccomp" not in build(seccomp="unconfined")["linux"]
    assert own == build(seccomp=own)["linux"]["seccomp"]
    assert own == build(seccomp=own, privileged=True)["linux"]["seccomp"]


def test_exec_is_the_containers_process_with_another_program() -> None:
    base = build(env=["A=1"], user=User(5, 5), cwd="/srv", terminal=True, rlimits=[spec.parse_rlimit("core=0")])[
        "process"
    ]
    base["consoleSize"] = {"height": 1, "width": 1}

    made = spec.exec_process(base, ExecOptions(args=["id"], env=["B=2"]))

    assert made["args"] == ["id"]
    assert [*base["env"], "B=2"] == made["env"]
    assert {"terminal": False, "cwd": "/srv", "user": {"uid": 5, "gid": 5}}.items() <= made.items()
    assert base["rlimits"] == made["rlimits"]
    assert base["capabilities"] == made["capabilities"]
    assert "consoleSize" not in made
    assert base["args"] == ["sh"]


def test_exec_changes_what_is_asked_for() -> None:
    base = build()["process"]
    wanted = ExecOptions(
        args=["id"], cwd="/tmp", user=User(7, 8), terminal=True, cap_add=["sys_time"], cap_drop=["kill"]
    )

    made = spec.exec_process(base, wanted)

    assert {"cwd": "/tmp", "user": {"uid": 7, "gid": 8}, "terminal": True}.items() <= made.items()
    assert "TERM=xterm" in made["env"]
    assert {"CAP_SYS_TIME"} == set(made["capabilities"]["effective"]) - set(base["capabilities"]["effective"])
    assert {"CAP_KILL"} == set(base["capabilities"]["effective"]) - set(made["capabilities"]["effective"])


def test_a_privileged_exec_has_all_capabilities() -> None:
    made = spec.exec_process(build()["process"], ExecOptions(args=["id"], privileged=True))

    assert list(spec_caps.ALL) == made["capabilities"]["permitted"]
    assert not made["noNewPrivileges"]


def test_exec_on_a_foreign_spec_without_capabilities() -> None:
    """A spec written by hand may lack the parts we always write."""
    made = spec.exec_process({"cwd": "/"}, ExecOptions(args=["id"]))

    assert made["env"] == []
    assert made["capabilities"]["bounding"] == []


def test_the_modules_import_next_to_nothing() -> None:
    """shimctl pays for these imports at each call: what is dear (re, enum, ...) is imported where it is used."""
    for module in (spec, spec_caps, spec_mounts, spec_parse, seccomp):
        assert module.__file__ is not None
        with open(module.__file__, encoding="utf-8") as file:
            body = ast.parse(file.read()).body
        imported = {each.names[0].name for each in body if isinstance(each, ast.Import)}
        imported |= {str(each.module).partition(".")[0] for each in body if isinstance(each, ast.ImportFrom)}

        assert imported <= {"os", "posixpath", "daemon"}, module.__name__

"""What runc is called with, and what its failures are told as."""

import pytest

from shim.task.creation import create_arguments, shares_pid_namespace
from shim.task.runc import (
    Runc,
    check_binary,
    checkpoint_arguments,
    failure,
    find_binary,
    is_gone,
    is_not_running,
    last_error,
)
from ttrpc.api import runc
from ttrpc.errors import StatusError


def test_global_arguments_carry_root_log_and_switches() -> None:
    made = Runc("/b", "c1", binary="", root="/r/ns", systemd_cgroup=True, criu_path="/criu")

    assert " ".join(made.global_arguments("/b/log.json")) == (
        "runc --root /r/ns --log /b/log.json --log-format json --criu /criu --systemd-cgroup"
    )


@pytest.mark.parametrize(
    ("options", "console", "expected"),
    [
        ({}, None, ""),
        ({}, "/c.sock", " --console-socket /c.sock"),
        ({"no_pivot_root": True, "no_new_keyring": True}, None, " --no-pivot --no-new-keyring"),
    ],
)  # fmt: skip
def test_create_arguments(options: dict[str, bool], console: str | None, expected: str) -> None:
    made = " ".join(create_arguments(runc.Options(**options), "/b", "/p", console))

    assert made == "create --bundle /b --pid-file /p" + expected


def test_checkpoint_arguments() -> None:
    options = runc.CheckpointOptions(open_tcp=True, empty_namespaces=["network"], cgroups_mode="soft")
    expected = "checkpoint --image-path /i --work-path /w --tcp-established --leave-running"

    assert checkpoint_arguments("/i", options, "/w") == (
        [*expected.split(), "--empty-ns", "network", "--manage-cgroups-mode", "soft"]
    )
    assert "--leave-running" not in checkpoint_arguments("/i", runc.CheckpointOptions(exit=True), "/w")


LOG = b"""{"level":"warning","msg":"careful","time":"x"}
{"level":"error","msg":"first","time":"x"}
not json
{"level":"error","msg":"runc create failed: exec: \\"x\\": not found","time":"x"}
{"level":"info","msg":"bye"}
[1]
"""


def test_last_error_of_a_log() -> None:
    assert last_error(LOG) == 'runc create failed: exec: "x": not found'
    assert last_error(b"") == ""
    assert last_error(b'{"level":"warning","msg":"x"}\n') == ""


@pytest.mark.parametrize(
    ("status", "log", "complaint", "words"),
    [
        (1 << 8, LOG, b"noise", 'runc create failed: exec: "x": not found'),
        (1 << 8, b"", b"  said on stderr\n", "said on stderr"),
        (3 << 8, b"", b"", "exit status 3"),
        (9, b"", b"", "killed by signal 9"),
    ],
)
def test_failure_is_told_in_the_runtimes_own_words(status: int, log: bytes, complaint: bytes, words: str) -> None:
    assert failure("create", status, log, complaint).message == f"OCI runtime create failed: {words}"


def test_failures_that_are_none() -> None:
    def said(words: str) -> StatusError:
        return failure("delete", 1 << 8, b"", words.encode())

    assert is_gone(said('container "c1" does not exist'))
    assert is_not_running(said("container not running"))
    assert not is_gone(said("cannot delete container that is not stopped: running"))
    assert not is_not_running(said("permission denied"))


def test_runtime_names() -> None:
    check_binary("crun")
    check_binary("/usr/local/bin/youki")
    for name in ("../runc", "a/b", "x\0y"):
        with pytest.raises(StatusError):
            check_binary(name)
    assert find_binary("sh", "/nowhere:/bin") == "/bin/sh"
    assert find_binary("no-such-thing", "/bin") == "no-such-thing"


@pytest.mark.parametrize(
    ("namespaces", "shares"),
    [
        ([{"type": "pid"}], False),
        ([{"type": "mount"}, {"type": "pid", "path": ""}], False),
        ([{"type": "pid", "path": "/proc/1/ns/pid"}], True),
        ([{"type": "mount"}], True),
        ([], True),
        (None, True),
        ("pid", True),
        (["pid"], True),
    ],
)
def test_who_shares_a_pid_namespace(namespaces: object, shares: bool) -> None:
    assert shares_pid_namespace({"linux": {"namespaces": namespaces}}) is shares


def test_spec_without_linux_shares_everything() -> None:
    assert shares_pid_namespace({})
    assert shares_pid_namespace({"linux": None})

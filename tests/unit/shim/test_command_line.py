"""Flags as Go has them, addresses as containerd computes them, and the small wire format `start` and `delete` speak."""

import hashlib
import os

import pytest

from shim.__main__ import UsageError, parse_flags
from shim.delete import response
from shim.params import socket_path
from shim.start import SOCKET_PATH_MAX, StartError, listen, read_shim_cgroup, wire_fields
from ttrpc.api import runc, task, wkt


@pytest.mark.parametrize(
    ("words", "flags", "rest"),
    [
        ("-namespace ns -id c1 start", {"namespace": "ns", "id": "c1"}, ["start"]),
        ("-address=a --id=c1 -debug start -v", {"address": "a", "id": "c1", "debug": "true"}, ["start", "-v"]),
        ("-debug=false -v", {"debug": "", "v": "true"}, []),
        ("-id -x -- -debug", {"id": "-x"}, ["-debug"]),
        ("-address= -id c delete", {"address": "", "id": "c"}, ["delete"]),
        ("- start", {}, ["-", "start"]),
        ("", {}, []),
    ],
)  # fmt: skip
def test_flags_are_read_as_go_reads_them(words: str, flags: dict[str, str], rest: list[str]) -> None:
    assert parse_flags(words.split()) == (flags, rest)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("-nonsense", "not defined: -nonsense"),
        ("-id", "needs an argument: -id"),
        ("-debug=perhaps", 'invalid boolean value "perhaps"'),
    ],
)
def test_flags_nobody_knows_are_refused(words: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_flags(words.split())


@pytest.mark.parametrize("address", ["/run/containerd/containerd.sock", "/run//containerd/../x.sock", ""])
def test_socket_path_is_containerds_formula(address: str) -> None:
    """sha256 of the joined and cleaned path, as Go's filepath.Join has it."""
    joined = os.path.normpath(f"{address}/moby/c1")

    assert socket_path("/run/containerd/s", address, "moby", "c1") == (
        "/run/containerd/s/" + hashlib.sha256(joined.encode()).hexdigest()
    )


def test_socket_paths_the_kernel_cannot_take_are_refused() -> None:
    with pytest.raises(StartError, match="SHIMD_SOCKET_DIR"):
        listen("/tmp/" + "x" * SOCKET_PATH_MAX)


@pytest.mark.parametrize("cgroup", ["", "/shims", "/a/b"])
def test_shim_cgroup_is_found_in_the_options(cgroup: str) -> None:
    options = runc.Options(no_pivot_root=True, shim_cgroup=cgroup, io_uid=7, root="/r", binary_name="runc")

    assert read_shim_cgroup(wkt.pack(options).SerializeToString()) == cgroup


@pytest.mark.parametrize("stdin", [b"", b"\xff", b"\x0a\x05ab", b"\x0a\x02c1\x12\x02ns", os.urandom(64)])
def test_stdin_that_is_no_such_thing_is_ignored(stdin: bytes) -> None:
    assert read_shim_cgroup(stdin) == ""


def test_wire_fields_skip_what_they_do_not_know() -> None:
    state = task.StateResponse(id="c1", pid=300, bundle="/b", exit_status=7)

    assert wire_fields(state.SerializeToString()) == {1: b"c1", 2: b"/b"}


@pytest.mark.parametrize(
    ("pid", "status", "at_ns"), [(0, 0, 0), (1, 137, 1), (4194304, 255, 1_795_500_295_906_676_198), (77, 42, 10**18)]
)
def test_delete_response_is_what_protobuf_reads(pid: int, status: int, at_ns: int) -> None:
    answer = task.DeleteResponse.FromString(response(pid, status, at_ns))

    assert (answer.pid, answer.exit_status, answer.exited_at.ToNanoseconds()) == (pid, status, at_ns)
    assert answer.HasField("exited_at")

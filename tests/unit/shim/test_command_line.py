"""Flags as Go has them, addresses as containerd computes them, and the small wire format `start` and `delete` speak."""

import hashlib
import os

import pytest

from shim.__main__ import UsageError, make_params, parse_flags
from shim.actions.bootstrap import read_bootstrap, wire_fields
from shim.actions.delete import response
from shim.actions.start import SOCKET_PATH_MAX, StartError, listen
from shim.params import socket_path
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

    assert read_bootstrap(wkt.pack(options).SerializeToString(), "c1", "ns").shim_cgroup == cgroup


@pytest.mark.parametrize("stdin", [b"", b"\xff", b"\x0a\x05ab", b"\x0a\x02c1\x12\x02ns", bytes(range(7, 250, 3))])
def test_stdin_that_is_no_such_thing_is_ignored(stdin: bytes) -> None:
    given = read_bootstrap(stdin, "c1", "ns")

    assert (given.shim_cgroup, given.events_address, given.socket_dir) == ("", "", "")


def field(number: int, value: bytes) -> bytes:
    """One length-delimited field of a message, shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def bootstrap_params(*extensions: bytes) -> bytes:
    """containerd 2.3's BootstrapParams, as it would write it for container c1."""
    return b"".join(
        (
            field(1, b"c1"), field(2, b"ns"), b"\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01", field(4, b"2.3.4"),
            field(5, b"/run/c.sock.ttrpc"), field(6, b"/run/c.sock"), field(7, b"/usr/bin/containerd"),
            *(field(8, field(1, extension)) for extension in extensions), field(9, b"/run/short"),
        )
    )  # fmt: skip


def test_bootstrap_params_of_newer_daemons_are_read() -> None:
    """Runtime options come as one extension among others, which need not be known."""
    options = wkt.pack(runc.Options(shim_cgroup="/shims")).SerializeToString()
    other = wkt.any_of("containerd.io/cri.v1.PodSandboxConfig", b"\x1a\x03/no").SerializeToString()
    given = read_bootstrap(bootstrap_params(other, options), "c1", "ns")

    assert (given.shim_cgroup, given.events_address, given.socket_dir) == ("/shims", "/run/c.sock.ttrpc", "/run/short")


def test_bootstrap_params_of_another_container_are_no_bootstrap_params() -> None:
    assert read_bootstrap(bootstrap_params(), "c2", "ns").events_address == ""


def test_the_environment_goes_before_what_stdin_says() -> None:
    flags, stdin = {"id": "c1", "namespace": "ns"}, bootstrap_params()
    told = make_params(flags, "/b", {}, stdin)
    set_by_hand = make_params(flags, "/b", {"TTRPC_ADDRESS": "/t", "SHIMD_SOCKET_DIR": "/s"}, stdin)
    nothing = make_params(flags, "/b", {})

    assert (told.events_address, told.socket_dir) == ("/run/c.sock.ttrpc", "/run/short")
    assert (set_by_hand.events_address, set_by_hand.socket_dir) == ("/t", "/s")
    assert (nothing.events_address, nothing.socket_dir) == ("", "/run/containerd/s")


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

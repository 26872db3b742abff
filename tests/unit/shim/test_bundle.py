"""The bundle's small files, ids, and mount plans."""

import os
from typing import Any

import pytest

from shim.bundle import Bundle, is_valid_id, parse_object, read_file, write_replacing
from shim.task import mounts
from shim.task.exits import UNKNOWN_STATUS, Exit, ExitStore
from shim.task.mounts import MS_BIND, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, plan, shorten_overlay
from ttrpc.api import mount
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.mark.parametrize("text", ["a", "c1", "a-b_c.d", "A9", "x" * 76])
def test_ids(text: str) -> None:
    assert is_valid_id(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "a--b", "a._b", "..", "a/b", "ä", "a b", "a\n", "x" * 77, "²"])
def test_what_is_no_id(text: str) -> None:
    assert not is_valid_id(text)


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"", "not valid JSON"), (b"[]", "not list"), (b"\xff", "not valid JSON"), (b"[" * 100_000, "not valid JSON")],
)
def test_json_that_is_no_object_is_an_invalid_argument(raw: bytes, words: str) -> None:
    with pytest.raises(StatusError, match=words) as error:
        parse_object(raw, "thing")
    assert error.value.code == Code.INVALID_ARGUMENT
    assert error.value.message.startswith("thing ")


def test_bundle_must_be_a_directory_of_ours(tmp_path: Any) -> None:
    Bundle(str(tmp_path)).check()
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", os.geteuid(), -1)
    for path in ("relative", str(tmp_path / "missing"), str(tmp_path / "file"), "/proc/1/../../nonexistent"):
        with pytest.raises(StatusError) as error:
            Bundle(path).check()
        assert error.value.code == Code.INVALID_ARGUMENT


def test_fifo_in_a_files_place_does_not_hang(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(StatusError, match="not a regular file"):
        Bundle(str(tmp_path)).read_spec()


def test_files_beyond_the_limit_are_refused(tmp_path: Any) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="more than 99"):
        read_file(str(tmp_path / "f"), 99)
    assert read_file(str(tmp_path / "f"), 100) == b"x" * 100


def test_replacing_leaves_nothing_beside_the_file(tmp_path: Any) -> None:
    path = str(tmp_path / "f")
    write_replacing(path, b"one")
    write_replacing(path, b"two", durable=True)
    with pytest.raises(IsADirectoryError):
        write_replacing(str(tmp_path), b"x")

    assert read_file(path) == b"two"
    assert os.listdir(tmp_path) == ["f"]


def test_state_of_an_unknown_version_is_not_read(tmp_path: Any) -> None:
    bundle = Bundle(str(tmp_path))
    assert bundle.read_state() is None
    for text in ('{"version":99}', "[]", "nonsense"):
        (tmp_path / "state.json").write_text(text)
        assert bundle.read_state() is None
    bundle.write_json("state.json", {"version": 1, "state": "running"})
    assert bundle.read_state() == {"version": 1, "state": "running"}


# --- exit records


def record(**fields: Any) -> Exit:
    return Exit(**{"container_id": "c1", "exec_id": "", "pid": 7, "exited_at_ns": 5, **fields})


@pytest.mark.parametrize(
    ("status", "code", "signum", "core", "api"),
    [
        (0, 0, None, False, 0),
        (42 << 8, 42, None, False, 42),
        (9, None, 9, False, 137),
        (0x80 | 11, None, 11, True, 139),
    ],
)
def test_wait_status_becomes_code_or_signal(
    status: int, code: int | None, signum: int | None, core: bool, api: int
) -> None:
    made = record()
    made.set_wait_status(status)

    assert (made.code, made.signal, made.core_dumped, made.status) == (code, signum, core, api)


def test_unknown_is_a_legal_answer() -> None:
    made = record(source=0)

    assert (made.code, made.signal, made.status) == (None, None, UNKNOWN_STATUS)
    message = made.to_message()
    assert not message.HasField("code")
    assert not message.HasField("signal")


def test_record_reads_back_as_it_was_written(tmp_path: Any) -> None:
    store = ExitStore(str(tmp_path))
    made = record(exec_id="init", code=3, seq=9, oom=True, started_at_ns=1, boot_id="b", incarnation="i", start_ticks=4)
    store.reserve("init")
    store.write(made)

    found = store.read("init")
    assert found is not None
    assert {name: getattr(found, name) for name in Exit.__slots__} == {n: getattr(made, n) for n in Exit.__slots__}
    assert store.read() is None, "an exec called init does not take init's place"
    assert os.path.getsize(tmp_path / "exec.init.json") == 4096
    store.forget("init")
    assert os.listdir(tmp_path) == []


def test_damaged_records_are_told(tmp_path: Any) -> None:
    store = ExitStore(str(tmp_path))
    for text in ("", "{", "[]", '{"version":2}', '{"version":1}'):
        (tmp_path / "init.json").write_text(text)
        with pytest.raises(ValueError, match=r".*"):
            store.read()


# --- mounts


def test_options_become_flags_and_data() -> None:
    (made,) = plan(
        [mount.Mount(type="ext4", source="/dev/x", options=["ro", "nosuid", "data=ordered", "rprivate", "x"])], "/r"
    )

    assert (made.flags, made.data, made.propagation) == (MS_RDONLY | MS_NOSUID, "data=ordered,x", [MS_PRIVATE | MS_REC])


def test_later_options_undo_earlier_ones_and_bind_is_a_flag() -> None:
    first, second = plan(
        [mount.Mount(type="bind", source="/a", options=["ro", "rw"]), mount.Mount(source="/b", options=["rbind"])], "/r"
    )

    assert first.flags == MS_BIND
    assert second.flags == MS_BIND | MS_REC


@pytest.mark.parametrize(
    ("target", "expected"), [("", "/r"), ("/", "/r"), ("a/b", "/r/a/b"), ("../../etc", "/r/etc"), ("/a/../..", "/r")]
)
def test_targets_stay_below_the_rootfs(target: str, expected: str) -> None:
    assert plan([mount.Mount(target=target)], "/r")[0].target == expected


@pytest.mark.parametrize("option", ["loop", "uidmap=0:1000:1", "X-containerd.mkdir.path=/x"])
def test_options_we_cannot_honour_are_refused(option: str) -> None:
    with pytest.raises(StatusError, match="not supported"):
        plan([mount.Mount(options=[option])], "/r")


def test_long_overlays_become_relative() -> None:
    lowers = [f"/var/lib/snapshots/{number}/fs" for number in range(300)]
    data = "lowerdir=" + ":".join(lowers) + ",upperdir=/u,workdir=/w"
    parent, shorter = shorten_overlay(data)

    assert parent == "/var/lib/snapshots"
    assert shorter.startswith("lowerdir=0/fs:1/fs:")
    assert shorter.endswith(",upperdir=/u,workdir=/w")
    assert len(shorter) < mounts.DATA_MAX_BYTES < len(data)


@pytest.mark.parametrize("data", ["lowerdir=/one", "upperdir=/u", "lowerdir=rel:/abs"])
def test_overlays_that_cannot_be_shortened_stay(data: str) -> None:
    assert shorten_overlay(data) == (None, data)

"""What `start` and keeper say to each other, and what the keeper decides without doing anything."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import launch
from shim.actions.delete import response
from shim.core import kernel
from shim.core.loop import Loop
from shim.keeper import code, home, orphans, pulse
from shim.keeper.births import differences
from shim.keeper.keeper import younger_sibling
from shim.keeper.peer import Different, World
from shim.keeper.wire import BadRequest, pack_answer, unpack_request
from shim.launcher import LINE_MAX_BYTES, launcher

NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


# --- the wire


@given(VALUES, st.lists(VALUES, min_size=1, max_size=20), st.dictionaries(NAMES, VALUES), st.binary())
def test_a_request_arrives_as_it_was(cwd: str, words: list[str], variables: dict[str, str], stdin: bytes) -> None:
    environment = {name.encode(): value.encode() for name, value in variables.items()}
    request = unpack_request(launch.pack_request(cwd.encode(), words, environment, stdin))

    assert (request.cwd, request.arguments) == (cwd, words)
    assert (request.environment, request.stdin) == (variables, stdin)


def test_bytes_that_are_no_text_arrive_as_well() -> None:
    """Paths and variables are bytes to the kernel: os.fsdecode's way of keeping them is kept."""
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    request = unpack_request(launch.pack_request(b"/\xff", [odd], {b"\xff": b"\xfe=\n"}, b"\0\0"))

    assert (request.cwd, request.arguments, request.stdin) == (os.fsdecode(b"/\xff"), [odd], b"\0\0")
    assert request.environment == {os.fsdecode(b"\xff"): os.fsdecode(b"\xfe=\n")}


@given(st.binary() | st.binary().map(lambda tail: launch.MAGIC + b"\0start\0" + tail))
def test_anything_else_is_a_bad_request(message: bytes) -> None:
    with pytest.raises(BadRequest):
        unpack_request(message)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [(b"1", "two numbers"), (b"a b", "two numbers"), (b"0 1", "range"), (b"1 -1", "range"), (b"9 9", "ends early")],
)
def test_counts_that_cannot_be_are_told(counts: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        unpack_request(b"\0".join((launch.MAGIC, b"start", counts, b"/", b"x")))


def test_outcome_and_text_stay_where_they_are_in_every_version() -> None:
    """An old keeper's answer is read by a newer `start`, and the other way round."""
    assert pack_answer(launch.STALE, "why\0so").split(b"\0", 2)[1:] == [b"stale", b"why\0so"]


# --- where the keeper is


def test_the_socket_lies_beside_the_shims_and_is_named_after_the_installation() -> None:
    found = os.stat(code.TREES["shim"])
    name = f"{found.st_dev:x}-{found.st_ino:x}".encode()

    assert launch.keeper_path({}) == b"/run/containerd/shimd-keeper/" + name
    assert launch.keeper_path({b"SHIMD_SOCKET_DIR": b"/run/shimd/s/"}) == b"/run/shimd/shimd-keeper/" + name
    assert launch.keeper_path({b"SHIMD_KEEPER": b"/k", b"SHIMD_SOCKET_DIR": b"/run/shimd/s"}) == b"/k/" + name
    assert launch.keeper_path({b"SHIMD_KEEPER": b"off"}) == b""


def test_only_a_younger_socket_is_a_younger_sibling(tmp_path: object) -> None:
    directory = str(tmp_path)
    for number, name in enumerate(("older", "ours", "ours.lock", "keeper.log", "younger")):
        with open(os.path.join(directory, name), "w", encoding="ascii"):
            pass
        os.utime(os.path.join(directory, name), (number, number))

    assert younger_sibling(os.path.join(directory, "ours")) == os.path.join(directory, "younger")
    assert younger_sibling(os.path.join(directory, "younger")) == ""


# --- the code it has


@pytest.fixture
def edition(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> "tuple[code.Edition, str]":
    path = os.path.join(str(tmp_path), "module.py")
    with open(path, "w", encoding="ascii") as file:
        file.write("old")
    monkeypatch.setattr(code, "TREES", {"shim": str(tmp_path)})
    return code.Edition(), path


def test_unchanged_code_is_known_as_such(edition: "tuple[code.Edition, str]") -> None:
    assert edition[0].changed() == ""


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_changed_code_is_noticed(edition: "tuple[code.Edition, str]", how: str) -> None:
    path = edition[1]
    if how == "removed":
        os.unlink(path)
    else:
        target = path if how == "written" else path + ".new"
        with open(target, "w", encoding="ascii") as file:
            file.write("new text")
        os.rename(target, path)

    assert edition[0].changed() == path


def test_what_is_preloaded_is_the_shims_and_not_the_daemons() -> None:
    names = set(code.our_modules())

    assert {"shim.serving.serve", "shim.keeper.template", "ttrpc.loopdriver", "ttrpc.api.task"} <= names
    assert not names & {"ttrpc.aio", "ttrpc.blocking", "ttrpc.api.generate", "shim.__main__", "shim.__init__"}


# --- the caller


def _world(**changes: object) -> World:
    world = World.__new__(World)
    world.namespaces = ["mnt:1", "net:1", "pid:1", "ipc:1", "uts:1", "user:1", "cgroup:1"]
    world.root, world.credentials, world.label = (1, 2), [b"Uid:\t0\n", b"CapBnd:\tff\n"], b""
    for name, value in changes.items():
        setattr(world, name, value)
    return world


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"namespaces": ["mnt:1", "net:2", "pid:1", "ipc:1", "uts:1", "user:1", "cgroup:1"]}, "net namespace"),
        ({"root": (1, 3)}, "root directory"),
        ({"credentials": [b"Uid:\t0\n", b"CapBnd:\tfe\n"]}, "CapBnd: ff, than the caller, CapBnd: fe"),
        ({"label": b"confined"}, "security label"),
    ],
)
def test_a_caller_that_is_something_else_is_told_apart(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(Different, match=complaint):
        _world().compare(_world(**changes))


def test_a_caller_that_is_the_same_is_served() -> None:
    assert _world().compare(_world()) is None  # type: ignore[func-returns-value]
    assert World("self").compare(World(os.getpid())) is None  # type: ignore[func-returns-value]


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, VALUES))
def test_the_differences_make_one_environment_the_other(present: dict[str, str], wanted: dict[str, str]) -> None:
    became = dict(present)
    for name, value in differences(present, wanted):
        if value is None:
            del became[name]
        else:
            became[name] = value

    assert became == wanted
    assert differences(wanted, wanted) == []


# --- orphans


def test_pids_are_known_with_their_start_where_the_shim_wrote_it(tmp_path: object) -> None:
    bundle = str(tmp_path)
    os.mkdir(os.path.join(bundle, "execs"))
    texts = {
        "init.pid": "10",
        "e1.pid": "11",
        "torn.pid": "",
        "shim.pid": "9",
        "state.json": json.dumps({"version": 1, "init": {"pid": 10, "start_ticks": 100}}),
        "execs/e2.state.json": json.dumps({"pid": 12, "start_ticks": 120}),
        "execs/e3.state.json": "{",
    }
    for name, text in texts.items():
        with open(os.path.join(bundle, name), "w", encoding="ascii") as file:
            file.write(text)

    assert orphans.recorded_processes(bundle) == {10: 100, 11: None, 12: 120}
    assert orphans.recorded_processes(bundle + "/none") == {}


def test_a_note_is_about_one_process_only(tmp_path: object) -> None:
    bundle = str(tmp_path)
    note = {"version": 1, "pid": 10, "start_ticks": 100, "boot_id": "b", "wait_status": 0, "exited_at_ns": 1}
    with open(orphans.note_path(bundle, 10), "w", encoding="ascii") as file:
        json.dump(note, file)

    assert orphans.read_note(bundle, 10, 100, "b") == note
    assert orphans.read_note(bundle, 10, 101, "b") is None
    assert orphans.read_note(bundle, 10, 100, "another boot") is None
    assert orphans.read_note(bundle, 11, 100, "b") is None


def test_what_a_dead_shim_had_begun_is_noted_in_its_bundle_though_no_file_names_it(tmp_path: object) -> None:
    bundle, gone, pid = str(tmp_path), f"{tmp_path}/gone", os.getpid()
    noted = orphans.Orphans("b")
    noted.expect(9, bundle)
    noted.expect(8, gone)

    assert noted.note(pid, 7 << 8) == ""

    note = orphans.read_note(bundle, pid, kernel.start_ticks(pid), "b")
    assert note is not None
    assert (note["wait_status"], note["shim_pid"]) == (7 << 8, 9)
    assert not os.path.exists(gone)


def test_notes_of_processes_that_are_told_are_taken_away(tmp_path: object) -> None:
    bundle, pid = str(tmp_path), os.getpid()
    noted = orphans.Orphans("b")
    noted.expect(9, bundle)
    noted.note(pid, 0)

    orphans.forget_notes(bundle, {pid})
    assert os.listdir(bundle) == [f"keeper-exit.{pid}"]
    orphans.forget_notes(bundle, set())
    assert os.listdir(bundle) == []


# --- cgroup and memory


def test_hierarchies_are_found_in_the_mount_table(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "mountinfo")
    with open(path, "w", encoding="ascii") as file:
        file.write(
            "25 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
            "26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
            "27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        )

    assert list(home.hierarchies(path)) == ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"]
    assert list(home.hierarchies(path + ".none")) == []


def test_without_a_name_the_cgroup_is_left_as_it_is() -> None:
    assert home.move_out("") == "its cgroup is left as it is"


FILL = """
import gc, itertools
gc.disable()
from shim.keeper import memory
kept = memory.fill_holes()
row = [id(block) for block in [bytes(200) for _ in range(20)]]
print(len(kept), sum(second - first == 240 for first, second in itertools.pairwise(row)), memory.FILLED_MAX)
"""


def test_holes_are_filled_and_the_filling_ends() -> None:
    """How many there are is the allocator's secret; that blocks then come one after the other is not.

    In a process of its own: other threads of this one make blocks meanwhile.
    """
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True)
    filled, in_a_row, most = map(int, done.stdout.split())

    assert 0 < filled < 10 * most
    assert in_a_row > 10


# --- what is executed


def test_the_program_starts_python_isolated_and_without_site() -> None:
    text = launcher("/usr/bin/python3", ["/opt/our code", "/usr/lib"])

    assert text.splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert "sys.path[:0] = ['/opt/our code', '/usr/lib']" in text
    assert compile(text, "launcher", "exec").co_names


@pytest.mark.parametrize("python", ["/" + "x" * LINE_MAX_BYTES, "/opt/with space/python"])
def test_a_python_the_kernel_cannot_be_told_is_started_by_the_shell(python: str) -> None:
    lines = launcher(python, ["/opt"]).splitlines()

    assert lines[0] == "#!/bin/sh"
    assert python in lines[1]
    assert lines[1].endswith('-IS "$0" "$@"')
    assert compile("\n".join(lines), "launcher", "exec").co_names


@pytest.fixture
def ended(tmp_path: object) -> str:
    bundle = str(tmp_path)
    with open(os.path.join(bundle, "ended"), "wb") as file:
        file.write(b"c1\n" + response(10, 42, 1_000_000_001))
    return bundle


def test_delete_answers_what_an_ended_shim_left(ended: str) -> None:
    words = ["shim", "-namespace", "n", "-id", "c1", "-bundle", ended, "delete"]

    assert launch.ended_answer(words) == response(10, 42, 1_000_000_001)


@pytest.mark.parametrize("words", [["-id", "c2"], ["-id"], []])
def test_delete_of_another_looks_for_itself(ended: str, words: list[str]) -> None:
    assert launch.ended_answer(["shim", "-bundle", ended, *words, "delete"]) == b""


def test_a_fifo_in_the_answers_place_is_not_waited_for(tmp_path: object) -> None:
    bundle = str(tmp_path)
    os.mkfifo(os.path.join(bundle, "ended"))

    assert stat.S_ISFIFO(os.stat(os.path.join(bundle, "ended")).st_mode)
    assert launch.ended_answer(["shim", "-id", "c1", "-bundle", bundle, "delete"]) == b""


# --- what would hold a keeper up, or pile up


def test_a_note_of_a_stray_is_not_synced_and_one_of_a_known_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shims died at once: each stray is noted in every bundle, and the keeper has successors to raise."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    noted = orphans.Orphans("b")
    for number in range(20):
        os.mkdir(tmp_path / str(number))
        noted.expect(9, str(tmp_path / str(number)))
    noted.note(os.getpid(), 0)
    assert len(list(tmp_path.glob("*/keeper-exit.*"))) == 20
    assert synced == []

    noted._expected[os.getpid()] = (str(tmp_path / "1"), 9)
    noted.note(os.getpid(), 0)
    assert len(synced) == 2


def test_notes_of_replaced_shims_do_not_pile_up_where_no_daemon_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    log: Any = SimpleNamespace(error=lambda _words: None, warning=lambda _words: None)
    watch = pulse.PulseWatch(loop, dict, log, pulse.limits_of({"SHIMD_WEDGED_S": "0"}))
    killed: list[int] = []
    monkeypatch.setattr(watch, "_signal", lambda _case, number: killed.append(number))
    case: Any = SimpleNamespace(fault="stopped", words=lambda: "it is stopped")
    for pid in range(1, 100):
        ward: Any = SimpleNamespace(pid=pid, bundle=str(tmp_path), wants_successor=lambda: True)
        watch._replace(ward, case)
    loop.close()

    assert len(killed) == 99
    assert len(os.listdir(tmp_path)) == pulse.NOTES_MAX

"""What the doctor concludes from facts, played with facts of our own; it looks at nothing here but made-up files."""

import contextlib
import dataclasses
import os
import sqlite3
from typing import Any

import pytest

from daemon import identity
from daemon.config import Config
from daemon.ctl.doctor import connector, facts, finding, host, leftovers, repairs, store, tasks
from daemon.ctl.doctor.facts import Bundle, Facts, Process
from daemon.ctl.doctor.finding import Finding, Kind, Severity
from daemon.ctl.doctor.host import Host
from daemon.ctl.doctor.store import Row, Store
from daemon.identity import Identity, identify
from daemon.store import schema
from daemon.store import tasks as rows
from daemon.store.records import TaskRow
from daemon.version import VERSION
from ttrpc.api import shimd
from ttrpc.api.pulse import Look

S = 1_000_000_000
CONFIG = Config(state_dir="/s", root_dir="/r")
BUNDLES = "/s/io.containerd.runtime.v2.task"
ME = identify(os.getpid()) or Identity(0, 0)  # a process that runs
DEAD = Identity(os.getpid(), 1)  # this pid was another's then
DAEMON = shimd.InfoResponse(version=VERSION, pid=1)


def bundle(name: str = "c", *, shim: Identity | None = None, init: Identity | None = None) -> Bundle:
    return Bundle(("ns", name), f"{BUNDLES}/ns/{name}", f"/s/s/{name}{'0' * 63}", shim, init)


def row(state: str = "running", boot_id: str = "now") -> Row:
    return Row(state, boot_id, 0, 0, 0, 0, f"{BUNDLES}/ns/c")


def told(*bundles: Bundle, rows: dict[str, Row] | None = None, **changes: Any) -> "list[tuple[str, str, bool]]":
    """(check, severity, whether --fix does something) of everything found, without what is said of a missing daemon."""
    there = Store({("ns", name): one for name, one in (rows or {}).items()})
    given = {"daemon": DAEMON, "store": there, **changes}
    return [(one.check, one.severity.word, one.repair is not None) for one in findings(*bundles, **given)]


def findings(*bundles: Bundle, **given: Any) -> "list[Finding]":
    seen = Facts(CONFIG, boot_id="now", bundles=tuple(bundles), **given)
    return [one for check in (*tasks.CHECKS, *leftovers.CHECKS) for one in check(seen)]


@pytest.mark.parametrize(
    ("what", "bundles", "rows", "expected"),
    [
        ("all is well", [bundle(shim=ME, init=ME)], {"c": row()}, []),
        ("stopped and kept", [bundle(shim=ME, init=DEAD)], {"c": row("stopped")}, []),
        ("no record, all dead", [bundle(shim=DEAD, init=DEAD)], {}, [("orphan-bundle", "warning", True)]),
        ("no record, nothing known", [bundle()], {}, [("orphan-bundle", "warning", True)]),
        ("no record, it runs", [bundle(init=ME)], {}, [("orphan-container", "error", False)]),
        ("no record, its shim lives", [bundle(shim=ME)], {}, []),  # told by its shim
        ("its shim is gone", [bundle(shim=DEAD, init=ME)], {"c": row()}, [("watched", "error", False)]),
        ("both are gone", [bundle(shim=DEAD, init=DEAD)], {"c": row()}, [("ended", "note", False)]),
        ("of another boot", [bundle()], {"c": row(boot_id="then")}, []),
        ("no bundle", [], {"c": row()}, [("lost-bundle", "error", False)]),
        ("no bundle, stopped", [], {"c": row("stopped")}, []),
    ],
)
def test_containers(what: str, bundles: list[Bundle], rows: dict[str, Row], expected: Any) -> None:
    assert told(*bundles, rows=rows) == expected, what


def test_without_a_store_nothing_is_an_orphan() -> None:
    shim = Process(ME, "shim:c", f"{BUNDLES}/ns/c", 1, has_children=False)
    found = told(bundle(), store=None, shims=(shim,), mounts=(f"{BUNDLES}/ns/c/rootfs",))

    assert found == [("no-keeper", "note", False)]


def test_a_shim_is_protected_by_the_keeper_that_forked_or_adopted_it() -> None:
    keeper = Process(Identity(9, 9), "shimd-keeper", "/", 1, has_children=True, watches=frozenset((12, 77)))
    shims = [
        Process(Identity(pid, 1), f"shim:c{pid}", f"{BUNDLES}/ns/c{pid}", parent, has_children=True)
        for pid, parent in ((11, 9), (12, 1), (13, 1), (14, 8))
    ]
    rows = {f"c{pid}": row("stopped") for pid in (11, 12, 13, 14)}

    assert told(rows=rows, shims=tuple(shims[:2]), keepers=(keeper,)) == []
    (made,) = findings(
        daemon=DAEMON,
        store=Store({("ns", name): one for name, one in rows.items()}),
        shims=tuple(shims),
        keepers=(keeper,),
    )
    assert (made.check, made.subject) == ("no-keeper", "ns/c13, ns/c14")
    assert made.what == "no keeper looks after 2 of 4 shims"


def test_who_a_process_watches_is_seen_from_outside() -> None:
    pid = os.getpid()
    assert pid not in facts.held_by_pidfd(pid)
    pidfd = os.pidfd_open(pid)
    try:
        assert pid in facts.held_by_pidfd(pid)
    finally:
        os.close(pidfd)
    assert facts.held_by_pidfd(0) == frozenset()


def test_processes_of_a_foreign_shim_are_those_on_record() -> None:
    foreign = dataclasses.replace(bundle(), is_foreign=True)
    there = Row("running", "now", ME.pid, ME.start_ticks, ME.pid, ME.start_ticks, "")

    assert facts.by_record(foreign, there, "now") == dataclasses.replace(foreign, shim=ME, init=ME)
    assert facts.by_record(foreign, there, "then") == foreign
    assert facts.by_record(bundle(), there, "now") == bundle()
    assert facts.by_record(foreign, None, "now") == foreign


def test_a_shim_that_the_daemon_cannot_reach_is_said() -> None:
    record = shimd.ShimRecord(namespace="ns", container_id="c", pid=ME.pid, health=shimd.HEALTH_UNREACHABLE)
    mine = bundle(shim=ME, init=ME)

    assert told(mine, rows={"c": row()}, shim_records=(record,)) == [("unreachable-shim", "error", False)]
    record.trouble = "it is stuck"
    assert told(mine, rows={"c": row()}, shim_records=(record,)) == [("wedged-shim", "error", False)]


@pytest.mark.parametrize(
    ("has_children", "expected"), [(False, ("orphan-shim", "warning", True)), (True, ("orphan-shim", "error", False))]
)
def test_a_shim_without_a_record_is_ended_only_if_it_has_nothing(has_children: bool, expected: Any) -> None:
    keeper = Process(Identity(9, 9), "shimd-keeper", "/", 1, has_children=True)
    shim = Process(ME, "shim:x", f"{BUNDLES}/ns/x", 9, has_children=has_children)

    assert told(shims=(shim,), keepers=(keeper,)) == [expected]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{BUNDLES}/ns/c/rootfs", []),  # on record
        (f"{BUNDLES}/ns/x/rootfs", [("leaked-mount", "warning", True)]),
        (f"{BUNDLES}/ns/.x.0123abcd/rootfs", [("leaked-mount", "warning", True)]),
        (f"{BUNDLES}/ns/ghost/rootfs", [("orphan-bundle", "warning", True)]),  # it goes with that
        ("/elsewhere/rootfs", []),
        (BUNDLES, []),
    ],
)
def test_mounts(path: str, expected: Any) -> None:
    others = [bundle("ghost")] if "ghost" in path else []

    assert told(bundle(shim=ME, init=ME), *others, rows={"c": row()}, mounts=(path,)) == expected


def test_what_the_dead_left_outside_of_bundles() -> None:
    mine = bundle(shim=ME, init=ME)
    found = told(
        mine,
        rows={"c": row()},
        dead_sockets=(mine.socket_path, "/s/s/other"),  # a shim with a bundle is followed by another
        dead_keepers=("/s/shimd-keeper/1-2",),
        pins=(f"/s/s/pins/{os.path.basename(mine.socket_path)[:16]}-7-9", "/s/s/pins/ffffffffffffffff-7-9"),
        empty_cgroups={("ns", "gone"): ("/sys/fs/cgroup/cpu/ns/gone", "/sys/fs/cgroup/memory/ns/gone")},
        cut_removals=(f"{BUNDLES}/ns/.x.0123abcd",),
    )

    assert found == [
        (check, "warning", True)
        for check in ("cut-removal", "stale-socket", "stale-keeper", "dead-pin", "leaked-cgroup")
    ]


def look(at_s: float, **given: Any) -> Look:
    return Look(ME.pid, ME.start_ticks, at_ns=int(at_s * S), **given)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"state": "S", "busy_since_ns": 0, "turns": 1}, {"state": "S", "busy_since_ns": 0, "turns": 1}, []),
        ({"state": "T"}, {"state": "T"}, [("wedged-shim", "error", True)]),
        ({"state": "t"}, {"state": "t"}, [("wedged-shim", "error", False)]),
        ({"state": "T"}, {"state": "S", "busy_since_ns": 0}, []),
        ({"busy_since_ns": S, "turns": 1}, {"busy_since_ns": S, "turns": 1}, [("wedged-shim", "error", False)]),
        ({"busy_since_ns": S, "turns": 1}, {"busy_since_ns": S, "turns": 2}, []),
        ({"busy_since_ns": 99 * S, "turns": 1}, {"busy_since_ns": 99 * S, "turns": 1}, []),  # a second only
    ],
)
def test_wedged_shims(first: dict[str, Any], second: dict[str, Any], expected: Any) -> None:
    looks = {ME.pid: (look(99.5, **first), look(100, **second))}

    assert told(bundle(shim=ME, init=ME), rows={"c": row()}, looks=looks) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [("S", []), ("T", [("stopped-keeper", "error", True)]), ("t", [("stopped-keeper", "error", False)])],
)
def test_keepers(state: str, expected: Any) -> None:
    keeper = Process(Identity(9, 9), "shimd-keeper", "/", 1, has_children=True, state=state)

    assert told(keepers=(keeper,)) == expected


def test_versions() -> None:
    record = shimd.ShimRecord(namespace="ns", container_id="c", version="0.0.1")
    foreign = shimd.ShimRecord(namespace="ns", container_id="g", version="containerd-shim-runc-v2 1.6")
    found = told(daemon=shimd.InfoResponse(version="0.0.1"), shim_records=(record, foreign))

    assert found == [("version", "warning", False), ("version", "note", False)]


@pytest.mark.parametrize(
    ("severities", "code"),
    [([], 0), ([Severity.NOTE], 0), ([Severity.WARNING, Severity.NOTE], 3), ([Severity.ERROR], 4)],
)
def test_exit_codes(severities: list[Severity], code: int) -> None:
    made = [Kind("x", severity, "", "").of("", "") for severity in severities]

    assert finding.exit_code(made) == code


def test_every_kind_is_explained() -> None:
    kinds = [
        one for module in (tasks, leftovers, store, host) for one in vars(module).values() if isinstance(one, Kind)
    ]

    assert len(kinds) > 30
    assert [one for one in kinds if not (one.check and one.means and one.do)] == []
    assert [one for one in kinds if "`" in one.do or one.do.endswith(".")] == [], "what can be pasted is in `run`"


def test_commands_are_one_word_each_for_a_shell() -> None:
    (made,) = findings(bundle("a b", init=ME), daemon=DAEMON, store=Store())

    assert made.run == ("runc --root '' delete --force 'a b'",)


# --- the store


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Store(), []),
        (None, []),
        (Store(damage=("row 1 missing from index x",)), ["store"]),
        (Store(schema=99), ["store"]),
        (Store(newest_event_at_ns=1000 * S), ["clock"]),
        (Store(newest_event_at_ns=100 * S), []),
    ],
)
def test_the_store(found: Store | None, expected: list[str]) -> None:
    assert [one.check for one in store.check("/r/shimd.db", found, now_ns=100 * S)] == expected


def test_a_store_that_cannot_be_read_says_why(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "shimd.db")
    assert store.read(path, BUNDLES) == (None, None)
    (tmp_path / "shimd.db").write_bytes(b"not SQLite, " * 100)
    _, unreadable = store.read(path, BUNDLES)
    assert unreadable is not None
    assert unreadable.kind is store.UNREADABLE

    (tmp_path / "shimd.db").unlink()
    monkeypatch.setattr(store, "BUSY_MS", 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE tasks (x)")
        other.execute("BEGIN EXCLUSIVE")
        _, busy = store.read(path, BUNDLES)
    assert busy is not None
    assert busy.kind is store.BUSY


def a_store(directory: Any, *keys: "tuple[str, str]") -> str:
    """The store of a daemon of that root directory, with rows of these tasks."""
    path = str(directory / "shimd.db")
    (directory / "shimd.lock").write_text("7\n")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.migrate(connection, path)
        for ns, name in keys:
            rows.insert(connection, TaskRow(ns, name, "creating", "r", "/shim", f"{BUNDLES}/{name}", "now", b"", 1))
    return path


def test_a_store_of_another_daemon_makes_nobody_an_orphan(tmp_path: Any) -> None:
    """One without a task fits every state directory by what is in it; who held both last is in their locks."""
    state = tmp_path / "state"
    bundles = str(state / "io.containerd.runtime.v2.task")
    path = a_store(tmp_path)
    assert store.read(path, bundles)[0] is not None  # after a reboot
    os.makedirs(bundles)
    for holder, is_its in ((None, False), ("8\n", False), ("7\n", True)):
        if holder is not None:
            (state / "shimd.lock").write_text(holder)
        found, trouble = store.read(path, bundles)
        assert (found is not None, trouble is None) == (is_its, is_its), holder


# --- while containers are born


def test_the_store_is_read_after_all_that_a_row_is_older_than(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a container created meanwhile would look like one without a row: its shim, its mounts, its pin."""
    looks: list[str] = []

    def noted(name: str, look: Any) -> Any:
        def first(*given: Any) -> Any:
            looks.append(f"{name} {given[0]}" if name == "files_in" else name)
            return look(*given)

        return first

    for module, name in (
        (facts, "own_processes"),
        (facts, "files_in"),
        (facts.identity, "mounts_under"),
        (facts.bundle, "list_bundles"),
        (facts.bundle, "list_doomed"),
        (facts.store, "read"),
    ):
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    config = Config(state_dir=str(tmp_path), root_dir=str(tmp_path))
    facts.gather(config, None, "", ())
    at = looks.index("read")
    assert {"own_processes", "mounts_under", "list_bundles", "list_doomed"} <= set(looks[:at])
    assert looks[0] == f"files_in {facts.pins_dir(config)}", "a pin is younger than its bundle"


def test_what_is_gone_with_its_row_is_nobodys_finding(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container deleted while we look: seen before, and not on record afterwards."""
    config = Config(state_dir=str(tmp_path), root_dir=str(tmp_path))
    gone, pin = config.bundle("ns", "c"), f"{facts.pins_dir(config)}/ab-7-9"
    os.makedirs(gone)
    os.makedirs(pin)
    dead = Process(DEAD, "shim:c", gone, 1, has_children=False)
    mounted = [[f"{gone}/rootfs"], []]
    monkeypatch.setattr(facts, "own_processes", lambda _: ((dead,), ()))
    monkeypatch.setattr(facts.identity, "mounts_under", lambda _: mounted.pop(0))

    def read(*_: object) -> "tuple[Store, None]":
        os.rmdir(gone)
        os.rmdir(pin)
        return Store(), None

    monkeypatch.setattr(facts.store, "read", read)
    found = facts.gather(config, DAEMON, "", ())
    assert (found.bundles, found.shims, found.mounts, found.pins) == ((), (), (), ())


def test_a_bundle_that_was_made_after_the_first_look_is_not_lost(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(state_dir=str(tmp_path), root_dir=str(tmp_path))

    def read(*_: object) -> "tuple[Store, None]":
        os.makedirs(config.bundle("ns", "c"))
        os.makedirs(config.bundle("ns", "younger"))
        return Store({("ns", "c"): row(boot_id=identity.boot_id())}), None

    monkeypatch.setattr(facts.store, "read", read)
    found = facts.gather(config, DAEMON, "", ())
    assert [one.key for one in found.bundles] == [("ns", "c")]
    assert list(tasks.lost_bundles(found)) == []


def test_a_keeper_that_waits_in_the_kernel_for_a_moment_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fork is such a moment; one that has not run between two looks does hang."""
    forking = Process(ME, "shimd-keeper", "/", 1, has_children=True, state="D")
    runs = iter(["1 2 3", "1 2 4", "1 2 4", "1 2 4"])
    monkeypatch.setattr(facts.pulse, "read_proc", lambda *_: next(runs))
    monkeypatch.setattr(facts, "SECOND_LOOK_S", 0.0)
    assert [one.state for one in facts.stuck_or_well((forking,))] == ["S"]
    assert [one.state for one in facts.stuck_or_well((forking,))] == ["D"]


def test_what_has_a_row_by_now_is_not_repaired(tmp_path: Any) -> None:
    """Between the look and the repair a container of that name was created."""
    done: list[str] = []
    found = Facts(Config(root_dir=str(tmp_path), state_dir=str(tmp_path)))
    with pytest.raises(repairs.Changed):  # there is no store to ask: who knows
        repairs.if_off_record(found, ("ns", "c"), lambda: done.append("blind"))()
    a_store(tmp_path, ("ns", "c"))
    with pytest.raises(repairs.Changed):
        repairs.if_off_record(found, ("ns", "c"), lambda: done.append("wrong"))()
    repairs.if_off_record(found, ("ns", "other"), lambda: done.append("right"))()
    assert done == ["right"]


def test_a_pin_whose_bundle_is_there_by_now_stays(tmp_path: Any) -> None:
    name = "ab" * 32
    pin, bundles = tmp_path / "s" / "pins" / f"{name[:16]}-7-9", tmp_path / "bundles"
    for path in (pin, bundles / "ns" / "c" / "address"):
        path.parent.mkdir(parents=True)
    pin.touch()
    (bundles / "ns" / "c" / "address").write_text(f"unix:///run/shimd/s/{name}")
    with pytest.raises(repairs.Changed):
        repairs.remove_pin(str(pin), str(bundles))
    assert pin.exists()
    (bundles / "ns" / "c" / "address").write_text("unix:///run/shimd/s/other")
    repairs.remove_pin(str(pin), str(bundles))
    assert not pin.exists()


# --- the host


@pytest.fixture
def made(tmp_path: Any) -> Any:
    """A host of files; `made(path=text)` writes one."""

    def write(files: dict[str, str]) -> Host:
        for path, text in files.items():
            full = tmp_path / path.lstrip("/")
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_text(text)
        return Host(str(tmp_path))

    return write


def test_features_of_a_host_that_has_everything(made: Any) -> None:
    there = made(
        {
            "/proc/self/mountinfo": "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            "/proc/filesystems": "nodev\toverlay\n",
            "/proc/self/status": "CapEff:\t000001ffffffffff\nSeccomp:\t0\n",
            "/proc/sys/user/max_user_namespaces": "100\n",
            "/proc/pressure/memory": "full avg10=0.00\n",
        }
    )
    found = [*host.kernel_features(there, True, True, True), *host.privileges(there)]

    assert [one.name for one in found if not one.is_present] == []


def test_features_of_a_host_that_has_nothing(made: Any) -> None:
    there = made({})
    found = [*host.kernel_features(there, False, False, False), *host.privileges(there)]

    assert [one.name for one in found if one.is_present] == []
    severities = {one.subject: one.severity.word for one in host.missing(found)}
    assert {name for name, word in severities.items() if word == "error"} == {"pidfd", "cgroups", "CAP_SYS_ADMIN"}


@pytest.mark.parametrize(
    ("tells_exit", "refusal", "expected"),
    [(True, "no", []), (False, "", [("process connector", True)]), (False, "no", [("process connector", False)])],
)
def test_the_process_connector_is_missed_only_where_no_pidfd_tells_exits(
    made: Any, tells_exit: bool, refusal: str, expected: list[tuple[str, bool]]
) -> None:
    others = [*host.kernel_features(made({}), True, True, tells_exit)]
    found = connector.feature(others, lambda: refusal)

    assert [(one.name, one.is_present) for one in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("6.15.0-rc1", (6, 15)), ("6.9", (6, 9)), ("5.10.0-28-amd64", (5, 10)), ("odd", (0, 0))]
)
def test_release(text: str, expected: tuple[int, int]) -> None:
    assert host.release(text) == expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(["cgroup2"], "v2"), (["cgroup", "cgroup"], "v1"), (["cgroup", "cgroup2"], "hybrid"), (["tmpfs"], "")],
)
def test_cgroup_version(kinds: list[str], expected: str) -> None:
    text = "".join(f"1 2 0:3 / /x rw - {kind} none rw\n" for kind in kinds)
    assert host.cgroup_version(text) == expected


@pytest.mark.parametrize(
    ("free", "total", "what", "expected"),
    [
        (50 << 30, 100 << 30, "bytes", []),
        (9 << 30, 100 << 30, "bytes", ["warning"]),
        (1 << 30, 100 << 30, "bytes", ["error"]),
        (100 << 20, 200 << 20, "bytes", ["warning"]),  # half of it, and still little
        (0, 100, "inodes", ["error"]),
        (50, 100, "inodes", []),
        (0, 0, "inodes", []),  # it does not count them
    ],
)
def test_disk(free: int, total: int, what: str, expected: list[str]) -> None:
    assert [one.severity.word for one in host.disk("/r", free, total, what)] == expected


def test_tables_of_the_host(made: Any) -> None:
    files = {
        "/proc/sys/fs/file-nr": "900\t0\t1000\n",
        "/proc/loadavg": "0.1 0.1 0.1 2/900 77\n",
        "/proc/sys/kernel/pid_max": "1000\n",
        "/proc/sys/kernel/threads-max": "5000\n",
        "/proc/sys/fs/inotify/max_user_instances": "128\n",
    }
    assert [one.check for one in host.tables(made(files), 100)] == ["files", "pids", "inotify"]
    files["/proc/sys/fs/file-nr"], files["/proc/loadavg"] = "100\t0\t1000\n", "0.1 0.1 0.1 2/100 77\n"
    assert [one.check for one in host.tables(made(files), 10)] == []
    assert list(host.tables(Host("/nowhere"), 0)) == []


@pytest.mark.parametrize(
    ("limit", "shims", "expected"), [("1048576", 100, []), ("1024", 1000, ["files"]), ("x", 9, [])]
)
def test_files_of_the_daemon(made: Any, limit: str, shims: int, expected: list[str]) -> None:
    there = made({"/proc/7/limits": f"Max open files            {limit}                 1048576              files\n"})

    assert [one.check for one in host.daemon_files(there, 7, shims)] == expected


@pytest.mark.parametrize(("now_s", "expected"), [(0.0, ["clock"]), (1_800_000_000.0, [])])
def test_clock(now_s: float, expected: list[str]) -> None:
    assert [one.check for one in host.clock(now_s)] == expected

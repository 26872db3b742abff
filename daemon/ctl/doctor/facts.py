"""What there is on this host: files, processes, mounts, sockets, the store and the daemon's word. Only read."""

import contextlib
import dataclasses
import json
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any

from daemon import identity
from daemon.config import Config
from daemon.ctl.doctor import store
from daemon.ctl.doctor.finding import Finding
from daemon.ctl.doctor.store import Row, Store
from daemon.identity import Identity
from daemon.shims import bundle
from ttrpc.api import pulse

SECOND_LOOK_S = 0.3
REFUSED_S = 0.5
PIN_PREFIX = 16  # a pin is called after the first digits of its shim's socket
HANGING = ("T", "t", "D")  # stopped, traced, in an uninterruptible wait
KEEPER_COMM = "shimd-keeper"
SHIM_COMM = "shim:"

Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle and the processes its files name; None where they name none of this boot."""

    key: Key
    path: str
    socket_path: str = ""
    shim: Identity | None = None
    init: Identity | None = None
    state: str = ""
    is_foreign: bool = False
    runtime_root: str = ""

    @property
    def name(self) -> str:
        return "/".join(self.key)

    @property
    def has_shim(self) -> bool:
        return self.shim is not None and self.shim.is_running()

    @property
    def has_container(self) -> bool:
        return self.init is not None and self.init.is_running()


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process of ours: a shim or a keeper."""

    identity: Identity
    comm: str
    cwd: str
    parent: int
    has_children: bool
    state: str = "S"  # the letter of proc_pid_stat(5)
    watches: frozenset[int] = frozenset()  # of a keeper: the pids it holds pidfds of, its adopted shims among them


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """All of it. `store` is None without a readable store; `daemon` without a daemon that answers."""

    config: Config
    boot_id: str = ""
    daemon: Any = None
    daemon_trouble: str = ""
    shim_records: tuple[Any, ...] = ()
    store: Store | None = None
    store_trouble: Finding | None = None
    bundles: tuple[Bundle, ...] = ()
    cut_removals: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    dead_sockets: tuple[str, ...] = ()
    dead_keepers: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    shims: tuple[Process, ...] = ()
    keepers: tuple[Process, ...] = ()
    empty_cgroups: dict[Key, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # of containers we had once
    looks: dict[int, tuple[pulse.Look, pulse.Look]] = dataclasses.field(default_factory=dict)

    @property
    def is_daemon_up(self) -> bool:
        return self.daemon is not None

    def key_below_bundles(self, path: str) -> Key | None:
        """Which bundle a path is in, hidden ones too; None when it is in none."""
        parts = os.path.relpath(path, self.config.bundles_dir).split(os.sep)
        return (parts[0], parts[1]) if len(parts) >= 2 and parts[0] != ".." else None


def gather(config: Config, daemon: Any, trouble: str, shim_records: "tuple[Any, ...]") -> Facts:
    """Look at everything. Order: pins, bundles, processes and mounts before the store, and once more after it, for a
    row is written before any of these is made, and removed after them. So what was there before, is still there and has
    no row is nobody's: it is not being born, and not going with its row.

    Blocks: about half a second; on no shim and no lock.
    """
    boot_id = identity.boot_id()
    pins = tuple(files_in(pins_dir(config)))
    listed = bundle.list_bundles(config.bundles_dir)
    cut = tuple(bundle.list_doomed(config.bundles_dir))
    shims, keepers = own_processes(config.bundles_dir)
    mounts = tuple(identity.mounts_under(config.bundles_dir))
    found_store, store_trouble = store.read(config.database_path, config.bundles_dir)
    on_record = found_store.tasks if found_store is not None else {}
    listed = [key for key in bundle.list_bundles(config.bundles_dir) if key in listed or key in on_record]
    shims = tuple(one for one in shims if one.identity.is_running())
    still_mounted = frozenset(identity.mounts_under(config.bundles_dir))
    bundles = tuple(read_bundle(key, config.bundle(*key), boot_id) for key in listed)
    if found_store is not None:
        bundles = tuple(by_record(one, found_store.tasks.get(one.key), boot_id) for one in bundles)
    return Facts(
        config=config,
        boot_id=boot_id,
        daemon=daemon,
        daemon_trouble=trouble,
        shim_records=shim_records,
        store=found_store,
        store_trouble=store_trouble,
        bundles=bundles,
        cut_removals=tuple(filter(os.path.isdir, cut)),
        mounts=tuple(point for point in mounts if point in still_mounted),
        dead_sockets=tuple(refused_sockets(config.shim_socket_dir, socket.SOCK_STREAM)),
        dead_keepers=tuple(refused_sockets(keeper_dir(config), socket.SOCK_SEQPACKET)),
        pins=tuple(filter(os.path.lexists, pins)),
        shims=shims,
        keepers=stuck_or_well(keepers),
        empty_cgroups=empty_cgroups(found_store),
        looks=look_twice(bundles),
    )


def keeper_dir(config: Config) -> str:
    """Where the keepers' sockets are: see shim/SHIM.md, "The keeper"."""
    named = os.environ.get("SHIMD_KEEPER", "")
    return named if os.path.isabs(named) else f"{config.state_dir}/shimd-keeper"


def pins_dir(config: Config) -> str:
    """Where shims pin pidfds: see shim/SHIM.md, "The pin"."""
    return f"{config.shim_socket_dir}/pins"


def owner_of_pin(path: str) -> str:
    """What a pin and its shim's socket have in common: the first digits of the socket's name."""
    return os.path.basename(path)[:PIN_PREFIX]


def pin_owners(addresses: "Iterable[str]") -> frozenset[str]:
    """The owners of pins among these shims' sockets."""
    return frozenset(owner_of_pin(address) for address in addresses if address)


def addresses_in(bundles_dir: str) -> "Iterator[str]":
    """The sockets that the bundles there are now name."""
    for namespace, name in bundle.list_bundles(bundles_dir):
        yield bundle.read_small(os.path.join(bundles_dir, namespace, name), "address").removeprefix("unix://")


def read_bundle(key: Key, path: str, boot_id: str) -> Bundle:
    """What a bundle's files name. Nothing of another boot is believed."""
    state = read_object(path, "state.json")
    is_now = state.get("boot_id") == boot_id
    init = state.get("init")
    fields = init if is_now and isinstance(init, dict) else {}
    options = read_object(path, "options.json")
    shim = identity_in(state, "shim_pid", "shim_start_ticks") if is_now else None
    if shim is None or not shim.is_running():
        shim = next((one for one in identity.working_in(path) if comm_of(one.pid).startswith(SHIM_COMM)), shim)
    return Bundle(
        key,
        path,
        socket_path=bundle.read_small(path, "address").removeprefix("unix://"),
        shim=shim,
        init=identity_in(fields, "pid", "start_ticks"),
        state=str(state.get("state") or ""),
        is_foreign=os.path.exists(os.path.join(path, bundle.INCARNATION)),
        runtime_root=os.path.join(str(options.get("root") or "/run/containerd/runc"), key[0]),
    )


def by_record(one: Bundle, row: Row | None, boot_id: str) -> Bundle:
    """A foreign shim leaves no state of ours in its bundle: which processes it is and has, the store knows."""
    if not one.is_foreign or row is None or row.boot_id != boot_id:
        return one
    shim, init = Identity(row.shim_pid, row.shim_start_ticks), Identity(row.pid, row.pid_start_ticks)
    return dataclasses.replace(one, shim=shim if shim.pid else None, init=init if init.pid else None)


def identity_in(fields: "dict[str, Any]", pid_name: str, ticks_name: str) -> Identity | None:
    """The process that two fields of a file name; None when they do not."""
    pid, ticks = fields.get(pid_name), fields.get(ticks_name)
    return Identity(pid, ticks) if isinstance(pid, int) and isinstance(ticks, int) and pid > 0 and ticks > 0 else None


def read_object(path: str, name: str) -> "dict[str, Any]":
    """A small JSON file of a bundle; empty when it is none."""
    try:
        found = json.loads(bundle.read_small(path, name) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def comm_of(pid: int) -> str:
    return pulse.read_proc(pid, "comm").strip()


def own_processes(bundles_dir: str) -> "tuple[tuple[Process, ...], tuple[Process, ...]]":
    """The shims that work below the bundles' directory, and every keeper."""
    shims, keepers = [], []
    for entry in os.listdir("/proc"):
        comm = comm_of(int(entry)) if entry.isdigit() else ""
        if not comm.startswith((SHIM_COMM, KEEPER_COMM)):
            continue
        pid = int(entry)
        known = identity.identify(pid)
        cwd = ""
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
        if known is None or not known.is_running():
            continue
        stat_fields = pulse.read_proc(pid, "stat").rpartition(")")[2].split()
        children = pulse.read_proc(pid, f"task/{pid}/children").split()
        state, parent = (stat_fields[0], int(stat_fields[1])) if len(stat_fields) > 1 else ("", 0)
        found = Process(known, comm, cwd, parent, bool(children), state)
        if comm == KEEPER_COMM:
            keepers.append(dataclasses.replace(found, watches=held_by_pidfd(pid)))
        elif cwd.startswith(bundles_dir + "/"):
            shims.append(found)
    return tuple(shims), tuple(keepers)


def stuck_or_well(keepers: "tuple[Process, ...]") -> "tuple[Process, ...]":
    """Those that hang at a first look, and have run since, do not: a keeper that forks waits in the kernel, too.

    Blocks: SECOND_LOOK_S if there is one. Source: proc_pid_schedstat, the third number: how often it has run.
    """

    def runs_of(one: Process) -> list[str]:
        return pulse.read_proc(one.identity.pid, "schedstat").split()[2:]

    suspects = {one: runs_of(one) for one in keepers if one.state in HANGING}
    if not suspects:
        return keepers
    time.sleep(SECOND_LOOK_S)
    well = {one for one, runs in suspects.items() if runs_of(one) != runs}
    return tuple(dataclasses.replace(one, state="S") if one in well else one for one in keepers)


def held_by_pidfd(pid: int) -> "frozenset[int]":
    """The processes that a process has pidfds of. A keeper has one of each shim it has adopted: shim/SHIM.md.

    So it need not be asked, and neither need the shim. Source: proc_pid_fdinfo(5), `Pid:` of a pidfd.
    """
    found = set()
    for path in files_in(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError, ValueError):
            if "pidfd" in os.readlink(path):
                info = pulse.read_proc(pid, f"fdinfo/{os.path.basename(path)}")
                found.add(int(info.partition("\nPid:")[2].split(maxsplit=1)[0]))
    return frozenset(found)


def look_twice(bundles: "tuple[Bundle, ...]") -> "dict[int, tuple[pulse.Look, pulse.Look]]":
    """Two looks at each shim, a moment apart: what has not moved in between may hang."""
    alive = [(one.path, one.shim.pid) for one in bundles if one.shim is not None and one.has_shim]
    first = {pid: pulse.look(path, pid, time.monotonic_ns()) for path, pid in alive}
    if any(look.busy_since_ns or look.state not in "SR" for look in first.values()):
        time.sleep(SECOND_LOOK_S)
    return {pid: (first[pid], pulse.look(path, pid, time.monotonic_ns())) for path, pid in alive}


def files_in(directory: str) -> list[str]:
    """Paths in a directory, in order; none when it is not there or not ours to read."""
    try:
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
    except OSError:
        return []


def refused_sockets(directory: str, kind: int) -> "list[str]":
    """Sockets in a directory on which nobody listens: the kernel says so, whoever has to answer may be busy."""
    return [path for path in files_in(directory) if is_refused(path, kind)]


def is_refused(path: str, kind: int) -> bool:
    """Whether a path is a socket without a listener. A full queue, or one not ours to use, is none of that."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.settimeout(REFUSED_S)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def cgroup_roots() -> list[str]:
    """Where cgroup hierarchies are mounted. Source: proc_pid_mountinfo(5)."""
    roots = []
    for line in pulse.read_proc(os.getpid(), "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ")[0] in ("cgroup", "cgroup2"):
            roots.append(left.split(" ")[4])
    return list(dict.fromkeys(roots))


def empty_cgroups(found: Store | None) -> "dict[Key, tuple[str, ...]]":
    """Cgroups of containers our store has known and that are gone, with no process in them."""
    made: dict[Key, tuple[str, ...]] = {}
    roots = cgroup_roots()
    for key in sorted(found.past - set(found.tasks) - found.containers if found is not None else ()):
        paths = tuple(path for root in roots if os.path.isdir(path := os.path.join(root, *key)))
        if paths and all(map(is_empty_cgroup, paths)):
            made[key] = paths
    return made


def is_empty_cgroup(path: str) -> bool:
    """Whether no process is in a cgroup or below it."""
    for folder, _, _ in os.walk(path):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                if file.read().strip():
                    return False
        except OSError:
            return False
    return True

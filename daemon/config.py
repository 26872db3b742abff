"""The configuration as frozen values, and the one description of every key: its default, what it means, what it allows.

`daemon.configfile` reads a TOML file into these classes and writes the commented default from the same descriptions.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

DEFAULT_PATH = "/etc/shimd/config.toml"
DEFAULT_RUNTIME = "io.containerd.shimd.v2"

# sockaddr_un(7): 108 bytes with the final NUL. A shim's socket is <state>/s/<64 hex digits>.
MAX_SOCKET_PATH_BYTES = 107
_SHIM_SOCKET_TAIL = len("/s/") + 64


def _absolute(value: str) -> str | None:
    return None if os.path.isabs(value) else "must be an absolute path"


def _absolute_or_empty(value: str) -> str | None:
    return None if not value or os.path.isabs(value) else "must be an absolute path, or empty"


def _state_dir(value: str) -> str | None:
    room = MAX_SOCKET_PATH_BYTES - _SHIM_SOCKET_TAIL
    if os.path.isabs(value) and len(os.fsencode(value)) > room:
        return f"must be at most {room} bytes long: the shims' sockets below it have to fit a socket address"
    return _absolute(value)


def _positive(value: float) -> str | None:
    return None if value > 0 else "must be more than 0"


def _not_negative(value: float) -> str | None:
    return None if value >= 0 else "must not be negative"


def _mode(value: int) -> str | None:
    return None if 0 <= value <= 0o777 else "must be a mode such as 0o600"


def _one_of(*choices: str) -> Callable[[str], str | None]:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _key(default: Any, doc: str, check: Callable[[Any], str | None] | None = None, *, form: str = "") -> Any:
    """One key: its default, what it does in a sentence, what a value must satisfy, and "octal" for modes."""
    return dataclasses.field(default=default, metadata={"doc": doc, "check": check, "form": form})


@dataclasses.dataclass(frozen=True)
class Socket:
    """[socket]: where clients reach us, and who may."""

    path: str = _key("", "Where clients connect (ttrpc). Empty: <state_dir>/shimd.sock.ttrpc", _absolute_or_empty)
    mode: int = _key(
        0o600, "Who may connect at all; a ttrpc peer must be our own user in any case", _mode, form="octal"
    )
    uid: int = _key(0, "Owner of the socket", _not_negative)
    gid: int = _key(0, "Group of the socket", _not_negative)
    max_connections: int = _key(1024, "Connections served at once; more wait to be accepted", _positive)


@dataclasses.dataclass(frozen=True)
class Log:
    """[log]: what is told, in which form."""

    level: str = _key("info", "debug, info, warning or error", _one_of("debug", "info", "warning", "error"))
    format: str = _key("text", "text, or json for one object per line", _one_of("text", "json"))


@dataclasses.dataclass(frozen=True)
class Runtime:
    """[runtimes."NAME"]: programs behind one runtime's name."""

    shim: str = _key("", "The shim's program. Empty: found from the runtime's name, as containerd does")
    runc: str = _key("", "The runc-compatible program the shim is told to use. Empty: runc")
    systemd_cgroup: bool = _key(False, "Let systemd make the cgroups")


@dataclasses.dataclass(frozen=True)
class Keeper:
    """[keeper]: the process that has the shims' code in memory, and raises a successor for one that dies."""

    enabled: bool = _key(
        True, "Start it with the daemon, and again when it dies. Without: shims start by themselves and unprotected"
    )


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """[timeouts]: our own limit for each kind of call; a client's earlier deadline wins."""

    shim_start_s: float = _key(30.0, "Starting a shim, until it has printed its address", _positive)
    shim_delete_s: float = _key(15.0, "A shim's `delete`, which clears what a dead shim left", _positive)
    connect_s: float = _key(5.0, "Connecting to a shim just started", _positive)
    create_s: float = _key(60.0, "Creating a container in its shim: mounts and `runc create`", _positive)
    start_s: float = _key(60.0, "`runc start`, and `runc exec`", _positive)
    delete_s: float = _key(30.0, "Deleting a container or exec in its shim", _positive)
    call_s: float = _key(20.0, "Every other call to a shim", _positive)
    state_s: float = _key(
        2.0, "Asking a shim for its state or metrics; one that is slower answers from the records", _positive
    )
    checkpoint_s: float = _key(300.0, "Checkpointing a container", _positive)
    busy_s: float = _key(30.0, "Waiting for another operation on the same container to end", _positive)
    stop_s: float = _key(5.0, "At our own end: how long calls under way may take to be answered", _not_negative)
    upgrade_s: float = _key(30.0, "An upgrade: how long the new program may take to check, and to be ready", _positive)
    handover_s: float = _key(
        10.0, "An upgrade: how long the new program may take from getting the store to serving; callers wait", _positive
    )


@dataclasses.dataclass(frozen=True)
class Recovery:
    """[recovery]: how shims are asked after a restart, and how sick ones are asked again."""

    parallel: int = _key(32, "Shims asked at once after a restart", _positive)
    budget_s: float = _key(
        2.0, "For each; a shim slower than this is listed as unreachable and asked again later", _positive
    )
    retry_min_s: float = _key(
        0.25, "First pause before an unreachable shim is asked again; doubles each time", _positive
    )
    retry_max_s: float = _key(10.0, "Longest such pause", _positive)


@dataclasses.dataclass(frozen=True)
class Wedged:
    """[wedged]: shims that live and do not move. Their containers are never touched."""

    after_s: float = _key(
        5.0,
        "A shim is wedged when one turn of its loop takes this long, not counting what it waits for a processor; "
        "or when it is stopped for so long: then it is continued. 0: nobody looks",
        _not_negative,
    )
    grace_s: float = _key(30.0, "One that is still wedged so much later is replaced by another", _positive)
    is_replaced: bool = _key(True, "false: it is only reported")


@dataclasses.dataclass(frozen=True)
class Events:
    """[events]: how much of the past is kept, and how slow a live reader may be."""

    keep_count: int = _key(100_000, "Stored events kept for `--since`; the oldest go first. 0: no limit", _not_negative)
    keep_age_s: float = _key(7 * 86400.0, "Stored events kept at most this long. 0: no limit", _not_negative)
    max_lag: int = _key(8192, "A live subscriber this many events behind is cut off", _positive)
    keep_exits: int = _key(100_000, "Exit records kept of deleted tasks. 0: no limit", _not_negative)


@dataclasses.dataclass(frozen=True)
class Restart:
    """[restart]: pauses between restarts by policy."""

    backoff_min_s: float = _key(
        0.1, "Pause before the first restart by policy; doubles with each further one", _positive
    )
    backoff_max_s: float = _key(60.0, "Longest such pause", _positive)
    reset_after_s: float = _key(10.0, "A container that ran this long starts again at the shortest pause", _positive)
    budget: int = _key(
        0, "Restarts in a row, none of them for that long, after which it is left; 0: any number", _not_negative
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it. Paths the file leaves empty are found through the properties."""

    root_dir: str = _key("/var/lib/shimd", "What must survive a reboot: the store, container logs", _absolute)
    state_dir: str = _key("/run/shimd", "What must not: sockets and bundles. Best on a tmpfs", _state_dir)
    socket: Socket = dataclasses.field(default_factory=Socket, metadata={"doc": "The daemon's own socket"})
    log: Log = dataclasses.field(default_factory=Log, metadata={"doc": "The daemon's log, on standard error"})
    timeouts: Timeouts = dataclasses.field(
        default_factory=Timeouts,
        metadata={"doc": "Every call downwards has a deadline. Seconds; a client's earlier deadline wins"},
    )
    recovery: Recovery = dataclasses.field(
        default_factory=Recovery, metadata={"doc": "Finding the shims again after a restart of the daemon"}
    )
    wedged: Wedged = dataclasses.field(
        default_factory=Wedged, metadata={"doc": "Shims that live and do not move; their containers are not touched"}
    )
    events: Events = dataclasses.field(
        default_factory=Events, metadata={"doc": "The event journal and the exit records"}
    )
    restart: Restart = dataclasses.field(
        default_factory=Restart, metadata={"doc": "Restart policies (containerd's labels containerd.io/restart.*)"}
    )
    keeper: Keeper = dataclasses.field(
        default_factory=Keeper, metadata={"doc": "The keeper: shims are forked from it, in milliseconds"}
    )
    runtimes: Mapping[str, Runtime] = dataclasses.field(
        default_factory=lambda: {DEFAULT_RUNTIME: Runtime()},
        metadata={"doc": "Runtimes by the name a container asks for; others are found as containerd finds them"},
    )

    @property
    def socket_path(self) -> str:
        return self.socket.path or f"{self.state_dir}/shimd.sock.ttrpc"

    @property
    def grpc_address(self) -> str:
        """What shims are told our address is; with namespace and id it makes the name of their socket."""
        return f"{self.state_dir}/shimd.sock"

    @property
    def database_path(self) -> str:
        return f"{self.root_dir}/shimd.db"

    @property
    def bundles_dir(self) -> str:
        return f"{self.state_dir}/io.containerd.runtime.v2.task"

    @property
    def shim_socket_dir(self) -> str:
        return f"{self.state_dir}/s"

    @property
    def runc_root(self) -> str:
        return f"{self.state_dir}/runc"

    def bundle(self, namespace: str, container_id: str) -> str:
        return f"{self.bundles_dir}/{namespace}/{container_id}"

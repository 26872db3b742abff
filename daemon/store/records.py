"""What the store keeps, as values."""

import dataclasses

# The state of a task's row: what the daemon last knew or was about to do. The shim's word comes first when it answers.
CREATING = "creating"  # Tasks.Create under way: nothing was promised to anyone yet
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"
DELETING = "deleting"  # Tasks.Delete under way: what is left is to be cleared, the exit is told
RESTARTING = "restarting"  # by policy: between deleting the old task and starting the new one

TASK_STATES = (CREATING, CREATED, RUNNING, PAUSED, STOPPED, DELETING, RESTARTING)
LIVE_STATES = (CREATED, RUNNING, PAUSED)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskRow:
    """One task. `boot_id`, and pids with their start ticks, say which processes were meant; see `daemon.procfs`."""

    ns: str
    id: str
    state: str
    runtime: str
    shim_path: str
    bundle: str
    boot_id: str
    request: bytes
    created_at_ns: int
    incarnation: str = ""
    address: str = ""
    shim_pid: int = 0
    shim_start_ticks: int = 0
    pid: int = 0
    pid_start_ticks: int = 0
    started_at_ns: int = 0
    restarts: int = 0
    streak: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be stored. With incarnation and shim_seq it is a journal record, stored once however often told."""

    at_ns: int
    ns: str
    topic: str
    type_url: str
    value: bytes
    exit: bytes | None = None
    incarnation: str | None = None
    shim_seq: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it was stored; seq is the cursor of whoever has read it."""

    seq: int
    at_ns: int
    ns: str
    topic: str
    type_url: str
    value: bytes
    exit: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class NewExit:
    """An exit to be stored. shim_seq 0 is the daemon's own finding, at most one per process."""

    ns: str
    container_id: str
    incarnation: str
    exec_id: str
    shim_seq: int
    record: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class StoredExit:
    """An exit as it was stored; seq orders exits of all tasks."""

    seq: int
    container_id: str
    incarnation: str
    exec_id: str
    record: bytes

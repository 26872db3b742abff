"""What a successor must know that neither runc nor the bundle says, on disk before anybody is told of it.

Each event goes into the state file together with the change it tells of, under the number it will have in the journal:
a shim killed between the two leaves what its successor needs to tell it, once.
"""

import os

from shim import faults
from shim.bundle import STATE_VERSION
from shim.core import kernel
from ttrpc.api import wkt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from google.protobuf.message import Message

    from shim.task.container import Container
    from shim.task.process import Process


def save_and_tell(container: "Container", topic: str, event: "Message", process: "Process | None" = None) -> None:
    """Write the changed state, of an exec when that is given, with the event that tells of it; then tell it."""
    faults.point("tell.begun", topic)
    packed = wkt.pack(event)
    telling = {
        "seq": container.parts.journal.last_seq + 1,
        "topic": topic,
        "type_url": packed.type_url,
        "value": packed.value.hex(),
    }
    if process is None or process is container.init:
        save(container, telling)
    else:
        save_exec(container, process, telling)
    faults.point("tell.saved", topic)
    container.parts.tell(topic, event)
    faults.point("tell.told", topic)


def save_process(container: "Container", process: "Process") -> None:
    """Write what changed of a process without an event that tells it."""
    if process is container.init:
        save(container)
    elif container.execs.get(process.exec_id) is process:
        save_exec(container, process)


def save(container: "Container", telling: "dict[str, Any] | None" = None) -> bool:
    """Write state.json. A full disk is only logged, and told by the value."""
    params = container.parts.params
    state = {
        "version": STATE_VERSION,
        "incarnation": container.parts.incarnation,
        "boot_id": container.parts.boot_id,
        "namespace": params.namespace,
        "id": container.id,
        "address": params.address,
        "shim_pid": os.getpid(),
        "shim_start_ticks": kernel.start_ticks(os.getpid()),
        "state": container.state,
        "runtime": container.runc.binary,
        "runtime_root": container.runc.root,
        "systemd_cgroup": container.runc.systemd_cgroup,
        "criu_path": container.runc.criu_path,
        "io_uid": container.options.io_uid,
        "io_gid": container.options.io_gid,
        "shares_pids": container.shares_pids,
        "mounted": container.mounted,
        "oom_count": container.oom_count,
        "journal_seq": container.parts.journal.last_seq,
        "telling": telling,
        "init": container.init.snapshot(),
    }
    if container.restart is not None:
        state["restart"] = container.restart.snapshot()
    return _write(container, "state.json", state)


def save_exec(container: "Container", process: "Process", telling: "dict[str, Any] | None" = None) -> bool:
    """The same for one exec, in a file of its own: its changes cost the same however many there are."""
    return _write(container, f"execs/{process.exec_id}.state.json", {**process.snapshot(), "telling": telling})


def _write(container: "Container", name: str, state: "dict[str, Any]") -> bool:
    try:
        container.parts.bundle.write_json(name, state)
    except OSError as error:
        container.parts.log.warning(f"{name} is out of date: {error}")
        return False
    return True

"""What a storm left behind, once every container of it was removed."""

import contextlib
import os

from bench.ours import Shimd
from bench.storm.killer import Killer
from tests.support import leaks
from tests.support.waiting import wait_until

SETTLE_S = 20.0  # shims end by themselves, and the keeper closes what it held
FD_SLACK = 4  # of a process whose number of fds depends on what it is just doing


def leftovers(daemon: Shimd, killer: Killer, fds_before: dict[str, int]) -> list[str]:
    """Everything there is too much of, as lines; a moment is given to what is on its way out.

    Blocks: SETTLE_S at most.
    """
    last: list[str] = []

    def is_clean() -> bool:
        last[:] = _look(daemon, killer, fds_before)
        return not last

    with contextlib.suppress(AssertionError):
        wait_until(is_clean, deadline_s=SETTLE_S, what="what the storm started to go")
    return last


def open_fds(killer: Killer) -> dict[str, int]:
    """How many fds daemon and keeper have open. With no container there, this is what they need for themselves."""
    found = {}
    for kind in ("daemon", "keeper"):
        for pid, _ in killer.living()[kind]:
            with contextlib.suppress(OSError):
                found[kind] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def _target(pid: int, fd: str) -> str:
    try:
        return f"{fd} {os.readlink(f'/proc/{pid}/fd/{fd}')}"
    except OSError:
        return f"{fd} gone"


def _look(daemon: Shimd, killer: Killer, fds_before: dict[str, int]) -> list[str]:
    ground, living = daemon.rig, killer.living()
    found = [f"process {pid}: {words}" for pid, words in living["shim"]]
    ours = {pid for kind in living for pid, _ in living[kind]}
    found += [f"process {pid}: {words}" for pid, words in leaks.processes(ground.session).items() if pid not in ours]
    if len(living["keeper"]) > 1:
        found.append(f"keepers: {living['keeper']}")
    found += [f"mount {path}" for path in leaks.mounts() if ground.folder in path and path != daemon.state_dir]
    found += [f"cgroup {path}" for path in leaks.cgroups() if f"/{ground.namespace}/" in path]
    places = {
        "bundle": os.path.join(daemon.state_dir, "io.containerd.runtime.v2.task", ground.namespace),
        "socket": os.path.join(daemon.state_dir, "s"),
        "runc state": os.path.join("/run/containerd/runc", ground.namespace),
    }
    for what, path in places.items():
        if os.path.isdir(path):
            found += [f"{what} {os.path.join(path, name)}" for name in os.listdir(path)]
    for kind, count in open_fds(killer).items():
        most = fds_before.get(kind, count) + FD_SLACK
        if count > most:
            targets = [_target(pid, fd) for pid, _ in living[kind] for fd in os.listdir(f"/proc/{pid}/fd")]
            found.append(f"fds of the {kind}: {count}, at most {most} expected: {sorted(targets)}")
    return found

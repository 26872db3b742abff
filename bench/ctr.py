"""The same `ctr` on both shims, under the same containerd: run --rm, run -d, exec, kill, delete, exit → event."""

import os
import select
from collections.abc import Callable

from bench.both_shims import ShimdUnderContainerd
from bench.exits import exit_events
from bench.measure import Figures, compare, in_turn, wall_ms
from bench.rig import CALL_DEADLINE_S, FOREVER, CommandFailed, Daemon, Rig
from tests.support.waiting import wait_until

SIZES = {"rounds": 40, "exits": 100}
OURS = ShimdUnderContainerd


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Two containerds alike, one with our runtime; `ctr` is in every figure, as its user waits for it too."""
    rounds = sizes["rounds"]
    for side in (ours, peer):
        side.run("execs")
    figures: Figures = {}

    def both(name: str, action: Callable[[Daemon, int], float]) -> None:
        figures.update(compare(name, "ms", *in_turn(rounds, lambda n: action(ours, n), lambda n: action(peer, n))))

    both("ctr_version", lambda side, _n: wall_ms(side.client("version")))
    both("ctr_run_rm", lambda side, n: wall_ms(side.run_and_remove_words(f"life{n}", "/bin/true")))
    both("ctr_exec", lambda side, n: wall_ms(side.exec_words("execs", n, "/bin/true")))
    both("ctr_run_d", run_detached)
    both("ctr_kill", lambda side, n: kill(side, f"ends{n}"))
    both("ctr_delete", lambda side, n: delete(side, f"ends{n}"))
    figures |= exit_events("ctr_exit_event", ours, peer, sizes["exits"])
    return figures


def run_detached(side: Daemon, number: int) -> float:
    """To a running container; `kill` and `delete` end it later."""
    name = f"ends{number}"
    side.made.append(name)
    return wall_ms(side.run_words(name, *FOREVER))


def kill(side: Daemon, name: str) -> float:
    """SIGKILL by `ctr`; that it has ended is waited for afterwards, and not counted."""
    pidfd = os.pidfd_open(side.running()[name])
    try:
        taken = wall_ms(side.client("tasks", "kill", "--signal", "SIGKILL", name))
        if not select.select([pidfd], [], [], CALL_DEADLINE_S)[0]:
            raise CommandFailed(f"{name} does not die")
    finally:
        os.close(pidfd)
    return taken


def delete(side: Daemon, name: str) -> float:
    """Of a stopped task: `ctr` prints nothing, containerd has run the shim's `delete`."""
    wait_until(lambda: name not in side.running(), what="the exit to be known")
    taken = wall_ms(side.client("tasks", "delete", name))
    side.remove(name)
    side.made.remove(name)
    return taken

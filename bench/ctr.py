"""The same `ctr` on both shims, under the same containerd: run --rm, run -d, exec, kill, delete, exit → event."""

import os
import select
import signal
import time
from collections.abc import Callable

from bench.both_shims import ShimdUnderContainerd
from bench.exits import EVENT_DEADLINE_S, Subscription
from bench.measure import Figures, compare, in_turn, percentile, wall_ms
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

    def both(name: str, action: Callable[[Daemon, int], float], count: int = rounds) -> list[list[float]]:
        pairs = in_turn(count, lambda n: action(ours, n), lambda n: action(peer, n))
        figures.update(compare(name, "ms", *pairs))
        return pairs

    both("ctr_version", lambda side, _n: wall_ms(side.client("version")))
    both("ctr_run_rm", lambda side, n: wall_ms(side.run_and_remove_words(f"life{n}", "/bin/true")))
    both("ctr_exec", lambda side, n: wall_ms(side.exec_words("execs", n, "/bin/true")))
    both("ctr_run_d", run_detached)
    both("ctr_kill", lambda side, n: kill(side, f"ends{n}"))
    both("ctr_delete", lambda side, n: delete(side, f"ends{n}"))
    pairs = exit_events(ours, peer, sizes["exits"])
    figures |= compare("ctr_exit_event", "ms", *pairs)
    figures["ctr_exit_event_ours_p99_ms"] = percentile(pairs[0], 99)
    figures["ctr_exit_event_peer_p99_ms"] = percentile(pairs[1], 99)
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


def exit_events(ours: Daemon, peer: Daemon, count: int) -> list[list[float]]:
    """From a SIGKILL from outside to the line of `ctr events`."""
    with Subscription(ours) as from_ours, Subscription(peer) as from_peer:
        queues = {ours: from_ours, peer: from_peer}
        for number in range(count):
            ours.run(f"exit{number}")
            peer.run(f"exit{number}")
        pids = {side: side.running() for side in (ours, peer)}

        def end(side: Daemon, number: int) -> float:
            name = f"exit{number}"
            started = time.perf_counter()
            os.kill(pids[side][name], signal.SIGKILL)
            while True:
                container, at = queues[side].get(timeout=EVENT_DEADLINE_S)
                if container == name:
                    return (at - started) * 1000

        return in_turn(count, lambda n: end(ours, n), lambda n: end(peer, n))

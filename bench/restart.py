"""The daemon is killed and started again with many containers running: when has it all of them back?"""

import statistics

from bench.measure import Figures, compare, in_turn
from bench.rig import CommandFailed, Daemon, Rig, Stopwatch
from tests.support.waiting import wait_until

SIZES = {"containers": 100, "rounds": 5}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """From starting the process to its socket, and to the first list with every container running under its old pid.

    The list is asked by the daemon's own client. What it takes from a daemon at rest is measured too and taken off.
    """
    count = sizes["containers"]
    for number in range(count):
        ours.run(f"restart{number}")
        peer.run(f"restart{number}")
    known = {side: side.running() for side in (ours, peer)}
    to_socket: dict[Daemon, list[float]] = {ours: [], peer: []}

    def restart(side: Daemon) -> float:
        at_rest_ms = statistics.median(list_ms(side) for _ in range(5))
        side.kill()
        watch = Stopwatch()
        side.start()
        side.wait_serving()
        to_socket[side].append(watch.seconds() * 1000)
        wait_until(lambda: lists_all(side, known[side]), deadline_s=60, what=f"{side.name} to list all {count}")
        return watch.seconds() * 1000 - at_rest_ms

    figures = compare("restart", "ms", *in_turn(sizes["rounds"], lambda _: restart(ours), lambda _: restart(peer)))
    return figures | compare("to_socket", "ms", to_socket[ours], to_socket[peer])


def list_ms(side: Daemon) -> float:
    """How long one list takes."""
    watch = Stopwatch()
    side.running()
    return watch.seconds() * 1000


def lists_all(side: Daemon, known: dict[str, int]) -> bool:
    """Whether it serves and lists exactly the containers it had, none with another pid."""
    if not side.is_serving():
        return False
    try:
        return side.running() == known
    except CommandFailed:
        return False  # it serves but does not answer yet

"""The daemon is killed and started again with many containers running: when has it all of them back?"""

import statistics

from bench.measure import Figures, compare, in_turn, wall_ms
from bench.rig import CommandFailed, Daemon, Rig, Stopwatch
from tests.support.waiting import wait_until

SIZES = {"containers": 100, "rounds": 5}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """From starting the process to the first list with every container running under its old pid.

    The list is asked by the daemon's own client; its start (`version`) is measured too and taken off, on both sides.
    """
    count = sizes["containers"]
    for number in range(count):
        ours.run(f"restart{number}")
        peer.run(f"restart{number}")
    known = {side: side.running() for side in (ours, peer)}

    def restart(side: Daemon) -> float:
        floor_ms = statistics.median(wall_ms(side.client("version")) for _ in range(5))
        side.kill()
        watch = Stopwatch()
        side.start()
        wait_until(lambda: lists_all(side, known[side]), deadline_s=60, what=f"{side.name} to list all {count}")
        return watch.seconds() * 1000 - floor_ms

    return compare("restart", "ms", *in_turn(sizes["rounds"], lambda _: restart(ours), lambda _: restart(peer)))


def lists_all(side: Daemon, known: dict[str, int]) -> bool:
    """Whether it serves and lists exactly the containers it had, none with another pid."""
    if not side.is_serving():
        return False
    try:
        return side.running() == known
    except CommandFailed:
        return False  # it serves but does not answer yet

"""What shimctl costs by itself: `ps` over a population and a command that asks for one fact, beside ctr."""

import statistics

from bench.measure import Figures, compare, cpu_ms, in_turn, wall_ms
from bench.ours import Shimd
from bench.rig import Daemon, Rig

SIZES = {"containers": 20, "rounds": 40}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """`ps` beside `ctr tasks list` (wall and processor time), `version` beside `ctr version` (wall)."""
    for number in range(sizes["containers"]):
        ours.run(f"cli{number}")
        peer.run(f"cli{number}")
    listing = {
        side: side.client("ps") if isinstance(side, Shimd) else side.client("tasks", "list") for side in (ours, peer)
    }
    rounds = sizes["rounds"]
    wall = in_turn(rounds, lambda _: wall_ms(listing[ours]), lambda _: wall_ms(listing[peer]))
    version = in_turn(rounds, lambda _: wall_ms(ours.client("version")), lambda _: wall_ms(peer.client("version")))
    own = [cpu_ms(listing[ours]) for _ in range(rounds)]
    return {
        **compare("ps", "ms", *wall),
        **compare("version", "ms", *version),
        "ps_ours_cpu_ms": statistics.median(own),
    }

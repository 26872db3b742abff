"""One more process in a running container, to its end. shimctl exec beside ctr tasks exec."""

from bench.measure import Figures, compare, in_turn, wall_ms
from bench.rig import Daemon, Rig

SIZES = {"rounds": 40}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Each side has one container; every round runs `true` in it and waits for its exit code."""
    for side in (ours, peer):
        side.run("execs")
    pairs = in_turn(
        sizes["rounds"],
        lambda n: wall_ms(ours.exec_words("execs", n, "/bin/true")),
        lambda n: wall_ms(peer.exec_words("execs", n, "/bin/true")),
    )
    return compare("exec", "ms", *pairs)

"""From the command to a running container, and a whole life: run, exit, removed. shimctl beside ctr."""

from collections.abc import Callable

from bench.measure import Figures, compare, in_turn, wall_ms
from bench.rig import FOREVER, Daemon, Rig

SIZES = {"rounds": 25}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Both clients run detached, then run to the end; the clients' own start (`version`) is measured with them.

    Both keep the container's output in a file: ours as JSON lines, the peer as it comes (file://).
    """

    def start(side: Daemon, number: int) -> float:
        container = f"start{number}"
        side.made.append(container)
        taken = wall_ms(side.run_words(container, *FOREVER))
        side.remove(container)
        return taken

    def whole_life(side: Daemon, number: int) -> float:
        return wall_ms(side.run_and_remove_words(f"life{number}", "/bin/true"))

    def floor(side: Daemon, number: int) -> float:
        return wall_ms(side.client("version"))

    def both(action: Callable[[Daemon, int], float]) -> list[list[float]]:
        return in_turn(sizes["rounds"], lambda n: action(ours, n), lambda n: action(peer, n))

    return {
        **compare("start", "ms", *both(start)),
        **compare("life", "ms", *both(whole_life)),
        **compare("client", "ms", *both(floor)),
    }

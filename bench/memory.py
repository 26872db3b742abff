"""What one idle shim costs: proportional, private dirty and unique memory, at a population of each kind."""

import statistics

from bench.measure import Figures, memory_kib
from bench.rig import Daemon, Rig

SIZES = {"containers": 20}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Both populations live at the same time; PSS depends on the number of siblings, so it is the same for both.

    Judge by private dirty: it depends on no sibling.
    """
    names = [f"memory{number}" for number in range(sizes["containers"])]
    for name in names:
        ours.run(name)
        peer.run(name)
    figures: Figures = {}
    sides = {"ours": ours, "peer": peer}
    for side_name, side in sides.items():
        rows = [memory_kib(side.shim_pid(name)) for name in names]
        for kind in rows[0]:
            figures[f"shim_{kind}_{side_name}_kib"] = statistics.mean(row[kind] for row in rows)
        assert side.process is not None
        figures[f"daemon_unique_{side_name}_kib"] = memory_kib(side.process.pid)["unique"]
    for kind in ("pss", "private_dirty", "unique", "resident"):
        figures[f"shim_{kind}_ratio"] = figures[f"shim_{kind}_ours_kib"] / figures[f"shim_{kind}_peer_kib"]
    return figures

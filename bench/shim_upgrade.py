"""Every running shim goes on as new code, in place: how long does it answer nobody, and what has it cost then?"""

import json
import statistics
import time

from bench.measure import Figures, compare, memory_kib, percentile
from bench.ours import Shimd
from bench.rig import Daemon, Rig, Stopwatch
from tests.support.waiting import wait_until

SIZES = {"containers": 100, "replaced": 10}
# After all were upgraded and looked at, a copy of the keeper's template follows each: see shim/SHIM.md, Relief.
RELIEF_S = 30
RELIEVED_S = 120.0


class Relieving(Shimd):
    """Its shims are relieved late."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SHIMD_RELIEF_S": str(RELIEF_S)}


OURS = Relieving


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """The pause as each shim tells it, one after the other and then two at a time, with the daemon looking on.

    containerd's shim cannot: there a container is deleted and run anew, and is away for as long as that takes.
    """
    assert isinstance(ours, Shimd), "the other side of --null has no upgrade"
    names = [f"shim-upgrade{number}" for number in range(sizes["containers"])]
    for name in names:
        ours.run(name)
    known, shims = ours.running(), [ours.shim_pid(name) for name in names]
    before = statistics.mean(memory_kib(pid)["private_dirty"] for pid in shims)
    watch = Stopwatch()
    pauses = _upgrade(ours, 1)
    took_s = watch.seconds()
    assert ours.running() == known, "a container is not what it was"
    assert [ours.shim_pid(name) for name in names] == shims, "a shim is another process"
    after = statistics.mean(memory_kib(pid)["private_dirty"] for pid in shims)
    two = _upgrade(ours, 2)
    relieved = statistics.mean(memory_kib(pid)["private_dirty"] for pid in _relieved(ours, names, shims))
    assert ours.running() == known, "a container is not what it was"
    absences = _absences(peer, sizes["replaced"])
    figures = compare("pause", "ms", pauses[: len(absences)], absences)
    figures["pause_ours_ms"], figures["pause_ours_p95_ms"] = statistics.median(pauses), percentile(pauses, 95)
    figures["pause_ours_p99_ms"], figures["pause_ours_max_ms"] = percentile(pauses, 99), max(pauses)
    figures["pause_two_ours_ms"], figures["pause_two_ours_max_ms"] = statistics.median(two), max(two)
    figures["all_ours_s"] = took_s
    figures["memory_before_ours_kib"], figures["memory_after_ours_kib"] = before, after
    figures["memory_relieved_ours_kib"] = relieved
    return figures


def _relieved(ours: Shimd, names: list[str], shims: list[int]) -> list[int]:
    """The pids of the copies that followed, once all have."""

    def pids() -> list[int]:
        return [ours.shim_pid(name) for name in names]

    wait_until(lambda: not set(pids()) & set(shims), deadline_s=RELIEVED_S, what="all shims to be relieved")
    return pids()


def _upgrade(ours: Shimd, parallel: int) -> list[float]:
    told = json.loads(
        ours.ask("--state", ours.state_dir, "shim", "upgrade", "--all", "--json", "--parallel", str(parallel))
    )
    assert all(each["result"] == "upgraded" for each in told), told
    return [float(each["pause_ms"]) for each in told]


def _absences(peer: Daemon, count: int) -> list[float]:
    """Of a container under containerd whose shim is replaced, in ms."""
    found = []
    for number in range(count):
        name = f"replaced{number}"
        peer.run(name)
        began = time.perf_counter()
        peer.remove(name)
        peer.run(name)
        found.append((time.perf_counter() - began) * 1000)
    return found

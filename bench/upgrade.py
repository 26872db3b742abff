"""The daemon is upgraded while clients connect without a pause: how long does the unluckiest of them wait?"""

import statistics
import threading
import time

from bench.measure import Figures, compare
from bench.ours import Shimd
from bench.rig import Daemon, Rig, Stopwatch
from ttrpc.api import shimd

SIZES = {"containers": 20, "rounds": 20}
PAUSE_S = 0.001  # between two calls, so that the caller is not what the daemon is busy with


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """The longest wait of a connect-and-call around each upgrade, and the gap as the daemon tells it.

    containerd knows no upgrade but a restart, during which clients are refused: its figure is how long that lasts.
    """
    assert isinstance(ours, Shimd), "the other side of --null has no upgrade"
    for number in range(sizes["containers"]):
        ours.run(f"upgrade{number}")
        peer.run(f"upgrade{number}")
    known = ours.running()
    waits: list[float] = []
    gaps: list[float] = []
    absences: list[float] = []
    calls = 0
    for _ in range(sizes["rounds"]):
        with Caller(ours) as caller:
            gaps.append(ours.upgrade())
        assert caller.failure is None, f"a call failed: {caller.failure!r}"
        assert ours.running() == known, "a container is not what it was"
        waits.append(max(caller.waits_ms))
        calls += len(caller.waits_ms)
        peer.kill()
        watch = Stopwatch()
        peer.start()
        peer.wait_serving()
        absences.append(watch.seconds() * 1000)
    figures = compare("longest_wait", "ms", waits, absences)
    figures["longest_wait_ours_max_ms"] = max(waits)
    figures["gap_ours_ms"], figures["gap_ours_max_ms"] = statistics.median(gaps), max(gaps)
    figures["calls"] = calls
    return figures


class Caller:
    """A thread that connects and calls until it is left; keeps how long each took."""

    def __init__(self, side: Shimd) -> None:
        self.side = side
        self.waits_ms: list[float] = []
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(PAUSE_S):
                began = time.perf_counter()
                with self.side.api() as client:
                    client.call("shimd.v1.Shimd", "Info", shimd.InfoRequest())
                self.waits_ms.append((time.perf_counter() - began) * 1000)
        except Exception as error:  # noqa: BLE001 - raised where the measurement waits
            self.failure = error

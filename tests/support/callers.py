"""Clients that never rest, beside what a test does: not one of their calls may fail."""

import threading
from collections.abc import Callable

from ttrpc.api import shimd
from ttrpc.blocking import BlockingClient

CALL_S = 60.0
SHIMD = "shimd.v1.Shimd"
PAUSE_S = 0.02


class Callers:
    """Threads that call without a pause, each call counted; the first failure is kept."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.stop = threading.Event()
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self, name: str, call: Callable[[], object]) -> None:
        def run() -> None:
            while not self.stop.is_set():
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 - told where the test waits
                    self.failures.append(f"{name}: {error!r}")
                    return
                self.counts[name] = self.counts.get(name, 0) + 1

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def finish(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(CALL_S)

    def connect_only(self) -> None:
        """Now and then, so that the backlog never fills while nobody accepts."""
        BlockingClient.connect(self.address, timeout_s=CALL_S).close()
        self.stop.wait(PAUSE_S)


def fresh(address: str) -> "shimd.InfoResponse":
    """One call over a connection of its own, without any second attempt."""
    with BlockingClient.connect(address, timeout_s=CALL_S) as client:
        return client.call(SHIMD, "Info", shimd.InfoRequest(), timeout_s=CALL_S)  # type: ignore[no-any-return]

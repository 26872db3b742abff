"""A ShimBox whose shims are forked by a keeper of its own, which ends with the box.

with KeptBox(["sleep", "100"]) as box:
    box.create(); box.kill_shim(); assert box.state().pid
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

from tests.support.keeperbox import copies_of, end_keepers, is_running, looked_after
from tests.support.shimbox import ShimBox
from tests.support.waiting import wait_until


class KeptBox(ShimBox):
    """Owns the keeper that the first `start` brings up, and whatever keepers follow it."""

    def __init__(self, args: Sequence[str] = ("sleep", "1000"), **options: Any) -> None:
        super().__init__(args, **options)
        self.keepers = os.path.join(self.folder, "k")
        self.environment["SHIMD_KEEPER"] = self.keepers
        self.environment["SHIMD_KEEPER_CGROUP"] = ""
        self._copies: set[int] = set()  # of keepers that were killed: one that rehearses ends when it has

    def keeper_log(self) -> str:
        try:
            with open(os.path.join(self.keepers, "keeper.log"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def keeper_pids(self) -> list[int]:
        """Of every keeper this box had, oldest first, that lives."""
        started = [line for line in self.keeper_log().splitlines() if "serving at" in line]
        pids = [int(line.partition("pid=")[2].partition(";")[0]) for line in started]
        return [pid for pid in pids if is_running(pid)]

    @property
    def keeper_pid(self) -> int:
        return self.keeper_pids()[-1]

    def kill_keeper(self) -> None:
        pid = self.keeper_pid
        self._copies |= copies_of(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what="the keeper to be gone")

    def wait_refilled(self, *, but: int = 0) -> int:
        """Until a keeper, another than ``but``, looks after the shim again; its pid."""
        return wait_until(lambda: self._refilled(but), what="a keeper to look after the shim")

    def _refilled(self, but: int) -> int:
        pids = [pid for pid in self.keeper_pids() if pid != but]
        return pids[-1] if pids and self.shim_pid in looked_after(self.keeper_log(), pids[-1]) else 0

    def kill_shim(self) -> None:
        """SIGKILL the shim; the successor is found by the first call."""
        super().kill_shim()
        self.find_shim()

    def find_shim(self) -> None:
        """Learn who serves now."""
        self.shim_pid = self.info().pid

    def close(self) -> None:
        end_keepers(self.keepers)  # first: one would raise a successor for the shim that is ended now
        wait_until(lambda: not any(map(is_running, self._copies)), deadline_s=60, what="copies to have rehearsed")
        super().close()

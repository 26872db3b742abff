"""The killer: SIGKILL to processes of ours, stroke after stroke; and who brings the daemon back."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter

from bench.ours import Shimd
from bench.rig import CommandFailed
from bench.storm.plans import DAEMON, KEEPER, SHIM, Stroke
from tests.support import leaks
from tests.support.waiting import wait_until

RESTART_S = 0.1  # systemd's RestartSec, unless the unit says otherwise
# Some daemons are killed before they serve. The others get as far as that, or on a busy machine nothing would ever be
# done; what is decided stays the same, only when it happens does not.
STILLBORN_SHARE, BOOT_S = 0.15, 30.0
# Of the strokes at the keeper so many hit one of the copies that wait to become shims, or their template.
COPY_SHARE = 0.25


class Landlord:
    """Starts the daemon again whenever it is dead, as `Restart=always` does. Owns its thread."""

    def __init__(self, daemon: Shimd) -> None:
        self.daemon = daemon
        self.starts = 0
        self.exits: list[int] = []  # of daemons that ended otherwise than by SIGKILL
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Landlord":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            process = self.daemon.process
            code = process.poll() if process is not None else None
            if code is None:
                continue
            if code != -signal.SIGKILL:
                self.exits.append(code)
            if self._over.wait(RESTART_S):
                return
            self.daemon.start()
            self.starts += 1


class Killer:
    """Finds the living and kills. Owns nothing; `kills` counts by kind, ``most`` ends it exactly there."""

    def __init__(self, daemon: Shimd, most: int, serve_s: float = 0.5) -> None:
        """``serve_s``: how long a daemon serves at least, if it is not one that is killed before."""
        self.daemon = daemon
        self._serve_s = serve_s
        self.kills: Counter[str] = Counter()
        self.strokes: Counter[str] = Counter()
        self.keeper_deaths: list[float] = []  # by time.time
        self._most = most
        self._namespace = daemon.rig.namespace
        self._state_dir = daemon.state_dir

    @property
    def is_done(self) -> bool:
        return self.kills.total() >= self._most

    def strike(self, stroke: Stroke) -> list[str]:
        """Kill whom the stroke is for, as fast as can be; says who it was."""
        if DAEMON in stroke.kinds and stroke.luck >= STILLBORN_SHARE:
            self._let_serve()
        found = self.living()
        victims: list[tuple[str, int, str]] = []
        for kind in stroke.kinds:
            victims += [(kind, pid, name) for pid, name in self._chosen(kind, found, stroke)]
        hit = []
        for kind, pid, name in victims[: max(0, self._most - self.kills.total())]:
            if self._kill(pid, name):
                self.kills[kind] += 1
                if kind == KEEPER:
                    self.keeper_deaths.append(time.time())
                hit.append(f"{kind} {pid} {name}")
        self.strokes["+".join(stroke.kinds) + (" (many)" if stroke.share else "")] += 1
        return hit

    def _let_serve(self) -> None:
        with contextlib.suppress(AssertionError, CommandFailed):
            wait_until(self.daemon.is_serving, deadline_s=BOOT_S, what="the daemon to serve")
            time.sleep(self._serve_s)

    def _chosen(self, kind: str, found: "dict[str, list[tuple[int, str]]]", stroke: Stroke) -> list[tuple[int, str]]:
        living = found[kind]
        if kind == KEEPER:
            if stroke.luck < COPY_SHARE and found["copy"] and not stroke.share:
                living = found["copy"]
            return _one(living, stroke.luck)
        if kind == SHIM and stroke.share:
            first = int(stroke.luck * len(living))
            return (living[first:] + living[:first])[: max(1, round(stroke.share * len(living)))]
        return _one(living, stroke.luck)

    def living(self) -> "dict[str, list[tuple[int, str]]]":
        """Our processes by kind, each with what its command line says, in the order of the names."""
        found: dict[str, list[tuple[int, str]]] = {DAEMON: [], KEEPER: [], SHIM: [], "copy": []}
        keepers = set()
        for pid in leaks.pids():
            words = command_line(pid)
            if words.startswith("shim:") and words.split()[-1] == self._namespace:
                if command_line(_parent(pid)) != words:  # else it is about to become a runtime call
                    found[SHIM].append((pid, words))
            elif words.startswith("shimd-keeper ") and self.daemon.rig.folder in words:
                found[KEEPER].append((pid, words))
                keepers.add(pid)
            elif words.startswith("shimd-template"):
                found["copy"].append((pid, words))
        process = self.daemon.process
        if process is not None and process.poll() is None:
            found[DAEMON].append((process.pid, command_line(process.pid)))
        found["copy"] = [(pid, words) for pid, words in found["copy"] if _parent(pid) in keepers]
        for kind in found:
            found[kind].sort(key=lambda item: item[1])
        return found

    @staticmethod
    def _kill(pid: int, words: str) -> bool:
        """Order: the pidfd first, then a look, so that nobody else who got the pid is hit."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not words or command_line(pid) != words:
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True


def _one(living: list[tuple[int, str]], luck: float) -> list[tuple[int, str]]:
    return [living[int(luck * len(living))]] if living else []


def command_line(pid: int) -> str:
    """The words a process calls itself by; empty when it is gone."""
    try:
        return leaks.read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(leaks.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0

"""The weather of daemon_storm: containers, execs and a subscriber at work while the daemon is killed over and over."""

import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.ours import Shimd
from bench.rig import CALL_DEADLINE_S, Rig
from ttrpc.api import shimd
from ttrpc.errors import DeadlineExceeded, TtrpcError

PATIENCE_S = 60
LIFE_S = (0.0, 0.8)  # how long a daemon lives after it serves; some die while they still adopt
STILLBORN_SHARE = 0.2  # of the daemons, so many die before they need serve:
BOOT_S = (0.0, 0.4)  # after this long
KEEP_EVERY = 5  # of the brief containers, so many are removed under way but for every fifth, which stays to the end
CODES = 120  # exit codes go round below those that mean something to a shell

BRIEF = """\
echo began >> /truth/{name}; i=0
while [ $i -lt {lines} ]; do echo "{name} $i"; i=$((i+1)); done
echo ended >> /truth/{name}; exit {code}"""
LONG = """\
echo began >> /truth/{name}; n=0
while [ ! -e /truth/stop ]; do echo "{name} $n"; n=$((n+1)); usleep 20000; done
echo $n > /truth/{name}.lines; exit {code}"""
EXEC = 'echo began >> /truth/{name}; echo "{name} says"; exit {code}'

SHIMD = "shimd.v1.Shimd"


@dataclass
class Storm:
    """The state all threads share. Lists are only appended to."""

    ground: Rig
    daemon: Shimd
    sizes: dict[str, int]
    over: threading.Event = field(default_factory=threading.Event)
    briefs: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    execs: list[tuple[int, str]] = field(default_factory=list)  # number, container
    failures: list[str] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)  # what `wait` and `exec` said

    def truth(self, name: str) -> list[str]:
        """What a container wrote about itself."""
        try:
            with open(os.path.join(self.ground.rootfs, "truth", name), encoding="ascii") as file:
                return file.read().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def shimctl(self, *words: str, codes: range = range(1)) -> subprocess.CompletedProcess[str]:
        """One command of a person who knows nothing of the daemon's deaths; an unexpected end is a failure."""
        # The killer may strike before a daemon serves, again and again: what is asked here is patience, not luck.
        argv = self.daemon.client("--reconnect", str(PATIENCE_S), *words)
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=CALL_DEADLINE_S, stdin=-3)
        if done.returncode not in codes:
            self.failures.append(f"shimctl {' '.join(words[:4])} …: exit {done.returncode}: {done.stderr.strip()}")
        return done


def brief_name(number: int) -> str:
    return f"brief-{number}"


def long_name(number: int) -> str:
    return f"long-{number}"


def run_briefs(storm: Storm, first: int, step: int) -> None:
    """Run, wait, read the log and remove, one container after another until the storm is over."""
    number = first
    while not storm.over.is_set():
        name, code = brief_name(number), number % CODES
        script = BRIEF.format(name=name, lines=storm.sizes["lines"], code=code)
        storm.briefs.append(number)
        started = storm.shimctl("run", "-d", "--rootfs", storm.ground.rootfs, "--name", name, "--", "sh", "-c", script)
        if started.returncode == 0:
            storm.answered[name] = storm.shimctl("wait", name, codes=range(256)).returncode
            if number % KEEP_EVERY:
                storm.logs[name] = storm.shimctl("logs", name).stdout.splitlines()
                storm.shimctl("rm", name)
            else:
                storm.kept.append(name)
        number += step


def run_execs(storm: Storm, first: int, step: int) -> None:
    """One exec after another in the long-lived containers, each with an exit code and an output of its own."""
    number = first
    while not storm.over.is_set():
        container, name, code = long_name(number % storm.sizes["longs"]), f"exec-{number}", number % CODES
        storm.execs.append((number, container))
        done = storm.shimctl(
            "exec", container, "sh", "-c", EXEC.format(name=name, code=code), codes=range(code, code + 1)
        )
        storm.answered[name] = done.returncode
        storm.logs[name] = done.stdout.splitlines()
        number += step


class Follower:
    """A subscriber that comes back with its cursor whenever the daemon died. Owns its thread."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.records: list[shimd.EventRecord] = []
        self.is_gapped = False
        self.thread = threading.Thread(target=self._follow)

    def _follow(self) -> None:
        while not self.storm.over.is_set():
            try:
                for record in read_events(self.storm.daemon, after=self.cursor, follow=True, ended=self.storm.over):
                    self.is_gapped = self.is_gapped or record.gap
                    self.records.append(record)
            except (OSError, TtrpcError):
                self.storm.over.wait(0.02)  # the daemon is down: try again shortly

    @property
    def cursor(self) -> int:
        return self.records[-1].seq if self.records else 0


def read_events(
    daemon: Shimd, *, after: int = 0, follow: bool = False, ended: threading.Event | None = None
) -> Iterator["shimd.EventRecord"]:
    """Events after a sequence number; following, until `ended`. Raises: ConnectionLost when the daemon goes."""
    with daemon.api() as client:
        request = shimd.EventsRequest(after_seq=after, follow=follow)
        stream = client.open_stream(SHIMD, "Events", request, metadata=daemon.metadata)
        while ended is None or not ended.is_set():
            try:
                record = stream.receive(timeout_s=0.2 if ended is not None else CALL_DEADLINE_S)
            except DeadlineExceeded:
                continue
            if record is None:
                return
            yield record


def kill_again_and_again(storm: Storm, source: random.Random) -> float:
    """SIGKILL and restart the daemon; returns the seconds from a kill to the next daemon's socket, on average."""
    downtimes_s = []
    went_s = 0.0
    for number in range(storm.sizes["kills"]):
        if source.random() < STILLBORN_SHARE:
            storm.over.wait(source.uniform(*BOOT_S))
        else:
            storm.daemon.wait_serving()
            downtimes_s.append(time.perf_counter() - went_s)
            storm.over.wait(source.uniform(*LIFE_S))
        storm.daemon.kill()
        went_s = time.perf_counter()
        storm.daemon.start()
        if (number + 1) % 10 == 0:
            counts = f"{len(storm.briefs)} containers, {len(storm.execs)} execs, {len(storm.failures)} failures"
            print(f"  {number + 1} kills; {counts}", flush=True)
    storm.daemon.wait_serving()
    return statistics.mean(downtimes_s[1:])

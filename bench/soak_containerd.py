"""A long day under real containerd: thousands of `ctr run --rm` and `ctr tasks exec` on our shim, and what is left.

python -m bench.soak_containerd [--runs N] [--execs N] [--jobs N] [--runtime NAME] [--keeper off]

Every command's exit code and output are checked. Afterwards nothing may be left of all that: no process, descriptor,
mount, cgroup, socket or bundle; and the shim that served all the execs is as big at the end as in the middle. Prints
one JSON line; the exit code is 1 when anything failed, leaked or grew.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.measure import commit, machine, memory_kib
from bench.rig import rig
from shim import launcher
from tests.support.containerdbox import KEEPER, OUR_RUNTIME, ContainerdBox, Result, open_box
from tests.support.waiting import wait_until

RUNS, EXECS, JOBS = 1000, 10_000, 4
LOOKS = (0.0, 0.1, 0.5, 1.0)  # shares of the execs: of 10,000 these are the start, 1,000, 5,000 and the end
GROWTH_KIB = 128  # from the middle to the end; a page table and a heap arena are 64 each
FDS_OF_DAEMON = 8  # the pools of containerd breathe, and the copies that wait in the keeper
SETTLE_S = 30.0
CODES = 100  # exit codes go round below those that mean something to a shell
SHOWN = 20  # failures


@dataclass
class Soak:
    """One run: the box, what failed in it, and what was seen of the processes that stay."""

    box: ContainerdBox
    runtime: str
    jobs: int
    failures: list[str] = field(default_factory=list)
    memory_kib: dict[str, list[int]] = field(default_factory=dict)
    fds: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def each(self, name: str, numbers: Iterable[int], do: Callable[[int], None]) -> None:
        """Do it for all numbers, several at a time; a failure of one is noted."""

        def attempt(number: int) -> None:
            try:
                do(number)
            except Exception as error:  # noqa: BLE001 - counted and shown
                self.failures.append(f"{name} {number}: {error!r}")

        began = time.monotonic()
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(attempt, numbers))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def check(self, name: str, done: Result, code: int, out: bytes) -> None:
        """Note it when a command did not say and return what it should."""
        if (done.exit, done.out, done.err) != (code, out, b""):
            said = f"exit {done.exit}, {done.out[:80]!r}, {done.err[-300:]!r}"
            self.failures.append(f"{name}: {said}; expected exit {code}, {out[:80]!r}")

    def run_and_remove(self, number: int) -> None:
        """`ctr run --rm`, with output on both FIFOs and an exit code of its own."""
        container, code = f"run{number}", number % CODES
        self.box.ids.add(container)
        script = f"echo out {number}; exit {code}"
        words = ("run", "--rm", "--runtime", self.runtime, "--fifo-dir", self.box.fifo_dir, "--rootfs", self.box.rootfs)
        self.check(container, self.box.ctr(*words, container, "/bin/sh", "-c", script), code, b"out %d\n" % number)

    def execute(self, number: int) -> None:
        """`ctr tasks exec`; every other one has input to copy, which ends."""
        code, text = number % CODES, b"in %d\n" % number
        words = ("tasks", "exec", "--exec-id", f"e{number}", "--fifo-dir", self.box.fifo_dir, "soak", "/bin/sh", "-c")
        if number % 2:
            done = self.box.ctr(*words, f"cat; exit {code}", stdin=text)
        else:
            done = self.box.ctr(*words, f"echo in {number}; exit {code}")
        self.check(f"exec {number}", done, code, text)

    # --- looking

    def pids(self) -> dict[str, int]:
        """The processes that stay: containerd, the shim of the container with the execs, the keeper."""
        assert self.box.daemon is not None
        found = {"containerd": self.box.daemon.pid}
        for pid, text in self.box.processes().items():
            if text.startswith(KEEPER):
                found["keeper"] = pid
            elif "shim" in text and "soak" in text:
                found["shim"] = pid
        return found

    def look(self, *names: str) -> None:
        """Take down memory and descriptors of these."""
        pids = self.pids()
        for name in names:
            if name in pids:
                self.fds.setdefault(name, []).append(len(os.listdir(f"/proc/{pids[name]}/fd")))
                for kind, value in memory_kib(pids[name]).items():
                    if kind in ("pss", "private_dirty"):
                        self.memory_kib.setdefault(f"{name}_{kind}", []).append(value)

    # --- judging

    def leaks(self) -> dict[str, list[str]]:
        """What is left after the last container was removed, by kind; waits a moment for what is on its way out."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.box.leftovers(), deadline_s=SETTLE_S, what="everything to be gone")
        return {kind: found[:SHOWN] for kind, found in vars(self.box.leftovers()).items()}

    def grown(self) -> list[str]:
        """What is bigger at the end than it may be."""
        found = []
        for name, values in self.memory_kib.items():
            if name.startswith("shim") and values[-1] > values[len(values) // 2] + GROWTH_KIB:
                found.append(f"{name}: {values} KiB")
        for name, values in self.fds.items():
            # A shim opens its connection to containerd with the first event, which may come after the first look.
            first = values[1] if name == "shim" else values[0]
            if values[-1] > first + (0 if name == "shim" else FDS_OF_DAEMON):
                found.append(f"descriptors of {name}: {values}")
        return found


def soak(play: Soak, runs: int, execs: int) -> None:
    """The whole day: short lives first, then one long life with many execs."""
    box = play.box
    play.each("warm up", range(play.jobs), play.run_and_remove)  # starts the keeper, fills containerd's pools
    play.look("containerd", "keeper")
    play.each("runs", range(runs), play.run_and_remove)
    play.look("containerd", "keeper")
    box.ids.add("soak")
    words = ("run", "--detach", "--null-io", "--runtime", play.runtime, "--rootfs", box.rootfs, "soak")
    started = box.ctr(*words, "/bin/sleep", "1000000")
    assert started.exit == 0, started.complaint
    done = 0
    for share in LOOKS:
        play.each("execs", range(done, round(execs * share)), play.execute)
        done = round(execs * share)
        play.look("shim")
    play.look("containerd", "keeper")
    box.ctr("tasks", "rm", "--force", "soak")
    box.ctr("containers", "rm", "soak")


def main(argv: list[str]) -> int:
    """Soak and print the line; exit code 1 when anything failed, leaked or grew."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak_containerd", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"`ctr run --rm` ({RUNS})")
    parser.add_argument("--execs", type=int, default=EXECS, help=f"`ctr tasks exec` ({EXECS})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"commands at a time ({JOBS})")
    parser.add_argument("--runtime", default=OUR_RUNTIME, help=f"another one, to compare ({OUR_RUNTIME})")
    parser.add_argument("--keeper", choices=("on", "off"), default="on", help="off: every shim is a cold one")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("this runs real containers and needs root", file=sys.stderr)
        return 2
    if options.keeper == "off":
        os.environ["SHIMD_KEEPER"] = "off"
    with rig() as ground:
        folder, programs = (os.path.join(ground.folder, name) for name in ("box", "bin"))
        for path in (folder, programs):
            os.mkdir(path)
        launcher.install(programs)  # the program a containerd user is to install: pip's own asks no keeper
        with open_box(folder, ground.namespace, path_first=[programs], level="warn") as box:
            play = Soak(box, options.runtime, options.jobs)
            soak(play, options.runs, options.execs)
            leaks, grown = play.leaks(), play.grown()
    line = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), **machine(),
        **{name: getattr(options, name) for name in ("runs", "execs", "jobs", "runtime", "keeper")},
        "failures": len(play.failures), "failed": play.failures[:SHOWN],
        "leaks": {kind: len(found) for kind, found in leaks.items()}, "left": {k: v for k, v in leaks.items() if v},
        "grown": grown, "memory_kib": play.memory_kib, "fds": play.fds,
        "seconds": {name: round(value, 1) for name, value in play.seconds.items()},
    }  # fmt: skip
    print(json.dumps(line, ensure_ascii=False))
    return 1 if play.failures or any(leaks.values()) or grown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

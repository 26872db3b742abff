"""What a shim costs under containerd, ours and the Go shim: idle at 1, 20 and 100; after many execs; after much log."""

import os
import select
import statistics
import sys
from collections.abc import Sequence

from bench.both_shims import ShimdUnderContainerd, exec_on_all
from bench.measure import Figures, memory_kib
from bench.rig import CALL_DEADLINE_S, CommandFailed, Daemon, Rig, command

SIZES = {"few": 20, "many": 100, "execs": 1000, "log_mib": 1024, "more_execs": 4000}
OURS = ShimdUnderContainerd
KINDS = ("pss", "private_dirty")
BLOCK_MIB = 1


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Both populations grow alike. The one that works is looked at alone, among all its siblings."""
    sides = {"ours": ours, "peer": peer}
    figures: Figures = {}
    populations = {"one": 1, "few": sizes["few"], "many": sizes["many"]}
    names: list[str] = []
    run_worker(ours, sizes["log_mib"])
    run_worker(peer, sizes["log_mib"])
    for label, count in populations.items():
        say(f"containers until there are {count} idle ones on each side")
        names += [run_idle(ours, peer, number) for number in range(len(names), count)]
        figures |= look(label, sides, names)
    done = 0
    for label, count in (("execs", sizes["execs"]), ("log", 0), ("more", sizes["more_execs"])):
        sockets = [each.shim_socket("works") for each in sides.values()]
        exec_on_all(sockets, "works", range(done, done + count), say)
        if label == "log":
            for writer in sides.values():
                say(f"{sizes['log_mib']} MiB of log, {writer.name}")
                write_log(rig, writer, sizes["log_mib"])
        done += count
        figures |= look(f"after_{label}", sides, ["works"])
    for side in sides:
        figures[f"growth_{side}_kib"] = (
            figures[f"after_more_private_dirty_{side}_kib"] - figures[f"after_log_private_dirty_{side}_kib"]
        )
    return figures


def say(words: str) -> None:
    """It takes minutes: show that it goes on."""
    print(f"ctr_memory: {words}", file=sys.stderr, flush=True)


def run_idle(ours: Daemon, peer: Daemon, number: int) -> str:
    """One container more on each side."""
    name = f"idle{number}"
    ours.run(name)
    peer.run(name)
    return name


def run_worker(side: Daemon, mib: int) -> None:
    """The container that gets the execs, and writes when told to, into a file:// of its own, to its end."""
    script = f"until [ -e /go-{side.name} ]; do usleep 20000; done; dd if=/dev/zero bs={BLOCK_MIB}M count={mib}"
    side.run("works", "/bin/sh", "-c", f"{script} 2>/dev/null; touch /done-{side.name}; exec sleep 1000000")


def write_log(rig: Rig, side: Daemon, mib: int) -> None:
    """Have it written; then it goes on sleeping."""
    with open(os.path.join(rig.rootfs, f"go-{side.name}"), "w", encoding="ascii"):
        pass
    log = os.path.join(side.folder, "works.log")
    waiting = select.poll()
    for _ in range(int(CALL_DEADLINE_S * 10)):
        if os.path.exists(os.path.join(rig.rootfs, f"done-{side.name}")) and os.path.getsize(log) >= mib << 20:
            os.truncate(log, 0)
            return
        waiting.poll(100)
    raise CommandFailed(f"{side.name} did not log {mib} MiB: {command('ls', '-l', log, check=False).stdout}")


def look(label: str, sides: dict[str, Daemon], names: Sequence[str]) -> Figures:
    """The mean of each kind over a population, and the ratios."""
    figures: Figures = {}
    for side_name, side in sides.items():
        rows = [memory_kib(side.shim_pid(name)) for name in names]
        for kind in KINDS:
            figures[f"{label}_{kind}_{side_name}_kib"] = statistics.mean(row[kind] for row in rows)
    for kind in KINDS:
        figures[f"{label}_{kind}_ratio"] = figures[f"{label}_{kind}_ours_kib"] / figures[f"{label}_{kind}_peer_kib"]
    return figures

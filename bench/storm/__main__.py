"""Random processes of ours are killed, many times a second, while containers work. What is lost, wrong or left over?

python -m bench.storm [--containers 50] [--kills 10000] [--kill daemon,keeper,shim] [--rate 5] [--seed N] …
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.measure import store
from bench.ours import Shimd
from bench.rig import rig
from bench.storm.field import Field
from bench.storm.follower import Follower
from bench.storm.killer import Killer, Landlord
from bench.storm.leftovers import leftovers, open_fds
from bench.storm.lives import Slot
from bench.storm.plans import KINDS, strokes
from tests.support.waiting import wait_until

REPORT_S = 10.0
END_S = 300.0  # for the last lives to end, once nobody is killed any more
FAULTS_MAX = 20  # then it is enough
SERVE_EACH_S = 0.05  # a daemon lives so much longer for each container it has to adopt


def main(argv: list[str]) -> int:
    """Let the storm go by and print the counts; exit code 1 when anything is wrong, lost, doubled or left over."""
    options = parse(argv)
    if os.geteuid() != 0:
        print("storm: it runs real containers and needs root", file=sys.stderr)
        return 2
    os.environ["SHIMD_KEEPER_CGROUP"] = ""  # it would outlive us
    os.environ.pop("SHIMD_KEEPER", None)
    print(f"storm: seed {options.seed}, {options.containers} containers, {options.kills} kills", file=sys.stderr)
    with rig() as ground, Shimd(ground) as daemon, Follower(daemon) as follower:
        kinds = frozenset(options.kill)
        field = Field(daemon, follower, options.seed, options.pace, kinds)
        killer = Killer(daemon, options.kills, serve_s=0.5 + options.containers * SERVE_EACH_S)
        field.keeper_deaths = killer.keeper_deaths
        weather(field, killer, options)
    tally = field.tally
    for line in tally.failures[: 2 * FAULTS_MAX]:
        print(line)
    reasons = sorted({line.partition(": ")[2] for line in tally.unknown})
    print("\n".join(f"unknown: {reason}" for reason in reasons), end="\n" if reasons else "")
    figures = {"seed": options.seed, **tally.figures()}
    if field.evidence:
        print(f"evidence is kept in {field.evidence}")
    print(json.dumps(figures))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**figures, "failures": tally.failures}, file)
    print(tally.line())
    print("storm: nothing wrong, lost, doubled or left over" if tally.is_clean else "storm: FAULTS")
    if not options.no_store:
        store("storm", {name: float(value) for name, value in figures.items()}, {"containers": options.containers})
    return 0 if tally.is_clean else 1


def parse(argv: list[str]) -> argparse.Namespace:
    """The options. A list of kinds is checked here."""
    parser = argparse.ArgumentParser(prog="python -m bench.storm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--containers", type=int, default=50, metavar="N", help="at any time (50)")
    parser.add_argument("--kills", type=int, default=10_000, metavar="N", help="processes to kill (10000)")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so long, whatever was killed by then")
    parser.add_argument("--kill", type=_kinds, default=list(KINDS), metavar="KINDS", help=f"of {','.join(KINDS)} (all)")
    parser.add_argument("--rate", type=float, default=5.0, help="strokes a second, on average (5)")
    parser.add_argument(
        "--pace", type=float, default=0.0, help="seconds between two acts on a container (by their number)"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--json", default="", metavar="FILE", help="also write the counts and every failure there")
    parser.add_argument("--no-store", action="store_true", help="keep no line in results/")
    options = parser.parse_args(argv)
    options.pace = options.pace or max(0.5, options.containers / 10)
    return options


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kinds


def weather(field: Field, killer: Killer, options: argparse.Namespace) -> None:
    """Warm up, let the load run and the killer strike, let the load end, look at what is left."""
    tally = field.tally
    field.daemon.run("warm", "sh", "-c", "exit 0")  # brings a keeper
    field.daemon.remove("warm")
    fds_before = open_fds(killer)
    slots = [Slot(field, number) for number in range(options.containers)]
    threads = [threading.Thread(target=slot.run) for slot in slots]
    with Landlord(field.daemon) as landlord:
        for thread in threads:
            thread.start()
        with _quietly_interrupted(field):
            try:
                strike(field, killer, options)
            finally:
                field.over.set()
                wait_for_end(field, slots, threads)
        field.daemon.made.clear()
    if landlord.exits:
        tally.fail("daemon_ends", f"by itself, exit codes {landlord.exits}", len(landlord.exits))
    for fault in field.follower.faults:
        tally.fail("events_strange", fault)
    tally.add("kills", killer.kills.total())
    for kind in KINDS:
        tally.add(f"kills_{kind}", killer.kills[kind])
    tally.add("events_told", field.follower.count)
    tally.add("daemon_starts", landlord.starts)
    left = leftovers(field.daemon, killer, fds_before) if not field.tally.counts["stuck"] else []
    for line in left:
        field.tally.fail("leaks", line)


@contextmanager
def _quietly_interrupted(field: Field) -> Iterator[None]:
    """Ctrl-C ends the storm early, with its counts."""
    earlier = signal.signal(signal.SIGINT, lambda *_: field.over.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def strike(field: Field, killer: Killer, options: argparse.Namespace) -> None:
    """Stroke after stroke until enough were killed, the time is up, or too much went wrong."""
    began = reported = time.monotonic()
    for stroke in strokes(options.seed, field.kinds, options.rate):
        if field.over.wait(stroke.pause_s) or killer.is_done or len(field.tally.failures) >= FAULTS_MAX:
            return
        now = time.monotonic()
        if options.seconds and now - began > options.seconds:
            return
        killer.strike(stroke)
        if now - reported > REPORT_S:
            reported = now
            counts = f"{field.tally.counts['containers']} containers, {len(field.tally.failures)} faults"
            words = f"{killer.kills.total()} kills {dict(killer.kills)}, {counts}"
            print(f"  {now - began:.0f} s: {words}", file=sys.stderr, flush=True)


def wait_for_end(field: Field, slots: list[Slot], threads: list[threading.Thread]) -> None:
    """Nobody is killed any more: every life comes to its end, or is told to be stuck."""
    try:
        wait_until(lambda: not any(thread.is_alive() for thread in threads), deadline_s=END_S, what="the last lives")
    except AssertionError:
        for slot, thread in zip(slots, threads, strict=True):
            if thread.is_alive():
                field.fail("stuck", slot.name, f"{slot.name} is at {slot.doing}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The daemon is killed a hundred times in a row under starts, execs, exits and logs. What is lost or doubled?

The containers themselves keep the truth: each writes into a file of its own that it began, and how it ended. At the end
the daemon's records, events, exit records and logs are held against these files, each thing once.

python -m bench.daemon_storm [--kills 100] [--seed N]
"""

import argparse
import os
import random
import sys
import threading

from bench.ledger import Ledger
from bench.measure import store
from bench.ours import Shimd
from bench.rig import rig
from bench.storm import LONG, Follower, Storm, kill_again_and_again, long_name, read_events, run_briefs, run_execs
from bench.storm_count import count
from tests.support.waiting import wait_until

SIZES = {"kills": 100, "starters": 2, "execers": 1, "longs": 4, "lines": 40}


def main(argv: list[str]) -> int:
    """Let the storm go by and print the count; exit code 1 when anything is lost or doubled, or a command failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.daemon_storm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=SIZES["kills"])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--no-store", action="store_true", help="keep no line in results/")
    options = parser.parse_args(argv)
    sizes = SIZES | {"kills": options.kills, "seed": options.seed}
    print(f"daemon_storm: {options.kills} kills, seed {options.seed}", flush=True)
    with rig() as ground, Shimd(ground) as daemon:
        storm = Storm(ground, daemon, sizes)
        os.mkdir(os.path.join(ground.rootfs, "truth"))
        downtime_s, ledger = weather(storm, random.Random(options.seed))
    print(ledger.table())
    print(f"{options.kills} kills, {downtime_s * 1000:.0f} ms from a kill to the next socket, on average")
    for line in storm.failures[:20]:
        print(f"failed: {line}")
    if ledger.is_balanced() and not storm.failures:
        print("nothing lost, nothing doubled, no command failed")
    else:
        print(ledger.differences())
    if not options.no_store:
        figures = ledger.figures() | {"failed_commands": len(storm.failures), "downtime_ms": downtime_s * 1000}
        store("daemon_storm", figures, sizes)
    return 0 if ledger.is_balanced() and not storm.failures else 1


def weather(storm: Storm, source: random.Random) -> tuple[float, Ledger]:
    """Start the load, kill, let the load end, count."""
    for number in range(storm.sizes["longs"]):
        script = LONG.format(name=long_name(number), code=number)
        storm.daemon.run(long_name(number), "sh", "-c", script)
    pids = storm.daemon.running()
    follower = Follower(storm)
    starters, execers = storm.sizes["starters"], storm.sizes["execers"]
    load = [threading.Thread(target=run_briefs, args=(storm, n, starters)) for n in range(starters)]
    load += [threading.Thread(target=run_execs, args=(storm, n, execers)) for n in range(execers)]
    threads = [follower.thread, *load]
    for thread in threads:
        thread.start()
    try:
        downtime_s = kill_again_and_again(storm, source)
        newest = max((record.seq for record in read_events(storm.daemon)), default=0)
        wait_until(lambda: follower.cursor >= newest, deadline_s=30, what="the follower to catch up")
    finally:
        storm.over.set()
        for thread in threads:
            thread.join()
    return downtime_s, count(storm, follower, pids)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

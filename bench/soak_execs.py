"""Exec after exec in one container: memory, fds and files of its shim and keeper stay what they were.

python -m bench.soak_execs [--execs 100000] [--jobs 3] [--samples 20]
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time

from bench.measure import memory_kib
from tests.support import leaks
from tests.support.keptbox import KeptBox
from tests.support.shimbox import SHIM, TASK
from tests.support.waiting import wait_until
from ttrpc.api import shim, task
from ttrpc.blocking import BlockingClient

STATUS = 7  # each exec ends with this
ACK_EVERY = 100  # a daemon acknowledges what it has stored; without, the journal would grow


def main(argv: list[str]) -> int:
    """Run it; one line of JSON at the end. The exit code is 1 when an exec failed or something was left."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak_execs", description=__doc__)
    parser.add_argument("--execs", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=3, help="execs at a time")
    parser.add_argument("--samples", type=int, default=20, help="how often to look")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("this runs a real container and needs root", file=sys.stderr)
        return 2
    leaks.sweep_stale()
    session = leaks.begin()
    try:
        result = soak(options.execs, options.jobs, options.samples)
    finally:
        left = leaks.end(session)
    result["left"] = remains = {"processes": len(left.processes), "mounts": left.mounts, "cgroups": left.cgroups}
    print(json.dumps(result))
    return 1 if result["failed"] or any(remains.values()) else 0


def soak(execs: int, jobs: int, samples: int) -> dict[str, object]:
    """Make the execs, `samples` looks at shim and keeper in between. Returns figures."""
    failed: list[str] = []
    looks = []
    with KeptBox(["sleep", "1000000000"]) as box:
        # As on a host that has run for more than a second: copies of a template that has rehearsed.
        subprocess.run([sys.executable, "-m", "shim", "ensure-keeper"], env=box.environment, check=True)
        wait_until(lambda: "is ready" in box.keeper_log(), deadline_s=60, what="the template")
        box.create()
        box.start()
        box.run_exec("first", ["true"])
        began = time.monotonic()
        looks.append(look(box, 0))
        per_look = execs // samples
        for turn in range(samples):
            threads = [
                threading.Thread(target=make, args=(box, f"{turn}-{job}", per_look // jobs, failed))
                for job in range(jobs)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            looks.append(look(box, (turn + 1) * (per_look // jobs) * jobs))
            print(json.dumps({**looks[-1], "failed": len(failed)}), file=sys.stderr, flush=True)
        is_running = box.state().status == 2
        return {
            "execs": looks[-1]["execs"], "jobs": jobs, "seconds": round(time.monotonic() - began, 1),
            "failed": failed[:20], "is_running": is_running, "looks": looks,
        }  # fmt: skip


def make(box: KeptBox, prefix: str, count: int, failed: list[str]) -> None:
    """Exec, Start, Wait, Delete over one connection, `count` times."""
    with BlockingClient.connect(box.address) as client:
        for number in range(count):
            exec_id = f"e{prefix}-{number}"
            try:
                code = one(box, client, exec_id)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                failed.append(f"{exec_id}: {error}")
                continue
            if code != STATUS:
                failed.append(f"{exec_id}: {code}")
            if number % ACK_EVERY == 0:
                info = client.call(SHIM, "Info", shim.InfoRequest(), timeout_s=60)
                client.call(SHIM, "Ack", shim.AckRequest(seq=info.journal_seq), timeout_s=60)


def one(box: KeptBox, client: BlockingClient, exec_id: str) -> int:
    """One exec from Exec to Delete; the value is its status."""
    client.call(TASK, "Exec", box.exec_request(exec_id, ["sh", "-c", f"exit {STATUS}"]), timeout_s=60)
    client.call(TASK, "Start", task.StartRequest(id=box.id, exec_id=exec_id), timeout_s=60)
    client.call(TASK, "Wait", task.WaitRequest(id=box.id, exec_id=exec_id), timeout_s=60)
    deleted = client.call(TASK, "Delete", task.DeleteRequest(id=box.id, exec_id=exec_id), timeout_s=60)
    return int(deleted.exit_status)


def look(box: KeptBox, execs: int) -> dict[str, object]:
    """Memory and fds of shim and keeper, and how many files the bundle has."""
    found: dict[str, object] = {"execs": execs}
    for name, pid in (("shim", box.shim_pid), ("keeper", box.keeper_pid)):
        memory = memory_kib(pid)
        found[name] = {
            "pss_kib": memory["pss"], "private_dirty_kib": memory["private_dirty"],
            "fds": len(os.listdir(f"/proc/{pid}/fd")),
        }  # fmt: skip
    found["files"] = sum(len(names) for _, _, names in os.walk(box.bundle))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long a shim takes to answer while its container misbehaves, and how long its neighbour's does."""

import time

from bench.measure import Figures
from bench.rig import Daemon, Rig
from ttrpc.api import task
from ttrpc.blocking import BlockingClient

SIZES = {"calls": 300}
BETWEEN_S = 0.005  # a client's questions, not a load of their own

MISDEEDS = {
    "flood": "yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "empty_lines": "yes ''",
    "no_line_end": "cat /dev/zero",
    "reopen": "while :; do echo x >/dev/stdout; echo y >/dev/stderr; done",
    "forks": "while :; do (:) & (:) & (:) & wait; done",
}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """The longest and the 99th percentile of Task.State, per misdeed; of the peer, `ctr run -d` keeps no output."""
    figures: Figures = {}
    for side in (ours, peer):
        side.run("neighbour")
    worst = {"ours": 0.0, "peer": 0.0}
    for misdeed, script in MISDEEDS.items():
        for side, name in ((ours, "ours"), (peer, "peer")):
            side.run(misdeed, "/bin/sh", "-c", script)
            for whose in (misdeed, "neighbour"):
                answers = sorted(ask(side, whose, sizes["calls"]))
                what = misdeed if whose == misdeed else f"{misdeed}_neighbour"
                figures[f"{what}_{name}_max_ms"] = answers[-1]
                figures[f"{what}_{name}_p99_ms"] = answers[len(answers) * 99 // 100]
                worst[name] = max(worst[name], answers[-1])
            side.remove(misdeed)
            side.made.remove(misdeed)
    for name, value in worst.items():
        figures[f"worst_{name}_max_ms"] = value
    return figures


def ask(side: Daemon, container: str, calls: int) -> list[float]:
    """Milliseconds of each call."""
    request = task.StateRequest(id=container)
    found = []
    with BlockingClient.connect(side.shim_socket(container)) as client:
        for _ in range(calls):
            began = time.perf_counter()
            client.call("containerd.task.v2.Task", "State", request, timeout_s=30)
            found.append((time.perf_counter() - began) * 1e3)
            time.sleep(BETWEEN_S)
    return found

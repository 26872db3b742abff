"""Calls per second of one shim: our server and the Go one, asked by the same client, one call at a time."""

import time

from bench.measure import Figures, compare, in_turn
from bench.rig import Daemon, Rig
from ttrpc.api import task
from ttrpc.blocking import BlockingClient

SIZES = {"rounds": 30, "calls": 200}


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """Time per Task.State call in batches. The client's own share is the same on both sides and is included."""
    for side in (ours, peer):
        side.run("rps")
    calls = sizes["calls"]
    request = task.StateRequest(id="rps")
    with (
        BlockingClient.connect(ours.shim_socket("rps")) as to_ours,
        BlockingClient.connect(peer.shim_socket("rps")) as to_peer,
    ):

        def batch(client: BlockingClient) -> float:
            started = time.perf_counter()
            for _ in range(calls):
                client.call("containerd.task.v2.Task", "State", request, timeout_s=10)
            return (time.perf_counter() - started) / calls * 1e6

        figures = compare(
            "state_call", "us", *in_turn(sizes["rounds"], lambda _: batch(to_ours), lambda _: batch(to_peer))
        )
    figures["state_calls_per_s_ours"] = 1e6 / figures["state_call_ours_us"]
    figures["state_calls_per_s_peer"] = 1e6 / figures["state_call_peer_us"]
    return figures

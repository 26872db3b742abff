"""From a container's death to the daemon's event about it, as a subscriber of each daemon sees it."""

import json
import os
import queue
import signal
import subprocess
import threading
import time

from bench.measure import Figures, compare, in_turn, percentile
from bench.ours import Shimd
from bench.rig import Daemon, Rig
from ttrpc.api import events, shimd
from ttrpc.errors import DeadlineExceeded

SIZES = {"rounds": 100}
EVENT_DEADLINE_S = 10.0

Seen = queue.Queue[tuple[str, float]]


def measure(rig: Rig, ours: Daemon, peer: Daemon, sizes: dict[str, int]) -> Figures:
    """As a subscriber of each daemon sees it."""
    return exit_events("exit_event", ours, peer, sizes["rounds"])


def exit_events(name: str, ours: Daemon, peer: Daemon, rounds: int) -> Figures:
    """Each round SIGKILLs the init process of one container per side from outside and waits for the exit event."""
    with Subscription(ours) as from_ours, Subscription(peer) as from_peer:
        queues = {ours: from_ours, peer: from_peer}
        # Started after the subscriptions were asked for, so these are in force when the first one dies.
        for number in range(rounds):
            ours.run(f"exit{number}")
            peer.run(f"exit{number}")
        pids = {side: side.running() for side in (ours, peer)}

        def kill(side: Daemon, number: int) -> float:
            ended = f"exit{number}"
            started = time.perf_counter()
            os.kill(pids[side][ended], signal.SIGKILL)
            while True:
                container, at = queues[side].get(timeout=EVENT_DEADLINE_S)
                if container == ended:
                    return (at - started) * 1000

        pairs = in_turn(rounds, lambda n: kill(ours, n), lambda n: kill(peer, n))
    figures = compare(name, "ms", *pairs)
    figures[f"{name}_ours_p99_ms"] = percentile(pairs[0], 99)
    figures[f"{name}_peer_p99_ms"] = percentile(pairs[1], 99)
    return figures


class Subscription:
    """Exit events of one daemon, each with the moment it arrived. Owns the thread and the connection or process."""

    def __init__(self, side: Daemon) -> None:
        self.side = side
        self.seen: Seen = queue.Queue()

    def __enter__(self) -> Seen:
        if isinstance(self.side, Shimd):
            self._follow_ours(self.side)
        else:
            self._follow_ctr(self.side)
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.thread.join()

    def _follow_ours(self, side: Shimd) -> None:
        from ttrpc.blocking import BlockingClient

        client = BlockingClient.connect(side.socket_path)
        request = shimd.EventsRequest(follow=True, from_now=True, filters=["topic==/tasks/exit"])
        stream = client.open_stream("shimd.v1.Shimd", "Events", request, metadata=side.metadata)
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                try:
                    record = stream.receive(timeout_s=0.5)
                except DeadlineExceeded:
                    continue
                if record is None:
                    break
                exited = events.TaskExit.FromString(record.event.value)
                self.seen.put((exited.container_id, time.perf_counter()))
            client.close()

        self.stop = ended.set
        self.thread = threading.Thread(target=read)
        self.thread.start()

    def _follow_ctr(self, side: Daemon) -> None:
        process = subprocess.Popen(side.client("events"), stdout=subprocess.PIPE, text=True)

        def read() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    at = time.perf_counter()
                    _, found, rest = line.partition("/tasks/exit ")
                    if found:
                        self.seen.put((json.loads(rest)["container_id"], at))
            process.wait()

        self.stop = process.terminate
        self.thread = threading.Thread(target=read)
        self.thread.start()

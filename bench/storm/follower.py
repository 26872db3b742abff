"""A subscriber that comes back with its cursor whenever it was cut, and remembers what was told of whom."""

import threading
import time
from collections import defaultdict

from bench.ours import Shimd
from bench.storm.asking import SHIMD
from ttrpc.api import events, shim, shimd
from ttrpc.errors import DeadlineExceeded, TtrpcError


class Follower:
    """Owns its thread. Reads all events once each: its cursor is the store's own number."""

    def __init__(self, daemon: Shimd) -> None:
        self.daemon = daemon
        self.cursor = 0
        self.count = 0
        self.topics: dict[str, list[tuple[str, str, str]]] = defaultdict(list)  # container → (topic, exec, incarnation)
        self.exits: dict[tuple[str, str], list[shim.ExitRecord]] = defaultdict(list)
        self.faults: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.is_set():
            try:
                with self.daemon.api() as client:
                    request = shimd.EventsRequest(after_seq=self.cursor, follow=True)
                    stream = client.open_stream(SHIMD, "Events", request, metadata=self.daemon.metadata)
                    while not self._over.is_set():
                        try:
                            record = stream.receive(timeout_s=0.5)
                        except DeadlineExceeded:
                            continue
                        if record is None:
                            break
                        self._take(record)
            except (OSError, TtrpcError):
                self._over.wait(0.05)  # the daemon is down

    def _take(self, record: "shimd.EventRecord") -> None:
        if record.gap or record.topic == "/shimd/journal-gap":
            self.faults.append(f"a gap before event {record.seq}")
            return
        if record.seq <= self.cursor:
            self.faults.append(f"event {record.seq} told after {self.cursor}")
        self.cursor = record.seq
        self.count += 1
        if not record.topic.startswith("/tasks/"):
            return
        name = record.event.type_url.rpartition(".")[2]
        event = getattr(events, name).FromString(record.event.value)
        exec_id = getattr(event, "exec_id", "")
        if name == "TaskExit" and event.id != event.container_id:
            exec_id = event.id
        if record.HasField("exit"):
            self.exits[event.container_id, exec_id].append(record.exit)
        self.topics[event.container_id].append((record.topic, exec_id, record.exit.incarnation))

    def wait_for(self, container: str, topic: str, deadline_s: float) -> bool:
        """Whether this was told of a container's own task, now or before the deadline."""
        ends_at = time.monotonic() + deadline_s
        while not any(told[:2] == (topic, "") for told in tuple(self.topics.get(container, ()))):
            if time.monotonic() > ends_at:
                return False
            time.sleep(0.05)
        return True

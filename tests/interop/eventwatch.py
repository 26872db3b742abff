"""What a subscriber of containerd's events is told, as short lines: `exit c1/e1 = 3`."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.containerdbox import Client, ContainerdBox
from tests.support.waiting import wait_until

SETTLE_S = 10.0
LINE = re.compile(r"^\S+ \S+ \S+ \S+ (?P<namespace>\S+) (?P<topic>/\S+) (?P<event>\{.*\})$")


class EventWatch:
    """Owns: a `ctr events` client. A subscriber has no past: what happens while none is there is not seen."""

    def __init__(self, box: ContainerdBox) -> None:
        self._box = box
        self._before: list[tuple[str, dict[str, Any]]] = []  # seen by clients of a daemon that was killed since
        self._probes = 0
        self._client: Client | None = None
        self.subscribe()

    def subscribe(self) -> None:
        """(Re)connect, after the daemon was restarted. Blocks: until events are known to arrive."""
        if self._client is not None:
            self._before = self._read()
            self._client.close()
        self._client = self._box.ctr_open("events")
        self.drain()

    def drain(self) -> None:
        """Wait until whatever containerd has broadcast so far was seen: events keep their order."""
        name = f"probe-{id(self):x}"

        def is_seen() -> bool:
            self._probes += 1
            self._box.ctr("namespaces", "create", f"{name}-{self._probes}")
            self._box.ctr("namespaces", "remove", f"{name}-{self._probes}")
            return any(event.get("name") == f"{name}-{self._probes}" for _, event in self._read())

        wait_until(is_seen, deadline_s=SETTLE_S, what="the subscriber to hear of a new namespace")

    def wait_for(self, line: str, count: int = 1) -> None:
        """Wait until an event came, such as `exit c1 = 137`."""
        seen: list[str] = []

        def is_there() -> bool:
            seen[:] = self.lines()
            return seen.count(line) >= count

        with contextlib.suppress(AssertionError):
            wait_until(is_there, deadline_s=SETTLE_S, what=line)
        assert is_there(), f"no event {line!r} within {SETTLE_S:g} s among {seen}"

    def seen(self, order: str) -> list[str]:
        """All task events, in the order told; `by process`: each process's own order, for what runs in parallel."""
        self.drain()
        lines = self.lines()
        if order == "by process":
            lines.sort(key=lambda line: line.split()[1])  # stable
        return lines

    def lines(self) -> list[str]:
        return [line for topic, event in self._read() if (line := told(topic, event))]

    def _read(self) -> list[tuple[str, dict[str, Any]]]:
        return self._before + list(self._parse())

    def _parse(self) -> Iterator[tuple[str, dict[str, Any]]]:
        assert self._client is not None
        for line in self._client.out.decode().splitlines():
            match = LINE.match(line)
            if match is not None:
                yield match["topic"], json.loads(match["event"])

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def told(topic: str, event: dict[str, Any]) -> str:
    """A task event as a line; empty for events that are not the shim's."""
    if not topic.startswith("/tasks/"):
        return ""
    what = topic.removeprefix("/tasks/")
    container = event.get("container_id", "?")
    process = event.get("exec_id") or event.get("id") or container
    who = container if process == container else f"{container}/{process}"
    line = f"{what} {who}"
    if what in ("exit", "delete"):
        line += f" = {event.get('exit_status', 0)}"
    if what in ("create", "start", "exec-started", "exit") and not event.get("pid"):
        line += " without a pid"
    if what in ("exit", "delete") and str(event.get("exited_at", "0001")).startswith(
        ("0001", "1970", "<never>", "<1970>")
    ):
        line += " without a time"
    return line

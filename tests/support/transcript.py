"""What a recorder saw, call by call: readable, and comparable once pids, times and paths are taken out."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ttrpc.api import wkt
from ttrpc.api.descriptors import message_class

PID_FIELDS = ("pid", "shim_pid", "task_pid")
JSON_PREFIX = "types.containerd.io/"  # type URLs whose value is JSON, not protobuf
METRICS = "io.containerd.cgroups."  # numbers of the moment: only which groups are there can be compared


@dataclass
class Entry:
    """One thing that happened: a run of the shim's program, a call to the shim, or an event the shim forwarded.

    `order` numbers the entries by their beginning; `ended` is set once the answer is there.
    """

    order: int
    kind: str  # "exec" | "call" | "event"
    container: str
    name: str
    request: Any = None
    answer: Any = None
    error: str = ""
    ended: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        answer = f"! {self.error}" if self.error else f"→ {brief(self.answer)}" if self.ended else "… no answer"
        return f"{self.order:4} {self.kind:5} {self.container} {self.name} {brief(self.request)} {answer}"

    def plain(self, replace: Iterable[tuple[str, str]]) -> str:
        """The entry without its number, pids, times and paths: what two runs of one script have in common."""
        return normalised(str(self)[5:], replace)


def brief(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if value not in (None, {}) else "{}"


def normalised(text: str, replace: Iterable[tuple[str, str]] = ()) -> str:
    """Text without what differs between any two runs: hashes, fifo folders' numbers, and the given words."""
    for word, name in replace:
        text = text.replace(word, name)
    text = re.sub(r"/run/containerd/s/[0-9a-f]{64}", "<socket>", text)
    text = re.sub(r"<fifos>/\d+/", "<fifos>/<n>/", text)
    text = re.sub(r"usage: \d+", "usage: <n>", text)
    return re.sub(r"\.process\d+|process-?\d{6,}", "process<n>", text)


def values(message: Any) -> dict[str, Any]:
    """A message as plain values; pids and times only as being there or not, an Any as what is in it."""
    found: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name in PID_FIELDS:
            found[name] = "<pid>"
        elif hasattr(value, "items"):
            found[name] = {str(key): plain_value(item) for key, item in value.items()}
        elif hasattr(value, "append") or hasattr(value, "add"):
            found[name] = [plain_value(item) for item in value]
        else:
            found[name] = plain_value(value)
    return found


def plain_value(value: Any) -> Any:
    if not hasattr(value, "DESCRIPTOR"):
        return f"<{len(value)} bytes>" if isinstance(value, bytes) else value
    kind = value.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        return "<time>" if wkt.nanoseconds(value) is not None else "<never>" if value.seconds else "<1970>"
    if kind == "google.protobuf.Any":
        return unpacked(value)
    return values(value)


def unpacked(packed: Any) -> dict[str, Any]:
    """What an Any holds, under its type URL."""
    url: str = packed.type_url
    if url.startswith(JSON_PREFIX):
        return {url: json.loads(packed.value)}
    try:
        inside = message_class(url)
    except KeyError:
        return {url: f"<{len(packed.value)} bytes>"}
    message = inside()
    message.ParseFromString(packed.value)
    if url.startswith(METRICS):
        return {url: sorted(descriptor.name for descriptor, _ in message.ListFields())}
    return {url: values(message)}

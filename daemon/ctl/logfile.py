"""A container's log read from its files, for when there is no shim to ask: between two runs, or after its death."""

import json
import os
import time
from collections import deque

from daemon.ctl.units import parse_moment
from ttrpc.api import shim, wkt
from ttrpc.api.logplace import is_file_of, log_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

FOLLOW_S = 0.2  # between two looks at a file that grows
_STREAMS = {"stdout": shim.LOG_STREAM_STDOUT, "stderr": shim.LOG_STREAM_STDERR}


def files_of(path: str) -> list[str]:
    """The log and the rotated files before it, oldest first. Source: SHIM.md, logs."""
    found, age = [], 0
    while os.path.exists(path if age == 0 else f"{path}.{age}"):
        found.append(path if age == 0 else f"{path}.{age}")
        age += 1
    return found[::-1]


def read_log(path: str, request: "shim.LogsRequest", *, is_json: bool) -> "Iterator[shim.LogRecord]":
    """What the shim's Logs would stream of these files now; it never follows."""
    if request.HasField("resume"):
        yield from _within(_records(path, is_json=is_json, place=request.resume), request, is_placed=True)
        return
    kept: Iterator[shim.LogRecord] | deque[shim.LogRecord] = _within(_records(path, is_json=is_json), request)
    if request.HasField("tail"):
        kept = deque(kept, maxlen=request.tail)
    yield from kept


def follow_log(
    path: str, request: "shim.LogsRequest", is_over: "Callable[[], bool]", *, pause_s: float = FOLLOW_S
) -> "Iterator[shim.LogRecord]":
    """The lines of a raw log, the last ``tail`` of those there are, then each new one, until nobody will write more."""
    is_last, rest = False, b""
    with _opened(path, is_over, pause_s) as file:
        lines: Iterable[bytes] = file.readlines()
        if request.HasField("tail"):
            lines = deque(lines, maxlen=request.tail)
        while True:
            for line in lines:
                rest += line
                if rest.endswith(b"\n"):
                    yield shim.LogRecord(data=rest)
                    rest = b""
            lines = file.readlines()
            if lines:
                continue
            if is_last:
                break
            is_last = is_over()  # then once more: what it wrote last may have come meanwhile
            if not is_last:
                time.sleep(pause_s)
    if rest:
        yield shim.LogRecord(data=rest)


def _opened(path: str, is_over: "Callable[[], bool]", pause_s: float) -> "IO[bytes]":
    """The file, once the shim has made it."""
    while True:
        try:
            return open(path, "rb")
        except FileNotFoundError:
            if is_over():
                return open(os.devnull, "rb")
        time.sleep(pause_s)


def _records(path: str, *, is_json: bool, place: "shim.LogPlace | None" = None) -> "Iterator[shim.LogRecord]":
    """All of it, or what follows the place; where that is gone, what there is."""
    names = files_of(path)
    begin = 0
    for index, name in enumerate(names if place is not None else ()):
        with open(name, "rb") as file:
            if place is not None and is_file_of(file.fileno(), place):
                del names[:index]
                begin = place.offset
                break
    for name in names:
        with open(name, "rb") as file:
            file.seek(begin)
            end, begin, told = begin, 0, False
            for line in file:
                end += len(line)
                made = _record(line) if is_json else shim.LogRecord(data=line)
                made.end = end
                if not told:
                    made.file.CopyFrom(log_place(file.fileno(), end))
                    told = True
                yield made


def _record(line: bytes) -> "shim.LogRecord":
    """A line that is no record (a foreign hand, a torn write) is shown as it is."""
    try:
        fields = json.loads(line)
        made = shim.LogRecord(
            data=fields["log"].encode(), stream=_STREAMS.get(fields["stream"], shim.LOG_STREAM_UNSPECIFIED)
        )
        made.at.CopyFrom(wkt.timestamp(parse_moment(fields["time"], 0)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return shim.LogRecord(data=line)
    return made


def _within(
    records: "Iterator[shim.LogRecord]", request: "shim.LogsRequest", *, is_placed: bool = False
) -> "Iterator[shim.LogRecord]":
    since = wkt.nanoseconds(request.since) if request.HasField("since") and not is_placed else None
    until = wkt.nanoseconds(request.until) if request.HasField("until") else None
    for record in records:
        at_ns = wkt.nanoseconds(record.at)
        if at_ns is not None and ((since is not None and at_ns < since) or (until is not None and at_ns > until)):
            continue
        yield record

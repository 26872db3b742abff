"""`shimctl logs`: the log as its shim keeps it, asked of the shim itself so that following survives the daemon."""

import argparse
import os
import sys
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError, DaemonGone, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.ctl.client import Daemon
    from ttrpc.api import containers, shim, shimd

SHIM = "shimd.shim.v1.Shim"
SHIM_PATIENCE_S = 10.0
RETRY_S = 0.05
DECISION_S = 2.0
LINES_MAX = (1 << 63) - 1  # more than any log has


def request_of(args: argparse.Namespace, now_ns: int) -> "shim.LogsRequest":
    """The options as the shim's request.

    Raises: UsageError for a moment that is none.
    """
    from daemon.ctl.units import parse_moment
    from ttrpc.api import shim, wkt

    request = shim.LogsRequest(follow=args.follow)
    if args.tail is not None:
        request.tail = args.tail
    for name, text in (("since", args.since), ("until", args.until)):
        if text:
            try:
                getattr(request, name).CopyFrom(wkt.timestamp(parse_moment(text, now_ns)))
            except ValueError as error:
                raise UsageError(f"--{name}: {error}") from None
    return request


class Cursor:
    """How far a log has been told, so that asking again repeats nothing: by the place the shim says with each record.

    A shim that says none is asked by time, and how many records had that time; a raw log of such a one, which keeps no
    times, is asked once.
    """

    def __init__(self, request: "shim.LogsRequest") -> None:
        self._request = request
        self._place: shim.LogPlace | None = None
        self._last_ns: int | None = None
        self._told = 0  # records with the last time: one write of the container may make several
        self._skip = 0
        self._is_asked_by_place = False

    @property
    def may_go_on(self) -> bool:
        """Whether a second request would be understood."""
        has_place = self._place is not None or self._last_ns is not None
        return self._request.follow and (has_place or self._told == 0)

    def request(self) -> "shim.LogsRequest":
        """What to ask for now."""
        from ttrpc.api import shim, wkt

        again = shim.LogsRequest()
        again.CopyFrom(self._request)
        again.places = True
        self._skip, self._is_asked_by_place = 0, self._place is not None
        if self._place is None and self._last_ns is None:
            return again
        again.ClearField("tail")
        if self._place is not None:
            again.resume.CopyFrom(self._place)
        if self._last_ns is not None:
            self._skip = self._told
            again.since.CopyFrom(wkt.timestamp(self._last_ns))
        return again

    def is_new(self, record: "shim.LogRecord") -> bool:
        """Whether a record was not told yet; then it is now.

        Raises: ConnectionLost when the shim does not know places, and has begun at the beginning.
        """
        from ttrpc.api import wkt
        from ttrpc.errors import ConnectionLost

        at_ns = wkt.nanoseconds(record.at)
        if record.HasField("file"):
            self._skip = 0
        elif self._is_asked_by_place and self._last_ns is None:
            raise ConnectionLost("the shim was replaced by one that cannot go on in the middle of a raw log")
        self._is_asked_by_place = False
        if record.HasField("file"):
            self._place = record.file
        elif record.end and self._place is not None:
            self._place.offset = record.end
        if self._skip and at_ns == self._last_ns:
            self._skip -= 1
            return False
        self._skip = 0
        self._told = self._told + 1 if at_ns == self._last_ns else 1
        self._last_ns = at_ns
        return True


def follow_shim(address: str, cursor: Cursor, metadata: dict[str, str]) -> "Iterator[shim.LogRecord]":
    """Records of a shim's log. Following goes on when the shim was replaced.

    Raises: StatusError; ConnectionLost or OSError when the shim is not there (any more).
    """
    from ttrpc.blocking import BlockingClient
    from ttrpc.errors import ConnectionLost

    lost_at: float | None = None
    while True:
        try:
            with BlockingClient.connect(address) as client:
                for record in client.open_stream(SHIM, "Logs", cursor.request(), metadata=metadata):
                    lost_at = None
                    if cursor.is_new(record):
                        yield record
                return
        except (ConnectionLost, ConnectionError, FileNotFoundError):
            lost_at = lost_at if lost_at is not None else time.monotonic()
            if not cursor.may_go_on or time.monotonic() - lost_at > SHIM_PATIENCE_S:
                raise
            time.sleep(RETRY_S)


def records_of(daemon: "Daemon", container_id: str, request: "shim.LogsRequest") -> "Iterator[shim.LogRecord]":
    """The container's log; when following, that of the runs its restart policy adds, too."""
    from daemon.ctl import compose, foreground, resume

    record = resume.require_container(daemon, container_id)
    if compose.is_foreign(record.runtime):
        yield from _of_file(daemon, record, request)
        return
    cursor = Cursor(request)
    while True:
        found = foreground.find_shim(daemon, record.id)
        yield from _one_run(daemon, record, found, cursor)
        if not cursor.may_go_on or not _runs_again(daemon, record, found.incarnation if found is not None else ""):
            return


def _of_file(
    daemon: "Daemon", record: "containers.Container", request: "shim.LogsRequest"
) -> "Iterator[shim.LogRecord]":
    """The file that a shim which is not ours appends to; followed until the container has ended."""
    from daemon.ctl import exits, foreground, labels
    from daemon.ctl.logfile import follow_log, read_log

    stdio = labels.stdio_of(record.labels)
    if stdio is None or not stdio.log_path:
        raise CtlError(f"{record.id} keeps no log", hint="run it with -d and without --log-driver none")
    if not request.follow:
        yield from read_log(stdio.log_path, request, is_json=False)
        return

    def is_over() -> bool:
        try:
            found = foreground.find_shim(daemon, record.id)
            present = found.incarnation if found is not None else ""
            return exits.is_over(daemon, record.id) and not _runs_again(daemon, record, present)
        except DaemonGone:  # it will be back; the container writes on
            return False

    yield from follow_log(stdio.log_path, request, is_over)


def _one_run(
    daemon: "Daemon", record: "containers.Container", found: "shimd.ShimRecord | None", cursor: Cursor
) -> "Iterator[shim.LogRecord]":
    """From the shim, or when there is none to ask, from the files it has left."""
    from daemon.ctl import labels
    from daemon.ctl.logfile import read_log
    from ttrpc.errors import ConnectionLost, StatusError
    from ttrpc.status import Code

    stdio = labels.stdio_of(record.labels)
    path = stdio.log_path if stdio is not None else ""
    try:
        if found is not None and found.address and (os.path.exists(found.address.removeprefix("unix://")) or not path):
            yield from follow_shim(found.address, cursor, daemon.metadata)
            return
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise
    except (OSError, ConnectionLost):
        if not path:
            raise
    if not path or stdio is None:
        raise CtlError(f"{record.id} keeps no log", hint="run it with --log-driver json-file or raw")
    for each in read_log(path, cursor.request(), is_json="format=raw" not in stdio.stdout):
        if cursor.is_new(each):
            yield each


def _runs_again(daemon: "Daemon", record: "containers.Container", incarnation: str) -> bool:
    """Whether there has been, is, or is due another run than this one. After an exit the daemon needs to decide.

    Blocks: at most `DECISION_S` for a container with a restart policy.
    """
    from daemon.ctl import foreground, labels

    until = time.monotonic() + DECISION_S
    while labels.has_restart_policy(record.labels):
        found = foreground.find_shim(daemon, record.id)
        if found is not None and found.incarnation not in ("", incarnation):
            return True
        if found is not None and found.HasField("next_restart_at"):
            until = time.monotonic() + DECISION_S
        elif time.monotonic() >= until:
            return False
        time.sleep(RETRY_S)
    return False


def write_records(
    records: "Iterator[shim.LogRecord]", *, timestamps: bool, stream: str = "both", as_json: bool = False
) -> None:
    """Write records to our stdout and stderr, each to the stream it came from.

    Raises: BrokenPipeError when nobody reads any more.
    """
    from daemon.ctl.units import rfc3339
    from ttrpc.api import shim, wkt

    # Both in order on two streams: nothing may wait in a buffer of ours.
    out, err = sys.stdout.buffer, sys.stderr.buffer
    for record in records:
        is_error = record.stream == shim.LOG_STREAM_STDERR
        if stream != "both" and is_error != (stream == "stderr"):
            continue
        stamp = rfc3339(wkt.nanoseconds(record.at))
        if as_json:
            out.write(_json_line(stamp, record) + b"\n")
            out.flush()
            continue
        target = err if is_error else out
        target.write((stamp.encode() + b" " if timestamps and stamp else b"") + record.data)
        target.flush()


def _json_line(stamp: str, record: "shim.LogRecord") -> bytes:
    import json

    from ttrpc.api import shim

    name = {shim.LOG_STREAM_STDOUT: "stdout", shim.LOG_STREAM_STDERR: "stderr"}.get(record.stream, "")
    return json.dumps({"log": record.data.decode("utf-8", "replace"), "stream": name, "time": stamp}).encode()


def logs(args: argparse.Namespace) -> int:
    """`shimctl logs`."""
    from daemon.ctl.client import open_daemon

    request = request_of(args, time.time_ns())
    with open_daemon(args) as daemon:
        records = records_of(daemon, args.id, request)
        write_records(records, timestamps=args.timestamps, stream=args.stream, as_json=args.json)
    return 0


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; write 100, or all")
    return min(int(text), LINES_MAX)


def logs_options(parser: argparse.ArgumentParser) -> None:
    """The options of logs, which `shim logs` takes as well."""
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is written from now on, until the end"
    )
    parser.add_argument("--tail", type=_lines, metavar="N", help="only the last N lines, or all (default)")
    parser.add_argument("--since", metavar="TIME", help="10m (ago), RFC 3339, or Unix seconds")
    parser.add_argument("--until", metavar="TIME", help="the same")
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="begin each line with its time (json-file logs)"
    )
    parser.add_argument("--stream", choices=("both", "stdout", "stderr"), default="both", help="only one of the two")
    parser.add_argument("--json", action="store_true", help="JSON lines: log, stream, time")


LOGS = Command(
    logs,
    description="""\
What a container has written, oldest first, from its log and the rotated files before it; stderr goes to our stderr.
Following asks the shim directly, so the daemon may be restarted meanwhile, and ends when the container does.
""",
    examples="""\
  shimctl logs --tail 20 -f web
  shimctl logs --since 10m --timestamps web
  shimctl logs --since 2026-11-24T05:00:00Z --until 2026-11-24T06:00:00Z web
""",
    options=logs_options,
)

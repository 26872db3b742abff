"""Structured logs: one line per record, text or JSON, with the fields of whatever is being done.

``bind(ns=…, id=…, call=…)`` adds fields to every record of the current task and of the tasks it starts; ``extra``
of a single logging call adds to that record alone.
"""

import contextlib
import contextvars
import datetime
import json
import logging
import os
import select
import sys
from collections.abc import Iterator, Mapping

_fields: contextvars.ContextVar[tuple[tuple[str, object], ...]] = contextvars.ContextVar("log_fields", default=())

# What every LogRecord has; anything else on one came with `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
PATIENCE_MS = 100
LEVELS = ("debug", "info", "warning", "error")
# sd-daemon(3): how a line tells the journal its priority. Those of syslog(3).
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


@contextlib.contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add fields to all records within. Nested fields of one name replace outer ones."""
    merged = dict(_fields.get())
    merged.update(fields)
    token = _fields.set(tuple(merged.items()))
    try:
        yield
    finally:
        _fields.reset(token)


@contextlib.contextmanager
def begin(**fields: object) -> Iterator[None]:
    """As `bind`, but for a task with a life of its own: what whoever started it was doing is not its business."""
    token = _fields.set(tuple(fields.items()))
    try:
        yield
    finally:
        _fields.reset(token)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(_fields.get())
    fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
    return fields


def _moment(record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, msg, the bound fields, and `error` for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line.update(_fields_of(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``time LEVEL message key=value …``; a traceback follows on lines of its own."""

    def fields(self, record: logging.LogRecord) -> str:
        return "".join(f" {key}={_quoted(value)}" for key, value in _fields_of(record).items())

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_moment(record)} {record.levelname:<7} {record.getMessage()}{self.fields(record)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JournalFormatter(TextFormatter):
    """For systemd's journal, which has time and priority of its own: ``message key=value …``, every line prefixed."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage() + self.fields(record)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"<{_PRIORITIES.get(record.levelname.lower(), 6)}>"
        return "\n".join(prefix + line for line in text.splitlines() or [""])


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text


class UnreadHandler(logging.Handler):
    """Writes to a descriptor, and never waits for long for its reader: what nobody reads is counted and lost.

    A write to a full pipe or socket would stop the daemon until somebody reads on: a paged log, a journal that hangs.
    Borrows the descriptor. Blocks: PATIENCE_MS, once until it is read again. Source: pipe(7), PIPE_BUF.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._is_torn = False  # a line was begun and not ended
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._has_room(0 if self._lost else PATIENCE_MS):
                self._lost += 1
                return
            if self._lost:
                lost, self._lost = self._lost, 0
                said = {"msg": "nobody read this log, lines of it are lost", "lost": lost}
                self._write(self.format(logging.makeLogRecord({**said, "levelname": "WARNING", "name": __name__})))
            self._write(self.format(record))
        except Exception:  # noqa: BLE001 - logging's own way out
            self.handleError(record)

    def _write(self, line: str) -> None:
        data = (b"\n" if self._is_torn else b"") + f"{line}\n".encode("utf-8", "backslashreplace")
        self._is_torn = False
        for at in range(0, len(data), select.PIPE_BUF):  # so much goes at once where there is room at all
            if at and not self._has_room(PATIENCE_MS):
                self._lost += 1
                self._is_torn = True
                return
            os.write(self._fd, data[at : at + select.PIPE_BUF])

    def _has_room(self, wait_ms: int) -> bool:
        return bool(self._poll.poll(wait_ms))


def is_journal(environ: Mapping[str, str], fd: int = 2) -> bool:
    """Whether our standard error is the stream systemd opened to its journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def journal_prefix(level: str, environ: Mapping[str, str]) -> str:
    """What a line of this level begins with where the journal reads it; else nothing."""
    return f"<{_PRIORITIES[level]}>" if is_journal(environ) else ""


def set_up(level: str, form: str, environ: Mapping[str, str]) -> None:
    """Send all records from ``level`` up to standard error as ``text`` (as the journal wants it there) or ``json``."""
    handler = UnreadHandler(sys.stderr.fileno())
    text = JournalFormatter() if is_journal(environ) else TextFormatter()
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a full disk under our own log must not become a second error

"""The one SQLite file: a thread that writes, and a connection the event loop reads through.

Writes queue up while the disk is busy and are committed together: one flush for all that waited for it.
Reads are point reads and bounded pages (about 4 µs each): in WAL mode no writer ever blocks them, so they run on the
event loop. Durability is SQLite's ``synchronous=FULL``: what `write` returned from survives kill -9 and a power cut.
"""

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import trio

from daemon.errors import StoreFailed, StoreFull
from daemon.store import schema

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

# More would make the first of a batch wait for the last; at this size the flush no longer dominates.
MAX_BATCH = 256
BUSY_TIMEOUT_MS = 5000  # someone else's `sqlite3 shimd.db` may hold the write lock


class _Job:
    """One unit of writing on its way through the thread. `settled` is set on the event loop."""

    __slots__ = ("error", "settled", "token", "value", "work")

    def __init__(self, work: Work[Any], token: trio.lowlevel.TrioToken) -> None:
        self.work = work
        self.token = token
        self.settled = trio.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        try:
            self.token.run_sync_soon(self.settled.set)
        except trio.RunFinishedError:
            pass  # whoever waited is gone with its event loop


class Database:
    """Owns the file: both connections and the writer thread.

    Blocks: opening migrates; `write` until its commit is on disk. Nothing else.
    """

    def __init__(self, path: str, *, on_commit: Callable[[], None] = lambda: None) -> None:
        """Open, creating and migrating as needed. `on_commit` is called on the event loop after each commit.

        Raises: StoreFull, StoreFailed, schema.NewerSchema.
        """
        self.path = path
        self.on_commit = on_commit
        with self._translated():
            self._writer = _connect(path)
            schema.migrate(self._writer, path)
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()
        self._closed = False

    @property
    def reader(self) -> sqlite3.Connection:
        """For reads on the event loop. Sees every commit that `write` has returned from."""
        return self._reader

    def read(self, work: Work[T]) -> T:
        """Read on the event loop, all of it from one state of the store; keep it to point reads and bounded pages.

        Raises: StoreFailed.
        """
        with self._translated():
            self._reader.execute("BEGIN")
            try:
                return work(self._reader)
            finally:
                if self._reader.in_transaction:  # a failing disk may have ended it
                    self._reader.execute("COMMIT")

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction of the writer thread and return its result once that is on disk.

        What `work` raises is raised here, and nothing it did stays. It must not block on anything but the store.
        Blocks: until the commit; not cancellable once queued, so that its outcome is never unknown.
        Raises: StoreFull, StoreFailed; whatever `work` raises.
        """
        assert not self._closed, "the store is closed"
        job = _Job(work, trio.lowlevel.current_trio_token())
        self._jobs.put(job)
        with trio.CancelScope(shield=True):
            await job.settled.wait()
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    def close(self) -> None:
        """Finish what is queued and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        self._reader.close()
        self._writer.close()  # last connection: folds the WAL into the file

    # --- the writer thread

    def _run(self) -> None:
        while True:
            first = self._jobs.get()
            if first is None:
                return
            batch, stop = [first], False
            while len(batch) < MAX_BATCH and not stop:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    stop = True
                else:
                    batch.append(job)
            self._commit_together(batch)
            if stop:
                return

    def _commit_together(self, batch: list[_Job]) -> None:
        """One transaction for the batch; a job that fails takes back only its own part, a failing disk all of them."""
        try:
            with self._translated():
                self._writer.execute("BEGIN IMMEDIATE")
                for job in batch:
                    self._run_one(job)
                self._writer.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - handed to those who wait
            self._roll_back()
            for job in batch:
                job.error = job.error or error
        else:
            self._announce(batch[0].token)
        for job in batch:
            job.settle()

    def _run_one(self, job: _Job) -> None:
        self._writer.execute("SAVEPOINT job")
        try:
            job.value = job.work(self._writer)
        except sqlite3.IntegrityError as error:
            job.error = error
        except sqlite3.Error:
            raise  # the disk's failure, not the job's: SQLite may have rolled all of it back
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits
            job.error = error
        if job.error is not None:
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    def _roll_back(self) -> None:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # rolled back by SQLite itself; the next BEGIN tells if not

    def _announce(self, token: trio.lowlevel.TrioToken) -> None:
        try:
            token.run_sync_soon(self.on_commit, idempotent=True)
        except trio.RunFinishedError:
            pass

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as ours: this is the border."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            if _is_full(error, self.path):
                raise StoreFull(self.path) from None
            raise StoreFailed(self.path, str(error)) from error


def _connect(path: str) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end where this module says so.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    os.chmod(path, 0o600)  # specs hold environments, and those hold secrets
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 4194304")  # give the WAL's space back after a burst
    return connection


def _is_full(error: sqlite3.Error, path: str) -> bool:
    """Whether it is room that lacks. SQLite says SQLITE_FULL for ENOSPC in a write, but an I/O error elsewhere."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        room = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)

"""The store: what it returned from is there after any death, and what it refused left no trace."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon.errors import StoreFailed, StoreFull
from daemon.shims import removal
from daemon.store import containers, events, schema, tasks
from daemon.store.database import Database
from daemon.store.records import CREATED, CREATING, DELETING, STOPPED, NewEvent, NewExit, TaskRow
from ttrpc.api import containers as api
from ttrpc.api import events as told_events
from ttrpc.api import task
from ttrpc.status import Code


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(str(tmp_path / "shimd.db"))
    yield made
    made.close()


def a_task(container_id: str = "c1", **changes: object) -> TaskRow:
    values: dict[str, object] = {
        "ns": "default",
        "id": container_id,
        "state": CREATING,
        "runtime": "io.containerd.shimd.v2",
        "shim_path": "/bin/shim",
        "bundle": "/b",
        "boot_id": "boot",
        "request": b"\x01",
        "created_at_ns": 5,
        **changes,
    }
    return TaskRow(**values)  # type: ignore[arg-type]


def an_event(topic: str = "/tasks/start", at_ns: int = 1, shim_seq: int | None = None) -> NewEvent:
    incarnation = "i1" if shim_seq is not None else None
    return NewEvent(at_ns, "default", topic, "t", b"v", None, incarnation, shim_seq)


# --- transactions


async def test_a_write_is_seen_by_readers_once_it_returned(database: Database) -> None:
    """Read your writes, through the other connection."""

    await database.write(lambda c: tasks.insert(c, a_task()))
    assert database.read(lambda c: tasks.get(c, "default", "c1")) == a_task()
    updated = await database.write(lambda c: tasks.update(c, "default", "c1", state=CREATED, pid=7))
    assert updated == a_task(state=CREATED, pid=7)
    await database.write(lambda c: tasks.delete(c, "default", "c1"))
    assert database.read(tasks.list_all) == []


async def test_a_failing_write_takes_back_only_itself(database: Database) -> None:
    """Committed together with others, but not tied to their fate."""
    outcomes: dict[str, object] = {}

    async def write(name: str, container_id: str, *, fail: bool) -> None:
        def work(connection: sqlite3.Connection) -> str:
            tasks.insert(connection, a_task(container_id))
            if fail:
                raise LookupError(name)
            return name

        try:
            outcomes[name] = await database.write(work)
        except LookupError as error:
            outcomes[name] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: write("good", "c1", fail=False))
        nursery.start_soon(lambda: write("bad", "c2", fail=True))
        nursery.start_soon(lambda: write("other", "c3", fail=False))
    assert [row.id for row in database.read(tasks.list_all)] == ["c1", "c3"]
    assert outcomes["good"] == "good"
    assert isinstance(outcomes["bad"], LookupError)
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(lambda c: tasks.insert(c, a_task("c1")))


async def test_waiting_writes_share_a_commit(database: Database) -> None:
    """Group commit: many writers at once cost few flushes."""
    commits = 0
    writers = 200

    def count() -> None:
        nonlocal commits
        commits += 1

    database.on_commit = count

    async with trio.open_nursery() as nursery:
        for number in range(writers):
            nursery.start_soon(database.write, lambda c, number=number: tasks.insert(c, a_task(f"c{number}")))
    await trio.testing.wait_all_tasks_blocked()
    assert len(database.read(tasks.list_all)) == writers
    assert 0 < commits < writers / 2


async def test_a_cancelled_writer_still_learns_its_outcome(database: Database) -> None:
    """A commit under way is never left in doubt."""

    with trio.CancelScope() as scope:
        scope.cancel()
        await database.write(lambda c: tasks.insert(c, a_task()))
    assert database.read(lambda c: tasks.get(c, "default", "c1")) is not None


# --- death


WRITER = """
import sys, trio
from daemon.store.database import Database
from daemon.store import events
from daemon.store.records import NewEvent
async def main():
    database = Database(sys.argv[1])
    for number in range(100000):
        await database.write(lambda c: events.append(c, NewEvent(number, "ns", "/a/b", "t", b"x" * 100)))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
trio.run(main)
"""


def test_kill_9_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """Every number the writer printed before SIGKILL is in the file, in order, without a hole."""
    path = str(tmp_path / "shimd.db")
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        confirmed = [int(writer.stdout.readline()) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    database = Database(path)
    stored = [event.at_ns for event in database.read(lambda c: events.page(c, 0, 1_000_000))]
    (verdict,) = database.reader.execute("PRAGMA integrity_check").fetchone()
    database.close()
    assert verdict == "ok"
    assert stored[: len(confirmed)] == confirmed
    assert len(stored) - len(confirmed) <= 1  # committed, but killed before it could say so


@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_harms_nothing(small_disk: Path) -> None:
    """ResourceExhausted while full, reads go on, and writes too once there is room again."""
    database = Database(str(small_disk / "shimd.db"))
    ballast = small_disk / "ballast"

    await database.write(lambda c: tasks.insert(c, a_task()))
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    stored, refusal = 0, None
    while refusal is None:
        try:
            await database.write(lambda c: events.append(c, NewEvent(1, "ns", "/a/b", "t", os.urandom(20000))))
            stored += 1
        except StoreFull as error:
            refusal = error
    assert refusal.code == Code.RESOURCE_EXHAUSTED
    assert "free some" in refusal.message
    assert database.read(lambda c: tasks.get(c, "default", "c1")) is not None
    assert len(database.read(lambda c: events.page(c, 0, 1000))) == stored
    ballast.unlink()
    await database.write(lambda c: events.append(c, an_event()))
    assert len(database.read(lambda c: events.page(c, 0, 1000))) == stored + 1
    (verdict,) = database.reader.execute("PRAGMA integrity_check").fetchone()
    database.close()
    assert verdict == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


# --- migrations


def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    """A downgrade says what to do, and the file stays as it was."""
    path = str(tmp_path / "shimd.db")
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 2}")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'oldest_reader'", (schema.VERSION + 1,))
    connection.close()
    before = Path(path).read_bytes()
    reason = f"schema {schema.VERSION + 2}, .* up to {schema.VERSION}: run a release that knows {schema.VERSION + 1} or"
    with pytest.raises(schema.NewerSchema, match=reason.replace("knows ", "knows schema ")):
        Database(path)
    assert Path(path).read_bytes() == before


def test_a_newer_schema_that_says_so_is_worked_with_and_kept(tmp_path: Path) -> None:
    """Its oldest reader is as old as we are: a downgrade without a copy."""
    path = str(tmp_path / "shimd.db")
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    Database(path).close()
    assert schema.examine(path) == schema.Found(schema.VERSION + 1, schema.oldest_reader())


def test_a_migration_that_cannot_be_followed_leaves_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release before can put it back, and then serves from it as if nothing had been."""
    path = str(tmp_path / "shimd.db")
    Database(path).close()
    version = schema.VERSION
    step = schema.Step("CREATE TABLE extra (x TEXT);", oldest_reader=version + 1)
    with monkeypatch.context() as later:
        later.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
        later.setattr(schema, "VERSION", version + 1)
        Database(path).close()
        assert schema.examine(path) == schema.Found(version + 1, version + 1)
        assert not schema.restore(path)
    with pytest.raises(schema.NewerSchema, match="restore the copy from before"):
        Database(path)
    assert schema.restore(path)
    assert schema.examine(path) == schema.Found(version, version)
    Database(path).close()
    assert not schema.restore(path)


def test_a_migration_happens_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails in its middle leaves the old schema, and the next start tries again."""
    path = str(tmp_path / "shimd.db")
    good = schema.MIGRATIONS
    bad = schema.Step("CREATE TABLE extra (x TEXT);\nCREATE TABLE extra (x TEXT);", oldest_reader=1)
    monkeypatch.setattr(schema, "MIGRATIONS", (*good, bad))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(StoreFailed, match="extra"):
        Database(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    step = schema.Step("CREATE TABLE extra (x TEXT);", oldest_reader=1)
    monkeypatch.setattr(schema, "MIGRATIONS", (*good, step))
    Database(path).close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Never overwrite what is not ours."""
    path = tmp_path / "shimd.db"
    path.write_bytes(b"something else entirely, long enough to be looked at" * 10)
    with pytest.raises(StoreFailed, match="not a database"):
        Database(str(path))


# --- events and exits


async def test_a_journal_record_is_stored_once_however_often_it_is_told(database: Database) -> None:
    """Delivered at least once, stored once; our own events have no such identity."""

    for expected in (True, False, False):
        assert await database.write(lambda c: events.append(c, an_event(shim_seq=4))) is expected
    for _ in range(2):
        assert await database.write(lambda c: events.append(c, an_event()))
    exit_found = NewExit("default", "c1", "i1", "", 4, b"r")
    assert await database.write(lambda c: events.record_exit(c, exit_found)) is True
    assert await database.write(lambda c: events.record_exit(c, exit_found)) is False
    assert len(database.read(lambda c: events.page(c, 0, 10))) == 3
    assert len(database.read(lambda c: events.list_exits(c, "default", "", None, 0))) == 1


async def test_a_delete_is_told_once_by_its_shim_or_else_by_us(database: Database) -> None:
    answer = task.DeleteResponse(pid=7, exit_status=3)

    def mark(connection: sqlite3.Connection, incarnation: str) -> TaskRow | None:
        row = a_task(incarnation, incarnation=incarnation, state=STOPPED)
        tasks.insert(connection, row)
        return removal.mark(connection, row, answer)

    await database.write(lambda c: events.append(c, an_event("/tasks/delete", shim_seq=4)))
    told = await database.write(lambda c: mark(c, "i1"))
    untold = await database.write(lambda c: mark(c, "i2"))

    assert told is not None
    assert untold is not None
    assert (told.state, untold.state) == (DELETING, DELETING)
    first, ours = database.read(lambda c: events.page(c, 0, 10))
    assert (first.topic, ours.topic) == ("/tasks/delete", "/tasks/delete")
    event = told_events.TaskDelete.FromString(ours.value)
    assert (event.container_id, event.pid, event.exit_status) == ("i2", 7, 3)


async def test_the_cursor_only_goes_forward(database: Database) -> None:
    """Two connections to one shim cannot set it back."""

    for seq in (5, 3):
        await database.write(lambda c, seq=seq: tasks.set_cursor(c, "i1", seq))
    assert database.read(lambda c: tasks.cursor(c, "i1")) == 5
    assert database.read(lambda c: tasks.cursor(c, "other")) == 0


async def test_pruning_takes_the_old_end_and_remembers_how_far(database: Database) -> None:
    """By count and by age; numbers are never used again, not even after all events went."""

    for at_ns in range(1, 11):
        await database.write(lambda c, at_ns=at_ns: events.append(c, an_event(at_ns=at_ns)))
    assert await database.write(lambda c: events.prune(c, keep_count=6, older_than_ns=0)) == 4
    assert database.read(events.pruned_through) == 4
    assert [event.seq for event in database.read(lambda c: events.page(c, 0, 100))] == [5, 6, 7, 8, 9, 10]
    assert await database.write(lambda c: events.prune(c, keep_count=0, older_than_ns=8)) == 3
    assert database.read(events.oldest_seq) == 8
    assert await database.write(lambda c: events.prune(c, keep_count=0, older_than_ns=99)) == 3
    assert database.read(events.newest_seq) == 10
    await database.write(lambda c: events.append(c, an_event()))
    assert [event.seq for event in database.read(lambda c: events.page(c, 0, 100))] == [11]


async def test_exits_of_a_living_task_are_not_pruned(database: Database) -> None:
    """Wait must find them; only those of deleted tasks go."""

    await database.write(lambda c: tasks.insert(c, a_task("alive", incarnation="i-alive")))
    for number, incarnation in enumerate(["i-alive", "i-old", "i-older", "i-new"]):
        found = NewExit("default", "c", incarnation, "", number, b"")
        await database.write(lambda c, found=found: events.record_exit(c, found))
    assert await database.write(lambda c: events.prune_exits(c, keep_count=1)) == 2
    left = database.read(lambda c: events.list_exits(c, "default", "", None, 0))
    assert [found.incarnation for found in left] == ["i-alive", "i-new"]


async def test_exits_of_execs_are_pruned_while_their_task_lives(database: Database) -> None:
    """A health check makes millions of them; init's own stays."""

    await database.write(lambda c: tasks.insert(c, a_task("alive", incarnation="i-alive")))
    for number, exec_id in enumerate(["", "check", "check", "check", "other"]):
        found = NewExit("default", "alive", "i-alive", exec_id, number, b"")
        await database.write(lambda c, found=found: events.record_exit(c, found))
    assert await database.write(lambda c: events.prune_exits(c, keep_count=2)) == 2
    left = database.read(lambda c: events.list_exits(c, "default", "", None, 0))
    assert [found.exec_id for found in left] == ["", "check", "other"]


async def test_current_exits_are_of_containers_on_record_and_the_newest_of_each_process(database: Database) -> None:
    """All that ever ended would fit no answer."""

    for container_id in ("a", "b"):
        await database.write(lambda c, name=container_id: containers.insert(c, "default", api.Container(id=name)))
    for number, (container_id, exec_id) in enumerate(
        [("gone", ""), ("a", ""), ("a", ""), ("a", "e"), ("a", "e"), ("b", "e"), ("gone", "e")]
    ):
        found = NewExit("default", container_id, f"i{number}", exec_id, 1, str(number).encode())
        await database.write(lambda c, found=found: events.record_exit(c, found))

    def current(container_id: str, exec_id: str | None, limit: int = 0) -> list[bytes]:
        found = database.read(lambda c: events.current_exits(c, "default", container_id, exec_id, limit))
        return [one.record for one in found]

    assert current("", None) == [b"2", b"4", b"5"]
    assert current("", "") == [b"2"]
    assert current("a", "e") == [b"4"]
    assert current("", None, 1) == [b"5"]
    assert current("gone", None) == []


async def test_the_newest_exit_of_a_process_counts(database: Database) -> None:
    """An exec's id may be used again; of init and execs each has its own."""

    for exec_id, shim_seq, record in (("", 9, b"init"), ("e", 3, b"first"), ("e", 7, b"second")):
        found = NewExit("default", "c1", "i1", exec_id, shim_seq, record)
        await database.write(lambda c, found=found: events.record_exit(c, found))
    last = database.read(lambda c: events.last_exit(c, "default", "c1", "i1", "e"))
    assert last is not None
    assert last.record == b"second"
    newest_two = database.read(lambda c: events.list_exits(c, "default", "c1", None, 2))
    assert [found.record for found in newest_two] == [b"first", b"second"]
    assert [found.record for found in database.read(lambda c: events.list_exits(c, "default", "c1", "", 0))] == [
        b"init"
    ]


# --- containers and namespaces


async def test_containers_live_in_namespaces(database: Database) -> None:
    """The same id in two namespaces is two containers; the first write makes a namespace."""

    for ns in ("a", "b"):

        def work(connection: sqlite3.Connection, ns: str = ns) -> None:
            containers.ensure_namespace(connection, ns)
            containers.insert(connection, ns, api.Container(id="c1", image=ns))

        await database.write(work)
    assert [c.image for c in database.read(lambda c: list(containers.iterate(c, "b")))] == ["b"]
    await database.write(lambda c: containers.put_namespace(c, "a", {"k": "v"}))
    assert database.read(containers.list_namespaces) == [("a", {"k": "v"}), ("b", {})]
    assert not database.read(lambda c: containers.is_namespace_empty(c, "a"))
    assert await database.write(lambda c: containers.delete(c, "a", "c1"))
    assert database.read(lambda c: containers.is_namespace_empty(c, "a"))
    assert database.read(lambda c: containers.namespace_labels(c, "none")) is None

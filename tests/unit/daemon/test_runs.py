"""How a row follows the restarts its shim tells of, and what a shim is told of labels."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from daemon import restart
from daemon.config import Restart as Limits
from daemon.shims import ingest, runs, terms
from daemon.shims.handle import Handle
from daemon.store import containers, schema, tasks
from daemon.store import events as journal
from daemon.store.records import CREATED, DELETING, RUNNING, STOPPED, TaskRow
from ttrpc.api import containers as api
from ttrpc.api import events, shim, wkt

JOURNAL = "ab" * 16


@pytest.fixture
def store() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection, ":memory:")
    containers.ensure_namespace(connection, "ns")
    containers.insert(connection, "ns", api.Container(id="c1"))
    tasks.insert(connection, row())
    yield connection
    connection.close()


def row(**fields: Any) -> TaskRow:
    known = {"state": RUNNING, "incarnation": JOURNAL, "pid": 11, "created_at_ns": 1, "request": b"", **fields}
    return TaskRow(ns="ns", id="c1", runtime="r", shim_path="p", bundle="/b", boot_id="boot", **known)


def record(seq: int, topic: str, event: Any, run: int = 0, **fields: Any) -> Any:
    incarnation = f"{JOURNAL}.{run}" if run else JOURNAL
    return shim.JournalRecord(seq=seq, topic=topic, event=wkt.pack(event), incarnation=incarnation, **fields)


def ended(seq: int, run: int = 0) -> Any:
    told = events.TaskExit(container_id="c1", id="c1")
    return record(seq, "/tasks/exit", told, run, exit=shim.ExitRecord(container_id="c1", code=3, seq=seq))


def restarted(seq: int, run: int, pid: int = 12) -> list[Any]:
    """Planned, created, started."""
    return [
        record(seq, runs.PLANNED, shim.Restarting(restart=run, in_a_row=run - 1, at=wkt.timestamp(7)), run - 1),
        record(seq + 1, "/tasks/create", events.TaskCreate(container_id="c1", pid=pid), run),
        record(seq + 2, "/tasks/start", events.TaskStart(container_id="c1", pid=pid), run),
    ]


def test_the_row_follows_run_by_run(store: sqlite3.Connection) -> None:
    first = ingest.store(store, row(), JOURNAL, [ended(1), *restarted(2, 1)], 1)
    assert first is not None
    assert (first.state, first.incarnation, first.restarts, first.pid) == (RUNNING, f"{JOURNAL}.1", 1, 12)
    second = ingest.store(store, first, JOURNAL, [ended(5, 1), *restarted(6, 2)[:1]], 5)
    assert second is not None
    assert (second.state, second.incarnation, second.restarts, second.streak) == (STOPPED, f"{JOURNAL}.1", 1, 1)
    record_ = containers.get(store, "ns", "c1")
    assert record_ is not None
    assert record_.labels[restart.COUNT_LABEL] == "1"
    assert tasks.cursor(store, f"{JOURNAL}.9") == 6, "the cursor is the journal's"


def test_records_told_twice_and_older_runs_change_nothing(store: sqlite3.Connection) -> None:
    batch = [ended(1), *restarted(2, 1), ended(5, 1), *restarted(6, 2, pid=13)]
    once = ingest.store(store, row(), JOURNAL, batch, 1)
    again = ingest.store(store, row(), JOURNAL, batch, 1)
    assert once == again
    assert store.execute("SELECT count(*) FROM exits").fetchone() == (2,)


def test_an_event_too_large_to_be_kept_loses_its_content_and_nothing_else(store: sqlite3.Connection) -> None:
    """A page of 4 MiB each would be a gigabyte of our memory."""
    told = ended(1)
    told.event.value = b"x" * (journal.MAX_EVENT_BYTES + 1)
    after = ingest.store(store, row(), JOURNAL, [told], 1)
    assert after is not None
    assert after.state == STOPPED
    assert [(each.topic, each.value, each.exit is None) for each in journal.page(store, 0, 9)] == [
        ("/tasks/exit", b"", False)
    ]


def test_a_row_that_is_being_deleted_stays_so(store: sqlite3.Connection) -> None:
    tasks.update(store, "ns", "c1", state=DELETING)
    after = ingest.store(store, row(), JOURNAL, restarted(1, 1), 1)
    assert after is not None
    assert (after.state, after.incarnation) == (DELETING, JOURNAL)


@pytest.mark.parametrize("by_user", [True, False])
def test_giving_up_is_the_users_stop_only_if_it_was(store: sqlite3.Connection, by_user: bool) -> None:
    left = record(2, runs.GAVE_UP, shim.RestartGaveUp(container_id="c1", restarts=4, by_user=by_user))
    after = ingest.store(store, row(), JOURNAL, [ended(1), left], 1)
    record_ = containers.get(store, "ns", "c1")
    assert after is not None
    assert record_ is not None
    assert (after.state, after.restarts) == (STOPPED, 4)
    assert restart.is_explicitly_stopped(record_.labels) is by_user


def test_the_plan_is_known_while_there_is_one() -> None:
    handle = Handle(row())
    runs.note_plan(handle, restarted(1, 1)[:1])
    assert handle.next_restart_at_ns == 7
    runs.note_plan(handle, restarted(1, 1))
    assert handle.next_restart_at_ns is None


def test_labels_as_terms() -> None:
    labels = {restart.STATUS_LABEL: "running", restart.POLICY_LABEL: "on-failure:3", restart.STOPPED_LABEL: "true"}
    asked = terms.terms_of(
        api.Container(id="c1", labels=labels), row(restarts=2, streak=1), Limits(budget=5), decide_now=False
    )

    assert (asked.policy, asked.max_restarts, asked.stopped, asked.budget) == ("on-failure", 3, True, 5)
    assert (asked.first_pause_ms, asked.longest_pause_ms, asked.reset_after_ms) == (100, 60_000, 10_000)
    assert (asked.earlier_restarts, asked.earlier_in_a_row) == (2, 1)
    assert terms.terms_of(api.Container(id="c1"), row(), Limits(), decide_now=False).policy == "no"


def test_a_shim_acts_itself_only_if_it_says_so() -> None:
    """An older one does not: its restarts stay ours."""
    handle = Handle(row())
    client: Any = object()
    handle.now_serving(client, shim.InfoResponse(incarnation=JOURNAL))
    assert not terms.acts_itself(handle)
    handle.now_serving(client, shim.InfoResponse(incarnation=JOURNAL, features=["restart"]))
    assert terms.acts_itself(handle)
    assert handle.row.state != CREATED

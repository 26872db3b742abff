"""Restarts by policy, step by step: what is told in which order, what is counted, and what ends them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shim.task import creation, restarting
from shim.task.container import Container
from shim.task.lifecycle import DELETED, RUNNING, STOPPED
from shim.task.restarting import CREATING, DELETING, STARTING, Restart
from tests.support.stage import Stage
from ttrpc.api import shim, task
from ttrpc.errors import StatusError
from ttrpc.status import Code

FAILED = 3 << 8
PAUSE_S = 1.0


@pytest.fixture
def stage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(str(tmp_path), monkeypatch)
    monkeypatch.setattr(restarting, "boot_ns", lambda: int(made.now * 1e9))
    yield made
    made.close()


def started(stage: Stage, policy: str = "always", pid: int = 11, **terms: Any) -> Container:
    """A container that runs under these terms."""
    container = stage.container()
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    stage.write_pid(pid)
    stage.does("create")
    asked.result()
    container.restart = Restart(container)
    set_terms(container, policy, is_first=True, **terms)
    asked = stage.ask(container.start())
    stage.does("start")
    asked.result()
    return container


def set_terms(container: Container, policy: str = "always", *, is_first: bool = False, **terms: Any) -> None:
    known = {"first_pause_ms": 1000, "longest_pause_ms": 60_000, "reset_after_ms": 10_000, **terms}
    request = shim.SetRestartRequest(policy=policy, **known)
    restarting.check(request)
    restart_of(container).set(request, is_first=is_first)


def restart_of(container: Container) -> Restart:
    assert container.restart is not None
    return container.restart


def on_disk(stage: Stage) -> Any:
    with open(stage.bundle.file("state.json"), encoding="utf-8") as file:
        return json.load(file)


def test_each_step_is_on_disk_before_it_is_taken(stage: Stage) -> None:
    container = started(stage)
    stage.dies(11, FAILED)
    assert stage.told() == ["create", "start", "exit init", "/shimd/restarting"]
    assert on_disk(stage)["restart"]["due_ns"]
    stage.later(PAUSE_S)
    assert (on_disk(stage)["restart"]["phase"], on_disk(stage)["restart"]["restarts"]) == (DELETING, 1)
    stage.does("delete")
    assert (on_disk(stage)["restart"]["phase"], stage.told()[-1]) == (CREATING, "delete")
    assert (container.state, container.init.status) == (STOPPED, 3), "the last run is the present one"
    stage.write_pid(12)
    stage.does("create")
    assert (on_disk(stage)["restart"]["phase"], on_disk(stage)["incarnation"]) == (STARTING, "one.1")
    stage.does("start")

    assert stage.told()[-3:] == ["delete", "create", "start"]
    assert (container.state, container.init.pid, on_disk(stage)["restart"]["phase"]) == (RUNNING, 12, "")
    stage.dies(12, FAILED)
    assert [(record.topic, record.incarnation) for record in stage.records()[-2:]] == [
        ("/tasks/exit", "one.1"),
        ("/shimd/restarting", "one.1"),
    ]


def test_a_create_that_fails_is_undone_counted_and_followed(stage: Stage) -> None:
    """How the last run ended stays what is known."""
    container = started(stage)
    stage.dies(11, FAILED)
    stage.later(PAUSE_S)
    stage.does("delete")
    stage.fails("create", "no such file")
    stage.does("delete")

    plan = shim.Restarting.FromString(stage.records()[-1].event.value)
    assert (plan.restart, plan.pause_ms) == (2, 2000)
    assert "no such file" in plan.reason
    assert (container.state, container.init.status, container.parts.incarnation) == (STOPPED, 3, "one")


def test_a_start_that_fails_ends_the_run_by_its_exit(stage: Stage) -> None:
    started(stage)
    stage.dies(11, FAILED)
    stage.later(PAUSE_S)
    stage.does("delete")
    stage.write_pid(12)
    stage.does("create")
    stage.fails("start", "no such program")
    stage.fails("state", "cannot say")
    assert stage.signalled == [(12, 9)]
    stage.dies(12, 9)
    assert stage.told()[-4:] == ["delete", "create", "exit init", "/shimd/restarting"]


def test_what_comes_in_the_pause_ends_it(stage: Stage) -> None:
    container = started(stage)
    stage.dies(11, FAILED)
    stage.ask(container.kill(container.init, 15, False)).result()
    assert stage.told()[-1] == "/shimd/restart-gave-up"
    with pytest.raises(StatusError) as error:
        stage.ask(container.kill(container.init, 15, False)).result()
    assert error.value.code == Code.NOT_FOUND
    stage.later(100)
    assert stage.running_calls() == []
    set_terms(container)
    assert not restart_of(container).is_planned, "what was left stays so"
    set_terms(container, decide_now=True)
    assert restart_of(container).is_planned
    asked = stage.ask(container.delete())
    stage.does("delete")
    asked.result()
    stage.later(100)
    assert (container.state, stage.running_calls()) == (DELETED, [])
    assert stage.told()[-3:] == ["/shimd/restarting", "/shimd/restart-gave-up", "delete"]


@pytest.mark.parametrize(("policy", "terms"), [("no", {}), ("always", {"stopped": True}), ("on-failure", {})])
def test_what_is_left_is_not_given_up(stage: Stage, policy: str, terms: dict[str, Any]) -> None:
    """Nothing is told of it: there was nothing to expect."""
    started(stage, policy, **terms)
    stage.dies(11, 0)
    assert stage.told() == ["create", "start", "exit init"]


def test_counts_go_on_from_those_before(stage: Stage) -> None:
    container = started(stage, "on-failure", max_restarts=3, earlier_restarts=3, earlier_in_a_row=1)
    stage.dies(11, FAILED)
    assert stage.told()[-1] == "/shimd/restart-gave-up"
    set_terms(container, "on-failure", max_restarts=4, earlier_restarts=1, decide_now=True)
    assert shim.Restarting.FromString(stage.records()[-1].event.value).restart == 4


def test_state_of_another_version_is_left_alone(stage: Stage) -> None:
    container = started(stage)
    kept = restart_of(container).snapshot()
    again = restarting.read(container, kept)
    assert again is not None
    assert again.snapshot() == kept
    assert restarting.read(container, {**kept, "version": 99}) is None


def test_a_restart_that_fails_by_a_bug_or_for_want_of_memory_is_followed_by_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step would stay under way for ever, and nobody would start the container again."""
    container = started(stage)
    stage.dies(11, FAILED)
    with monkeypatch.context() as broken:
        broken.setattr(container, "reserve_exit", lambda _exec_id: (_ for _ in ()).throw(MemoryError()))
        stage.later(PAUSE_S)
        stage.does("delete")
    stage.does("delete")  # of the undoing
    assert restart_of(container).message().HasField("next_at")
    assert stage.told()[-1] == "/shimd/restarting"
    stage.later(2 * PAUSE_S)
    stage.does("delete")
    stage.write_pid(12)
    stage.does("create")
    stage.does("start")
    assert (container.state, container.init.pid) == (RUNNING, 12)

"""The order in which a container's facts are told, whatever order they happen in; the test plays runc and kernel."""

from collections.abc import Iterator
from typing import Any

import pytest

from shim.core.steps import Signal
from shim.streams.stdio import StdioRequest
from shim.task import creation, execs
from shim.task.lifecycle import CREATED, PAUSED, RUNNING, STOPPED
from tests.support.stage import EXEC, INIT, PROCESS, Stage, created, started, with_exec
from ttrpc.api import task
from ttrpc.errors import StatusError
from ttrpc.status import Code


@pytest.fixture
def stage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(str(tmp_path), monkeypatch)
    yield made
    made.close()


# --- create


def test_exit_during_create_is_told_after_created(stage: Stage) -> None:
    """An init that dies before runc returns is reported second, not first."""
    container = stage.container()
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    stage.write_pid(INIT)
    stage.dies(INIT, 3 << 8)
    assert stage.told() == []
    stage.does("create")

    assert asked.result() == INIT
    assert stage.told() == ["create", "exit init"]
    assert container.init.status == 3


def test_failed_create_is_undone_before_it_is_told(stage: Stage) -> None:
    container = stage.container()
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    stage.fails("create", "no such file")
    assert not asked.is_done
    stage.does("delete")

    with pytest.raises(StatusError, match="OCI runtime create failed: no such file"):
        asked.result()
    assert stage.told() == []
    assert stage.streams["init"].calls[-1] == "close"
    assert stage.reaper.holds == 0


def test_create_that_takes_too_long_is_killed_with_its_helpers_and_undone(stage: Stage) -> None:
    container = stage.container()
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    pid = stage.runc("create")
    stage.later(119.0)
    assert stage.reaper.killed_groups == []
    stage.later(2.0)
    assert stage.reaper.killed_groups == [pid]
    stage.ends(pid, 9)
    stage.does("delete")

    with pytest.raises(StatusError, match="did not end within 120 s and was killed"):
        asked.result()


def test_runtime_stuck_in_the_kernel_does_not_hold_the_caller(stage: Stage) -> None:
    """SIGKILL does not end it (state D): after a moment the caller is told all the same."""
    container = stage.container()
    asked = stage.ask(creation.create(container, task.CreateTaskRequest(id="c1")))
    stage.later(121.0)
    stage.later(6.0)
    stage.does("delete")

    with pytest.raises(StatusError, match="was killed"):
        asked.result()


def test_missing_runtime_is_told_without_waiting(stage: Stage) -> None:
    stage.reaper.missing = True
    asked = stage.ask(creation.create(stage.container(), task.CreateTaskRequest(id="c1")))

    with pytest.raises(StatusError, match="was not found in") as error:
        asked.result()
    assert error.value.code == Code.FAILED_PRECONDITION


def test_runtime_that_leaves_no_pid_is_an_error(stage: Stage) -> None:
    asked = stage.ask(creation.create(stage.container(), task.CreateTaskRequest(id="c1")))
    stage.does("create")
    stage.does("delete")

    with pytest.raises(StatusError, match="left no process"):
        asked.result()


# --- start and exit


def test_exit_during_start_is_told_after_started(stage: Stage) -> None:
    container = created(stage)
    asked = stage.ask(container.start())
    stage.dies(INIT, 7 << 8)
    assert (stage.told(), container.state) == (["create"], CREATED)
    stage.does("start")

    assert asked.result() == INIT
    assert stage.told() == ["create", "start", "exit init"]
    assert container.init.exit is not None
    assert container.init.exit.started_at_ns is not None
    assert container.init.exit.started_at_ns <= container.init.exit.exited_at_ns


def test_start_that_fails_because_init_died_tells_the_exit_only(stage: Stage) -> None:
    container = created(stage)
    asked = stage.ask(container.start())
    stage.dies(INIT)
    stage.fails("start", "container process is gone")
    stage.fails("state", "no such container")

    with pytest.raises(StatusError, match="OCI runtime start failed: container process is gone"):
        asked.result()
    assert stage.told() == ["create", "exit init"]
    assert container.state == STOPPED


def test_failed_start_can_be_tried_again(stage: Stage) -> None:
    container = created(stage)
    asked = stage.ask(container.start())
    stage.fails("start", "hook failed")
    stage.fails("state", "unknown")
    assert isinstance(asked.error, StatusError)
    asked = stage.ask(container.start())
    stage.does("start")

    assert asked.result() == INIT
    assert stage.told() == ["create", "start"]


def test_start_whose_runc_was_killed_after_its_work_is_a_start(stage: Stage) -> None:
    container = created(stage)
    asked = stage.ask(container.start())
    stage.ends(stage.runc("start"), 9)
    stage.ends(stage.runc("state"), 0, output=b'{"status":"running"}')

    assert asked.result() == INIT
    assert stage.told() == ["create", "start"]


def test_nobody_is_told_before_the_record_is_on_disk(stage: Stage) -> None:
    container = started(stage)
    waiting: list[Any] = []
    container.init.told.subscribe(waiting.append)
    stage.exits.refuse = True
    stage.dies(INIT, 42 << 8)
    stage.later(5.0)
    assert (stage.told(), waiting, container.state) == (["create", "start"], [], RUNNING)
    assert stage.parts.unwritten_exits == 1
    assert any("cannot be written" in line for line in stage.log.lines)

    stage.exits.refuse = False
    stage.later(1.1)
    assert [record.code for record in waiting] == [42]
    assert stage.told() == ["create", "start", "exit init"]
    assert stage.parts.unwritten_exits == 0


def test_a_process_is_reaped_only_when_its_record_is_on_disk(stage: Stage) -> None:
    """Until then its zombie is the next subreaper's, should the shim die. But no disk holds up the kernel."""
    container = started(stage)
    stdio = stage.streams["init"]
    stdio.drained = Signal()
    stage.dies(INIT, 42 << 8)
    assert (container.init.reaped, stage.reaper.taken) == (True, [])
    stdio.drained.fire()
    stage.later(0.1)
    assert (stage.reaper.taken, [record.code for record in stage.exits.writes]) == ([INIT], [42])


def test_a_process_whose_record_the_disk_refuses_is_reaped(stage: Stage) -> None:
    started(stage)
    stage.exits.refuse = True
    stage.dies(INIT)
    assert stage.reaper.taken == [INIT]


def test_record_has_the_number_of_the_event_that_tells_it(stage: Stage) -> None:
    """Also when other events came while the disk refused it."""
    container = started(stage)
    stage.exits.refuse = True
    stage.dies(INIT)
    stage.oom.kills = 1
    container.tell_oom()
    stage.exits.refuse = False
    stage.later(2.0)

    assert stage.told() == ["create", "start", "oom", "exit init"]
    (record,) = stage.exits.writes
    assert (record.seq, stage.records()[-1].seq) == (4, 4)


def test_output_is_drained_before_the_exit_is_told(stage: Stage) -> None:
    container = started(stage)
    stdio = stage.streams["init"]
    stdio.drained = Signal()
    stage.dies(INIT)
    assert stage.told() == ["create", "start"]
    with pytest.raises(StatusError, match="process already finished"):
        stage.ask(container.kill(container.init, 15, False)).result()
    stdio.drained.fire()
    stage.turn()

    assert stage.told()[-1] == "exit init"
    assert stdio.calls[-2:] == ["drain", "exited"]


def test_draining_that_fails_does_not_keep_the_exit_back(stage: Stage) -> None:
    started(stage)
    stage.streams["init"].drain_error = OSError(5, "Input/output error")
    stage.dies(INIT)

    assert stage.told()[-1] == "exit init"


def test_oom_is_told_before_the_exit_it_caused(stage: Stage) -> None:
    container = started(stage)
    stage.oom.kills = 1
    stage.dies(INIT)

    assert stage.told() == ["create", "start", "oom", "exit init"]
    assert container.init.exit is not None
    assert container.init.exit.oom


@pytest.mark.parametrize(("status", "after_s"), [(0, 0.0), (9, 60.0)])
def test_clean_or_late_exits_are_not_blamed_on_memory(stage: Stage, status: int, after_s: float) -> None:
    container = started(stage)
    stage.oom.kills = 1
    container.oom_at = stage.now
    container.oom_count = 1
    stage.now += after_s
    stage.dies(INIT, status)

    assert container.init.exit is not None
    assert not container.init.exit.oom


# --- execs


def test_execs_are_told_before_init(stage: Stage) -> None:
    container = started(stage)
    with_exec(stage, container)
    stage.dies(INIT)
    assert "exit init" not in stage.told()
    stage.dies(EXEC)

    assert stage.told()[-2:] == ["exit e1", "exit init"]


def test_exec_that_was_being_started_when_init_died_is_told_first(stage: Stage) -> None:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    asked = stage.ask(execs.start(container, container.execs["e1"]))
    stage.dies(INIT)
    stage.write_pid(EXEC, "e1")
    stage.does("exec")
    stage.dies(EXEC)

    assert asked.result() == EXEC
    assert stage.told()[-3:] == ["exec-started", "exit e1", "exit init"]


def test_exec_whose_start_fails_with_init_dead_holds_nothing_up(stage: Stage) -> None:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    asked = stage.ask(execs.start(container, container.execs["e1"]))
    stage.dies(INIT)
    stage.fails("exec", "container is gone", exec_id="e1")

    with pytest.raises(StatusError, match="OCI runtime exec failed: container is gone"):
        asked.result()
    assert stage.told()[-1] == "exit init"


def test_exec_that_does_not_end_is_waited_for_with_a_bound(stage: Stage) -> None:
    container = started(stage)
    with_exec(stage, container)
    stage.dies(INIT)
    stage.later(9.0)
    assert "exit init" not in stage.told()
    stage.later(2.0)

    assert stage.told()[-1] == "exit init"
    stage.dies(EXEC)
    assert stage.told()[-1] == "exit e1"


def test_no_exec_starts_once_init_was_reaped(stage: Stage) -> None:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    stage.streams["init"].drained = Signal()
    stage.dies(INIT)

    with pytest.raises(StatusError, match="init process is not running") as error:
        stage.ask(execs.start(container, container.execs["e1"])).result()
    assert error.value.code == Code.FAILED_PRECONDITION


def test_exit_during_exec_is_told_after_started(stage: Stage) -> None:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    stage.ask(execs.start(container, container.execs["e1"]))
    stage.write_pid(EXEC, "e1")
    stage.dies(EXEC, 0)
    stage.does("exec")

    assert stage.told()[-3:] == ["exec-added", "exec-started", "exit e1"]


def test_init_of_a_shared_pid_namespace_has_the_others_killed_first(stage: Stage) -> None:
    container = started(stage, shares_pids=True)
    with_exec(stage, container)
    stage.dies(INIT)
    assert stage.signalled_all == [9]
    stage.dies(EXEC)

    assert stage.told()[-2:] == ["exit e1", "exit init"]


def test_stdin_closed_before_the_start_is_remembered(stage: Stage) -> None:
    """Also across a start that failed, which opens new streams the next time."""
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    process = container.execs["e1"]
    process.close_stdin()
    assert stage.streams["exec.e1"].calls == ["open", "close_stdin"]
    stage.ask(execs.start(container, process))
    stage.fails("exec", "no", exec_id="e1")
    stage.ask(execs.start(container, process))

    assert stage.streams["exec.e1"].calls == ["open", "close_stdin"]


def test_signal_for_everyone_is_sent_once_to_each(stage: Stage) -> None:
    """Init is in the cgroup: signalled by itself as well it would get the signal twice."""
    container = started(stage)
    stage.ask(container.kill(container.init, 15, True))
    assert (stage.signalled, stage.signalled_all) == ([], [15])


def test_signal_for_everyone_reaches_who_is_left_behind(stage: Stage) -> None:
    """Init is dead, and a signal for it alone is refused; others may live on in its cgroup."""
    container = started(stage)
    stage.dies(INIT)

    stage.ask(container.kill(container.init, 9, True)).result()

    assert stage.signalled_all == [9]
    with pytest.raises(StatusError, match="process already finished"):
        stage.ask(container.kill(container.init, 9, False)).result()


# --- pause


def test_init_killed_while_paused_is_thawed(stage: Stage) -> None:
    container = started(stage)
    stage.ask(container.pause())
    assert container.is_pausing
    stage.does("pause")
    assert container.state == PAUSED
    stage.ask(container.kill(container.init, 9, False))

    assert stage.signalled == [(INIT, 9)]
    stage.does("resume")
    stage.dies(INIT)
    assert stage.told() == ["create", "start", "paused", "exit init"]


def test_init_killed_while_being_paused_is_thawed(stage: Stage) -> None:
    container = started(stage)
    stage.ask(container.pause())
    stage.ask(container.kill(container.init, 9, False))
    stage.does("pause")

    assert [argv[7] for _, argv in stage.running_calls()] == ["resume"]
    stage.does("resume")


def test_pause_waits_for_execs_being_started_and_lets_no_more(stage: Stage) -> None:
    """runc would hang in an exec whose process is frozen before it runs."""
    container = started(stage)
    for exec_id in ("e1", "e2"):
        execs.add(container, exec_id, StdioRequest(), PROCESS)
    starting = stage.ask(execs.start(container, container.execs["e1"]))
    pausing = stage.ask(container.pause())
    with pytest.raises(StatusError, match="paused"):
        stage.ask(execs.start(container, container.execs["e2"])).result()
    assert not any("pause" in argv for _, argv in stage.running_calls())
    stage.write_pid(EXEC, "e1")
    stage.does("exec")
    stage.does("pause")

    assert (starting.result(), pausing.result()) == (EXEC, None)
    assert stage.told()[-2:] == ["exec-started", "paused"]


def test_exit_while_pausing_is_not_followed_by_paused(stage: Stage) -> None:
    container = started(stage)
    asked = stage.ask(container.pause())
    stage.dies(INIT)
    stage.does("pause")

    assert asked.result() is None
    assert stage.told() == ["create", "start", "exit init"]


def test_pause_is_tried_again_while_the_host_is_too_busy_to_freeze(stage: Stage) -> None:
    container = started(stage)
    asked = stage.ask(container.pause())
    for _ in range(3):
        stage.fails("pause", "unable to freeze")
        assert not asked.is_done
        stage.later(0.1)
    stage.does("pause")

    asked.result()
    assert stage.told() == ["create", "start", "paused"]


def test_pause_is_given_up_when_it_does_not_freeze(stage: Stage) -> None:
    container = started(stage)
    asked = stage.ask(container.pause())
    stage.now += 6.0
    stage.fails("pause", "unable to freeze")
    stage.does("resume")

    with pytest.raises(StatusError, match="OCI runtime pause failed: unable to freeze"):
        asked.result()
    assert container.state == RUNNING


def test_pause_that_fails_is_thawed(stage: Stage) -> None:
    container = started(stage)
    asked = stage.ask(container.pause())
    stage.fails("pause", "cannot freeze")
    stage.does("resume")

    with pytest.raises(StatusError, match="cannot freeze"):
        asked.result()
    assert container.state == RUNNING


def test_requests_through_runc_wait_for_each_other(stage: Stage) -> None:
    container = started(stage)
    stage.ask(container.pause())
    update = stage.ask(container.update(b"{}"))
    assert [argv[7] for _, argv in stage.running_calls()] == ["pause"]
    stage.does("pause")
    stage.does("update")

    assert update.result() is None


# --- delete


def test_delete_of_a_created_container_kills_it_first(stage: Stage) -> None:
    container = created(stage)
    asked = stage.ask(container.delete())
    assert stage.signalled == [(INIT, 9)]
    assert not asked.is_done
    stage.dies(INIT)
    stage.does("delete")

    assert asked.result() is container.init
    assert stage.told() == ["create", "exit init", "delete"]


def test_delete_during_the_drain_waits_for_the_exit(stage: Stage) -> None:
    container = started(stage)
    stage.streams["init"].drained = Signal()
    stage.dies(INIT)
    asked = stage.ask(container.delete())
    assert not stage.running_calls()
    stage.streams["init"].drained.fire()
    stage.turn()
    stage.does("delete")

    assert asked.result() is container.init
    assert stage.told()[-2:] == ["exit init", "delete"]


def test_second_delete_at_the_same_time_finds_nothing(stage: Stage) -> None:
    container = started(stage)
    stage.dies(INIT)
    first, second = stage.ask(container.delete()), stage.ask(container.delete())
    stage.does("delete")

    assert first.result() is container.init
    with pytest.raises(StatusError) as error:
        second.result()
    assert error.value.code == Code.NOT_FOUND


def test_delete_that_fails_is_forced(stage: Stage) -> None:
    container = started(stage)
    stage.dies(INIT)
    asked = stage.ask(container.delete())
    stage.fails("delete", "cgroup is busy")
    assert "--force" in stage.running_calls()[0][1]
    stage.does("delete")

    assert asked.result() is container.init


def test_container_runc_no_longer_knows_is_deleted_all_the_same(stage: Stage) -> None:
    container = started(stage)
    stage.dies(INIT)
    asked = stage.ask(container.delete())
    stage.fails("delete", "container does not exist")

    assert asked.result() is container.init
    assert stage.told()[-1] == "delete"


def test_waiters_of_execs_that_never_ran_are_told_at_the_containers_delete(stage: Stage) -> None:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    told: list[Any] = []
    container.execs["e1"].told.subscribe(told.append)
    stage.dies(INIT)
    stage.ask(container.delete())
    stage.does("delete")

    assert told == [None]

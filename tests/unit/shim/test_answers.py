"""What a call is answered with that a shim had begun when it was killed: each rule, on a container of the stage.

A shim notes of a request whether it could be done (`before`); its successor looks at what is there by then (`now`), and
either knows the answer or begins the request (again).
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from shim.core import kernel
from shim.serving import answers
from shim.serving.service import SERVICES, TaskService
from shim.streams.stdio import StdioRequest
from shim.task import execs
from shim.task.exits import Exit
from shim.task.lifecycle import CREATING
from tests.support.stage import EXEC, INIT, PROCESS, Stage, created, started, with_exec
from ttrpc.api import shim as api
from ttrpc.api import task, wkt
from ttrpc.errors import StatusError
from ttrpc.ledger import Unanswered
from ttrpc.status import Code

World: TypeAlias = Callable[[Stage], Any]
Play: TypeAlias = Callable[[], Stage]
TASK = SERVICES[0]
EMPTY = wkt.Empty()
AGAIN = None  # nothing is known: the request is begun
PROMISE = task.DeleteResponse(pid=EXEC, exit_status=5)


@pytest.fixture
def play(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """As many stages as a test has worlds, each with a bundle of its own."""
    made: list[Stage] = []

    def begin() -> Stage:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stage(str(folder), monkeypatch))
        return made[-1]

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def stage(play: Play) -> Stage:
    return play()


# --- worlds: what a shim finds


def nothing(stage: Stage) -> None:
    """No container was created."""


def creating(stage: Stage) -> Any:
    return stage.container()


def paused(stage: Stage) -> Any:
    container = started(stage)
    stage.ask(container.pause())
    stage.does("pause")
    return container


def ended(stage: Stage) -> Any:
    """It ran, and its exit was told."""
    container = started(stage)
    stage.dies(INIT, 7 << 8)
    return container


def ended_unstarted(stage: Stage) -> Any:
    container = created(stage)
    stage.dies(INIT, 9)
    return container


def deleted(stage: Stage) -> Any:
    container = ended(stage)
    stage.ask(container.delete())
    stage.does("delete")
    return container


def exec_added(stage: Stage) -> Any:
    container = started(stage)
    execs.add(container, "e1", StdioRequest(), PROCESS)
    return container


def exec_running(stage: Stage) -> Any:
    container = started(stage)
    with_exec(stage, container)
    return container


def exec_ended(stage: Stage) -> Any:
    container = exec_running(stage)
    stage.dies(EXEC, 5 << 8)
    return container


def exec_of_a_deleted(stage: Stage) -> Any:
    container = exec_ended(stage)
    stage.dies(INIT, 0)
    stage.ask(container.delete())
    stage.does("delete")
    return container


def service(stage: Stage, world: World) -> TaskService:
    made = TaskService(stage.parts, lambda _cgroup, _pid: None, lambda done: done())
    made.container = world(stage)
    return made


def call(method: str, request: Any = None, *, of: str = TASK, fact: int | None = None, promise: Any = None) -> Any:
    """A call as the rules see it; with a fact one that a predecessor had begun."""
    recovered = None
    if fact is not None:
        recovered = Unanswered(1, fact, b"")
        recovered.promise = None if promise is None else promise.SerializeToString()
    begun: list[int] = []
    handled: list[Any] = []

    def handle(asked: Any, _call: Any) -> str:
        handled.append(asked)
        return "handled"

    return SimpleNamespace(
        method=SimpleNamespace(name=method), service=of, request=request or REQUESTS[method](), recovered=recovered,
        begin=begun.append, handler=handle, begun=begun, handled=handled,
    )  # fmt: skip


REQUESTS: "dict[str, Callable[[], Any]]" = {
    "Create": lambda: task.CreateTaskRequest(id="c1"),
    "Start": lambda: task.StartRequest(id="c1"),
    "Exec": lambda: task.ExecProcessRequest(id="c1", exec_id="e1"),
    "Delete": lambda: task.DeleteRequest(id="c1"),
    "Kill": lambda: task.KillRequest(id="c1", signal=9),
    "Pause": lambda: task.PauseRequest(id="c1"),
    "Resume": lambda: task.ResumeRequest(id="c1"),
    "Checkpoint": lambda: task.CheckpointTaskRequest(id="c1", path="/x"),
    "Upgrade": lambda: api.UpgradeRequest(),
    "Update": lambda: task.UpdateTaskRequest(id="c1"),
    "State": lambda: task.StateRequest(id="c1"),
    "Wait": lambda: task.WaitRequest(id="c1"),
    "CloseIO": lambda: task.CloseIORequest(id="c1"),
    "Shutdown": lambda: task.ShutdownRequest(id="c1"),
}
OF_EXEC = {
    "Start": task.StartRequest(id="c1", exec_id="e1"),
    "Delete": task.DeleteRequest(id="c1", exec_id="e1"),
    "Kill": task.KillRequest(id="c1", exec_id="e1", signal=9),
}


# --- before: could it be done?


@pytest.mark.parametrize(
    ("method", "worlds", "fact"),
    [
        ("Create", [nothing], answers.POSSIBLE),
        ("Create", [creating, created, started, ended, deleted], answers.REFUSED),
        ("Start", [created], answers.POSSIBLE),
        ("Start", [nothing, creating, started, paused, ended, deleted], answers.REFUSED),
        ("Exec", [created, started, paused, ended], answers.POSSIBLE),
        ("Exec", [nothing, exec_added, exec_ended], answers.REFUSED),
        ("Delete", [created, started, ended, ended_unstarted], answers.POSSIBLE),
        ("Delete", [nothing, deleted], answers.REFUSED),
        ("Kill", [created, started, paused], answers.POSSIBLE),
        ("Kill", [nothing, creating, ended, deleted], answers.REFUSED),
        ("Pause", [started], answers.POSSIBLE),
        ("Pause", [nothing, created, paused, ended], answers.REFUSED),
        ("Resume", [paused], answers.POSSIBLE),
        ("Resume", [nothing, created, started, ended], answers.REFUSED),
        ("Checkpoint", [started, paused], answers.POSSIBLE),
        ("Checkpoint", [nothing, created, ended, deleted], answers.REFUSED),
    ],
)
def test_whether_a_request_could_be_done(play: Play, method: str, worlds: list[World], fact: int) -> None:
    noted = {world.__name__: answers.fact_of(service(play(), world), call(method)) for world in worlds}

    assert noted == {world.__name__: fact for world in worlds}


@pytest.mark.parametrize(
    ("method", "world", "fact"),
    [
        ("Start", exec_added, answers.POSSIBLE),
        ("Start", exec_running, answers.REFUSED),
        ("Start", started, answers.REFUSED),
        ("Delete", exec_ended, answers.POSSIBLE),
        ("Delete", started, answers.REFUSED),
        ("Delete", exec_of_a_deleted, answers.REFUSED),
        ("Kill", exec_running, answers.POSSIBLE),
        ("Kill", exec_added, answers.REFUSED),
        ("Kill", exec_ended, answers.REFUSED),
    ],
)
def test_whether_a_request_of_an_exec_could_be_done(stage: Stage, method: str, world: World, fact: int) -> None:
    assert answers.fact_of(service(stage, world), call(method, OF_EXEC[method])) == fact


def test_a_start_that_is_under_way_could_not_be_done_once_more(stage: Stage) -> None:
    tasks = service(stage, created)
    assert tasks.container is not None
    stage.ask(tasks.container.start())
    assert answers.fact_of(tasks, call("Start")) == answers.REFUSED
    stage.does("start")


def test_a_request_of_another_container_could_not_be_done(stage: Stage) -> None:
    tasks = service(stage, started)

    assert answers.fact_of(tasks, call("Kill", task.KillRequest(id="c2", signal=9))) == answers.REFUSED
    assert answers.fact_of(tasks, call("Kill", task.KillRequest(signal=9))) == answers.POSSIBLE, "no id is ours"


@pytest.mark.parametrize("method", ["Update", "State", "Wait", "CloseIO", "Shutdown"])
def test_what_can_be_done_twice_is_not_noted(stage: Stage, method: str) -> None:
    """An Update sets limits: once more it sets the same ones."""
    tasks, asked = service(stage, started), call(method)

    assert answers.fact_of(tasks, asked) is None
    assert answers.begin(tasks, asked) == "handled"
    assert asked.begun == []


def test_only_our_services_have_rules(stage: Stage) -> None:
    tasks = service(stage, started)

    assert answers.fact_of(tasks, call("Kill", of=SERVICES[1])) == answers.POSSIBLE
    assert answers.fact_of(tasks, call("Kill", of="somebody.else.v1.Kill")) is None
    assert answers.fact_of(tasks, call("Upgrade", of=answers.OUR_SERVICE)) == answers.POSSIBLE


# --- now: was it done?


@pytest.mark.parametrize(
    ("method", "now", "expected"),
    [
        ("Create", nothing, AGAIN),  # runc had not got that far, or it was undone
        ("Create", creating, AGAIN),
        ("Create", created, task.CreateTaskResponse(pid=INIT)),
        ("Create", started, task.CreateTaskResponse(pid=INIT)),
        ("Create", ended, task.CreateTaskResponse(pid=INIT)),  # so quickly that nobody saw it run
        ("Start", created, AGAIN),
        ("Start", started, task.StartResponse(pid=INIT)),
        ("Start", paused, task.StartResponse(pid=INIT)),
        ("Start", ended, task.StartResponse(pid=INIT)),
        ("Start", ended_unstarted, AGAIN),  # which refuses it: it was killed before it ran
        ("Start", nothing, AGAIN),
        ("Exec", started, AGAIN),
        ("Exec", exec_added, EMPTY),
        ("Exec", exec_running, EMPTY),
        ("Exec", nothing, AGAIN),
        ("Delete", nothing, AGAIN),
        ("Delete", started, AGAIN),
        ("Delete", ended, AGAIN),
        ("Kill", started, AGAIN),
        ("Kill", created, AGAIN),
        ("Kill", ended, EMPTY),
        ("Kill", deleted, EMPTY),
        ("Pause", started, AGAIN),
        ("Pause", paused, EMPTY),
        ("Pause", ended, AGAIN),  # which refuses it
        ("Resume", paused, AGAIN),
        ("Resume", started, EMPTY),
        ("Resume", ended, AGAIN),
        ("Checkpoint", started, AGAIN),
        ("Checkpoint", paused, AGAIN),
    ],
)
def test_what_is_so_now_answers_what_was_possible(stage: Stage, method: str, now: World, expected: Any) -> None:
    asked = call(method, fact=answers.POSSIBLE)

    assert answers.known_answer(service(stage, now), asked) == expected
    assert asked.recovered is None, "a call is recovered once"


@pytest.mark.parametrize(
    ("method", "now", "promise", "expected"),
    [
        ("Start", exec_added, None, AGAIN),
        ("Start", exec_running, None, task.StartResponse(pid=EXEC)),
        ("Start", exec_ended, None, task.StartResponse(pid=EXEC)),
        ("Start", started, None, AGAIN),
        ("Delete", exec_ended, None, AGAIN),
        ("Delete", exec_ended, PROMISE, AGAIN),  # promised, and killed before anything was removed
        ("Delete", started, PROMISE, PROMISE),  # it is gone, and who ended it is known from the promise alone
        ("Delete", started, None, AGAIN),
        ("Delete", exec_of_a_deleted, PROMISE, PROMISE),
        ("Delete", exec_of_a_deleted, None, AGAIN),
        ("Delete", nothing, PROMISE, AGAIN),
        ("Kill", exec_running, None, AGAIN),
        ("Kill", exec_running, EMPTY, EMPTY),  # it was sent: this shim sends it to nobody again
        ("Kill", exec_ended, None, EMPTY),
        ("Kill", started, None, EMPTY),  # it ended and was deleted
    ],
)
def test_what_is_so_now_answers_for_an_exec(stage: Stage, method: str, now: World, promise: Any, expected: Any) -> None:
    asked = call(method, OF_EXEC[method], fact=answers.POSSIBLE, promise=promise)

    assert answers.known_answer(service(stage, now), asked) == expected


def test_a_delete_that_was_done_is_answered_with_the_exit(stage: Stage) -> None:
    tasks = service(stage, deleted)
    answer: Any = answers.known_answer(tasks, call("Delete", fact=answers.POSSIBLE))

    assert (answer.pid, answer.exit_status) == (INIT, 7)
    record = tasks.container.init.exit if tasks.container is not None else None
    assert isinstance(record, Exit)
    assert wkt.nanoseconds(answer.exited_at) == record.exited_at_ns


def test_a_signal_to_one_that_is_over_and_not_reaped_yet_was_sent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_over(_fd: Any, _pid: int, signum: int) -> None:
        assert signum == 0, "nobody is signalled to find that out"
        raise ProcessLookupError

    tasks = service(stage, started)
    monkeypatch.setattr(kernel, "send_signal", is_over)

    assert answers.known_answer(tasks, call("Kill", fact=answers.POSSIBLE)) == EMPTY


@pytest.mark.parametrize("now", [ended, deleted, nothing])
def test_of_a_checkpoint_that_ended_its_container_nobody_knows(stage: Stage, now: World) -> None:
    with pytest.raises(StatusError, match="whether that is complete is not known") as error:
        answers.known_answer(service(stage, now), call("Checkpoint", fact=answers.POSSIBLE))
    assert error.value.code == Code.UNKNOWN


def test_an_upgrade_is_answered_by_who_serves_afterwards(stage: Stage) -> None:
    tasks, outcome = service(stage, started), api.UpgradeResponse(from_version="1", to_version="2")
    tasks.upgrade = SimpleNamespace(answer=lambda: outcome)  # type: ignore[assignment]
    assert answers.known_answer(tasks, call("Upgrade", of=answers.OUR_SERVICE, fact=answers.POSSIBLE)) == outcome

    for nobody in (None, SimpleNamespace(answer=lambda: None)):
        tasks.upgrade = nobody  # type: ignore[assignment]
        with pytest.raises(StatusError, match="another took over"):
            answers.known_answer(tasks, call("Upgrade", of=answers.OUR_SERVICE, fact=answers.POSSIBLE))


# --- both


@pytest.mark.parametrize("method", ["Create", "Start", "Exec", "Delete", "Kill", "Pause", "Resume", "Checkpoint"])
def test_what_was_refused_or_is_new_is_begun_and_noted(stage: Stage, method: str) -> None:
    """Whatever is there now: not by this request."""
    tasks = service(stage, ended)
    fact = answers.fact_of(tasks, call(method))
    for asked in (call(method), call(method, fact=answers.REFUSED)):
        assert answers.begin(tasks, asked) == "handled"
        assert (asked.begun, asked.handled) == ([fact], [asked.request])


def test_what_was_done_is_not_begun(stage: Stage) -> None:
    asked = call("Start", fact=answers.POSSIBLE)

    assert answers.begin(service(stage, started), asked) == task.StartResponse(pid=INIT)
    assert (asked.begun, asked.handled) == ([], [])


@pytest.mark.parametrize(
    ("method", "now", "fact"), [("Kill", started, answers.POSSIBLE), ("Pause", ended, answers.REFUSED)]
)
def test_what_was_not_done_is_begun_with_a_note_of_now(stage: Stage, method: str, now: World, fact: int) -> None:
    """What could be done then may not be possible any more: a third shim must not take it for done."""
    asked = call(method, fact=answers.POSSIBLE)

    assert answers.begin(service(stage, now), asked) == "handled"
    assert asked.begun == [fact]


def test_a_container_that_is_just_made_is_not_created(stage: Stage) -> None:
    tasks = service(stage, creating)

    assert tasks.container is not None
    assert tasks.container.state == CREATING
    assert answers.known_answer(tasks, call("Create", fact=answers.POSSIBLE)) is AGAIN
